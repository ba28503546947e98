"""The question before anything leaves: each answer, by key and by mouse, and never by accident."""

from dataclasses import replace

import pytest
from tests.tui.small import SIZES, shown, until
from textual import on
from textual.app import App, ComposeResult
from textual.widgets import Input

from sr_edge.tui.widgets.consent import Consent, Request, Verdict, question

REQUEST = Request("lab", 1812, 7200, 0.0006, "".join(f"line {number}\n" for number in range(40)))


class Host(App[None]):
    CSS = "Input { dock: bottom; }"

    def __init__(self, settle: float = 0) -> None:
        super().__init__()
        self.settle = settle
        self.verdicts: list[Verdict] = []

    def compose(self) -> ComposeResult:
        yield Consent(settle=self.settle)
        yield Input()

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    @on(Consent.Decided)
    def keep(self, message: Consent.Decided) -> None:
        self.verdicts.append(message.verdict)

    @property
    def consent(self) -> Consent:
        return self.query_one(Consent)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("key", "verdict"), [("y", "yes"), ("n", "no"), ("a", "always")])
async def test_a_key_decides_and_the_focus_goes_back(
    size: tuple[int, int], key: str, verdict: Verdict
) -> None:
    app = Host()
    async with app.run_test(size=size) as pilot:
        app.consent.ask(REQUEST)
        await pilot.pause()
        assert app.focused is app.consent
        for words in (
            "lab wants 1,812 tokens of this chat · 7.2 kB · ~$0.00060",
            "[n] stay local",
            "[a] always",
        ):
            assert words in shown(app)
        await pilot.press(key, key)
        await until(pilot, lambda: app.verdicts != [])
        assert app.verdicts == [verdict]
        assert app.focused is app.query_one(Input)
        assert app.query_one(Input).value == key  # the second one was no answer any more
        assert not app.consent.display
        assert not app.consent.is_asking


@pytest.mark.parametrize(("words", "verdict"), [("send", "yes"), ("stay", "no"), ("always", "always")])
async def test_a_click_decides(words: str, verdict: Verdict) -> None:
    app = Host(settle=60)  # what is clicked was meant
    async with app.run_test(size=(60, 20)) as pilot:
        app.consent.ask(REQUEST)
        await pilot.pause()
        lines = shown(app).splitlines()
        row = next(number for number, line in enumerate(lines) if "[y]" in line)
        await pilot.click(offset=(lines[row].index(words), row))
        await until(pilot, lambda: app.verdicts == [verdict])


@pytest.mark.parametrize("size", SIZES)
async def test_the_text_is_shown_in_place_and_scrolls(size: tuple[int, int]) -> None:
    app = Host()
    async with app.run_test(size=size) as pilot:
        app.consent.ask(REQUEST)
        await pilot.press("v")
        await pilot.pause()
        assert "line 0" in shown(app)
        assert "line 39" not in shown(app)
        await pilot.press(*["pagedown"] * 5)
        await pilot.pause()
        assert "line 39" in shown(app)
        await pilot.press("v")
        await pilot.pause()
        assert "line 39" not in shown(app)
        await pilot.press("y")
        await until(pilot, lambda: app.verdicts == ["yes"])


async def test_what_was_being_typed_is_no_answer() -> None:
    app = Host(settle=60)
    async with app.run_test() as pilot:
        app.consent.ask(REQUEST)
        await pilot.press("a", "y", "n", "v")
        await pilot.pause()
        assert app.verdicts == []
        assert app.consent.is_asking


async def test_its_keys_work_once_it_has_settled() -> None:
    app = Host(settle=0.01)
    async with app.run_test() as pilot:
        app.consent.ask(REQUEST)
        await pilot.pause(0.1)
        await pilot.press("y")
        await until(pilot, lambda: app.verdicts == ["yes"])


async def test_it_can_leave_the_focus_and_says_how_to_get_there() -> None:
    app = Host()
    async with app.run_test() as pilot:
        app.consent.ask(REQUEST, take_focus=False)
        await pilot.press("y")
        await pilot.pause()
        assert app.verdicts == []
        assert "Tab comes here" in shown(app)
        await pilot.press("tab")
        await pilot.pause()
        assert "Tab comes here" not in shown(app)
        await pilot.press("y")
        await until(pilot, lambda: app.verdicts == ["yes"])


async def test_withdrawn_it_is_gone_and_answers_nothing() -> None:
    app = Host()
    async with app.run_test() as pilot:
        app.consent.ask(REQUEST)
        await pilot.pause()
        app.consent.withdraw()
        await pilot.pause()
        assert not app.consent.display
        assert app.focused is app.query_one(Input)
        app.consent.action_decide("yes")
        await pilot.pause()
        assert app.verdicts == []


async def test_what_is_shown_steers_nothing() -> None:
    app = Host()
    hostile = replace(
        REQUEST, remote="[red]x[/red]\x1b[2J", text="[bold]a[/bold]\x1b]0;t\x07 <b>", note="2 hidden"
    )
    async with app.run_test() as pilot:
        app.consent.ask(hostile)
        await pilot.press("v")
        await pilot.pause()
        assert "[red]x[/red] wants 1,812" in shown(app)
        assert "2 hidden" in shown(app)
        assert "[bold]a[/bold] <b>" in shown(app)


def test_without_prices_the_cost_is_not_made_up() -> None:
    assert question(replace(REQUEST, usd=None)).endswith("7.2 kB · cost unknown")
