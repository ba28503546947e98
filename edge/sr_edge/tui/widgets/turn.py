"""One turn on the screen: a prompt, or an answer with who wrote what of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from sr_edge.extract import Part
from sr_edge.store import Turn
from sr_edge.terminal import safe
from sr_edge.tui.blocks import Blocks
from sr_edge.tui.hues import Hues
from sr_edge.tui.quiet import Backdrop
from sr_edge.tui.widgets.share import ShareBar
from sr_edge.tui.widgets.trace import Trace

Folding = Literal["auto", "always", "never"]
"""Whether reasoning is unfolded: while it is written and as long as it is short; always; never."""

SHORT = 12
"""Lines of reasoning that may stay beside the answer."""

_COLUMNS = 80  # about: how long reasoning is must not depend on the window


class PromptView(Static, can_focus=False):
    DEFAULT_CSS = """
    PromptView {
        height: auto;
        margin: 1 0 1 0;
        padding: 0 1;
        background: $boost;
        text-style: bold;
        &.-chosen { background: $primary-muted; }
    }
    """

    def __init__(self, turn: Turn) -> None:
        branch = f"  ‹{turn.branch}/{turn.branches}›" if turn.branches > 1 else ""
        super().__init__(Content.assemble(("❯ ", "$accent"), safe(turn.text), (branch, "dim")))
        self.turn = turn

    @property
    def places(self) -> tuple[int | None, ...]:
        """What can be chosen: see `AnswerView.places`."""
        return (None,)

    def choose(self, place: int | None) -> None:
        self.add_class("-chosen")

    def unchoose(self) -> None:
        self.remove_class("-chosen")

    def line_of(self, place: int | None) -> int:
        return 0

    @property
    def source(self) -> str:
        return self.turn.text


class AnswerView(Vertical, Backdrop):
    """An answer that is being written, or one of the history. Fed by its owner; asks for nothing."""

    DEFAULT_CSS = """
    AnswerView {
        height: auto;
        margin-bottom: 1;
        #reasoning, #marked { height: auto; margin-bottom: 1; }
        #foot { height: auto; color: $text-muted; padding: 0 1; }
        Answer { height: auto; margin: 1 0 0 1; }
        &.-chosen #foot { color: $text; text-style: reverse; }
    }
    """

    @dataclass
    class SpanChosen(Message):
        """A span was clicked, or Enter was pressed on it."""

        view: AnswerView
        span: int

    def __init__(
        self,
        turn: str,
        *,
        folding: Folding,
        hues: Hues,
        details: bool = True,
        blocks: Blocks | None = None,
        foot: str = "",
    ) -> None:
        """Args:
        turn: its id.
        hues: of the remotes; the whole conversation has the same.
        details: whether each span says what it took.
        blocks: of a stored answer; None begins an empty one.
        foot: what it took, and how it ended; see `foot_line`.
        """
        from sr_edge.tui.widgets.answer import Answer  # Markdown is not loaded before there is an answer

        super().__init__()
        self._answer = Answer()
        self._hues = hues
        self._has_details = details
        self.turn = turn
        self.blocks = blocks or Blocks()
        self._folding = folding
        self._is_folded = folding == "never"
        self._is_running = blocks is None
        self._is_rendered = False  # the answer stands there as Markdown
        self._streamed = 0  # characters of the answer that the Markdown has
        self._place: int | None = None
        self._foot = foot

    def compose(self) -> ComposeResult:
        yield ShareBar(hues=self._hues)
        for name in ("reasoning", "marked"):
            yield Trace(hues=self._hues, labels=self._has_details, id=name)
        yield self._answer
        yield Static(Content(self._foot), id="foot", markup=False)

    async def on_mount(self) -> None:
        self.query_one("#reasoning", Trace).show(self.blocks, "reasoning")
        self.query_one("#marked", Trace).show(self.blocks, "answer")
        if not self._is_running:
            self._fold_if_long()
            await self._render_answer()
        self._arrange()

    # --- what it is given ----------------------------------------------------------------------------

    async def grew(self) -> None:
        """The blocks have changed."""
        self.query_one("#reasoning", Trace).grew()
        self.query_one("#marked", Trace).grew()
        await self._stream_answer()
        self._arrange()

    async def end(self, foot: str) -> None:
        """Nothing follows."""
        self.blocks.close()
        self._is_running = False
        self.query_one("#reasoning", Trace).grew()
        self.query_one("#marked", Trace).grew()
        self._fold_if_long()
        await self._render_answer()
        self._foot = foot
        self.query_one("#foot", Static).update(Content(foot))
        self._arrange()

    def set_folding(self, folding: Folding) -> None:
        self._folding = folding
        self._is_folded = folding == "never"
        if not self._is_running:
            self._fold_if_long()
        self._arrange()

    def show_details(self, shown: bool) -> None:
        self._has_details = shown
        for trace in self.query(Trace):
            trace.show_labels(shown)

    def toggle(self) -> None:
        self._is_folded = not self._is_folded
        self._arrange()

    # --- what can be chosen in it --------------------------------------------------------------------

    @property
    def places(self) -> tuple[int | None, ...]:
        """The spans by number, and None for the answer itself."""
        return (*dict.fromkeys(block.span for block in self.blocks if block.record is not None), None)

    def choose(self, place: int | None) -> None:
        """Show that this is what keys are about; a span that is folded away is unfolded."""
        self._place = place
        self.add_class("-chosen") if place is None else self.remove_class("-chosen")
        if place is not None and self._trace_of(place) is not None and self._is_folded:
            self._is_folded = False
            self._arrange()
        for trace in self.query(Trace):
            trace.cursor = place if trace is self._trace_of(place) else None

    def unchoose(self) -> None:
        self._place = None
        self.remove_class("-chosen")
        for trace in self.query(Trace):
            trace.cursor = None

    def line_of(self, place: int | None) -> int:
        """In this view, from its top."""
        trace = self._trace_of(place)
        if trace is None or place is None:
            return max(0, self._answer.virtual_region.y if self._is_rendered else 0)
        return trace.virtual_region.y + (trace.line_of(place) or 0)

    @property
    def answer(self) -> str:
        return self.blocks.text("answer").strip()

    @property
    def source(self) -> str:
        return self.answer

    def code_blocks(self) -> list[str]:
        return self._answer.code_blocks()

    @on(Trace.SpanChosen)
    def _span_chosen(self, message: Trace.SpanChosen) -> None:
        message.stop()
        self.post_message(self.SpanChosen(self, message.span))

    @on(ShareBar.Toggled)
    def _toggled(self, message: ShareBar.Toggled) -> None:
        message.stop()
        self.toggle()

    # --- drawing -------------------------------------------------------------------------------------

    def _trace_of(self, span: int | None) -> Trace | None:
        part: Part | None = next((b.part for b in self.blocks if span is not None and b.span == span), None)
        if part is None:
            return None
        return self.query_one("#reasoning" if part == "reasoning" else "#marked", Trace)

    @property
    def _has_marks(self) -> bool:
        """Whether a span stands in the answer itself."""
        return any(block.part == "answer" and block.record is not None for block in self.blocks)

    def _arrange(self) -> None:
        has_reasoning = self.blocks.has("reasoning")
        shows_marked = (self._has_marks and not self._is_folded) or not self._is_rendered
        bar = self.query_one(ShareBar)
        bar.show(
            self.blocks.share,
            folded=self._is_folded,
            can_fold=has_reasoning or self._has_marks,
            what="reasoning" if has_reasoning else "spans",
            running=self._is_running,
        )
        self.query_one("#reasoning", Trace).display = has_reasoning and not self._is_folded
        self.query_one("#marked", Trace).display = shows_marked and self.blocks.has("answer")
        self._answer.display = self._is_rendered and not shows_marked
        self.query_one("#foot", Static).display = bool(self._foot)

    def _fold_if_long(self) -> None:
        if self._folding == "auto" and self.blocks.has("answer"):
            lines = self.blocks.text("reasoning").splitlines()
            self._is_folded = sum(1 + len(line) // _COLUMNS for line in lines) > SHORT

    async def _stream_answer(self) -> None:
        """As Markdown while it is written, where reasoning came before it and no span stands in it."""
        if not self.blocks.has("reasoning") or not self.blocks.has("answer") or self._has_marks:
            self._is_rendered = False
            return
        text = self.blocks.text("answer")
        self._is_rendered = True
        if len(text) < self._streamed:  # what seemed to be answer was reasoning
            await self._render_answer()
            self._streamed = len(text)
        elif len(text) > self._streamed:
            await self._answer.stream(text[self._streamed :])
            self._streamed = len(text)

    async def _render_answer(self) -> None:
        if self.blocks.has("answer"):
            await self._answer.finish(self.blocks.text("answer"))
            self._is_rendered = True
