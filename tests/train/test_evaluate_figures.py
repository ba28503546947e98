"""The arithmetic of evaluation: means, intervals, differences, curves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.test_evaluate import record

from sr_edge.evaluate import wilson
from sr_edge.events import Event, Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started
from sr_train.evaluate.arms import Arm
from sr_train.evaluate.figures import (
    Bootstrap,
    Estimate,
    Figures,
    accuracy_at,
    figures_of,
    mean_at_problems,
    pareto,
    share_at,
)
from sr_train.evaluate.records import Record, record_of
from sr_train.latency import LatencyModel
from sr_train.problems import Problem
from sr_train.recipe import LatencyPart
from sr_train.rollout.requests import RolloutRequest, rollout_of

SPLIT, RANDOM, SMALL = Arm("split"), Arm("random", 0.1), Arm("small")


def answered(arm: Arm, rights: list[list[bool]], *, remote: int = 1, local: int = 9) -> list[Record]:
    """Of each problem its samples."""
    return [
        record(arm.name, n, right=right, remote=remote, local=local)
        for n, samples in enumerate(rights)
        for right in samples
    ]


def pass_at_1(rights: list[list[bool]]) -> Estimate:
    return figures_of({SPLIT: answered(SPLIT, rights)}, {}).of("split").pass_at_1


rights_of_problems = st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=1, max_size=30)


@given(rights_of_problems)
@settings(max_examples=40, deadline=None)
def test_pass_at_1_is_the_mean_over_problems_and_within_its_interval(rights: list[list[bool]]) -> None:
    estimate = pass_at_1(rights)
    assert estimate.value == pytest.approx(np.mean([np.mean(samples) for samples in rights]))
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high or 0 < estimate.value < 1  # never certain of all or nothing


def test_a_problem_with_more_answers_counts_no_more() -> None:
    assert pass_at_1([[True] * 3, [False]]).value == 0.5


def test_the_interval_is_that_of_theory_for_many_problems() -> None:
    rng = np.random.default_rng(1)
    rights = [[bool(each)] for each in rng.permutation(np.arange(400) < 120)]
    estimate = pass_at_1(rights)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert estimate.value == pytest.approx(0.3)
    assert estimate.low == pytest.approx(0.3 - half, abs=0.005)
    assert estimate.high == pytest.approx(0.3 + half, abs=0.005)


def test_the_interval_holds_the_truth_nineteen_times_of_twenty() -> None:
    rng = np.random.default_rng(2)
    names = [f"p{n}" for n in range(60)]
    draws = Bootstrap(names, resamples=1000)
    held = 0
    for _ in range(300):
        records = answered(SPLIT, [[bool(each)] for each in rng.random(60) < 0.4])
        estimate = draws.ratio(*mean_at_problems(records, draws))
        held += estimate.low <= 0.4 <= estimate.high
    assert 0.90 <= held / 300 <= 0.98


def test_answering_the_same_again_makes_nothing_more_certain() -> None:
    rng = np.random.default_rng(3)
    once = [[bool(each)] for each in rng.random(50) < 0.5]
    assert pass_at_1(once) == pass_at_1([samples * 8 for samples in once])


def test_all_right_is_not_certain() -> None:
    assert pass_at_1([[True]] * 12) == Estimate(1.0, *wilson(12, 12))


def test_a_difference_is_that_on_the_same_problems() -> None:
    """Arms that differ on few problems differ surely, however much the problems differ."""
    easy = [[n % 2 == 0] for n in range(100)]
    worse = [[n % 2 == 0 and n >= 20] for n in range(100)]
    figures = figures_of({SPLIT: answered(SPLIT, easy), RANDOM: answered(RANDOM, worse)}, {})
    (gap,) = figures.differences
    assert (gap.arm, gap.other) == ("split", "random")
    assert gap.pass_at_1.value == pytest.approx(0.1)
    assert 0.03 < gap.pass_at_1.low < gap.pass_at_1.high < 0.18
    overlap = figures.of("split").pass_at_1.low < figures.of("random").pass_at_1.high
    assert overlap  # by themselves they would not say so


def test_equal_arms_differ_by_nothing() -> None:
    rights = [[True, False], [False, False], [True, True]]
    figures = figures_of({SPLIT: answered(SPLIT, rights), RANDOM: answered(RANDOM, rights)}, {})
    nothing = Estimate(0.0, 0.0, 0.0)
    assert (figures.differences[0].pass_at_1, figures.differences[0].share) == (nothing, nothing)


def test_what_failed_in_one_arm_is_compared_in_neither() -> None:
    split = answered(SPLIT, [[True], [True], [False]])
    other = answered(RANDOM, [[True], [False], [False]])
    failed = [other[0], _failed(other[1]), other[2]]
    figures = figures_of({SPLIT: split, RANDOM: failed}, {})
    assert figures.differences[0].pass_at_1.value == 0.0
    assert figures.of("random").failed == 1
    assert figures.of("random").pass_at_1.value == 0.5
    assert figures.of("split").pass_at_1.value == pytest.approx(2 / 3)


def test_shares_weigh_tokens_and_not_answers() -> None:
    records = [record("split", 0, remote=90, local=10), record("split", 1, remote=0, local=900)]
    assert figures_of({SPLIT: records}, {}).of("split").share.value == pytest.approx(0.09)


def test_the_same_figures_each_time() -> None:
    rights = [[n % 3 == 0] for n in range(40)]
    assert _figures(rights) == _figures(rights)


# --- curves -----------------------------------------------------------------------------------------------

CURVE = [(0.2, 0.9), (0.0, 0.3), (0.1, 0.7)]


def test_a_curve_is_read_between_its_points() -> None:
    assert accuracy_at(CURVE, 0.05) == pytest.approx(0.5)
    assert accuracy_at(CURVE, 0.2) == pytest.approx(0.9)
    assert accuracy_at(CURVE, 0.3) is None
    assert share_at(CURVE, 0.8) == pytest.approx(0.15)
    assert share_at(CURVE, 0.2) == 0.0
    assert share_at(CURVE, 0.95) is None


@given(st.floats(0.0, 0.2))
def test_a_curve_is_read_alike_from_both_sides(share: float) -> None:
    accuracy = accuracy_at(CURVE, share)
    assert accuracy is not None
    assert share_at(CURVE, accuracy) == pytest.approx(share, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=15))
def test_what_is_best_is_beaten_by_nobody(points: list[tuple[int, int]]) -> None:
    best = pareto([(float(cost), float(worth)) for cost, worth in points])
    for n, (cost, worth) in enumerate(points):
        beaten = any(
            other_cost <= cost and other_worth >= worth and (other_cost, other_worth) != (cost, worth)
            for other_cost, other_worth in points
        )
        if n in best:
            assert not beaten
        else:
            assert beaten or (cost, worth) in [points[each] for each in best]


# --- one answer -------------------------------------------------------------------------------------------


def test_an_answer_is_counted() -> None:
    """Two spans after a prompt of 10: the second sends the first one's tokens again."""
    events: list[Event] = [
        Started(tuple(range(10)), "small", "big", opening="<think>\n"),
        LocalToken(1, "a", -1.0),
        LocalToken(2, "", -0.5),
        SpanOpened(1, "marker", 0.6, "big", sent_tokens=11, sent_bytes=40),
        SpanDelta(1, "bb"),
        SpanClosed(1, (7, 7, 99), "handback", tokens=2, ttft=0.2, seconds=0.5, resume=0.1, cost=0.001),
        LocalToken(2, "", -0.3),
        SpanOpened(2, "marker", 0.6, "big", sent_tokens=16, sent_bytes=44),
        SpanDelta(2, "c"),
        SpanClosed(2, (7, 99), "cap", tokens=1, ttft=0.2, seconds=0.5, resume=0.1, cost=0.002),
        LocalToken(3, "</think>\\boxed{05}", -0.2),
        Finished("stop", 10, 4, 3, seconds=4.0),
    ]
    rollout = rollout_of(RolloutRequest((), (0,)), events)
    part = LatencyPart(
        rtt=1.0, big_prefill=10.0, big_decode=2.0, small_prefill=5.0, small_decode=4.0, dollars_out=1e6
    )
    made = record_of("split", Problem("p", "?", "5"), 0, rollout, LatencyModel(part))
    assert made.is_right
    assert (made.local_tokens, made.remote_tokens, made.read_tokens) == (4, 3, 13)
    assert (made.sent_tokens, made.fresh_tokens) == (27, 11 + 3)
    assert made.offload_seconds == pytest.approx(2 * 1.0 + 27 / 10 + 3 / 2)
    assert made.seconds == pytest.approx(made.offload_seconds + 10 / 5 + 4 / 4)
    assert (made.dollars, made.measured_seconds, made.measured_dollars) == (3.0, 4.0, 0.003)
    assert made.mean_logprob == pytest.approx(-0.5)
    assert made.ends == ("handback", "cap")
    assert made.text == "<think>\na<bigmodel>bb</bigmodel><bigmodel>c</bigmodel></think>\\boxed{05}"
    assert not made.failed


def _failed(one: Record) -> Record:
    return replace(one, failed=True)


def _figures(rights: list[list[bool]]) -> Figures:
    return figures_of({SPLIT: answered(SPLIT, rights), SMALL: answered(SMALL, rights)}, {})
