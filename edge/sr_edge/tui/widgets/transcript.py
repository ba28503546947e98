"""The turns of a conversation, one under the other, and the place among them that keys are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from sr_edge.report import usage_line
from sr_edge.store import Status, Turn
from sr_edge.terminal import safe_line
from sr_edge.transcript import Transcript
from sr_edge.tui.bindings import bindings
from sr_edge.tui.blocks import Blocks
from sr_edge.tui.hues import Hues
from sr_edge.tui.quiet import Backdrop, QuietScroll
from sr_edge.tui.widgets.turn import AnswerView, Folding, PromptView

View: TypeAlias = PromptView | AnswerView

Deed = Literal[
    "span_detail",
    "span_view",
    "span_why",
    "rerun_local",
    "rerun_remote",
    "copy_block",
    "copy_answer",
    "copy_code",
    "open_pager",
    "save_block",
    "edit",
    "regenerate",
    "continue",
    "fork",
    "previous_branch",
    "next_branch",
]

WINDOW = 24
"""Turns that are on the screen at once, at most; the earlier ones come when they are asked for."""


class _Earlier(Static):
    """Stands for the turns that are not shown."""

    class Wanted(Message):
        pass

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.post_message(self.Wanted())


class _Turns(Vertical, Backdrop):
    """As high as what can be seen, at least: few turns stand at its top, though the scrolling is anchored."""

    DEFAULT_CSS = """
    _Turns { height: auto; min-height: 100%; }
    """


class Talk(QuietScroll, can_focus=True):
    """Shows turns; knows neither history nor models. At the end it stays there, until somebody scrolls."""

    DEFAULT_CSS = """
    Talk {
        height: 1fr;
        padding: 0 1;
        scrollbar-size-vertical: 1;
        scrollbar-gutter: stable;
        scrollbar-background: $background;
        _Earlier { height: 1; color: $text-muted; text-align: center; pointer: pointer; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = bindings("transcript")

    @dataclass
    class Wish(Message):
        """Something is to be done with a turn, or with a span of it."""

        deed: Deed
        turn: str
        span: int | None

    @dataclass
    class Chosen(Message):
        """Another place is chosen."""

        view: View
        span: int | None

    def __init__(self, *, folding: Folding = "auto", id: str | None = None) -> None:
        super().__init__(id=id)
        self._folding = folding
        self._has_details = True
        self._hues = Hues()
        self._earlier: list[Turn] = []
        self._chosen: tuple[View, int | None] | None = None

    def compose(self) -> ComposeResult:
        yield _Turns()

    def on_mount(self) -> None:
        self.anchor()

    # --- what is shown -------------------------------------------------------------------------------

    async def show(self, turns: Sequence[Turn]) -> None:
        """These turns instead of what is there; at the end."""
        self._chosen = None
        self._hues = Hues()
        self._earlier = list(turns[:-WINDOW])
        await self._turns.remove_children()
        await self._turns.mount_all([*self._marker(), *map(self._view_of, turns[-WINDOW:])])
        self.anchor()
        self.scroll_end(animate=False)

    async def add_prompt(self, turn: Turn) -> None:
        await self._turns.mount(PromptView(turn))
        self.anchor()

    async def add_answer(self, turn: str) -> AnswerView:
        """An empty one, to be fed."""
        view = AnswerView(turn, folding=self._folding, hues=self._hues, details=self._has_details)
        await self._turns.mount(view)
        self.anchor()
        return view

    async def trim(self, turns: Sequence[Turn]) -> None:
        """Keep no more views than the window holds, unless somebody reads further up.

        Args:
            turns: all that there are, as they are stored.
        """
        earlier = list(turns[:-WINDOW])
        gone = {turn.id for turn in earlier}
        views = [view for view in self.views if _id_of(view) in gone]
        if not views or not self._is_at_end:
            return
        self._earlier = earlier
        for view in views:
            if self._chosen and self._chosen[0] is view:
                self._chosen = None
            await view.remove()
        await self.query(_Earlier).remove()
        await self._turns.mount_all(self._marker(), before=0)

    @property
    def _is_at_end(self) -> bool:
        return self.scroll_offset.y >= self.max_scroll_y

    async def truncate(self, turn: str) -> None:
        """Take away the view of this turn, and all after it."""
        views = self.views
        at = next((n for n, view in enumerate(views) if _id_of(view) == turn), len(views))
        for view in views[at:]:
            if self._chosen and self._chosen[0] is view:
                self._chosen = None
            await view.remove()

    @property
    def views(self) -> list[View]:
        return [child for child in self._turns.children if isinstance(child, PromptView | AnswerView)]

    def set_folding(self, folding: Folding) -> None:
        self._folding = folding
        for view in self.views:
            if isinstance(view, AnswerView):
                view.set_folding(folding)

    def toggle_details(self) -> None:
        """Show, or not, what each span took."""
        self._has_details = not self._has_details
        for view in self.views:
            if isinstance(view, AnswerView):
                view.show_details(self._has_details)

    def _marker(self) -> list[Widget]:
        if not self._earlier:
            return []
        count = len(self._earlier)
        return [_Earlier(Content(f"▲ {count} earlier turn{'' if count == 1 else 's'}"))]

    def _view_of(self, turn: Turn) -> View:
        if turn.role == "user":
            return PromptView(turn)
        assert turn.transcript is not None
        blocks = Blocks.of(turn.transcript)
        return AnswerView(
            turn.id,
            folding=self._folding,
            hues=self._hues,
            details=self._has_details,
            blocks=blocks,
            foot=foot_of(turn),
        )

    @property
    def _turns(self) -> _Turns:
        return self.query_one(_Turns)

    def view_of(self, turn: str) -> View | None:
        return next((view for view in self.views if _id_of(view) == turn), None)

    @on(_Earlier.Wanted)
    async def show_earlier(self) -> None:
        """Some more of those that are not shown; what is read stays where it is."""
        if not self._earlier:
            return
        turns, self._earlier = self._earlier[-WINDOW:], self._earlier[:-WINDOW]
        self.release_anchor()
        below = self.max_scroll_y - self.scroll_offset.y
        await self.query(_Earlier).remove()
        await self._turns.mount_all([*self._marker(), *map(self._view_of, turns)], before=0)
        self.call_after_refresh(lambda: self.scroll_to(y=self.max_scroll_y - below, animate=False))

    # --- what is chosen ------------------------------------------------------------------------------

    @property
    def chosen(self) -> tuple[View, int | None] | None:
        """A view, and a span in it or None for all of it."""
        if self._chosen is not None and not self._chosen[0].is_attached:
            self._chosen = None
        return self._chosen

    def choose(self, view: View, span: int | None) -> None:
        if self._chosen is not None:
            self._chosen[0].unchoose()
        self._chosen = view, span
        view.choose(span)
        self.release_anchor()
        self.call_after_refresh(self._reveal)
        self.post_message(self.Chosen(view, span))

    def unchoose(self) -> None:
        if self._chosen is not None:
            self._chosen[0].unchoose()
        self._chosen = None

    def step(self, direction: int, *, spans_only: bool = False) -> bool:
        """Choose what comes before (-1) or after (1). False if there is nothing."""
        places = [(view, span) for view in self.views for span in view.places]
        if spans_only:
            places = [place for place in places if place[1] is not None]
        if not places:
            return False
        order = {(id(view), span): n for n, (view, span) in enumerate(self._all_places())}
        if self.chosen is None:
            self.choose(*places[-1 if direction < 0 else 0])
            return True
        here = order[id(self.chosen[0]), self.chosen[1]]
        beyond = [place for place in places if (order[id(place[0]), place[1]] - here) * direction > 0]
        if not beyond:
            return False
        self.choose(*beyond[0 if direction > 0 else -1])
        return True

    def _all_places(self) -> list[tuple[View, int | None]]:
        return [(view, span) for view in self.views for span in view.places]

    def _reveal(self) -> None:
        """Scroll so that the chosen place can be seen."""
        if self.chosen is None:
            return
        view, span = self.chosen
        line = view.virtual_region.y + view.line_of(span)
        top, height = self.scroll_offset.y, self.size.height
        if not top <= line < top + height - 2:
            self.scroll_to(y=max(0, line - height // 3), animate=False)

    @on(AnswerView.SpanChosen)
    def _span_chosen(self, message: AnswerView.SpanChosen) -> None:
        message.stop()
        self.choose(message.view, message.span)
        self._wish("span_detail")

    # --- keys ----------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Without a turn there is nothing to do anything with."""
        return bool(self.views) if action in get_args(Deed) else True

    def action_move_up(self) -> None:
        self.scroll_up(animate=False)

    def action_move_down(self) -> None:
        self.scroll_down(animate=False)

    async def action_move_top(self) -> None:
        if self.scroll_offset.y == 0:
            await self.show_earlier()
        self.scroll_home(animate=False)

    def action_move_bottom(self) -> None:
        self.scroll_end(animate=False)
        self.anchor()

    def action_previous_span(self) -> None:
        self.step(-1, spans_only=True)

    def action_next_span(self) -> None:
        self.step(1, spans_only=True)

    def action_span_detail(self) -> None:
        self._wish("span_detail")

    def action_span_view(self) -> None:
        self._wish("span_view")

    def action_span_why(self) -> None:
        self._wish("span_why")

    def action_rerun_local(self) -> None:
        self._wish("rerun_local")

    def action_rerun_remote(self) -> None:
        self._wish("rerun_remote")

    def action_copy_block(self) -> None:
        self._wish("copy_block")

    def action_copy_answer(self) -> None:
        self._wish("copy_answer")

    def action_copy_code(self) -> None:
        self._wish("copy_code")

    def action_open_pager(self) -> None:
        self._wish("open_pager")

    def action_save_block(self) -> None:
        self._wish("save_block")

    def action_edit(self) -> None:
        self._wish("edit")

    def action_regenerate(self) -> None:
        self._wish("regenerate")

    def action_continue(self) -> None:
        self._wish("continue")

    def action_fork(self) -> None:
        self._wish("fork")

    def action_previous_branch(self) -> None:
        self._wish("previous_branch")

    def action_next_branch(self) -> None:
        self._wish("next_branch")

    async def action_export(self) -> None:
        await self.run_action("screen.export")

    async def action_offline(self) -> None:
        await self.run_action("screen.offline")

    async def action_effort_up(self) -> None:
        await self.run_action("screen.effort_up")

    async def action_effort_down(self) -> None:
        await self.run_action("screen.effort_down")

    def _wish(self, deed: Deed) -> None:
        """About what is chosen, or else about the last turn."""
        if self.chosen is not None:
            view, span = self.chosen
        elif self.views:
            view, span = self.views[-1], None
        else:
            return
        self.post_message(self.Wish(deed, _id_of(view), span))


_ENDS: dict[Status, str] = {
    "running": "… being written by another sr-edge",
    "done": "✓ complete",
    "stopped": "■ stopped · /continue goes on",
    "length": "✂ cut at its limit · /continue goes on",
    "error": "✗ broke off · /continue goes on",
    "refused": "✗ refused",
    "cut": "✗ the program ended here · /continue goes on",
}


def foot_of(turn: Turn) -> str:
    """How an answer ended, what it took, and which of its branches it is."""
    transcript = turn.transcript
    parts = [_ENDS[turn.status]]
    if transcript is not None:
        if transcript.error and turn.status in ("error", "refused"):
            parts.append(safe_line(transcript.error))
        if transcript.finish is not None:
            parts.append(_figures(transcript))
    if turn.branches > 1:
        parts.append(f"‹{turn.branch}/{turn.branches}›")
    return " · ".join(parts)


def _figures(transcript: Transcript) -> str:
    """Without what did not happen."""
    if transcript.spans:
        return usage_line(transcript)
    speed = transcript.local_tokens / transcript.local_seconds if transcript.local_seconds else 0
    rate = f" {speed:.1f} tok/s" if speed else ""
    return f"local {transcript.local_tokens} tokens{rate} · {transcript.seconds:.1f} s"


def _id_of(view: View) -> str:
    return view.turn.id if isinstance(view, PromptView) else view.turn
