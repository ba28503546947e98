"""What each screen looks like, kept as pictures: wide and narrow, with colours and without.

A story of `stories/` is what the engine's child says, line by line; time stands still. After a change that is
meant, `pytest tests/tui/test_screens.py --snapshot-update` takes the pictures anew: look at them.
"""

import datetime
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.tui.chatting import chat
from tests.tui.small import DAY, SIZES, until
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from sr_edge.events import from_json
from sr_edge.tui.app import EdgeApp
from sr_edge.tui.widgets.prompt import Prompt
from sr_edge.tui.widgets.transcript import Talk

STILL = 3  # looks at a screen that does not change
STORIES = Path(__file__).with_name("stories")
QUESTION = "What are the last two digits of 7^2024?"
NOON = datetime.datetime(2026, 3, 12, 12, tzinfo=datetime.UTC).timestamp()
EARLIER = (
    ("A letter to the landlord about the heating", 0.1),
    ("How many beads does Rosa have?", 0.2),
    ("Sums of cubes, and why they are squares", 1.0),
    ("Trains that leave at different times from two stations", 3.0),
    ("地図の読み方", 3.1),
    ("Why is the night sky dark?", 40.0),
)


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@dataclass
class Stage:
    app: EdgeApp
    pilot: Pilot[Any]
    clock: Clock

    async def sees(self, words: str) -> None:
        """Wait until it is on the screen."""
        for _ in range(2000):
            if words in self.text:
                return
            await self.pilot.pause(0.01)
        raise AssertionError(f"{words} did not come:\n{self.text}")

    @property
    def text(self) -> str:
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip) for strip in strips)

    async def asks(self, text: str = QUESTION) -> None:
        prompt = self.app.chat.query_one(Prompt)
        prompt.put(text)
        await self.pilot.press("enter")
        await until(self.pilot, lambda: bool(self.app.chat.query("AnswerView")))

    async def is_answered(self) -> None:
        await self.asks()
        await until(self.pilot, lambda: not self.app.chat.is_answering)
        await self.pilot.pause()

    async def in_talk(self, *keys: str) -> None:
        self.app.chat.query_one(Talk).focus()
        await self.pilot.press(*keys)


Play = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True)
class Scene:
    """A screen that is kept."""

    story: str
    play: Play
    keeps_notices: bool = False
    prepare: Callable[[EdgeApp, Clock], None] | None = None
    flags: dict[str, Any] = field(default_factory=dict)


async def looks(stage: Stage) -> None:
    await stage.pilot.pause()


def until_it_says(words: str) -> Play:
    async def play(stage: Stage) -> None:
        await stage.asks()
        await stage.sees(words)

    return play


async def answered(stage: Stage) -> None:
    await stage.is_answered()
    await stage.sees("✓ complete")


def then(first: Play, *keys: str, sees: str) -> Play:
    """Keys for the transcript."""

    async def play(stage: Stage) -> None:
        await first(stage)
        await stage.in_talk(*keys)
        await stage.sees(sees)

    return play


async def waiting(stage: Stage) -> None:
    await stage.asks()
    await stage.sees("waiting for lab 0.0 s")
    stage.clock.now += 0.4
    await stage.sees("waiting for lab 0.4 s")


async def asking(stage: Stage) -> None:
    await stage.asks()
    await stage.sees(" wants ")
    consent = stage.app.chat.query_one("#consent")
    await until(stage.pilot, lambda: consent._settling is None)  # type: ignore[attr-defined]


async def viewing(stage: Stage) -> None:
    await asking(stage)
    await stage.pilot.press("v")
    await stage.sees('"model": "big-72b"')


async def stopped(stage: Stage) -> None:
    await stage.asks()
    await stage.sees("2401.")
    await stage.pilot.press("escape")
    await stage.sees("■ stopped")
    await until(stage.pilot, lambda: not stage.app.chat.is_answering)


async def died(stage: Stage) -> None:
    await stage.asks()
    await stage.sees("killed")
    await until(stage.pilot, lambda: not stage.app.chat.is_answering)


async def searching(stage: Stage) -> None:
    await answered(stage)
    await stage.pilot.press("ctrl+r")
    await stage.sees("history")
    await stage.pilot.press(*"digits")
    await stage.sees("answer: ")


async def several_branches(stage: Stage) -> None:
    await answered(stage)
    await stage.in_talk("r")
    await stage.sees("‹2/2›")


async def exporting(stage: Stage) -> None:
    await answered(stage)
    await stage.in_talk("x")
    await stage.sees("● markdown")


async def long_talk(stage: Stage) -> None:
    await stage.app.chat.open(stage.app.chat.dialogue.store.conversations()[0].id)
    await stage.sees("Question 30")
    await stage.in_talk("g")
    await stage.sees("earlier turns")


async def listing(stage: Stage) -> None:
    await stage.sees("Ask something")
    if not stage.app.chat.query_one("#sidebar").display:
        await stage.pilot.press("ctrl+b")
    await stage.sees("Yesterday")


async def removing(stage: Stage) -> None:
    await listing(stage)
    stage.app.chat.query_one("#sidebar _List").focus()
    await stage.pilot.press("j", "d")
    await stage.sees("for good?")


def earlier_days(app: EdgeApp, clock: Clock) -> None:
    store = app._dialogue.store
    for title, days in reversed(EARLIER):
        clock.now = NOON - days * DAY
        store.say(store.new_conversation(title).id, None, title)
    clock.now = NOON


def thirty_turns(app: EdgeApp, clock: Clock) -> None:
    store = app._dialogue.store
    conversation = store.new_conversation("Thirty questions")
    events = [from_json(json.dumps(step)) for step in story("short") if "event" in step]
    parent: str | None = None
    for number in range(1, 31):
        asked = store.say(conversation.id, parent, f"Question {number}: how many coins has Ida now?")
        recorder = store.begin(asked.id, policy="auto", seed=None)
        for event in events:
            recorder.add(event)
        assert recorder.close() is None
        parent = recorder.turn


SCENES = {
    "welcome": Scene("welcome", looks),
    "no-remote-yet": Scene("local", looks, flags={"model": "/models/small.gguf"}),
    "loading": Scene("loading", looks),
    "no-model": Scene("no-model", looks, keeps_notices=True),
    "reading": Scene("reading", until_it_says("reading prompt 1.2k/3.4k")),
    "local": Scene("local", until_it_says("2401.")),
    "waiting": Scene("waiting", waiting),
    "asking": Scene("asking", asking, flags={"offload.policy": "ask"}),
    "asking-text": Scene("asking", viewing, flags={"offload.policy": "ask"}),
    "remote": Scene("remote", until_it_says("repeat")),
    "catching-up": Scene("catching-up", until_it_says("catching up")),
    "finished": Scene("finished", answered),
    "finished-span": Scene("finished", then(answered, "[", sees="█")),
    "finished-folded": Scene("finished", then(answered, "ctrl+t", sees="▸ reasoning")),
    "finished-brief": Scene("finished", then(answered, "ctrl+o", sees="✓ complete")),
    "markdown": Scene("markdown", answered),
    "short": Scene("short", answered),
    "branches": Scene("finished-twice", several_branches),
    "stopped": Scene("stopped", stopped),
    "died": Scene("died", died, keeps_notices=True),
    "detail": Scene("finished", then(answered, "[", "[", "[", "enter", sees="ended")),
    "detail-failed": Scene("finished", then(answered, "[", "[", "enter", sees="ended")),
    "detail-sent": Scene("finished", then(answered, "[", "[", "[", "enter", "v", sees="assistant: ")),
    "sessions": Scene("finished", searching),
    "sessions-recent": Scene(
        "welcome", then(looks, "ctrl+r", sees="words of a prompt"), prepare=earlier_days
    ),
    "export": Scene("finished", exporting),
    "settings": Scene("welcome", then(looks, "f2", sees="settings")),
    "palette": Scene("finished", then(answered, "ctrl+p", sees="Search")),
    "help": Scene("finished", then(answered, "f1", sees="span before")),
    "sidebar": Scene("welcome", listing, prepare=earlier_days),
    "sidebar-remove": Scene("welcome", removing, prepare=earlier_days),
    "long": Scene("welcome", long_talk, prepare=thirty_turns),
}


def story(name: str) -> list[dict[str, Any]]:
    """A name with `-twice` plays its answer a second time."""
    plays_twice = name.endswith("-twice")
    file = STORIES / f"{name.removesuffix('-twice')}.jsonl"
    steps = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return steps + steps[1:] if plays_twice else steps


class _Today(datetime.date):
    @classmethod
    def today(cls) -> "_Today":
        return cls(2026, 3, 12)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One day, one place and one zone, and nothing that goes away by itself."""
    for module in ("widgets.sidebar", "screens.sessions"):
        monkeypatch.setattr(f"sr_edge.tui.{module}.date", _Today)
    monkeypatch.setattr("os.getcwd", lambda: "/home/ida")
    shown = EdgeApp.notify

    def notify(self: EdgeApp, message: str, **options: Any) -> None:
        shown(self, message, **{**options, "timeout": 1e6})

    monkeypatch.setattr(EdgeApp, "notify", notify)
    for cls in (Input, TextArea):
        monkeypatch.setattr(cls, "cursor_blink", False)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


async def still_picture(app: EdgeApp, pilot: Pilot[Any]) -> None:
    """Wait until nothing changes any more: what was heard last is drawn, and what lies behind it too."""
    last, same = None, 0
    for _ in range(2000):
        app.screen.refresh()  # a dialog keeps what lay behind it when it was drawn, which may be nothing yet
        await pilot.pause(0.1)
        picture = app.screen._compositor.render_strips()
        same = same + 1 if picture == last else 0
        last = picture
        if same == STILL:
            return
    raise AssertionError("the screen never came to rest")


WIDE, NARROW = SIZES
LOOKS = [
    pytest.param(size, colour, id=f"{size[0]}x{size[1]}-{colour}", marks=marks)
    for size, colour, marks in [
        (WIDE, "colour", ()),
        (WIDE, "plain", pytest.mark.slow),  # NO_COLOR is a filter of Textual's: it knows of no size
        (NARROW, "colour", pytest.mark.slow),
        (NARROW, "plain", ()),
    ]
]
"""Each scene is seen in both sizes, and with colours and without; the slow ones add the other two pairs."""


@pytest.mark.parametrize(("size", "colour"), LOOKS)
@pytest.mark.parametrize("name", SCENES)
@pytest.mark.usefixtures("still")
def test_a_screen_looks_as_it_did(
    name: str,
    size: tuple[int, int],
    colour: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    snap_compare: Callable[..., bool],
) -> None:
    if colour == "plain":
        monkeypatch.setenv("NO_COLOR", "1")
    scene, clock = SCENES[name], Clock()
    flags = {"ui.animations": False, **scene.flags}
    app = chat(tmp_path, script=story(scene.story), flags=flags, now=clock, clock=clock)
    if scene.prepare is not None:
        scene.prepare(app, clock)

    async def play(pilot: Pilot[Any]) -> None:
        stage = Stage(app, pilot, clock)
        awaited = {"loading": "loading", "no-model": "failed"}.get(scene.story, "idle")
        await until(pilot, lambda: app.chat.state.phase == awaited)
        await pilot.pause()
        await scene.play(stage)
        if not scene.keeps_notices:
            app.clear_notifications()
        await still_picture(app, pilot)

    assert snap_compare(app, terminal_size=size, run_before=play)
