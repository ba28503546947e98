"""Between events and rows. Events that follow each other and are of one kind share a row. Pure.

What is for reading (texts, counts, spans) stands in columns; ids, lengths, probabilities and times of single
tokens are JSON that only `unpacked` reads.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, groupby, pairwise
from typing import Any, Literal, TypeAlias

from sr_edge.events import Event, Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started
from sr_edge.transcript import Fold, Transcript

Kind = Literal["started", "local", "opened", "remote", "closed", "finished"]

_LARGEST = 2**63 - 1  # the largest integer of SQLite


@dataclass(frozen=True, slots=True)
class Part:
    """One row."""

    first: int
    count: int
    kind: Kind
    span: int | None
    text: str
    detail: str | None
    """None where it was not asked for."""


Span: TypeAlias = tuple[SpanOpened, SpanClosed | None]


def whole(text: str) -> str:
    """Half characters, which a server can send and no file can hold, as the sign that stands for them."""
    return _HALF.sub("\ufffd", text)


_HALF = re.compile("[\ud800-\udfff]")


def packed(events: Iterable[Event], first: int) -> Iterator[Part]:
    """Args:
    first: number of the first of the events.
    """
    for (kind, span), group in groupby(events, key=_row_of):
        members = list(group)
        texts = [whole(getattr(event, "text", "")) for event in members]
        detail = _detail(members, [len(text) for text in texts])
        yield Part(first, len(members), kind, span, "".join(texts), detail)
        first += len(members)


def _row_of(event: Event) -> tuple[Kind, int | None]:
    match event:
        case Started():
            return "started", None
        case LocalToken():
            return "local", None
        case SpanOpened():
            return "opened", event.span
        case SpanDelta():
            return "remote", event.span
        case SpanClosed():
            return "closed", event.span
        case Finished():
            return "finished", None


def _detail(events: Sequence[Any], lengths: Sequence[int]) -> str:
    match events[0]:
        case LocalToken():
            columns = [
                [event.id for event in events],
                lengths,
                [event.logprob for event in events],
                [event.at for event in events],
            ]
            return json.dumps(columns, separators=(",", ":"))
        case SpanDelta():
            return json.dumps([lengths, [event.at for event in events]], separators=(",", ":"))
        case Started() | Finished():
            return json.dumps(asdict(events[0]), separators=(",", ":"))
        case _:
            return ""  # table span has it


def unpacked(parts: Iterable[Part], spans: Mapping[int, Span]) -> Iterator[Event]:
    """The events themselves."""
    for part in parts:
        match part.kind:
            case "started":
                yield _started(part)
            case "local":
                ids, lengths, logprobs, times = json.loads(part.detail or "")
                texts = _cut(part.text, lengths)
                yield from map(LocalToken, ids, texts, logprobs, times)
            case "opened":
                yield spans[part.span or 0][0]
            case "remote":
                lengths, times = json.loads(part.detail or "")
                for text, at in zip(_cut(part.text, lengths), times, strict=True):
                    yield SpanDelta(part.span or 0, text, at)
            case "closed":
                closed = spans[part.span or 0][1]
                assert closed is not None, "written in the same transaction"
                yield closed
            case "finished":
                yield Finished(**json.loads(part.detail or ""))


def _started(part: Part) -> Started:
    fields = json.loads(part.detail or "")
    return Started(**{**fields, "prompt_ids": tuple(fields["prompt_ids"])})


def _cut(text: str, lengths: Sequence[int]) -> list[str]:
    return [text[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]


def transcript_of(parts: Sequence[Part], spans: Mapping[int, Span]) -> Transcript:
    """What `fold` makes of the events, but for ids and sampled, without looking at a single token."""
    folding = Fold()
    for part in parts:
        match part.kind:
            case "started":
                folding.add(_started(part))
            case "local":
                folding.add(LocalToken(0, part.text, 0.0))
            case "opened":
                folding.add(spans[part.span or 0][0])
            case "remote":
                folding.add(SpanDelta(part.span or 0, part.text))
            case "closed":
                closed = spans[part.span or 0][1]
                assert closed is not None, "written in the same transaction"
                folding.add(closed)
            case "finished":
                folding.add(Finished(**json.loads(part.detail or "")))
    local_tokens = sum(part.count for part in parts if part.kind == "local")
    return replace(folding.transcript, ids=(), sampled=(), local_tokens=local_tokens)


# --- spans -------------------------------------------------------------------------------------------

OPENED = ("span", "trigger", "p_open", "remote", "sent_tokens", "sent_bytes", "opened_at")
CLOSED = (
    "ids",
    "end",
    "tokens",
    "p_close",
    "remote_prompt_tokens",
    "remote_completion_tokens",
    "cost",
    "ttft",
    "seconds",
    "resume",
    "error",
    "closed_at",
)
"""Columns; they are named as the fields, but for the two `at`."""


def opened_values(event: SpanOpened) -> list[Any]:
    return [_fitting(getattr(event, "at" if name == "opened_at" else name)) for name in OPENED]


def closed_values(event: SpanClosed) -> list[Any]:
    values = [_fitting(getattr(event, "at" if name == "closed_at" else name)) for name in CLOSED]
    values[0] = json.dumps(event.ids, separators=(",", ":"))
    return values


def span_of(row: Sequence[Any], *, with_ids: bool = True) -> Span:
    """Args:
    row: the columns OPENED and then CLOSED.
    """
    opened = SpanOpened(*row[:7])
    closed = row[7:]
    if closed[1] is None:
        return opened, None
    ids = tuple(json.loads(closed[0])) if with_ids else ()
    return opened, SpanClosed(opened.span, ids, *closed[1:])


def _fitting(value: Any) -> Any:
    """What SQLite can hold and gives back: a server may count beyond it, or send what is no number."""
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, int):
        return max(-_LARGEST, min(value, _LARGEST))
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
