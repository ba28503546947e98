"""How difficult the steps are for this small model, measured: no opinion.

Two measurements, the cheap one first. *Surprisal*: how unlikely the small model finds each step of the trace,
in one forward pass. *Gain*: from the step's place on, answers are continued several times with the large
model's span there and without it; by how much more often they are right is what asking there is worth.
Nothing is loaded here: that is done by `models`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sr_train.annotate.steps import Step
from sr_train.problems import Problem

VERSION = "measured-1"

TokenSurprisals = Callable[[str, str], Sequence[tuple[int, float]]]
"""From a question and a trace: where each of the trace's tokens begins, and -log p of it, in nats."""


SURE = -math.log(0.9)
"""Nats: a step that the small model writes by itself with this probability, word by word, needs no help."""


@dataclass(frozen=True, slots=True)
class Surprisal:
    """How unlikely the small model finds a step."""

    total: float
    """Nats."""
    num_tokens: int

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.total / self.num_tokens if self.num_tokens else 0.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One continuation to write."""

    problem: Problem
    before: str
    """The beginning of the trace, up to the step that is tried out."""
    step: str
    """That step, as it stands in the trace."""
    is_helped: bool
    """Whether the large model writes a span there first."""
    key: tuple[int, ...]
    """Seeds its random numbers."""


Continue = Callable[[Sequence[Trial]], Sequence[str | None]]
"""The answers that become of trials, each without what stands before it; None: the large model failed."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What asking before one step is worth."""

    helped: int
    """Right continuations with the large model's span, of `n`."""
    alone: int
    n: int

    @property
    def value(self) -> float:
        return (self.helped - self.alone) / self.n if self.n else 0.0


def step_surprisals(steps: Sequence[Step], tokens: Sequence[tuple[int, float]]) -> list[Surprisal]:
    """Of each step; a token belongs to the step that it begins in."""
    sums, counts = [0.0] * len(steps), [0] * len(steps)
    index = 0
    for start, nats in sorted(tokens):
        while index < len(steps) and start >= steps[index].end:
            index += 1
        if index == len(steps):
            break
        if math.isfinite(nats):
            sums[index] += nats
            counts[index] += 1
    return [Surprisal(total, count) for total, count in zip(sums, counts, strict=True)]


def most_surprising(steps: Sequence[Step], surprisals: Sequence[Surprisal], quantile: float) -> list[int]:
    """The steps of a trace, in order, whose mean surprisal is in its highest part; at least one if any may be
    marked. Steps that the small model is sure to write itself are none of them.

    Args:
        quantile: 0.8 leaves the highest fifth.
    """
    markable = [index for index, step in enumerate(steps) if step.is_markable]
    ranked = sorted(markable, key=lambda index: (-surprisals[index].mean, index))
    kept = max(1, round((1 - quantile) * len(ranked))) if ranked else 0
    return sorted(index for index in ranked[:kept] if surprisals[index].total > SURE)


def trials_of(
    problem: Problem, steps: Sequence[Step], index: int, *, n: int, seed: int, number: int
) -> list[Trial]:
    """The continuations that one step's gain is measured by: `n` alone, then `n` helped.

    Args:
        number: the problem's, for the seeds.
    """
    step = steps[index]
    before, own = problem.trace[: step.start], problem.trace[step.start : step.end]
    return [
        Trial(problem, before, own, is_helped, (seed, number, index, int(is_helped), attempt))
        for is_helped in (False, True)
        for attempt in range(n)
    ]


def gain_of(
    trials: Sequence[Trial],
    answers: Sequence[str | None],
    is_right: Callable[[str, str], bool | None],
) -> Gain | None:
    """None where the large model failed, or the gold answer cannot be read: nothing is known then."""
    counts = {False: 0, True: 0}
    for trial, answer in zip(trials, answers, strict=True):
        right = None if answer is None else is_right(trial.problem.answer, trial.before + answer)
        if right is None:
            return None
        counts[trial.is_helped] += right
    return Gain(counts[True], counts[False], sum(trial.is_helped for trial in trials))
