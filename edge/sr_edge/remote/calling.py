"""Requests for one purpose, one after the other, on a line that can be hung up in between."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sr_edge.remote.exchange import HungUpError, Reply, Stage
from sr_edge.remote.failure import (
    CONNECTION_ERRORS,
    FailedError,
    Failure,
    RefusedError,
    of_connection,
    of_status,
)
from sr_edge.remote.server import Server

if TYPE_CHECKING:
    from sr_edge.remote.line import Line

MAX_BODY = 8 << 20  # bytes of one reply
_MAX_SMALL_BODY = 1 << 20  # bytes of an error page or a list that are looked at


class Call:
    """One thread sends and reads, any thread may hang up."""

    def __init__(self, server: Server, *, tell: Callable[[Stage], None], timeout: float) -> None:
        """Args:
        tell: how far each request has come.
        timeout: seconds for each; a backstop behind the caller's deadlines.
        """
        self._server = server
        self._tell = tell
        self._timeout = timeout
        self._lock = threading.Lock()
        self._line: Line | None = None
        self._is_hung_up = False
        self.was_sent_twice = False
        """The last request: the server had dropped the connection that was kept from the one before."""

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """A reply that is a 200, its body unread.

        Args:
            path: behind the endpoint's base.
        Raises:
            RefusedError: another status.
            FailedError: no reply.
            HungUpError, OfflineError
        """
        reply = self.send(method, path, body)
        if reply.status == 200:
            return reply
        server, page = self._server, self.small_body(reply)
        failure = of_status(
            reply.status,
            reply.headers,
            page,
            where=server.site.where,
            url=server.site.base + path,
            model=server.model,
            has_key=server.has_key,
            now=time.time(),
        )
        raise RefusedError(failure, reply.status, page)

    def send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """A reply of any status, its body unread.

        Raises:
            FailedError, HungUpError, OfflineError
        """
        server = self._server
        headers, data = server.headers(), None
        if body is not None:
            # A lone surrogate, as a command line can hold it, is no reason not to ask.
            data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
            headers["Content-Type"] = "application/json"
        target, self.was_sent_twice = server.site.path + path, False
        with self._failing():
            while True:
                line = self._usable_line()
                try:
                    return line.send(method, target, headers, data, timeout=self._timeout, tell=self._tell)
                except ConnectionError:
                    if line.is_fresh:
                        raise
                    self.was_sent_twice = True
                    self._let_go(line)

    def chunks(self, reply: Reply) -> Iterator[bytes]:
        """The body as it arrives, while it is of a sane size.

        Raises:
            FailedError, HungUpError
        """
        size = 0
        with self._failing():
            for chunk in reply.chunks:
                size += len(chunk)
                if size > MAX_BODY:
                    line = f"the reply of {self._server.site.where} is larger than {MAX_BODY >> 20} MiB"
                    raise FailedError(Failure(line, "unreachable"))
                yield chunk

    def small_body(self, reply: Reply) -> str:
        """The beginning of the body of a refusal or a list; what came of it, where it was cut."""
        data = b""
        with contextlib.suppress(FailedError):
            for chunk in self.chunks(reply):
                data += chunk
                if len(data) > _MAX_SMALL_BODY:
                    break
        return data.decode("utf-8", "replace")

    def hurry(self) -> None:
        """All was said: what is still to come of the reply has a moment."""
        if self._line is not None:
            self._line.hurry(self._server.deadlines.linger)

    def drain(self, reply: Reply) -> None:
        """Read what is left of a reply that is complete, so that its connection can be kept."""
        if not reply.ends_by_itself:
            return
        self.hurry()
        with contextlib.suppress(FailedError, HungUpError):
            for _ in self.chunks(reply):
                pass

    def hang_up(self) -> None:
        """From any thread, at any moment: nothing more is sent or read. Returns at once."""
        with self._lock:
            self._is_hung_up = True
            if self._line is not None:
                self._line.hang_up()

    def renew(self) -> None:
        """The next request has a connection of its own."""
        if self._line is not None:
            self._let_go(self._line)

    def end(self) -> None:
        """Keep the line for others, if it is clean."""
        line = self._line
        if line is not None and line.can_send and not self._is_hung_up:
            with self._lock:
                self._line = None
            self._server.keep_line(line)
        elif line is not None:
            self._let_go(line)

    def _let_go(self, line: Line) -> None:
        with self._lock:
            self._line = None
        line.close()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """What a line raises, in words."""
        try:
            yield
        except CONNECTION_ERRORS as error:
            raise FailedError(of_connection(error, self._server.site.where)) from error

    def _usable_line(self) -> Line:
        if self._line is not None and not self._line.can_send:
            self._let_go(self._line)
        if self._line is None:
            line = self._server.take_line()
            with self._lock:
                self._line = line
                if self._is_hung_up:
                    line.hang_up()
        if self._is_hung_up:
            raise HungUpError
        return self._line
