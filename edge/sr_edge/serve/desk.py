"""The desk: answers that are wanted wait here, fairly, and a few lanes write them at once.

A lane is a thread. It takes a cursor of the small model from the pool, and runs the same `Session.answer` as
`ask` does. Who asks hears the events on the lane's thread.
"""

from __future__ import annotations

import codecs
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median
from typing import Self

from sr_edge.errors import EdgeError, GenerationError
from sr_edge.events import Event, LocalToken
from sr_edge.local import LlamaLocal, SamplerSettings
from sr_edge.remote.local_gguf import LocalGGUF, Writer
from sr_edge.roles import Message, Prompt, RemoteModel
from sr_edge.serve.jobs import Busy, Failed, Heard, Job, Over
from sr_edge.serve.pool import Pool
from sr_edge.serve.turns import Player, TurnedLocal, TurnedRemote, Turns
from sr_edge.session import Session, SessionSettings

CONVERSATIONS = 4
"""Beyond the answers that are written at once, of so many the cache is kept."""
MAX_WAITING = 16
MAX_WAIT = 120.0
"""Seconds in the queue."""
MAX_SECONDS = 1800.0
"""From submitting to the end."""

_REMEMBERED = 16  # answers, for an estimate of the next one's time
_LONGEST_RETRY = 60  # seconds


@dataclass(frozen=True, slots=True)
class DeskFigures:
    waiting: int
    running: int
    cursors: int
    cursors_taken: int
    """As many as are running, or one is lost."""
    cached_tokens: int


def settings_for(settings: SessionSettings, answers: int) -> SessionSettings:
    """The same for a session that a desk writes `answers` at once with."""
    return replace(settings, answers=answers, conversations=answers + CONVERSATIONS)


class Desk:
    """Owns the queue and the lanes. The session stays its opener's."""

    def __init__(
        self,
        session: Session,
        settings: SessionSettings,
        *,
        max_waiting: int = MAX_WAITING,
        max_wait: float = MAX_WAIT,
        max_seconds: float = MAX_SECONDS,
        warn: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        session: opened with `settings`, as `settings_for` gives them.
        max_wait: seconds in the queue.
        max_seconds: from submitting to the end.
        warn: gets a line where something failed that nobody else hears of.
        clock: seconds, monotonic.
        """
        local, big = session.local, session.remote
        assert isinstance(local, LlamaLocal), "only the small model itself has several conversations"
        self.name = local.name
        self.big = big.name if big is not None and settings.policy != "local" else None
        self.opening = local.render([Message("user", "1")]).opening
        """What the chat template begins an answer with."""
        self.lanes = settings.answers
        """So many answers are written at once."""
        self.vocabulary_size = local.vocabulary_size
        self._session = session
        self._settings = settings
        self._max_waiting = max_waiting
        self._max_wait = max_wait
        self._max_seconds = max_seconds
        self.warn = warn
        self._clock = clock
        gguf = big if isinstance(big, LocalGGUF) else None
        self._turns = Turns([local] if gguf is None else [local, gguf])
        cursors = [local, *(local.another() for _ in range(settings.conversations - 1))]
        self._pool = Pool(cursors)
        self._root = local
        self._gguf = gguf
        self._changed = threading.Condition()
        self._queues: OrderedDict[str, deque[_Ticket]] = OrderedDict()  # by client, whose turn is next first
        self._running: set[_Ticket] = set()
        self._is_closing = False
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        writers = [] if gguf is None else [gguf, *(gguf.another() for _ in range(settings.answers - 1))]
        self._threads = [
            threading.Thread(
                target=self._work, args=(writers[n] if writers else None,), name=f"lane-{n + 1}", daemon=True
            )
            for n in range(settings.answers)
        ]
        self._threads.append(threading.Thread(target=self._watch, name="desk-clock", daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job, hear: Callable[[Heard], None]) -> _Ticket:
        """Args:
            hear: called on a lane's thread, or on the one that cancels; it does not wait for anything.
        Raises:
            Busy: the queue is full.
        """
        now = self._clock()
        limit = self._max_seconds if job.seconds is None else min(job.seconds, self._max_seconds)
        ticket = _Ticket(self, job, hear, now, now + limit)
        ousted = None
        with self._changed:
            if self._is_closing:
                raise Busy("the server is ending", retry_after=_LONGEST_RETRY)
            idle = self.lanes - len(self._running)  # those that they will take do not wait
            if self._count() >= self._max_waiting + idle and (ousted := self._oust(job.client)) is None:
                raise Busy(
                    f"{self._count()} answers wait already: try again in a while, or start the server with a "
                    "longer --queue",
                    retry_after=self._estimate(),
                )
            self._queues.setdefault(job.client, deque()).append(ticket)
            self._changed.notify_all()
        if ousted is not None:
            ousted.end(Busy("others asked too, and had waited less", retry_after=self._estimate()))
        return ticket

    def figures(self) -> DeskFigures:
        pool = self._pool.figures()
        with self._changed:
            waiting, running = self._count(), len(self._running)
        return DeskFigures(waiting, running, pool.cursors, pool.taken, pool.cached_tokens)

    def close(self) -> None:
        """Every ticket is cancelled, and every end heard."""
        with self._changed:
            self._is_closing = True
            tickets = [ticket for queue in self._queues.values() for ticket in queue]
            tickets += self._running
            self._changed.notify_all()
        for ticket in tickets:
            ticket.cancel()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    # --- the queue -------------------------------------------------------------------------------------

    def _count(self) -> int:
        return sum(map(len, self._queues.values()))

    def _oust(self, client: str) -> _Ticket | None:
        """Where somebody has more than their share of a full queue, their newest makes way for another's."""
        longest = max(self._queues.values(), key=len)
        if len(longest) <= len(self._queues.get(client, ())) + 1:
            return None
        return longest.pop()

    def _estimate(self) -> int:
        """Seconds until there may be a place."""
        lanes = max(1, len(self._threads) - 1)
        return max(1, min(_LONGEST_RETRY, math.ceil(median(self._seconds or [1.0]) / lanes)))

    def _next(self) -> _Ticket | None:
        """The next one of the client who has waited longest for a lane; None when all is over."""
        with self._changed:
            while not self._is_closing:
                if self._queues:
                    client, queue = self._queues.popitem(last=False)
                    ticket = queue.popleft()
                    if queue:
                        self._queues[client] = queue  # to the end
                    self._running.add(ticket)
                    return ticket
                self._changed.wait()
            return None

    def withdraw(self, ticket: _Ticket) -> bool:
        """Whether it still waited."""
        with self._changed:
            queue = self._queues.get(ticket.job.client, deque())
            if ticket not in queue:
                return False
            queue.remove(ticket)
            if not queue:  # clients choose their names: none is remembered
                del self._queues[ticket.job.client]
            return True

    def interrupt(self, player: Player) -> None:
        self._turns.stop(player)

    def _watch(self) -> None:
        """Ends what has waited, or is written, for too long."""
        while True:
            with self._changed:
                if self._is_closing:
                    return
                now = self._clock()
                waits = [
                    (min(ticket.asked + self._max_wait, ticket.until), ticket)
                    for queue in self._queues.values()
                    for ticket in queue
                ]
                ends = [(ticket.until, ticket) for ticket in self._running if not ticket.is_cancelled]
                refused = [ticket for at, ticket in waits if at <= now]
                overdue = [ticket for at, ticket in ends if at <= now]
                if not (refused or overdue):
                    pending = [at for at, _ in (*waits, *ends)]
                    self._changed.wait(min(pending) - now if pending else None)
                    continue
            for ticket in refused:
                if self.withdraw(ticket):
                    waited = self._clock() - ticket.asked
                    ticket.end(
                        Busy(f"no lane was free within {waited:.0f} s", retry_after=self._estimate()),
                        is_overdue=True,
                    )
            for ticket in overdue:
                ticket.expire()

    # --- a lane ------------------------------------------------------------------------------------------

    def _work(self, writer: Writer | None) -> None:
        while (ticket := self._next()) is not None:
            began = self._clock()
            error: EdgeError | None = None
            try:
                for event in self._events(ticket, writer):
                    ticket.say(event)
            except EdgeError as failure:
                error = failure
            except Exception as failure:  # a lane goes on, whatever one answer came to
                self.warn(f"an answer failed, and the server goes on: {type(failure).__name__}: {failure}")
                error = GenerationError(f"the answer failed inside the server: {type(failure).__name__}")
            with self._changed:
                self._running.discard(ticket)
                if not ticket.is_cancelled:
                    self._seconds.append(self._clock() - began)
                self._changed.notify_all()
            ticket.end(error, is_overdue=ticket.is_overdue)

    def _events(self, ticket: _Ticket, writer: Writer | None) -> Iterator[Event]:
        job, player = ticket.job, ticket.player
        take, raw = self._placing(job)  # before the turn: to tokenise a long text takes seconds
        with ExitStack() as owned:
            with self._turns.turn(player):
                cursor = take()
                owned.callback(self._give, player, cursor)
                cursor.choose(job.sampling)
            local = TurnedLocal(cursor, self._turns, player, None if raw is None else lambda messages: raw)
            big: RemoteModel | None = None
            if writer is not None and self._gguf is not None:
                sampling = self._writers_sampling(job)
                with self._turns.turn(player):
                    writer.choose(sampling)
                self._gguf.drafts_for(writer, local if sampling.temperature == 0 else None)
                big = TurnedRemote(writer, self._turns, player)
            past = _past(local, job.continues)
            settings = replace(
                self._settings,
                policy=job.policy if job.policy != "auto" else self._settings.policy,
                max_tokens=job.max_tokens + len(past),
            )
            session = self._session.beside(
                local,
                big,
                settings,
                is_raw=raw is not None,
                sampling=job.sampling if job.policy == "remote" else None,  # as a writer's
            )
            messages = job.messages if raw is None else (Message("user", raw.text),)
            yield from session.answer(messages, past=past, cancelled=lambda: ticket.is_cancelled)

    def _placing(self, job: Job) -> tuple[Callable[[], LlamaLocal], Prompt | None]:
        """What finds its cursor, and the prompt where no template makes it."""
        if job.prompt is None:
            rendered = self._root.rendered(self._session.told(job.messages))
            return lambda: self._pool.take(rendered), None
        raw = self._raw_prompt(job.prompt)
        return lambda: self._pool.take_for(raw.ids), raw

    def _raw_prompt(self, prompt: str | tuple[int, ...]) -> Prompt:
        if isinstance(prompt, str):
            return self._root.raw_prompt(prompt)
        return Prompt(prompt, b"".join(map(self._root.piece, prompt)).decode("utf-8", "replace"), "")

    def _give(self, player: Player, cursor: LlamaLocal) -> None:
        with self._turns.turn(player):
            self._pool.give(cursor)

    def _writers_sampling(self, job: Job) -> SamplerSettings:
        """A span is a step that must be right; a whole answer is what was asked for."""
        if job.policy == "remote":
            return job.sampling
        return replace(job.sampling, temperature=self._settings.big_temperature or 0.0)


class _Ticket:
    """See `jobs.Ticket`. Its ends are heard once, whoever comes first."""

    def __init__(
        self, desk: Desk, job: Job, hear: Callable[[Heard], None], asked: float, until: float
    ) -> None:
        self.job = job
        self.player = Player()
        self.asked = asked
        """On the desk's clock, as `until`."""
        self.until = until
        self.is_cancelled = False
        self.is_overdue = False
        self._desk = desk
        self._hear = hear
        self._ending = threading.Lock()
        self._is_over = False

    def cancel(self) -> None:
        self.is_cancelled = True
        if self._desk.withdraw(self):
            self.end()
        else:
            self._desk.interrupt(self.player)

    def expire(self) -> None:
        """Its time is up."""
        self.is_overdue = True
        self.cancel()

    def say(self, heard: Heard) -> None:
        try:
            self._hear(heard)
        except Exception as failure:  # nobody is there any more: no reason for a lane to end
            self._desk.warn(f"an answer was not heard: {type(failure).__name__}: {failure}")
            self.is_cancelled = True

    def end(self, error: EdgeError | None = None, *, is_overdue: bool = False) -> None:
        with self._ending:
            if self._is_over:
                return
            self._is_over = True
        if error is not None:
            self.say(Failed(error))
        self.say(Over(is_overdue))


def _past(local: TurnedLocal, text: str) -> tuple[LocalToken, ...]:
    """The beginning of an answer that goes on, as the small model would have written it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ids = local.tokenize(text)
    texts = [decoder.decode(local.piece(id)) for id in ids]
    if ids:
        texts[-1] += decoder.decode(b"", final=True)
    return tuple(LocalToken(id=id, text=text, logprob=0.0) for id, text in zip(ids, texts, strict=True))
