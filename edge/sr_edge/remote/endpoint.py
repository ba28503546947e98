"""A large model behind any OpenAI-compatible endpoint.

`Endpoint` says what to ask for; `EndpointStream`, the reader's side of one span, keeps the deadlines and
hangs up. The network is dealt with on a thread of the span's own (`asking`), which is never waited for: not
by a read, not by a close, not by the end of the process.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import httpx

from sr_edge.errors import UsageError
from sr_edge.remote.asking import Asking, Connected, Content, Finished, Over, Server
from sr_edge.remote.dialect import Dialect
from sr_edge.remote.reply import plain_line
from sr_edge.split import Message, Outcome, Prompt


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds on our own clock, whatever httpx or the operating system may be waiting for."""

    connect: float = 4.0
    """From asking until the request leaves: name look-up, connection, TLS."""
    first_content: float = 15.0
    """From asking to the first thing written, reasoning that is no part of the span included."""
    idle: float = 10.0
    """Between two things written. Comments and empty events are none."""
    total: float = 120.0
    linger: float = 0.5
    """From the finish reason to the usage that may follow it."""


class Endpoint:
    """Continues answers through raw completions or chat completions.

    Raw completions continue exactly what was sent, an open think block included, in the local model's own
    template. Chat is for servers without them: the partial answer is then the last message.
    """

    def __init__(
        self,
        url: str,
        *,
        prompt: Callable[[Sequence[Message]], Prompt],
        model: str | None = None,
        api_key: str | None = None,
        api: Literal["auto", "completions", "chat"] = "auto",
        temperature: float = 0.6,
        top_p: float = 0.95,
        seed: int | None = None,
        deadlines: Deadlines = Deadlines(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens nothing and sends nothing: the first span does.

        Args:
            url: a path is taken as it is; none means `/v1`.
            prompt: renders a conversation as the local model reads it.
            model: None asks the server for its first one, just before the first span.
            api: auto tries completions, and chat where the server has none.
            clock: seconds, monotonic.
        Raises:
            UsageError: the URL or the key cannot be meant.
        """
        base, where = _parse_url(url)
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise UsageError("the API key holds a space, a line end or another character that no key has")
        sampling = {"temperature": temperature, "top_p": top_p} | ({} if seed is None else {"seed": seed})
        self._prompt = prompt
        self._deadlines = deadlines
        self._clock = clock
        self._server = Server(
            base,
            where,
            key=api_key or None,
            model=model,
            dialect=Dialect("chat" if api == "chat" else "completions", is_settled=api != "auto"),
            sampling=sampling,
            connect_timeout=deadlines.connect,
            timeout=deadlines.total,
            clock=clock,
        )

    @property
    def name(self) -> str:
        """The model's; until it is known, the host's."""
        return plain_line(self._server.model or "", limit=100) or self._server.where

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> EndpointStream:
        asking = Asking(self._server, tuple(messages), self._prompt(messages), answer, max_tokens)
        asking.start()
        return EndpointStream(asking, self._server.where, self._deadlines, self._clock)

    def close(self) -> None:
        """Let go of the connection that is kept for the next span."""
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Endpoint({self._server.base!r}, model={self._server.model!r})"


class EndpointStream:
    """One span as it is read. For one thread."""

    def __init__(self, asking: Asking, where: str, deadlines: Deadlines, clock: Callable[[], float]) -> None:
        self._asking = asking
        self._where = where
        self._deadlines = deadlines
        self._clock = clock
        self._asked = clock()
        self._is_connected = False
        self._heard: float | None = None  # when something was last written
        self._texts: list[str] = []
        self._characters = 0
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
        self._characters += len(text)
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

    def _take(self, arrival: Connected | Content | Finished | Over) -> None:
        match arrival:
            case Connected():
                self._is_connected = True
            case Content():
                self._heard = arrival.at
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
        line = f"{where} was not done within {limits.total:g} s"
        deadlines = [(self._asked + limits.total, Outcome("stalled", line))]
        if not self._is_connected:
            line = f"remote unreachable: no connection to {where} within {limits.connect:g} s"
            deadlines.append((self._asked + limits.connect, Outcome("error", line)))
        if self._heard is None:
            line = f"{where} wrote nothing within {limits.first_content:g} s"
            deadlines.append((self._asked + limits.first_content, Outcome("stalled", line)))
        else:
            line = f"{where} fell silent for {limits.idle:g} s after {self._characters} characters"
            deadlines.append((self._heard + limits.idle, Outcome("stalled", line)))
        return min(deadlines, key=lambda d: d[0])


def _parse_url(url: str) -> tuple[str, str]:
    """The URL that paths are put behind, and host and port in words.

    Raises:
        UsageError: it cannot be the address of an endpoint. The message quotes no credentials.
    """
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise UsageError(f"not a URL: {str(error).partition(':')[0]}") from None
    if parsed.userinfo or "@" in url.partition("://")[2].partition("/")[0]:
        raise UsageError("the URL holds a user name or a password: give the API key apart from it")
    if parsed.scheme not in ("http", "https"):
        raise UsageError(f"{url!r} is not the URL of an endpoint: it must begin with http:// or https://")
    if not parsed.host:
        raise UsageError(f"{url!r} names no host")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise UsageError(f"{url!r} names a port that does not exist: ports are 1 to 65535")
    if parsed.query or parsed.fragment:
        raise UsageError("the URL of an endpoint ends with its path: it takes no ? and no #")
    where = parsed.netloc.decode("ascii")
    path = parsed.raw_path.decode("ascii").rstrip("/") or "/v1"
    return f"{parsed.scheme}://{where}{path}", where
