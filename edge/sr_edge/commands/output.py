"""What `ask` and `replay` print, and where: the answer on stdout, everything else on stderr."""

from __future__ import annotations

import os
import sys
from typing import Literal, TextIO

import typer

from sr_edge.extract import last_boxed, split_reasoning
from sr_edge.report import Spans, StreamView, choose_look, notes, span_table, usage_line
from sr_edge.terminal import safe, safe_line
from sr_edge.transcript import Transcript

Extract = Literal["boxed"]


class Output:
    """One answer's way to the two streams."""

    def __init__(self, spans: Spans | None, *, is_answer_text: bool = True) -> None:
        """Args:
        is_answer_text: whether stdout gets the answer as it is, and not a part of it or JSON.
        """
        self.look = choose_look(
            spans, is_terminal=sys.stderr.isatty(), encoding=sys.stderr.encoding, environ=os.environ
        )
        # On one terminal the answer follows the reasoning as it is written. Elsewhere it is printed once it
        # is known to be the answer, and the stream on stderr holds it too.
        self._is_live = is_answer_text and _share_a_terminal(sys.stdout, sys.stderr)
        self.view = StreamView(self.look, sys.stderr, sys.stdout if self._is_live else None)

    def print_answer(self, transcript: Transcript) -> None:
        answer = answer_of(transcript)
        if answer and not self._is_live:
            print(safe(answer), flush=True)

    def print_summary(
        self, transcript: Transcript, *, max_tokens: int | None = None, usage: bool = False
    ) -> None:
        """What follows the answer."""
        lines = []
        if self.look.table and transcript.spans:
            lines += span_table(transcript.spans, width=width_of(sys.stderr), ellipsis=self.look.ellipsis)
        lines += [f"sr-edge: {safe_line(line)}" for line in notes(transcript, max_tokens=max_tokens)]
        if usage:
            lines.append(usage_line(transcript, self.look.separator))
        if lines and self._is_live and transcript.text:
            print(file=sys.stderr)  # so that the answer stands alone
        for line in lines:
            print(line, file=sys.stderr)


def width_of(stream: TextIO) -> int:
    """Cells that a line may have; a file takes any line as it is."""
    return typer.get_terminal_size().columns if stream.isatty() else sys.maxsize


def note(line: str) -> None:
    print(f"sr-edge: {safe_line(line)}", file=sys.stderr, flush=True)


def answer_of(transcript: Transcript) -> str:
    return split_reasoning(transcript.opening, transcript.text)[1].strip()


def boxed_of(transcript: Transcript) -> str | None:
    return last_boxed(answer_of(transcript))


def _share_a_terminal(a: TextIO, b: TextIO) -> bool:
    return a.isatty() and b.isatty() and os.fstat(a.fileno()).st_rdev == os.fstat(b.fileno()).st_rdev
