"""What an export is made of: an answer's pieces with their origin, shares of tokens, lines about a span.

Nothing here is escaped for any format, and the texts are as they were written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from sr_edge.budget import dollars
from sr_edge.events import End
from sr_edge.extract import END_THINK, THINK, Part, ReasoningSplitter, is_thinking
from sr_edge.report import FAILED, NOT_SENT, notes, size
from sr_edge.transcript import SpanRecord, Transcript

if TYPE_CHECKING:
    from sr_edge.store import Turn

Voice = Literal["local", "remote", "fallback"]

LOCAL = "local"
"""What the small model's share is called, beside the names of remotes."""

_ENDS: Mapping[End, str] = {
    "handback": "the small model took the pen back",
    "stop": "the large model was done",
    "boundary": "a paragraph ended, and the span was long enough",
    "cap": "the span reached its largest size",
    "budget": "a budget or the limit of the answer was reached",
    "cancelled": "the user stopped the answer",
    "stalled": "the large model fell silent",
    "error": "the large model failed",
    "declined": "refused before anything left",
    "offline": "offline, so nothing left",
}
_TRIGGERS = {
    "marker": "the small model asked for help",
    "policy": "the policy let the large model write",
    "random": "chosen at random, as a baseline",
    "user": "the user asked for it",
}
_STATUS = {
    "running": "this answer was still being written",
    "stopped": "stopped by the user",
    "cut": "cut: the program was ended while it was written",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one writer in one part of the answer, or a span at its place that brought no text."""

    part: Part
    text: str
    span: SpanRecord | None
    """None: the small model wrote it."""
    is_first: bool = True
    """Whether this is where the span begins: one that holds an end of reasoning has two pieces."""

    @property
    def voice(self) -> Voice:
        if self.span is None:
            return "local"
        return "remote" if self.span.text else "fallback"


def pieces(transcript: Transcript) -> list[Piece]:
    """The answer in order, every span at its place, without think tags."""
    trail = transcript.trail
    text = transcript.text
    thinks = is_thinking(transcript.opening) or END_THINK in text.partition(THINK)[0]
    splitter = ReasoningSplitter[int](thinks=thinks)
    cut = [piece for n, segment in enumerate(trail) for piece in splitter.push(segment.text, n)]
    cut += splitter.flush()

    spans = {span.span: span for span in transcript.spans}
    shown: list[Piece] = []
    seen: set[int] = set()

    def add(part: Part, text: str, number: int | None) -> None:
        span = None if number is None else spans.get(number)
        last = shown[-1] if shown else None
        if last is not None and (last.part, last.span) == (part, span):
            shown[-1] = Piece(part, last.text + text, span, last.is_first)
            return
        shown.append(Piece(part, text, span, number is None or number not in seen))
        if number is not None:
            seen.add(number)

    has_text = {trail[n].span for _, _, n in cut}
    at = 0
    for part, piece, n in [*cut, ("answer", "", len(trail))]:
        for between in trail[at:n]:
            if between.span is not None and between.span not in has_text:  # nothing came, or think tags only
                add(shown[-1].part if shown else part, "", between.span)
        at = max(at, n)
        if piece:
            add(part, piece, trail[n].span)
    return shown


def of_part(shown: Iterable[Piece], part: Part) -> list[Piece]:
    """Those of a part, without white space around all of it; none if there is nothing to see."""
    chosen = [piece for piece in shown if piece.part == part]
    for at, strip in ((0, str.lstrip), (-1, str.rstrip)):
        while chosen and (chosen[at].text or chosen[at].span is None):
            text = strip(chosen[at].text)
            if text:
                chosen[at] = Piece(part, text, chosen[at].span, chosen[at].is_first)
                break
            if chosen[at].span is not None and chosen[at].is_first:
                break  # a span of white space is a span
            del chosen[at]
    return chosen


def shares(transcript: Transcript) -> dict[str, int]:
    """Tokens by writer: the small model, then each remote in order."""
    counts = {LOCAL: transcript.local_tokens}
    for span in transcript.spans:
        if span.tokens:
            name = remote_of(span)
            counts[name] = counts.get(name, 0) + span.tokens
    return counts


def remote_of(span: SpanRecord) -> str:
    return span.remote or "large model"


def remotes(turns: Iterable[Turn]) -> list[str]:
    """Those that were asked, or should have been, in order."""
    names = (
        remote_of(span) for turn in turns if turn.transcript is not None for span in turn.transcript.spans
    )
    return list(dict.fromkeys(names))


def percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def share_line(transcript: Transcript) -> str:
    """`local 61 % · lab 39 % · 3 spans`"""
    counts = shares(transcript)
    whole = sum(counts.values()) or 1
    parts = [f"{name} {percent(count / whole)}" for name, count in counts.items()]
    return " · ".join([*parts, spans_words(len(transcript.spans))])


def spans_words(count: int) -> str:
    return f"{count} span{'' if count == 1 else 's'}"


def span_line(span: SpanRecord) -> str:
    """`lab · 46 tokens · 0.9 s · $0.0003`; for one without text, what happened instead."""
    if not span.text:
        return f"{span.error or f'{remote_of(span)}: {reason(span)}'}; continued locally"
    parts = [
        remote_of(span),
        f"{span.tokens} token{'' if span.tokens == 1 else 's'}",
        f"{span.seconds:.1f} s",
        *([] if span.cost is None else [dollars(span.cost)]),
        *([reason(span)] if span.end in FAILED else []),
    ]
    return " · ".join(parts)


def reason(span: SpanRecord) -> str:
    """Why it ended."""
    return "the recording was cut" if span.end is None else _ENDS[span.end]


def span_facts(span: SpanRecord) -> list[tuple[str, str]]:
    """What is known of a span, by name."""
    why = _TRIGGERS[span.trigger]
    if span.trigger == "marker" and span.p_open is not None:
        why += f" (p {span.p_open:.2f})"
    facts = [("why", why)]
    if span.sent_bytes:
        facts.append(("sent", f"{span.sent_tokens:,} tokens, {size(span.sent_bytes)}"))
    elif span.end in NOT_SENT or not span.text:
        facts.append(("sent", "nothing"))
    times = [("first text after", span.ttft), ("wrote for", span.seconds or None), ("read in", span.resume)]
    told = [f"{name} {seconds:.2f} s" for name, seconds in times if seconds is not None]
    if told:
        facts.append(("time", ", ".join(told)))
    if span.remote_completion_tokens is not None:
        prompt = f"{span.remote_prompt_tokens:,} read, " if span.remote_prompt_tokens is not None else ""
        facts.append(("remote's count", f"{prompt}{span.remote_completion_tokens:,} written"))
    if span.cost is not None:
        facts.append(("cost", dollars(span.cost)))
    facts.append(("end", reason(span)))
    if span.error:
        facts.append(("error", span.error))
    return facts


def turn_notes(turn: Turn) -> list[str]:
    """What a reader has to know about an answer beyond its text."""
    lines = [] if turn.transcript is None else notes(turn.transcript)
    if turn.status in _STATUS:
        lines.insert(0, _STATUS[turn.status])
    return lines


# --- the whole conversation --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Totals:
    local_tokens: int
    remote_tokens: int
    spans: int
    sent_bytes: int
    cost: float | None
    seconds: float

    @property
    def remote_share(self) -> float:
        written = self.local_tokens + self.remote_tokens
        return self.remote_tokens / written if written else 0.0


def totals(turns: Sequence[Turn]) -> Totals:
    answers = [turn.transcript for turn in turns if turn.transcript is not None]
    costs = [answer.cost for answer in answers if answer.cost is not None]
    return Totals(
        local_tokens=sum(answer.local_tokens for answer in answers),
        remote_tokens=sum(answer.remote_tokens for answer in answers),
        spans=sum(len(answer.spans) for answer in answers),
        sent_bytes=sum(span.sent_bytes for answer in answers for span in answer.spans),
        cost=sum(costs) if costs else None,
        seconds=sum(answer.seconds for answer in answers),
    )


def models(turns: Iterable[Turn]) -> list[str]:
    """The small models that wrote in it, in order."""
    named = (turn.transcript.model for turn in turns if turn.transcript is not None)
    return list(dict.fromkeys(name for name in named if name))


def when(at: float) -> str:
    """`2026-11-22T10:53:14Z`; empty for a time that no calendar has."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return ""
