"""Finding a conversation by what was said in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from sr_edge.errors import EdgeError
from sr_edge.terminal import safe_line
from sr_edge.tui.widgets.sidebar import day_name

if TYPE_CHECKING:
    from sr_edge.store import Conversation, Hit

Search = Callable[[str, bool], "list[Hit]"]
"""Of the text, and of whether reasoning is searched instead of prompts and answers."""

_PAUSE = 0.12  # seconds without a key before it searches
_WHO = {"user": "you", "assistant": "answer"}


@dataclass(frozen=True, slots=True)
class Found:
    """What the user chose. The turn is None where the whole conversation is meant."""

    conversation: Conversation
    turn: str | None


class SessionsScreen(ModalScreen[Found | None]):
    """Dismisses with what is to be opened, or None."""

    DEFAULT_CSS = """
    SessionsScreen {
        align: center middle;
        #box {
            width: 90%;
            max-width: 110;
            height: 85%;
            border: round $border;
            border-title-color: $foreground;
            background: $surface;
            padding: 0 1;
        }
        Input { margin-bottom: 1; }
        OptionList {
            height: 1fr;
            border: none;
            padding: 0;
            background: transparent;
            text-wrap: nowrap;
            text-overflow: ellipsis;
            scrollbar-size-vertical: 1;
            scrollbar-background: $surface;
            &:focus { border: none; }
        }
        #where { height: 1; width: auto; color: $text-muted; pointer: pointer; }
        #said { height: auto; color: $text-error; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "back"),
        Binding("down", "move(1)", "down", show=False, priority=True),
        Binding("up", "move(-1)", "up", show=False, priority=True),
        Binding("pagedown", "move(10)", "page down", show=False, priority=True),
        Binding("pageup", "move(-10)", "page up", show=False, priority=True),
        Binding("ctrl+t", "reasoning", "in reasoning"),
    ]

    def __init__(
        self, search: Search, recent: Sequence[Conversation], *, today: date | None = None, text: str = ""
    ) -> None:
        """Args:
        search: raises EdgeError with a line for the user.
        recent: what is listed while nothing is typed, the newest first.
        text: what is searched first.
        """
        super().__init__()
        self._search = search
        self._recent = recent
        self._today = today or date.today()
        self._first = text
        self._in_reasoning = False
        self._found: list[Found] = []
        self._waiting: Timer | None = None

    def compose(self) -> ComposeResult:
        with Vertical(id="box") as box:
            box.border_title = "history"
            box.border_subtitle = "⏎ open  esc back"
            yield Input(self._first, placeholder="words of a prompt or an answer", compact=True, id="text")
            yield OptionList(markup=False, compact=True)
            yield Static(id="said", markup=False)
            yield Static(id="where", markup=False)

    def on_mount(self) -> None:
        self.query_one(Input).focus()
        self._refill()

    # --- searching ---------------------------------------------------------------------------------------

    @on(Input.Changed)
    def _typed(self, message: Input.Changed) -> None:
        message.stop()
        if self._waiting is not None:
            self._waiting.stop()
        self._waiting = self.set_timer(_PAUSE, self._refill)

    def _refill(self) -> None:
        """The list anew: what is found, or while nothing is typed the newest conversations."""
        if self._waiting is not None:
            self._waiting.stop()
            self._waiting = None
        marks = ("○", "●") if self._in_reasoning else ("●", "○")
        where = f"{marks[0]} prompts and answers  {marks[1]} reasoning  ^t"
        self.query_one("#where", Static).update(Content(where))
        text, problem = self.query_one(Input).value.strip(), ""
        hits: list[Hit] = []
        if text:
            try:
                hits = self._search(text, self._in_reasoning)
            except EdgeError as error:
                problem = safe_line(str(error))
        said = self.query_one("#said", Static)
        said.update(Content(problem))
        said.display = bool(problem)
        if text:
            self._found = [Found(hit.conversation, hit.turn) for hit in hits]
            rows = [_hit_row(hit, self._today) for hit in hits]
        else:
            self._found = [Found(conversation, None) for conversation in self._recent]
            rows = [_title_row(conversation, self._today) for conversation in self._recent]
        listed = self.query_one(OptionList)
        listed.set_options(Option(row, id=str(number)) for number, row in enumerate(rows))
        if rows:
            listed.highlighted = 0
        elif not problem:
            words = "nothing was said in these words" if text else "no conversations yet"
            listed.add_option(Option(Content(words), disabled=True))

    # --- choosing ----------------------------------------------------------------------------------------

    def action_move(self, lines: int) -> None:
        listed = self.query_one(OptionList)
        if self._found:
            at = (listed.highlighted or 0) + lines
            listed.highlighted = max(0, min(at, len(self._found) - 1))

    def action_reasoning(self) -> None:
        self._in_reasoning = not self._in_reasoning
        self._refill()

    @on(events.Click, "#where")
    def _clicked(self) -> None:
        self.action_reasoning()

    def action_leave(self) -> None:
        self.dismiss(None)

    @on(Input.Submitted)
    def _submitted(self, message: Input.Submitted) -> None:
        message.stop()
        if self._waiting is not None:
            self._refill()  # what is opened is what the words say, not those of a moment ago
        at = self.query_one(OptionList).highlighted
        if self._found and at is not None:
            self.dismiss(self._found[at])

    @on(OptionList.OptionSelected)
    def _selected(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        if message.option.id is not None:
            self.dismiss(self._found[int(message.option.id)])


def _title_row(conversation: Conversation, today: date) -> Content:
    return Content.assemble(
        (safe_line(conversation.title) or "untitled", "bold"),
        (f"  {day_name(conversation.updated, today)}", "dim"),
    )


def _hit_row(hit: Hit, today: date) -> Content:
    who = _WHO.get(hit.role, safe_line(hit.role))
    return Content("\n").join(
        [
            _title_row(hit.conversation, today),
            Content.assemble((f"  {who}: ", "dim"), *_snippet(hit.snippet)),
        ]
    )


def _snippet(text: str) -> list[str | tuple[str, str]]:
    """Its pieces, with what matches between \\x02 and \\x03 marked by more than colour."""
    pieces: list[str | tuple[str, str]] = []
    for number, part in enumerate(text.replace("\n", " ").split("\x02")):
        found, _, rest = part.partition("\x03") if number else ("", "", part)
        if found:
            pieces.append((_plain(found), "bold underline"))
        pieces.append(_plain(rest))
    return pieces


def _plain(text: str) -> str:
    """On one line, with the spaces at its ends, which `safe_line` would take."""
    lead, tail = text[:1].isspace(), text[-1:].isspace()
    line = safe_line(text)
    return (" " * lead + line + " " * tail) if line else " " * (lead or tail)
