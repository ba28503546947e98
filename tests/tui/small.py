"""Small things that tests of the screen share."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from textual.app import App
from textual.pilot import Pilot

SIZES = [(120, 40), (60, 20)]
NOON = datetime(2026, 3, 12, 12).timestamp()
DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Conversation:
    """As the store has them."""

    id: str
    title: str
    created: float = NOON
    updated: float = NOON
    head: str | None = None
    turns: int = 2
    model: str = "small"


@dataclass(frozen=True, slots=True)
class Hit:
    conversation: Conversation
    turn: str
    role: str
    snippet: str
    at: float = NOON


def conversations(titles: Sequence[str], *, days_ago: Sequence[float] = ()) -> list[Conversation]:
    ages = [*days_ago, *[0.0] * len(titles)]
    return [
        Conversation(f"c{number}", title, updated=NOON - age * DAY)
        for number, (title, age) in enumerate(zip(titles, ages, strict=False))
    ]


async def until(pilot: Pilot[Any], holds: Callable[[], bool], patience: float = 20.0) -> None:
    """Wait until something is so.

    Args:
        patience: seconds.
    """
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, "it did not come to be so"
        await pilot.pause(0.01)


def shown(app: App[Any]) -> str:
    """What the screen says, line by line."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)
