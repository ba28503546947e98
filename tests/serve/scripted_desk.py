"""A small desk for the door's tests: true jobs, threads and decoders, over a model that writes a script."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from sr_edge.events import LocalToken
from sr_edge.roles import NO_BIAS, Limits, Message
from sr_edge.serve.jobs import Busy, Failed, Heard, Job, Over
from sr_edge.split import SplitDecoder
from sr_edge.testing import END, OPEN, Reply, ScriptedLocal, ScriptedRemote

HELLO = ([*b"Hello ", OPEN], [*b" there.", END])
SPAN = "big world"


@dataclass
class Figures:
    waiting: int
    running: int


class ScriptedDesk:
    """Answers each job at once, on a thread of its own."""

    name = "Scripted Small"
    big = "scripted remote"
    context_tokens = 4096
    price = None
    lanes = 2

    def __init__(
        self,
        segments: Sequence[Sequence[int]] = HELLO,
        replies: Sequence[Reply | str] = (SPAN,),
        *,
        words: Collection[str] = (),
        gate: Callable[[], object] = lambda: None,
        error: Exception | None = None,
        most: int = 1000,
    ) -> None:
        """Args:
        words: see `ScriptedLocal`.
        gate: called before each token of the small model.
        error: what each job fails with.
        most: so many jobs may be under way.
        """
        self._segments = segments
        self._replies = replies
        self._words = words
        self._gate = gate
        self._error = error
        self._most = most
        self.jobs: list[Job] = []
        self.tickets: list[ScriptedTicket] = []

    @property
    def running(self) -> list[ScriptedTicket]:
        return [ticket for ticket in self.tickets if not ticket.is_over.is_set()]

    def figures(self) -> Figures:
        return Figures(waiting=0, running=len(self.running))

    def submit(self, job: Job, hear: Callable[[Heard], None]) -> ScriptedTicket:
        if len(self.running) >= self._most:
            raise Busy("all lanes are taken: ask again later", retry_after=7)
        ticket = ScriptedTicket()
        self.jobs.append(job)
        self.tickets.append(ticket)
        threading.Thread(target=self._run, args=(job, hear, ticket), daemon=True).start()
        return ticket

    def close(self) -> None:
        for ticket in self.tickets:
            ticket.cancel()
        for ticket in self.tickets:
            assert ticket.is_over.wait(10)

    def _run(self, job: Job, hear: Callable[[Heard], None], ticket: ScriptedTicket) -> None:
        try:
            if self._error is not None:
                hear(Failed(self._error))
                self._gate()
                return
            decoder = SplitDecoder(
                Gated(self._segments, self._words, self._gate, ticket),
                ScriptedRemote(self._replies),
                policy=job.policy,
                limits=replace(Limits(), max_tokens=job.max_tokens),
            )
            messages = job.messages or [Message("user", str(job.prompt))]
            past = [LocalToken(id=byte, text=chr(byte), logprob=0.0) for byte in job.continues.encode()]
            for event in decoder.generate(messages, past=past, cancelled=ticket.is_cancelled.is_set):
                hear(event)
                ticket.tokens += isinstance(event, LocalToken)
        finally:
            ticket.is_over.set()
            hear(Over(is_overdue=False))


class ScriptedTicket:
    def __init__(self) -> None:
        self.is_cancelled = threading.Event()
        self.is_over = threading.Event()
        self.tokens = 0
        self.steps_after_cancel = 0

    def cancel(self) -> None:
        self.is_cancelled.set()


class Gated(ScriptedLocal):
    """Waits before each token, and counts those that nobody wants any more."""

    def __init__(
        self,
        segments: Sequence[Sequence[int]],
        words: Collection[str],
        gate: Callable[[], object],
        ticket: ScriptedTicket,
    ) -> None:
        super().__init__(segments, words=words)
        self._gate = gate
        self._ticket = ticket

    def sample(self, banned=(), logit_bias=NO_BIAS):
        self._gate()
        self._ticket.steps_after_cancel += self._ticket.is_cancelled.is_set()
        return super().sample(banned, logit_bias)


def slowly(seconds: float = 0.002) -> Callable[[], object]:
    return lambda: time.sleep(seconds)


ENDLESS = ([*b"na " * 1300, END],)
