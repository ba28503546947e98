"""A conversation without a screen: its tree, and what is kept of it when, with the real host and history."""

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.tui.chatting import READY, as_line

from sr_edge.dialogue import Dialogue
from sr_edge.engine.host import Engine
from sr_edge.engine.messages import Answered, Answering, Choices, Died
from sr_edge.errors import UsageError
from sr_edge.events import Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started
from sr_edge.store import HistoryError, Store, writer

CHILD = Path(__file__).with_name("scripted_child.py")


class Talk:
    """A dialogue whose child plays a script, and a way to wait for the end of an answer."""

    def __init__(self, folder: Path, script: Iterable[object]) -> None:
        file = folder / "script.jsonl"
        file.write_text("".join(as_line(step) + "\n" for step in [READY, *script]))
        self.path = folder / "history.db"
        self.over = threading.Semaphore(0)
        self.heard: list[object] = []
        command = [sys.executable, str(CHILD), str(file)]
        self.dialogue = Dialogue(
            Store.open(self.path),
            lambda hear: Engine(Choices(), hear, environ=os.environ, command=command),
        )
        self.dialogue.show = self._show

    def _show(self, heard: object) -> None:
        self.heard.append(heard)
        if isinstance(heard, Answered | Died):
            self.over.release()

    def answered(self) -> None:
        assert self.over.acquire(timeout=20), "no answer came"
        self.dialogue.reload()

    @property
    def texts(self) -> list[str]:
        return [turn.text for turn in self.dialogue.turns]


@pytest.fixture
def talk(tmp_path: Path):
    made = []

    def make(*script: object) -> Talk:
        made.append(Talk(tmp_path, script))
        return made[-1]

    yield make
    for one in made:
        one.dialogue.close()


def said(text: str, reason: str = "stop") -> list[object]:
    return [
        {"wait": "answer"},
        Answering(0),
        Started((1,), "small-1.5b"),
        LocalToken(5, text, -0.1),
        Finished(reason, 1, 1, 0, 1.0),
        Answered(0),
    ]


def test_the_question_is_on_disk_before_anybody_decodes(talk, tmp_path: Path) -> None:
    one = talk({"wait": "stop"})  # the child never answers
    one.dialogue.say("what is kept?")
    with Store.open(tmp_path / "history.db") as other:
        (conversation,) = other.conversations()
        assert [turn.text for turn in other.thread(conversation.head)][:1] == ["what is kept?"]
    one.dialogue.stop()


def test_an_edited_prompt_is_a_branch_and_nothing_is_overwritten(talk) -> None:
    one = talk(*said("first"), *said("second"), *said("third"))
    one.dialogue.say("a")
    one.answered()
    one.dialogue.say("b")
    one.answered()
    first, b = one.dialogue.turns[0], one.dialogue.turns[2]
    one.dialogue.edit(b.id, "c")
    one.answered()
    assert one.texts == ["a", "first", "c", "third"]
    assert one.dialogue.turns[2].edited
    assert one.dialogue.branch(one.dialogue.turns[2].id, -1)
    assert one.texts == ["a", "first", "b", "second"]
    assert not one.dialogue.branch(first.id, 1)


def test_another_answer_is_a_branch_of_the_same_prompt(talk) -> None:
    one = talk(*said("first"), *said("second"))
    one.dialogue.say("a")
    one.answered()
    one.dialogue.regenerate(one.dialogue.turns[-1].id)
    one.answered()
    assert one.texts == ["a", "second"]
    assert (one.dialogue.turns[-1].branch, one.dialogue.turns[-1].branches) == (2, 2)


def test_a_stopped_answer_goes_on_in_its_place_and_a_whole_one_does_not(talk) -> None:
    one = talk(
        *said("half ", "cancelled"),
        {"wait": "answer"},
        Answering(0),
        Started((1,), "small-1.5b"),
        LocalToken(5, "half ", -0.1),
        LocalToken(6, "whole", -0.1),
        Finished("stop", 1, 2, 0, 2.0),
        Answered(0),
    )
    one.dialogue.say("a")
    one.answered()
    turn = one.dialogue.turns[-1]
    assert turn.status == "stopped"
    one.dialogue.go_on(turn.id)
    one.answered()
    assert one.texts == ["a", "half whole"]
    assert one.dialogue.turns[-1].id == turn.id
    with pytest.raises(UsageError, match="whole"):
        one.dialogue.go_on(turn.id)


def test_a_span_again_takes_over_what_came_before_it(talk) -> None:
    before = LocalToken(5, "before ", -0.1)
    one = talk(
        {"wait": "answer"},
        Answering(0),
        Started((1,), "small-1.5b", big="lab"),
        before,
        SpanOpened(1, "marker", 0.9, "lab", sent_tokens=3, sent_bytes=9),
        SpanDelta(1, "theirs"),
        SpanClosed(1, (7,), "stop", tokens=1),
        Finished("stop", 1, 1, 1, 1.0),
        Answered(0),
        {"wait": "answer"},
        Answering(0),
        Started((1,), "small-1.5b", big="lab"),
        before,
        LocalToken(8, "ours", -0.1),
        Finished("stop", 1, 2, 0, 1.0),
        Answered(0),
    )
    one.dialogue.say("a")
    one.answered()
    old = one.dialogue.turns[-1]
    one.dialogue.rerun(old.id, 1, "local")
    one.answered()
    assert one.texts == ["a", "before ours"]
    assert one.dialogue.store.events(old.id)[1] == before


def test_a_fork_is_a_conversation_of_its_own(talk) -> None:
    one = talk(*said("first"), *said("second"))
    one.dialogue.say("a")
    one.answered()
    first = one.dialogue.conversation
    one.dialogue.fork(one.dialogue.turns[-1].id)
    assert one.dialogue.conversation.id != first.id
    assert one.texts == ["a", "first"]
    one.dialogue.say("b")
    one.answered()
    assert one.texts == ["a", "first", "b", "second"]
    one.dialogue.open(first.id)
    assert one.texts == ["a", "first"]


def test_while_an_answer_is_written_nothing_else_is_begun(talk) -> None:
    one = talk({"wait": "answer"}, Answering(0), {"wait": "stop"}, Answered(0))
    one.dialogue.say("a")
    for act in (one.dialogue.new, lambda: one.dialogue.say("b"), lambda: one.dialogue.open("x")):
        with pytest.raises(UsageError, match="being written"):
            act()
    one.dialogue.stop()
    one.answered()
    one.dialogue.new()


def test_a_span_is_on_disk_when_it_is_shown_as_closed(talk, tmp_path: Path) -> None:
    one = talk(
        {"wait": "answer"},
        Answering(0),
        Started((1,), "small-1.5b", big="lab"),
        SpanOpened(1, "marker", 0.9, "lab", sent_tokens=3, sent_bytes=9),
        SpanDelta(1, "theirs"),
        SpanClosed(1, (7,), "stop", tokens=1),
        {"wait": "stop"},
        Finished("cancelled", 1, 0, 1, 1.0),
        Answered(0),
    )
    shown = threading.Event()
    inner = one.dialogue.show

    def show(heard: object) -> None:
        inner(heard)
        if isinstance(heard, SpanClosed):
            shown.set()

    one.dialogue.show = show
    one.dialogue.say("a")
    assert shown.wait(20)
    with Store.open(tmp_path / "history.db") as other:
        (conversation,) = other.conversations()
        turn = other.thread(conversation.head)[-1]
        assert [span.text for span in turn.transcript.spans] == ["theirs"]
        assert turn.transcript.spans[0].end == "stop"
    one.dialogue.stop()
    one.answered()


def test_the_next_prompt_follows_an_answer_that_nobody_has_looked_at_yet(talk) -> None:
    one = talk(*said("first"), *said("second"))
    one.dialogue.say("a")
    assert one.over.acquire(timeout=20)
    one.dialogue.say("b")
    one.answered()
    assert one.texts == ["a", "first", "b", "second"]


def test_a_turn_that_is_not_shown_is_refused_and_nothing_is_lost(talk) -> None:
    one = talk(*said("first"))
    one.dialogue.say("a")
    one.answered()
    turn = one.dialogue.turns[0].id
    one.dialogue.new()
    with pytest.raises(UsageError, match="not part of the conversation"):
        one.dialogue.edit(turn, "b")
    assert one.dialogue.turns == []


def test_an_answer_that_never_began_is_begun_when_it_goes_on(talk) -> None:
    one = talk({"wait": "answer"}, Answering(0), Answered(0, "no model is open"), *said("at last"))
    one.dialogue.say("a")
    one.answered()
    one.dialogue.go_on(one.dialogue.turns[-1].id)
    one.answered()
    assert [(turn.text, turn.status) for turn in one.dialogue.turns] == [("a", "done"), ("at last", "done")]


def test_what_another_program_says_in_the_conversation_does_not_move_this_one(talk, tmp_path: Path) -> None:
    begun = said("mine")
    one = talk(*begun[:4], {"wait": "stop"}, *begun[4:])
    one.dialogue.say("a")
    while not any(isinstance(heard, LocalToken) for heard in one.heard):
        time.sleep(0.01)
    with Store.open(tmp_path / "history.db") as other:
        other.say(one.dialogue.conversation.id, one.dialogue.turns[0].id, "theirs")
    one.dialogue.stop()
    one.answered()
    assert one.texts == ["a", "mine"]


def test_a_full_disk_takes_nothing_out_of_the_conversation(talk, monkeypatch) -> None:
    one = talk(*said("first"), *said("second"), *said("third"))
    one.dialogue.say("a")
    one.answered()
    with monkeypatch.context() as patch:
        patch.setattr(writer, "transaction", _full)
        one.dialogue.say("b")
        one.answered()
        assert one.texts == ["a", "first", "b", "second"]
    one.dialogue.say("c")
    one.answered()
    one.dialogue.open(one.dialogue.conversation.id)
    assert one.texts == ["a", "first", "b", "second", "c", "third"]


@contextmanager
def _full(connection: sqlite3.Connection) -> Iterator[None]:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error
    yield


def test_what_cannot_be_changed_leaves_the_turns_as_they_are(talk, monkeypatch) -> None:
    one = talk(*said("first"))
    one.dialogue.say("a")
    one.answered()
    before = [turn.id for turn in one.dialogue.turns]

    def fail(*args: object, **options: object) -> None:
        raise HistoryError("locked")

    for name in ("begin", "say", "resume"):
        monkeypatch.setattr(one.dialogue.store, name, fail)
    for act in (
        lambda: one.dialogue.edit(before[0], "b"),
        lambda: one.dialogue.regenerate(before[1]),
        lambda: one.dialogue.rerun(before[1], 1, "local"),
    ):
        with pytest.raises(HistoryError):
            act()
        assert [turn.id for turn in one.dialogue.turns] == before
        assert not one.dialogue.is_answering
