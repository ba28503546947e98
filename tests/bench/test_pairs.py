"""What rounds of measurements come to, on scripted ones: no clock is involved."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sr_edge.bench.pairs import Spread, in_rounds, ratios
from sr_edge.errors import EdgeError


def scripted(name: str, values: list[float], log: list[str]) -> Callable[[], float]:
    left = iter(values)

    def measure() -> float:
        log.append(name)
        return next(left)

    return measure


def test_sides_alternate_and_each_round_turns_their_order() -> None:
    log: list[str] = []
    sides = {name: scripted(name, [1.0, 2.0, 3.0], log) for name in "ab"}
    rounds = in_rounds(sides, 3)
    assert log == ["a", "b", "b", "a", "a", "b"]
    assert rounds.values == {"a": (1.0, 2.0, 3.0), "b": (1.0, 2.0, 3.0)}
    assert not rounds.failures


def test_a_ratio_is_taken_within_its_round() -> None:
    # The machine became ten times slower in the middle: each round says that ours takes half, and so does the
    # figure. The ratio of the medians would say a twentieth.
    ours, theirs = [1.0, 1.0, 10.0, 10.0], [2.0, 2.0, 20.0, 20.0]
    assert ratios(ours, theirs) == Spread(median=0.5, low=0.5, high=0.5, count=4)
    assert ratios([1.0, 1.0, 10.0], [2.0, 20.0, 20.0]) == Spread(median=0.5, low=0.05, high=0.5, count=3)


def test_rounds_that_are_not_pairs_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="nothing was measured"):
        Spread.of([])


def test_a_spread_is_median_and_ends() -> None:
    assert Spread.of([5.0, 1.0, 3.0, 2.0]) == Spread(median=2.5, low=1.0, high=5.0, count=4)


def test_a_side_that_fails_is_left_out_and_the_others_go_on() -> None:
    log: list[str] = []
    failing = iter([1.0])

    def fails_in_the_second_round() -> float:
        log.append("peer")
        for value in failing:
            return value
        raise EdgeError("it died")

    sides = {"ours": scripted("ours", [1.0, 2.0, 3.0], log), "peer": fails_in_the_second_round}
    rounds = in_rounds(sides, 3)
    assert rounds.values == {"ours": (1.0, 2.0, 3.0)}
    assert rounds.failures == {"peer": "it died"}
    assert log == ["ours", "peer", "peer", "ours", "ours"]
