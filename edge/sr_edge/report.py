"""What a person or a script reads about an answer: the live stream with its spans, lines, a table, JSON.

Text is only ever appended, never drawn again: what was printed can be piped, scrolled and copied. All of
it passes a `terminal.Sanitiser` first, since models and servers wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TextIO

from sr_edge.budget import dollars
from sr_edge.events import End, Event, Finished, LocalToken, SpanClosed, SpanDelta, Started
from sr_edge.extract import Part, ReasoningSplitter, is_thinking, last_boxed, split_reasoning
from sr_edge.terminal import Sanitiser, can_show, safe_line
from sr_edge.transcript import SpanRecord, Transcript

Spans = Literal["none", "marks", "color", "table"]
"""How the spans are shown, as the user chooses it."""

NOT_SENT: frozenset[End] = frozenset({"declined", "offline"})
FAILED: frozenset[End] = frozenset({"stalled", "error"})


@dataclass(frozen=True, slots=True)
class Look:
    """How the stream is drawn on one output."""

    streams: bool
    """Whether text is shown while it is written."""
    colors: bool = False
    table: bool = False
    """Whether a table of the spans follows."""
    open: str = "⟦"
    close: str = "⟧"
    separator: str = " · "
    ellipsis: str = "…"


def choose_look(
    spans: Spans | None, *, is_terminal: bool, encoding: str | None, environ: Mapping[str, str]
) -> Look:
    """The user's choice, or what suits the output; a table leaves the stream as it would be without it."""
    can_color = not environ.get("NO_COLOR")
    suits: Spans = "none"
    if is_terminal:
        suits = "color" if can_color and environ.get("TERM") != "dumb" else "marks"
    stream = suits if spans in (None, "table") else spans
    look = Look(streams=stream != "none", colors=stream == "color" and can_color, table=spans == "table")
    if can_show(look.open + look.close + look.separator + look.ellipsis, encoding):
        return look
    return replace(look, open="[[", close="]]", separator=" | ", ellipsis="...")


# --- the stream --------------------------------------------------------------------------------------

_COLOR = "\x1b[1;35m"  # bold magenta: bold shows where there is only one colour
_RESET = "\x1b[0m"


class StreamView:
    """Writes an answer as it comes. The large model's text stands in marks: `28 * 4: ⟦1 20 * 4 = 80⟧, so`.

    A mark with an exclamation mark says that help did not come, or broke off: `⟦2!offline⟧`.
    """

    def __init__(self, look: Look, err: TextIO, answer: TextIO | None = None) -> None:
        """Args:
        err: takes the stream. Where it does not (a full disk, a reader that left) the answer goes on.
        answer: takes the text of the answer proper, where it is the same terminal as `err`.
        """
        self._look = look
        self._err = err
        self._answer = answer
        self._sanitiser = Sanitiser()  # one for all: two writers could make one sequence
        self._writer: int | None = None  # who wrote last: a span, or the small model
        self._parts = ReasoningSplitter[int | None](thinks=False)
        self._part: Part = "reasoning"
        self._span: int | None = None  # whose mark is open
        self._blank = ""  # white space that waits for text: a mark or a part may end before it
        self._has_written = False
        self.failure: OSError | None = None
        """Why `err` did not take all of it."""

    def add(self, event: Event) -> None:
        match event:
            case Started():
                self._parts = ReasoningSplitter(thinks=is_thinking(event.opening))
            case LocalToken():
                self._push(event.text, None)
            case SpanDelta():
                self._push(event.text, event.span)
            case SpanClosed():
                if event.end in NOT_SENT | FAILED:
                    self._break_off(event.span, event.end)
                self._close_mark()
            case Finished():
                self.close()
        self._flush()

    def make_way(self) -> None:
        """End the line that is being written, so that another one may be: what follows begins anew."""
        self._blank = ""
        if self._has_written and self._look.streams:
            self._put(self._err, "\n")
            self._flush()
        self._has_written = False

    def close(self) -> None:
        """End the last line, its mark and its colour; a second time nothing."""
        rest = self._parts.push(self._sanitiser.flush(), self._writer)
        for part, text, span in (*rest, *self._parts.flush()):
            self._show(part, text, span)
        self._close_mark()
        self._blank = ""
        if self._has_written:
            self._write("\n")
        self._has_written = False
        self._flush()

    def _push(self, text: str, span: int | None) -> None:
        self._writer = span
        for part, piece, origin in self._parts.push(self._sanitiser.push(text), span):
            self._show(part, piece, origin)

    def _show(self, part: Part, text: str, span: int | None) -> None:
        body = text.strip()
        if not body:
            self._blank += text if part == self._part else ""
            return
        if part != self._part:
            self._close_mark()
            if self._has_written:
                self._write("\n\n")
            self._part = part
            self._blank = ""
            text = text.lstrip()
        if span != self._span:
            self._close_mark()
        start = text.index(body)
        if self._has_written:
            self._write(self._blank + text[:start])
        if span is not None and self._span is None:
            self._open_mark(f"{span} ", span)
        self._write(body)
        self._blank = text[start + len(body) :]

    def _break_off(self, span: int, end: End) -> None:
        if self._span is None:
            if self._has_written:
                self._write(self._blank)
            self._blank = ""
            self._open_mark(f"{span}!{end}", span)
        else:
            self._mark(f" !{end}")

    def _open_mark(self, text: str, span: int) -> None:
        self._mark((_COLOR if self._look.colors else "") + self._look.open + text)
        self._span = span

    def _close_mark(self) -> None:
        if self._span is not None:
            self._mark(self._look.close + (_RESET if self._look.colors else ""))
        self._span = None

    def _mark(self, text: str) -> None:
        """Marks and colours never go where the answer goes: a shared terminal shows both in order."""
        if self._look.streams:
            self._flush()
            self._put(self._err, text)
            self._flush()
            self._has_written = True

    def _write(self, text: str) -> None:
        to = self._answer if self._part == "answer" and self._answer else self._err
        if to is self._err and not self._look.streams:
            return
        is_colored = self._look.colors and self._span is not None
        for n, line in enumerate(text.split("\n")):
            if n:
                if is_colored:
                    self._mark(_RESET)  # a pager colours each line by itself
                self._put(to, "\n")
                if is_colored:
                    self._mark(_COLOR)
            self._put(to, line)
        self._has_written = True

    def _put(self, to: TextIO, text: str) -> None:
        try:
            to.write(text)
        except OSError as error:
            if to is not self._err:
                raise
            self.failure = self.failure or error

    def _flush(self) -> None:
        try:
            self._err.flush()
        except OSError as error:
            self.failure = self.failure or error
        if self._answer:
            self._answer.flush()


# --- lines -------------------------------------------------------------------------------------------


def notes(transcript: Transcript, *, max_tokens: int | None = None) -> list[str]:
    """What a user has to know beyond the answer, one line each: what failed, what was cut.

    Args:
        max_tokens: the limit of the answer; None where it is not known any more.
    """
    lines = []
    failed = [span for span in transcript.spans if span.end in FAILED]
    refused = [span for span in transcript.spans if _is_refused(span) and transcript.finish != "length"]
    if failed:
        error = failed[0].error or f"the remote {failed[0].end}"
        lines.append(error if error.startswith("remote ") else f"remote failed: {error}")
    elif refused:
        lines.append(refused[0].error or refused[0].end or "")
    if lines and transcript.finish != "error":
        lines[0] += (
            " The small model went on alone" if lines[0].endswith("?") else "; the small model went on alone"
        )
    if transcript.finish == "length":
        limit = "its limit" if max_tokens is None else f"--max-tokens {max_tokens}"
        if is_full(transcript):
            limit = "the end of the context"
        elif transcript.error is not None:
            limit = f"this point, since {transcript.error}"
        answer = split_reasoning(transcript.opening, transcript.text)[1].strip()
        what = "the answer is cut" if answer else "the reasoning had not reached an answer"
        lines.append(f"stopped at {limit}: {what}")
    elif transcript.finish == "refused" or (transcript.finish == "error" and not lines):
        lines.append(transcript.error or "generation failed")
    return lines


def _is_refused(span: SpanRecord) -> bool:
    return span.end in NOT_SENT or (span.end == "budget" and not span.sent_bytes)


def is_full(transcript: Transcript) -> bool:
    """Whether the answer was cut because nothing more fits into the context."""
    return transcript.finish == "length" and (transcript.error or "").startswith("the context is full")


def usage_line(transcript: Transcript, separator: str = " · ") -> str:
    """`local 812 tokens 21.4 tok/s · remote 143 tokens in 3 spans (15.0 %) · sent 2.1 kB · $0.0011 · 41 s`"""
    speed = _tokens_per_second(transcript)
    spans = len(transcript.spans)
    parts = [
        f"local {transcript.local_tokens} tokens" + (f" {speed:.1f} tok/s" if speed else ""),
        f"remote {transcript.remote_tokens} tokens in {spans} span{'' if spans == 1 else 's'} "
        f"({transcript.remote_share:.1%})".replace("%", " %"),
        f"sent {size(sum(span.sent_bytes for span in transcript.spans))}",
        *([] if transcript.cost is None else [dollars(transcript.cost)]),
        f"{transcript.seconds:.{0 if transcript.seconds >= 10 else 1}f} s",
    ]
    return separator.join(parts)


def _tokens_per_second(transcript: Transcript) -> float | None:
    return transcript.local_tokens / transcript.local_seconds if transcript.local_seconds > 0 else None


def size(count: int) -> str:
    """Bytes, as a person reads them."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"


# --- tables ------------------------------------------------------------------------------------------


_REMOTE_WIDTH = 20


def span_table(spans: Sequence[SpanRecord], *, width: int, ellipsis: str = "…") -> list[str]:
    """One line a span under a heading, each clipped to the width; times in milliseconds."""
    rows = [
        [
            str(span.span),
            span.end or "cut",
            str(span.tokens),
            "-" if span.p_open is None else f"{span.p_open:.2f}",
            _milliseconds(span.ttft),
            _milliseconds(span.seconds),
            _milliseconds(span.resume),
            safe_line(span.remote or "-")[:_REMOTE_WIDTH],
            safe_line(span.text or span.error or "-"),
        ]
        for span in spans
    ]
    heading = ["#", "end", "tok", "p(open)", "ttft", "ms", "resume", "remote", "text"]
    return table(heading, rows, left=(1, 7, 8), width=width, ellipsis=ellipsis)


def table(
    heading: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int], width: int, ellipsis: str
) -> list[str]:
    """Columns side by side, right-aligned but for those in `left`; every line clipped to `width` cells."""
    from rich.cells import cell_len, set_cell_size

    widths = [max(map(cell_len, column)) for column in zip(heading, *rows, strict=True)]
    lines = []
    for row in (heading, *rows):
        cells = [
            set_cell_size(cell, size) if n in left else " " * (size - cell_len(cell)) + cell
            for n, (cell, size) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        if cell_len(line) > width:
            line = set_cell_size(line, max(0, width - cell_len(ellipsis))).rstrip() + ellipsis
        lines.append(line)
    return lines


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}" if seconds >= 0.01 else f"{seconds * 1000:.1f}"


# --- JSON --------------------------------------------------------------------------------------------


def as_json(transcript: Transcript) -> dict[str, Any]:
    """The object of `sr-edge ask --json`. Texts are as they were written, not made safe."""
    answer: str | None = split_reasoning(transcript.opening, transcript.text)[1].strip()
    speed = _tokens_per_second(transcript)
    return {
        "answer": None if transcript.finish == "refused" else answer,
        "boxed": last_boxed(answer or ""),
        "text": transcript.text,
        "finish": transcript.finish,
        "degraded": transcript.degraded,
        "error": transcript.error,
        "spans": [
            {
                "text": span.text,
                "trigger": span.trigger,
                "end": span.end,
                "status": span.status,
                "tokens": span.tokens,
                "p_open": span.p_open,
                "ttft_ms": _ms(span.ttft),
                "ms": _ms(span.seconds),
                "resume_ms": _ms(span.resume),
                "sent_bytes": span.sent_bytes,
                "cost": span.cost,
                "remote": span.remote,
                "error": span.error,
            }
            for span in transcript.spans
        ],
        "usage": {
            "local_tokens": transcript.local_tokens,
            "remote_tokens": transcript.remote_tokens,
            "remote_share": transcript.remote_share,
            "prompt_tokens": transcript.prompt_tokens,
            "sent_tokens": sum(span.sent_tokens for span in transcript.spans),
            "sent_bytes": sum(span.sent_bytes for span in transcript.spans),
            "cost": transcript.cost,
            "tok_s": None if speed is None else round(speed, 2),
        },
        "model": transcript.model,
        "big": transcript.big,
        "seconds": round(transcript.seconds, 3),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
