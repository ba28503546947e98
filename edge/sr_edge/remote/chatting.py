"""A plain question to a chat model, answered as a whole: for a judge of texts, not for spans.

It leaves through the same door as a span and by the same lines. What a server refuses is learned alike. It
is asked once: whether and when to ask again is the caller's to decide, who may have many questions to pace.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sr_edge.errors import RemoteError
from sr_edge.remote.calling import Call
from sr_edge.remote.deadlines import Deadlines
from sr_edge.remote.dialects import CHAT, INSTRUCT
from sr_edge.remote.egress import Door, site_of
from sr_edge.remote.errand import first_model
from sr_edge.remote.exchange import HungUpError, Reply
from sr_edge.remote.failure import FailedError, Failure, RefusedError, of_report
from sr_edge.remote.overflow import is_overflow
from sr_edge.remote.reply import ReplyError, ReplyReader, parse_object
from sr_edge.remote.server import Server
from sr_edge.remote.sse import SseDecoder, SseLimitError
from sr_edge.roles import Fault, Message

MAX_POSTS = 8
"""Of one question: those that are refused for what they ask for count too."""

_MIN_ROOM = 512  # tokens of a reply: below it less room is no way out
_FORMATS = ("json_schema", "json_object", "text")
"""How a reply's form can be asked for, the strictest first. A server that knows none gets no word of it."""

_BAD_REQUEST = (400, 415, 422)
_MAYBE_BAD_REQUEST = (*_BAD_REQUEST, 500, 501)
_ABOUT_FORMAT = re.compile(r"response_format|json_schema|json_object|schema|grammar|guided|structured", re.I)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a chat model answered."""

    text: str
    """Without reasoning that came in a field of its own."""
    prompt_tokens: int | None
    completion_tokens: int | None
    """None: the server does not count."""
    is_cut: bool
    """It had no room left."""
    model: str | None
    """As the reply names it."""


class CompletionError(RemoteError):
    """No answer came."""

    def __init__(
        self, line: str, fault: Fault | None, *, is_passing: bool, retry_after: float | None
    ) -> None:
        super().__init__(line)
        self.fault = fault
        self.is_passing = is_passing
        """The same question may well be answered in a moment."""
        self.retry_after = retry_after
        """Seconds that the server asks us to wait."""


class ChatEndpoint:
    """One chat model at one address, asked by many threads at once.

    Name those threads `sr-edge …`: what httpcore would log of a reply's head is left out there, in which a
    server may send the key back.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 300.0,
        connect_timeout: float = 10.0,
        plain_http: bool = False,
        ca_file: Path | None = None,
        proxy: str | None = None,
        door: Door | None = None,
    ) -> None:
        """Opens nothing and sends nothing.

        Args:
            url: a path is taken as it is; none means `/v1`.
            model: None asks the server for its first one.
            timeout: seconds for all of one reply.
            plain_http, ca_file, proxy: see `site_of`.
            door: None opens one of its own.
        Raises:
            UsageError: the URL can't be meant.
        """
        self._server = Server(
            site_of(url, plain_http=plain_http, ca_file=ca_file, proxy=proxy),
            door or Door(),
            key=api_key or None,
            model=model,
            pinned=INSTRUCT,
            capabilities=None,
            learned=lambda capabilities: None,
            deadlines=Deadlines(connect=connect_timeout, total=timeout),
        )
        self._timeout = timeout
        self._lock = threading.Lock()
        self._naming = threading.Lock()
        self._idle: list[Call] = []
        self._busy: set[Call] = set()
        self._is_closed = False
        self._format = 0  # of `_FORMATS`, the strictest that was not refused

    @property
    def model(self) -> str | None:
        """None: not known yet, or the server names none."""
        return self._server.model

    @property
    def where(self) -> str:
        """Host and port."""
        return self._server.site.where

    def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float,
        schema: Mapping[str, Any] | None = None,
    ) -> Completion:
        """The whole reply. Blocks, until `timeout` at most; `close` ends it at once.

        Args:
            schema: JSON schema of the reply, for servers that can hold a model to one. Others are asked
                without it: whoever reads the reply must be ready for anything.
        Raises:
            CompletionError: there is none, or not all of it.
            OfflineError: nothing is sent.
        """
        call = self._take_call()
        is_clean = False
        try:
            completion = self._ask(call, messages, max_tokens, temperature, schema)
            is_clean = True
            return completion
        except FailedError as failed:
            failure = failed.failure
            raise CompletionError(
                self._server.safe_line(failure.line),
                failure.fault,
                is_passing=failure.is_passing or _may_pass(failure),
                retry_after=failure.retry_after,
            ) from None
        except HungUpError:
            line = f"the question to {self.where} was broken off"
            raise CompletionError(line, None, is_passing=False, retry_after=None) from None
        finally:
            self._give_back(call, is_clean=is_clean)

    def close(self) -> None:
        """From any thread: hang up, whatever is being asked, and let go of all connections."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            for call in self._busy:
                call.hang_up()
        for call in idle:
            call.hang_up()
            call.end()
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    # --- calls -------------------------------------------------------------------------------------------

    def _take_call(self) -> Call:
        with self._lock:
            fresh = Call(self._server, tell=lambda stage: None, timeout=self._timeout)
            call = self._idle.pop() if self._idle else fresh
            if self._is_closed:
                call.hang_up()
            self._busy.add(call)
        return call

    def _give_back(self, call: Call, *, is_clean: bool) -> None:
        with self._lock:
            self._busy.discard(call)
            is_kept = is_clean and not self._is_closed
            if is_kept:
                self._idle.append(call)
        if not is_kept:
            call.hang_up()
            call.end()

    # --- asking ------------------------------------------------------------------------------------------

    def _ask(
        self,
        call: Call,
        messages: Sequence[Message],
        max_tokens: int,
        temperature: float,
        schema: Mapping[str, Any] | None,
    ) -> Completion:
        server = self._server
        self._learn_model(call)
        used = self._format
        for post in range(MAX_POSTS):
            quirks = server.quirks
            body: dict[str, Any] = {} if server.model is None else {"model": server.model}
            body["messages"] = [{"role": m.role, "content": m.content} for m in messages]
            body |= {"temperature": temperature, "max_tokens": max_tokens, "stream": True}
            body["stream_options"] = {"include_usage": True}
            body = quirks.applied(body, INSTRUCT) | _response_format(schema, used)
            try:
                reply = call.ask("POST", CHAT, body)
            except RefusedError as refused:
                if post + 1 == MAX_POSTS:
                    raise
                learned = quirks.after_refusal(refused.status, refused.body, body)
                if is_overflow(refused.body):
                    max_tokens //= 2
                    if max_tokens < _MIN_ROOM:
                        raise
                elif _is_about_format(refused, body, is_explained=learned is not None):
                    used += 1
                elif learned is not None:
                    server.learn_quirks(learned)
                else:
                    raise
            else:
                if used > self._format:  # it was the format: what follows is not asked for it in vain
                    self._format = used
                return self._read(call, reply)
        raise AssertionError("unreachable")

    def _learn_model(self, call: Call) -> None:
        server = self._server
        if server.is_model_known:
            return
        with self._naming:
            if not server.is_model_known:
                server.learn_model(first_model(lambda: call.small_body(call.ask("GET", "/models")), server))

    def _read(self, call: Call, reply: Reply) -> Completion:
        """Raises:
        FailedError: it reports a failure, is cut, or is no reply of such a server.
        """
        if reply.headers.get("content-encoding", "identity") != "identity":
            raise self._failed("sent a compressed reply, which was not asked for", "refused")
        reader, texts = ReplyReader(thinking=False), list[str]()
        decoder, data, num_events = SseDecoder(), list[bytes](), 0
        try:
            for chunk in call.chunks(reply):
                if not num_events:
                    data.append(chunk)
                was_over = reader.is_complete
                for event in decoder.push(chunk):
                    num_events += bool(event.data.strip())
                    texts.append(reader.push(event) or "")
                if reader.done:
                    break
                if reader.is_complete and not was_over:
                    call.hurry()  # usage may come, but need not
            for event in decoder.flush():
                num_events += bool(event.data.strip())
                texts.append(reader.push(event) or "")
            if not num_events:  # it is no stream
                texts.append(reader.push_body(parse_object(b"".join(data))) or "")
        except (ReplyError, SseLimitError) as error:
            if not reader.is_complete:
                raise FailedError(of_report(error)) from None
        except FailedError:
            if not reader.is_complete:
                raise
        if not reader.is_complete:
            line = f"{self.where}: the reply ended without a finish reason"
            raise FailedError(Failure(line, "unreachable", is_passing=True))
        call.drain(reply)
        return Completion(
            "".join(texts),
            reader.prompt_tokens,
            reader.completion_tokens,
            is_cut=reader.finished == "cap",
            model=reader.model,
        )

    def _failed(self, line: str, fault: Fault) -> FailedError:
        return FailedError(Failure(f"{self.where} {line}", fault))


def _response_format(schema: Mapping[str, Any] | None, number: int) -> dict[str, Any]:
    if schema is None or _FORMATS[min(number, len(_FORMATS) - 1)] == "text":
        return {}
    if _FORMATS[number] == "json_object":
        return {"response_format": {"type": "json_object"}}
    named = {"name": "reply", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _is_about_format(refused: RefusedError, body: Mapping[str, Any], *, is_explained: bool) -> bool:
    """Args:
    is_explained: the refusal names something else that can be left out.
    """
    if "response_format" not in body or refused.status not in _MAYBE_BAD_REQUEST:
        return False
    is_named = bool(_ABOUT_FORMAT.search(refused.body))
    return is_named or (refused.status in _BAD_REQUEST and not is_explained)


def _may_pass(failure: Failure) -> bool:
    """Where nobody waits for the answer, even a server that is away may be back in a while."""
    return failure.fault == "unreachable"
