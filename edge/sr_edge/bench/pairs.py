"""Measuring side by side: rounds in which every side runs once, and what they come to.

A laptop's speed drifts by more than what is to be seen. So sides are never measured one after the other but
in turn, each round in the other order, and compared round by round: what the machine does meets all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, Self, TypeVar

from sr_edge.errors import EdgeError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Raises: ValueError: there are none."""
        if not values:
            raise ValueError("nothing was measured")
        return cls(median(values), min(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class Rounds(Generic[T]):
    values: Mapping[str, tuple[T, ...]]
    """Of each side that came through all rounds."""
    failures: Mapping[str, str]
    """Why the others did not."""


def in_rounds(
    sides: Mapping[str, Callable[[], T]],
    rounds: int,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Rounds[T]:
    """Run each side once a round, in the given order and in the reverse by turns.

    A side that fails is not run again, and what it gave before is dropped; the others go on.
    """
    values: dict[str, list[T]] = {name: [] for name in sides}
    failures: dict[str, str] = {}
    for n in range(rounds):
        for name in list(sides) if n % 2 == 0 else reversed(list(sides)):
            if name in failures:
                continue
            say(f"round {n + 1} of {rounds}: {name}")
            try:
                values[name].append(sides[name]())
            except EdgeError as error:
                failures[name] = str(error)
                say(f"{name}: {error}")
    return Rounds({name: tuple(got) for name, got in values.items() if name not in failures}, failures)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours over theirs, round by round.

    The median of the ratios, not the ratio of the medians: those may come from different minutes.
    """
    return Spread.of([one / other for one, other in zip(ours, theirs, strict=True)])
