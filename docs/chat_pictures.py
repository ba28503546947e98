"""Draws docs/chat.svg and docs/chat-span.svg: a real chat with the built-in pair, as its screen shows it.

make pictures
"""

import asyncio
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from textual.pilot import Pilot

from sr_edge.config import load_config
from sr_edge.engine.messages import Choices
from sr_edge.store import Store, history_path
from sr_edge.tui.app import EdgeApp
from sr_edge.tui.beginning import Beginning, dialogue_of
from sr_edge.tui.widgets.transcript import Talk

SIZE = (110, 32)
EARLIER = (
    "There are 5 jars with 41 nuts each. Another 43 nuts come by post. How many nuts are there now?",
    "Rosa finds 186 beads at home. Leo brings 4 tins with 6 beads each. How many beads does Rosa have?",
)
PROBLEM = os.environ["DEMO_PROBLEM"]
FLAGS = {"sampling.temperature": 0.0, "ui.animations": False}


async def draw() -> None:
    with tempfile.TemporaryDirectory() as home:
        environ = {**os.environ, "SR_EDGE_HOME": home}
        config, choices = load_config(environ=environ, flags=FLAGS), Choices(flags=FLAGS)
        store = Store.open(history_path(environ))
        for problem in EARLIER:
            store.say(store.new_conversation(problem).id, None, problem)
        dialogue = dialogue_of(store, Beginning(config, choices, environ=environ))
        app = EdgeApp(dialogue, config, choices=choices, environ=environ, prompt=PROBLEM)
        async with app.run_test(size=SIZE) as pilot:
            await until(pilot, lambda: any(turn.role == "assistant" for turn in dialogue.turns))
            await until(pilot, lambda: not app.chat.is_answering)
            app.chat.query_one("#prompt").cursor_blink = False  # type: ignore[attr-defined]
            keep(app, "chat.svg")
            app.chat.query_one(Talk).focus()
            await pilot.press("]", "enter")
            await until(pilot, lambda: app.screen is not app.chat)
            await pilot.pause()
            keep(app, "chat-span.svg")


async def until(pilot: Pilot[int], holds: Callable[[], bool]) -> None:
    while not holds():
        await pilot.pause(0.05)
    await pilot.pause(0.2)


def keep(app: EdgeApp, name: str) -> None:
    """No font is fetched by who looks at it, and its names do not change from run to run."""
    svg = re.sub(r"\s*@font-face \{.*?\}", "", app.export_screenshot(title="sr-edge chat"), flags=re.DOTALL)
    svg = re.sub(r"terminal-\d+-", "terminal-", svg)
    Path(__file__).with_name(name).write_text(svg, "utf-8")


if __name__ == "__main__":
    os.environ.pop("NO_COLOR", None)
    asyncio.run(draw())
