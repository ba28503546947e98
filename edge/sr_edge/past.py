"""What an earlier answer leaves to go on from: its events up to a place, and what they add up to.

An answer that goes on shows the events that it takes over once more, unchanged, so that its stream is whole
in itself. Pure; standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sr_edge.events import Event, Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started


@dataclass(frozen=True, slots=True)
class Past:
    """The sums of the events that are taken over."""

    ids: tuple[int, ...] = ()
    """After the prompt; without the text of a span that was cut in the middle."""
    tail: tuple[int, ...] = ()
    """The last of them, which the small model wrote: their text may end inside a character."""
    text: str = ""
    local_tokens: int = 0
    remote_tokens: int = 0
    spans: int = 0
    cut: SpanOpened | None = None
    """The last span, if it was never closed."""
    cut_text: str = ""
    """What it had said; part of `text`."""
    cut_is_marked: bool = False
    """Whether the small model's opening marker is among the ids."""
    cut_ttft: float | None = None
    """Seconds from its opening to its first text."""
    began: float = 0.0
    """Seconds from the beginning of the earlier answer to the first of these events."""
    ended: float = 0.0
    """The same, to the last of them."""
    span_seconds: float = 0.0

    @property
    def cut_seconds(self) -> float:
        """How long the span that was cut is known to have lasted."""
        return self.ended - self.cut.at if self.cut else 0.0

    @classmethod
    def of(cls, events: Sequence[Event]) -> Past:
        """Raises: ValueError: they are not the inner events of one answer, in order."""
        ids: list[int] = []
        tail: list[int] = []
        texts: list[str] = []
        local, remote, spans, span_seconds = 0, 0, 0, 0.0
        cut: SpanOpened | None = None
        cut_texts: list[str] = []
        cut_is_marked, cut_ttft = False, None
        for event in events:
            match event:
                case Started() | Finished():
                    raise ValueError("the beginning and the end of an answer are not taken over")
                case LocalToken():
                    ids.append(event.id)
                    texts.append(event.text)
                    local += 1
                    if cut is None:
                        tail.append(event.id)
                    else:
                        cut_is_marked = True
                case SpanOpened():
                    spans += 1
                    if cut is not None or event.span != spans:
                        raise ValueError(f"span {event.span} cannot open here")
                    cut, cut_texts, cut_is_marked, cut_ttft = event, [], False, None
                case SpanDelta() | SpanClosed():
                    if cut is None or event.span != cut.span:
                        raise ValueError(f"span {event.span} is not open here")
                    if isinstance(event, SpanDelta):
                        cut_ttft = event.at - cut.at if cut_ttft is None else cut_ttft
                        cut_texts.append(event.text)
                        texts.append(event.text)
                    else:
                        tail = [] if event.ids else tail
                        ids.extend(event.ids)
                        remote += event.tokens
                        span_seconds += event.seconds + (event.resume or 0.0)
                        cut, cut_texts, cut_is_marked, cut_ttft = None, [], False, None
        return cls(
            ids=tuple(ids),
            tail=() if cut_is_marked or cut_texts else tuple(tail),
            text="".join(texts),
            local_tokens=local,
            remote_tokens=remote,
            spans=spans,
            cut=cut,
            cut_text="".join(cut_texts),
            cut_is_marked=cut_is_marked,
            cut_ttft=cut_ttft,
            began=events[0].at if events else 0.0,
            ended=events[-1].at if events else 0.0,
            span_seconds=span_seconds,
        )


def taken_over(events: Iterable[Event], *, before_span: int | None = None) -> tuple[Event, ...]:
    """What of a stored answer can be gone on from: all between its beginning and its end.

    Args:
        before_span: stop where this span opens.
    """
    kept: list[Event] = []
    for event in events:
        if isinstance(event, SpanOpened) and event.span == before_span:
            break
        if not isinstance(event, Started | Finished):
            kept.append(event)
    return tuple(kept)
