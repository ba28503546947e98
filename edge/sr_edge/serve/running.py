"""The server's life: bound before anything is loaded, ready when it says so, and stopped from any thread."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from sr_edge.errors import UsageError
from sr_edge.serve.connections import MAX_HEAD_BYTES, Connection, Patience, connection_class

_SEND_BUFFER = 256 * 1024
"""Of each connection, in the kernel: a client that reads nothing is noticed once it is full."""
_BACKLOG = 1024
_STOP_SECONDS = 3
"""For connections to end by themselves."""


def bind(host: str, port: int, *, beyond_loopback: bool = False) -> socket.socket:
    """Take the address, without listening yet.

    Args:
        host: an IP address, or `localhost`; nothing is looked up.
        port: 0 for any that is free.
    Raises:
        UsageError: it cannot be had, or would let others in and `beyond_loopback` does not say so.
    """
    address = _address(host)
    if not address.is_loopback and not beyond_loopback:
        raise UsageError(
            f"--host {host} would let other machines in: leave it out, or add --beyond-loopback if they may, "
            "with --allow-host for each name that they use"
        )
    is_six = address.version == 6
    family = socket.AF_INET6 if is_six else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if sys.platform != "win32":  # where it would let two programs listen at once
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_six:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)  # connections inherit it
        bound.bind((str(address), port))
    except OSError as error:
        bound.close()
        raise _cannot_listen(error, host, port) from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = bound.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        address = ipaddress.ip_address("::1" if address.version == 6 else "127.0.0.1")
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"


class HttpServer(uvicorn.Server):
    """Answers at a bound socket from `run` until `stop`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        patience: Patience,
        refused: Callable[[int], None],
        ready: Callable[[], None],
        closing: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        """Args:
        refused: told the status of responses that `app` does not see.
        ready: called once, when connections are taken.
        closing: called on another thread before connections are ended; answers end with it.
        say: gets lines for whoever runs the server.
        """
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_class(patience, refused),
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=patience.idle,  # type: ignore[arg-type]  # parts of a second are fine
                timeout_graceful_shutdown=_STOP_SECONDS,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            )
        )
        self._ready = ready
        self._closing = closing
        self._say = say

    def stop(self) -> None:
        """From any thread."""
        self.should_exit = True  # looked at ten times a second

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._complain)
        try:
            await super().startup(sockets)
        except OSError as error:  # another program was bound too, and listened first
            assert sockets
            raise _cannot_listen(error, *sockets[0].getsockname()[:2]) from None
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self._closing)
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            assert isinstance(connection, Connection)
            connection.cut()
        await asyncio.sleep(0)  # in which their sockets are closed

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are heard by the command, as in the other commands."""
        yield

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        what = context.get("message", "")
        self._say(f"{what}: {type(error).__name__}: {error}" if error else what)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address("127.0.0.1" if host.lower() == "localhost" else host.strip("[]"))
    except ValueError:
        raise UsageError(f"--host {host} is no address: write one such as 127.0.0.1 or ::1") from None


def _cannot_listen(error: OSError, host: str, port: int) -> UsageError:
    where = f"{host} port {port}"
    match error.errno:
        case errno.EADDRINUSE:
            return UsageError(
                f"{where} is taken, perhaps by another `sr-edge serve`: end that one, or choose another with "
                "--port (0: any that is free)"
            )
        case errno.EACCES:
            return UsageError(f"{where} may not be used by this user: choose one above 1023 with --port")
        case errno.EADDRNOTAVAIL:
            return UsageError(f"this machine has no address {host}: leave --host out, or name one of its own")
    return UsageError(f"cannot listen at {where}: {error.strerror}")
