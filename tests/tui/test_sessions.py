"""Finding a conversation: while typing, in reasoning, and opening what was found."""

from datetime import date

import pytest
from tests.tui.small import SIZES, Hit, conversations, shown, until
from textual.app import App
from textual.widgets import Input, OptionList

from sr_edge.errors import UsageError
from sr_edge.tui.screens.sessions import Found, SessionsScreen

TODAY = date(2026, 3, 12)
ALL = conversations(["Sums of cubes", "[b]Coins[/b]\x1b[2J", "Weekend"], days_ago=[0, 1, 400])


class Host(App[None]):
    def __init__(self, first: str = "") -> None:
        super().__init__()
        self.first = first
        self.asked: list[tuple[str, bool]] = []
        self.results: list[Found | None] = []
        self.hits = [
            Hit(ALL[1], "t1", "user", "how many \x02coins\x03\nare \x1b[31m[i]there[/i]"),
            Hit(ALL[0], "t2", "assistant", "so \x02coins\x03 it is"),
        ]

    def on_mount(self) -> None:
        screen = SessionsScreen(self.search, ALL, today=TODAY, text=self.first)  # type: ignore[arg-type]
        self.push_screen(screen, self.results.append)

    def search(self, text: str, in_reasoning: bool) -> list[Hit]:
        self.asked.append((text, in_reasoning))
        if text == "(":
            raise UsageError("the history can't be searched: it is locked")
        return self.hits if text == "coins" else []


@pytest.mark.parametrize("size", SIZES)
async def test_while_nothing_is_typed_the_newest_are_listed(size: tuple[int, int]) -> None:
    app = Host()
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: "Sums of cubes  Today" in shown(app))
        assert "[b]Coins[/b]  Yesterday" in shown(app)
        assert "Weekend  February 2025" in shown(app)
        assert app.asked == []
        await pilot.press("down", "down", "up", "enter")
        await until(pilot, lambda: app.results == [Found(ALL[1], None)])  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
async def test_it_searches_as_one_types_and_opens_the_turn(size: tuple[int, int]) -> None:
    app = Host()
    async with app.run_test(size=size) as pilot:
        await pilot.press(*"coins")
        await until(pilot, lambda: "you: how many coins are [i]there[/i]" in shown(app))
        assert "answer: so coins it is" in shown(app)
        assert ("coins", False) in app.asked
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.results == [Found(ALL[0], "t2")])  # type: ignore[arg-type]


async def test_enter_at_once_opens_what_the_words_say() -> None:
    app = Host()
    async with app.run_test() as pilot:
        await pilot.press(*"coins", "enter")
        await until(pilot, lambda: app.results == [Found(ALL[1], "t1")])  # type: ignore[arg-type]


async def test_what_matches_is_marked_without_colour_too() -> None:
    app = Host()
    async with app.run_test() as pilot:
        await pilot.press(*"coins")
        await until(pilot, lambda: "how many coins" in shown(app))
        strips = app.screen._compositor.render_strips()
        marked = [
            segment.text
            for strip in strips
            for segment in strip
            if segment.style and segment.style.underline and segment.style.bold
        ]
        assert marked == ["coins", "coins"]


async def test_reasoning_is_searched_when_asked_for() -> None:
    app = Host()
    async with app.run_test() as pilot:
        await pilot.press(*"coins", "ctrl+t")
        await until(pilot, lambda: ("coins", True) in app.asked)
        assert "● reasoning" in shown(app)
        await pilot.click("#where")
        await until(pilot, lambda: app.asked[-1] == ("coins", False))
        assert "● prompts and answers" in shown(app)


async def test_nothing_found_is_said_and_enter_stays() -> None:
    app = Host()
    async with app.run_test() as pilot:
        await pilot.press(*"zebra")
        await until(pilot, lambda: "nothing was said in these words" in shown(app))
        await pilot.press("enter", "down", "up", "pagedown", "pageup")
        assert app.results == []
        await pilot.press("escape")
        await until(pilot, lambda: app.results == [None])


async def test_a_failing_search_is_a_line() -> None:
    app = Host()
    async with app.run_test() as pilot:
        await pilot.press("(")
        await until(pilot, lambda: "it is locked" in shown(app))
        await pilot.press("backspace")
        await until(pilot, lambda: "it is locked" not in shown(app) and "Weekend" in shown(app))


async def test_a_click_opens() -> None:
    app = Host()
    async with app.run_test() as pilot:
        await until(pilot, lambda: "Weekend" in shown(app))
        await pilot.click(OptionList, offset=(3, 2))
        await until(pilot, lambda: app.results == [Found(ALL[2], None)])  # type: ignore[arg-type]


async def test_it_can_begin_with_words() -> None:
    app = Host("coins")
    async with app.run_test() as pilot:
        await until(pilot, lambda: "how many coins" in shown(app))
        assert app.screen.query_one(Input).value == "coins"
