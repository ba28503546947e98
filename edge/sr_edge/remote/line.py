"""One HTTP connection, on which another thread can hang up, and what its failures mean in plain words.

httpx alone does not do it: closing a response from outside leaves a blocked read blocked until its own
timeout. Shutting the socket down wakes it at once.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx


class HungUpError(Exception):
    """This side hung up before the request had left."""


class Line:
    """A client that holds one connection and keeps it between requests.

    One thread sends and reads; any thread may `hang_up`, after which the line is of no more use.
    Redirects are not followed, the environment's proxies and certificates not used.
    """

    def __init__(self, tls: ssl.SSLContext, *, connect_timeout: float, timeout: float) -> None:
        """Args:
        connect_timeout, timeout: seconds for each operation; a backstop behind the caller's deadlines.
        """
        self._client = httpx.Client(
            verify=tls,
            timeout=httpx.Timeout(timeout, connect=connect_timeout),
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=60.0),
            trust_env=False,
            follow_redirects=False,
        )
        self._lock = threading.Lock()
        self._hung_up = False
        self._socket: socket.socket | None = None
        self._ready: Callable[[], None] | None = None
        self.is_fresh = True
        """The connection was opened for the last request, not for one before it."""

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, ready: Callable[[], None]
    ) -> httpx.Response:
        """The response with its body unread; the caller closes it.

        Args:
            ready: called when there is a connection and the request is about to leave on it.
        Raises:
            httpx.TransportError: see `failure_line`.
            HungUpError: `hang_up` came first; nothing was sent.
        """
        self._ready = ready
        self.is_fresh = False
        request = self._client.build_request(
            method, url, headers=headers, content=body, extensions={"trace": self._trace}
        )
        return self._client.send(request, stream=True)

    def hang_up(self) -> None:
        with self._lock:
            self._hung_up = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # it is not connected any more
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """For the thread that sends and reads, when no response is open."""
        self._client.close()
        with self._lock:
            self._hung_up = True
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """httpcore says what it is about to do and what it has done."""
        if event == "connection.connect_tcp.started":
            if self._hung_up:
                raise HungUpError
        elif event == "connection.connect_tcp.complete":
            self.is_fresh = True
            self._adopt(info["return_value"].get_extra_info("socket"))
        elif event.endswith(".send_request_headers.started") and self._ready is not None:
            self._ready()

    def _adopt(self, connection: socket.socket) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = connection.dup()  # TLS takes the original's descriptor away
            hung_up = self._hung_up
        if hung_up:
            connection.close()
            raise HungUpError


def failure_line(error: Exception, where: str) -> str:
    """What a failed request means, and what mends it, in one line.

    Args:
        where: host and port.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"remote unreachable: the certificate of {where} is not valid for it "
                f"({cause.verify_message or cause.reason}); nothing was sent"
            )
        if isinstance(cause, ssl.SSLError):
            return f"remote unreachable: no TLS with {where} ({cause.reason}); is it http://, not https://?"
        if isinstance(cause, socket.gaierror):
            return f"remote unreachable: no address known for {where}; check the URL and the network"
    for cause in causes:
        if isinstance(cause, ConnectionRefusedError):
            return f"remote unreachable: connection refused at {where}; is the server running there?"
        if isinstance(cause, OSError) and cause.errno in _UNREACHABLE:
            return f"remote unreachable: no route to {where}; check the network"
        if isinstance(cause, ConnectionResetError | BrokenPipeError):
            return f"connection reset by {where}"
    if isinstance(error, httpx.ConnectTimeout):
        return f"remote unreachable: no connection to {where} in time; check the URL and the network"
    if isinstance(error, httpx.TimeoutException):
        return f"{where} fell silent"
    if isinstance(error, httpx.RemoteProtocolError):
        return f"{where} broke off or does not speak HTTP ({error})"
    return f"{type(error).__name__} with {where}"


_UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
