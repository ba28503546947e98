"""A real server on loopback, within the test's own process, and clients that send it bytes."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

from sr_edge.local import SamplerSettings
from sr_edge.serve.app import Bounds, Document, make_app
from sr_edge.serve.connections import Patience
from sr_edge.serve.guard import names_of
from sr_edge.serve.metrics import Metrics
from sr_edge.serve.requests import RequestLimits, model_ids
from sr_edge.serve.running import HttpServer, bind

TOKEN = "t" * 43
PAGE = Document(b"<!doctype html><title>sr-edge</title>", (("content-type", "text/html; charset=utf-8"),))
PATIENT = Patience(linger=0.5)
BOUNDS = Bounds()


@dataclass
class Served:
    port: int
    desk: Any
    metrics: Metrics
    server: HttpServer
    said: list[str]
    """Lines for whoever runs the server."""

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)


@contextmanager
def serving(
    desk: Any,
    *,
    page: Document = PAGE,
    patience: Patience = PATIENT,
    bounds: Bounds = BOUNDS,
    hosts=(),
    origins=(),
) -> Iterator[Served]:
    bound = bind("127.0.0.1", 0)
    port = bound.getsockname()[1]
    metrics = Metrics(desk.figures)
    ids = model_ids(desk.name, has_big=desk.big is not None)
    said: list[str] = []
    app = make_app(
        desk,
        limits=RequestLimits(models=ids, sampling=SamplerSettings(), max_tokens=4096),
        names=names_of(port, hosts=hosts, origins=origins),
        token=TOKEN,
        metrics=metrics,
        page=page,
        openapi={"openapi": "3.1.0"},
        bounds=bounds,
        say=said.append,
    )
    ready = threading.Event()
    server = HttpServer(
        app,
        patience=patience,
        refused=lambda status: metrics.responded("none", status),
        ready=ready.set,
        closing=desk.close,
        say=said.append,
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield Served(port, desk, metrics, server, said)
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


@dataclass(frozen=True)
class Got:
    status: int
    headers: Mapping[str, str]
    """Names in small letters."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """Of an error in OpenAI's shape, which is checked to be one."""
        assert self.headers["content-type"] == "application/json"
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return error["code"]


def connect(port: int, *, timeout: float = 10.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout)


def exchange(port: int, data: bytes, *, method: str = "GET") -> Got:
    """Send these bytes, and read one response."""
    with connect(port) as wire:
        with suppress(OSError):  # refused before it was sent whole: the response is there all the same
            wire.sendall(data)
        return read(wire, method=method)


def read(wire: socket.socket, *, method: str = "GET") -> Got:
    response = HTTPResponse(wire, method=method)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Got(response.status, headers, response.read())


def request(
    port: int,
    target: str = "/v1/models",
    *,
    method: str = "GET",
    host: str | None = None,
    token: str | None = TOKEN,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> bytes:
    """A request as a well-behaved client writes it, but for what is named."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host or f'127.0.0.1:{port}'}"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    named = dict(headers or {})
    if body is not None:
        named = {"Content-Type": "application/json", "Content-Length": str(len(body)), **named}
    lines += [f"{name}: {value}" for name, value in named.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chat(port: int, text: str = "Hi.", *, headers: Mapping[str, str] | None = None, **more: Any) -> bytes:
    body = {"model": "scripted-small", "messages": [{"role": "user", "content": text}], **more}
    encoded = json.dumps(body).encode()
    return request(port, "/v1/chat/completions", method="POST", headers=headers, body=encoded)


def until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)
