"""What an answer costs on the user's machine, in seconds and in dollars: a model, and what was measured.

Training reckons with the model: it says the same of the same rollout, whatever else the machine was doing.
The user's waiting is modelled, not the trainer's: six speeds, which `fit` finds in measured answers.

    prompt / small_prefill  +  local / small_decode  +  for each span: rtt + sent / big_prefill
                                                        + tokens / min(big_decode, small_prefill)

The small model reads a span while it is written, so only the slower of the two counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median
from typing import Self

from sr_edge.errors import UsageError
from sr_edge.events import Event, Finished, LocalToken, Started, from_json
from sr_edge.transcript import SpanRecord, Transcript, fold
from sr_train.recipe import LatencyPart

_MIN_SPAN = 8
"""Tokens: shorter spans say little about the speed of writing."""
_MAX_POINTS = 300
"""Of a fit: its slopes are those of all pairs."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one answer."""

    seconds: float
    """From sending the question to the end."""
    offload_seconds: float
    """Part of them in which the small model waited for the large one."""
    dollars: float


class LatencyModel:
    """Pure: the same rollout always costs the same."""

    def __init__(self, part: LatencyPart) -> None:
        self.part = part
        speeds = (part.big_prefill, part.big_decode, part.small_prefill, part.small_decode)
        if part.rtt < 0 or min(speeds) <= 0 or part.dollars_in < 0 or part.dollars_out < 0:
            raise UsageError(f"the recipe's latency table: speeds are above 0, the rest 0 or more: {part}")

    @classmethod
    def of(cls, part: LatencyPart) -> Self:
        """With the speeds of `part.calibration` where it names a file, else with the table's own.

        Raises:
            UsageError: the file cannot be read, or holds no event streams.
        """
        if part.calibration is None:
            return cls(part)
        return cls(fit(read_streams(Path(part.calibration)), part))

    def cost(self, transcript: Transcript) -> Cost:
        part = self.part
        spans = [span for span in transcript.spans if was_sent(span)]
        waiting = sum(
            part.rtt
            + span.sent_tokens / part.big_prefill
            + span.tokens / min(part.big_decode, part.small_prefill)
            for span in spans
        )
        writing = transcript.local_tokens / part.small_decode
        reading = (transcript.prompt_tokens - transcript.reused) / part.small_prefill
        return Cost(reading + writing + waiting, waiting, sum(map(self._dollars, spans)))

    def big_only(self, transcript: Transcript) -> Cost:
        """Of an answer of the same length, written by the large model alone in one request."""
        part = self.part
        tokens = transcript.local_tokens + transcript.remote_tokens
        seconds = part.rtt + transcript.prompt_tokens / part.big_prefill + tokens / part.big_decode
        return Cost(seconds, seconds, self._price(transcript.prompt_tokens, tokens))

    def _dollars(self, span: SpanRecord) -> float:
        """By the large model's own count of tokens, where it gives one."""
        sent, written = span.remote_prompt_tokens, span.remote_completion_tokens
        return self._price(
            span.sent_tokens if sent is None else sent, span.tokens if written is None else written
        )

    def _price(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.part.dollars_in + tokens_out * self.part.dollars_out) / 1e6


def measured(transcript: Transcript) -> Cost:
    """What the clock and the bill said; where several answers were written at once, they all waited."""
    waited = sum(span.seconds + (span.resume or 0.0) for span in transcript.spans)
    return Cost(transcript.seconds, waited, transcript.cost or 0.0)


def was_sent(span: SpanRecord) -> bool:
    """Whether anything left the machine for it."""
    return span.sent_tokens > 0 and span.end not in ("declined", "offline")


# --- calibration ------------------------------------------------------------------------------------------


def fit(streams: Iterable[Sequence[Event]], start: LatencyPart) -> LatencyPart:
    """The speeds that explain measured answers; what they do not show stays as it is in `start`.

    Medians, and the median slope of all pairs of points (Theil and Sen): single slow answers do not count.

    Args:
        streams: the events of one answer each, written one at a time.
    """
    first_texts: list[tuple[float, float]] = []
    decodes, gaps, reads = [], [], []
    for events in streams:
        transcript = fold(events)
        for span in transcript.spans:
            if span.ttft is not None and was_sent(span):
                sent = span.remote_prompt_tokens
                first_texts.append((float(span.sent_tokens if sent is None else sent), span.ttft))
                if span.tokens >= _MIN_SPAN and span.seconds > span.ttft:
                    decodes.append((span.tokens - 1) / (span.seconds - span.ttft))
        gaps += _gaps(events)
        reads += _prefill_speed(transcript)
    rtt, big_prefill = _line(first_texts, start)
    return replace(
        start,
        rtt=rtt,
        big_prefill=big_prefill,
        big_decode=median(decodes) if decodes else start.big_decode,
        small_decode=1 / median(gaps) if gaps else start.small_decode,
        small_prefill=median(reads) if reads else start.small_prefill,
        calibration=None,
    )


def read_streams(path: Path) -> list[list[Event]]:
    """The answers in a file of event lines, as `sr-edge ask --events` and evaluations write them.

    Raises:
        UsageError: it cannot be read; a line is no event; there is no answer in it.
    """
    streams: list[list[Event]] = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = from_json(line)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
        if isinstance(event, Started):
            streams.append([])
        if not streams:
            raise UsageError(f"{path}, line {number}: an answer begins with the event 'started'")
        streams[-1].append(event)
    whole = [stream for stream in streams if isinstance(stream[-1], Finished)]
    if not whole:
        raise UsageError(f"{path} holds no finished answer: write events of some answers into it")
    return whole


def _gaps(events: Sequence[Event]) -> list[float]:
    """Seconds between two sampled tokens with no span between."""
    return [
        b.at - a.at
        for a, b in pairwise(events)
        if isinstance(a, LocalToken) and isinstance(b, LocalToken) and b.at > a.at
    ]


def _prefill_speed(transcript: Transcript) -> list[float]:
    """Tokens a second at which the small model read the prompt; empty where that cannot be told."""
    waited = measured(transcript).offload_seconds
    reading = transcript.seconds - transcript.local_seconds - waited
    tokens = transcript.prompt_tokens - transcript.reused
    return [tokens / reading] if tokens > 0 and reading > 1e-3 else []


def _line(points: Sequence[tuple[float, float]], start: LatencyPart) -> tuple[float, float]:
    """Round trip and speed of reading, from (tokens sent, seconds to the first text)."""
    if not points:
        return start.rtt, start.big_prefill
    step = -(-len(points) // _MAX_POINTS)
    few = sorted(points)[::step]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(few, 2) if b[0] - a[0] >= 1]
    slope = median(slopes) if len(slopes) >= 10 else 1 / start.big_prefill
    slope = max(slope, 1e-6)  # reading takes time, however little of it shows beside the line's noise
    rtt = median(seconds - slope * tokens for tokens, seconds in points)
    return max(rtt, 0.0), 1 / slope
