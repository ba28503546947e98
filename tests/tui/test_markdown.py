"""Answers as they are read: maths is readable, nothing vanishes, and streaming ends in the same picture."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from textual.app import App, ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static
from textual.widgets.markdown import MarkdownFence

from sr_edge.tui.markdown import code_blocks, parser
from sr_edge.tui.quiet import QuietScreen, QuietScroll
from sr_edge.tui.widgets.answer import Answer


class Page(App[None]):
    def __init__(self, text: str | None = None) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Answer(self.text)

    @property
    def answer(self) -> Answer:
        return self.query_one(Answer)

    def lines(self) -> list[str]:
        strips = self.screen._compositor.render_strips()
        return [text for strip in strips if (text := strip.text.strip(" \u2581\u2582\u2583"))]


async def shown(text: str, width: int = 80) -> list[str]:
    app = Page(text)
    async with app.run_test(size=(width, 40)) as pilot:
        await pilot.pause()
        return app.lines()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("5*3*2 = 30", "5*3*2 = 30"),
        ("2**3**2 and (a)*b + (c)*d", "2**3**2 and (a)*b + (c)*d"),
        ("α*β*γ", "α*β*γ"),
        ("a<b>c</b>", "a<b>c</b>"),
        ("<think>so</think>42", "<think>so</think>42"),
        ("it costs $5 and $6", "it costs $5 and $6"),
        ("from $20-$30, or US$5/$6.", "from $20-$30, or US$5/$6."),
        ("$5 for the first one and for the second one 6$", "$5 for the first one and for the second one 6$"),
        (r"so \( x^2 \) it is", "so x² it is"),
        (r"so \[ \frac{a}{b} \] it is", "so a/b it is"),
        (r"$x_1 \le 3$, $$y \ne 2$$.", "x₁ ≤ 3, y ≠ 2."),
        (r"The answer is \boxed{45}.", "The answer is  ▣ 45 ."),
        (r"The answer is $\boxed{\frac{3}{4}}$.", "The answer is  ▣ 3/4 ."),
        (r"$$\boxed{45}$$", "▣ 45"),
        (r"\[", "["),
        (r"a \foo{b} c", r"a \foo{b} c"),
        (r"$\foo{b}$", r"\foo{b}"),
        ("the *point* is **this**, 这是**重点**内容", "the point is this, 这是重点内容"),
        ("[text](https://example.org/a)", "text (https://example.org/a)"),
        ("<https://example.org/a>", "https://example.org/a"),
        ("![a picture](x.png)", "[image: a picture] (x.png)"),
        ("a \x1b[31mb\x1b]0;t\x07 c &#x202e;d", "a b c d"),
        ("`x*y*z` and `$5`", "x*y*z and $5"),
        ("[b]bold[/b] [@click=app.quit]x[/]", "[b]bold[/b] [@click=app.quit]x[/]"),
    ],
)
async def test_a_line_is_shown_as_it_is_meant(text, line):
    assert await shown(text) == [line]


async def test_lines_stay_lines():
    assert await shown("x = 1\ny = 2") == ["x = 1", "y = 2"]


@pytest.mark.parametrize(
    "text",
    [
        "so\n\n\\[\nx = 1\n\\]\n\nend",
        "so\n$$\nx = 1\n$$\nend",
        "so\n\n$$x = 1$$\n\nend",
        "so\n\\begin{equation*}\nx = 1\n\\end{equation*}\nend",
    ],
)
async def test_a_formula_may_have_lines_of_its_own(text):
    assert await shown(text) == ["so", "x = 1", "end"]


async def test_rows_of_a_formula_stand_below_each_other():
    text = "\\[\n\\begin{aligned}\nx &= 1 + 2 \\\\\n&= 3\n\\end{aligned}\n\\]"
    assert await shown(text) == ["x = 1 + 2", "= 3"]
    app = Page(text)
    async with app.run_test() as pilot:
        await pilot.pause()
        first, second = (strip.text for strip in app.screen._compositor.render_strips()[:2])
        assert first.index("=") == second.index("=")


async def test_code_is_kept_to_the_letter():
    code = "def f(x):\n    return 5*3*2 if x<b>c else '$a$'\n\n# \\boxed{1}"
    lines = await shown(f"so:\n\n```python\n{code}\n```\n\nend")
    assert lines == ["so:", *(line.strip() for line in code.split("\n") if line), "end"]
    app = Page(f"```python\n{code}\n```\n- a\n\n  ```\n  b\n  ```")
    async with app.run_test() as pilot:
        await pilot.pause()
        assert app.answer.code_blocks() == [code, "b"]


async def test_tables_and_lists_hold_formulas():
    text = "| a | b |\n|---|---|\n| $x^2$ | 5*3*2 |\n\n- one \\(y_1\\)\n- two\n\n1. $z$"
    seen = " ".join(await shown(text))
    for each in ("x²", "5*3*2", "one y₁", "two", "1. z"):
        assert each in seen


async def test_links_do_nothing():
    app = Page("[text](https://example.org) <https://example.org>")
    opened = []
    app.open_url = lambda *args, **options: opened.append(args)
    async with app.run_test(size=(60, 10)) as pilot:
        await pilot.pause()
        for x in range(2, 40, 4):
            await pilot.click(offset=(x, 0))
        assert opened == []


async def test_what_was_written_can_be_copied():
    text = "so \\( x^2 \\) and \\boxed{45}"
    app = Page(text)
    async with app.run_test() as pilot:
        await pilot.pause()
        assert app.answer.source == text


async def test_an_answer_can_go_on_after_its_end():
    app = Page("```python\na = 1")
    async with app.run_test() as pilot:
        await pilot.pause()
        await app.answer.stream("\nb = 2\n```\n\nso **it** is")
        await pilot.pause()
        await pilot.pause()
        assert app.lines() == ["a = 1", "b = 2", "so it is"]


# --- any answer --------------------------------------------------------------------------------------

PARTS = [
    *(
        "a word",
        " ",
        "\n",
        "\n\n",
        "**bold**",
        "5*3*2",
        "*",
        "`",
        "```",
        "```python\n",
        "x = 1\n",
        "# head\n",
    ),
    *("- item\n", "  - inner\n", "1. one\n", "> quoted\n", "| a | b |\n", "|---|---|\n", "| c | d |\n"),
    *("$x^2$", "$", "$$", "\\[", "\\]", "\\(", "\\)", "\\boxed{4}", "\\frac{1}{2}", "\\begin{aligned}"),
    *(
        "\\end{aligned}",
        "a & b \\\\\n",
        "<think>",
        "a<b>c",
        "\x1b[31m",
        "[l](u)",
        "![i](s)",
        "漢字",
        "---\n",
        "    code\n",
    ),
]
answers = st.lists(st.sampled_from(PARTS), max_size=24).map("".join)


@given(answers)
def test_every_text_can_be_read(text):
    parser().parse(text)
    code_blocks(text)


@given(st.text(alphabet="ab*$\\[]() \n", max_size=60))
def test_nothing_but_marks_is_lost(text):
    written = [char for char in text if char in "ab"]
    tokens = parser().parse(text)
    seen = [
        char
        for token in tokens
        for each in (token.children or [token])
        for char in (each.content if each.type != "inline" else "")
        if char in "ab"
    ]
    assert len(seen) >= len(written) - text.count("\\")


async def test_streaming_ends_in_the_same_picture():
    def picture(app: Page) -> list[object]:
        found: list[object] = []
        for widget in app.answer.query("*"):
            if isinstance(widget, MarkdownFence):
                found.append(("code", widget.code, widget.lexer))
            elif isinstance(widget, Static) and isinstance(widget.visual, Content):
                found.append((type(widget).__name__, widget.visual.plain))
        return found

    app = Page()
    async with app.run_test(size=(60, 80)) as pilot:
        portions: list[tuple[str, list[int]]] = []

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(answers, st.lists(st.integers(1, 12), min_size=1, max_size=30))
        def draw(text: str, sizes: list[int]) -> None:
            portions.append((text, sizes))

        draw()
        for text, sizes in portions:
            await app.answer.finish(text)
            await pilot.pause()
            whole, lines = picture(app), app.lines()
            scroll = app.query_one(VerticalScroll)
            await scroll.remove_children()
            await scroll.mount(Answer())
            at = 0
            for size in sizes:
                await app.answer.stream(text[at : at + size])
                at += size
                await pilot.pause()
            await app.answer.finish(text)
            await pilot.pause()
            assert (picture(app), app.lines()) == (whole, lines)


async def test_a_window_that_loses_focus_costs_no_restyling():
    class Quiet(QuietScreen[None]):
        def compose(self) -> ComposeResult:
            with QuietScroll():
                yield Answer("\n\n".join(f"paragraph *{n}*" for n in range(60)))

    app = App()
    async with app.run_test() as pilot:
        await app.push_screen(Quiet())
        await pilot.pause()
        styled, apply = [], app.stylesheet.apply
        app.stylesheet.apply = lambda node, **options: (styled.append(node), apply(node, **options))
        app.app_focus = False
        await pilot.pause()
        app.app_focus = True
        await pilot.pause()
        assert 0 < len(styled) < 20
        app.theme = "textual-light"
        await pilot.pause()
        assert len(styled) > 60
