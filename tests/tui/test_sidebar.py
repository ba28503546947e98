"""The list of conversations, key by key."""

from datetime import date, datetime
from typing import ClassVar

import pytest
from tests.tui.small import NOON, Conversation, conversations, shown, until
from textual import on
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, OptionList

from sr_edge.tui.widgets.sidebar import Sidebar, day_name

TODAY = date(2026, 3, 12)
WIDE, NARROW = (120, 40), (60, 20)
TITLES = ["Sums of cubes", "Coin puzzle", "[red]Markup[/red]\x1b[2J", "Weekend"]


class Host(App[None]):
    BINDINGS: ClassVar[list[BindingType]] = [("ctrl+b", "sidebar")]

    def __init__(self, mode: str = "auto") -> None:
        super().__init__()
        self.mode = mode
        self.told: list[Message] = []

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Sidebar(self.mode)  # type: ignore[arg-type]
            yield Input(id="prompt")

    def on_mount(self) -> None:
        self.sidebar.show(conversations(TITLES, days_ago=[0, 0, 1, 3]), "c1", TODAY)  # type: ignore[arg-type]
        self.query_one("#prompt").focus()

    def action_sidebar(self) -> None:
        self.sidebar.toggle()

    @on(Sidebar.Opened)
    @on(Sidebar.Renamed)
    @on(Sidebar.Removed)
    @on(Sidebar.Left)
    def keep(self, message: Message) -> None:
        self.told.append(message)

    @property
    def sidebar(self) -> Sidebar:
        return self.query_one(Sidebar)

    @property
    def listed(self) -> OptionList:
        return self.sidebar.query_one(OptionList)


async def test_conversations_stand_under_their_days_and_the_open_one_is_marked() -> None:
    app = Host()
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        lines = [line.partition("│")[0].strip() for line in shown(app).splitlines()]
        assert lines[:7] == [
            *("Today", "Sums of cubes", "▸ Coin puzzle"),
            *("Yesterday", "[red]Markup[/red]", "Monday", "Weekend"),
        ]


@pytest.mark.parametrize(
    ("keys", "title"), [([], 1), (["up"], 0), (["k"], 0), (["down"], 2), (["j", "j"], 3)]
)
async def test_keys_move_and_enter_opens(keys: list[str], title: int) -> None:
    app = Host()
    async with app.run_test(size=WIDE) as pilot:
        app.listed.focus()
        await pilot.press(*keys, "enter")
        await until(pilot, lambda: app.told != [])
        assert isinstance(app.told[0], Sidebar.Opened)
        assert app.told[0].conversation.title == TITLES[title]


async def test_a_click_opens_and_a_day_does_not() -> None:
    app = Host()
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        await pilot.click(app.listed, offset=(4, 0))
        await pilot.click(app.listed, offset=(4, 1))
        await until(pilot, lambda: app.told != [])
        opened = [message.conversation.id for message in app.told if isinstance(message, Sidebar.Opened)]
        assert opened == ["c0"]


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_the_filter_keeps_what_has_all_its_words(size: tuple[int, int]) -> None:
    app = Host("always")
    async with app.run_test(size=size) as pilot:
        app.listed.focus()
        await pilot.press("/", *"CUB", "space", *"sum")
        await pilot.pause()
        assert "Sums of cubes" in shown(app)
        assert "Coin puzzle" not in shown(app)
        await pilot.press("enter", "enter")
        await until(pilot, lambda: app.told != [])
        assert isinstance(app.told[0], Sidebar.Opened)
        assert app.told[0].conversation.id == "c0"
        await pilot.press("/", "x")
        await pilot.pause()
        assert "nothing of this name" in shown(app)
        await pilot.press("escape")
        await pilot.pause()
        assert "Coin puzzle" in shown(app)
        assert app.focused is app.listed


async def test_renaming_begins_with_the_old_title() -> None:
    app = Host()
    async with app.run_test(size=WIDE) as pilot:
        app.listed.focus()
        await pilot.press("r", "end", "!", "enter")
        await until(pilot, lambda: app.told != [])
        assert isinstance(app.told[0], Sidebar.Renamed)
        assert (app.told[0].conversation.id, app.told[0].title) == ("c1", "Coin puzzle!")
        assert app.focused is app.listed


@pytest.mark.parametrize(
    "keys", [["enter"], ["!", "escape"], ["ctrl+u", "enter"], ["ctrl+u", "space", "enter"]]
)
async def test_renaming_to_nothing_else_is_not_renaming(keys: list[str]) -> None:
    app = Host()
    async with app.run_test(size=WIDE) as pilot:
        app.listed.focus()
        await pilot.press("r", "end", *keys)
        await pilot.pause()
        assert app.told == []
        assert app.focused is app.listed


@pytest.mark.parametrize("key", ["d", "delete"])
async def test_removing_asks_first(key: str) -> None:
    app = Host()
    async with app.run_test(size=WIDE) as pilot:
        app.listed.focus()
        await pilot.press(key)
        await pilot.pause()
        assert "Remove “Coin puzzle”" in shown(app)
        for no in ("n", "escape", "enter"):
            await pilot.press(no)
            await pilot.pause()
            assert app.focused is app.listed
            await pilot.press(key)
        assert app.told == []
        await pilot.press("y")
        await until(pilot, lambda: app.told != [])
        assert isinstance(app.told[0], Sidebar.Removed)
        assert app.told[0].conversation.id == "c1"


async def test_it_hides_where_there_is_no_room_until_it_is_asked_for() -> None:
    app = Host()
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.sidebar.display)
        await pilot.resize_terminal(*NARROW)
        await until(pilot, lambda: not app.sidebar.display)
        await pilot.press("ctrl+b")
        await until(pilot, lambda: app.sidebar.display)
        assert app.focused is app.listed
        assert app.sidebar.size.width <= NARROW[0] // 2
        await pilot.press("ctrl+b")
        await until(pilot, lambda: not app.sidebar.display)
        assert isinstance(app.told[-1], Sidebar.Left)
        await pilot.resize_terminal(*WIDE)
        await until(pilot, lambda: app.sidebar.display)


@pytest.mark.parametrize(("mode", "size", "expected"), [("always", NARROW, True), ("never", WIDE, False)])
async def test_the_setting_holds_until_the_key(mode: str, size: tuple[int, int], expected: bool) -> None:
    app = Host(mode)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        assert app.sidebar.display is expected
        await pilot.press("ctrl+b")
        await until(pilot, lambda: app.sidebar.display is not expected)


async def test_shown_anew_the_highlight_stays() -> None:
    app = Host()
    async with app.run_test(size=WIDE) as pilot:
        app.listed.focus()
        await pilot.press("down")
        newer = [Conversation("new", "Newest"), *conversations(TITLES, days_ago=[0, 0, 1, 3])]
        app.sidebar.show(newer, "new", TODAY)  # type: ignore[arg-type]
        await pilot.press("enter")
        await until(pilot, lambda: app.told != [])
        assert isinstance(app.told[0], Sidebar.Opened)
        assert app.told[0].conversation.id == "c2"


async def test_without_conversations_no_key_does_harm() -> None:
    app = Host()
    async with app.run_test(size=WIDE) as pilot:
        app.sidebar.show([], None, TODAY)
        app.listed.focus()
        await pilot.press("enter", "r", "d", "j", "k", "down", "up")
        await pilot.pause()
        assert "no conversations yet" in shown(app)
        assert app.told == []


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (-1, "Today"),
        (0, "Today"),
        (1, "Yesterday"),
        (2, "Tuesday"),
        (6, "Friday"),
        (7, "March 2026"),
        (400, "February 2025"),
    ],
)
def test_days_have_names(days: int, expected: str) -> None:
    assert datetime.fromtimestamp(NOON).date() == TODAY
    assert day_name(NOON - days * 86_400, TODAY) == expected
