"""Server-sent events, decoded as their bytes arrive. Pure: any cut of the bytes gives the same events.

Framing only: what the data means is the reader's affair. Unlike a browser, we let the last event be used
when the stream ends without the blank line that should follow it (`flush`): servers do send it so. And a
field named `error` is an event of that type: llama.cpp's server told errors that way until September 2025.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_LINE = 1 << 20  # bytes
MAX_EVENT = 2 << 20  # bytes of data in one event

_BLANK_LINES = re.compile(rb"\n{3,}")
_BOM = b"\xef\xbb\xbf"


class SseLimitError(ValueError):
    """A line or an event is larger than any sane server sends."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    data: str
    type: str = "message"
    id: str = ""
    """The event's own: unlike a browser's, it is not that of an earlier event."""


class SseDecoder:
    """Holds the unfinished line and the unfinished event between two pushes."""

    def __init__(self, *, max_line: int = MAX_LINE, max_event: int = MAX_EVENT) -> None:
        self._max_line = max_line
        self._max_event = max_event
        self._line = bytearray()
        self._data: list[str] = []
        self._size = 0  # bytes in _data
        self._type = ""
        self._id = ""
        self._after_cr = False
        self._first_line = True

    def push(self, data: bytes) -> Iterator[ServerSentEvent]:
        """The events that `data` completes. A generator: iterate over it before the next push.

        Raises:
            SseLimitError: after the events before the one that is too large.
        """
        if not data:
            return
        if self._after_cr:  # that CR has ended its line already: its LF means nothing more
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if b"\n\n\n" in data:
            data = _BLANK_LINES.sub(b"\n\n", data)  # the third says nothing, and a flood of them costs time
        for line in data.splitlines(keepends=True):  # of bytes: splits at CR, LF and CRLF only
            content = line.rstrip(b"\r\n")
            self._after_cr = line.endswith(b"\r")
            if len(self._line) + len(content) > self._max_line:
                raise SseLimitError(f"a line of the event stream is longer than {self._max_line} bytes")
            self._line += content
            if len(content) < len(line):
                yield from self._end_line()

    def flush(self) -> Iterator[ServerSentEvent]:
        """The event that the end of the stream left without its blank line, if any."""
        if self._line:
            yield from self._end_line()
        yield from self._end_event()

    def _end_line(self) -> Iterator[ServerSentEvent]:
        line = bytes(self._line)
        self._line.clear()
        if self._first_line:
            line = line.removeprefix(_BOM)
            self._first_line = False
        if not line:
            yield from self._end_event()
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name in (b"data", b"error"):
            if name == b"error":
                self._type = "error"
            self._size += len(value) + 1
            if self._size > self._max_event:
                raise SseLimitError(f"an event of the stream is larger than {self._max_event} bytes")
            self._data.append(value.decode("utf-8", "replace"))
        elif name == b"event":
            self._type = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")

    def _end_event(self) -> Iterator[ServerSentEvent]:
        event = ServerSentEvent("\n".join(self._data), self._type or "message", self._id)
        has_data = bool(self._data)
        self._data, self._size, self._type, self._id = [], 0, "", ""
        if has_data:
            yield event
