"""An answer's events as a timeline: how many tokens there were when, and who wrote them."""

from __future__ import annotations

from collections.abc import Iterable

from sr_edge.bench.report import Point, Timeline
from sr_edge.events import Event, Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started


def timeline_of(name: str, events: Iterable[Event]) -> Timeline:
    """The tokens of a span are counted when it closes; until then each of its texts has its part of them, by
    length."""
    points: list[Point] = []
    tokens = 0
    texts: list[SpanDelta] = []
    for event in events:
        match event:
            case Started():
                points.append(Point(event.at, 0, "local"))
            case LocalToken():
                tokens += 1
                points.append(Point(event.at, tokens, "local"))
            case SpanOpened():
                points.append(Point(event.at, tokens, "local"))
                texts = []
            case SpanDelta():
                texts.append(event)
            case SpanClosed():
                whole = sum(len(delta.text) for delta in texts)
                written = 0
                for delta in texts:
                    written += len(delta.text)
                    share = written / whole if whole else 1.0
                    points.append(Point(delta.at, tokens + round(event.tokens * share), "remote"))
                tokens += event.tokens
                texts = []
            case Finished():
                points.append(Point(event.at, tokens, points[-1].writer if points else "local"))
    return Timeline(name, tuple(points))
