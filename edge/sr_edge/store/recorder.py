"""Keeps one answer while it is written: events in, rows out, the answer never waits for the disk."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from typing import Final

from sr_edge.events import Event, Finished, SpanClosed
from sr_edge.store import rows, search
from sr_edge.store.alive import Sign
from sr_edge.store.records import STATUS_OF, Status
from sr_edge.store.writer import Job, Writer

FLUSH_SECONDS = 0.25
"""How much of an answer may be lost when the power goes."""

_PATIENCE = 6.0  # seconds, when all is over


class Recorder:
    """Made by `Store.begin` and `Store.resume`. It never raises: `problem` and `close` say what failed."""

    def __init__(self, writer: Writer, turn: str, *, sign: Sign, known: int = 0) -> None:
        """Args:
        sign: closed with the recorder.
        known: so many events that come first are on disk already.
        """
        self.turn: Final = turn
        self._writer = writer
        self._sign = sign
        self._lock = threading.Lock()
        self._skip = known
        self._first = known  # number of the first event that is not on disk
        self._events: list[Event] = []  # those that are not
        self._job: Job | None = None  # will write them
        self._status: Status | None = None
        self._is_closed = False
        writer.hold()

    @property
    def problem(self) -> str | None:
        """Why the newest text is not on disk, in one line. It is in memory and tried again."""
        with self._lock:
            lost = self._job.error if self._job else None
        return f"this answer is not kept: {lost}" if lost else self._writer.problem

    def add(self, event: Event) -> None:
        """Returns at once."""
        with self._lock:
            if self._is_closed:
                return
            if isinstance(event, Finished):
                self._status = STATUS_OF[event.reason]
            if self._skip:
                self._skip -= 1
                return
            self._events.append(event)
        self._schedule(0.0 if isinstance(event, SpanClosed | Finished) else FLUSH_SECONDS)

    def flush(self, timeout: float = 5.0) -> bool:
        """Whether all that was added is on disk.

        Waits for one attempt, and not at all while nothing can be written.
        """
        with self._lock:
            end = self._first + len(self._events)
        for _ in range(2):  # a job that has begun does not hold what came since
            job = self._schedule(0.0)
            if job is not None and not self._writer.wait(job, timeout):
                return False
            with self._lock:
                if self._first >= end:
                    return True
        return False

    def close(self, status: Status | None = None) -> str | None:
        """End the answer. Returns what could not be kept, in one line, or None.

        Args:
            status: of an answer whose `Finished` was not heard; None: it is one that was cut.
        """
        with self._lock:
            if self._is_closed:
                return None
            self._is_closed = True
            status = self._status or status
        self.flush(_PATIENCE)
        ended = self._writer.put(lambda connection: rows.end_turn(connection, self.turn, status))
        is_kept = self._writer.wait(ended, _PATIENCE, retry=True)
        problem = self.problem
        if is_kept:
            indexed = self._writer.put(lambda connection: search.index(connection, self.turn))
            self._writer.wait(indexed, _PATIENCE)
        elif problem is None:
            problem = f"this answer is not kept: {ended.error or 'the disk is too slow'}"
        self._sign.close()
        self._writer.release()
        return problem

    def _schedule(self, within: float) -> Job | None:
        """The job that writes what was added; None if nothing is left."""
        with self._lock:
            job = self._job
            if not self._events or (job is not None and job.error):
                return job if self._events else None
        if job is None or job.is_kept:
            job = self._writer.put(self._write, within=within)
            with self._lock:
                self._job = job
        elif not within:
            self._writer.hurry(job)
        return job

    def _write(self, connection: sqlite3.Connection) -> Callable[[], None]:
        with self._lock:
            events, first = list(self._events), self._first
        rows.append(connection, self.turn, events, first)

        def kept() -> None:
            with self._lock:
                del self._events[: len(events)]
                self._first += len(events)
                if self._events:
                    self._job = self._writer.put(self._write, within=FLUSH_SECONDS)

        return kept
