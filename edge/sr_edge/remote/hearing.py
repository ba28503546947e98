"""All that one reply says, without a seam: for a trial, of which nobody reads a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sr_edge.remote.failure import FailedError
from sr_edge.remote.probe import Heard
from sr_edge.remote.reply import DONE, ReplyError, error_text, finish_reason, parse_object
from sr_edge.remote.sse import SseDecoder, SseLimitError


def hear(chunks: Iterator[bytes], hurry: Callable[[], None]) -> Heard:
    """Read to its end, a stream or a whole. An error inside of it is a refusal.

    Args:
        hurry: called when a finish reason was seen: usage may come, but need not.
    Raises:
        FailedError: it was cut before that.
    """
    heard = _Heard()
    data = b""
    decoder = SseDecoder()
    try:
        for chunk in chunks:
            data += chunk
            was_over = heard.is_over
            for event in decoder.push(chunk):
                heard.push(event.data.strip())
            if heard.is_done:
                return heard.result()
            if heard.is_over and not was_over:
                hurry()
        for event in decoder.flush():
            heard.push(event.data.strip())
        if not heard.num_events:  # it is no stream
            heard.push(data.decode("utf-8", "replace"))
    except FailedError:
        if not heard.is_over:  # it was cut
            raise
    except (ReplyError, SseLimitError):
        pass  # what came before it may be enough
    return heard.result()


class _Heard:
    """The one that grows."""

    def __init__(self) -> None:
        self.is_over = False
        """A finish reason was seen."""
        self.is_done = False
        """Nothing more comes."""
        self.num_events = 0
        self._error: str | None = None
        self._text = ""
        self._reasoning = ""
        self._finish: str | None = None
        self._has_usage = False

    def push(self, data: str) -> None:
        self.num_events += bool(data)
        if data == DONE:
            self.is_done = True
        elif data and self._error is None:
            self._read(parse_object(data))

    def result(self) -> Heard:
        if self._error is not None:
            return Heard(400, self._error)
        return Heard(200, "", self._text, self._reasoning, self._finish, self._has_usage)

    def _read(self, body: Mapping[str, Any]) -> None:
        if body.get("error"):
            self._error, self.is_done = error_text(body), True
            return
        self._has_usage = self._has_usage or isinstance(body.get("usage"), Mapping)
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, Mapping):
            return
        part = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        self._text += _text(part, "content")
        self._reasoning += _text(part, "reasoning_content") or _text(part, "reasoning")
        reason = finish_reason(choice)
        if reason is not None:
            self._finish, self.is_over = reason, True


def _text(part: object, name: str) -> str:
    value = part.get(name) if isinstance(part, Mapping) else None
    return value if isinstance(value, str) else ""
