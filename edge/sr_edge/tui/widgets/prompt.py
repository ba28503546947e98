"""Where the user types."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.actions import SkipAction
from textual.app import SuspendNotSupported
from textual.binding import BindingType
from textual.message import Message
from textual.widgets import TextArea

from sr_edge.errors import UsageError
from sr_edge.keymap import KEYMAP, names
from sr_edge.terminal import safe
from sr_edge.tui.bindings import bindings
from sr_edge.tui.editor import edited
from sr_edge.tui.prompts import PastPrompts
from sr_edge.tui.slash import completed, completions

MAX_LINES = 8

_SEND = next(key.keys for key in KEYMAP if key.id == "chat.send")


class Prompt(TextArea):
    """A text of several lines that Enter sends. What is pasted is never sent."""

    DEFAULT_CSS = f"""
    Prompt {{
        height: auto;
        min-height: 3;
        max-height: {MAX_LINES + 2};
        border: round $border-blurred;
        padding: 0 1;
        background: transparent;
        scrollbar-size-vertical: 1;
        scrollbar-background: $background;
        &:focus {{ border: round $border; }}
        .text-area--cursor-line {{ background: transparent; }}
    }}
    """
    BINDINGS: ClassVar[list[BindingType]] = bindings("prompt")

    @dataclass
    class Sent(Message):
        """Enter was pressed on a text. The prompt is empty again; `Prompt.put` gives it back."""

        text: str

    def __init__(self, past: PastPrompts | None = None, *, id: str | None = None) -> None:
        super().__init__(
            id=id,
            soft_wrap=True,
            tab_behavior="focus",
            highlight_cursor_line=False,
            placeholder="Ask something, or type / for commands",
        )
        self._past = past if past is not None else PastPrompts(None)
        self._at = len(self._past)  # which one is shown; the draft comes after the last
        self._typed: dict[int, str] = {}  # what was made of those that were left again, the draft too

    def put(self, text: str) -> None:
        """Show this text instead, as if it had been typed."""
        self.load_text(text)
        self.move_cursor(self.document.end)

    def clear_text(self) -> bool:
        """Returns: whether there was any."""
        had_text = bool(self.text)
        if had_text:
            self._at, self._typed = len(self._past), {}
            self.clear()
        return had_text

    # --- keys --------------------------------------------------------------------------------------------

    async def _on_key(self, event: events.Key) -> None:
        """What sends is heard here, in its turn.

        A binding that goes first would overtake letters that were typed before it and wait to be written.
        """
        changed = self.app._keymap.get("chat.send")
        if event.key in names(changed or _SEND):
            event.stop()
            event.prevent_default()
            self.action_send()

    def action_send(self) -> None:
        text = self.text.rstrip()
        if not text.strip():
            return
        problem = self._past.add(text)
        if problem is not None:
            self.notify(problem, severity="warning", markup=False)
        self._at, self._typed = len(self._past), {}
        self.load_text("")
        self.post_message(self.Sent(text))

    def action_newline(self) -> None:
        result = self._replace_via_keyboard("\n", *self.selection)
        if result is not None:
            self.move_cursor(result.end_location)
            self.scroll_cursor_visible()

    def action_complete(self) -> None:
        text = completed(self.text)
        if text == self.text:
            raise SkipAction  # Tab goes on to the next part of the screen
        self.put(text)

    def action_editor(self) -> None:
        try:
            with self.app.suspend():
                text = edited(self.text, os.environ)
        except UsageError as error:
            self.notify(str(error), severity="error", markup=False)
        except SuspendNotSupported:
            self.notify("an editor can't be opened from here", severity="error", markup=False)
        else:
            self.put(safe(text))

    def action_older(self) -> None:
        if self._row > 0 or self._at == 0:
            self.action_cursor_up()
        else:
            self._show(self._at - 1)
            if self._row > 0:
                self.move_cursor((0, 0))  # so that Up goes on, through long ones too

    def action_newer(self) -> None:
        if self._row < self.wrapped_document.height - 1 or self._at == len(self._past):
            self.action_cursor_down()
        else:
            self._show(self._at + 1)

    def action_delete_right(self) -> None:
        if not self.text:
            raise SkipAction  # Ctrl+D leaves
        super().action_delete_right()

    @property
    def _row(self) -> int:
        """Of the cursor, on the screen: a long line has several."""
        return self.wrapped_document.location_to_offset(self.cursor_location).y

    def _show(self, index: int) -> None:
        self._typed[self._at] = self.text
        self._at = index
        self.put(self._typed.get(index, self._past[index] if index < len(self._past) else ""))

    # --- text --------------------------------------------------------------------------------------------

    def update_suggestion(self) -> None:
        found = completions(self.text)
        self.suggestion = found[0].name[len(self.text) - 1 :] if found and len(self.text) > 1 else ""

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        result = self._replace_via_keyboard(safe(event.text), *self.selection)
        if result is not None:
            self.move_cursor(result.end_location)
        self.focus()
