"""A whole chat for tests: the real app, history and host; the child is the real one, or plays a script."""

import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.tui.small import until
from textual.pilot import Pilot

from sr_edge.config import load_config
from sr_edge.dialogue import Dialogue
from sr_edge.engine.host import Engine
from sr_edge.engine.messages import Answered, Answering, Choices, Ready, encode
from sr_edge.events import Event, Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started
from sr_edge.store import Store, history_path
from sr_edge.tui.app import EdgeApp

QUESTION = (
    "Ida fills 28 bags with 4 coins each. Tom gives her 93 more. Ida loses 67 of them. "
    "How many coins does Ida have now?"
)
READY = Ready("small-1.5b", 8192, big="lab", leaves=True, where="api.example.com:443", price=(0.6, 2.4))
PAIR = Ready("sr-edge demo small", 1024, big="sr-edge demo big")


def chat(
    home: Path,
    *,
    script: Iterable[object] | None = None,
    flags: Mapping[str, Any] | None = None,
    config: str = "",
    now: Callable[[], float] = time.time,
    **options: Any,
) -> EdgeApp:
    """The app, not yet running, with its files under `home`.

    Args:
        script: what the child says and waits for, see `scripted_child`; None takes the real child.
        config: text of the settings.
        now: what the history takes for the time of day.
        options: for the app.
    """
    environ = {**os.environ, "SR_EDGE_HOME": str(home)}
    home.mkdir(mode=0o700, exist_ok=True)
    if config:
        (home / "config.toml").write_text(config)
    flags = {"sampling.temperature": 0.0, **(flags or {})}
    settings = load_config(environ=environ, flags=flags)
    choices = Choices(flags=flags)
    command = [sys.executable, "-P", "-m", "sr_edge.engine"]
    if script is not None:
        file = home / "script.jsonl"
        file.write_text("".join(as_line(step) + "\n" for step in script))
        command = [sys.executable, str(Path(__file__).with_name("scripted_child.py")), str(file)]
    store = Store.open(history_path(environ), clock=now)
    dialogue = Dialogue(store, lambda hear: Engine(choices, hear, environ=environ, command=command))
    return EdgeApp(dialogue, settings, choices=choices, environ=environ, **options)


def as_line(step: object) -> str:
    return json.dumps(step) if isinstance(step, dict) else encode(step)  # type: ignore[arg-type]


@asynccontextmanager
async def running(app: EdgeApp, size: tuple[int, int] = (120, 40)) -> AsyncIterator[Pilot[Any]]:
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(pilot, lambda: app.chat.state.ready is not None or app.chat.state.phase == "failed")
        await pilot.pause()
        yield pilot


async def answered(app: EdgeApp, pilot: Pilot[Any]) -> None:
    """Wait until an answer is over and shown."""
    await until(pilot, lambda: not app.chat.is_answering)
    await pilot.pause()


def answer(*events: Event) -> list[object]:
    """The steps of one whole answer."""
    return [{"wait": "answer"}, Answering(0), *events, Answered(0)]


def spans_story() -> list[Event]:
    """Reasoning with a span that was handed back, one that failed and one that broke off, and an answer."""
    return [
        Started((1, 2, 3), "small-1.5b", big="lab", opening="<think>\n", at=0.1),
        *_local("We need 7^2024 mod 100. Try small powers: 7, 49, 343.\n", 0.2),
        SpanOpened(1, "marker", 0.83, "lab", sent_tokens=1812, sent_bytes=7200, at=0.4),
        LocalToken(256, "", -0.2, at=0.9),
        SpanDelta(1, "Since 7^4 = 2401 leaves 1 and 4 divides 2024, ", at=0.9),
        SpanDelta(1, "7^2024 leaves 1.", at=1.2),
        SpanClosed(
            1,
            (7, 8, 9, 257),
            "handback",
            tokens=46,
            p_close=0.91,
            remote_prompt_tokens=1790,
            remote_completion_tokens=51,
            cost=0.0012,
            ttft=0.5,
            seconds=0.9,
            resume=0.03,
            at=1.3,
        ),
        *_local("\nSo the last two digits are 01. Check with 7^8:\n", 1.4),
        SpanOpened(2, "marker", 0.52, "lab", sent_tokens=1900, sent_bytes=7600, at=1.6),
        SpanClosed(2, (), "error", error="lab cannot be reached: no route", at=1.7),
        *_local("7^8 = 5764801, which ends in 01.\n\nThat agrees.\n", 1.8),
        SpanOpened(3, "marker", 0.61, "lab", sent_tokens=1950, sent_bytes=7800, at=2.0),
        LocalToken(256, "", -0.2, at=2.1),
        SpanDelta(3, "And 5*3*2 = 30 if a<b>c", at=2.2),
        SpanClosed(3, (5, 257), "stalled", tokens=9, error="lab fell silent", seconds=0.4, ttft=0.1, at=2.3),
        *_local("</think>\n\nThe last two digits are **01**: $7^{2024} \\equiv 1$. \\boxed{01}", 2.4),
        Finished("stop", 3, 40, 55, 2.6, local_seconds=1.1, at=2.6),
    ]


def _local(text: str, at: float) -> list[Event]:
    words = [word + " " for word in text.split(" ")]
    words[-1] = words[-1][:-1]
    return [LocalToken(10 + n, word, -0.1, at=at) for n, word in enumerate(words) if word]
