"""The first thing that is seen: it must say what works now and how to get more."""

import pytest
from tests.tui.small import SIZES, shown, until
from textual import on
from textual.app import App, ComposeResult
from textual.widgets import OptionList

from sr_edge.tui.widgets.welcome import EXAMPLES, Setup, Welcome


class Host(App[None]):
    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup = setup
        self.chosen: list[str] = []

    def compose(self) -> ComposeResult:
        yield Welcome(self.setup)

    @on(Welcome.Chosen)
    def keep(self, message: Welcome.Chosen) -> None:
        self.chosen.append(message.text)


@pytest.mark.parametrize("size", SIZES)
async def test_without_anything_set_up_it_works_and_says_what_more_there_is(size: tuple[int, int]) -> None:
    app = Host(Setup(None, None))
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        for words in ("A small model on this machine", "built in", "Ida fills 28 bags", "models import"):
            assert words in shown(app)
        app.query_one(OptionList).focus()
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.chosen == [EXAMPLES[1]])


async def test_a_click_takes_an_example() -> None:
    app = Host(Setup(None, None))
    async with app.run_test() as pilot:
        await pilot.pause()
        await pilot.click(OptionList, offset=(5, 0))
        await until(pilot, lambda: app.chosen == [EXAMPLES[0]])


@pytest.mark.parametrize(
    ("setup", "there", "not_there"),
    [
        (Setup(None, "lab"), ["models import"], ["remote add"]),
        (
            Setup("small.gguf", None),
            ["small.gguf answers alone", "remote add", "keys set"],
            ["built in", "Ida"],
        ),
        (Setup("small.gguf", "lab"), ["small.gguf answers, and may ask lab."], ["remote add", "import"]),
        (Setup("small.gguf", "lab", is_offline=True), ["nothing leaves this machine"], ["may ask"]),
        (Setup("[red]\x1b[31mx", "[b]lab[/b]"), ["[red]x answers, and may ask [b]lab[/b]."], []),
    ],
)
async def test_it_says_only_what_is_so(setup: Setup, there: list[str], not_there: list[str]) -> None:
    app = Host(setup)
    async with app.run_test() as pilot:
        await pilot.pause()
        assert all(words in shown(app) for words in there)
        assert not any(words in shown(app) for words in not_there)
