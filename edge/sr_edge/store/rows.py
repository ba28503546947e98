"""The statements that write and read turns. Each function runs inside its caller's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sr_edge.events import Event, SpanClosed, SpanOpened, Started
from sr_edge.store.parts import (
    CLOSED,
    OPENED,
    Part,
    Span,
    closed_values,
    opened_values,
    packed,
    span_of,
    transcript_of,
    unpacked,
    whole,
)
from sr_edge.store.records import HistoryError, Status
from sr_edge.transcript import Transcript

_CONVERSATION_GONE = "its conversation was removed meanwhile"


def add_conversation(connection: sqlite3.Connection, id: str, *, title: str, model: str, now: float) -> None:
    connection.execute(
        "INSERT INTO conversation(id, title, model, created, updated, touched)"
        " VALUES (?, ?, ?, ?, ?, (SELECT coalesce(max(touched), 0) + 1 FROM conversation))",
        (id, whole(title), whole(model), now, now),
    )


@dataclass(frozen=True, slots=True)
class NewTurn:
    id: str
    conversation: str | None
    """None: that of its parent."""
    parent: str | None
    role: str
    text: str = ""
    status: Status = "done"
    writer: str | None = None
    edited: bool = False
    policy: str = ""
    seed: int | None = None
    taken_from: str | None = None


def add_turn(connection: sqlite3.Connection, turn: NewTurn, *, now: float) -> int:
    """Its conversation shows it last from now on. Returns its number.

    Raises:
        HistoryError: there is no such conversation, or no such parent.
    """
    conversation = turn.conversation
    if conversation is None:
        found = connection.execute("SELECT conversation FROM turn WHERE id = ?", (turn.parent,)).fetchone()
        conversation = found[0] if found else None
    _touch(connection, conversation, now)
    cursor = connection.execute(
        "INSERT INTO turn(id, conversation, parent, role, created, text, status, writer, edited, policy,"
        " seed, taken_from, indexed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
        (
            turn.id,
            conversation,
            turn.parent,
            turn.role,
            now,
            whole(turn.text),
            turn.status,
            turn.writer,
            turn.edited,
            turn.policy,
            turn.seed,
            turn.taken_from,
        ),
    )
    connection.execute("UPDATE conversation SET head = ? WHERE id = ?", (turn.id, conversation))
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _touch(connection: sqlite3.Connection, conversation: str | None, now: float) -> None:
    changed = connection.execute(
        "UPDATE conversation SET updated = ?,"
        " touched = (SELECT max(touched) + 1 FROM conversation) WHERE id = ?",
        (now, conversation),
    )
    if not changed.rowcount:
        raise HistoryError(_CONVERSATION_GONE)


def number_of(connection: sqlite3.Connection, turn: str) -> int:
    """Raises: HistoryError: the turn is not there any more."""
    found = connection.execute("SELECT seq FROM turn WHERE id = ?", (turn,)).fetchone()
    if found is None:
        raise HistoryError(_CONVERSATION_GONE)
    number: int = found[0]
    return number


def append(connection: sqlite3.Connection, turn: str, events: Sequence[Event], first: int) -> None:
    """Args:
    first: number of the first of the events.
    """
    seq = number_of(connection, turn)
    _insert_parts(connection, seq, packed(events, first))
    for event in events:
        match event:
            case Started():
                connection.execute(
                    "UPDATE conversation SET model = ?"
                    " WHERE id = (SELECT conversation FROM turn WHERE seq = ?)",
                    (whole(event.model), seq),
                )
            case SpanOpened():
                columns = ", ".join(f'"{name}"' for name in ("turn", *OPENED))
                marks = ", ".join("?" * (1 + len(OPENED)))
                connection.execute(
                    f"INSERT OR REPLACE INTO span({columns}) VALUES ({marks})", (seq, *opened_values(event))
                )
            case SpanClosed():
                changes = ", ".join(f'"{name}" = ?' for name in CLOSED)
                connection.execute(
                    f"UPDATE span SET {changes} WHERE turn = ? AND span = ?",
                    (*closed_values(event), seq, event.span),
                )


def _insert_parts(connection: sqlite3.Connection, seq: int, parts: Iterable[Part]) -> None:
    connection.executemany(
        "INSERT INTO part(turn, first, count, kind, span, text, detail) VALUES (?, ?, ?, ?, ?, ?, ?)",
        ((seq, part.first, part.count, part.kind, part.span, part.text, part.detail) for part in parts),
    )


def end_turn(connection: sqlite3.Connection, turn: str, status: Status | None) -> None:
    """Args:
    status: None leaves it running, without a writer: that is one that was cut.
    """
    seq = number_of(connection, turn)
    connection.execute(
        "UPDATE turn SET status = coalesce(?, status), writer = NULL WHERE seq = ?", (status, seq)
    )


def writer_of(connection: sqlite3.Connection, turn: str) -> str | None:
    """Whose sign stands at the turn: who writes it, or did when it was cut."""
    found = connection.execute("SELECT writer FROM turn WHERE id = ?", (turn,)).fetchone()
    return found[0] if found else None


def reopen(connection: sqlite3.Connection, turn: str, *, known: int, writer: str | None) -> None:
    """Let an answer run again, cut after its first `known` events."""
    seq = number_of(connection, turn)
    rest = list(events_of(connection, seq))[:known]
    if len(rest) < known:
        raise HistoryError(f"only {len(rest)} of {known} events of this answer were kept")
    (start,) = connection.execute(
        "SELECT coalesce(max(first), 0) FROM part WHERE turn = ? AND first <= ?", (seq, known)
    ).fetchone()
    connection.execute("DELETE FROM part WHERE turn = ? AND first >= ?", (seq, start))
    _insert_parts(connection, seq, packed(rest[start:], start))
    opened = {event.span for event in rest if isinstance(event, SpanOpened)}
    closed = {event.span for event in rest if isinstance(event, SpanClosed)}
    for (span,) in connection.execute("SELECT span FROM span WHERE turn = ?", (seq,)).fetchall():
        if span not in opened:
            connection.execute("DELETE FROM span WHERE turn = ? AND span = ?", (seq, span))
        elif span not in closed:
            nothing = ", ".join(f'"{name}" = NULL' for name in CLOSED)
            connection.execute(f"UPDATE span SET {nothing} WHERE turn = ? AND span = ?", (seq, span))
    connection.execute(
        "UPDATE turn SET status = 'running', writer = ?, indexed = 0 WHERE seq = ?", (writer, seq)
    )


# --- reading -----------------------------------------------------------------------------------------

_SPAN_COLUMNS = ", ".join(f'"{name}"' for name in (*OPENED, *CLOSED))


def events_of(connection: sqlite3.Connection, seq: int) -> list[Event]:
    parts = connection.execute(
        "SELECT first, count, kind, span, text, detail FROM part WHERE turn = ? ORDER BY first", (seq,)
    )
    return list(unpacked((Part(*row) for row in parts.fetchall()), _spans(connection, seq, with_ids=True)))


def transcript(connection: sqlite3.Connection, seq: int) -> Transcript:
    parts = connection.execute(
        "SELECT first, count, kind, span, text,"
        " CASE WHEN kind IN ('started', 'finished') THEN detail END"
        " FROM part WHERE turn = ? ORDER BY first",
        (seq,),
    )
    return transcript_of([Part(*row) for row in parts.fetchall()], _spans(connection, seq, with_ids=False))


def _spans(connection: sqlite3.Connection, seq: int, *, with_ids: bool) -> dict[int, Span]:
    rows = connection.execute(f"SELECT {_SPAN_COLUMNS} FROM span WHERE turn = ?", (seq,))
    return {row[0]: span_of(row, with_ids=with_ids) for row in rows.fetchall()}
