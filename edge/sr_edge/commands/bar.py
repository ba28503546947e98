"""How far a file is, on one line of a terminal."""

from __future__ import annotations

import sys
import time
from typing import Self

from sr_edge.commands.interrupt import Interrupt
from sr_edge.commands.output import width_of
from sr_edge.shelf import amount
from sr_edge.terminal import can_show


class Bar:
    """One line on a terminal that says how far a file is; elsewhere nothing."""

    def __init__(self, doing: str, interrupt: Interrupt) -> None:
        self._doing = doing
        self._interrupt = interrupt
        self._is_shown = sys.stderr.isatty()
        self._started = self._drawn = time.monotonic()
        self._width = 0

    def progress(self, done: int, whole: int) -> None:
        """Raises: KeyboardInterrupt: Ctrl-C was pressed."""
        self._interrupt.check(done / whole)
        now = time.monotonic()
        if self._is_shown and now - self._drawn >= 0.1 and done < whole:
            self._drawn = now
            rate = done / (now - self._started)
            left = f", {(whole - done) / rate:.0f} s left" if rate else ""
            middle = " · " if can_show("·", sys.stderr.encoding) else ", "
            self._draw(
                f"{self._doing} {done / whole:.0%} of {amount(whole)}{middle}{amount(round(rate))}/s{left}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        if self._width:
            self._draw("")
            print("\r", end="", file=sys.stderr, flush=True)

    def _draw(self, line: str) -> None:
        line = line[: max(0, width_of(sys.stderr) - 1)]
        print("\r" + line.ljust(self._width), end="", file=sys.stderr, flush=True)
        self._width = len(line)
