"""From problems to rewarded rollouts: masks, drops, drop-outs, and that the batch does not matter."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.train.scripted_rollouts import FAILED, Script, ScriptedEngine, Write, rollout

from sr_edge.errors import RemoteError, UsageError
from sr_edge.events import LocalToken, SpanClosed
from sr_edge.roles import Limits
from sr_edge.testing import OPEN, Reply
from sr_edge.testing.oracle import broken_laws
from sr_train.grpo.rollouts import MAX_LOST, OffloadRollouts, Place, decision_masks
from sr_train.latency import LatencyModel
from sr_train.problems import Problem
from sr_train.recipe import GrpoPart, LatencyPart, RewardPart, RolloutPart
from sr_train.rewards import facts_of, rewards
from sr_train.rollout.requests import Rollout, RolloutRequest

PROBLEMS = {f"p{n}": Problem(f"p{n}", f"How many are {n}?", str(n)) for n in range(4)}
FILL = 7
GATED = RewardPart(unit="share")
LATENCY = LatencyModel(LatencyPart())
DROPS = RolloutPart()


def offload(
    write: Write,
    *,
    reward: RewardPart = GATED,
    rollout: RolloutPart = DROPS,
    group: int = 4,
    decisions_only: bool = False,
) -> OffloadRollouts:
    return OffloadRollouts(
        ScriptedEngine(write),
        PROBLEMS,
        grpo=GrpoPart(num_generations=group, decisions_only=decisions_only),
        rollout=rollout,
        reward=reward,
        latency=LATENCY,
        seed=5,
        open_id=OPEN,
        fill_id=FILL,
    )


def ids(*numbers: int, group: int = 4) -> list[str]:
    return [f"p{number}" for number in numbers for _ in range(group)]


def asking(request: RolloutRequest) -> Script:
    """A different answer for each key: right or wrong, asking or not."""
    rng = random.Random(repr(request.key))
    gold = request.messages[0].content.split()[3].rstrip("?")
    answer = gold if rng.random() < 0.5 else "99"
    spans = rng.choice((0, 0, 1, 2)) if request.policy == "auto" else 0
    reply = Reply((), FAILED) if rng.random() < 0.1 else "x" * rng.randint(1, 9)
    return Script("a" * rng.randint(1, 5) + "<>b" * spans + rf" \boxed{{{answer}}}", (reply,) * spans)


# --- what is written -----------------------------------------------------------------------------------


def test_rows_are_the_problems_in_order_with_numbers_of_their_own():
    offloads = offload(asking)
    written = offloads.write(ids(2, 0), Place(step=3, batch=1, first_row=8))
    assert [each.request.messages[0].content for each in written.rollouts] == ["How many are 2?"] * 4 + [
        "How many are 0?"
    ] * 4
    assert [each.request.key for each in written.rollouts] == [(5, 3, 1, 8 + n) for n in range(8)]


def test_cut_group_is_refused():
    with pytest.raises(UsageError, match="cut"):
        offload(asking).write(ids(0)[:3], Place(0))
    with pytest.raises(UsageError, match="cut"):
        offload(asking).write([*ids(0)[:2], *ids(1)[:2]], Place(0))


def test_mask_is_what_the_small_model_sampled():
    written = offload(asking).write(ids(0, 1, 2, 3), Place(0))
    checked = 0
    for each, mask, worth in zip(written.rollouts, written.loss_mask, written.rewards, strict=True):
        if worth is None:
            assert not any(mask)
            continue
        assert mask == each.sampled
        checked += 0 in mask
    assert checked > 2


def test_any_right_rollout_is_worth_more_than_any_wrong_one_of_its_group():
    written = offload(lambda request: Script(rf"\boxed{{{request.key[-1]}}}")).write(ids(2), Place(0))
    assert written.rewards == (0.0, 0.0, 1.0, 0.0)


def test_dropped_rollout_has_no_reward_no_loss_and_no_effect():
    def one_fails(request: RolloutRequest) -> Script:
        if request.key[-1] == 1:
            return Script(r"a<>b \boxed{2}", (Reply((), FAILED),))
        return Script(r"a<>b \boxed{2}" if request.key[-1] else r"\boxed{9}", ("xx",))

    written = offload(one_fails).write(ids(2), Place(0))
    assert written.rewards[1] is None
    assert not any(written.loss_mask[1])
    assert len(written.loss_mask[1]) == len(written.completion_ids[1])
    others = [written.rollouts[n] for n in (0, 2, 3)]
    facts = [facts_of("2", each.transcript, LATENCY) for each in others]
    assert [written.rewards[n] for n in (0, 2, 3)] == rewards(GATED, [each for each in facts if each])
    assert written.figures["offload/dropped"] == 0.25


def test_failed_rollout_can_be_kept_as_it_went_on():
    written = offload(
        lambda _: Script(r"a<>b \boxed{2}", (Reply((), FAILED),)), rollout=RolloutPart(failed="local")
    ).write(ids(2), Place(0))
    assert written.rewards == (1.0,) * 4
    assert all(any(mask) for mask in written.loss_mask)


def test_answer_without_a_token_is_filled_and_masked():
    class Silent(ScriptedEngine):
        def run(
            self, requests: Sequence[RolloutRequest], done: Callable[[int], None] = lambda index: None
        ) -> list[Rollout]:
            return [
                Rollout(request, (), rollout("").transcript, False, (1,), (), (), ()) for request in requests
            ]

    offloads = offload(asking)
    offloads._engine = Silent(asking)
    written = offloads.write(ids(0), Place(0))
    assert written.completion_ids == ((FILL,),) * 4
    assert written.loss_mask == ((0,),) * 4
    assert written.rewards == (None,) * 4


def test_unreadable_gold_drops_the_group_whatever_was_answered():
    offloads = offload(lambda request: Script(("no box", r"\boxed{x}", r"\boxed{}")[request.key[-1] % 3]))
    offloads._problems = {"p0": Problem("p0", "?", "")}
    assert offloads.write(ids(0), Place(0)).rewards == (None,) * 4


@pytest.mark.parametrize("failed", ["drop", "local"])
def test_large_model_that_is_gone_is_told_whether_its_rollouts_are_kept_or_not(failed):
    offloads = offload(
        lambda _: Script(r"a<>b \boxed{2}", (Reply((), FAILED),)), rollout=RolloutPart(failed=failed)
    )
    for step in range(MAX_LOST - 1):
        assert offloads.write(ids(2), Place(step)).figures["offload/failed"] == 1
    with pytest.raises(RemoteError, match="it is not there"):
        offloads.write(ids(2), Place(MAX_LOST))


# --- without the large model ---------------------------------------------------------------------------


def test_remote_dropout_takes_whole_groups_in_its_share():
    offloads = offload(asking, rollout=RolloutPart(remote_dropout=0.25), group=2)
    local = 0
    for step in range(100):
        written = offloads.write(ids(0, 1, 2, 3, group=2), Place(step))
        policies = [each.request.policy for each in written.rollouts]
        assert policies[::2] == policies[1::2]
        local += policies[::2].count("local")
    assert 70 < local < 130
    assert {"offload/accuracy_alone"} <= set(written.figures) or "local" not in policies


def test_rollout_without_the_large_model_is_worth_whether_it_is_right():
    part = RewardPart(explore=0.5, never_asked=0.5)
    offloads = offload(
        lambda request: Script(rf"\boxed{{{request.key[-1]}}}"),
        reward=part,
        rollout=RolloutPart(remote_dropout=0.999999),
    )
    written = offloads.write(ids(2), Place(0))
    assert written.rewards == (0.0, 0.0, 1.0, 0.0)
    assert written.figures["offload/accuracy_alone"] == 0.25
    assert "offload/accuracy" not in written.figures


# --- several processes, going on -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gated", "budget"])
def test_two_processes_write_what_one_does_with_twice_the_batch(kind):
    reward = RewardPart(kind=kind, target_share=0.1, unit="share")
    settings = RolloutPart(remote_dropout=0.3)
    one = offload(asking, reward=reward, rollout=settings)
    two = [offload(asking, reward=reward, rollout=settings) for _ in range(2)]
    for step in range(6):
        whole = one.write(ids(0, 1, 2, 3), Place(step))
        # each process first tells its sums, then both go on with the total
        told: list[Sequence[float]] = []
        for rank, process in enumerate(two):
            before = process.state()
            process.write(ids(*((0, 1), (2, 3))[rank]), Place(step, first_row=8 * rank), _telling(told))
            process.restore(before)
        parts = [
            process.write(ids(*((0, 1), (2, 3))[rank]), Place(step, first_row=8 * rank), _summed(told))
            for rank, process in enumerate(two)
        ]
        joined = [worth for part in parts for worth in part.rewards]
        assert joined == pytest.approx(list(whole.rewards))
        assert tuple(mask for part in parts for mask in part.loss_mask) == whole.loss_mask
        for part in parts:
            measured = "offload/offload_seconds_measured"  # by the clock
            assert {**part.figures, measured: 0} == pytest.approx({**whole.figures, measured: 0})
    assert two[0].state()["dual"] == two[1].state()["dual"]


def _telling(told: list[Sequence[float]]) -> Callable[[Sequence[float]], Sequence[float]]:
    def total(sums: Sequence[float]) -> Sequence[float]:
        told.append(list(sums))
        return sums

    return total


def _summed(told: list[Sequence[float]]) -> Callable[[Sequence[float]], Sequence[float]]:
    return lambda _: [sum(each) for each in zip(*told, strict=True)]


def test_state_goes_along():
    part = RewardPart(kind="budget", target_share=0.1)
    prices = LatencyPart(dollars_out=1e6)
    whole, before = offload(asking, reward=part), offload(asking, reward=part)
    whole._latency = before._latency = LatencyModel(prices)
    first = [whole.write(ids(0, 1), Place(step)).rewards for step in range(6)]
    for step in range(3):
        before.write(ids(0, 1), Place(step))
    after = offload(asking, reward=part)
    after._latency = LatencyModel(prices)
    after.restore(before.state())
    assert [after.write(ids(0, 1), Place(step)).rewards for step in range(3, 6)] == first[3:]
    assert after.dollars == whole.dollars > 0


def test_price_follows_the_share_over_all_tokens():
    part = RewardPart(kind="budget", target_share=0.5, dual_rate=1.0)
    offloads = offload(lambda request: Script("a<>b", ("x" * 10,)), reward=part)
    figures = offloads.write(ids(0), Place(0)).figures
    assert figures["offload/share"] == pytest.approx(10 / 14)
    assert figures["offload/price"] > 0
    never = offload(lambda request: Script("ab"), reward=part)
    assert never.write(ids(0), Place(0)).figures["offload/price"] < 0


def test_figures_by_hand():
    def write(request: RolloutRequest) -> Script:
        if request.key[-1] % 2:
            return Script(r"ab<>c \boxed{1}", ("xyz",))
        return Script(r"ab \boxed{3}")

    figures = offload(write).write(ids(1), Place(0)).figures
    assert figures["offload/accuracy"] == 0.5
    assert figures["offload/asked"] == 0.5
    assert figures["offload/spans"] == 0.5
    local = (len(r"ab \boxed{3}") + 1) * 2 + (len(r"abc \boxed{1}") + 2) * 2
    assert figures["offload/share"] == pytest.approx(6 / (6 + local))
    assert figures["offload/malformed"] == figures["offload/truncated"] == 0


# --- decisions -----------------------------------------------------------------------------------------


def test_decisions_are_where_somebody_of_the_group_asked():
    asked, alone = rollout("a:<>b", "x"), rollout("a:bc:d")
    first, second = decision_masks([asked, alone], OPEN)
    #        a  :  open x close b end
    assert first == (0, 0, 1, 0, 0, 0, 0)
    #        a  :  b  c  :  d  end
    assert second == (0, 0, 1, 0, 0, 1, 0)


def test_decisions_only_is_a_part_of_what_was_sampled():
    written = offload(asking, decisions_only=True).write(ids(0, 1, 2, 3), Place(0))
    for each, mask in zip(written.rollouts, written.loss_mask, strict=True):
        assert all(sampled for sampled, one in zip(each.sampled, mask, strict=True) if one)
    assert any(any(mask) for mask in written.loss_mask)


# --- the mask, over any stream -------------------------------------------------------------------------

letters = st.text("ab:é\n", max_size=6)
replies = st.one_of(
    letters, st.builds(lambda pieces: Reply(tuple(pieces)), st.lists(letters)), st.just(Reply((), FAILED))
)


@given(st.lists(letters, min_size=1, max_size=5), st.lists(replies, max_size=4), st.integers(1, 40))
def test_mask_is_one_exactly_where_an_event_says_sampled(texts, answers, max_tokens):
    each = rollout("<>".join(texts), *answers, limits=Limits(max_tokens, 8, 4))
    assert not broken_laws(each.events)
    expected = []
    for event in each.events:
        if isinstance(event, LocalToken):
            expected.append((event.id, 1))
        elif isinstance(event, SpanClosed):
            expected += [(id, 0) for id in event.ids]
    offloads = offload(asking, group=2, rollout=RolloutPart(failed="local"))
    offloads._engine = _Given([each, each])
    written = offloads.write(ids(0, group=2), Place(0))
    mask, completion = written.loss_mask[0], written.completion_ids[0]
    if any(each.sampled):
        assert list(zip(completion, mask, strict=True)) == expected
    else:
        assert not any(mask)
        assert len(mask) == len(completion)
    assert len(mask) == len(completion) > 0


class _Given:
    def __init__(self, rollouts: list[Rollout]) -> None:
        self._rollouts = rollouts

    def run(
        self, requests: Sequence[RolloutRequest], done: Callable[[int], None] = lambda index: None
    ) -> list[Rollout]:
        return self._rollouts
