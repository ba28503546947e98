"""Asking for one span, on a thread that nobody ever waits for.

`Asking` finds out how to ask, sends the request, and puts what comes back, in order, into a queue of frozen
messages. It keeps no deadlines: the reader does that, and hangs up.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from sr_edge.errors import EdgeError
from sr_edge.extract import is_thinking
from sr_edge.remote.arrivals import Arrival, Content, Finished, Over, Reached
from sr_edge.remote.calling import Call
from sr_edge.remote.dialects import (
    COMPLETIONS,
    DIALECTS,
    INSTRUCT,
    Dialect,
    Quirks,
    dialect_named,
    known_host,
    request,
)
from sr_edge.remote.errand import TookTooLongError, find_out, first_model, listen
from sr_edge.remote.exchange import HungUpError, NoConnectionError, Reply, Stage
from sr_edge.remote.failure import (
    FailedError,
    Failure,
    RefusedError,
    has_no_completions,
    of_connection,
)
from sr_edge.remote.overflow import is_overflow, without_oldest_half
from sr_edge.remote.probe import Heard, Trial
from sr_edge.remote.receiving import Receiving, WrappedError
from sr_edge.remote.retry import pause
from sr_edge.remote.seam import Seam
from sr_edge.remote.server import Server
from sr_edge.roles import Message, Outcome, Prompt

MAX_POSTS = 4
"""Of one span, with the user's words in them: those that are refused count too."""

_RAW = DIALECTS[0]


class Asking:
    """One span's request. `arrivals` is the only way out of its thread."""

    def __init__(
        self,
        server: Server,
        messages: Sequence[Message],
        prompt: Prompt,
        answer: str,
        max_tokens: int,
        *,
        sampling: Mapping[str, float],
        jitter: Callable[[], float],
    ) -> None:
        self.arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._server = server
        self._messages = messages
        self._prompt = prompt
        self._answer = answer
        self._sent_answer = answer  # less its oldest part, where it was too long
        self._max_tokens = max_tokens
        self._sampling = sampling
        self._jitter = jitter
        self._asked = server.clock()
        self._lock = threading.Lock()
        self._call = Call(server, tell=self._reached, timeout=server.deadlines.total)
        self._hung_up = threading.Event()
        self._has_retried = False
        self._num_posts = 0  # with the user's words in them
        self._has_content = False

    def start(self) -> None:
        try:
            threading.Thread(target=self._run, name="sr-edge span", daemon=True).start()
        except RuntimeError as error:  # no thread is to be had
            self.arrivals.put(Over(Outcome("error", f"nothing was asked: {error}")))

    def hang_up(self) -> None:
        """From any thread, at any moment: nothing more is sent or read. Returns at once."""
        self._hung_up.set()
        with self._lock:
            self._call.hang_up()

    def preview(self) -> tuple[Dialect, dict[str, Any], str]:
        """What would be sent first, and what else may be, in words."""
        server, notes = self._server, list[str]()
        if not server.is_model_known:
            notes.append(f"GET {server.site.base}/models comes first: it asks for the model's name")
        dialect = self._known_dialect()
        if dialect is None:
            dialect = _RAW if self._may_begin_raw() else self._likely_dialect()
            found_out = "what the server understands is found out first, without a word of yours"
            notes.append(
                "a server without raw completions is asked in another way" if dialect is _RAW else found_out
            )
        return dialect, self._body(dialect), "; ".join(notes)

    def _run(self) -> None:
        try:
            try:
                self._span()
            except BaseException as error:  # whatever it is: the reader hears of it, and goes on
                self.arrivals.put(Over(self._over(error)))
        finally:
            self._call.end()

    # --- how to ask ---

    def _is_thinking(self) -> bool:
        return is_thinking(self._prompt.opening + self._sent_answer)

    def _known_dialect(self) -> Dialect | None:
        server = self._server
        if server.pinned is not None:
            return server.pinned
        known, is_thinking = server.capabilities, self._is_thinking()
        if known is not None and (known.text is not None or (is_thinking and known.thought is not None)):
            return known.dialect(is_thinking)
        return INSTRUCT if server.was_surveyed else None  # the survey was broken off: it works in any case

    def _may_begin_raw(self) -> bool:
        """Where nothing is known, without a trial: a server that has no raw completions says so."""
        hint = known_host(self._server.site.where)
        return self._server.capabilities is None and (hint is None or hint.has_completions)

    def _likely_dialect(self) -> Dialect:
        """Where there are no raw completions."""
        hint = known_host(self._server.site.where)
        return INSTRUCT if hint is None else dialect_named(hint.text or INSTRUCT.name)

    def _find_out(self) -> Dialect:
        """The dialect that the server turns out to understand, found out without a word of the user's.

        That may take half of the time until the first text: a server too slow for it is asked for the
        continuation in this run, and the next goes on finding out.
        """
        opening, server = self._prompt.opening, self._server
        now = server.clock()
        until = now + (self._asked + server.deadlines.first_content - now) / 2

        def render(messages: Sequence[Message]) -> Prompt:
            return Prompt((), opening, opening)  # only raw completions would need more

        try:
            find_out(lambda trial: self._hear(trial, until), server, opening, render, full=False, until=until)
        finally:
            self._begin_call(server.deadlines.total)
        return self._known_dialect() or INSTRUCT

    def _hear(self, trial: Trial, until: float) -> Heard:
        """Raises:
        TookTooLongError: it was not done by then.
        FailedError: nothing came of it.
        """
        self._begin_call(max(0.0, until - self._server.clock()))
        try:
            return listen(self._call, lambda path, body: self._ask("POST", path, body), trial)
        except FailedError as failed:
            if isinstance(failed.__cause__, TimeoutError) and not isinstance(
                failed.__cause__, NoConnectionError
            ):
                raise TookTooLongError from None
            raise

    def _begin_call(self, timeout: float) -> None:
        """With requests of this many seconds, on the same connection if it is clean."""
        self._call.end()
        call = Call(self._server, tell=self._reached, timeout=timeout)
        with self._lock:
            self._call = call
            if self._hung_up.is_set():
                call.hang_up()

    def _body(self, dialect: Dialect) -> dict[str, Any]:
        return request(
            dialect,
            self._server.quirks,
            messages=self._messages,
            prompt=self._prompt,
            answer=self._sent_answer,
            sampling=self._sampling,
            max_tokens=self._max_tokens,
            model=self._server.model,
        )

    # --- asking ---

    def _span(self) -> None:
        if not self._server.is_model_known:
            self._server.learn_model(first_model(self._models_page, self._server))
        dialect = self._known_dialect()
        if dialect is None:
            dialect = _RAW if self._may_begin_raw() else self._find_out()
        while True:
            dialect, reply = self._open_reply(dialect)
            try:
                if self._read(dialect, reply):
                    return
            except WrappedError:
                self._call.renew()
                dialect = self._find_out()
            except FailedError as failed:
                if self._has_content:
                    raise
                if not is_overflow(str(failed)):
                    self._try_again(failed)
                elif not self._may_post() or not self._shorten():
                    raise

    def _models_page(self) -> str:
        return self._call.small_body(self._ask("GET", "/models"))

    def _open_reply(self, dialect: Dialect) -> tuple[Dialect, Reply]:
        """The reply to the first request that is not refused, and the dialect that it was asked in."""
        server = self._server
        while True:
            body = self._body(dialect)
            try:
                return dialect, self._ask("POST", dialect.path, body, is_users=True)
            except RefusedError as refused:
                if is_overflow(refused.body):
                    if not self._may_post() or not self._shorten():
                        raise
                    continue
                quirks = server.quirks.after_refusal(refused.status, refused.body, body)
                if self._may_find_out() and _is_misplaced(dialect, refused, quirks):
                    dialect = self._find_out()
                elif quirks is None:
                    raise
                elif any(flag in quirks.left_out for flag, _ in dialect.flags):
                    line = f"{refused}; it does not know the way {dialect.name!r}: api = auto finds one"
                    raise FailedError(Failure(line, "refused")) from None
                else:
                    server.learn_quirks(quirks)  # at least the next span goes without
                if not self._may_post():
                    raise

    def _may_post(self) -> bool:
        """Whether the user's words may leave once more for this span."""
        return self._num_posts < MAX_POSTS

    def _may_find_out(self) -> bool:
        return self._server.pinned is None and not self._server.was_surveyed

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, is_users: bool = False
    ) -> Reply:
        """A reply that is a 200. Asks once more, if there was reason to and none before in this span.

        Args:
            is_users: the body holds the user's words.
        Raises:
            FailedError: there is none.
        """
        while True:
            self._num_posts += is_users
            try:
                return self._call.ask(method, path, body)
            except FailedError as failed:
                self._try_again(failed)
            finally:
                self._num_posts += is_users and self._call.was_sent_twice

    def _try_again(self, failed: FailedError) -> None:
        """Returns when it is time to ask once more.

        Raises:
            FailedError: it is no use, was done before, or there is no time for it.
        """
        has_been = self._has_retried or self._call.was_sent_twice or not self._may_post()
        if not failed.failure.is_passing or has_been:
            raise failed
        self._has_retried = True
        server, demanded = self._server, failed.failure.retry_after
        remaining = self._asked + server.deadlines.first_content - server.clock()
        seconds = pause(demanded, self._jitter(), remaining)
        if seconds is None:
            raise failed
        self._reached("resting")
        self._call.renew()
        self._hung_up.wait(seconds)

    def _shorten(self) -> bool:
        """Leave the oldest part of the answer out, once. Whether there was any to spare."""
        shorter = without_oldest_half(self._sent_answer) if self._sent_answer is self._answer else None
        if shorter is not None:
            self._sent_answer = shorter
        return shorter is not None

    def _reached(self, stage: Stage | Literal["resting"]) -> None:
        self.arrivals.put(Reached(self._server.clock(), stage))

    # --- reading ---

    def _read(self, dialect: Dialect, reply: Reply) -> bool:
        """Its text and how it ended, into `arrivals`. False if it needs more room, which it has from now on.

        Raises:
            FailedError: it failed or was cut.
        """
        where, clock = self._server.site.where, self._server.clock
        chunks, seam = self._call.chunks(reply), self._seam(dialect)
        is_raw = dialect is _RAW and self._may_find_out()
        receiving = Receiving(reply, chunks, seam, where, clock, self._put, is_raw=is_raw)
        outcome = receiving.run()
        quirks = self._server.quirks
        if dialect.is_asking and receiving.has_only_thought and not quirks.thinks_first:
            self._server.learn_quirks(replace(quirks, thinks_first=True))
            if self._may_post():
                return False
        self.arrivals.put(Over(outcome))
        if receiving.is_complete:
            self._call.drain(reply)
        return True

    def _seam(self, dialect: Dialect) -> Seam:
        known = self._server.capabilities
        return Seam(
            self._sent_answer,
            dialect=dialect,
            opening=self._prompt.opening,
            prompt=self._prompt.text,
            echoes=known is not None and known.echoes,
        )

    def _put(self, arrival: Content | Finished) -> None:
        self._has_content = True
        self.arrivals.put(arrival)

    def _failure(self, error: BaseException) -> Failure:
        match error:
            case FailedError():
                return error.failure
            case HungUpError() if not self._hung_up.is_set():
                return Failure("went offline: the connection was closed", None)
            case EdgeError():
                return Failure(str(error), None)
            case _:
                return of_connection(error, self._server.site.where)

    def _over(self, error: BaseException) -> Outcome:
        failure = self._failure(error)
        line = self._server.safe_line(failure.line)
        return Outcome("error", line, fault=failure.fault, retry_after=failure.retry_after)


def _is_misplaced(dialect: Dialect, refused: RefusedError, quirks: Quirks | None) -> bool:
    """Whether it may be the dialect that was refused, and not what was asked in it."""
    if dialect.path == COMPLETIONS:
        return has_no_completions(refused.status, refused.body)
    is_flag = quirks is not None and any(flag in quirks.left_out for flag, _ in dialect.flags)
    return is_flag or (quirks is None and refused.status in (400, 404, 405, 422, 501))
