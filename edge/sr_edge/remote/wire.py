"""The socket under a line: dialled, bounded and hung up by us, whatever HTTP is doing on it.

A client library can't hang up from another thread (closing a socket leaves a blocked read blocked, shutting
it down wakes it), look at an address before a byte goes there, or bound the whole of an exchange. httpx lets
its network be replaced (`httpcore.NetworkBackend`): HTTP stays its affair, and the socket becomes ours.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpcore

from sr_edge.remote.exchange import ForbiddenPeerError, HungUpError, NoConnectionError


class Wire(httpcore.NetworkBackend):
    """Makes one connection at a time and knows it: the only owner of its socket.

    One thread dials and reads; any thread may `hang_up`.
    """

    def __init__(self, *, may_reach: Callable[[str], bool] | None, connect_timeout: float) -> None:
        """Args:
        may_reach: whether an address may be connected to; None for any, as the way to a proxy.
        connect_timeout: seconds for all addresses and TLS.
        """
        self._may_reach = may_reach
        self._connect_timeout = connect_timeout
        self._lock = threading.Lock()
        self._handle: socket.socket | None = None  # of the same connection, to shut it down with
        self.is_hung_up = False
        self.until = 0.0
        """When the exchange must be over, on the monotonic clock."""
        self.connect_until = 0.0
        self.dialling: Callable[[], None] = lambda: None
        """Called before a name is looked up."""
        self.receiving: Callable[[bytes], None] = lambda data: None
        """Called with all that comes."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to the first address that takes one; each gets its share of the time.

        Raises:
            HungUpError, ForbiddenPeerError, NoConnectionError, OSError: there is none.
        """
        self.dialling()
        self.connect_until = min(self.until, time.monotonic() + self._connect_timeout)
        self.check()
        try:
            return _Stream(self, self._dial(host, port))
        except TimeoutError as error:
            raise NoConnectionError from error

    def _dial(self, host: str, port: int) -> socket.socket:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError:  # no name can be like this
            found = []
        self.check()
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        peers = [peer for peer in found if self._may_reach is None or self._may_reach(str(peer[4][0]))]
        if not peers:
            raise ForbiddenPeerError(found[0][4][0])
        for number, (family, kind, protocol, _, address) in enumerate(peers):
            connection = socket.socket(family, kind, protocol)
            try:
                self._adopt(connection)
                connection.settimeout(left(self.connect_until) / (len(peers) - number))
                connection.connect(address)
                self.check()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection
            except OSError:
                connection.close()
                self.check()
                if number + 1 == len(peers):
                    raise
            except BaseException:
                connection.close()
                raise
        raise AssertionError("unreachable")

    def hang_up(self) -> None:
        """From any thread, at any moment."""
        with self._lock:
            self.is_hung_up = True
            if self._handle is not None:
                with contextlib.suppress(OSError):  # it is not connected any more
                    self._handle.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """For the thread that reads, once HTTP has closed its end."""
        with self._lock:
            self.is_hung_up = True
            if self._handle is not None:
                self._handle.close()
            self._handle = None

    def check(self) -> None:
        """Raises: HungUpError: somebody hung up."""
        if self.is_hung_up:
            raise HungUpError

    def has_more(self) -> bool:
        """Something came unasked, or the other side has closed."""
        assert self._handle is not None
        self._handle.setblocking(False)
        try:
            self._handle.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _adopt(self, connection: socket.socket) -> None:
        """From now on it can be hung up on."""
        with self._lock:
            if self._handle is not None:
                self._handle.close()
            self._handle = connection.dup()  # TLS takes the original's descriptor away
        self.check()


class _Stream(httpcore.NetworkStream):
    """What httpx reads from and writes to. Its own time-outs are not used."""

    def __init__(self, wire: Wire, connection: socket.socket) -> None:
        self._wire = wire
        self._socket = connection
        self._broken: ConnectionError | None = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = b""
        self._wire.check()
        try:
            self._socket.settimeout(left(self._wire.until))
            data = self._socket.recv(max_bytes)
        finally:
            if not data:
                self._wire.check()  # then it is we who hung up
        if not data and self._broken is not None:
            raise self._broken
        self._wire.receiving(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._wire.check()
        self._socket.settimeout(left(self._wire.until))
        try:
            self._socket.sendall(buffer)
        except (BrokenPipeError, ConnectionResetError) as error:
            self._broken = error  # it may have answered already

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            self._socket.settimeout(left(self._wire.connect_until))
            return _Stream(self._wire, ssl_context.wrap_socket(self._socket, server_hostname=server_hostname))
        except TimeoutError as error:
            self._socket.close()
            raise NoConnectionError from error
        except BaseException:
            self._socket.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # whether a kept connection is of no more use
            return self._wire.has_more()
        return self._socket if info == "socket" else None


def left(until: float) -> float:
    """Seconds.

    Raises:
        TimeoutError: none.
    """
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds
