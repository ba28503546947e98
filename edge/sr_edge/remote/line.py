"""One HTTP connection, on which another thread can hang up. Only the door of `egress` makes one.

HTTP is httpx's, the socket is that of `wire`.
"""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpcore
import httpx

from sr_edge.remote.exchange import CutOffError, NoAnswerError, NoHttpError, ProxyRefusedError, Reply, Stage
from sr_edge.remote.wire import Wire

MAX_HEAD = 64 << 10  # bytes of a reply's head
THREADS = "sr-edge"
"""How the names of all threads begin that use a line."""

MAX_IDLE = 60.0  # seconds that a kept connection is trusted


class Line:
    """One connection, made when it is first used and kept between requests.

    One thread sends and reads, one request after the other; any thread may `hang_up`, after which the line is
    of no more use. Redirects are not followed, the environment's proxies and certificates not used.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        proxy: tuple[str, int] | None,
        may_reach: Callable[[str], bool],
        connect_timeout: float,
    ) -> None:
        """Args:
        tls: None speaks plain HTTP.
        proxy: host and port of one that connects us through, for TLS only.
        may_reach: whether an address that `host` resolves to may be connected to.
        connect_timeout: seconds for all addresses and TLS; a backstop behind the caller's deadlines.
        """
        assert tls is not None or proxy is None, "a proxy would read along"
        self._base = httpx.URL(scheme="http" if tls is None else "https", host=host, port=port)
        self._wire = Wire(may_reach=None if proxy else may_reach, connect_timeout=connect_timeout)
        self._client = httpx.Client(
            transport=_Transport(self._wire, tls, proxy),
            trust_env=False,
            follow_redirects=False,
            timeout=None,
        )
        self._tally = _Tally()
        self._tell: Callable[[Stage], None] = lambda stage: None
        self._idle_since: float | None = None
        self._is_used = False
        self.is_fresh = True
        """The connection was made for the last request, not for one before it."""

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        timeout: float,
        tell: Callable[[Stage], None],
    ) -> Reply:
        """The reply, with its body unread.

        Args:
            timeout: seconds for the whole exchange, body included; a backstop behind the caller's deadlines.
        Raises:
            HungUpError
            OSError, NoHttpError, ForbiddenPeerError, ProxyRefusedError: see `failure`.
        """
        self._wire.until = time.monotonic() + timeout
        self._wire.dialling, self._wire.receiving = self._dialling, self._receiving
        self._tell, self._tally, self.is_fresh = tell, _Tally(), False
        self._is_used, self._idle_since = True, None
        request = self._client.build_request(
            method, self._base.join(target), headers=headers, content=body, extensions={"trace": self._trace}
        )
        try:
            response = self._client.send(request, stream=True)
        except httpx.RemoteProtocolError as error:  # httpx reads a redirect's target, though it follows none
            raise NoHttpError(str(error)) from error
        ends_by_itself = "content-length" in response.headers or "transfer-encoding" in response.headers
        return Reply(response.status_code, dict(response.headers), ends_by_itself, self._body(response))

    @property
    def can_send(self) -> bool:
        """Whether it can carry a request, the first one or, the reply before it read to its end, the next.

        Bytes that came after that reply would pass for the next one: a line that has any is of no use.
        """
        if self._wire.is_hung_up:
            return False
        if not self._is_used:
            return True
        is_young = self._idle_since is not None and time.monotonic() - self._idle_since < MAX_IDLE
        return is_young and self._tally.is_clean and not self._wire.has_more()

    def hurry(self, seconds: float) -> None:
        """The exchange has so much time left, at most. For the thread that sends and reads."""
        self._wire.until = min(self._wire.until, time.monotonic() + seconds)

    def give(self, seconds: float) -> None:
        """The exchange has so much time from now on, whatever it had. For the thread that sends and reads."""
        self._wire.until = time.monotonic() + seconds

    def hang_up(self) -> None:
        self._wire.hang_up()

    def close(self) -> None:
        """For the thread that sends and reads."""
        self._client.close()
        self._wire.close()

    def _body(self, response: httpx.Response) -> Iterator[bytes]:
        try:
            yield from response.iter_raw()
            self._idle_since = time.monotonic()
        finally:
            response.close()

    def _dialling(self) -> None:
        self.is_fresh = True
        self._tell("dialling")

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """httpcore says what it is about to do and what it has done."""
        if event == "http11.send_request_headers.started":
            self._tally = _Tally()
            self._tell("sent")

    def _receiving(self, data: bytes) -> None:
        if not self._tally.has_begun:
            if not data:
                raise NoAnswerError
            self._tell("answered")
        self._tally.add(data)
        if self._tally.head_length > MAX_HEAD:
            raise NoHttpError(f"the head of the reply is larger than {MAX_HEAD >> 10} KiB")


class _Transport(httpx.BaseTransport):
    """One connection of httpcore's over our wire."""

    def __init__(self, wire: Wire, tls: ssl.SSLContext | None, proxy: tuple[str, int] | None) -> None:
        for name in ("httpcore.http11", "httpcore.proxy"):
            logging.getLogger(name).addFilter(_is_not_ours)
        tls = tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody: no TLS is meant here
        if proxy is None:
            self._pool = httpcore.ConnectionPool(ssl_context=tls, max_connections=1, network_backend=wire)
        else:
            self._pool = httpcore.HTTPProxy(
                httpcore.URL(scheme=b"http", host=proxy[0].encode(), port=proxy[1], target=b"/"),
                ssl_context=tls,
                max_connections=1,
                network_backend=wire,
            )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.SyncByteStream)
        try:
            response = self._pool.handle_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except httpcore.ProxyError as error:
            raise ProxyRefusedError(str(error)) from error
        except httpcore.ProtocolError as error:
            raise NoHttpError(str(error)) from error
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response))

    def close(self) -> None:
        self._pool.close()


def _is_not_ours(record: logging.LogRecord) -> bool:
    """httpcore logs all headers of a reply, and a server may send our key back in one."""
    return not (record.threadName or "").startswith(THREADS)


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._response.iter_stream()
        except httpcore.ProtocolError as error:
            raise CutOffError(str(error)) from None

    def close(self) -> None:
        self._response.close()


class _Tally:
    """Whether all that came belongs to the reply: what follows its end would pass for the next one."""

    def __init__(self) -> None:
        self._head = b""
        self._length: int | None = None  # that the head announces; None before its end, and for chunks
        self._after = 0  # bytes that followed the head
        self._last = b""
        self.has_begun = False

    def add(self, data: bytes) -> None:
        self.has_begun = True
        self._last = (self._last + data)[-_LAST_CHUNK_LENGTH:]
        if self._head.endswith(_END_OF_HEAD):
            self._after += len(data)
            return
        head, end, after = (self._head + data).partition(_END_OF_HEAD)
        self._head, self._after = head + end, len(after)
        if end:
            announced = _LENGTH.search(head)
            self._length = int(announced[1]) if announced else None

    @property
    def head_length(self) -> int:
        return len(self._head)

    @property
    def is_clean(self) -> bool:
        if self._length is not None:
            return self._after == self._length
        return self._last == _LAST_CHUNK


_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*(?=\r|$)", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_LAST_CHUNK_LENGTH = len(_LAST_CHUNK)
