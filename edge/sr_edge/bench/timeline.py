"""An answer's events as a timeline: how many tokens there were when, and who wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sr_edge.bench.report import Point, Timeline
from sr_edge.events import Event, Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started


def timeline_of(name: str, events: Iterable[Event]) -> Timeline:
    """The tokens of a span are counted when it closes; until then each of its texts has its part of them, by
    length."""
    points: list[Point] = []
    tokens = 0
    opened: float | None = None
    texts: list[SpanDelta] = []
    for event in events:
        match event:
            case Started():
                points.append(Point(event.at, 0, "local"))
            case LocalToken():
                tokens += 1
                # A marker was sampled when the span opened; it is told when the span has text.
                points.append(Point(event.at if opened is None else opened, tokens, "local"))
            case SpanOpened():
                opened, texts = event.at, []
            case SpanDelta():
                if not texts:
                    points.append(Point(event.at, tokens, "local"))  # nobody wrote until now
                texts.append(event)
            case SpanClosed():
                points += _shared_out(texts, event.tokens, tokens)
                tokens += event.tokens
                opened, texts = None, []
            case Finished():
                points.append(Point(event.at, tokens, "local"))
    return Timeline(name, tuple(points))


def _shared_out(texts: Sequence[SpanDelta], tokens: int, before: int) -> Iterator[Point]:
    whole = sum(len(delta.text) for delta in texts) or 1
    written = 0
    for delta in texts:
        written += len(delta.text)
        yield Point(delta.at, before + tokens * written / whole, "remote")
