"""Writes in the background, in order, one transaction each. What fails for the moment is tried again.

One thread, with a connection of its own; both exist only once there is something to write.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sr_edge.store.opening import connect, is_passing, reason, transaction

Write = Callable[[sqlite3.Connection], Callable[[], None] | None]
"""Runs in a transaction, any number of times until one is committed. What it returns is called after that."""

RETRY_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class Job:
    """One write that waits for its turn."""

    write: Write
    due: float
    """Monotonic seconds; not before, unless something hurries."""
    is_kept: bool = False
    error: Exception | None = None
    """Why it never can be: what it belongs to is gone."""

    def is_over(self) -> bool:
        return self.is_kept or self.error is not None


class Writer:
    """Shared by whoever writes to one file on behalf of one `Store`; it ends with the last of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._users = 1
        self._is_closed = False
        self._retry_at = 0.0
        self._attempts = 0  # that failed
        self.problem: str | None = None
        """Why what waits is not on disk; None if nothing failed."""

    def put(self, write: Write, *, within: float = 0.0) -> Job:
        """Args:
        within: seconds that it may wait for company.
        """
        job = Job(write, time.monotonic() + within)
        with self._changed:
            self._queue.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sr-edge history", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return job

    def hurry(self, job: Job) -> None:
        """All that is before it, and it, as soon as can be."""
        with self._changed:
            job.due = 0.0
            self._changed.notify_all()

    def wait(self, job: Job, timeout: float, *, retry: bool = False) -> bool:
        """Whether it is on disk now. Waits neither beyond the first attempt that fails nor, while nothing
        can be written, at all.

        Args:
            retry: try once now, though it has failed.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            if job.is_over():
                return job.is_kept
            if self.problem is not None:
                if not retry:
                    return False
                self._retry_at = 0.0
            failed = self._attempts
            for earlier in self._queue:
                earlier.due = 0.0
                if earlier is job:
                    break
            self._changed.notify_all()
            while not (job.is_over() or self._attempts > failed):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return job.is_kept

    def hold(self) -> None:
        with self._changed:
            self._users += 1

    def release(self, timeout: float = 6.0) -> None:
        """The last one to call it waits until all is on disk, or has failed once more."""
        with self._changed:
            self._users -= 1
            if self._users or self._thread is None:
                return
            last = self._queue[-1] if self._queue else None
        if last is not None:
            self.wait(last, timeout, retry=True)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout)

    # --- the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            while (job := self._next()) is not None:
                try:
                    connection = connection or connect(self._path)
                    with transaction(connection):
                        after = job.write(connection)
                except Exception as error:  # whatever it is, the answer goes on and its owner is told
                    self._failed(job, error)
                    if connection is not None and is_passing(error):
                        connection.close()  # after an error of the disk a new one knows better
                        connection = None
                else:
                    self._kept(job, after)
        finally:
            if connection is not None:
                connection.close()

    def _next(self) -> Job | None:
        with self._changed:
            while True:
                if self._is_closed:
                    return None
                now = time.monotonic()
                wait = None
                if self._queue:
                    due = max(min(job.due for job in self._queue), self._retry_at)
                    if due <= now:
                        return self._queue[0]
                    wait = due - now
                self._changed.wait(wait)

    def _kept(self, job: Job, after: Callable[[], None] | None) -> None:
        with self._changed:
            self._queue.remove(job)
            job.is_kept = True
            self.problem = None
            if after is not None:
                after()
            self._changed.notify_all()

    def _failed(self, job: Job, error: Exception) -> None:
        with self._changed:
            self._attempts += 1
            if is_passing(error):
                self.problem = f"the history {self._path} cannot be written: {reason(error)}"
                self._retry_at = time.monotonic() + RETRY_SECONDS
            else:
                self._queue.remove(job)
                job.error = error
            self._changed.notify_all()
