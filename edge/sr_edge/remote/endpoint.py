"""A large model behind any OpenAI-compatible endpoint.

`Endpoint` says what to ask for; `EndpointStream`, the reader's side of one span, keeps the deadlines and
hangs up. The network is dealt with on a thread of the span's own (`asking`), which is never waited for: not
by a read, not by a close, not by the end of the process.
"""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from sr_edge.errors import UsageError
from sr_edge.remote import errand
from sr_edge.remote.arrivals import Arrival, Content, Finished, Over, Reached
from sr_edge.remote.asking import Asking
from sr_edge.remote.deadlines import Deadlines, SleepWatch
from sr_edge.remote.dialects import Capabilities, dialect_named
from sr_edge.remote.egress import Door, site_of
from sr_edge.remote.server import Server
from sr_edge.roles import Message, Outcome, Prompt

__all__ = ["Deadlines", "Endpoint", "EndpointStream", "Preview"]

_DEADLINES = Deadlines()


@dataclass(frozen=True, slots=True)
class Preview:
    """The request that a span would begin with."""

    method: str
    url: str
    headers: Mapping[str, str]
    """The key as ***."""
    body: Mapping[str, Any]
    note: str
    """What else may be asked, and when; empty if nothing."""


class Endpoint:
    """Continues answers by whatever convention the server understands (`dialects`).

    Where none is named and none known, the first span is sent to raw completions, which continue exactly what
    they are sent. A server without them is surveyed first, without a word of the user's.
    """

    def __init__(
        self,
        url: str,
        *,
        prompt: Callable[[Sequence[Message]], Prompt],
        model: str | None = None,
        api_key: str | None = None,
        api: str = "auto",
        capabilities: Capabilities | None = None,
        learned: Callable[[Capabilities], None] = lambda capabilities: None,
        temperature: float = 0.6,
        top_p: float = 0.95,
        seed: int | None = None,
        deadlines: Deadlines = _DEADLINES,
        plain_http: bool = False,
        ca_file: Path | None = None,
        proxy: str | None = None,
        door: Door | None = None,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep_watch: Callable[[], SleepWatch] = SleepWatch,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Opens nothing and sends nothing: the first span does.

        Args:
            url: a path is taken as it is; none means `/v1`.
            prompt: renders a conversation as the local model reads it.
            model: None asks the server for its first one, just before the first span.
            api: auto, or the name of a dialect: then no other is tried.
            capabilities: what is known of the server already.
            learned: told of what is found out, on a thread of the endpoint's own.
            plain_http, ca_file, proxy: see `site_of`.
            door: None opens one of its own.
            name: the user's for this remote; None shows the model's.
            clock: seconds, monotonic.
            sleep_watch: begins to watch whether the machine sleeps, for each span.
            jitter: from 0 to 1.
        Raises:
            UsageError: the URL, the key or the API can't be meant.
        """
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise UsageError("the API key holds a space, a line end or another character that no key has")
        self._prompt = prompt
        self._name = name
        self._clock = clock
        self._sleep_watch = sleep_watch
        self._jitter = jitter
        self._server = Server(
            site_of(url, plain_http=plain_http, ca_file=ca_file, proxy=proxy),
            door or Door(),
            key=api_key or None,
            model=model,
            pinned=None if api == "auto" else dialect_named(api),
            capabilities=capabilities,
            learned=learned,
            deadlines=deadlines,
            clock=clock,
        )
        self._sampling = _sampling(temperature, top_p, seed)

    @property
    def name(self) -> str:
        """The user's own; else the model's; until it is known, the host's."""
        return self._name or self._server.safe_line(self._server.model or "", limit=100) or self.where

    @property
    def where(self) -> str:
        """Host and port."""
        return self._server.site.where

    @property
    def capabilities(self) -> Capabilities | None:
        """What is known of the server."""
        return self._server.capabilities

    def sampled(self, *, temperature: float, top_p: float, seed: int | None) -> Endpoint:
        """The same endpoint, asked to sample so. What was learned and the line are shared; close only one."""
        other = copy(self)
        other._sampling = _sampling(temperature, top_p, seed)
        return other

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> EndpointStream:
        asking = self._asking(messages, answer, max_tokens)
        deadlines, watch = self._server.deadlines, self._sleep_watch()
        stream = EndpointStream(asking, self.where, deadlines, self._clock, watch)
        asking.start()
        return stream

    def preview(self, messages: Sequence[Message], answer: str, max_tokens: int) -> Preview:
        """What `stream` would send first. Opens nothing and sends nothing."""
        dialect, body, note = self._asking(messages, answer, max_tokens).preview()
        headers = {**self._server.headers(is_shown=True), "Content-Type": "application/json"}
        return Preview("POST", self._server.site.base + dialect.path, headers, body, note)

    def knock(self, heard: Callable[[bool], None]) -> None:
        """Find out whether anybody answers, without a word of the user's. Returns at once.

        Args:
            heard: told so, once, on a thread of the endpoint's own.
        """
        errand.knock(self._server, heard)

    def models(self) -> list[str]:
        """Names of the server's models, each as one harmless line.

        Raises:
            RemoteError: it can't be asked, or gives no list.
            OfflineError: nothing is sent.
        """
        return errand.models(self._server)

    def survey(
        self, report: Callable[[str, str], None] = lambda dialect, verdict: None, *, full: bool = True
    ) -> Capabilities:
        """Find out what the server can do, with texts of our own; `learned` is told too.

        Args:
            report: told of each dialect's verdict as it is known.
            full: try all dialects, even after one that works.
        Raises:
            RemoteError: it can't be asked, or understands none.
            OfflineError: nothing is sent.
        """
        return errand.survey(self._server, self._prompt, report, full=full)

    def close(self) -> None:
        """Let go of the connection that is kept for the next span."""
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        server = self._server
        model = None if server.model is None else server.safe_line(server.model)
        return f"Endpoint({server.site.base!r}, {model=})"

    def _asking(self, messages: Sequence[Message], answer: str, max_tokens: int) -> Asking:
        prompt = self._prompt(messages)
        return Asking(
            self._server,
            tuple(messages),
            prompt,
            answer,
            max_tokens,
            sampling=self._sampling,
            jitter=self._jitter,
        )


def _sampling(temperature: float, top_p: float, seed: int | None) -> dict[str, float]:
    return {"temperature": temperature, "top_p": top_p} | ({} if seed is None else {"seed": seed})


class EndpointStream:
    """One span as it is read. For one thread."""

    def __init__(
        self,
        asking: Asking,
        where: str,
        deadlines: Deadlines,
        clock: Callable[[], float],
        watch: SleepWatch,
    ) -> None:
        self._asking = asking
        self._where = where
        self._deadlines = deadlines
        self._clock = clock
        self._watch = watch
        self._asked = clock()
        self._reached = Reached(self._asked, "dialling")
        self._heard: float | None = None  # when something was last written, reasoning included
        self._texts: list[str] = []
        self._characters = 0  # taken, read or not
        self._finished: Finished | None = None
        self._outcome: Outcome | None = None

    def read(self, timeout: float) -> str | None:
        if self._is_over():
            return None
        text = self._take_arrived()
        until = self._clock() + timeout
        while not text and not self._is_over():
            now = self._clock()
            deadline, outcome = self._next_deadline()
            if now >= deadline:
                self._end(outcome)
            elif now >= until:
                break
            elif not self._wait(min(until, deadline) - now):
                until = now  # one last look at the deadline
            text = self._take_arrived()
        return None if self._is_over() and not text else text

    @property
    def outcome(self) -> Outcome:
        assert self._outcome is not None, "the span is still being read"
        return self._outcome

    def close(self) -> None:
        if not self._is_over():
            self._take_arrived()  # usage may have come
        if not self._is_over():
            self._end(self._finished.outcome if self._finished else Outcome("stop"))

    def _is_over(self) -> bool:
        return self._outcome is not None

    def _end(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._asking.hang_up()

    def _wait(self, seconds: float) -> bool:
        """Whether anything arrived."""
        try:
            self._take(self._asking.arrivals.get(timeout=seconds))
        except queue.Empty:
            return False
        return True

    def _take_arrived(self) -> str:
        while not self._is_over():
            try:
                self._take(self._asking.arrivals.get_nowait())
            except queue.Empty:
                break
        text = "".join(self._texts)
        self._texts.clear()
        return text

    def _take(self, arrival: Arrival) -> None:
        match arrival:
            case Reached():
                self._reached = arrival
            case Content():
                self._heard = arrival.at
                self._characters += len(arrival.text)
                self._texts.append(arrival.text)
            case Finished():
                self._finished = arrival
            case Over():
                self._outcome = arrival.outcome

    def _next_deadline(self) -> tuple[float, Outcome]:
        """When to stop waiting, and what that will mean."""
        limits, where = self._deadlines, self._where
        if self._finished is not None:
            return self._finished.at + limits.linger, self._finished.outcome
        if self._watch.has_slept():
            line = f"this computer slept: the connection to {where} is taken for dead"
            return self._asked, Outcome("error", line, fault="unreachable")
        waits = [(self._asked + limits.total, f"{where} was not done within {limits.total:g} s")]
        if self._reached.stage == "dialling":
            line = f"remote unreachable: no connection to {where} within {limits.connect:g} s"
            waits.append((self._reached.at + limits.connect, line))
        if self._reached.stage == "sent":
            line = f"{where} did not answer within {limits.first_byte:g} s"
            waits.append((self._reached.at + limits.first_byte, line))
        if self._characters == 0:
            line = f"{where} wrote nothing within {limits.first_content:g} s"
            waits.append((self._asked + limits.first_content, line))
        if self._heard is not None:
            line = f"{where} fell silent for {limits.idle:g} s after {self._characters} characters"
            waits.append((self._heard + limits.idle, line))
        at, line = min(waits)
        end: Literal["error", "stalled"] = "error" if line.startswith("remote unreachable") else "stalled"
        return at, Outcome(end, line, fault="unreachable")
