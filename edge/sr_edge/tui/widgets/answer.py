"""An answer as it is meant to be read: Markdown with formulas, drawn while it is written.

What was written stays at hand in `source`: for copying, and for code on its own.
"""

from __future__ import annotations

from markdown_it.token import Token
from textual.await_complete import AwaitComplete
from textual.content import Content
from textual.widgets import Markdown
from textual.widgets.markdown import MarkdownBlock

from sr_edge.terminal import Sanitiser, safe
from sr_edge.tui.latex import BOX, to_unicode
from sr_edge.tui.markdown import MATH_BLOCK, code_blocks, parser


class Formula(MarkdownBlock):
    """A formula with lines of its own."""

    DEFAULT_CSS = """
    Formula {
        margin: 0 0 1 0;
        padding: 0 0 0 2;
    }
    """

    def __init__(self, markdown: Markdown, token: Token) -> None:
        super().__init__(markdown, token)
        shown = to_unicode(token.content)
        content = Content(shown)
        for number, line in enumerate(shown.split("\n")):
            at = line.find(BOX)
            if at >= 0:
                start = sum(len(each) + 1 for each in shown.split("\n")[:number]) + at
                content = content.stylize(".strong", start, start + len(line) - at)
                content = content.stylize(".code_inline", start, start + len(line) - at)
        self.set_content(content)


class Answer(Markdown):
    """Give it text with `stream`, and all of it once more with `finish`."""

    DEFAULT_CSS = """
    Answer {
        padding: 0;
        & > MarkdownHeader { margin: 0 0 1 0; content-align: left middle; background: transparent; }
        & MarkdownFence { margin: 0 0 1 0; }
        & MarkdownFence > Label { padding: 0 1; }
        & > MarkdownBlockQuote { margin: 0 0 1 0; }
    }
    """

    def __init__(self, text: str | None = None, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(
            None if text is None else safe(text),
            id=id,
            classes=classes,
            parser_factory=parser,
            open_links=False,
        )
        self._sanitiser = Sanitiser()
        self._waiting: list[str] = []
        self._is_drawing = False
        self._is_finished = text is not None

    async def stream(self, piece: str) -> None:
        """More of the answer. Returns at once; what comes faster than it can be drawn is drawn together."""
        self._waiting.append(self._sanitiser.push(piece))
        if not self._is_drawing:
            self._is_drawing = True
            self.call_later(self._draw)

    def finish(self, text: str) -> AwaitComplete:
        """The whole answer, drawn anew: whatever was a guess while it came is right now."""
        self._waiting.clear()
        self._sanitiser = Sanitiser()
        self._is_finished = True
        return self.update(safe(text))

    def code_blocks(self) -> list[str]:
        return code_blocks(self.source)

    async def _draw(self) -> None:
        try:
            if self._is_finished:  # appending to what `update` drew would break fences
                self._waiting.insert(0, self.source)
                self._is_finished = False
                await self.update("")
            while text := "".join(self._waiting):
                self._waiting.clear()
                await self.append(text)
        finally:
            self._is_drawing = False

    def unhandled_token(self, token: Token) -> MarkdownBlock | None:
        return Formula(self, token) if token.type == MATH_BLOCK else None
