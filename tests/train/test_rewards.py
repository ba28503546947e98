"""What rollouts are worth: the laws that hold for any group, and single cases by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.train.scripted_rollouts import FAILED, rollout

from sr_edge.markers import CLOSE, OPEN
from sr_edge.testing import Reply
from sr_train.latency import Cost, LatencyModel
from sr_train.recipe import LatencyPart, RewardPart
from sr_train.rewards import (
    Facts,
    cost_shares,
    facts_of,
    group_terms,
    is_malformed,
    marked_text,
    paper_format,
    paper_reward,
    paper_tag_count,
    rewards,
)

LATENCY = LatencyModel(LatencyPart(dollars_in=1.0, dollars_out=2.0))


def facts(
    is_right: bool = True, remote: int = 0, local: int = 100, *, malformed: bool = False, text: str = ""
) -> Facts:
    whole = (remote + local) / 40 + 0.3
    spent = Cost(9.0, 0.3 + remote / 40 if remote else 0.0, remote * 2e-6)
    return Facts(
        is_right,
        remote > 0,
        malformed,
        local,
        remote,
        spent,
        Cost(whole, whole, (remote + local) * 2e-6),
        text,
    )


some_facts = st.builds(
    facts, st.booleans(), st.integers(0, 500), st.integers(1, 500), malformed=st.booleans()
)
groups = st.lists(some_facts, min_size=2, max_size=12)
units = st.sampled_from(["seconds", "dollars", "share"])
parts = st.builds(
    RewardPart,
    kind=st.just("gated"),
    lam=st.floats(0, 0.99),
    unit=units,
    malformed=st.floats(0, 0.99),
    explore=st.floats(0, 1),
    never_asked=st.floats(0, 1),
)


@given(parts, groups)
def test_any_right_answer_beats_any_wrong_one(part, group):
    worths = rewards(part, group)
    right = [worth for worth, each in zip(worths, group, strict=True) if each.is_right]
    wrong = [worth for worth, each in zip(worths, group, strict=True) if not each.is_right]
    assert not right or not wrong or min(right) > max(wrong)


@given(parts, groups, st.data())
def test_asking_for_less_is_never_worth_less(part, group, data):
    at = data.draw(st.integers(0, len(group) - 1))
    dear = [*group[:at], facts(True, 300, 100), facts(True, 200, 200), *group[at:]]
    worths = rewards(replace(part, malformed=0.0), dear)
    assert worths[at + 1] >= worths[at]


@given(groups, units)
def test_cost_shares_are_shares(group, unit):
    shares = cost_shares(group, unit)
    assert all(0 <= share <= 1 for share in shares)
    assert all((share == 0) == (not each.has_asked) for share, each in zip(shares, group, strict=True))


def test_answer_does_not_get_cheaper_by_being_longer():
    short, long = cost_shares([facts(remote=50, local=50), facts(remote=50, local=950)], "share")
    assert short == long


def test_gated_by_hand():
    part = RewardPart(lam=0.5, unit="share", malformed=0.1)
    group = [
        facts(True, 0, 100),
        facts(True, 50, 50),
        facts(False, 50, 50),
        facts(True, 0, 100, malformed=True),
    ]
    assert rewards(part, group) == pytest.approx([1.0, 0.75, 0.0, 0.9])


def test_nobody_right_asking_is_tried():
    part = RewardPart(explore=0.05)
    assert group_terms(part, [facts(False), facts(False, 20)]) == [0.0, 0.05]


def test_never_asking_costs_only_where_asking_alone_was_right():
    part = RewardPart(never_asked=0.1)
    assert group_terms(part, [facts(False), facts(True, 20), facts(False, 20)]) == [-0.1, 0.0, 0.0]
    assert group_terms(part, [facts(True), facts(True, 20), facts(False)]) == [0.0, 0.0, 0.0]


@given(groups, st.floats(-4, 4))
def test_budget_is_linear_in_the_price(group, price):
    part = RewardPart(kind="budget", target_share=0.1, malformed=0.0)
    worths = rewards(part, group, price=price)
    shares = cost_shares(group, "share")
    assert worths == pytest.approx(
        [each.is_right - price * share for each, share in zip(group, shares, strict=True)]
    )


def test_budget_can_make_a_right_answer_too_dear():
    right, wrong = rewards(
        RewardPart(kind="budget", target_share=0.1), [facts(True, 80, 20), facts(False, 0, 100)], price=2.0
    )
    assert right < wrong


# --- facts of transcripts ---------------------------------------------------------------------------------


def test_facts_of_an_answer():
    found = facts_of("42", rollout(r"6*7=<>. \boxed{42}", "42").transcript, LATENCY)
    assert found is not None
    assert (found.is_right, found.has_asked, found.is_malformed) == (True, True, False)
    assert found.remote_tokens == 2
    assert found.cost.offload_seconds > 0
    assert found.text == rf"6*7={OPEN}42{CLOSE}. \boxed{{42}}"


def test_answer_in_a_span_is_wrong_and_malformed():
    for text, reply in ((r"so <>", r"\boxed{42}"), (r"so \boxed{<>}", "42"), (r"\boxed{4<>", "2} done")):
        found = facts_of("42", rollout(text, reply).transcript, LATENCY)
        assert found is not None
        assert (found.is_right, found.is_malformed) == (False, True)


def test_box_in_a_span_that_is_overruled_is_fine():
    found = facts_of("42", rollout(r"<> no: \boxed{42}", r"\boxed{41}").transcript, LATENCY)
    assert found is not None
    assert (found.is_right, found.is_malformed) == (True, False)


def test_empty_span_and_spelled_marker_are_malformed():
    assert is_malformed(rollout("a<>b", "").transcript)
    assert is_malformed(rollout(f"a {OPEN} b").transcript)
    assert is_malformed(rollout(f"a {CLOSE} b").transcript)
    assert not is_malformed(rollout("a<>b", "x").transcript)


def test_failed_span_is_no_fault_of_the_small_model():
    assert not is_malformed(rollout("a<>b", Reply((), FAILED)).transcript)


def test_gold_that_cannot_be_read_gives_no_facts():
    assert facts_of("", rollout(r"\boxed{x}").transcript, LATENCY) is None


# --- the paper's -------------------------------------------------------------------------------------------


def scaffold(inside: str) -> str:
    return f"<think>\n{inside}\n</think>\n<answer>\n\\boxed{{1}}\n</answer>"


def test_paper_format():
    assert paper_format(scaffold("a")) == 2
    assert paper_format("a") == 1  # no tags are nested properly
    assert paper_format(f"{OPEN}a{OPEN}b{CLOSE}{CLOSE}") == 0
    assert paper_format(f"{CLOSE}a{OPEN}") == 0
    assert paper_format(f"{OPEN}a") == 0


@pytest.mark.parametrize(
    ("spans", "worth"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2), (9, 1), (12, 1), (13, 0), (16, 0), (17, -1)]
)
def test_paper_pays_for_eight_spans(spans, worth):
    text = f"{OPEN}{CLOSE}" * spans
    assert paper_tag_count(text) == worth


def test_paper_pays_for_forty_percent():
    def coverage(inside: int) -> float:
        around = 100 - inside - len(OPEN) - len(CLOSE)
        return paper_tag_count(f"{OPEN}{'x' * inside}{CLOSE}{'y' * around}")

    assert coverage(40) == pytest.approx(2.0)
    assert coverage(20) == pytest.approx(1.0)
    assert coverage(70) == pytest.approx(0.0)


def test_paper_prefers_its_tags_to_the_answer():
    wrong = scaffold((f"{OPEN}{'x' * 10}{CLOSE}" + "y" * 5) * 8)
    right = facts(True, text="so 1")
    assert paper_reward(facts(False, text=wrong)) > paper_reward(right) + 3


def test_paper_counts_unbalanced_tags():
    assert paper_tag_count(f"{OPEN}a") == -2


def test_marked_text_is_what_was_written():
    transcript = replace(rollout("a<>b<>c", "x", "y").transcript, opening="<think>\n")
    assert marked_text(transcript) == f"<think>\na{OPEN}x{CLOSE}b{OPEN}y{CLOSE}c"
