"""The share bar: who wrote how much, and folding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.app import App, ComposeResult

from sr_edge.tui.blocks import Share
from sr_edge.tui.hues import Hues
from sr_edge.tui.widgets.share import ShareBar

shares = st.builds(
    Share,
    local_tokens=st.integers(0, 10**6),
    remotes=st.lists(
        st.tuples(st.sampled_from(["lab", "attic", "漢字", "x" * 40, "a\nb\x1b[2J"]), st.integers(0, 10**6)),
        max_size=4,
        unique_by=lambda remote: remote[0],
    ).map(tuple),
    num_spans=st.integers(0, 10**4),
)


class Page(App[None]):
    def __init__(self) -> None:
        super().__init__()
        self.toggled = 0

    def compose(self) -> ComposeResult:
        yield ShareBar(hues=Hues())

    def on_share_bar_toggled(self) -> None:
        self.toggled += 1

    @property
    def bar(self) -> ShareBar:
        return self.query_one(ShareBar)

    def line(self) -> str:
        return self.bar.render_line(0).text.rstrip()


async def shown(share: Share, *, width: int = 80, folded: bool = False, can_fold: bool = False) -> str:
    app = Page()
    async with app.run_test(size=(width, 5)) as pilot:
        app.bar.show(share, folded=folded, can_fold=can_fold)
        await pilot.pause()
        return app.line()


ONE = Share(61, (("lab", 39),), 3)


async def test_it_says_who_wrote_how_much():
    assert await shown(ONE) == "local 61 % ░░░░░░░░░░██████ lab 39 % · 3 spans"
    two = Share(50, (("lab", 30), ("attic", 20)), 1)
    assert await shown(two) == "local 50 % ░░░░░░░░█████▓▓▓ lab 30 % · attic 20 % · 1 span"


async def test_what_was_written_here_alone_needs_no_bar():
    assert await shown(Share(10)) == "local 100 %"
    assert await shown(Share(10, (("lab", 0),), 2)) == "local 100 % · 2 spans"


async def test_it_says_whether_the_reasoning_is_folded():
    assert (await shown(ONE, can_fold=True)).startswith("▾ reasoning  local 61 %")
    assert (await shown(ONE, can_fold=True, folded=True)).startswith("▸ reasoning  local 61 %")


@pytest.mark.parametrize("width", [20, 30, 40, 50, 60])
async def test_where_it_is_narrow_the_bar_goes_before_the_words(width):
    line = await shown(ONE, width=width, can_fold=True)
    assert line.startswith("▾ reasoning  local")
    assert len(line) <= width
    assert "░" not in line or "3 spans" in line


async def test_a_click_folds_where_there_is_something_to_fold():
    app = Page()
    async with app.run_test(size=(60, 5)) as pilot:
        app.bar.show(ONE)
        await pilot.click(ShareBar)
        assert app.toggled == 0
        app.bar.show(ONE, can_fold=True)
        await pilot.click(ShareBar)
        await pilot.pause()
        assert app.toggled == 1


async def test_it_follows_the_width():
    app = Page()
    async with app.run_test(size=(20, 5)) as pilot:
        app.bar.show(ONE)
        await pilot.pause()
        await pilot.resize_terminal(80, 5)
        await pilot.pause()
        assert app.line().endswith("3 spans")


@given(shares, st.integers(1, 100), st.booleans(), st.booleans())
def test_any_share_fits_into_its_line_and_is_whole(share, width, folded, can_fold):
    bar = ShareBar()
    bar._share, bar._is_folded, bar._can_fold = share, folded, can_fold
    line = bar._line(width)
    assert line.cell_length <= width
    assert "\n" not in line.plain
    assert "\x1b" not in line.plain
    whole = bar._line(1000).plain
    percents = [
        int(word) for word, sign in zip(whole.split(), whole.split()[1:], strict=False) if sign == "%"
    ]
    assert sum(percents) in ((0, 100) if not percents else (100,))
