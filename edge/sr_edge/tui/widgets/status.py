"""One line that always says who is being waited for, whether anything can leave, and what it has cost.

Its fields keep their places while figures change; where the terminal is narrow, the last ones go.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from sr_edge.budget import dollars
from sr_edge.policy import Dial
from sr_edge.terminal import safe_line
from sr_edge.tui.state import BUSY, Link, Phase

TICK = 0.25
"""Seconds between two drawings, while something runs."""

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧"
_NAME_WIDTH = 16
_BAR_CELLS = 8
_GAP = "  "

_LINKS: dict[Link, tuple[str, str]] = {
    "online": ("● online", "$text-success"),
    "slow": ("◐ slow", "$text-warning"),
    "offline": ("○ offline", "$text-warning"),
    "local only": ("⊘ local only", "dim"),
    "key rejected": ("⚠ key rejected", "$text-error"),
}


@dataclass(frozen=True, slots=True)
class Doing:
    """What is going on."""

    phase: Phase = "idle"
    remote: str = ""
    """Who is being waited for, or writes."""
    done: float = 0.0
    """Of loading, 0 to 1; of reading, tokens."""
    total: int = 0
    since: float = 0.0
    """When it began, by the clock of the line."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What was spent, in US dollars or in tokens."""

    used: float
    most: float | None = None
    is_usd: bool = True


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the line shows."""

    doing: Doing = Doing()
    link: Link = "local only"
    ttft: float | None = None
    """Seconds to the first text, of the last span."""
    dial: Dial = "auto"
    effort: str = ""
    context: tuple[int, int] | None = None
    """Tokens used, and how many there is room for."""
    answer: Limit | None = None
    day: Limit | None = None


class StatusLine(Static):
    """Draws `Facts`; nothing ticks while nothing runs."""

    DEFAULT_CSS = """
    StatusLine {
        width: 1fr;
        height: 1;
        padding: 0 1;
        color: $text-muted;
        background: $panel;
    }
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        super().__init__(id=id, classes=classes, markup=False)
        self._clock = clock
        self._facts = Facts()
        self._frame = 0
        self._timer: Timer | None = None

    def show(self, facts: Facts) -> None:
        """Call it as often as anything changes: a new state is seen at once, figures a few times a second."""
        if facts == self._facts:
            return
        is_new = _state(facts) != _state(self._facts)
        self._facts = facts
        if self._timer is None:
            return
        if facts.doing.phase in BUSY:
            self._timer.resume()
        else:
            self._timer.pause()
            is_new = True
        if is_new:
            self._draw()

    @property
    def is_ticking(self) -> bool:
        return self._timer is not None and self._facts.doing.phase in BUSY

    def on_mount(self) -> None:
        self._timer = self.set_interval(TICK, self._tick, pause=self._facts.doing.phase not in BUSY)
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _tick(self) -> None:
        self._frame += 1
        self._draw()

    def _draw(self) -> None:
        frame = 0 if self.app.animation_level == "none" else self._frame
        line = status_line(self._facts, self.content_size.width, now=self._clock(), frame=frame)
        self.update(line, layout=False)


def _state(facts: Facts) -> tuple[object, ...]:
    return (facts.doing.phase, facts.doing.remote, facts.link, facts.dial, facts.effort)


def status_line(facts: Facts, width: int, *, now: float, frame: int = 0) -> Content:
    """The fields that there is room for, each as wide as it ever gets."""
    is_busy = facts.doing.phase in BUSY
    mark = f"{_SPINNER[frame % len(_SPINNER)]} " if is_busy else "  "
    link, color = _LINKS[facts.link]
    if facts.link == "slow" and facts.ttft is not None:
        link += f" {_seconds(facts.ttft)}"
    fields = [
        (mark + doing_words(facts.doing, now), 26, "$text" if is_busy else ""),
        (link, 14, color),
        (facts.dial, 6, "$text-accent" if facts.dial == "ask" else "$text"),
        (facts.effort, 10, ""),
        (
            f"ctx {_thousands(facts.context[0])}/{_thousands(facts.context[1])}" if facts.context else "",
            14,
            "",
        ),
        (_money("answer", facts.answer), 22, ""),
        (_money("day", facts.day), 19, ""),
    ]
    line = Content("")
    for n, (text, cells, style) in enumerate(field for field in fields if field[0]):
        text = safe_line(text) if text.strip() == text else text
        room = width - line.cell_length - (len(_GAP) if n else 0)
        if cell_len(text) > room and n:
            break
        if cell_len(text) > room:
            text = set_cell_size(text, max(0, room))
        padded = text + " " * min(max(0, cells - cell_len(text)), max(0, room - cell_len(text)))
        line = line.append_text((_GAP if n else "") + padded, style)
    return line


def doing_words(doing: Doing, now: float) -> str:
    name = safe_line(doing.remote) or "the remote"
    if cell_len(name) > _NAME_WIDTH:
        name = set_cell_size(name, _NAME_WIDTH - 1).rstrip() + "…"
    match doing.phase:
        case "asleep":
            return "no model loaded"
        case "loading":
            done = min(1.0, max(0.0, doing.done))
            filled = round(_BAR_CELLS * done)
            return f"loading {'█' * filled}{'░' * (_BAR_CELLS - filled)} {100 * done:.0f} %"
        case "reading":
            of = f" {_thousands(doing.done)}/{_thousands(doing.total)}" if doing.total else ""
            return f"reading prompt{of}"
        case "waiting":
            return f"waiting for {name} {_seconds(max(0.0, now - doing.since))}"
        case "asking":
            return "waiting for you: y or n"
        case "remote":
            return name
        case "failed":
            return "no model"
        case _:
            return doing.phase


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"


def _thousands(count: float) -> str:
    """`812`, `1.2k`, `34k`: never more than four characters, up to a million."""
    if count < 1000:
        return f"{count:.0f}"
    if count < 9950:
        return f"{count / 1000:.1f}k".replace(".0k", "k")
    return f"{count / 1000:.0f}k" if count < 999_500 else f"{count / 1_000_000:.1f}M"


def _money(whose: str, limit: Limit | None) -> str:
    if limit is None:
        return ""
    if limit.is_usd:
        most = "" if limit.most is None else "/" + dollars(limit.most).removeprefix("$")
        return f"{whose} {dollars(limit.used)}{most}"
    most = "" if limit.most is None else f"/{_thousands(limit.most)}"
    return f"{whose} {_thousands(limit.used)}{most} tok"
