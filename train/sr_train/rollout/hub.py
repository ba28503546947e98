"""Runs many rollouts at once in one thread: each in a greenlet, which waits for a batch or for a stream.

Threads of others (endpoints are read on them) only ever call `wake`.
"""

from __future__ import annotations

import queue
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from greenlet import getcurrent, greenlet

_FEW = 3
"""A batch is left out where so many times as many rows wait in another one."""

_PATIENCE = 3
"""Times that it is, at most."""


class Waiter(Protocol):
    @property
    def waiter(self) -> greenlet | None:
        """The rollout that can go on."""


class Decoder(Protocol):
    """Whatever rollouts wait for: `batch.Batch`, for one."""

    def running(self, pause: Callable[[], object]) -> AbstractContextManager[None]:
        """Entered for a run. `pause` lets a rollout wait."""

    @property
    def waiting(self) -> Sequence[object]:
        """Who would be served now."""

    def step(self) -> Sequence[Waiter]:
        """Serve them, or begin to; returns those who are through."""


class Hub:
    """Use it for one run."""

    def __init__(self) -> None:
        self._main = getcurrent()
        self._batches: list[Decoder] = []
        self._skipped: Counter[Decoder] = Counter()
        self._woken: queue.SimpleQueue[greenlet] = queue.SimpleQueue()

    @contextmanager
    def decoding(self, batch: Decoder) -> Iterator[None]:
        """Decode the batch whenever rows of it wait."""
        with batch.running(self.pause):
            self._batches.append(batch)
            try:
                yield
            finally:
                self._batches.remove(batch)

    def pause(self) -> None:
        """In a rollout: let others go on until this one is resumed."""
        self._main.switch()

    def wake(self, waiter: greenlet) -> None:
        """From any thread: resume this rollout, which has paused or is about to."""
        self._woken.put(waiter)

    def run(self, jobs: Iterator[Callable[[], None]], max_jobs: int) -> None:
        """Do all jobs, at most so many at once; a job that raises ends all of them."""
        live: set[greenlet] = set()
        ready: deque[greenlet] = deque()
        try:
            while True:
                while len(live) < max_jobs and (job := next(jobs, None)) is not None:
                    started = greenlet(job)
                    live.add(started)
                    ready.append(started)
                if not live:
                    return
                if not ready:
                    ready.extend(self._wait())
                while ready:
                    one = ready.popleft()
                    one.switch()
                    if one.dead:
                        live.discard(one)
        finally:
            for one in [each for each in live if not each.dead]:
                one.throw()  # GreenletExit: its `finally` clauses run

    def _wait(self) -> list[greenlet]:
        """Decode, or wait for a stream; returns who can go on."""
        ready = [row.waiter for batch in self._due() for row in batch.step() if row.waiter is not None]
        if not ready and self._woken.empty() and not any(batch.waiting for batch in self._batches):
            ready.append(self._woken.get())
        while not self._woken.empty():
            ready.append(self._woken.get())
        return ready

    def _due(self) -> list[Decoder]:
        """Batches to decode now: a pass for few rows waits a little for more, while another one has many."""
        most = max((len(batch.waiting) for batch in self._batches), default=0)
        due: list[Decoder] = []
        for batch in self._batches:
            if not batch.waiting:
                continue
            self._skipped[batch] += 1
            if _FEW * len(batch.waiting) >= most or self._skipped[batch] > _PATIENCE:
                self._skipped[batch] = 0
                due.append(batch)
        return due
