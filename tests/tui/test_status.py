"""The status line: who is being waited for, whether anything can leave, what it has cost."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.app import App, ComposeResult

from sr_edge.tui.widgets.status import Doing, Facts, Limit, StatusLine, doing_words, status_line

FULL = Facts(
    doing=Doing("waiting", "lab", since=10.0),
    link="online",
    dial="auto",
    effort="effort +1",
    context=(2100, 8192),
    answer=Limit(0.0011, 0.02),
    day=Limit(0.03, 0.50),
)


class Page(App[None]):
    def __init__(self) -> None:
        super().__init__()
        self.now = 10.4

    def compose(self) -> ComposeResult:
        yield StatusLine(clock=lambda: self.now)

    @property
    def status(self) -> StatusLine:
        return self.query_one(StatusLine)

    def line(self) -> str:
        return self.status.render_line(0).text.rstrip()


@pytest.mark.parametrize(
    ("doing", "words"),
    [
        (Doing("loading", done=0.62), "loading █████░░░ 62 %"),
        (Doing("reading", done=1200, total=3400), "reading prompt 1.2k/3.4k"),
        (Doing("reading"), "reading prompt"),
        (Doing("local"), "local"),
        (Doing("waiting", "lab", since=10.0), "waiting for lab 0.4 s"),
        (Doing("waiting", "lab", since=-20.0), "waiting for lab 30 s"),
        (Doing("asking", "lab"), "waiting for you: y or n"),
        (Doing("remote", "lab"), "lab"),
        (Doing("remote", "a-rather-long-name"), "a-rather-long-n…"),
        (Doing("catching up"), "catching up"),
        (Doing("stopping"), "stopping"),
        (Doing("stopped"), "stopped"),
        (Doing("idle"), "idle"),
        (Doing("failed"), "no model"),
    ],
)
def test_every_state_has_its_words(doing, words):
    assert doing_words(doing, 10.4) == words


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (Facts(link="online"), "● online"),
        (Facts(link="slow", ttft=2.13), "◐ slow 2.1 s"),
        (Facts(link="offline"), "○ offline"),
        (Facts(link="local only"), "⊘ local only"),
        (Facts(link="key rejected"), "⚠ key rejected"),
        (Facts(dial="ask"), " ask"),
        (Facts(context=(2100, 8192)), "ctx 2.1k/8.2k"),
        (Facts(answer=Limit(0.0011, 0.02), day=Limit(0.03)), "answer $0.0011/0.02"),
        (Facts(day=Limit(0.03, 0.5)), "day $0.030/0.50"),
        (Facts(answer=Limit(4200, 10_000, is_usd=False)), "answer 4.2k/10k tok"),
        (Facts(effort="effort +1"), "effort +1"),
    ],
)
def test_every_fact_is_shown(facts, words):
    assert words in status_line(facts, 140, now=0.0).plain


async def test_it_says_all_of_it_where_there_is_room():
    app = Page()
    async with app.run_test(size=(140, 5)) as pilot:
        app.status.show(FULL)
        await pilot.pause()
        line = app.line()
        for words in ("waiting for lab 0.4 s", "● online", "auto", "ctx 2.1k/8.2k", "answer $0.0011/0.02"):
            assert words in line


@pytest.mark.parametrize("width", [10, 20, 40, 60, 80, 120])
def test_the_last_fields_go_first_and_none_is_cut(width):
    words = status_line(FULL, width, now=10.4).plain
    assert len(words) <= width
    fields = [field.strip() for field in words.split("  ") if field.strip()]
    wide = [field.strip() for field in status_line(FULL, 200, now=10.4).plain.split("  ") if field.strip()]
    assert width < 30 or fields == wide[: len(fields)]


def test_fields_keep_their_places_while_figures_change():
    doings = [Doing("local"), Doing("waiting", "lab", since=0.0), Doing("reading", done=900, total=34_000)]
    at = {status_line(replace(FULL, doing=doing), 140, now=99.0).plain.index("●") for doing in doings}
    at |= {status_line(replace(FULL, doing=Doing("idle")), 140, now=0).plain.index("●")}
    assert len(at) == 1


async def test_it_ticks_only_while_something_runs():
    app = Page()
    async with app.run_test(size=(140, 5)) as pilot:
        assert not app.status.is_ticking
        app.status.show(FULL)
        await pilot.pause()
        assert app.status.is_ticking
        assert app.status._timer._active.is_set()
        app.status.show(replace(FULL, doing=Doing("idle")))
        await pilot.pause()
        assert not app.status.is_ticking
        assert not app.status._timer._active.is_set()
        assert app.line().strip().startswith("idle")


async def test_a_tick_counts_the_seconds():
    app = Page()
    async with app.run_test(size=(140, 5)) as pilot:
        app.status.show(FULL)
        app.now = 15.0
        app.status._tick()
        await pilot.pause()
        assert "waiting for lab 5.0 s" in app.line()


async def test_figures_wait_for_the_tick_and_states_do_not():
    app = Page()
    async with app.run_test(size=(140, 5)) as pilot:
        app.status.show(FULL)
        app.status._timer.pause()
        drawn = []
        app.status._draw = lambda: drawn.append(1)
        app.status.show(replace(FULL, context=(2101, 8192)))
        assert not drawn
        app.status.show(replace(FULL, doing=Doing("remote", "lab")))
        assert drawn
        await pilot.pause()


async def test_it_needs_no_layout():
    app = Page()
    async with app.run_test(size=(140, 5)) as pilot:
        await pilot.pause()
        layouts = []
        app.screen._refresh_layout = lambda *args, **options: layouts.append(1)
        app.status.show(FULL)
        app.status._tick()
        await pilot.pause()
        assert layouts == []


@given(
    st.sampled_from(["lab", "", "漢字漢字漢字漢字漢字", "a\x1b[2J\nb", "x" * 99]),
    st.sampled_from(["loading", "waiting", "remote", "reading", "asleep"]),
    st.floats(0, 1e7),
    st.integers(0, 10**7),
    st.integers(1, 160),
)
def test_nothing_is_ever_wider_than_the_line(name, phase, done, total, width):
    facts = replace(FULL, doing=Doing(phase, name, done, total))
    line = status_line(facts, width, now=done)
    assert line.cell_length <= width
    assert "\n" not in line.plain
    assert "\x1b" not in line.plain
