"""What happened during one answer, in order: frozen events and their JSON lines.

Every consumer (terminal, log, replay, evaluation, training) reads this one stream. What always holds:

* one `Started` first, one `Finished` last; spans are numbered from 1, never nested, always closed;
* the joined texts of `LocalToken` and `SpanDelta` are the visible answer; no event is ever retracted;
* the ids of `Started`, `LocalToken` and `SpanClosed`, in order, are exactly the local KV cache (or begin with
  it, where the user stopped while an earlier answer was being read again);
* every `LocalToken` was sampled by the local model, and no id in `SpanClosed` was.

A span is announced (`SpanOpened`) before anything is sent. The ids of the opening marker follow as
`LocalToken` once the span is known to hold text: a span that never got any leaves no marker behind.

Standard library only.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Literal, TypeAlias, get_args, get_origin, get_type_hints

VERSION = 2
"""1 knew no span that the user asked for."""

Trigger = Literal["marker", "policy", "random", "user"]
"""Who asked for the span: the small model's marker, the user's policy, the random baseline, or the user."""

End = Literal[
    "handback",  # the small model wanted the pen
    "stop",  # the remote was done
    "boundary",  # a paragraph ended past the soft cap
    "cap",  # the span reached its largest size
    "budget",  # the answer's own token limit was reached
    "cancelled",  # the user stopped the answer
    "stalled",  # the remote fell silent
    "error",  # the remote failed
    "declined",  # refused before it left; nothing was sent
    "offline",  # offline; nothing was sent
]

FinishReason = Literal["stop", "length", "cancelled", "error", "refused"]

DEGRADED_ENDS: frozenset[End] = frozenset({"stalled", "error"})
"""Ends that mean: help was sent for and did not (fully) come."""


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt is in place; `prompt_ids` are the local model's."""

    kind: ClassVar[str] = "started"
    prompt_ids: tuple[int, ...]
    model: str
    big: str | None = None
    reused: int = 0
    """Prompt ids that were in the KV cache already."""
    opening: str = ""
    """What the chat template wrote for the assistant before the first token, such as an open think tag."""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class LocalToken:
    """The small model sampled `id`. `text` is empty for markers and for an unfinished UTF-8 character."""

    kind: ClassVar[str] = "local_token"
    id: int
    text: str
    logprob: float
    """Natural log of the model's own probability, before temperature and truncation."""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class SpanOpened:
    """Help is asked for. What will be sent is counted here, before it is sent."""

    kind: ClassVar[str] = "span_opened"
    span: int
    trigger: Trigger
    p_open: float | None
    """Probability of the opening marker where it was sampled; None where no marker asked."""
    remote: str | None
    sent_tokens: int = 0
    """Prompt and answer so far, in local tokens; 0 where nothing leaves."""
    sent_bytes: int = 0
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class SpanDelta:
    """The large model wrote `text` and the small model has read it."""

    kind: ClassVar[str] = "span_delta"
    span: int
    text: str
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class SpanClosed:
    """The small model has the pen again (or never lost it)."""

    kind: ClassVar[str] = "span_closed"
    span: int
    ids: tuple[int, ...]
    """Now in the local KV cache: the span's text and the closing marker. Where the user asked, the opening
    one comes before."""
    end: End
    tokens: int = 0
    """Local tokens of the span's text, without the closing marker."""
    p_close: float | None = None
    """Probability of the closing marker where the span ended, if it was read."""
    remote_prompt_tokens: int | None = None
    """As the remote counts them; None where it does not say."""
    remote_completion_tokens: int | None = None
    cost: float | None = None
    """US dollars; None where no price is known."""
    ttft: float | None = None
    """Seconds from asking to the first text."""
    seconds: float = 0.0
    """Seconds from asking to the last accepted text."""
    resume: float | None = None
    """Seconds from the last accepted text until the small model can sample again."""
    error: str | None = None
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is over."""

    kind: ClassVar[str] = "finished"
    reason: FinishReason
    prompt_tokens: int
    local_tokens: int
    """Sampled tokens, opening markers included."""
    remote_tokens: int
    """Local tokens of all span texts."""
    seconds: float
    local_seconds: float = 0.0
    """Part of `seconds` spent outside spans, after the prompt was read."""
    error: str | None = None
    at: float = 0.0


Event: TypeAlias = Started | LocalToken | SpanOpened | SpanDelta | SpanClosed | Finished

_KINDS: dict[str, type[Event]] = {cls.kind: cls for cls in get_args(Event)}


def to_json(event: Event) -> str:
    """One line of JSON, without the newline: `{"v": 1, "event": "local_token", …}`."""
    return json.dumps({"v": VERSION, "event": event.kind, **asdict(event)}, ensure_ascii=False)


def from_json(line: str) -> Event:
    """Inverse of `to_json`. Unknown fields are ignored, so that older readers read newer streams.

    Raises:
        ValueError: not JSON, not an event, a field missing or of the wrong type, or a newer version.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a line of JSON: {error}") from None
    kind = data.get("event") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError("not an event of sr-edge: the field 'event' is missing or unknown")
    version = data.get("v")
    if type(version) is not int or version > VERSION:
        raise ValueError(f"event version {version!r}; this program reads up to {VERSION}: upgrade sr-edge")
    cls = _KINDS[kind]
    types = _types(kind)
    values = {name: _plain(data[name]) for name in types if name in data}
    for name, value in values.items():
        if not _fits(value, types[name]):
            raise ValueError(f"field {name!r} of {cls.kind!r} cannot be {data[name]!r}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"event {cls.kind!r} is incomplete: {error}") from None


@cache
def _types(kind: str) -> dict[str, Any]:
    """The fields of a kind of event, and what each is declared to be."""
    hints = get_type_hints(_KINDS[kind])
    return {field.name: hints[field.name] for field in fields(_KINDS[kind])}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _fits(value: object, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return type(value) is int or (isinstance(value, float) and math.isfinite(value))
    return type(value) is hint
