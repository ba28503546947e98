"""Every key of the table, every command, the palette and the mouse, in the whole chat."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.tui.chatting import READY, answer, answered, chat, running, spans_story
from tests.tui.small import shown, until
from textual.command import CommandPalette
from textual.pilot import Pilot
from textual.widgets import HelpPanel, Input, OptionList

from sr_edge.engine.messages import Answered, Answering
from sr_edge.events import Finished, LocalToken, Started
from sr_edge.keymap import KEYMAP, Key, names
from sr_edge.tui.app import EdgeApp
from sr_edge.tui.clipboard import Copied
from sr_edge.tui.palette import ChatCommands
from sr_edge.tui.screens.detail import SpanDetail
from sr_edge.tui.screens.export import ExportScreen
from sr_edge.tui.screens.sessions import SessionsScreen
from sr_edge.tui.screens.settings import SettingsScreen
from sr_edge.tui.slash import COMMANDS
from sr_edge.tui.widgets.prompt import Prompt
from sr_edge.tui.widgets.share import ShareBar
from sr_edge.tui.widgets.sidebar import Sidebar
from sr_edge.tui.widgets.trace import Trace
from sr_edge.tui.widgets.transcript import Talk
from sr_edge.tui.widgets.turn import AnswerView
from sr_edge.tui.widgets.welcome import Welcome

QUESTION = "the last digits of 7^2024?"
TALE = [READY, *answer(*spans_story()) * 3]
WORDS = [LocalToken(n, f"word{n} ", -0.1, at=n) for n in range(5)]
STOPPED = [
    {"wait": "stop"},
    Finished("cancelled", 1, 5, 0, 5.0, at=5.0),
    Answered(0),
]
BEGUN = [{"wait": "answer"}, Answering(0), Started((1,), "small-1.5b"), *WORDS]
WHOLE = [*BEGUN, LocalToken(9, "and more", -0.1, at=6), Finished("stop", 1, 6, 0, 7.0, at=7.0), Answered(0)]
CODE = "Two:\n\n```python\none()\n```\n\nor\n\n```python\ntwo()\n```\n"
CODED = [
    Started((1,), "small-1.5b"),
    LocalToken(2, CODE, -0.1, at=1.0),
    Finished("stop", 1, 1, 0, 1.0, at=1.0),
]


@dataclass
class At:
    """A chat, and what was copied and asked for in it."""

    app: EdgeApp
    pilot: Pilot[Any]
    home: Path
    copied: list[str] = field(default_factory=list)
    firsts: list[str | None] = field(default_factory=list)

    @property
    def prompt(self) -> Prompt:
        return self.app.chat.query_one(Prompt)

    @property
    def talk(self) -> Talk:
        return self.app.chat.query_one(Talk)

    @property
    def turns(self) -> list[Any]:
        return self.app.chat.dialogue.turns

    @property
    def listed(self) -> OptionList:
        return self.app.chat.query_one(Sidebar).query_one(OptionList)

    @property
    def span(self) -> int | None:
        return self.talk.chosen[1] if self.talk.chosen else None

    @property
    def titles(self) -> list[str]:
        return [one.title for one in self.app.chat.dialogue.store.conversations()]

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def ask(self, text: str = QUESTION) -> None:
        views = len(self.app.chat.query(AnswerView))
        self.prompt.put(text)
        self.prompt.focus()
        await self.press("enter")
        await until(self.pilot, lambda: len(self.app.chat.query(AnswerView)) > views)
        await self.over()

    async def over(self) -> None:
        await answered(self.app, self.pilot)

    async def read(self) -> None:
        """The keys go to the transcript."""
        self.talk.focus()
        await self.pilot.pause()

    async def choose_first_span(self) -> None:
        self.talk.choose(self.app.chat.query(AnswerView).last(), 1)
        await self.read()

    async def sees(self, words: str) -> None:
        await until(self.pilot, lambda: words in shown(self.app))

    async def comes(self, holds: Callable[[], object]) -> None:
        await until(self.pilot, lambda: bool(holds()))


@asynccontextmanager
async def chatting(
    home: Path, script: list[Any], *, size: tuple[int, int] = (120, 40), **options: Any
) -> AsyncIterator[At]:
    app = chat(home / "home", script=script, **options)
    async with running(app, size) as pilot:
        at = At(app, pilot, home)
        engine = app.chat.dialogue.engine
        ask = engine.answer

        def recorded(*args: Any, **options: Any) -> int:
            at.firsts.append(options.get("first"))
            return ask(*args, **options)

        engine.answer = recorded  # type: ignore[method-assign]
        with pytest.MonkeyPatch.context() as patch:

            def copy(text: str, **options: Any) -> Copied:
                at.copied.append(text)
                return Copied("test", is_sure=True)

            patch.setattr("sr_edge.tui.deeds.copy", copy)
            yield at


@contextmanager
def no_terminal(app: EdgeApp) -> Iterator[None]:
    """A test has none to give away."""
    yield


Play = Callable[[At, str], Awaitable[None]]


@dataclass(frozen=True)
class Trial:
    """What is there, where the keys go, and what must come of one."""

    play: Play
    script: list[Any]
    asks: bool
    focus: str
    size: tuple[int, int]


TRIALS: dict[str, Trial] = {}


def key(
    id: str,
    *,
    script: list[Any] = TALE,
    asks: bool = True,
    focus: str = "",
    size: tuple[int, int] = (120, 40),
) -> Callable[[Play], Play]:
    """The trial of a key."""

    def register(play: Play) -> Play:
        where = next(key.where for key in KEYMAP if key.id == id)
        TRIALS[id] = Trial(play, script, asks, focus or where, size)
        return play

    return register


PAIRS = [(key, name) for key in KEYMAP for name in names(key.keys)]


@pytest.mark.parametrize(("key", "name"), PAIRS, ids=[f"{key.id}-{name}" for key, name in PAIRS])
async def test_a_key_does_what_the_table_says(
    key: Key, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = TRIALS[key.id]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(EdgeApp, "suspend", no_terminal)
    for variable in ("EDITOR", "PAGER"):
        monkeypatch.setenv(variable, program(tmp_path, variable.lower()))
    async with chatting(tmp_path, trial.script, size=trial.size) as at:
        if trial.asks:
            await at.ask()
        if trial.focus == "transcript":
            await at.read()
        elif trial.focus == "sidebar":
            await at.press("ctrl+n")
            await at.ask("another")
            at.listed.focus()
            await at.pilot.pause()
        await trial.play(at, name)


def program(folder: Path, name: str) -> str:
    """Notes what it was given, and adds a word to it."""
    script = folder / name
    script.write_text(f'#!/bin/sh\ncat "$1" > {folder}/{name}.got\nprintf more >> "$1"\n')
    script.chmod(0o700)
    return str(script)


# --- the prompt ----------------------------------------------------------------------------------------


@key("chat.send", asks=False)
async def _(at: At, key: str) -> None:
    at.prompt.put("how many?")
    await at.press(key)
    await at.comes(lambda: at.turns)
    assert at.turns[0].text == "how many?"
    assert at.prompt.text == ""


@key("chat.newline", asks=False)
async def _(at: At, key: str) -> None:
    await at.press("a", key, "b")
    assert at.prompt.text == "a\nb"
    assert not at.turns


@key("chat.editor", asks=False)
async def _(at: At, key: str) -> None:
    await at.press("h", "i", key)
    assert (at.home / "editor.got").read_text().strip() == "hi"
    assert "more" in at.prompt.text
    assert not at.turns


@key("prompt.history")
async def _(at: At, key: str) -> None:
    await at.press(key)
    assert at.prompt.text == QUESTION


@key("prompt.newer")
async def _(at: At, key: str) -> None:
    await at.press("up", key)
    assert at.prompt.text == ""


@key("prompt.complete")
async def _(at: At, key: str) -> None:
    await at.press("/", "f", "o", key)
    assert at.prompt.text == "/fork"
    await at.press("ctrl+c", key)
    assert at.app.focused is at.talk


# --- the chat ------------------------------------------------------------------------------------------


@key("chat.stop", script=[READY, *BEGUN, *STOPPED], asks=False)
async def _(at: At, key: str) -> None:
    at.prompt.put("go")
    await at.press("enter")
    await at.sees("word4")
    await at.press(key)
    await at.over()
    assert (at.turns[-1].status, at.turns[-1].text) == ("stopped", "word0 word1 word2 word3 word4 ")
    await at.press("x", key)
    assert at.prompt.text == ""
    await at.read()
    await at.press(key)
    assert at.app.focused is at.prompt


@key("chat.policy", asks=False)
async def _(at: At, key: str) -> None:
    seen = []
    for _ in range(3):
        await at.press(key)
        seen.append(at.app.chat.state.dial)
    assert seen == ["ask", "local", "auto"]


@key("view.reasoning")
async def _(at: At, key: str) -> None:
    assert "We need 7^2024" in shown(at.app)
    await at.press(key)
    assert "▸ reasoning" in shown(at.app)
    assert "We need 7^2024" not in shown(at.app)
    await at.press(key)
    assert "We need 7^2024" in shown(at.app)


@key("view.details")
async def _(at: At, key: str) -> None:
    assert "46 tok" in shown(at.app)
    await at.press(key)
    assert "46 tok" not in shown(at.app)
    assert "Since 7^4" in shown(at.app)
    await at.press(key)
    assert "46 tok" in shown(at.app)


@key("nav.sessions")
async def _(at: At, key: str) -> None:
    await at.press(key)
    assert isinstance(at.app.screen, SessionsScreen)
    await at.press("enter")
    assert at.app.screen is at.app.chat
    assert len(at.turns) == 2


@key("nav.new")
async def _(at: At, key: str) -> None:
    await at.press(key)
    assert not at.turns
    assert at.app.chat.query_one(Welcome).display
    assert len(at.titles) == 1


@key("nav.sidebar")
async def _(at: At, key: str) -> None:
    sidebar = at.app.chat.query_one(Sidebar)
    assert sidebar.display
    await at.press(key)
    assert not sidebar.display
    await at.press(key)
    assert sidebar.display
    assert at.app.focused is at.listed


@key("nav.block.prev")
async def _(at: At, key: str) -> None:
    await at.press(key)
    assert isinstance(at.talk.chosen[0], AnswerView)  # type: ignore[index]
    assert at.span is None
    await at.press(key)
    assert at.span == 3


@key("nav.block.next")
async def _(at: At, key: str) -> None:
    await at.press(key, key)
    assert at.span == 1


# --- everywhere ----------------------------------------------------------------------------------------


@key("app.palette")
async def _(at: At, key: str) -> None:
    await at.press(key)
    assert isinstance(at.app.screen, CommandPalette)


@key("app.help")
async def _(at: At, key: str) -> None:
    await at.press(key)
    assert at.app.screen.query(HelpPanel)
    await at.press(key)
    assert not at.app.screen.query(HelpPanel)


@key("app.settings")
async def _(at: At, key: str) -> None:
    await at.press(key)
    assert isinstance(at.app.screen, SettingsScreen)


@key("app.interrupt")
async def _(at: At, key: str) -> None:
    await at.press("a", "b", "shift+left", key)
    assert at.copied == ["b"]
    await at.press("end", key)
    assert at.prompt.text == ""
    await at.press(key)
    await at.sees("ctrl+c again to leave")
    assert at.app.is_running
    await at.press(key)
    await at.comes(lambda: at.app.return_code == 0 and at.app._exit)


@key("app.quit")
async def _(at: At, key: str) -> None:
    await at.press(key)
    await at.comes(lambda: at.app._exit)
    assert at.app.return_code == 0


@key("app.leave")
async def _(at: At, key: str) -> None:
    await at.press("a", "b", "home", key)
    assert at.prompt.text == "b"
    await at.press("end", "backspace", key)
    await at.comes(lambda: at.app._exit)


# --- the transcript ------------------------------------------------------------------------------------

SMALL = (60, 20)


@key("nav.up", size=SMALL)
async def _(at: At, key: str) -> None:
    before = at.talk.scroll_offset.y
    await at.press(key)
    await at.comes(lambda: at.talk.scroll_offset.y == before - 1)


@key("nav.down", size=SMALL)
async def _(at: At, key: str) -> None:
    await at.press("g")
    await at.comes(lambda: at.talk.scroll_offset.y == 0)
    await at.press(key)
    await at.comes(lambda: at.talk.scroll_offset.y == 1)


@key("nav.top", size=SMALL)
async def _(at: At, key: str) -> None:
    assert at.talk.scroll_offset.y > 0
    await at.press(key)
    await at.comes(lambda: at.talk.scroll_offset.y == 0)


@key("nav.bottom", size=SMALL)
async def _(at: At, key: str) -> None:
    end = at.talk.scroll_offset.y
    assert end > 0
    await at.press("g")
    await at.comes(lambda: at.talk.scroll_offset.y == 0)
    await at.press(key)
    await at.comes(lambda: at.talk.scroll_offset.y == end)


@key("span.prev")
async def _(at: At, key: str) -> None:
    seen = []
    for _ in range(4):
        await at.press(key)
        seen.append(at.span)
    assert seen == [3, 2, 1, 1]


@key("span.next")
async def _(at: At, key: str) -> None:
    seen = []
    for _ in range(4):
        await at.press(key)
        seen.append(at.span)
    assert seen == [1, 2, 3, 3]


@key("span.detail")
async def _(at: At, key: str) -> None:
    await at.choose_first_span()
    await at.press(key)
    assert isinstance(at.app.screen, SpanDetail)
    assert "asked for help (p 0.83)" in shown(at.app)
    assert "Since 7^4" in shown(at.app)


@key("span.view")
async def _(at: At, key: str) -> None:
    await at.choose_first_span()
    await at.press(key)
    assert isinstance(at.app.screen, SpanDetail)
    assert f"user: {QUESTION}" in shown(at.app)


@key("span.why")
async def _(at: At, key: str) -> None:
    await at.choose_first_span()
    await at.press(key)
    assert isinstance(at.app.screen, SpanDetail)
    assert "asked for help (p 0.83)" in shown(at.app)


@key("span.local")
async def _(at: At, key: str) -> None:
    await at.choose_first_span()
    await at.press(key)
    await at.comes(lambda: at.firsts == [None, "local"])
    await at.over()
    assert (at.turns[-1].branch, at.turns[-1].branches) == (2, 2)


@key("span.remote")
async def _(at: At, key: str) -> None:
    await at.choose_first_span()
    await at.press(key)
    await at.comes(lambda: at.firsts == [None, "remote"])
    await at.over()
    assert (at.turns[-1].branch, at.turns[-1].branches) == (2, 2)


@key("block.copy")
async def _(at: At, key: str) -> None:
    await at.press(key)
    await at.choose_first_span()
    await at.press(key)
    assert "last two digits are **01**" in at.copied[0]
    assert at.copied[1].startswith("Since 7^4")
    assert "span 1 copied" in shown(at.app)


@key("answer.copy")
async def _(at: At, key: str) -> None:
    await at.choose_first_span()
    await at.press(key)
    assert "last two digits are **01**" in at.copied[0]
    assert "We need" not in at.copied[0]


@key("block.code", script=[READY, *answer(*CODED)])
async def _(at: At, key: str) -> None:
    await at.press(key, key)
    assert [text.strip() for text in at.copied] == ["one()", "two()"]


@key("block.pager")
async def _(at: At, key: str) -> None:
    await at.press(key)
    assert "last two digits" in (at.home / "pager.got").read_text()


@key("block.save")
async def _(at: At, key: str) -> None:
    await at.choose_first_span()
    await at.press(key)
    assert (at.home / "span-1.md").read_text().startswith("Since 7^4")
    assert "written to" in shown(at.app)


@key("chat.edit")
async def _(at: At, key: str) -> None:
    await at.press(key)
    assert at.prompt.text == QUESTION
    assert at.app.focused is at.prompt
    await at.press("!", "enter")
    await at.comes(lambda: at.turns[0].text == f"{QUESTION}!")
    await at.over()
    assert (at.turns[0].branch, at.turns[0].branches) == (2, 2)


@key("chat.regenerate")
async def _(at: At, key: str) -> None:
    await at.press(key)
    await at.sees("‹2/2›")
    await at.over()
    assert at.turns[-1].branches == 2


@key("chat.continue", script=[READY, *BEGUN, *STOPPED, *WHOLE], asks=False, focus="chat")
async def _(at: At, key: str) -> None:
    at.prompt.put("go")
    await at.press("enter")
    await at.sees("word4")
    await at.press("escape")
    await at.over()
    await at.read()
    await at.press(key)
    await at.sees("and more")
    await at.over()
    assert at.turns[-1].status == "done"


@key("chat.fork")
async def _(at: At, key: str) -> None:
    await at.press(key)
    await at.comes(lambda: len(at.titles) == 2)
    assert at.turns[0].text == QUESTION


@key("branch.prev")
async def _(at: At, key: str) -> None:
    await at.press("r")
    await at.sees("‹2/2›")
    await at.over()
    await at.press(key)
    await at.sees("‹1/2›")


@key("branch.next")
async def _(at: At, key: str) -> None:
    await at.press("r")
    await at.sees("‹2/2›")
    await at.over()
    await at.press("<")
    await at.sees("‹1/2›")
    await at.read()
    await at.press(key)
    await at.sees("‹2/2›")


@key("chat.export")
async def _(at: At, key: str) -> None:
    await at.press(key)
    assert isinstance(at.app.screen, ExportScreen)
    await at.press("enter")
    assert [path.suffix for path in at.home.glob("*.md")] == [".md"]


@key("chat.offline")
async def _(at: At, key: str) -> None:
    await at.press(key)
    assert at.app.chat.state.link == "offline"
    assert at.app.chat.state.is_offline
    await at.press(key)
    assert not at.app.chat.state.is_offline


@key("chat.effort.up")
async def _(at: At, key: str) -> None:
    await at.press(key)
    assert at.app.chat.bias == 1
    assert "effort +1" in shown(at.app)


@key("chat.effort.down")
async def _(at: At, key: str) -> None:
    await at.press(key)
    assert at.app.chat.bias == -1


# --- the list of conversations -------------------------------------------------------------------------


def title_at_cursor(at: At) -> str | None:
    option = at.listed.highlighted_option
    store = at.app.chat.dialogue.store
    return store.conversation(option.id).title if option is not None and option.id else None


@key("sidebar.open")
async def _(at: At, key: str) -> None:
    await at.press("down", key)
    await at.comes(lambda: at.turns[0].text == QUESTION)
    assert at.firsts == [None, None]  # nothing was asked for


@key("sidebar.filter")
async def _(at: At, key: str) -> None:
    await at.press(key, *"anoth")
    assert "another" in shown(at.app)
    assert at.listed.option_count == 2
    await at.press("escape")
    assert at.app.focused is at.listed
    assert at.listed.option_count == 3


@key("sidebar.rename")
async def _(at: At, key: str) -> None:
    await at.press(key, "end", "!", "enter")
    await at.comes(lambda: "another!" in at.titles)
    assert "another!" in shown(at.app)


@key("sidebar.remove")
async def _(at: At, key: str) -> None:
    await at.press(key, "n")
    assert len(at.titles) == 2
    await at.press("down", key, "y")
    await at.comes(lambda: at.titles == ["another"])
    assert at.turns[0].text == "another"


@key("sidebar.up")
async def _(at: At, key: str) -> None:
    await at.press("down")
    assert title_at_cursor(at) == QUESTION
    await at.press(key)
    assert title_at_cursor(at) == "another"


@key("sidebar.down")
async def _(at: At, key: str) -> None:
    assert title_at_cursor(at) == "another"
    await at.press(key)
    assert title_at_cursor(at) == QUESTION


# --- other keys ----------------------------------------------------------------------------------------


async def test_keys_of_the_settings_take_the_place_of_the_tables(tmp_path: Path) -> None:
    config = '[ui.keymap.nav]\nnew = "f5"\n[ui.keymap.chat]\nsend = "ctrl+l"\nregenerate = "R,f6"\n'
    async with chatting(tmp_path, TALE, config=config) as at:
        await at.press("h", "i", "enter")
        assert not at.turns
        await at.press("ctrl+l")
        await at.comes(lambda: len(at.turns) == 2)
        await at.over()
        await at.read()
        await at.press("r")
        assert at.firsts == [None]
        await at.press("R")
        await at.sees("‹2/2›")
        await at.over()
        await at.press("ctrl+n")
        assert at.turns
        await at.press("f5")
        assert not at.turns


# --- what lies over the chat ---------------------------------------------------------------------------

OVER = {
    SessionsScreen: ("ctrl+r",),
    SettingsScreen: ("f2",),
    ExportScreen: ("x",),
    SpanDetail: ("[", "enter"),
    CommandPalette: ("ctrl+p",),
}


@pytest.mark.parametrize("way_out", ["escape", "ctrl+c"])
@pytest.mark.parametrize("screen", OVER, ids=lambda screen: screen.__name__)
async def test_what_lies_over_the_chat_is_left_and_nothing_else(
    screen: type, way_out: str, tmp_path: Path
) -> None:
    script = [READY, *answer(*spans_story()), *BEGUN, *STOPPED]
    async with chatting(tmp_path, script) as at:
        await at.ask()
        at.prompt.put("go")
        await at.press("enter")
        await at.sees("word4")
        at.prompt.put("a draft")
        await at.read()
        if screen is SpanDetail:
            at.talk.choose(at.app.chat.query(AnswerView).first(), 2)
            await at.pilot.pause()
        await at.press(*OVER[screen])
        await at.comes(lambda: isinstance(at.app.screen, screen))
        if isinstance(at.app.screen.focused, Input):
            at.app.screen.focused.value = ""  # Ctrl+C copies what is selected
        await at.press("shift+tab", "ctrl+t", "ctrl+n", "ctrl+b")  # not heard beneath
        await at.press(way_out)
        await at.comes(lambda: at.app.screen is at.app.chat)
        assert at.prompt.text == "a draft"
        assert at.app.chat.is_answering
        assert at.app.chat.state.dial == "auto"
        assert at.app.chat.query_one(Sidebar).display
        await at.press("escape")
        await at.over()


async def test_ctrl_c_copies_what_is_selected_over_the_chat(tmp_path: Path) -> None:
    async with chatting(tmp_path, TALE) as at:
        await at.ask()
        await at.read()
        await at.press("x")
        at.app.screen.query_one(Input).select_all()
        await at.press("ctrl+c")
        assert at.copied == [at.app.screen.query_one(Input).value]
        assert isinstance(at.app.screen, ExportScreen)


# --- the mouse -----------------------------------------------------------------------------------------


async def test_a_click_on_a_span_opens_it(tmp_path: Path) -> None:
    async with chatting(tmp_path, TALE) as at:
        await at.ask()
        trace = at.app.chat.query_one("#reasoning", Trace)
        await at.pilot.click(trace, offset=(6, trace.line_of(1)))
        await at.comes(lambda: isinstance(at.app.screen, SpanDetail))
        assert "span 1" in shown(at.app)


async def test_a_click_on_the_share_folds_the_reasoning(tmp_path: Path) -> None:
    async with chatting(tmp_path, TALE) as at:
        await at.ask()
        await at.pilot.click(ShareBar)
        await at.sees("▸ reasoning")


async def test_a_click_on_a_conversation_opens_it(tmp_path: Path) -> None:
    async with chatting(tmp_path, TALE) as at:
        await at.ask()
        await at.press("ctrl+n")
        await at.ask("another")
        await at.pilot.click(at.listed, offset=(6, 2))
        await at.comes(lambda: at.turns[0].text == QUESTION)


@pytest.mark.parametrize(("number", "verdict"), enumerate(["yes", "no", "view", "always"]))
async def test_a_click_answers_whether_a_span_may_leave(number: int, verdict: str, tmp_path: Path) -> None:
    stories = Path(__file__).with_name("stories")
    script = [json.loads(line) for line in (stories / "asking.jsonl").read_text().splitlines()]
    script += [json.loads(line) for line in (stories / "stopped.jsonl").read_text().splitlines()[-2:]]
    async with chatting(tmp_path, script, flags={"offload.policy": "ask"}) as at:
        at.prompt.put("go")
        await at.press("enter")
        await at.comes(lambda: at.app.chat.query_one("#consent").is_asking)  # type: ignore[attr-defined]
        decided: list[str] = []
        at.app.chat.dialogue.engine.decide = decided.append  # type: ignore[method-assign, assignment]
        await at.pilot.click(at.app.chat.query("_Choice")[number])
        await at.pilot.pause()
        if verdict == "view":
            assert decided == []
            assert '"model": "big-72b"' in shown(at.app)
        else:
            assert decided == ["no" if verdict == "no" else "yes"]
            assert at.app.chat.state.dial == ("auto" if verdict == "always" else "ask")


# --- commands ------------------------------------------------------------------------------------------


def _says(words: str) -> Callable[[At], object]:
    return lambda at: words in shown(at.app)


TYPED: dict[str, list[tuple[str, Callable[[At], object]]]] = {
    "new": [("", lambda at: not at.turns)],
    "model": [("", _says("the small model is small-1.5b"))],
    "remote": [("", _says("the large model is lab")), ("none", _says("no remote"))],
    "policy": [
        ("local", lambda at: at.app.chat.state.dial == "local"),
        ("", _says("the policy is")),
        ("x", _says("auto, ask or local")),
    ],
    "budget": [("", _says("no limit in dollars")), ("much", _says("an amount of dollars"))],
    "effort": [("2", lambda at: at.app.chat.bias == 2), ("+", lambda at: at.app.chat.bias == 1)],
    "think": [("never", _says("▸ reasoning")), ("", _says("▸ reasoning"))],
    "regen": [("", _says("‹2/2›"))],
    "continue": [("", _says("this answer is whole"))],
    "edit": [("", lambda at: at.prompt.text == QUESTION)],
    "fork": [("", lambda at: len(at.titles) == 2)],
    "copy": [
        ("", lambda at: "**01**" in at.copied[-1]),
        ("code", _says("no block of code")),
        ("all", lambda at: QUESTION in at.copied[-1]),
    ],
    "export": [("html", lambda at: isinstance(at.app.screen, ExportScreen) and "● html" in shown(at.app))],
    "stats": [("", _says("in 3 spans"))],
    "offline": [("on", lambda at: at.app.chat.state.is_offline)],
    "rename": [("Powers of 7", lambda at: at.titles == ["Powers of 7"] and "Powers of 7" in shown(at.app))],
    "help": [("", lambda at: bool(at.app.screen.query(HelpPanel)))],
    "quit": [("", lambda at: at.app._exit)],
}
LINES = [(command.name, n) for command in COMMANDS for n in range(len(TYPED[command.name]))]


@pytest.mark.parametrize(("name", "number"), LINES)
async def test_a_command_does_what_it_says(name: str, number: int, tmp_path: Path) -> None:
    argument, done = TYPED[name][number]
    async with chatting(tmp_path, TALE) as at:
        await at.ask()
        at.prompt.put(f"/{name} {argument}".rstrip())
        await at.press("enter")
        await at.comes(lambda: done(at))
        if not at.app._exit:
            await at.over()


# --- the palette ---------------------------------------------------------------------------------------


async def test_the_palette_has_every_action_of_the_keys_and_every_command(tmp_path: Path) -> None:
    left_out = {"app.palette", "app.interrupt", "app.leave", "nav.up", "nav.down", "nav.top", "nav.bottom"}
    wanted = {
        key.description
        for key in KEYMAP
        if key.where in ("app", "chat", "transcript") and key.id not in left_out
    }
    async with chatting(tmp_path, TALE) as at:
        await at.ask()
        titles = {hit.text async for hit in ChatCommands(at.app.chat).discover()}
        assert titles >= wanted | {command.description for command in COMMANDS}


@pytest.mark.parametrize(
    ("words", "done"),
    [
        ("span before", lambda at: at.span == 3),
        ("another answer", _says("‹2/2›")),
        ("copy the answer", lambda at: at.copied),
        ("export", lambda at: isinstance(at.app.screen, ExportScreen)),
        ("offline, or not", lambda at: at.app.chat.state.is_offline),
        ("ask the remote more", lambda at: at.app.chat.bias == 1),
        ("settings", lambda at: isinstance(at.app.screen, SettingsScreen)),
        ("tokens, share", _says("in 3 spans")),
        ("rename the conversation", lambda at: at.prompt.text == "/rename "),
        ("last two digits", lambda at: at.talk.chosen is not None),
    ],
)
async def test_what_the_palette_finds_is_done(
    words: str, done: Callable[[At], object], tmp_path: Path
) -> None:
    async with chatting(tmp_path, TALE) as at:
        await at.ask()
        await at.press("ctrl+p")
        await at.comes(lambda: isinstance(at.app.screen, CommandPalette))
        at.app.screen.query_one(Input).value = words[:-1]
        await at.press(words[-1])
        listed = at.app.screen.query_one(OptionList)
        await at.comes(lambda: listed.option_count > 0 and listed.highlighted is not None)
        await at.pilot.pause(0.3)  # the palette waits for slower providers
        await at.press("enter")
        await at.comes(lambda: done(at))
        await at.over()
