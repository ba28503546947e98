"""The load: its check sees what is wrong with an answer, and the server that it is put on bears it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
from tests.serve.replaying import Replay
from tests.serve.soak import foreign_spans, remote_text, soak

from sr_edge.events import Event, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started
from sr_edge.local import LlamaLocal
from sr_edge.passport import demo_paths
from sr_edge.roles import Limits, Message
from sr_edge.session import Session, SessionSettings
from sr_edge.split import SplitDecoder
from sr_edge.suites.demo import HARD_KINDS, problems

HARD = [p for p in problems(seed=2024, n=40) if any(step.kind in HARD_KINDS for step in p.steps)]


def question(number: int) -> list[Message]:
    return [Message("user", HARD[number].question)]


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    with Replay(demo_paths().small) as replay:
        yield replay


@pytest.fixture(scope="module")
def two() -> tuple[list[Event], list[Event]]:
    """Answers to the first two questions, with spans."""
    with Session.open(SessionSettings(temperature=0.0)) as session:
        events = list(session.answer(question(0))), list(session.answer(question(1)))
    assert all(any(isinstance(event, SpanDelta) for event in each) for each in events)
    return events


@pytest.fixture
def greedy(two: tuple[list[Event], list[Event]]) -> list[Event]:
    return list(two[0])


# --- the check -----------------------------------------------------------------------------------------


def test_what_the_model_wrote_is_found_right(replay: Replay, two: tuple[list[Event], list[Event]]) -> None:
    for number, events in enumerate(two):
        assert replay.faults(events, question(number), is_greedy=True) == []


def test_what_was_drawn_by_chance_is_right_and_not_the_likeliest(replay: Replay) -> None:
    with LlamaLocal.open(demo_paths().small, temperature=2.0, top_p=1.0, seed=1) as local:
        events = list(SplitDecoder(local, limits=Limits(max_tokens=100)).generate(question(2)))
    assert replay.faults(events, question(2), is_greedy=False) == []
    assert any("not the likeliest" in fault for fault in replay.faults(events, question(2), is_greedy=True))


def nth(events: Sequence[Event], kind: type, n: int) -> int:
    return [at for at, event in enumerate(events) if isinstance(event, kind)][n]


def changed(kind: type, n: int, **values: object) -> Callable[[list[Event]], list[Event]]:
    def change(events: list[Event]) -> list[Event]:
        at = nth(events, kind, n)
        return [*events[:at], replace(events[at], **values), *events[at + 1 :]]

    return change


def without_token(events: list[Event]) -> list[Event]:
    at = nth(events, LocalToken, 9)
    return [*events[:at], *events[at + 1 :]]


def with_a_later_time(events: list[Event]) -> list[Event]:
    return changed(LocalToken, 3, at=1e9)(events)


@pytest.mark.parametrize(
    ("breaking", "says"),
    [
        (changed(LocalToken, 7, id=5), "log-probability"),
        (changed(LocalToken, 7, logprob=-1.5), "log-probability"),
        (changed(LocalToken, 7, logprob=-0.9), "in the mean"),
        (changed(LocalToken, 7, text="?"), "ids stand for"),
        (changed(LocalToken, 7, id=10**9), "none of the model's"),
        (changed(SpanDelta, 0, text=" 1"), "do not stand for its text"),
        (changed(SpanClosed, 0, ids=()), "do not stand for its text"),
        (changed(Started, 0, prompt_ids=(1, 2, 3)), "the prompt is not"),
        (changed(Started, 0, opening=""), "the prompt is not"),
        (without_token, "not as many"),
        (with_a_later_time, "order of their times"),
        (lambda events: events[:-1], "ends with Finished"),
    ],
)
def test_an_answer_that_is_broken_is_found_out(
    replay: Replay,
    greedy: list[Event],
    breaking: Callable[[list[Event]], list[Event]],
    says: str,
) -> None:
    faults = replay.faults(breaking(greedy), question(0), is_greedy=True)
    assert any(says in fault for fault in faults), faults


def test_an_answer_that_goes_on_as_another_is_found_out(
    replay: Replay, two: tuple[list[Event], list[Event]]
) -> None:
    one, other = two
    mixed = [*one[: nth(one, LocalToken, 5)], *other[nth(other, LocalToken, 5) :]]
    faults = replay.faults(mixed, question(0), is_greedy=True)
    assert any("log-probability" in fault for fault in faults)
    assert any("not the likeliest" in fault for fault in faults)


def test_an_answer_that_was_written_over_a_foreign_digit_is_found_out(replay: Replay) -> None:
    """As if one cell of the prompt were another conversation's."""
    asked = question(0)
    digit = re.search(r"\d", asked[0].content)
    assert digit is not None
    other = f"{asked[0].content[: digit.start()]}{(int(digit[0]) + 1) % 10}{asked[0].content[digit.end() :]}"
    with LlamaLocal.open(demo_paths().small, temperature=0.0) as local:
        events = list(SplitDecoder(local, policy="local").generate([Message("user", other)]))
        ids = local.render(asked).ids
    faults = replay.faults(changed(Started, 0, prompt_ids=ids)(events), asked, is_greedy=True)
    assert any("log-probability" in fault for fault in faults)


def test_the_answer_to_another_question_is_found_out(replay: Replay, greedy: list[Event]) -> None:
    assert replay.faults(greedy, question(1), is_greedy=True) == ["the prompt is not that of the question"]


def test_what_was_told_is_held_against_the_events(replay: Replay, greedy: list[Event]) -> None:
    faults = replay.faults(greedy, question(0), is_greedy=True, thought="so", content="")
    assert [fault.partition(" that")[0] for fault in faults] == ["the thought", "the content"]


def test_a_span_of_another_answer_is_found_out() -> None:
    asked, line = HARD[0].question, "so 28 * 4:"
    opened = [
        Started(prompt_ids=(), model="m"),
        LocalToken(0, line, 0.0),
        SpanOpened(1, "marker", None, "big"),
    ]

    def spans(text: str) -> list[str]:
        return foreign_spans([*opened, SpanDelta(1, text), SpanClosed(1, (), "stop")], asked)

    assert spans(remote_text(asked, line)[:7]) == [], "a span may be cut"
    assert spans(remote_text(HARD[1].question, line)) != []


# --- the load ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_under_load_answers_right_or_refuses_and_leaves_nothing_behind() -> None:
    report = soak(seconds=30, clients=32, deadline=150, seed=1)
    print(*report.lines(), sep="\n")
    # so short a run ends before the allocator has settled: what ten minutes take is measured apart
    assert [fault for fault in report.faults() if "memory" not in fault] == []
    assert report.tally.hung_up
    assert report.tally.ends
    assert report.remote.keys() > {"none"}
