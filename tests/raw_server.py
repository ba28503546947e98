"""A scripted HTTP endpoint on loopback, on bare sockets: an HTTP framework would repair the faults.

`RawServer([*stream("one ", "two"), FIN])` answers the first request with two pieces of text and hangs up.
Each request runs the next script; what was asked, and whether the client hung up, is recorded.
"""

import contextlib
import json
import socket
import struct
import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Send:
    data: bytes


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Wait:
    """Until the test says so."""

    told: threading.Event


@dataclass(frozen=True)
class Op:
    name: str


HANG = Op("hang")  # until the client hangs up
FIN = Op("fin")  # close in order
RST = Op("rst")  # close by a reset


def head(status=200, kind="text/event-stream", **headers):
    """A reply's head. Without a length or chunks, its body lasts until FIN."""
    fields = {"Content-Type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return Send(f"HTTP/1.1 {status} Whatever\r\n{lines}\r\n".encode())


def page(body, status=200, kind="application/json", **headers):
    """A whole reply of a known length, after which the connection stays."""
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return [head(status, kind, Content_Length=len(data), **headers), Send(data)]


def event(data):
    """One server-sent event; anything but text goes as JSON."""
    return Send(f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode())


def text(piece, finish=None, index=0):
    """An event of raw completions."""
    return event({"choices": [{"index": index, "text": piece, "finish_reason": finish}]})


def delta(finish=None, **fields):
    """An event of chat completions."""
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]})


def usage(prompt_tokens, completion_tokens):
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return event({"choices": [], "usage": counts})


DONE = event("[DONE]")


def stream(*pieces):
    """A stream of raw completions up to its end, but without hanging up."""
    return [head(), *map(text, pieces), text("", finish="stop"), DONE]


def chunked(*sends):
    """The same bytes as one chunked reply, after which the connection stays."""
    chunks = [Send(b"%x\r\n%s\r\n" % (len(send.data), send.data)) for send in sends]
    return [head(Transfer_Encoding="chunked"), *chunks, Send(b"0\r\n\r\n")]


@dataclass(frozen=True)
class Request:
    line: str
    headers: dict[str, str]
    data: bytes
    connection: int
    """The how-manieth connection it came on, from 1."""

    @property
    def body(self):
        return json.loads(self.data)


class RawServer:
    def __init__(self, *scripts):
        self.requests = []
        self.client_hung_up = threading.Event()
        self._scripts = list(scripts)
        self._lock = threading.Lock()
        self._connections = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def where(self):
        return "{}:{}".format(*self._listener.getsockname())

    @property
    def url(self):
        return f"http://{self.where}"

    @property
    def connections(self):
        return len(self._connections)

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *args):
        for each in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._connections):
            each.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                number = len(self._connections)
                thread = threading.Thread(target=self._serve, args=(connection, number), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection, number):
        try:
            while (request := _read_request(connection, number)) is not None:
                with self._lock:
                    self.requests.append(request)
                    assert self._scripts, f"a request that no script is left for: {request.line}"
                    script = self._scripts.pop(0)
                if not all(self._run(connection, op) for op in script):
                    return
        except OSError:
            pass
        self.client_hung_up.set()

    def _run(self, connection, op):
        """Returns whether the connection is still open."""
        match op:
            case Send(data):
                connection.sendall(data)
            case Sleep(seconds):
                time.sleep(seconds)
            case Wait(told):
                assert told.wait(10)
            case Op("hang"):
                while connection.recv(65536):
                    pass
                self.client_hung_up.set()
                return False
            case Op("fin"):
                connection.shutdown(socket.SHUT_RDWR)
                return False
            case Op("rst"):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
                return False
        return True


def _read_request(connection, number):
    """None if the client hung up before it had sent all of it."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(65536)
        if not received:
            return None
        data += received
    top, _, body = data.partition(b"\r\n\r\n")
    line, *fields = top.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    while len(body) < int(headers.get("content-length", 0)):
        received = connection.recv(65536)
        if not received:
            return None
        body += received
    return Request(line, headers, body, number)
