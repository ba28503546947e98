"""The trace: what is drawn for each writer, how it grows, and how spans are walked, chosen and copied."""

from itertools import accumulate

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.containers import VerticalScroll

from sr_edge.events import Event, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started
from sr_edge.tui.blocks import Blocks
from sr_edge.tui.hues import HUES, Hues
from sr_edge.tui.widgets.trace import Trace

STARTED = Started(prompt_ids=(1,), model="small")


def local(text: str) -> LocalToken:
    return LocalToken(id=1, text=text, logprob=-0.1)


def span(n: int, *texts: str, end="handback", remote="lab", cost: float | None = 0.0003) -> list[Event]:
    return [
        SpanOpened(span=n, trigger="marker", p_open=0.9, remote=remote, sent_tokens=5, sent_bytes=20),
        *(SpanDelta(span=n, text=text) for text in texts),
        SpanClosed(span=n, ids=(), end=end, tokens=46, seconds=0.9, cost=cost),
    ]


class Page(App[None]):
    def __init__(self, *events: Event, part=None) -> None:
        super().__init__()
        self.blocks, self.part = Blocks(), part
        self.blocks.add(STARTED)
        for event in events:
            self.blocks.add(event)
        self.chosen: list[int] = []

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Trace()

    def on_mount(self) -> None:
        self.trace.show(self.blocks, self.part)

    def on_trace_span_chosen(self, message: Trace.SpanChosen) -> None:
        self.chosen.append(message.span)

    @property
    def trace(self) -> Trace:
        return self.query_one(Trace)

    def add(self, *events: Event) -> None:
        for event in events:
            self.blocks.add(event)
        self.trace.grew()

    def lines(self) -> list[str]:
        """As they are drawn, without white space at the end."""
        return [self.trace.render_line(y).text.rstrip() for y in range(self.trace.size.height)]

    def screen_lines(self) -> list[str]:
        strips = self.screen._compositor.render_strips()
        return [strip.text.rstrip() for strip in strips]


async def drawn(*events: Event, width: int = 40) -> list[str]:
    app = Page(*events)
    async with app.run_test(size=(width, 30)) as pilot:
        await pilot.pause()
        return app.lines()


async def test_each_writer_has_its_bar_and_each_span_its_number():
    lines = await drawn(
        local("Try powers of 7:"),
        *span(1, " they end in\n7, 9, 3, 1."),
        local(" So 1."),
        *span(2, end="offline"),
        local("alone"),
    )
    assert lines == [
        "│ Try powers of 7:",
        "┃ ◆1 they end in",
        "┃    7, 9, 3, 1.",
        "┃              lab 46 tok 0.9 s $0.00030",
        "│ So 1.",
        "╎ ◇2 (offline; continued locally)",
        "╎    alone",
    ]


async def test_who_wrote_how_much_stands_at_the_right_of_the_last_line():
    [line] = await drawn(*span(1, "so 1"), width=60)
    assert line == "┃ ◆1 so 1" + "lab 46 tok 0.9 s $0.00030".rjust(60 - 9)
    [line] = await drawn(*span(1, "so 1", cost=None), width=60)
    assert line.endswith("lab 46 tok 0.9 s")


async def test_maths_and_tags_are_drawn_as_they_were_written():
    assert await drawn(local("5*3*2 [b]a<b>c[/b] \\( x \\) $1")) == ["│ 5*3*2 [b]a<b>c[/b] \\( x \\) $1"]


async def test_white_space_around_spans_takes_no_lines():
    lines = await drawn(
        local("a\n\n"), *span(1, "\n\n  b\n", cost=None), local("\n\n"), *span(2, "c", cost=None)
    )
    assert [line[:6].rstrip() for line in lines] == ["│ a", "┃ ◆1", "┃ ◆2 c"]


async def test_an_open_span_shows_that_it_is_waited_for():
    assert await drawn(*span(1, "b")[:1]) == ["┃ ◆1 …"]
    assert await drawn(*span(1, "b")[:2]) == ["┃ ◆1 b"]


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 12])
async def test_no_width_is_too_small(width):
    app = Page(local("漢字 and words\tthen"), *span(10, "漢字"), *span(11, end="offline"))
    async with app.run_test(size=(width, 60)) as pilot:
        await pilot.pause()
        assert app.trace.size.height > 3
        for y in range(app.trace.size.height):
            assert app.trace.render_line(y).cell_length == app.trace.size.width


async def test_only_the_part_that_is_asked_for_is_drawn():
    events = [local("a"), *span(1, "b</think>c", cost=None)]
    for part, first in (("reasoning", "│ a"), ("answer", "┃ ◆1 c")):
        app = Page(part=part)
        app.blocks.add(Started(prompt_ids=(1,), model="small", opening="<think>"))
        for event in events:
            app.blocks.add(event)
        async with app.run_test(size=(40, 10)) as pilot:
            await pilot.pause()
            assert app.lines()[0].startswith(first)


async def test_a_remote_keeps_its_colour_and_others_have_another():
    hues = Hues()
    numbers = [hues.number(name) for name in ("lab", "attic", "lab", "cellar", "attic")]
    assert numbers == [0, 1, 0, 2, 1]
    assert {hues.number(str(n)) for n in range(20)} == set(range(len(HUES)))
    app = Page(*span(1, "a"), *span(2, "b", remote="attic"), *span(3, "c"))
    async with app.run_test(size=(60, 10)) as pilot:
        await pilot.pause()
        colors = [next(iter(app.trace.render_line(y))).style.color for y in range(3)]
        assert colors[0] == colors[2] != colors[1]


@pytest.mark.parametrize("theme", ["textual-dark", "textual-light", "nord", "gruvbox"])
async def test_a_change_of_theme_is_seen(theme):
    app = Page(*span(1, "a"))
    async with app.run_test(size=(60, 10)) as pilot:
        app.theme = "monokai"
        await pilot.pause()
        before = list(app.trace.render_line(0))
        app.theme = theme
        await pilot.pause()
        assert list(app.trace.render_line(0)) != before
        assert app.lines()[0].startswith("┃ ◆1 a")


# --- growing -----------------------------------------------------------------------------------------


async def test_text_grows_on_the_screen_without_a_new_layout():
    app = Page(local("a"), *span(1, "b"), local("start"))
    async with app.run_test(size=(60, 10)) as pilot:
        await pilot.pause()
        layouts, refresh = [], app.screen._refresh_layout
        app.screen._refresh_layout = lambda *args, **options: (layouts.append(1), refresh(*args, **options))
        app.add(local(" and"), local(" on"))
        await pilot.pause()
        assert app.screen_lines()[2] == "│ start and on"
        assert not layouts
        app.add(local("\nline"))
        await pilot.pause()
        assert app.screen_lines()[2:4] == ["│ start and on", "│ line"]
        assert layouts


PIECES = ["a", "word ", " ", "\n", "\n\n", "long" * 9, "漢字", "\t", "</think>", "é"]
texts = st.lists(st.sampled_from(PIECES), max_size=5)
ENDS = ["handback", "stalled", "offline", "cancelled"]


@st.composite
def growth(draw: st.DrawFn) -> list[list[Event]]:
    """Events, in the portions in which they come."""
    events: list[Event] = []
    for n in range(1, draw(st.integers(1, 5))):
        events.extend(local(text) for text in draw(texts))
        events.extend(span(n, *draw(texts), end=draw(st.sampled_from(ENDS))))
    events.extend(local(text) for text in draw(texts))
    sizes = draw(st.lists(st.integers(1, 6), min_size=len(events) + 1, max_size=len(events) + 1))
    return [events[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


async def test_what_grew_is_what_would_be_drawn_at_once():
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(growth(), st.sampled_from([12, 30, 60]), st.sampled_from([None, "answer", "reasoning"]))
    def check(portions: list[list[Event]], width: int, part) -> None:
        grown, events = Trace(), []
        blocks = Blocks()
        blocks.add(STARTED)
        grown._blocks, grown._part = blocks, part
        grown.get_content_height(None, None, width)
        for portion in portions:
            before = rows(grown)
            for event in portion:
                blocks.add(event)
                events.append(event)
            first = grown._update()
            whole, all_blocks = Trace(), Blocks()
            all_blocks.add(STARTED)
            for event in events:
                all_blocks.add(event)
            whole._blocks, whole._part = all_blocks, part
            whole.get_content_height(None, None, width)
            assert rows(grown) == rows(whole)
            assert rows(grown)[:first] == before[:first]

    def rows(trace: Trace) -> list[object]:
        return [
            (drawn.voice, drawn.span, drawn.gutter, drawn.badge if not row else "", shown(drawn, row))
            for drawn in trace._drawn
            for row in range(drawn.height)
        ]

    def shown(drawn, row) -> tuple[str, str, str]:
        content = drawn.row(row)
        line = drawn.text[slice(*content.line)] if content.line else ""
        return line, content.note, content.label

    app = App()
    async with app.run_test():
        check()


async def test_a_new_width_wraps_anew():
    app = Page(local("one two three four five six"), *span(1, "x"))
    async with app.run_test(size=(60, 10)) as pilot:
        await pilot.pause()
        assert app.trace.size.height == 2
        await pilot.resize_terminal(16, 10)
        await pilot.pause()
        assert app.lines()[:2] == ["│ one two three", "│ four five six"]
        assert app.trace.size.height == 4  # what the span cost has a line of its own


async def test_the_end_stays_in_sight_while_it_grows():
    app = Page(local("a"))
    async with app.run_test(size=(40, 8)) as pilot:
        app.query_one(VerticalScroll).anchor()
        for n in range(40):
            app.add(local(f"\nline {n}"))
            await pilot.pause()
        assert app.screen_lines()[7].startswith("│ line 39")


async def test_what_is_kept_of_a_long_trace_is_bounded():
    app = Page(*(event for n in range(1, 3000) for event in (local("so\n"), *span(n, "x"))))
    async with app.run_test(size=(60, 40)) as pilot:
        await pilot.pause()
        scroll = app.query_one(VerticalScroll)
        assert app.trace.size.height == 2 * 2999
        for y in range(0, 6000, 37):
            scroll.scroll_to(y=y, animate=False, immediate=True)
            await pilot.pause()
        assert "◆2999" in app.screen_lines()[39]
        assert len(app.trace._strips) <= 256
        assert len(app.trace._styles_cache._cache) <= 4 * 256 + 80


# --- spans -------------------------------------------------------------------------------------------


async def test_spans_are_known_with_their_lines_those_without_text_too():
    app = Page(local("a"), *span(1, "b"), *span(2, end="offline"), local("c"), *span(3, "d"))
    async with app.run_test(size=(60, 10)) as pilot:
        await pilot.pause()
        trace = app.trace
        assert trace.spans == [1, 2, 3]
        assert [trace.line_of(n) for n in (1, 2, 3, 4)] == [1, 2, 4, None]


async def test_the_cursor_is_seen_without_colours():
    app = Page(*span(1, "a\nb"), *span(2, "c"))
    async with app.run_test(size=(60, 10)) as pilot:
        await pilot.pause()
        app.trace.cursor = 1
        await pilot.pause()
        assert [line[0] for line in app.screen_lines()[:3]] == ["█", "█", "┃"]
        app.trace.cursor = 2
        await pilot.pause()
        assert [line[0] for line in app.screen_lines()[:3]] == ["┃", "┃", "█"]


async def test_a_click_chooses_a_span():
    app = Page(local("a"), *span(1, "b"), *span(2, "c"))
    async with app.run_test(size=(60, 10)) as pilot:
        await pilot.pause()
        await pilot.click(Trace, offset=(5, 1))
        await pilot.click(Trace, offset=(5, 0))
        await pilot.pause()
        assert app.chosen == [1]


# --- copying -----------------------------------------------------------------------------------------

COPIED = [local("one two three four five\n"), *span(1, "six seven\teight 漢字 nine\n"), local("ten")]


async def drag(pilot, start: tuple[int, int], end: tuple[int, int]) -> str | None:
    await pilot.mouse_down(Trace, offset=start)
    await pilot.hover(Trace, offset=end)
    await pilot.mouse_up(Trace, offset=end)
    await pilot.pause()
    return pilot.app.screen.get_selected_text()


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [
        ((2, 0), (4, 0), "one"),
        ((6, 0), (5, 1), "two three four"),  # over a break that is only drawn
        ((0, 0), (7, 3), "one two three four five\nsix seven\teight"[:-2]),
        ((5, 2), (7, 2), "six"),
        ((7, 2), (5, 2), "six"),
    ],
)
async def test_a_selection_is_the_text_without_bars_and_breaks(start, end, text):
    app = Page(*COPIED)
    async with app.run_test(size=(16, 10)) as pilot:
        await pilot.pause()
        assert app.lines()[:3] == ["│ one two three", "│ four five", "┃ ◆1 six seven"]
        assert await drag(pilot, start, end) == text
        assert app.chosen == []


async def test_all_is_the_text_as_it_was_written():
    app = Page(*COPIED)
    async with app.run_test(size=(16, 10)) as pilot:
        await pilot.pause()
        app.trace.text_select_all()
        await pilot.pause()
        assert app.screen.get_selected_text() == "one two three four five\nsix seven\teight 漢字 nine\nten"
        styles = {segment.style.bgcolor for segment in app.trace.render_line(0)}
        assert len(styles) == 2  # the bar's, and that of what is selected


async def test_tabs_and_wide_characters_keep_their_columns():
    app = Page(local("a\tb漢c"))
    async with app.run_test(size=(40, 10)) as pilot:
        await pilot.pause()
        assert app.lines() == ["│ a    b漢c"]
        assert cell_len(app.trace.render_line(0).text) == app.trace.size.width
        assert await drag(pilot, (7, 0), (8, 0)) == "b漢"
        assert await drag(pilot, (4, 0), (7, 0)) == "\tb"
