"""What the answers of several arms say together: pass@1, shares and costs, with intervals. Pure.

Intervals are bootstrapped over problems (all samples of a problem come or stay out together), all arms with
the same draws, so that a difference between two arms is that on the same problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sr_edge.evaluate import wilson
from sr_train.evaluate.arms import Arm
from sr_train.evaluate.records import Record

Vector = NDArray[np.float64]

RESAMPLES = 10_000
_MAX_WEIGHTS = 20_000_000
"""Of a bootstrap: with very many problems there are fewer draws."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """One arm. Token counts, spans, seconds and dollars are means of an answer."""

    arm: str
    kind: str
    setting: float | None
    problems: int
    answers: int
    failed: int
    """Answers that are not counted: the large model failed."""
    pass_at_1: Estimate
    """The mean over problems of the share of right answers."""
    share: Estimate
    """Of all tokens written, those of the large model."""
    input_share: Estimate
    """Of all tokens read by either model, those sent to the large one, at each span all so far."""
    local_tokens: float
    remote_tokens: float
    sent_tokens: float
    fresh_tokens: float
    """Of `sent_tokens`, those that a prefix cache does not spare."""
    spans: float
    seconds: Estimate
    """By the latency model, as the two below."""
    offload_seconds: float
    dollars: float
    measured_seconds: float
    """By the clock of this evaluation, which may have written many answers at once."""
    measured_dollars: float
    ends: Mapping[str, int]
    finishes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two arms on the problems that both answered: what `arm` has more than `other`."""

    arm: str
    other: str
    pass_at_1: Estimate
    share: Estimate
    seconds: Estimate


@dataclass(frozen=True, slots=True)
class Figures:
    arms: tuple[ArmFigures, ...]
    differences: tuple[Difference, ...]
    settings: Mapping[str, Any]
    """What was measured, and how."""

    def of(self, arm: str) -> ArmFigures:
        return next(each for each in self.arms if each.arm == arm)


def figures_of(
    answered: Mapping[Arm, Sequence[Record]], settings: Mapping[str, Any], *, seed: int = 0
) -> Figures:
    """Args:
    answered: the records of each arm; the arms' order is kept.
    seed: of the draws.
    """
    problems = sorted({record.problem for records in answered.values() for record in records})
    draws = Bootstrap(problems, seed)
    arms = tuple(_arm(arm, records, draws) for arm, records in answered.items() if _counted(records))
    pairs = [
        (answered[arm], answered[other])
        for arm in answered
        for other in answered
        if arm.name == "split" and other.kind != "split"
    ]
    differences = tuple(_difference(*pair, draws) for pair in pairs if all(map(_counted, pair)))
    return Figures(arms, differences, settings)


class Bootstrap:
    """How often each problem is drawn in each resample; the same for every figure that is asked of it."""

    def __init__(self, problems: Sequence[str], seed: int = 0, resamples: int = RESAMPLES) -> None:
        self._index = {problem: n for n, problem in enumerate(problems)}
        n = max(1, len(problems))
        rng = np.random.default_rng(seed)
        resamples = max(200, min(resamples, _MAX_WEIGHTS // n))
        self._weights = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float32)

    def sums(self, records: Iterable[Record], value: Callable[[Record], float]) -> Vector:
        """Of each problem, over its answers; shape (problems,)."""
        sums = np.zeros(self._weights.shape[1])
        for record in records:
            sums[self._index[record.problem]] += value(record)
        return sums

    def ratio(self, above: Vector, below: Vector) -> Estimate:
        """Of two sums over problems."""
        return _estimate(_divided(above.sum(), below.sum()), self.drawn(above, below))

    def drawn(self, above: Vector, below: Vector) -> Vector:
        """The ratio in each resample."""
        ratios: Vector = _divided(self._weights @ above, self._weights @ below)
        return ratios


def mean_at_problems(records: Sequence[Record], draws: Bootstrap) -> tuple[Vector, Vector]:
    """Of each problem the share of right answers (0 where there is none), and whether there is an answer."""
    right = draws.sums(records, lambda record: float(record.is_right))
    answers = draws.sums(records, lambda record: 1.0)
    return right / np.maximum(answers, 1.0), (answers > 0).astype(np.float64)


def accuracy_at(curve: Sequence[tuple[float, float]], share: float) -> float | None:
    """On the line through points of (share, accuracy), in order of share; None outside of them."""
    points = sorted(curve)
    for (left, low), (right, high) in pairwise(points):
        if left <= share <= right:
            return low if right == left else low + (high - low) * (share - left) / (right - left)
    return None


def share_at(curve: Sequence[tuple[float, float]], accuracy: float) -> float | None:
    """The smallest share at which that line reaches an accuracy; None where it does not."""
    points = sorted(curve)
    if points and points[0][1] >= accuracy:
        return points[0][0]
    for (left, low), (right, high) in pairwise(points):
        if low < accuracy <= high:
            return left + (right - left) * (accuracy - low) / (high - low)
    return None


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Those points (cost, worth) that no other beats in both; their indices, cheapest first."""
    order = sorted(range(len(points)), key=lambda n: (points[n][0], -points[n][1]))
    best, kept = -np.inf, []
    for n in order:
        if points[n][1] > best:
            best = points[n][1]
            kept.append(n)
    return kept


# --- one arm --------------------------------------------------------------------------------------------


def _counted(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if not record.failed]


def _arm(arm: Arm, records: Sequence[Record], draws: Bootstrap) -> ArmFigures:
    counted = _counted(records)
    n = len(counted)
    remote = draws.sums(counted, lambda record: record.remote_tokens)
    tokens = draws.sums(counted, lambda record: record.tokens)
    sent = draws.sums(counted, lambda record: record.sent_tokens)
    read = draws.sums(counted, lambda record: record.read_tokens + record.sent_tokens)
    answers = draws.sums(counted, lambda record: 1.0)

    def mean(value: Callable[[Record], float]) -> float:
        return sum(map(value, counted)) / n

    return ArmFigures(
        arm=arm.name,
        kind=arm.kind,
        setting=arm.setting,
        problems=len({record.problem for record in counted}),
        answers=n,
        failed=len(records) - n,
        pass_at_1=_pass_at_1(counted, draws),
        share=draws.ratio(remote, tokens),
        input_share=draws.ratio(sent, read),
        local_tokens=mean(lambda record: record.local_tokens),
        remote_tokens=mean(lambda record: record.remote_tokens),
        sent_tokens=mean(lambda record: record.sent_tokens),
        fresh_tokens=mean(lambda record: record.fresh_tokens),
        spans=mean(lambda record: len(record.ends)),
        seconds=draws.ratio(draws.sums(counted, lambda record: record.seconds), answers),
        offload_seconds=mean(lambda record: record.offload_seconds),
        dollars=mean(lambda record: record.dollars),
        measured_seconds=mean(lambda record: record.measured_seconds),
        measured_dollars=mean(lambda record: record.measured_dollars),
        ends=dict(Counter(end for record in counted for end in record.ends).most_common()),
        finishes=dict(Counter(record.finish for record in counted).most_common()),
    )


def _pass_at_1(records: Sequence[Record], draws: Bootstrap) -> Estimate:
    means, there = mean_at_problems(records, draws)
    estimate = draws.ratio(means, there)
    if estimate.value in (0.0, 1.0):  # every resample says the same, which is not to say that it is certain
        n = int(there.sum())
        return Estimate(estimate.value, *wilson(round(estimate.value * n), n))
    return estimate


def _difference(records: Sequence[Record], others: Sequence[Record], draws: Bootstrap) -> Difference:
    mine, theirs = _counted(records), _counted(others)
    both = {record.problem for record in mine} & {record.problem for record in theirs}
    mine = [record for record in mine if record.problem in both]
    theirs = [record for record in theirs if record.problem in both]

    def gap(above: Callable[[Record], float], below: Callable[[Record], float]) -> Estimate:
        a = draws.sums(mine, above), draws.sums(mine, below)
        b = draws.sums(theirs, above), draws.sums(theirs, below)
        value = _divided(a[0].sum(), a[1].sum()) - _divided(b[0].sum(), b[1].sum())
        return _estimate(value, draws.drawn(*a) - draws.drawn(*b))

    means, there = mean_at_problems(mine, draws)
    other_means, _ = mean_at_problems(theirs, draws)
    return Difference(
        arm=records[0].arm,
        other=others[0].arm,
        pass_at_1=draws.ratio(means - other_means, there),
        share=gap(lambda record: record.remote_tokens, lambda record: record.tokens),
        seconds=gap(lambda record: record.seconds, lambda record: 1.0),
    )


def _estimate(value: Any, drawn: Vector) -> Estimate:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))


def _divided(above: Any, below: Any) -> Any:
    """0 where nothing was counted."""
    return np.divide(
        above, below, out=np.zeros_like(np.asarray(above, np.float64)), where=np.asarray(below) != 0
    )
