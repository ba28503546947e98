"""`sr-edge replay`: a recorded answer, shown again."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from sr_edge.commands.output import Output, note
from sr_edge.errors import UsageError
from sr_edge.events import Event, Finished, SpanClosed, SpanDelta, SpanOpened, Started, from_json
from sr_edge.report import Spans
from sr_edge.transcript import Fold

_LONGEST_PAUSE = 600.0  # seconds


def replay(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Events, as `ask --events FILE` or `ask --jsonl` wrote them."),
    ],
    spans: Annotated[
        Spans | None, typer.Option("--spans", help="As in `sr-edge ask`.", show_default=False)
    ] = None,
    speed: Annotated[
        float | None, typer.Option("--speed", metavar="N", help="N times as fast as it was; 1 is as it was.")
    ] = None,
    instant: Annotated[bool, typer.Option("--instant", help="All at once: the default.")] = False,
) -> None:
    """Show a recorded answer again, with no model and no network.

    A recording that was cut is shown as far as it goes.
    """
    if speed is not None and instant:
        raise UsageError("--speed and --instant exclude each other")
    if speed is not None and not (math.isfinite(speed) and speed > 0):
        raise UsageError(f"--speed {speed} is no speed: 1 is as it was, 10 is ten times as fast")
    output = Output(spans)
    folding = Fold()
    try:
        for event in _paced(recorded(file), speed):
            folding.add(event)
            output.view.add(event)
    finally:
        output.view.close()
    transcript = folding.transcript
    output.print_answer(transcript)
    output.print_summary(transcript)
    if transcript.finish is None:
        note(f"{file}: the recording was cut here")


def recorded(path: Path) -> Iterator[Event]:
    """The events of a file, in order. A last line that was cut in the middle is left out.

    Raises:
        UsageError: the file cannot be read, or a line of it is not what may stand there.
    """
    order = _Order()
    number = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    event = from_json(line.decode())
                    order.check(event)
                except ValueError as error:
                    if number > 1 and not line.endswith(b"\n"):
                        return
                    raise UsageError(f"{path}:{number}: {error}") from None
                yield event
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if number == 0:
        raise UsageError(f"{path}: no events in it")


class _Order:
    """What may follow what: one answer, its spans one after the other."""

    def __init__(self) -> None:
        self._has_started = False
        self._has_finished = False
        self._span: int | None = None

    def check(self, event: Event) -> None:
        """Raises: ValueError: the event cannot stand here."""
        if self._has_finished:
            raise ValueError("something follows the end of the answer: one file holds one answer")
        if isinstance(event, Started) == self._has_started:
            raise ValueError("an answer begins with the event 'started', and only once")
        self._has_started = True
        match event:
            case SpanOpened():
                if self._span is not None:
                    raise ValueError(f"span {event.span} opens inside span {self._span}")
                self._span = event.span
            case SpanDelta() | SpanClosed():
                if event.span != self._span:
                    raise ValueError(f"span {event.span} is not open here")
                if isinstance(event, SpanClosed):
                    self._span = None
            case Finished():
                self._has_finished = True


def _paced(events: Iterable[Event], speed: float | None) -> Iterator[Event]:
    """The events in the rhythm of their `at`, or at once where no speed is given."""
    before = 0.0
    for event in events:
        if speed is not None:
            time.sleep(min(max(0.0, event.at - before) / speed, _LONGEST_PAUSE))
            before = max(before, event.at)
        yield event
