"""A scripted server on bare sockets, for testing what a client does when a server fails.

An HTTP framework would repair the faults: it completes chunks, counts lengths, closes in order. Here a reply
is a list of operations on one socket, and nothing is sent that the script does not say:

    >>> import http.client
    >>> cut = [head(), COMPLETIONS.text("1 + 1 "), RST]
    >>> with FaultEndpoint(cut, page({"error": {"message": "busy"}}, 503)) as server:
    ...     for _ in range(2):
    ...         client = http.client.HTTPConnection(server.where)
    ...         client.request("POST", "/v1/completions", "{}")
    ...         print(client.getresponse().status)
    ...         client.close()
    200
    503
    >>> [request.path for request in server.requests]
    ['/v1/completions', '/v1/completions']

Each request is answered by the next script. What came in is recorded by connection and by request, and so is
whether and when the client hung up. A script can be a function of the request, where the reply depends on it.

Operations: `Send`, `Sleep`, `Slice`, `Await`, `Loop`, and the constants `HANG`, `FIN`, `RST`, `HALF_CLOSE`,
`AT_ONCE`, `READ`. Functions make a `Send`, or a list of operations, of what is made of more: `head`, `page`,
`failure`, `chunk`, `chunked`, `sse`, `delta`, `usage`. `COMPLETIONS` and `CHAT` are the two conventions in
which text is streamed.

Standard library only; it knows nothing of sr-edge, nor of any test runner.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeAlias

_LINGER = 2.0  # seconds for the client to hang up after we did
_LOOK = 0.005  # seconds between two looks at whether the client is still there
_PATIENCE = 0.1  # seconds that a client may take nothing before we look whether it is still there


# --- operations -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    data: bytes


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: float


@dataclass(frozen=True, slots=True)
class Slice:
    """From here on every `size` bytes are a write of their own; 0 sends whole again."""

    size: int
    pause: float = 0.0
    """Seconds between two writes."""


@dataclass(frozen=True, slots=True)
class Await:
    """Until somebody sets the event."""

    told: threading.Event
    seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Loop:
    """Some operations again and again."""

    ops: tuple[Op, ...]
    times: int | None = None
    """None: until the client hangs up."""


@dataclass(frozen=True, slots=True)
class Act:
    """One of the constants below."""

    name: Literal["hang", "fin", "rst", "half close", "at once", "read"]


Op: TypeAlias = Send | Sleep | Slice | Await | Loop | Act

HANG = Act("hang")
"""Say nothing more until the client hangs up."""
FIN = Act("fin")
"""Close in order."""
RST = Act("rst")
"""Close by a reset."""
HALF_CLOSE = Act("half close")
"""No more is sent, but what comes is still read."""
AT_ONCE = Act("at once")
"""As the first operation: do not wait for a request, but run the script as soon as a connection stands."""
READ = Act("read")
"""Read the request now, after `AT_ONCE`."""


@dataclass(frozen=True, slots=True)
class Request:
    line: str
    headers: dict[str, str]
    """Names in small letters."""
    data: bytes
    connection: int
    """The how-manieth connection it came on, from 1."""
    at: float = 0.0
    """When it was read to its end, on the monotonic clock."""

    @property
    def method(self) -> str:
        return self.line.partition(" ")[0]

    @property
    def path(self) -> str:
        return self.line.split(" ")[1]

    @property
    def body(self) -> Any:
        return json.loads(self.data)


Script: TypeAlias = Sequence[Op] | Callable[[Request], Sequence[Op]]


# --- what to send ---------------------------------------------------------------------------------------


def head(status: int = 200, kind: str = "text/event-stream", **headers: Any) -> Send:
    """A reply's head. Without a length or chunks, its body lasts until `FIN`.

    Args:
        headers: an underscore stands for a hyphen: `Retry_After=3`.
    """
    fields = {"Content-Type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return Send(f"HTTP/1.1 {status} Whatever\r\n{lines}\r\n".encode())


def page(body: object, status: int = 200, kind: str = "application/json", **headers: Any) -> list[Send]:
    """A whole reply of a known length, after which the connection stays; anything but text goes as JSON."""
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return [head(status, kind, Content_Length=len(data), **headers), Send(data)]


def failure(status: int, message: str = "no", *, code: str | None = None, **headers: Any) -> list[Send]:
    """An error page as OpenAI's servers write it."""
    return page({"error": {"message": message, "type": "error", "code": code}}, status, **headers)


def chunk(data: bytes) -> Send:
    """One chunk of a chunked body; no data is the last one."""
    return Send(b"%x\r\n%s\r\n" % (len(data), data))


def chunked(*sends: Send) -> list[Send]:
    """The same bytes as one chunked reply, after which the connection stays."""
    return [head(Transfer_Encoding="chunked"), *(chunk(send.data) for send in sends), chunk(b"")]


def sse(data: object, *, type: str | None = None, id: str | None = None, end: str = "\n") -> Send:
    """One server-sent event; anything but text goes as JSON."""
    text = data if isinstance(data, str) else json.dumps(data)
    fields = [("event", type), ("id", id), ("data", text)]
    lines = [f"{name}: {value}{end}" for name, value in fields if value is not None]
    return Send("".join([*lines, end]).encode())


def usage(prompt_tokens: int, completion_tokens: int) -> Send:
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return sse({"choices": [], "usage": counts})


DONE = sse("[DONE]")


@dataclass(frozen=True, slots=True)
class Convention:
    """How a server streams text: the two that every OpenAI-compatible server speaks one of."""

    name: Literal["completions", "chat"]

    @property
    def path(self) -> str:
        return "/v1/completions" if self.name == "completions" else "/v1/chat/completions"

    def choice(self, piece: object, finish: str | None = None, index: int = 0) -> dict[str, Any]:
        if self.name == "completions":
            return {"index": index, "text": piece, "finish_reason": finish}
        return {"index": index, "delta": {"content": piece}, "finish_reason": finish}

    def text(self, piece: object, finish: str | None = None, index: int = 0) -> Send:
        """An event with a piece of text."""
        return sse({"choices": [self.choice(piece, finish, index)]})

    def finish(self, reason: str | None = "stop") -> Send:
        """An event without text but with a finish reason."""
        return self.text("", reason)

    def stream(self, *pieces: str) -> list[Send]:
        """A reply up to its end, but without hanging up."""
        return [head(), *map(self.text, pieces), self.finish(), DONE]

    def whole(self, text: str, finish: str | None = "stop") -> dict[str, Any]:
        """The body of a reply that is no stream."""
        if self.name == "completions":
            choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": finish}
        else:
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": finish}
        return {"choices": [choice]}


COMPLETIONS = Convention("completions")
CHAT = Convention("chat")


def delta(finish: str | None = None, **fields: object) -> Send:
    """An event of chat completions with any fields: `delta(reasoning_content="so")`."""
    return sse({"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]})


# --- the server -----------------------------------------------------------------------------------------


class UnscriptedRequestError(AssertionError):
    """The client asked more often than the test has scripts for."""


@dataclass(eq=False)
class Connection:
    """One connection as the server sees it; a record that grows while it lasts."""

    number: int
    opened_at: float
    requests: list[Request] = field(default_factory=list)
    received: int = 0
    """Bytes."""
    sent: int = 0
    acted_at: float = 0.0
    """When the server last sent or closed."""
    left_at: float | None = None
    """When the client was seen to have hung up."""
    left: threading.Event = field(default_factory=threading.Event)
    tls_error: str | None = None


class FaultEndpoint:
    """Listens on loopback from `__enter__` to `__exit__`, on a port of its own."""

    def __init__(
        self,
        *scripts: Script,
        then: Script | None = None,
        pages: Mapping[str, Script] | None = None,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Args:
        scripts: for the requests, in order.
        then: for all requests after those; None makes them an error of the test.
        pages: from paths to scripts, for requests that use up none of the others, such as "/v1/models".
        host: an address of this machine: "127.0.0.1" or "::1".
        tls: what to show to clients of https.
        """
        self.requests: list[Request] = []
        self.client_hung_up = threading.Event()
        """A client has hung up, be it after all it wanted or in the middle."""
        self.unscripted: list[Request] = []
        self._scripts = list(scripts)
        self._then = then
        self._pages = dict(pages or {})
        self._tls = tls
        self._records: list[Connection] = []
        self._lock = threading.Lock()
        self._is_closed = False
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=16)
        self._address = self._listener.getsockname()

    @property
    def host(self) -> str:
        return str(self._address[0])

    @property
    def port(self) -> int:
        return int(self._address[1])

    @property
    def where(self) -> str:
        """Host and port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://{self.where}"

    @property
    def connections(self) -> list[Connection]:
        return list(self._records)

    @property
    def posts(self) -> list[Request]:
        return [request for request in self.requests if request.method == "POST"]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, *args: object) -> None:
        """Hang up on everybody.

        Raises:
            UnscriptedRequestError: there was a request without a script, and nothing else went wrong.
        """
        self._is_closed = True
        with self._lock:
            sockets = [self._listener, *self._sockets]
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()
        if kind is None and self.unscripted:
            lines = ", ".join(request.line for request in self.unscripted)
            raise UnscriptedRequestError(f"no script was left for: {lines}. Give one more, or `then=`.")

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="fault endpoint", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = self._listener.accept()
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._sockets.append(accepted)
                    if self._is_closed:
                        return
                    record = Connection(len(self._records) + 1, time.monotonic())
                    self._records.append(record)
                self._start(self._serve, accepted, record)

    def _serve(self, accepted: socket.socket, record: Connection) -> None:
        try:
            connection = self._shake_hands(accepted, record)
            if connection is not None:
                _Serving(self, connection, record).run()
        except OSError:  # the client is gone, or the test is over
            pass
        if not self._is_closed:
            self._mark_left(record)

    def _shake_hands(self, accepted: socket.socket, record: Connection) -> socket.socket | None:
        if self._tls is None:
            return accepted
        try:
            connection = self._tls.wrap_socket(accepted, server_side=True)
        except (OSError, ValueError) as error:
            record.tls_error = str(error)
            accepted.close()
            return None
        with self._lock:
            self._sockets.append(connection)  # it took the accepted one's descriptor away
        return connection

    def _mark_left(self, record: Connection) -> None:
        if record.left_at is None:
            record.left_at = time.monotonic()
        record.left.set()
        self.client_hung_up.set()

    def _takes_at_once(self) -> bool:
        with self._lock:
            first = self._scripts[0] if self._scripts else self._then
            return isinstance(first, Sequence) and bool(first) and first[0] == AT_ONCE

    def _next_script(self, request: Request | None) -> Script | None:
        with self._lock:
            if request is not None and request.path in self._pages:
                return self._pages[request.path]
            if self._scripts:
                return self._scripts.pop(0)
            if self._then is None and request is not None:
                self.unscripted.append(request)
            return self._then


class _Serving:
    """One connection being served, on a thread of its own."""

    def __init__(self, server: FaultEndpoint, connection: socket.socket, record: Connection) -> None:
        self._server = server
        self._connection = connection
        self._record = record
        self._slice = Slice(0)

    def run(self) -> None:
        while True:
            request: Request | None = None
            if not self._server._takes_at_once():
                request = self._read_request()
                if request is None:
                    self._server._mark_left(self._record)
                    return
            script = self._server._next_script(request)
            if script is None:
                self._close()
                return
            if not isinstance(script, Sequence):
                assert request is not None
                script = script(request)
            self._slice = Slice(0)
            if not all(self._do(op) for op in script):
                return

    def _do(self, op: Op) -> bool:
        """Returns whether the connection is still open."""
        match op:
            case Send():
                self._send(op.data)
            case Sleep():
                self._wait(threading.Event(), op.seconds)
            case Await():
                self._wait(op.told, op.seconds)
            case Slice():
                self._slice = op
            case Loop():
                return all(self._do(one) for one in _repeated(op))
            case Act():
                return self._act(op)
        return True

    def _act(self, act: Act) -> bool:
        self._record.acted_at = time.monotonic()
        match act.name:
            case "hang":
                while self._receive():
                    pass
                self._server._mark_left(self._record)
                return False
            case "fin":
                self._close()
                return False
            case "rst":
                self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._connection.close()
                return False
            case "half close":
                self._connection.shutdown(socket.SHUT_WR)
            case "read":
                return self._read_request() is not None
            case "at once":
                pass
        return True

    def _send(self, data: bytes) -> None:
        size = self._slice.size or len(data) or 1
        for at in range(0, len(data), size):
            self._write(data[at : at + size])
            self._record.sent += len(data[at : at + size])
            self._record.acted_at = time.monotonic()
            if self._slice.pause:
                self._wait(threading.Event(), self._slice.pause)

    def _write(self, data: bytes) -> None:
        """As `sendall`, but a client that hung up is noticed while it takes nothing any more."""
        if isinstance(self._connection, ssl.SSLSocket):
            self._connection.sendall(data)
            return
        rest = memoryview(data)
        while rest:
            if select.select([], [self._connection], [], _PATIENCE)[1]:
                with contextlib.suppress(BlockingIOError):
                    rest = rest[self._connection.send(rest, socket.MSG_DONTWAIT) :]
            else:
                self._look()
                if self._record.left_at is not None:
                    raise ConnectionResetError("the client hung up")

    def _wait(self, told: threading.Event, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not told.wait(min(_LOOK, max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until or self._server._is_closed:
                return
            self._look()

    def _look(self) -> None:
        """Note it if the client hung up meanwhile."""
        if self._record.left_at is not None or isinstance(self._connection, ssl.SSLSocket):
            return
        try:
            if select.select([self._connection], [], [], 0)[0] and not self._connection.recv(
                1, socket.MSG_PEEK
            ):
                self._server._mark_left(self._record)
        except (OSError, ValueError):
            self._server._mark_left(self._record)

    def _close(self) -> None:
        """In order: what is on its way arrives, and the client's own close is seen."""
        self._connection.shutdown(socket.SHUT_WR)
        self._connection.settimeout(_LINGER)
        if not self._receive():
            self._server._mark_left(self._record)
        self._connection.close()

    def _receive(self) -> bytes:
        data = self._connection.recv(65536)
        self._record.received += len(data)
        return data

    def _read_request(self) -> Request | None:
        """None if the client hung up before it had sent all of it."""
        data = b""
        while b"\r\n\r\n" not in data:
            received = self._receive()
            if not received:
                return None
            data += received
        top, _, body = data.partition(b"\r\n\r\n")
        line, *fields = top.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        while len(body) < int(headers.get("content-length", 0)):
            received = self._receive()
            if not received:
                return None
            body += received
        request = Request(line, headers, body, self._record.number, time.monotonic())
        with self._server._lock:
            self._record.requests.append(request)
            self._server.requests.append(request)
        return request


def _repeated(loop: Loop) -> Iterator[Op]:
    times = 0
    while loop.times is None or times < loop.times:
        yield from loop.ops
        times += 1


# --- ports where nobody answers -------------------------------------------------------------------------


def closed_port(host: str = "127.0.0.1") -> int:
    """A port of this machine on which nobody listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """The URL of a listener whose queue is full: it neither accepts a connection nor refuses it."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield "http://{}:{}".format(*listener.getsockname())
