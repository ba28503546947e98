"""The palette: every key's action and every command, and what was said before."""

from typing import ClassVar

import pytest
from tests.tui.small import Hit, conversations, until
from textual.app import App
from textual.binding import BindingType
from textual.command import CommandPalette, Provider
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import OptionList

from sr_edge.keymap import KEYMAP
from sr_edge.tui.bindings import bindings
from sr_edge.tui.palette import ChatCommands, History, Host

ALL = conversations(["Sums of cubes", "[b]Coins[/b]"])


class Chat(Screen[None]):
    """A screen that does what the keymap says, by noting it."""

    COMMANDS: ClassVar[set[type[Provider]]] = {ChatCommands, History}  # type: ignore[assignment]
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("chat"), *bindings("transcript")]

    def __init__(self) -> None:
        super().__init__()
        self.did: list[object] = []
        self.can_stop = False

    def action_stop(self) -> None:
        self.did.append("stop")

    def action_regenerate(self) -> None:
        self.did.append("regenerate")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.can_stop if action == "stop" else True

    def run_command(self, name: str, argument: str) -> None:
        self.did.append((name, argument))

    def prepare_command(self, text: str) -> None:
        self.did.append(text)

    def search_history(self, text: str) -> list[Hit]:
        return [Hit(ALL[1], "t1", "user", "[i]how\x1b[2J many \x02coins\x03")] if "coins" in text else []

    def open_found(self, found: Hit) -> None:
        self.did.append(found)


class Palette(App[None]):
    COMMANDS: ClassVar[set[type[Provider]]] = set()  # type: ignore[assignment]
    BINDINGS: ClassVar[list[BindingType]] = bindings("app")

    def on_mount(self) -> None:
        self.push_screen(Chat())

    @property
    def chat(self) -> Chat:
        return next(screen for screen in self.screen_stack if isinstance(screen, Chat))


async def found(app: Palette, pilot: Pilot[None], words: str) -> OptionList:
    await pilot.press("ctrl+p")
    await until(pilot, lambda: isinstance(app.screen, CommandPalette))
    await pilot.press(*("space" if char == " " else char for char in words))
    listed = app.screen.query_one(OptionList)
    await until(pilot, lambda: listed.option_count > 0)
    return listed


def test_the_screen_is_one_that_the_palette_knows() -> None:
    assert isinstance(Chat(), Host)


@pytest.mark.parametrize(
    ("words", "did"),
    [
        ("another answer", "regenerate"),
        ("tokens share", ("stats", "")),
        ("rename the conv", "/rename "),
        ("what an answer may", "/budget "),
    ],
)
async def test_what_is_found_is_done(words: str, did: object) -> None:
    app = Palette()
    async with app.run_test() as pilot:
        await found(app, pilot, words)
        await pilot.pause(0.3)  # the palette waits for slower providers
        await pilot.press("enter")
        await until(pilot, lambda: app.chat.did == [did])


async def test_what_cannot_be_done_now_is_not_offered() -> None:
    app = Palette()
    async with app.run_test() as pilot:
        commands = ChatCommands(app.chat)
        titles = [hit.text async for hit in commands.discover()]
        assert "stop" not in titles
        app.chat.can_stop = True
        titles = [hit.text async for hit in commands.discover()]
        assert "stop" in titles
        assert "another answer: a new branch" in titles
        assert len(titles) == len(set(titles))
        await pilot.pause()


async def test_each_entry_says_its_key_as_it_is_now() -> None:
    app = Palette()
    async with app.run_test():
        helps = {hit.text: hit.help async for hit in ChatCommands(app.chat).discover()}
        assert helps["another answer: a new branch"] == "key r"
        app.set_keymap({"chat.regenerate": "alt+r,f5"})
        helps = {hit.text: hit.help async for hit in ChatCommands(app.chat).discover()}
        assert helps["another answer: a new branch"] == "key alt+r or f5"
        assert helps["rename the conversation"] == "/rename TITLE"


async def test_past_conversations_are_found_by_their_words() -> None:
    app = Palette()
    async with app.run_test():
        history = History(app.chat)
        hits = [hit async for hit in history.search("coins")]
        assert [(hit.text, hit.help) for hit in hits] == [("[b]Coins[/b]", "[i]how many coins")]
        hits[0].command()
        assert isinstance(app.chat.did[0], Hit)
        assert [hit async for hit in history.search("co")] == []


def test_every_action_has_a_description_of_its_own() -> None:
    shown = [key.description for key in KEYMAP if key.where in ("app", "chat", "transcript")]
    twice = {words for words in shown if shown.count(words) > 1}
    assert twice == set()
