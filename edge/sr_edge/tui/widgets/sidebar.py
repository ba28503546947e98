"""The list of conversations: by day, with a filter, and with ways to rename and remove one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, ClassVar, Literal

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from sr_edge.terminal import safe_line
from sr_edge.tui.bindings import bindings

if TYPE_CHECKING:
    from sr_edge.store import Conversation

NARROW = 100
"""Columns under which the list is out of the way unless it is asked for."""


class _List(OptionList):
    """The conversations; those who hear its keys are the sidebar's."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("sidebar")

    class Asked(Message):
        """A key that is about the highlighted conversation, or about the list."""

        def __init__(self, what: Literal["filter", "rename", "remove"]) -> None:
            super().__init__()
            self.what = what

    def action_open(self) -> None:
        self.action_select()

    def action_filter(self) -> None:
        self.post_message(self.Asked("filter"))

    def action_rename(self) -> None:
        self.post_message(self.Asked("rename"))

    def action_remove(self) -> None:
        self.post_message(self.Asked("remove"))


class _Line(Input):
    """A line to type: Escape leaves it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "back", show=False)]

    class Left(Message):
        pass

    def action_leave(self) -> None:
        self.post_message(self.Left())


class _Question(Static, can_focus=True):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "remove"),
        Binding("n,escape,enter", "answer(False)", "keep"),
    ]

    class Answered(Message):
        def __init__(self, is_yes: bool) -> None:
            super().__init__()
            self.is_yes = is_yes

    def action_answer(self, is_yes: bool) -> None:
        self.post_message(self.Answered(is_yes))


class Sidebar(Widget):
    DEFAULT_CSS = """
    Sidebar {
        width: 30;
        max-width: 50%;
        height: 1fr;
        border-right: solid $panel-lighten-1;
        _List {
            height: 1fr;
            border: none;
            padding: 0 0 0 1;
            background: transparent;
            scrollbar-size-vertical: 1;
            scrollbar-background: $background;
            text-wrap: nowrap;
            text-overflow: ellipsis;
            &:focus { border: none; }
            &.-textual-compact { padding: 0 0 0 1; }
            .option-list--option-disabled { color: $text-muted; text-style: dim; }
        }
        _Line { display: none; height: 1; border: none; padding: 0 1; &.-open { display: block; } }
        _Question {
            display: none;
            height: auto;
            padding: 0 1;
            background: $error-muted;
            color: $text-error;
            &.-open { display: block; }
        }
    }
    """

    @dataclass
    class Opened(Message):
        conversation: Conversation

    @dataclass
    class Renamed(Message):
        """The list still shows the old title: `show` it anew."""

        conversation: Conversation
        title: str

    @dataclass
    class Removed(Message):
        """The user was asked and said yes."""

        conversation: Conversation

    class Left(Message):
        """It was hidden while it had the focus."""

    def __init__(self, mode: Literal["auto", "always", "never"] = "auto", *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._mode = mode
        self._wish: bool | None = None  # what Ctrl+B said last, until the window gets room or loses it
        self._had_room = True
        self._conversations: dict[str, Conversation] = {}
        self._current: str | None = None
        self._today = date.today()
        self._subject: Conversation | None = None  # which is being renamed or removed

    def compose(self) -> ComposeResult:
        yield _Line(placeholder="filter", id="filter", compact=True)
        yield _List(markup=False, compact=True)
        yield _Line(id="title", compact=True)
        yield _Question(markup=False)

    # --- what it is given --------------------------------------------------------------------------------

    def show(
        self, conversations: Sequence[Conversation], current: str | None = None, today: date | None = None
    ) -> None:
        """Args:
        conversations: the newest first.
        current: the id of the open one.
        today: for the days' names.
        """
        self._conversations = {conversation.id: conversation for conversation in conversations}
        self._current = current
        self._today = today or date.today()
        self._refill()

    def set_mode(self, mode: Literal["auto", "always", "never"]) -> None:
        self._mode, self._wish = mode, None
        self._arrange()

    def toggle(self) -> bool:
        """Show or hide it; once shown it has the focus. Returns: whether it is shown."""
        self._wish = not self.display
        self._arrange()
        if self.display:
            self.query_one(_List).focus()
        return self.display

    # --- showing and hiding ------------------------------------------------------------------------------

    def on_mount(self) -> None:
        self._had_room = self.app.size.width >= NARROW
        self._arrange()
        self.screen.screen_layout_refresh_signal.subscribe(self, self._laid_out)

    def _laid_out(self, screen: Screen[object]) -> None:
        """The window may have another width; a list that is hidden is not told of it otherwise."""
        has_room = screen.size.width >= NARROW
        if has_room != self._had_room:
            self._had_room, self._wish = has_room, None
            self._arrange()

    def _arrange(self) -> None:
        wanted = self._mode == "always" or (self._mode == "auto" and self._had_room)
        is_shown = wanted if self._wish is None else self._wish
        if self.display and not is_shown and self.has_focus_within:
            self.post_message(self.Left())
        self.display = is_shown

    # --- the list ----------------------------------------------------------------------------------------

    def _refill(self) -> None:
        """All of it anew. The highlight stays while somebody moves it, and else is on the open one."""
        listed = self.query_one(_List)
        highlighted = listed.highlighted_option
        kept = highlighted.id if highlighted is not None and self.has_focus_within else self._current
        wanted = self.query_one("#filter", Input).value.casefold().split()
        options: list[Option] = []
        group = ""
        for conversation in self._conversations.values():
            title = safe_line(conversation.title) or "untitled"
            if not all(word in title.casefold() for word in wanted):
                continue
            day = day_name(conversation.updated, self._today)
            if day != group:
                group = day
                options.append(Option(Content(day), disabled=True))
            is_open = conversation.id == self._current
            mark = "▸ " if is_open else "  "
            options.append(
                Option(Content.styled(mark + title, "bold" if is_open else ""), id=conversation.id)
            )
        if not options:
            words = "nothing of this name" if wanted else "no conversations yet"
            options.append(Option(Content(words), disabled=True))
        listed.set_options(options)
        ids = [option.id for option in options]
        if kept in ids:
            listed.highlighted = ids.index(kept)
        elif any(ids):
            listed.highlighted = next(index for index, id in enumerate(ids) if id)

    @property
    def _highlighted(self) -> Conversation | None:
        option = self.query_one(_List).highlighted_option
        return None if option is None or option.id is None else self._conversations.get(option.id)

    @on(OptionList.OptionSelected)
    def _selected(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        if message.option.id in self._conversations:
            self.post_message(self.Opened(self._conversations[message.option.id]))

    @on(_List.Asked)
    def _asked(self, message: _List.Asked) -> None:
        message.stop()
        if message.what == "filter":
            self._open(self.query_one("#filter", _Line))
            return
        self._subject = self._highlighted
        if self._subject is None:
            return
        title = safe_line(self._subject.title)
        if message.what == "rename":
            line = self.query_one("#title", _Line)
            line.value = title
            self._open(line)
        else:
            question = self.query_one(_Question)
            question.update(Content(f"Remove “{title}” for good? y / n"))
            self._open(question)

    # --- what is typed and answered ----------------------------------------------------------------------

    def _open(self, widget: Widget) -> None:
        widget.add_class("-open")
        widget.focus()

    def _close(self, widget: Widget) -> None:
        widget.remove_class("-open")
        self._subject = None
        self.query_one(_List).focus()

    @on(Input.Changed, "#filter")
    def _filter(self, message: Input.Changed) -> None:
        message.stop()
        self._refill()

    @on(Input.Submitted, "#filter")
    def _filtered(self, message: Input.Submitted) -> None:
        message.stop()
        if message.value.strip():
            self.query_one(_List).focus()  # what was typed stays in sight, and holds
        else:
            self._close(self.query_one("#filter"))

    @on(Input.Submitted, "#title")
    def _retitled(self, message: Input.Submitted) -> None:
        message.stop()
        subject, title = self._subject, safe_line(message.value)
        self._close(message.input)
        if subject is not None and title and title != subject.title:
            self.post_message(self.Renamed(subject, title))

    @on(_Line.Left)
    def _left(self, message: _Line.Left) -> None:
        message.stop()
        for line in self.query(_Line):
            if line.has_class("-open") and line.has_focus:
                line.value = ""
                self._close(line)

    @on(_Question.Answered)
    def _answered(self, message: _Question.Answered) -> None:
        message.stop()
        subject = self._subject
        self._close(self.query_one(_Question))
        if message.is_yes and subject is not None:
            self.post_message(self.Removed(subject))


def day_name(at: float, today: date) -> str:
    """Under which heading a time stands: the nearer, the finer."""
    try:
        day = datetime.fromtimestamp(at).date()
    except (ValueError, OverflowError, OSError):
        return "Some day"  # the clock was far off
    if day >= today:
        return "Today"
    if day == today - timedelta(days=1):
        return "Yesterday"
    if day > today - timedelta(days=7):
        return f"{day:%A}"
    return f"{day:%B %Y}"
