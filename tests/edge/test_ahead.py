"""What is read while the user types, on the true llama.cpp: it saves reading, and changes no answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.ahead import ReadAhead
from sr_edge.events import Event, LocalToken, Started
from sr_edge.local import LlamaLocal
from sr_edge.roles import Message
from sr_edge.session import Session, SessionSettings

QUESTION = "the hello, the 12 hellos; er the "
WORDS = ("the ", "hello", " er", "12", "\n", "ll", "\u00e9", ". </", "  ")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", context_length=2048)


@pytest.fixture
def session(tiny: Path) -> Iterator[Session]:
    with Session.open(SessionSettings(model=tiny, policy="local", temperature=0, max_tokens=12)) as session:
        yield session


def always() -> bool:
    return True


def times(n: int) -> Callable[[], bool]:
    """True so many times."""
    left = iter([True] * n)
    return lambda: next(left, False)


def user(*texts: str) -> list[Message]:
    """Turns of a user and an assistant, whose last is the user's."""
    return [Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]


def answered(session: Session, messages: Sequence[Message]) -> tuple[Started, list[int]]:
    events: list[Event] = list(session.answer(messages))
    assert isinstance(events[0], Started)
    return events[0], [event.id for event in events if isinstance(event, LocalToken)]


def left_to_read(started: Started) -> int:
    return len(started.prompt_ids) - started.reused


def test_a_prompt_that_was_read_while_it_was_typed_is_hardly_read_again(session: Session) -> None:
    draft = QUESTION * 10
    n = session.read_ahead(user(draft), goes_on=always)
    assert n > 150
    started, _ = answered(session, user(draft + "and hello?"))
    assert started.reused >= n
    assert left_to_read(started) < 30


def test_what_was_deleted_before_it_was_sent_costs_only_itself(session: Session) -> None:
    session.read_ahead(user(QUESTION * 10), goes_on=always)
    started, _ = answered(session, user(QUESTION * 6 + "?"))
    assert left_to_read(started) < 30


def test_a_draft_that_grows_is_read_where_it_grew(session: Session) -> None:
    counts = [session.read_ahead(user(QUESTION * n), goes_on=always) for n in (6, 7, 7, 8)]
    each = counts[1]
    assert counts[0] > 4 * each
    assert counts[2] == 0
    assert counts[3] == each


def test_the_conversation_before_it_is_shared_and_not_read_again(session: Session) -> None:
    answered(session, user(QUESTION * 10))
    n = session.read_ahead(user(QUESTION * 10, "hello", QUESTION), goes_on=always)
    assert 0 < n < 60
    started, _ = answered(session, user(QUESTION * 10, "hello", QUESTION + "er?"))
    assert left_to_read(started) < 30


def test_an_answer_that_goes_on_after_all_has_lost_nothing(session: Session) -> None:
    first = user(QUESTION * 4)
    events = list(session.answer(first))
    ids = list(session.local.ids)
    session.read_ahead(user(QUESTION * 4, "hello", QUESTION), goes_on=always)
    assert list(session.local.ids) == ids
    started = next(iter(session.answer(first, past=events[1:-1])))
    assert isinstance(started, Started)
    assert left_to_read(started) == 0


def test_what_is_sent_instead_is_answered_as_if_nothing_had_been_read(session: Session, tiny: Path) -> None:
    session.read_ahead(user(QUESTION * 3), goes_on=always)
    started, ids = answered(session, user("hello, " + QUESTION))
    with Session.open(SessionSettings(model=tiny, policy="local", temperature=0, max_tokens=12)) as other:
        assert answered(other, user("hello, " + QUESTION)) == (started_like(started), ids)


def started_like(started: Started) -> Started:
    return Started(started.prompt_ids, started.model, opening=started.opening, at=ANY, reused=0)


class _Any(float):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = float.__hash__


ANY = _Any()


def test_it_ends_when_somebody_waits_and_goes_on_there_later(session: Session) -> None:
    draft = user(QUESTION * 10)
    first = session.read_ahead(draft, goes_on=times(3))
    assert 0 < first <= 64
    rest = session.read_ahead(draft, goes_on=always)
    with_all = first + rest
    assert rest > 0
    assert session.read_ahead(draft, goes_on=always) == 0
    started, _ = answered(session, draft)
    assert started.reused >= with_all


def test_nothing_is_read_when_somebody_waits_already(session: Session) -> None:
    assert session.read_ahead(user(QUESTION), goes_on=lambda: False) == 0
    assert session.local.room == 2048


def test_a_stop_in_the_middle_of_a_step_keeps_what_was_read_before(session: Session) -> None:
    looks = 0

    def goes_on() -> bool:
        nonlocal looks
        looks += 1
        if looks == 4:
            session.stop()
        return True

    n = session.read_ahead(user(QUESTION * 10), goes_on=goes_on)
    assert n == 64
    session.go_on()
    started, _ = answered(session, user(QUESTION * 10))
    assert started.reused >= 64


def test_what_does_not_fit_is_not_begun(session: Session) -> None:
    assert session.read_ahead(user(QUESTION * 110), goes_on=always) == 0
    started, _ = answered(session, user(QUESTION))
    assert started.reused < len(started.prompt_ids)


def test_no_branch_is_left_behind(tiny: Path) -> None:
    with LlamaLocal.open(tiny, temperature=0) as local:
        ahead = ReadAhead(local)
        for n in range(6):
            ahead.read(user(QUESTION * (1 + n % 3)), goes_on=always)
            ahead.take(user("er" if n % 2 else QUESTION * 4))
        assert len(local._model.cursors) == 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_whatever_is_typed_and_deleted_the_answer_is_that_of_a_fresh_model(seed: int, tiny: Path) -> None:
    """And no prompt is read further back than without it."""
    rng = random.Random(seed)
    settings = SessionSettings(model=tiny, policy="local", temperature=0, max_tokens=6)
    with Session.open(settings) as session, Session.open(settings) as plain:
        said: list[str] = []
        for _ in range(3):
            typed = ""
            for _ in range(rng.randrange(1, 6)):
                typed = typed[: rng.randrange(len(typed) + 1)] if rng.random() < 0.3 else typed
                typed += "".join(rng.choices(WORDS, k=rng.randrange(1, 12)))
                if rng.random() < 0.7:
                    session.read_ahead(user(*said, typed), goes_on=times(rng.randrange(1, 6)))
            prompt = user(*said, typed + "?")
            started, _ = answered(session, prompt)
            expected, _ = answered(plain, prompt)
            assert started.prompt_ids == expected.prompt_ids
            assert started.reused >= expected.reused
            said += [typed + "?", "hello"]
