"""Folds an event stream into what consumers ask for: text, ids and their origin, spans, counts.

The sampled mask is the loss mask of training on rollouts: it is read from the events, not computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from sr_edge.events import (
    DEGRADED_ENDS,
    End,
    Event,
    Finished,
    FinishReason,
    LocalToken,
    SpanClosed,
    SpanDelta,
    SpanOpened,
    Started,
    Trigger,
)

Origin = Literal["local", "remote"]

Status = Literal["complete", "partial", "failed", "cancelled", "skipped"]
"""What came of a span.

`complete`: one of the two models ended it; `partial`: it was cut, and its text is kept; `failed`: it was cut
before any text; `cancelled`: by the user; `skipped`: nothing was sent, or nothing was said.
"""

_COMPLETE: frozenset[End] = frozenset({"handback", "stop", "boundary"})


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive visible text of one origin; `span` is its number if the large model wrote it, or should."""

    origin: Origin
    text: str
    span: int | None = None


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """One span, opened and (if `end` is given) closed. Times in seconds; see `events` for the fields."""

    span: int
    trigger: Trigger
    remote: str | None
    p_open: float | None
    sent_tokens: int
    sent_bytes: int
    text: str = ""
    end: End | None = None
    tokens: int = 0
    p_close: float | None = None
    remote_prompt_tokens: int | None = None
    remote_completion_tokens: int | None = None
    cost: float | None = None
    ttft: float | None = None
    seconds: float = 0.0
    resume: float | None = None
    error: str | None = None

    @property
    def status(self) -> Status:
        """A span is complete only if one of the two models ended it; a cut never is."""
        if self.end == "cancelled":
            return "cancelled"
        if self.text:
            return "complete" if self.end in _COMPLETE else "partial"
        return "failed" if self.end is None or self.end in DEGRADED_ENDS else "skipped"


def opened(event: SpanOpened) -> SpanRecord:
    """The record of a span that has just begun."""
    return SpanRecord(
        span=event.span,
        trigger=event.trigger,
        remote=event.remote,
        p_open=event.p_open,
        sent_tokens=event.sent_tokens,
        sent_bytes=event.sent_bytes,
    )


def closed(record: SpanRecord, event: SpanClosed) -> SpanRecord:
    """The same, once it is over."""
    return replace(
        record,
        end=event.end,
        tokens=event.tokens,
        p_close=event.p_close,
        remote_prompt_tokens=event.remote_prompt_tokens,
        remote_completion_tokens=event.remote_completion_tokens,
        cost=event.cost,
        ttft=event.ttft,
        seconds=event.seconds,
        resume=event.resume,
        error=event.error,
    )


@dataclass(frozen=True, slots=True)
class Transcript:
    """One answer. `ids` and `sampled` are parallel and begin after the prompt."""

    model: str = ""
    big: str | None = None
    prompt_ids: tuple[int, ...] = ()
    reused: int = 0
    opening: str = ""
    ids: tuple[int, ...] = ()
    sampled: tuple[bool, ...] = ()
    segments: tuple[Segment, ...] = ()
    trail: tuple[Segment, ...] = ()
    """The segments, and an empty one at the place of each span that has no text."""
    spans: tuple[SpanRecord, ...] = ()
    finish: FinishReason | None = None
    """None if the stream was cut before its end."""
    error: str | None = None
    local_tokens: int = 0
    remote_tokens: int = 0
    seconds: float = 0.0
    local_seconds: float = 0.0

    @property
    def text(self) -> str:
        """The visible answer, without the prompt's opening."""
        return "".join(segment.text for segment in self.segments)

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def remote_share(self) -> float:
        """Part of the generated tokens that the large model wrote, in [0, 1]."""
        generated = self.local_tokens + self.remote_tokens
        return self.remote_tokens / generated if generated else 0.0

    @property
    def cost(self) -> float | None:
        """US dollars of all spans; None where no price is known."""
        costs = [span.cost for span in self.spans if span.cost is not None]
        return sum(costs) if costs else None

    @property
    def degraded(self) -> bool:
        """Whether the large model was asked, or would have been, and failed."""
        return any(span.end in DEGRADED_ENDS for span in self.spans)


class Fold:
    """The transcript of the events so far."""

    def __init__(self) -> None:
        self._transcript = Transcript()
        self._ids: list[int] = []
        self._sampled: list[bool] = []
        self._pieces: list[tuple[int | None, str]] = []
        self._spans: dict[int, SpanRecord] = {}

    def add(self, event: Event) -> None:
        match event:
            case Started():
                self._transcript = Transcript(
                    model=event.model,
                    big=event.big,
                    prompt_ids=event.prompt_ids,
                    reused=event.reused,
                    opening=event.opening,
                )
            case LocalToken():
                self._ids.append(event.id)
                self._sampled.append(True)
                self._pieces.append((None, event.text))
            case SpanOpened():
                self._spans[event.span] = opened(event)
                self._pieces.append((event.span, ""))
            case SpanDelta():
                self._pieces.append((event.span, event.text))
            case SpanClosed():
                self._ids.extend(event.ids)
                self._sampled.extend([False] * len(event.ids))
                self._spans[event.span] = closed(self._spans[event.span], event)
            case Finished():
                self._transcript = replace(
                    self._transcript,
                    finish=event.reason,
                    error=event.error,
                    seconds=event.seconds,
                    local_seconds=event.local_seconds,
                )

    @property
    def transcript(self) -> Transcript:
        joined: list[tuple[int | None, list[str]]] = []
        for span, text in self._pieces:
            if joined and joined[-1][0] == span:
                joined[-1][1].append(text)
            elif text or span is not None:
                joined.append((span, [text]))
        texts = dict.fromkeys(self._spans, "")
        pieces = []
        for span, parts in joined:
            text = "".join(parts)
            pieces.append(Segment("local" if span is None else "remote", text, span))
            if span is not None:
                texts[span] += text
        trail = _joined(
            piece for piece in pieces if piece.text or (piece.span is not None and not texts[piece.span])
        )
        spans = tuple(replace(span, text=texts[span.span]) for span in self._spans.values())
        return replace(
            self._transcript,
            ids=tuple(self._ids),
            sampled=tuple(self._sampled),
            segments=_joined(segment for segment in trail if segment.text),
            trail=trail,
            spans=spans,
            local_tokens=sum(self._sampled),
            remote_tokens=sum(span.tokens for span in spans),
        )


def _joined(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Neighbours of one writer as one segment."""
    joined: list[Segment] = []
    for segment in segments:
        if joined and joined[-1].span == segment.span:
            joined[-1] = replace(joined[-1], text=joined[-1].text + segment.text)
        else:
            joined.append(segment)
    return tuple(joined)


def fold(events: Iterable[Event]) -> Transcript:
    """The transcript of a whole stream, or of a stream that was cut."""
    folding = Fold()
    for event in events:
        folding.add(event)
    return folding.transcript
