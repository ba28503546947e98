"""Asking for one span, on a thread that nobody ever waits for.

`Server` is what the spans of one endpoint share: the address, what the server has shown that it understands,
and the connection kept for the next span. `Asking` sends one request and puts what comes back, in order, into
a queue of frozen messages. It keeps no deadline but its own total: the reader does that, and hangs up.
"""

from __future__ import annotations

import contextlib
import json
import queue
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import httpx

from sr_edge.remote.dialect import Dialect
from sr_edge.remote.line import HungUpError, Line, failure_line
from sr_edge.remote.reply import (
    CLOSE_THINK,
    ReplyError,
    ReplyReader,
    UnreadableError,
    error_text,
    parse_object,
    plain_line,
)
from sr_edge.remote.sse import ServerSentEvent, SseDecoder, SseLimitError
from sr_edge.split import Message, Outcome, Prompt

MAX_BODY = 8 << 20  # bytes of one reply
MAX_TEXT = 64 << 10  # characters of one span
_MAX_ERROR_BODY = 64 << 10  # bytes of an error page that are looked at
_LINGER = 0.5  # seconds that a reply may take to end once all was said, for its connection to be kept


@dataclass(frozen=True, slots=True)
class Connected:
    """The request is about to leave."""


@dataclass(frozen=True, slots=True)
class Content:
    """Something was written; `text` is empty where it is no part of the span, or not yet."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The text is complete. Usage may still come."""

    at: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing more comes."""

    outcome: Outcome


Arrival: TypeAlias = Connected | Content | Finished | Over


class Server:
    """What the spans of one endpoint share. The only owner of what was learned and of the kept line."""

    def __init__(
        self,
        base: str,
        where: str,
        *,
        key: str | None,
        model: str | None,
        dialect: Dialect,
        sampling: Mapping[str, float],
        connect_timeout: float,
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        """Args:
        base: the URL that paths are put behind.
        where: host and port, for messages.
        connect_timeout, timeout: seconds after which the thread of a span that nobody reads gives up.
        """
        self.base = base
        self.where = where
        self.has_key = key is not None
        self.sampling = sampling
        self.timeout = timeout
        self._connect_timeout = connect_timeout
        self.clock = clock
        self._key = key
        self._lock = threading.Lock()
        self._model = model
        self._is_model_known = model is not None
        self._dialect = dialect
        self._tls: ssl.SSLContext | None = None
        self._kept: Line | None = None
        self._is_closed = False

    @property
    def model(self) -> str | None:
        return self._model

    @property
    def is_model_known(self) -> bool:
        return self._is_model_known

    @property
    def dialect(self) -> Dialect:
        return self._dialect

    def learn_model(self, model: str | None) -> None:
        """None: the server names none, and is asked without a name from now on."""
        with self._lock:
            self._model, self._is_model_known = model, True

    def learn_dialect(self, dialect: Dialect) -> None:
        with self._lock:
            self._dialect = replace(dialect, is_settled=True)

    def headers(self) -> dict[str, str]:
        headers = {
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",  # a few bytes saved are not worth a decompression bomb
            "Content-Type": "application/json",
            "User-Agent": "sr-edge",
        }
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        return headers

    def safe_line(self, text: str) -> str:
        """A message that may quote the server, as one harmless line without the key."""
        return plain_line(text if self._key is None else text.replace(self._key, "***"))

    def take_line(self) -> Line:
        """The kept line, now the caller's alone, or a new one."""
        with self._lock:
            line, self._kept = self._kept, None
        return line or self.new_line()

    def new_line(self) -> Line:
        with self._lock:
            if self._tls is None:
                self._tls = (
                    httpx.create_ssl_context(trust_env=False)
                    if self.base.startswith("https:")
                    else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody: no TLS is meant here
                )
            return Line(self._tls, connect_timeout=self._connect_timeout, timeout=self.timeout)

    def keep_line(self, line: Line) -> None:
        """Keep it for the next span. Of two only the newer is kept, and after `close` none."""
        with self._lock:
            unwanted: Line | None = line
            if not self._is_closed:
                unwanted, self._kept = self._kept, line
        if unwanted is not None:
            unwanted.close()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            line, self._kept = self._kept, None
        if line is not None:
            line.close()


class Asking:
    """One span's request. `arrivals` is the only way out of its thread."""

    def __init__(
        self, server: Server, messages: Sequence[Message], prompt: Prompt, answer: str, max_tokens: int
    ) -> None:
        self.arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._server = server
        self._messages = messages
        self._prompt = prompt
        self._answer = answer
        self._max_tokens = max_tokens
        self._give_up_at = server.clock() + server.timeout
        self._lock = threading.Lock()
        self._line: Line | None = None
        self._is_hung_up = False
        self._dialect: Dialect | None = None  # the one that was not refused, until it is seen to work

    def start(self) -> None:
        threading.Thread(target=self._run, name="sr-edge span", daemon=True).start()

    def hang_up(self) -> None:
        """From any thread, at any moment: nothing more is sent or read. Returns at once."""
        with self._lock:
            self._is_hung_up = True
            if self._line is not None:
                self._line.hang_up()

    def _run(self) -> None:
        keep = False
        try:
            if not self._server.is_model_known:
                self._server.learn_model(self._first_model())
            response = self._open_reply()
            try:
                chunks = self._chunks(response)
                reader = ReplyReader(thinking=self._is_thinking(), echoes=self._echoes())
                self.arrivals.put(Over(self._read(response, chunks, reader)))
                keep = reader.is_complete and not reader.left_thought and self._drain(chunks)
            finally:
                response.close()
        except Exception as error:  # whatever it is: the reader hears of it, and goes on
            self.arrivals.put(Over(Outcome("error", self._server.safe_line(self._explain(error)))))
        finally:
            self._release_line(keep=keep)

    # --- asking ---

    def _first_model(self) -> str | None:
        response = self._send("GET", "/models", None)
        body = self._small_body(response)
        if response.status_code in (404, 405, 501):
            return None  # such a server has one model, or says below that it wants a name
        if response.status_code != 200:
            raise ReplyError(self._refusal(response, "/models", body))
        models = parse_object(body).get("data")
        first = models[0] if isinstance(models, list) and models else None
        name = first.get("id") if isinstance(first, dict) else None
        return name if isinstance(name, str) else None

    def _open_reply(self) -> httpx.Response:
        """The response of the first dialect that the server understands."""
        dialect: Dialect | None = self._server.dialect
        while dialect is not None:
            request: dict[str, Any] = dialect.body(self._messages, self._prompt, self._answer)
            if self._server.model is not None:
                request["model"] = self._server.model
            request |= {**self._server.sampling, "max_tokens": self._max_tokens}
            response = self._send("POST", dialect.path, request)
            if response.status_code == 200:
                self._dialect = dialect
                return response
            body = self._small_body(response)
            refusal = self._refusal(response, dialect.path, body)
            dialect = dialect.after_refusal(response.status_code, body)
        raise ReplyError(refusal)

    def _send(self, method: str, path: str, request: dict[str, Any] | None) -> httpx.Response:
        server = self._server
        # A lone surrogate, as a command line can hold it, is no reason not to ask.
        body = None if request is None else json.dumps(request, ensure_ascii=False).encode("utf-8", "replace")

        call = (method, server.base + path, server.headers(), body, self._connected)
        line = self._line or self._hold(server.take_line())
        try:
            return line.send(*call)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            if line.is_fresh or self._is_hung_up:
                raise
        # The server had closed the kept connection in the meantime: nothing of a reply came.
        self._release_line(keep=False)
        return self._hold(server.new_line()).send(*call)

    def _connected(self) -> None:
        self.arrivals.put(Connected())

    def _hold(self, line: Line) -> Line:
        with self._lock:
            self._line = line
            if self._is_hung_up:
                line.hang_up()  # it says so when it is used
        return line

    def _release_line(self, *, keep: bool) -> None:
        with self._lock:
            line, self._line = self._line, None
            keep = keep and not self._is_hung_up
        if line is not None and keep:
            self._server.keep_line(line)
        elif line is not None:
            line.close()

    # --- reading ---

    def _is_thinking(self) -> bool:
        return bool(self._prompt.opening) and CLOSE_THINK not in self._answer

    def _echoes(self) -> tuple[str, ...]:
        opening, answer = self._prompt.opening, self._answer
        return (self._prompt.text + answer, opening + answer, answer)

    def _chunks(self, response: httpx.Response) -> Iterator[bytes]:
        """The body as it arrives, while it is of a sane size and somebody may be waiting for it."""
        size = 0
        for chunk in response.iter_raw():
            size += len(chunk)
            if size > MAX_BODY:
                raise ReplyError(f"the reply of {self._server.where} is larger than {MAX_BODY >> 20} MiB")
            if self._server.clock() > self._give_up_at:
                raise ReplyError(f"{self._server.where} took too long")
            yield chunk

    def _read(self, response: httpx.Response, chunks: Iterator[bytes], reader: ReplyReader) -> Outcome:
        """How the reply ended; its text is in `arrivals` by then.

        Raises:
            ReplyError: it failed or was cut.
        """
        where = self._server.where
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ReplyError(f"{where} sent a compressed reply, which was not asked for")
        if kind == "application/json":
            return self._read_whole(chunks, reader)
        if kind not in ("text/event-stream", ""):
            raise ReplyError(
                f"{where} answered with {kind}, not with a stream of events; is the URL that of an "
                "OpenAI-compatible endpoint?"
            )
        decoder = SseDecoder()
        is_empty = True
        try:
            for chunk in chunks:
                is_empty = False
                self._tell(reader, decoder.push(chunk))
                if reader.done or reader.left_thought:
                    break
                if reader.characters > MAX_TEXT:
                    return replace(_outcome(reader), end="cap")
            else:
                self._tell(reader, decoder.flush())
        except (httpx.TransportError, ReplyError, SseLimitError) as error:
            if not reader.is_complete:
                raise self._cut(reader, self._explain(error)) from error
        if is_empty:
            raise ReplyError(f"{where} sent an empty reply")
        if not reader.is_complete:
            raise self._cut(reader, "the stream ended without a finish reason")
        return _outcome(reader)

    def _read_whole(self, chunks: Iterator[bytes], reader: ReplyReader) -> Outcome:
        """A reply that is no stream, although one was asked for."""
        text = reader.push_body(parse_object(b"".join(chunks)))
        if text is None and reader.finished is None:
            raise ReplyError(f"the reply of {self._server.where} holds no text")
        self._learn_dialect()
        self.arrivals.put(Content(self._server.clock(), (text or "") + reader.flush()))
        return _outcome(reader)

    def _tell(self, reader: ReplyReader, events: Iterator[ServerSentEvent]) -> None:
        """One message for all that one chunk brought."""
        was_complete = reader.is_complete
        texts: list[str] = []
        try:
            for event in events:
                text = reader.push(event)
                if text is not None:
                    texts.append(text)
            if reader.is_complete and not was_complete:
                texts.append(reader.flush())
        finally:
            now = self._server.clock()
            if texts:
                self._learn_dialect()
                self.arrivals.put(Content(now, "".join(texts)))
            if reader.is_complete and not was_complete:
                self.arrivals.put(Finished(now, _outcome(reader)))

    def _learn_dialect(self) -> None:
        if self._dialect is not None:
            self._server.learn_dialect(self._dialect)
            self._dialect = None

    def _drain(self, chunks: Iterator[bytes]) -> bool:
        """Read what is left of a complete reply, so that its connection can be kept. True if it ended."""
        timer = threading.Timer(_LINGER, self.hang_up)
        timer.daemon = True
        timer.start()
        try:
            for _ in chunks:
                pass
        finally:
            timer.cancel()
        return True

    # --- in words ---

    def _cut(self, reader: ReplyReader, why: str) -> ReplyError:
        if reader.characters == 0:
            return ReplyError(why)
        return ReplyError(f"{self._server.where} cut off after {reader.characters} characters: {why}")

    def _explain(self, error: Exception) -> str:
        if isinstance(error, ReplyError | SseLimitError):
            return str(error)
        if isinstance(error, HungUpError):
            return "hung up"
        if isinstance(error, httpx.HTTPError):
            return failure_line(error, self._server.where)
        return f"the request to {self._server.where} failed: {type(error).__name__}: {error}"

    def _small_body(self, response: httpx.Response) -> str:
        """The body of a refusal or a list, its beginning at least, and the response closed."""
        data = b""
        with contextlib.closing(response), contextlib.suppress(httpx.TransportError):
            for chunk in self._chunks(response):
                data += chunk
                if len(data) > _MAX_ERROR_BODY:
                    break
        return data.decode("utf-8", "replace")

    def _refusal(self, response: httpx.Response, path: str, body: str) -> str:
        server, status = self._server, response.status_code
        if 300 <= status < 400:
            target = response.headers.get("location", "nowhere")
            return f"{server.where} redirects to {target}: not followed; give the final address as the URL"
        if status in (401, 403):
            what = "does not accept the API key" if server.has_key else "wants an API key"
        elif status in (404, 405, 501):
            what = f"has no {server.base}{path}, or no model {server.model!r}: check URL and model name"
        elif status == 429:
            what = "is busy, or its quota is used up"
        else:
            what = "refused the request" if status < 500 else "failed"
        return f"{server.where} {what} (HTTP {status}){_said(body)}"


def _outcome(reader: ReplyReader) -> Outcome:
    return Outcome(
        reader.finished or "stop",
        prompt_tokens=reader.prompt_tokens,
        completion_tokens=reader.completion_tokens,
    )


def _said(body: str) -> str:
    """What the server gives as the reason; a page of HTML says nothing."""
    try:
        said = error_text(parse_object(body))
    except UnreadableError:
        said = "" if body.lstrip().startswith("<") else body
    return f": {said}" if said.strip() else ""
