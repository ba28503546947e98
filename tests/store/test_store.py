"""Conversations as trees: say, answer, branch, find again, forget."""

import dataclasses
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.store.streams import scripted

from sr_edge.errors import UsageError
from sr_edge.events import Event, Finished, LocalToken, SpanClosed, SpanOpened, Started
from sr_edge.roles import Message
from sr_edge.store import HistoryError, Store, messages, rows, title_of
from sr_edge.store.opening import connect, transaction


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "history.db") as store:
        yield store


def answer(store: Store, parent: str, events: list[Event]) -> str:
    recorder = store.begin(parent, policy="auto", seed=7)
    for event in events:
        recorder.add(event)
    assert recorder.close() is None
    return recorder.turn


def text_of(text: str, *, opening: str = "", reason: str = "stop") -> list[Event]:
    return [
        Started((1,), "small", opening=opening),
        LocalToken(1, text, -0.1),
        Finished(reason, 1, 1, 0, 0.1),
    ]


def test_a_conversation_grows_from_turn_to_turn(store: Store) -> None:
    conversation = store.new_conversation("sums")
    first = store.say(conversation.id, None, "one")
    reply = answer(store, first.id, scripted(1))
    second = store.say(conversation.id, reply, "two")
    thread = store.thread(second.id)
    assert [(turn.role, turn.parent) for turn in thread] == [
        ("user", None),
        ("assistant", first.id),
        ("user", reply),
    ]
    assert thread[0] == first
    assert thread[2] == second
    assert (thread[1].policy, thread[1].seed, thread[1].status) == ("auto", 7, "done")
    now = store.conversation(conversation.id)
    assert (now.head, now.turns, now.model) == (second.id, 3, "model 1")


def test_edits_and_other_answers_are_branches(store: Store) -> None:
    conversation = store.new_conversation("branches")
    first = store.say(conversation.id, None, "one")
    answers = [answer(store, first.id, text_of(f"answer {n}")) for n in range(3)]
    edited = store.say(conversation.id, None, "one!", edited=True)
    assert (edited.branch, edited.branches, edited.edited) == (2, 2, True)
    assert [turn.id for turn in store.siblings(answers[0])] == answers
    assert [(turn.branch, turn.branches) for turn in store.siblings(answers[1])] == [(1, 3), (2, 3), (3, 3)]
    assert store.leaf(first.id) == answers[2]
    below = store.say(conversation.id, answers[0], "more")
    assert store.leaf(first.id) == below.id
    assert store.leaf(edited.id) == edited.id
    store.set_head(conversation.id, answers[1])
    assert store.conversation(conversation.id).head == answers[1]
    assert store.thread(answers[1])[-1].text == "answer 1"


def test_a_beginning_of_an_id_will_do_if_it_is_the_only_one(store: Store) -> None:
    made = [store.new_conversation(f"number {n}") for n in range(40)]
    one = made[7]
    assert store.conversation(one.id[:10].upper()) == store.conversation(one.id)
    firsts = [other.id[0] for other in made]  # more than there are characters
    with pytest.raises(UsageError, match="more than one conversation begins"):
        store.conversation(next(first for first in firsts if firsts.count(first) > 1))
    with pytest.raises(UsageError, match=f"no conversation 'uuu'; the newest: {made[-1].id}"):
        store.conversation("uuu")
    with pytest.raises(UsageError, match="no conversation"):
        store.conversation("")


def test_titles_are_found_whatever_their_case(store: Store) -> None:
    for title in ("Sums of Cubes", "ÉTUDE", "100 % _"):
        store.new_conversation(title)
    assert [one.title for one in store.conversations(title="étude")] == ["ÉTUDE"]
    assert [one.title for one in store.conversations(title="% _")] == ["100 % _"]
    assert len(store.conversations(limit=2)) == 2


def test_what_was_removed_is_nowhere_in_the_files(tmp_path: Path) -> None:
    secret = b"xylophonic"
    path = tmp_path / "history.db"
    with Store.open(path) as store:
        kept = store.say(store.new_conversation("kept").id, None, "a quiet evening")
        answer(store, kept.id, scripted(2))
        for n in range(30):
            asked = store.say(store.new_conversation("gone").id, None, f"xylophonic {n} " * 20)
            answer(store, asked.id, text_of("<think>xylophonically</think>xylophonics", opening=""))
        assert len(store.search("xylo")) == 50
        assert any(secret in file.read_bytes() for file in tmp_path.iterdir())
        for one in store.conversations(title="gone"):
            store.remove(one.id)
        assert store.search("xylo") == store.search("xylo", reasoning=True) == []
        assert [one.title for one in store.conversations()] == ["kept"]
        assert store.check() == []
        assert not any(secret in file.read_bytes() for file in tmp_path.iterdir())
        with closing(sqlite3.connect(path)) as connection:
            for table in ("turn", "part", "span"):
                turns = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                assert turns == {"turn": 2, "part": turns, "span": 6}[table]


def test_a_long_conversation_is_removed(store: Store) -> None:
    conversation = store.new_conversation("long")
    num_turns = 1200  # more than SQLite lets one deletion lead to another
    with closing(connect(store.path)) as connection, transaction(connection):
        for n in range(num_turns):
            parent = str(n - 1) if n else None
            rows.add_turn(connection, rows.NewTurn(str(n), conversation.id, parent, "user", "x"), now=0.0)
    assert len(store.thread(str(num_turns - 1))) == num_turns
    store.remove(conversation.id)
    assert store.stats().prompts == 0


def test_a_new_title(store: Store) -> None:
    one = store.new_conversation("old")
    store.rename(one.id[:8], "new")
    assert store.conversation(one.id).title == "new"


def test_a_stopped_answer_goes_on_in_its_place(store: Store) -> None:
    whole = scripted(5)
    asked = store.say(store.new_conversation("go on").id, None, "why?")
    stopped = [*whole[:20], Finished("cancelled", 1, 2, 3, 0.5)]
    turn = answer(store, asked.id, stopped)
    assert store.thread(turn)[-1].status == "stopped"
    recorder = store.resume(turn, known=20)
    for event in whole:
        recorder.add(event)
    assert store.thread(turn)[-1].status == "running"
    assert recorder.close() is None
    assert store.events(turn) == whole
    assert store.thread(turn)[-1].status == "done"
    assert len(store.siblings(turn)) == 1


def test_an_answer_that_is_being_written_is_not_taken_over(store: Store) -> None:
    turn = answer(
        store,
        store.say(store.new_conversation("x").id, None, "why?").id,
        [*scripted(5)[:3], Finished("cancelled", 1, 2, 3, 0.5)],
    )
    first = store.resume(turn, known=3)
    with Store.open(store.path) as other, pytest.raises(HistoryError, match="another sr-edge is writing"):
        other.resume(turn, known=3)
    assert first.close("stopped") is None
    assert store.resume(turn, known=3).close("stopped") is None


def test_what_a_continued_answer_said_before_it_was_cut_is_found(store: Store) -> None:
    asked = store.say(store.new_conversation("x").id, None, "why?")
    begun: list[Event] = [Started((1,), "small"), LocalToken(5, "because ", -0.1)]
    turn = answer(store, asked.id, [*begun, Finished("cancelled", 1, 1, 0, 0.5)])
    recorder = store.resume(turn, known=2)
    for event in [*begun, LocalToken(6, "zebras", -0.1)]:
        recorder.add(event)
    assert recorder.flush()
    recorder._sign.close()  # as when its process dies
    with Store.open(store.path) as other:
        assert [hit.turn for hit in other.search("zebras")] == [turn]


def test_an_answer_that_was_finished_is_done_however_the_program_ends(store: Store) -> None:
    asked = store.say(store.new_conversation("x").id, None, "why?")
    recorder = store.begin(asked.id, policy="auto", seed=None)
    for event in [Started((1,), "small"), LocalToken(5, "so", -0.1), Finished("stop", 1, 1, 0, 0.5)]:
        recorder.add(event)
    assert recorder.close("stopped") is None
    assert store.thread(recorder.turn)[-1].status == "done"


def test_spans_that_are_not_taken_over_are_in_no_total(store: Store) -> None:
    whole = scripted(5)
    turn = answer(store, store.say(store.new_conversation("x").id, None, "why?").id, whole)
    first_closed = next(n for n, event in enumerate(whole) if isinstance(event, SpanClosed))
    assert store.resume(turn, known=first_closed).close("stopped") is None
    assert store.events(turn) == whole[:first_closed]
    stats = store.stats()
    assert (stats.spans, stats.remote_tokens, stats.cost) == (1, 0, None)


def test_no_more_can_be_known_than_was_kept(store: Store) -> None:
    turn = answer(store, store.say(store.new_conversation("x").id, None, "why?").id, scripted(5)[:3])
    with pytest.raises(HistoryError, match="only 3 of 4 events"):
        store.resume(turn, known=4)
    assert store.events(turn) == scripted(5)[:3]
    assert store.thread(turn)[-1].status == "cut"


def test_totals(store: Store) -> None:
    asked = store.say(store.new_conversation("totals").id, None, "why?")
    events = scripted(4)
    answer(store, asked.id, events)
    stats = store.stats()
    assert (stats.conversations, stats.prompts, stats.answers, stats.cut, stats.spans) == (1, 1, 1, 0, 6)
    assert stats.local_tokens == sum(isinstance(event, LocalToken) for event in events)
    sent = sum(event.sent_bytes for event in events if isinstance(event, SpanOpened))
    assert stats.sent_bytes == sent == stats.remotes[0].sent_bytes
    assert stats.cost == pytest.approx(6e-4)
    assert [one.remote for one in stats.remotes] == ["lab"]


def test_a_backup_is_whole_and_replaces_nothing(store: Store, tmp_path: Path) -> None:
    asked = store.say(store.new_conversation("saved").id, None, "why?")
    turn = answer(store, asked.id, scripted(4))
    store.backup(tmp_path / "copy.db")
    with Store.open(tmp_path / "copy.db") as copy:
        assert copy.events(turn) == scripted(4)
    with pytest.raises(UsageError, match="there already"):
        store.backup(tmp_path / "copy.db")
    with pytest.raises(UsageError, match="cannot be written"):
        store.backup(tmp_path / "nowhere" / "copy.db")


# --- what a model is told ----------------------------------------------------------------------------


def test_models_are_told_answers_without_their_reasoning(store: Store) -> None:
    one = store.new_conversation("told")
    first = store.say(one.id, None, "one")
    reply = answer(store, first.id, text_of("hmm, 2?</think>\n\nIt is 2.", opening="<think>\n"))
    second = store.say(one.id, reply, "two")
    assert messages(store.thread(second.id)) == [
        Message("user", "one"),
        Message("assistant", "It is 2."),
        Message("user", "two"),
    ]


def test_a_question_without_an_answer_joins_the_next(store: Store) -> None:
    one = store.new_conversation("told")
    first = store.say(one.id, None, "one")
    reply = answer(store, first.id, text_of("hmm", opening="<think>\n", reason="cancelled"))
    second = store.say(one.id, reply, "two")
    assert messages(store.thread(second.id)) == [Message("user", "one\n\ntwo")]


def test_a_prompt_that_is_not_kept_yet_is_told_as_it_will_be(store: Store) -> None:
    one = store.new_conversation("told")
    assert messages([], prompt="one") == [Message("user", "one")]
    first = store.say(one.id, None, "one")
    turns = store.thread(first.id)
    assert messages(turns, prompt="two") == [Message("user", "one\n\ntwo")]
    kept = store.say(one.id, answer(store, first.id, text_of("1</think>1", opening="<think>\n")), "two")
    turns = store.thread(kept.id)
    assert messages(turns[:-1], prompt="two") == messages(turns)


def test_a_refused_question_is_not_told(store: Store) -> None:
    one = store.new_conversation("told")
    first = store.say(one.id, None, "one")
    refused = [Started((1,), "small"), Finished("refused", 1, 0, 0, 0.0)]
    second = store.say(one.id, answer(store, first.id, refused), "two")
    assert messages(store.thread(second.id)) == [Message("user", "two")]


def test_titles_are_one_short_safe_line() -> None:
    assert title_of("What is\n\x1b[31m7 * 6?\n") == "What is 7 * 6?"
    long = title_of("word " * 100)
    assert len(long) <= 61
    assert long.endswith("word…")
    assert title_of("") == ""


def test_records_are_frozen(store: Store) -> None:
    one = store.new_conversation("x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.title = "y"  # type: ignore[misc]


def test_one_turn_is_as_it_stands_in_its_thread(store):
    conversation = store.new_conversation("one")
    first = store.say(conversation.id, None, "a")
    recorder = store.begin(first.id, policy="auto", seed=None)
    recorder.close("stopped")
    other = store.say(conversation.id, None, "b", edited=True)
    for turn in (first.id, recorder.turn, other.id):
        assert store.turn(turn) == store.thread(turn)[-1]
    with pytest.raises(HistoryError):
        store.turn("nothing")
