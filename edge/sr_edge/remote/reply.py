"""What one reply of an OpenAI-compatible server says: the span's text, how it ended, what it used.

Pure: events or a parsed body in, text out. Both conventions are read alike, since no field of one means
something else in the other: `text` of raw completions, `content` and the two spellings of reasoning of chat.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sr_edge.remote.sse import ServerSentEvent

CLOSE_THINK = "</think>"
DONE = "[DONE]"
MIN_ECHO = 8
"""Characters. A shorter answer may well be repeated by a continuation that means it: "ha", "ha ha"."""

_FAILED = {
    "error": "the remote broke off with an error",
    "content_filter": "the remote's content filter cut it off",
    "insufficient_system_resource": "the remote ran out of resources",
}
"""Finish reasons that mean a failure. All others mean that the remote was done."""


class ReplyError(Exception):
    """The reply says that it failed. The message may quote the server: see `plain_line`."""


class UnreadableError(ReplyError):
    """The reply is not what such a server sends; where a stream ends, it may just be cut."""


class ReplyReader:
    """Folds one reply into text. Nothing is complete until `finished` or `done` says so."""

    def __init__(self, *, thinking: bool, echoes: Sequence[str] = ()) -> None:
        """Args:
        thinking: the answer so far ends inside an open think block, so reasoning continues it.
        echoes: texts that the server may repeat before it goes on.
        """
        self._thinking = thinking
        self._echo = EchoFilter(echoes)
        self._field: Literal["content", "reasoning"] | None = None  # which one speaks, inside a think block
        self.characters = 0
        """Of the span's text so far."""
        self.finished: Literal["stop", "cap"] | None = None
        """A finish reason was seen. Usage may still follow."""
        self.done = False
        """`[DONE]` was seen."""
        self.left_thought = False
        """The thought that we continue was closed: what the server goes on to write is not our span's."""
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None

    @property
    def is_complete(self) -> bool:
        return self.done or self.left_thought or self.finished is not None

    def push(self, event: ServerSentEvent) -> str | None:
        """Text that the event adds; "" if it carries content that adds none yet; None if no content.

        Raises:
            ReplyError: it reports a failure, or it is not what such a server sends.
        """
        data = event.data.strip()
        if not data or self.done or self.left_thought:
            return None
        if data == DONE:
            self.done = True
            return None
        body = parse_object(data)
        if event.type == "error":
            raise ReplyError(f"the remote reported an error: {error_text(body)}")
        return self.push_body(body)

    def push_body(self, body: Mapping[str, Any]) -> str | None:
        """As `push`, for a parsed event or a whole reply that did not come as a stream."""
        if body.get("error"):
            raise ReplyError(f"the remote reported an error: {error_text(body)}")
        self._read_usage(body.get("usage"))
        choice = _first_choice(body.get("choices"))
        if choice is None:
            return None
        text = None if self.finished else self._read_text(choice)
        self._read_finish(choice.get("finish_reason"))
        if text is not None:
            self.characters += len(text)
        return text

    def flush(self) -> str:
        """Text that was held back as a possible echo and is none, once the reply is complete."""
        text = self._echo.flush()
        self.characters += len(text)
        return text

    def _read_text(self, choice: Mapping[str, Any]) -> str | None:
        part = choice.get("delta") or choice.get("message")
        if not isinstance(part, Mapping):
            part = {"content": choice.get("text")}
        content = _text(part.get("content"))
        reasoning = _text(part.get("reasoning_content")) or _text(part.get("reasoning"))
        if not self._thinking:
            if content:
                return self._echo.push(content)
            return "" if reasoning else None
        text = ""
        if reasoning and self._field != "content":
            self._field = "reasoning"
            text = self._echo.push(reasoning)
        if content and self._field == "reasoning":
            self.left_thought = True
        elif content:
            self._field = "content"
            text += self._echo.push(content)
        return text if content or reasoning else None

    def _read_finish(self, reason: object) -> None:
        if not isinstance(reason, str):
            return
        if reason in _FAILED:
            raise ReplyError(_FAILED[reason])
        self.finished = "cap" if reason in ("length", "max_tokens") else "stop"

    def _read_usage(self, usage: object) -> None:
        if isinstance(usage, Mapping):
            self.prompt_tokens = _count(usage.get("prompt_tokens"), self.prompt_tokens)
            self.completion_tokens = _count(usage.get("completion_tokens"), self.completion_tokens)


class EchoFilter:
    """Drops the sent text where a reply repeats it at its beginning, before going on."""

    def __init__(self, echoes: Sequence[str]) -> None:
        self._echoes = sorted({e for e in echoes if len(e) >= MIN_ECHO}, key=len, reverse=True)
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is certain to be new; what may still become an echo is held back."""
        if not self._echoes:
            return text
        self._held += text
        if any(len(e) > len(self._held) and e.startswith(self._held) for e in self._echoes):
            return ""
        new = self.flush()
        self._echoes = []
        return new

    def flush(self) -> str:
        """What was held back, but for a text that it repeats in full."""
        held, self._held = self._held, ""
        return next((held[len(e) :] for e in self._echoes if held.startswith(e)), held)


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Raises:
    UnreadableError: not JSON, or not an object.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        shown = text if isinstance(text, str) else text.decode("utf-8", "replace")
        raise UnreadableError(f"the remote sent something that is not JSON: {shown}") from None
    if not isinstance(body, dict):
        raise UnreadableError(f"the remote sent JSON that is not an object: {body!r}")
    return body


def error_text(body: Mapping[str, Any]) -> str:
    """What an error body says, in the shapes of OpenAI, FastAPI, Ollama and llama.cpp."""
    for key in ("error", "message", "detail"):
        value = body.get(key)
        if isinstance(value, Mapping):
            return error_text(value) or json.dumps(value)
        if value and not isinstance(value, bool):
            return value if isinstance(value, str) else json.dumps(value)
    return ""


def plain_line(text: str, limit: int = 300) -> str:
    """Foreign text as one harmless line: nothing that moves a cursor, hides or reorders; cut at `limit`."""
    kept = "".join(" " if unicodedata.category(c) in _UNPRINTABLE else c for c in text[: 10 * limit])
    line = " ".join(kept.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

_SURROGATE = re.compile("[\ud800-\udfff]")


def _text(value: object) -> str:
    """A JSON string with lone surrogates replaced (no encoder takes them), anything else as no text."""
    return _SURROGATE.sub("\ufffd", value) if isinstance(value, str) else ""


def _count(value: object, before: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else before


def _first_choice(choices: object) -> Mapping[str, Any] | None:
    """The choice with index 0: we ask for one, and some servers leave the index out."""
    if not isinstance(choices, list):
        return None
    return next((c for c in choices if isinstance(c, Mapping) and c.get("index") in (0, None)), None)
