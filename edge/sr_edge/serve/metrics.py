"""What `/metrics` says, for Prometheus: counts and times, and no word that a user or a model wrote.

It belongs to one server and is used from the thread of its event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sr_edge.events import Finished, LocalToken, SpanClosed, SpanDelta, Started
from sr_edge.serve.jobs import Failed, Heard, Over

if TYPE_CHECKING:
    from sr_edge.serve.desk import DeskFigures

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
_STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

NOW = {
    "waiting": "Answers that wait for their turn, now.",
    "running": "Answers that are being written, now.",
    "cursors": "Conversations that the small model can keep in its cache.",
    "cursors_taken": "Those of them whose answer is being written, now.",
    "cached_tokens": "Tokens that the small model keeps in its cache, of all conversations, now.",
}
"""What the desk's figures are, by their names."""


class Metrics:
    def __init__(self, figures: Callable[[], DeskFigures]) -> None:
        """Args:
        figures: of the desk, as they are now.
        """
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_Desk(figures))

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"sr_edge_{name}", what, labels, registry=self._registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"sr_edge_{name}_seconds", what, buckets=buckets, registry=self._registry)

        self._requests = counter("requests", "Requests that were answered.", "route", "status")
        self._tokens = counter("tokens", "Tokens of answers, by who wrote them.", "origin")
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self._reused_tokens = counter("reused_tokens", "Those of them that were in a cache already.")
        self._spans = counter("spans", "Spans of the large model, by how they ended.", "end")
        self._cost = counter("cost_dollars", "Spent on spans, where the price is known.")
        self._errors = counter("errors", "Answers and requests that failed, by the kind of error.", "kind")
        self._hang_ups = counter("hang_ups", "Clients that left before their answer was whole.")
        self._waiting = histogram("queue", "Seconds from a request to its turn.")
        self._first = histogram("first_token", "Seconds from a request to the first text of its answer.")
        self._whole = histogram("request", "Seconds from a request to the end of its answer.")
        self._step = histogram(
            "token_interval", "Seconds between two tokens of the small model.", _STEP_SECONDS
        )
        for origin in ("local", "remote"):
            self._tokens.labels(origin)  # so that each is there from the start

    def responded(self, route: str, status: int) -> None:
        """Args:
        route: one of ours as it is written in the code, or a word of ours; never a client's path.
        """
        self._requests.labels(route, str(status)).inc()

    def failed(self, error: BaseException) -> None:
        self._errors.labels(type(error).__name__).inc()

    def hung_up(self) -> None:
        self._hang_ups.inc()

    def follow(self, continues: str = "") -> Following:
        """From when a job is submitted on.

        Args:
            continues: see `Job`. It counts as prompt.
        """
        return Following(self, continues)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class Following:
    """Counts one answer as it is heard."""

    def __init__(self, metrics: Metrics, continues: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._given_chars = len(continues)  # which are heard again before anything is written
        self._given_tokens = 0
        self._began = clock()
        self._has_text = False
        self._last: float | None = None  # when the small model's last token came, in the answer's own time

    def hear(self, heard: Heard) -> None:
        metrics = self._metrics
        match heard:
            case LocalToken() if self._given_chars > 0:
                self._given_chars -= len(heard.text)
                self._given_tokens += 1
            case LocalToken():
                if self._last is not None and heard.at > self._last:
                    metrics._step.observe(heard.at - self._last)
                self._last = heard.at
                if heard.text and not self._has_text:
                    self._begin()
            case SpanDelta():
                if not self._has_text:
                    self._begin()
            case SpanClosed():
                self._last = None  # the next token's interval would be the span's
                metrics._spans.labels(heard.end).inc()
                metrics._cost.inc(heard.cost or 0.0)
            case Started():
                metrics._waiting.observe(max(0.0, self._clock() - self._began - heard.at))
                metrics._prompt_tokens.inc(len(heard.prompt_ids))
                metrics._reused_tokens.inc(heard.reused)
            case Finished():
                metrics._prompt_tokens.inc(self._given_tokens)
                metrics._tokens.labels("local").inc(max(0, heard.local_tokens - self._given_tokens))
                metrics._tokens.labels("remote").inc(heard.remote_tokens)
            case Failed():
                metrics.failed(heard.error)
            case Over():
                metrics._whole.observe(self._clock() - self._began)

    def _begin(self) -> None:
        self._has_text = True
        self._metrics._first.observe(self._clock() - self._began)


class _Desk(Collector):
    """What the desk counts itself, at the moment when it is asked."""

    def __init__(self, figures: Callable[[], DeskFigures]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[GaugeMetricFamily]:
        figures = self._figures()
        for field in fields(figures):
            yield GaugeMetricFamily(f"sr_edge_{field.name}", NOW[field.name], getattr(figures, field.name))
