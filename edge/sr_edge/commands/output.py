"""What `ask` and `replay` print, and where: the answer on stdout, everything else on stderr."""

from __future__ import annotations

import io
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
        if self.view.failure is not None:
            _give_up(self.view.failure)
        lines = []
        if self.look.table and transcript.spans:
            lines += span_table(transcript.spans, width=width_of(sys.stderr), ellipsis=self.look.ellipsis)
        lines += [f"sr-edge: {safe_line(line)}" for line in notes(transcript, max_tokens=max_tokens)]
        if usage:
            lines.append(usage_line(transcript, self.look.separator))
        if lines and self._is_live and transcript.text:
            lines.insert(0, "")  # so that the answer stands alone
        for line in lines:
            _tell(line)


def width_of(stream: TextIO) -> int:
    """Cells that a line may have; a file takes any line as it is."""
    return typer.get_terminal_size().columns if stream.isatty() else sys.maxsize


def note(line: str) -> None:
    """A line that is no part of the result: where stderr does not take it, the result must not be lost."""
    _tell(f"sr-edge: {safe_line(line)}")


def _tell(line: str) -> None:
    if isinstance(sys.stderr, _Failed):
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError as error:
        _give_up(error)


def _give_up(error: OSError) -> None:
    """Write no more to stderr; that it failed decides the exit code when the program flushes its streams."""
    if not isinstance(sys.stderr, _Failed):
        sys.stderr = _Failed(sys.stderr.fileno(), error)


class _Failed(io.StringIO):
    """Stands for a stream that broke: takes whatever is written, and says once, at a flush, what happened."""

    def __init__(self, fileno: int, error: OSError) -> None:
        super().__init__()
        self._fileno = fileno
        self._error: OSError | None = error

    def fileno(self) -> int:
        return self._fileno

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


def answer_of(transcript: Transcript) -> str:
    return split_reasoning(transcript.opening, transcript.text)[1].strip()


def boxed_of(transcript: Transcript) -> str | None:
    return last_boxed(answer_of(transcript))


def _share_a_terminal(a: TextIO, b: TextIO) -> bool:
    return a.isatty() and b.isatty() and os.fstat(a.fileno()).st_rdev == os.fstat(b.fileno()).st_rdev
