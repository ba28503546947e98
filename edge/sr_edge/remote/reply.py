"""What one reply of an OpenAI-compatible server says: the span's text, how it ended, what it used.

Pure: events or a parsed body in, text out. Both conventions are read alike, since no field of one means
something else in the other: `text` of raw completions, `content` and the two spellings of reasoning of chat.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal

from sr_edge.remote.seam import Seam
from sr_edge.remote.sse import ServerSentEvent

DONE = "[DONE]"

_DONE = frozenset(
    {"stop", "eos", "eos_token", "end_turn", "stop_sequence", "completed", "complete", "word", "end"}
)
_CUT = frozenset({"length", "max_tokens", "max_output_tokens", "limit", "model_length"})
_FAILED = {
    "error": "the remote broke off with an error",
    "content_filter": "the remote's content filter cut it off",
    "insufficient_system_resource": "the remote ran out of resources",
}
"""Finish reasons. What is in none of the three is a failure too: tool calls, and what we don't know."""

MAX_TOKENS_SAID = 10**9
"""A larger count of tokens can't be meant."""


class ReplyError(Exception):
    """The reply says that it failed. The message may quote the server: see `plain_line`."""

    text = ""
    """What the same event added to the span; it counts."""


class UnreadableError(ReplyError):
    """The reply is not what such a server sends; where a stream ends, it may just be cut."""


class ReplyReader:
    """Folds one reply into text. Nothing is complete until `finished` or `done` says so."""

    def __init__(self, *, thinking: bool, seam: Seam | None = None) -> None:
        """Args:
        thinking: the answer so far ends inside an open think block, so reasoning continues it: unless `seam`
            knows that the dialect asks for something else.
        seam: what joins the reply to the answer.
        """
        self._thinking = thinking and (seam is None or seam.takes_reasoning)
        self._seam = seam
        self._field: Literal["content", "reasoning"] | None = None  # which one speaks, inside a think block
        self.characters = 0
        """Of the span's text so far."""
        self.finished: Literal["stop", "cap"] | None = None
        """A finish reason was seen. Usage may still follow."""
        self.done = False
        """`[DONE]` was seen."""
        self.left_thought = False
        """The thought that we continue was closed: what the server goes on to write is not our span's, and
        whether the reply will be whole is not known."""
        self.model: str | None = None
        """The one that answers, as the reply names it. It need not be the one that was asked."""
        self.fingerprint: str | None = None
        """What the server signs with."""
        self.has_reasoned = False
        """There was reasoning in a field of its own."""
        self._last = ("", "")  # id and data of the last event
        self._ids_differ = True  # from event to event, as far as was seen
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None

    @property
    def is_complete(self) -> bool:
        """Nothing more of the span's text can come."""
        return self.done or self.left_thought or self.finished is not None

    def push(self, event: ServerSentEvent) -> str | None:
        """Text that the event adds; "" if it carries content that adds none yet; None if no content.

        Raises:
            ReplyError: it reports a failure, or it is not what such a server sends.
        """
        data = event.data.strip()
        if not data or self.done or self.left_thought:
            return None
        if self._is_sent_twice(event):
            return None
        if data == DONE:
            self.done = True
            return None
        body = _parse_error(data) if event.type == "error" else parse_object(data)
        if event.type == "error":
            raise ReplyError(_reported(body))
        return self.push_body(body)

    def push_body(self, body: Mapping[str, Any]) -> str | None:
        """As `push`, for a parsed event or a whole reply that did not come as a stream."""
        if body.get("error"):
            raise ReplyError(_reported(body))
        self._read_usage(body.get("usage"))
        self.model = _text(body.get("model")) or self.model
        self.fingerprint = _text(body.get("system_fingerprint")) or self.fingerprint
        choice = _first_choice(body.get("choices"))
        if choice is None:
            return None
        text = None if self.finished else self._read_text(choice)
        if text is not None:
            self.characters += len(text)
        try:
            if choice.get("error"):
                raise ReplyError(_reported(choice))
            self._read_finish(finish_reason(choice))
        except ReplyError as failed:
            failed.text = (text or "") + self.flush()
            raise
        return text

    def flush(self) -> str:
        """Text that was held back as a possible repetition and is none, once the reply is complete."""
        text = self._seam.flush() if self._seam is not None else ""
        self.characters += len(text)
        return text

    def _is_sent_twice(self, event: ServerSentEvent) -> bool:
        """Equal text alone is no sign of that ("ha ha"), nor is an id that the server gives to all events."""
        before, self._last = self._last, (event.id, event.data)
        if not event.id or event.id != before[0]:
            return False
        self._ids_differ = self._ids_differ and event.data == before[1]
        return self._ids_differ

    def _read_text(self, choice: Mapping[str, Any]) -> str | None:
        part = choice.get("delta") or choice.get("message")
        if not isinstance(part, Mapping):
            part = {"content": choice.get("text")}
        content = _text(part.get("content"))
        reasoning = _text(part.get("reasoning_content")) or _text(part.get("reasoning"))
        self.has_reasoned = self.has_reasoned or bool(reasoning)
        if not self._thinking:
            if content:
                return self._join(content)
            return "" if reasoning else None
        text = ""
        if reasoning and self._field != "content":
            self._field = "reasoning"
            text = self._join(reasoning)
        if content and self._field == "reasoning":
            self.left_thought = True
        elif content:
            self._field = "content"
            text += self._join(content)
        return text if content or reasoning else None

    def _join(self, text: str) -> str:
        return text if self._seam is None else self._seam.push(text)

    def _read_finish(self, reason: str | None) -> None:
        if reason is None or self.finished is not None:
            return
        name = reason.lower()
        if name in _DONE:
            self.finished = "stop"
        elif name in _CUT:
            self.finished = "cap"
        else:
            shown = plain_line(reason)
            raise ReplyError(_FAILED.get(name, f"the remote ended with finish reason {shown!r}"))

    def _read_usage(self, usage: object) -> None:
        if isinstance(usage, Mapping):
            self.prompt_tokens = _count(usage.get("prompt_tokens"), self.prompt_tokens)
            self.completion_tokens = _count(usage.get("completion_tokens"), self.completion_tokens)


def finish_reason(choice: Mapping[str, Any]) -> str | None:
    """As the choice gives it. Some servers write the word null where none is meant."""
    reason = choice.get("finish_reason")
    return reason if isinstance(reason, str) and reason and reason.lower() != "null" else None


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Raises:
    UnreadableError: not JSON, or not an object.
    """
    try:
        body = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        shown = text[:1000] if isinstance(text, str) else text[:1000].decode("utf-8", "replace")
        raise UnreadableError(f"the remote sent something that is not JSON: {shown}") from None
    if not isinstance(body, dict):
        raise UnreadableError(f"the remote sent JSON that is not an object: {_as_json(body)}")
    return body


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def _parse_error(text: str) -> dict[str, Any]:
    """An error event's data, which need not be JSON."""
    try:
        return parse_object(text)
    except UnreadableError:
        return {"error": text}


def _reported(body: Mapping[str, Any]) -> str:
    return f"the remote reported an error: {error_text(body)}"


def error_text(body: Mapping[str, Any]) -> str:
    """What an error body says, in the shapes of OpenAI, FastAPI, Ollama and llama.cpp."""
    return _error_text(body, depth=0)


def _error_text(body: Mapping[str, Any], depth: int) -> str:
    for key in ("error", "message", "detail"):
        value = body.get(key)
        if isinstance(value, Mapping):
            return (_error_text(value, depth + 1) if depth < 8 else "") or _as_json(value)
        if value and not isinstance(value, bool):
            return value if isinstance(value, str) else _as_json(value)
    return ""


def _as_json(value: object) -> str:
    try:
        return json.dumps(value)[:1000]
    except (ValueError, RecursionError):
        return "something that is nested too deeply to be shown"


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
    if not isinstance(value, int) or isinstance(value, bool):
        return before
    return value if 0 <= value <= MAX_TOKENS_SAID else before


def _first_choice(choices: object) -> Mapping[str, Any] | None:
    """The choice with index 0: we ask for one, and some servers leave the index out."""
    if not isinstance(choices, list):
        return None
    return next((c for c in choices if isinstance(c, Mapping) and c.get("index") in (0, None)), None)
