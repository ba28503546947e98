"""A model behind an OpenAI-compatible endpoint on loopback, as slow as you like.

    with ModelEndpoint(Path("big.gguf"), ms_per_token=20) as server:
        ...  # ask server.url + "/v1/completions"

`/v1/completions` and `/v1/chat/completions`, streamed or whole, with `stop`, `max_tokens`, several prompts in
one request, and vLLM's `skip_special_tokens`, `include_stop_str_in_output` and `stop_reason`. A client that
hangs up stops the model. One request is computed at a time; several prompts of one request are one batch.

`fault_endpoint` is the server that fails; this one works, and takes its time.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from sr_edge.errors import EdgeError, UsageError
from sr_edge.roles import Message
from sr_edge.testing.batch_writer import BatchWriter, Wish, Written

_MAX_HEAD = 64 << 10
_ROLES = ("system", "user", "assistant")


class Writer(Protocol):
    """What is served; see `BatchWriter`."""

    @property
    def name(self) -> str: ...
    def chat_prompt(self, messages: Sequence[Message]) -> str: ...
    def count(self, text: str) -> int: ...
    def write(self, prompts: Sequence[str], wish: Wish) -> Generator[list[Written]]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Served:
    """One request as it was answered."""

    path: str
    prompts: tuple[str, ...]
    max_tokens: int
    completion_tokens: int
    """Of all prompts together."""
    was_cut: bool
    """The client hung up before the end."""


class ModelEndpoint:
    """Listens from `__enter__` to `__exit__`, on a port of its own."""

    def __init__(
        self, model: Path | Writer, *, ms_per_token: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
            model: a writer is closed with the server.
            ms_per_token: a step takes at least so long, however many texts it adds a token to.
        Raises:
            ModelError: the file is missing or unusable.
        """
        self.served: list[Served] = []
        """The requests, in the order in which they ended."""
        self._writer: Writer = BatchWriter(model) if isinstance(model, Path) else model
        self._seconds_per_token = ms_per_token / 1000
        self._clock = clock
        self._turn = threading.Lock()  # the model is used by one thread at a time
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    @property
    def name(self) -> str:
        return self._writer.name

    @property
    def url(self) -> str:
        """To put `/v1/...` behind."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *args: object) -> None:
        self._closing.set()
        with self._lock:
            sockets = [self._listener, *self._sockets]
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()
        self._writer.close()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="model endpoint", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._sockets.append(connection)
                    if self._closing.is_set():
                        return
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client is gone, or we are closing
            while (request := _read_request(connection)) is not None:
                self._answer(connection, *request)

    def _answer(self, connection: socket.socket, method: str, path: str, body: bytes) -> None:
        try:
            if (method, path) == ("GET", "/v1/models"):
                _send_page(connection, {"object": "list", "data": [{"id": self.name, "object": "model"}]})
            elif method == "POST" and path in ("/v1/completions", "/v1/chat/completions"):
                asked = _Asked.of(path, body, self._writer)
                with self._turn:
                    self._write(connection, asked)
            else:
                _send_page(connection, _failure(f"there is no {method} {path}"), 404)
        except EdgeError as error:
            _send_page(connection, _failure(str(error)), 400)

    def _write(self, connection: socket.socket, asked: _Asked) -> None:
        prompt_tokens = sum(map(self._writer.count, asked.prompts))
        reply = (_Streamed if asked.is_stream else _Whole)(connection, asked, self.name)
        counts = [0] * len(asked.prompts)
        was_cut = True
        steps = self._writer.write(asked.prompts, asked.wish)
        began = self._clock()
        try:
            for step in steps:
                if not self._wait(connection, began + self._seconds_per_token):
                    raise ConnectionResetError("the client hung up")
                began = self._clock()
                for written in step:
                    counts[written.index] = written.tokens
                    reply.add(written)
            was_cut = False
        except EdgeError as error:
            if reply.has_begun:  # nothing can be said any more
                connection.shutdown(socket.SHUT_RDWR)
                raise ConnectionAbortedError(str(error)) from error
            raise
        finally:
            steps.close()
            served = Served(asked.path, asked.prompts, asked.wish.max_tokens, sum(counts), was_cut)
            self.served.append(served)
        reply.end(prompt_tokens, sum(counts))

    def _wait(self, connection: socket.socket, until: float) -> bool:
        """Returns whether the client is still there."""
        while True:
            rest = max(0.0, until - self._clock())
            if select.select([connection], [], [], rest)[0]:  # a word meanwhile, or its end
                return bool(connection.recv(1, socket.MSG_PEEK)) and not self._closing.wait(rest)
            if self._clock() >= until:
                return not self._closing.is_set()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, checked."""

    path: str
    prompts: tuple[str, ...]
    wish: Wish
    is_stream: bool
    with_usage: bool
    with_tokens: bool

    @property
    def is_chat(self) -> bool:
        return "chat" in self.path

    @classmethod
    def of(cls, path: str, body: bytes, writer: Writer) -> Self:
        try:
            fields = json.loads(body)
        except ValueError:
            raise UsageError("the body is not JSON") from None
        if not isinstance(fields, dict):
            raise UsageError("the body is not an object")
        stop = fields.get("stop") or ()
        wish = Wish(
            max_tokens=int(fields.get("max_tokens") or fields.get("max_completion_tokens") or 16),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            temperature=float(fields.get("temperature", 1.0)),
            seed=fields.get("seed"),
            skip_special_tokens=fields.get("skip_special_tokens", True),
            include_stop_str_in_output=fields.get("include_stop_str_in_output", False),
        )
        if wish.max_tokens < 1 or wish.temperature < 0:
            raise UsageError("max_tokens and temperature cannot be so small")
        return cls(
            path=path,
            prompts=_prompts(path, fields, writer),
            wish=wish,
            is_stream=bool(fields.get("stream")),
            with_usage=bool((fields.get("stream_options") or {}).get("include_usage")),
            with_tokens=bool(fields.get("logprobs")),
        )


def _prompts(path: str, fields: Mapping[str, Any], writer: Writer) -> tuple[str, ...]:
    if "chat" not in path:
        prompt = fields.get("prompt")
        prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt or ())
        if not prompts or not all(isinstance(one, str) for one in prompts):
            raise UsageError("`prompt` is neither a text nor a list of texts")
        return prompts
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UsageError("`messages` is no list of messages")
    turns = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES or not isinstance(content, str):
            raise UsageError("a message has a role (system, user, assistant) and a text as its content")
        turns.append(Message(role, content))
    return (writer.chat_prompt(turns),)


class _Whole:
    """A reply that is sent when all of it is there."""

    has_begun = False

    def __init__(self, connection: socket.socket, asked: _Asked, model: str) -> None:
        self._connection = connection
        self._asked = asked
        self._model = model
        self._pieces: list[list[str]] = [[] for _ in asked.prompts]
        self._last: dict[int, Written] = {}

    def add(self, written: Written) -> None:
        self._pieces[written.index].append(written.text)
        self._last[written.index] = written

    def end(self, prompt_tokens: int, completion_tokens: int) -> None:
        choices = []
        for n, pieces in enumerate(self._pieces):
            text, last = "".join(pieces), self._last[n]
            choice: dict[str, Any] = {
                "index": n,
                "finish_reason": last.finish,
                "stop_reason": last.stop_reason,
            }
            if self._asked.is_chat:
                choice["message"] = {"role": "assistant", "content": text}
            else:
                choice["text"] = text
            if self._asked.with_tokens:  # a token each, but for what was held back a moment
                choice["logprobs"] = {"tokens": pieces}
            choices.append(choice)
        usage = _usage(prompt_tokens, completion_tokens)
        _send_page(self._connection, {"model": self._model, "choices": choices, "usage": usage})


class _Streamed:
    """A reply as server-sent events, a chunk for each token."""

    def __init__(self, connection: socket.socket, asked: _Asked, model: str) -> None:
        self._connection = connection
        self._asked = asked
        self._model = model
        self.has_begun = False

    def add(self, written: Written) -> None:
        if not written.text and written.finish is None:
            return
        piece: dict[str, Any] = {"text": written.text}
        if self._asked.is_chat:
            piece = {"delta": {"content": written.text}}
        ends = {"finish_reason": written.finish, "stop_reason": written.stop_reason}
        self._send({"model": self._model, "choices": [{"index": written.index, **piece, **ends}]})

    def end(self, prompt_tokens: int, completion_tokens: int) -> None:
        if self._asked.with_usage:
            usage = _usage(prompt_tokens, completion_tokens)
            self._send({"model": self._model, "choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._connection.sendall(b"0\r\n\r\n")

    def _send(self, event: object) -> None:
        self._chunk(b"data: %s\n\n" % json.dumps(event).encode())

    def _chunk(self, data: bytes) -> None:
        head = b""
        if not self.has_begun:
            self.has_begun = True
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        self._connection.sendall(head + b"%x\r\n%s\r\n" % (len(data), data))


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _failure(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}


def _send_page(connection: socket.socket, body: object, status: int = 200) -> None:
    data = json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status} Whatever\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection.sendall(head.encode() + data)


def _read_request(connection: socket.socket) -> tuple[str, str, bytes] | None:
    """Method, path and body; None if the client hung up."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(65536)
        if not received or len(data) > _MAX_HEAD:
            return None
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    while len(body) < int(fields.get("content-length", 0)):
        received = connection.recv(65536)
        if not received:
            return None
        body += received
    method, path, *_ = line.split(" ")
    return method, path, body
