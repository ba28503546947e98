"""`Store`: reads and changes the history.

It reads through a connection of its own thread; what must not wait for the disk goes through a `Writer`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sr_edge.errors import UsageError
from sr_edge.events import Event
from sr_edge.store import figures, rows, search
from sr_edge.store.alive import Sign, is_alive, sweep
from sr_edge.store.opening import back_up, explained, opened, transaction
from sr_edge.store.parts import whole
from sr_edge.store.recorder import Recorder
from sr_edge.store.records import Conversation, HistoryError, Hit, Role, Stats, Status, Turn, new_id
from sr_edge.store.writer import Job, Write, Writer

_SAY_SECONDS = 6.0  # SQLite itself waits 5 for another process
_BEGIN_SECONDS = 1.0
_NEAR = 3

_CONVERSATION = (
    "SELECT id, title, created, updated, head,"
    " (SELECT count(*) FROM turn WHERE turn.conversation = conversation.id), model FROM conversation"
)


@dataclass(frozen=True, slots=True)
class _Row:
    """A turn without its transcript."""

    seq: int
    id: str
    conversation: str
    parent: str | None
    role: Role
    created: float
    text: str
    status: Status
    writer: str | None
    edited: bool
    policy: str
    seed: int | None


_TURN = (
    "SELECT seq, id, conversation, parent, role, created, text, status, writer, edited, policy, seed"
    " FROM turn"
)


class Store:
    """One for each thread; a second one is cheap."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        *,
        is_read_only: bool,
        warn: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self.path = path
        self.is_read_only = is_read_only
        self._connection = connection
        self._warn = warn
        self._has_warned = False
        self._clock = clock
        self._writer = Writer(path)
        self._is_closed = False

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        warn: Callable[[str], None] = lambda line: None,
        create: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Args:
            warn: gets a line when a damaged file was set aside, when nothing may be written, and when
                something could not be.
            create: whether to make a history that is not there; else it is an empty one that stays so.
        Raises:
            HistoryError: it cannot be opened: a newer version wrote it, it is not ours, or it is locked.
        """
        connection, is_read_only = opened(path, warn=warn, create=create)
        if not is_read_only:
            sweep(path)
        return cls(path, connection, is_read_only=is_read_only, warn=warn, clock=clock)

    def close(self) -> None:
        """Recorders go on by themselves. What could not be written is tried once more."""
        if not self._is_closed:
            self._is_closed = True
            self._writer.release()
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    # --- conversations -------------------------------------------------------------------------------

    def conversations(self, *, limit: int = 200, title: str = "") -> list[Conversation]:
        """The newest first.

        Args:
            title: only those whose title has this in it; case is nothing.
        """
        with self._reading():
            found = self._connection.execute(f"{_CONVERSATION} ORDER BY touched DESC")
            wanted = title.casefold()
            listed: list[Conversation] = []
            for row in found:
                if len(listed) == limit:
                    break
                if wanted in row[1].casefold():
                    listed.append(Conversation(*row))
            found.close()
        return listed

    def conversation(self, id: str) -> Conversation:
        """Args:
            id: or a beginning that no other one has.
        Raises:
            UsageError: there is none, or more than one.
        """
        wanted = whole(id).strip().lower()
        with self._reading():
            found = self._connection.execute(
                f"{_CONVERSATION} WHERE substr(id, 1, ?) = ? ORDER BY id = ? DESC, touched DESC LIMIT 4",
                (len(wanted), wanted, wanted),
            ).fetchall()
        if wanted and found and (len(found) == 1 or found[0][0] == wanted):
            return Conversation(*found[0])
        if wanted and found:
            near = ", ".join(row[0] for row in found)
            raise UsageError(f"more than one conversation begins with {id!r}: {near}")
        recent = ", ".join(conversation.id for conversation in self.conversations(limit=_NEAR))
        near = f"; the newest: {recent}" if recent else ": none is kept yet"
        raise UsageError(f"no conversation {id!r}{near}")

    def latest(self) -> Conversation | None:
        """The one that was used last."""
        return next(iter(self.conversations(limit=1)), None)

    def new_conversation(self, title: str, *, model: str = "") -> Conversation:
        """Never fails for the disk: what cannot be written now is warned about, and tried again."""
        id, now = new_id(), self._clock()
        self._put(lambda connection: rows.add_conversation(connection, id, title=title, model=model, now=now))
        return Conversation(id, title, now, now, None, 0, model)

    def rename(self, conversation: str, title: str) -> None:
        """Raises: UsageError: there is none. HistoryError: it cannot be written."""
        id = self.conversation(conversation).id
        with self._changing() as connection:
            connection.execute("UPDATE conversation SET title = ? WHERE id = ?", (whole(title), id))

    def set_head(self, conversation: str, turn: str) -> None:
        """Show another branch from now on. Raises: HistoryError: it cannot be written."""
        with self._changing() as connection:
            connection.execute("UPDATE conversation SET head = ? WHERE id = ?", (turn, conversation))

    def remove(self, conversation: str) -> None:
        """Forget it: its text is overwritten in the file, and cut out of it.

        Raises:
            UsageError: there is none.
            HistoryError: it cannot be written.
        """
        id = self.conversation(conversation).id
        with self._changing() as connection:
            search.forget(connection, id)
            connection.execute("DELETE FROM conversation WHERE id = ?", (id,))
            search.compact(connection)
        try:
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:  # it needs the file for itself, and room for a copy
            self._warn(f"removed; the file could not be made smaller: {error}")

    # --- turns ---------------------------------------------------------------------------------------

    def thread(self, head: str) -> list[Turn]:
        """From the first turn to `head`. Raises: HistoryError: the turn is not there."""
        with self._reading(), self._one_moment():
            by_id = {row.id: row for row in self._turns_beside(head)}
            path: list[_Row] = []
            at: str | None = head
            while at is not None:
                path.append(by_id[at])
                at = by_id[at].parent
            return [self._turn(row, _beside(row, by_id.values())) for row in reversed(path)]

    def turn(self, id: str) -> Turn:
        """Raises: HistoryError: the turn is not there."""
        with self._reading(), self._one_moment():
            all_rows = self._turns_beside(id)
            row = next(row for row in all_rows if row.id == id)
            return self._turn(row, _beside(row, all_rows))

    def siblings(self, turn: str) -> list[Turn]:
        """The branches at this place, oldest first, itself among them."""
        with self._reading(), self._one_moment():
            all_rows = self._turns_beside(turn)
            row = next(row for row in all_rows if row.id == turn)
            beside = _beside(row, all_rows)
            return [self._turn(other, beside) for other in beside]

    def leaf(self, turn: str) -> str:
        """The newest turn below that has none below it."""
        with self._reading(), self._one_moment():
            below = {turn}
            leaf = turn
            for row in self._turns_beside(turn):  # parents come before their children
                if row.parent in below:
                    below.add(row.id)
                    leaf = row.id
            return leaf

    def events(self, turn: str) -> list[Event]:
        """The stream of an answer as far as it was kept, exactly as it was."""
        with self._reading(), self._one_moment():
            return rows.events_of(self._connection, rows.number_of(self._connection, turn))

    def say(self, conversation: str, parent: str | None, text: str, *, edited: bool = False) -> Turn:
        """Add what the user typed. It is on disk when this returns, unless `warn` got a line.

        Args:
            edited: whether it is another version of what was said before.
        Raises:
            HistoryError: the conversation was removed.
        """
        new = rows.NewTurn(new_id(), conversation, parent, "user", text, edited=edited)
        now = self._clock()

        def write(connection: sqlite3.Connection) -> None:
            rows.add_turn(connection, new, now=now)
            search.index(connection, new.id)

        if self._put(write):
            with self._reading():
                return next(turn for turn in self.siblings(new.id) if turn.id == new.id)
        return Turn(
            new.id, conversation, parent, "user", now, text, "done", None, 1, 1, edited, policy="", seed=None
        )

    def begin(self, parent: str, *, policy: str, seed: int | None, taken_from: str | None = None) -> Recorder:
        """A new answer to the turn `parent`.

        Args:
            taken_from: the answer whose beginning this one takes over; its events are added like all.
        """
        sign = Sign(self.path)
        new = rows.NewTurn(
            new_id(),
            None,
            parent,
            "assistant",
            status="running",
            writer=sign.name,
            policy=policy,
            seed=seed,
            taken_from=taken_from,
        )
        now = self._clock()
        recorder = Recorder(self._writer, new.id, sign=sign)
        self._put(lambda connection: _nothing(rows.add_turn(connection, new, now=now)), _BEGIN_SECONDS)
        return recorder

    def resume(self, turn: str, *, known: int) -> Recorder:
        """Go on with an answer that was stopped or cut.

        Args:
            known: so many events at the beginning of the stream to come are kept already; what is kept
                beyond them is dropped.
        Raises:
            HistoryError: fewer are kept, it is being written, or it cannot be.
        """
        sign = Sign(self.path)
        try:
            with self._changing() as connection:
                if is_alive(self.path, rows.writer_of(connection, turn)):
                    raise HistoryError("another sr-edge is writing this answer")
                rows.reopen(connection, turn, known=known, writer=sign.name)
        except BaseException:
            sign.close()
            raise
        return Recorder(self._writer, turn, sign=sign, known=known)

    # --- all of it -----------------------------------------------------------------------------------

    def search(self, text: str, *, reasoning: bool = False, limit: int = 50) -> list[Hit]:
        """Turns in which all words of `text` stand, or words that begin so; the newest first.

        Args:
            reasoning: look there, and not in prompts and answers.
        """
        self._index_cut()
        with self._reading(), self._one_moment():
            hits = []
            found = search.find(self._connection, text, "thought" if reasoning else "said", limit)
            for seq, snippet in found:
                id, role, created, conversation = self._connection.execute(
                    "SELECT id, role, created, conversation FROM turn WHERE seq = ?", (seq,)
                ).fetchone()
                row = self._connection.execute(f"{_CONVERSATION} WHERE id = ?", (conversation,)).fetchone()
                hits.append(Hit(Conversation(*row), id, role, snippet, created))
        return hits

    def stats(self) -> Stats:
        with self._reading(), self._one_moment():
            return figures.stats(self._connection, self.path)

    def backup(self, to: Path) -> None:
        """A copy in one file. Raises: UsageError: it is there, or cannot be written."""
        if os.path.lexists(to):
            raise UsageError(f"{to} is there already: name another file")
        try:
            back_up(self._connection, to)
        except OSError as error:
            raise UsageError(f"{to} cannot be written: {error.strerror or error}") from None
        except sqlite3.Error as error:
            raise explained(self.path, error) from None

    def check(self) -> list[str]:
        """What is wrong with the file, one line each. Reads all of it."""
        with self._reading():
            return figures.problems(self._connection, can_write=not self.is_read_only)

    # --- helpers -------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise explained(self.path, error) from None

    @contextmanager
    def _one_moment(self) -> Iterator[None]:
        """Several statements see the same state, whoever writes meanwhile."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Now or not at all."""
        if self.is_read_only:
            raise HistoryError(f"the history {self.path} may only be read")
        with self._reading(), transaction(self._connection):
            yield self._connection

    def _put(self, write: Callable[[sqlite3.Connection], None], timeout: float = _SAY_SECONDS) -> bool:
        """Whether it is on disk. Raises: HistoryError: it never can be."""
        job: Job = self._writer.put(_as_write(write))
        if self._writer.wait(job, timeout):
            self._has_warned = False
            return True
        if job.error is not None:
            raise HistoryError(f"not kept: {job.error}")
        if not self._has_warned:
            self._has_warned = True
            problem = self._writer.problem or f"the disk of {self.path} is slow"
            self._warn(f"{problem}; what is new is in memory, and tried again")
        return False

    def _turns_beside(self, turn: str) -> list[_Row]:
        """All of its conversation, oldest first. Raises: HistoryError: there is no such turn."""
        found = self._connection.execute(
            f"{_TURN} WHERE conversation = (SELECT conversation FROM turn WHERE id = ?) ORDER BY seq", (turn,)
        ).fetchall()
        if not found:
            raise HistoryError("this turn is not in the history (any more)")
        return [_Row(*row) for row in found]

    def _turn(self, row: _Row, beside: list[_Row]) -> Turn:
        transcript = None
        if row.role == "assistant":
            transcript = rows.transcript(self._connection, row.seq)
        is_cut = row.status == "running" and not is_alive(self.path, row.writer)
        return Turn(
            id=row.id,
            conversation=row.conversation,
            parent=row.parent,
            role=row.role,
            created=row.created,
            text=row.text if transcript is None else transcript.text,
            status="cut" if is_cut else row.status,
            transcript=transcript,
            branch=1 + [other.id for other in beside].index(row.id),
            branches=len(beside),
            edited=bool(row.edited),
            policy=row.policy,
            seed=row.seed,
        )

    def _index_cut(self) -> None:
        """Whoever would have done it died."""
        if self.is_read_only:
            return
        with self._reading():
            running = self._connection.execute(
                "SELECT id, writer FROM turn WHERE status = 'running' AND NOT indexed"
            ).fetchall()
        cut = [id for id, writer in running if not is_alive(self.path, writer)]
        if not cut:
            return
        with self._changing() as connection:
            for id in cut:
                search.index(connection, id)


def _as_write(write: Callable[[sqlite3.Connection], None]) -> Write:
    def run(connection: sqlite3.Connection) -> None:
        write(connection)

    return run


def _nothing(value: object) -> None:
    return None


def _beside(row: _Row, others: Collection[_Row]) -> list[_Row]:
    """What could stand in the place of `row`, and the row itself."""
    return [other for other in others if (other.parent, other.role) == (row.parent, row.role)]
