"""How far a file is, on one line of a terminal."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Literal, Self

from sr_edge.commands.interrupt import Interrupt
from sr_edge.commands.output import width_of
from sr_edge.shelf import amount
from sr_edge.terminal import can_show, safe_line

_PERIOD = 0.1  # seconds between two drawings
_WINDOW = 10.0  # seconds that the rate is taken over
_SILENCE = 3.0  # seconds without a byte that are worth a word


class Bar:
    """One line on a terminal that says how far a file is; elsewhere nothing."""

    def __init__(
        self, doing: str, interrupt: Interrupt, *, unit: Literal["bytes", "steps"] = "bytes"
    ) -> None:
        self._doing = safe_line(doing)
        self._is_sized = unit == "bytes"
        self._interrupt = interrupt
        self._is_shown = sys.stderr.isatty()
        self._middle = " · " if can_show("·", sys.stderr.encoding) else ", "
        self._drawn = time.monotonic()
        self._seen: deque[tuple[float, int]] = deque()
        self._whole = 0
        self._width = 0

    def progress(self, done: int, whole: int) -> None:
        """Args:
            whole: 0 where nobody knows how much it is.
        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        self._interrupt.check(done / whole if whole else 0.0)
        now = time.monotonic()
        if not self._seen or done != self._seen[-1][1]:
            self._seen.append((now, done))
            while now - self._seen[0][0] > _WINDOW and len(self._seen) > 2:
                self._seen.popleft()
        self._whole = whole
        self.tick()

    def stage(self, doing: str, done: int, whole: int) -> None:
        """Progress of work that does one thing after the other. Raises: KeyboardInterrupt."""
        doing = safe_line(doing)
        if doing != self._doing:
            self._doing = doing
            self._seen.clear()
        self.progress(done, whole)

    def tick(self) -> None:
        """Show that time goes by, too. Raises: KeyboardInterrupt."""
        self._interrupt.check(0.0)
        now = time.monotonic()
        if not self._is_shown or now - self._drawn < _PERIOD:
            return
        if not self._whole or not self._seen:
            self._drawn = now
            self._draw(f"{self._doing} ...")
            return
        (since, before), (last, done) = self._seen[0], self._seen[-1]
        if done >= self._whole:
            return
        self._drawn = now
        if self._is_sized:
            parts = [f"{self._doing} {done / self._whole:.0%} of {amount(self._whole)}"]
        else:
            parts = [f"{self._doing} {done} of {self._whole}"]
        rate = (done - before) / (now - since) if now > since else 0.0
        if now - last > _SILENCE:
            parts.append(f"no news for {now - last:.0f} s")
        elif rate:
            left = f"{_duration((self._whole - done) / rate)} left"
            parts.append(f"{amount(round(rate))}/s, {left}" if self._is_sized else left)
        self._draw(self._middle.join(parts))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.clear()

    def clear(self) -> None:
        if self._width:
            self._draw("")
            print("\r", end="", file=sys.stderr, flush=True)
            self._width = 0

    def _draw(self, line: str) -> None:
        line = line[: max(0, width_of(sys.stderr) - 1)]
        print("\r" + line.ljust(self._width), end="", file=sys.stderr, flush=True)
        self._width = len(line)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def short(name: str, width: int = 36) -> str:
    """A file's name with its middle left out: its ends tell files apart."""
    if len(name) <= width:
        return name
    return f"{name[: width // 3]}...{name[-(width - width // 3 - 3) :]}"
