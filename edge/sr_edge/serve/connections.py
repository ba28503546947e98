"""uvicorn's connections with an end to their patience: slow heads, slow readers, too many at once.

A request's head has its time, and so has every write; a body's time is the application's (`guard.JsonBody`).
What uvicorn or h11 refuse by themselves gets its status, our headers and OpenAI's shape here.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from sr_edge.serve.guard import (
    CLOSE,
    SECURITY_HEADERS,
    Refused,
    error_body,
    error_headers,
    malformed,
    misdirected,
)

MAX_HEAD_BYTES = 32 * 1024
_MAX_AHEAD_BYTES = 64 * 1024  # of requests that are sent before the last one is answered
_FOLDED = re.compile(rb"\n[ \t]")
_HEAD_END = re.compile(rb"\n\r?\n")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a connection is waited for, in seconds, and how many there may be."""

    head: float = 10.0
    """From the connection, or from the first byte of a later request, to the end of the request's head."""
    write: float = 30.0
    """Until what was written has left for the client's side."""
    idle: float = 30.0
    """Between a response and the next request."""
    linger: float = 2.0
    """What a client still sends is read and dropped for so long, so that it sees why it was refused."""
    connections: int = 256


def connection_class(patience: Patience, refused: Callable[[int], None]) -> type[asyncio.Protocol]:
    """For `uvicorn.Config(http=...)`.

    Args:
        refused: told the status of each response that the application does not see.
    """
    return cast(type[asyncio.Protocol], partial(Connection, patience=patience, refused=refused))


class Connection(H11Protocol):
    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        patience: Patience,
        refused: Callable[[int], None],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._patience = patience
        self._refused = refused
        self._late_head = _Alarm(self.loop, patience.head, self._refuse_late_head)
        self._stuck_write = _Alarm(self.loop, patience.write, self.cut)
        self._long_goodbye = _Alarm(self.loop, patience.linger, self.cut)
        self._is_leaving = False

    # --- what asyncio calls ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # From the first byte on that has not left for the client, `pause_writing` is called.
        transport.set_write_buffer_limits(high=0)
        self._wire = transport
        super().connection_made(_Outlet(transport, self._close, self._is_closing))
        open_ones, most = len(self.connections), self._patience.connections
        if open_ones > 2 * most:
            transport.abort()  # not even a word for each
        elif open_ones > most:
            self._refuse(_too_many(most))
        else:
            self._late_head.set()

    def connection_lost(self, exc: Exception | None) -> None:
        for alarm in (self._late_head, self._stuck_write, self._long_goodbye):
            alarm.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if not self._is_leaving:
            super().data_received(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck_write.set()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stuck_write.cancel()

    # --- what uvicorn calls ---

    def handle_events(self) -> None:
        if self.conn.their_state is h11.IDLE and _is_folded(self.conn.trailing_data[0]):
            self._refuse(malformed("a header goes on in a second line"))
            return
        super().handle_events()
        if self._is_closing():
            return
        ahead = len(self.conn.trailing_data[0])
        if self.conn.their_state is not h11.IDLE:
            self._late_head.cancel()
        elif ahead:
            self._late_head.set()
        cycle = self._open_cycle()
        if cycle is not None and not cycle.more_body:
            # uvicorn stops to read where a second request comes early, and would not see its client leave
            if ahead > _MAX_AHEAD_BYTES:
                self.cut()
            else:
                self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """Called for what h11 cannot read, while its exception is handled."""
        error = sys.exception()
        if "Host: header" in str(error):  # none, or several
            self._refuse(misdirected("a request has one Host header"))
        elif isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            most = f"the head of the request is larger than {MAX_HEAD_BYTES:,} bytes"
            self._refuse(Refused(431, "head_too_large", most, headers=CLOSE))
        else:
            self._refuse(malformed("this is no HTTP request that can be read"))

    def on_response_complete(self) -> None:
        if self.conn.their_state is h11.SEND_BODY and not self._is_closing():
            self._leave()  # answered before it was sent whole: the rest is not read, so nothing can follow
        super().on_response_complete()

    def shutdown(self) -> None:
        cycle = self._open_cycle()
        if self._is_leaving or (cycle is not None and cycle.more_body):  # a body that may never come
            self.cut()
        else:
            super().shutdown()

    def cut(self) -> None:
        """At once, whatever is under way."""
        self._wire.abort()

    # --- the ends ---

    def _refuse_late_head(self) -> None:
        if self.conn.trailing_data[0]:
            late = f"the head of the request was not there after {self._patience.head:g} s"
            self._refuse(Refused(408, "request_timeout", late, headers=CLOSE))
        else:
            self._wire.close()

    def _refuse(self, refused: Refused) -> None:
        """Answer in the application's place, and hang up."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self._is_closing():
            self._refused(refused.status)
            self._wire.write(_response(refused))
        cycle = self._open_cycle()
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        self._leave()

    def _leave(self) -> None:
        """Say that nothing more comes, and drop for a while what still arrives: a connection that is closed
        over unread data is reset, and the client would lose the response."""
        if self._is_closing():
            return
        self._is_leaving = True
        self._late_head.cancel()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        self._wire.write_eof()
        self._long_goodbye.set()

    def _open_cycle(self) -> RequestResponseCycle | None:
        """The request that the application is at."""
        cycle: RequestResponseCycle | None = self.cycle
        return None if cycle is None or cycle.response_complete else cycle

    def _close(self) -> None:
        if self.conn.their_state is h11.SEND_BODY:
            self._leave()
        elif not self._is_leaving:
            self._wire.close()

    def _is_closing(self) -> bool:
        return self._is_leaving or self._wire.is_closing()


class _Outlet(asyncio.Transport):
    """The transport as uvicorn sees it: `close` is ours."""

    def __init__(
        self, wire: asyncio.Transport, close: Callable[[], None], is_closing: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._wire = wire
        self._close = close
        self._is_closing = is_closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._wire.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._wire.write(data)

    def pause_reading(self) -> None:
        self._wire.pause_reading()

    def resume_reading(self) -> None:
        self._wire.resume_reading()

    def is_closing(self) -> bool:
        return self._is_closing()

    def close(self) -> None:
        self._close()


class _Alarm:
    """Rings once, so many seconds after it was first set, unless it is cancelled before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None

    def set(self) -> None:
        if self._handle is None:
            self._handle = self._loop.call_later(self._seconds, self._ring)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


def _is_folded(received: bytes) -> bool:
    """h11 joins such lines, as nobody else does any more: what it sees is not what a proxy saw."""
    end = _HEAD_END.search(received)
    return _FOLDED.search(received, 0, end.start() + 1 if end else len(received)) is not None


def _too_many(most: int) -> Refused:
    message = f"{most} connections are open, and no more are taken: close some, or try again later"
    return Refused(503, "too_many_connections", message, headers=[(b"retry-after", b"1"), *CLOSE])


def _response(refused: Refused) -> bytes:
    body = error_body(refused)
    lines = [
        b"HTTP/1.1 %d %s" % (refused.status, STATUS_PHRASES[refused.status]),
        *(name + b": " + value for name, value in [*error_headers(refused, body), *SECURITY_HEADERS]),
    ]
    return b"\r\n".join([*lines, b"", body])
