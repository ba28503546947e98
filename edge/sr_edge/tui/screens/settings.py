"""Every setting with its value and where it comes from, and changing it in the user's file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from sr_edge.config import Config
from sr_edge.config.edit import Change, change_config
from sr_edge.config.schema import KEYS, SCHEMA, Key, as_text, checked, find_key, from_text
from sr_edge.errors import EdgeError, UsageError
from sr_edge.terminal import safe_line

_KEYS_HEADING = "keys of the chat"
_NAME_WIDTH = 26
_VALUE_WIDTH = 22
_WIDE = 90
"""Columns from which the origin has room beside the value; it stands below the list too."""


@dataclass(frozen=True, slots=True)
class Row:
    """One setting as it is listed."""

    name: str
    value: str
    origin: str
    help: str
    key: Key | None
    """None: it is shown, and changed elsewhere."""


class _Settings(OptionList):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "cycle", "next value"),
        Binding("u,delete", "unset", "default"),
        Binding("j", "cursor_down", show=False),
        Binding("k", "cursor_up", show=False),
    ]

    class Asked(Message):
        def __init__(self, what: str) -> None:
            super().__init__()
            self.what = what

    def action_cycle(self) -> None:
        self.post_message(self.Asked("cycle"))

    def action_unset(self) -> None:
        self.post_message(self.Asked("unset"))


class SettingsScreen(ModalScreen[None]):
    DEFAULT_CSS = """
    SettingsScreen {
        align: center middle;
        #box {
            width: 95%;
            max-width: 110;
            height: 90%;
            border: round $border;
            background: $surface;
            padding: 0 1;
        }
        _Settings {
            height: 1fr;
            border: none;
            padding: 0;
            background: transparent;
            text-wrap: nowrap;
            text-overflow: ellipsis;
            scrollbar-size-vertical: 1;
            scrollbar-background: $surface;
            &:focus { border: none; }
            .option-list--option-disabled { color: $text-muted; text-style: bold; }
        }
        #help { height: auto; max-height: 3; border-top: solid $border-blurred; color: $text-muted; }
        #value { display: none; &.-open { display: block; } }
        #said { height: auto; max-height: 6; &.-problem { color: $text-error; } }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "back")]

    @dataclass
    class Changed(Message):
        """The file was changed; these are the settings that hold now."""

        config: Config

    def __init__(self, config: Config, load: Callable[[], Config]) -> None:
        """Args:
        config: what holds, flags of the command line included.
        load: reads it all again. Raises EdgeError.
        """
        super().__init__()
        self._config = config
        self._load = load
        self._rows: dict[str, Row] = {}
        self._was_wide = True

    def compose(self) -> ComposeResult:
        with Vertical(id="box") as box:
            box.border_title = "settings"
            box.border_subtitle = "⏎ change  space next  u default  esc back"
            yield _Settings(markup=False, compact=True)
            yield Static(id="help", markup=False)
            yield Input(id="value", compact=True)
            yield Static(id="said", markup=False)

    def on_mount(self) -> None:
        self._refill()
        self.query_one(_Settings).focus()

    # --- the list ----------------------------------------------------------------------------------------

    def _refill(self) -> None:
        listed = self.query_one(_Settings)
        at, self._was_wide = listed.highlighted, self._is_wide
        self._rows = {row.name: row for row in rows(self._config)}
        options: list[Option] = []
        section = None
        for row in self._rows.values():
            heading = _heading(row)
            if heading != section:
                section = heading
                options.append(Option(Content(heading), disabled=True))
            options.append(Option(_content(row, self._is_wide), id=row.name))
        listed.set_options(options)
        listed.highlighted = 1 if at is None else at

    @property
    def _is_wide(self) -> bool:
        return self.app.size.width >= _WIDE

    def on_resize(self) -> None:
        if self._rows and self._is_wide != self._was_wide:
            self._refill()

    @property
    def _row(self) -> Row | None:
        option = self.query_one(_Settings).highlighted_option
        return None if option is None or option.id is None else self._rows[option.id]

    @on(OptionList.OptionHighlighted)
    def _highlighted(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        row = self._row
        if row is not None:
            choices = f" ({', '.join(row.key.choices)})" if row.key is not None and row.key.choices else ""
            words = f"{row.name}: {row.help}{choices} · {row.origin}"
            self.query_one("#help", Static).update(Content(words))

    @on(OptionList.OptionSelected)
    def _selected(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        row = self._editable()
        if row is not None:
            line = self.query_one("#value", Input)
            line.value = row.value
            line.placeholder = _expected(row)
            line.add_class("-open")
            line.focus()

    @on(_Settings.Asked)
    def _asked(self, message: _Settings.Asked) -> None:
        message.stop()
        row = self._editable()
        if row is None:
            return
        if message.what == "unset":
            self._write(row, None)
            return
        assert row.key is not None
        values = ("true", "false") if row.key.kind == "flag" else row.key.choices
        if row.key.kind in ("flag", "choice"):
            self._write(row, values[(values.index(row.value) + 1) % len(values)])

    def _editable(self) -> Row | None:
        row = self._row
        if row is not None and row.key is None:
            self._say(f"changed by: sr-edge config set {row.name} VALUE", is_problem=False)
            return None
        self._say("", is_problem=False)
        return row

    # --- changing ----------------------------------------------------------------------------------------

    @on(Input.Submitted)
    def _submitted(self, message: Input.Submitted) -> None:
        message.stop()
        row = self._row
        if row is not None and self._write(row, message.value if message.value.strip() else None):
            self._close()

    def _write(self, row: Row, text: str | None) -> bool:
        """Args: text: None takes it out of the file. Returns: whether the value may stand."""
        try:
            path, key = find_key(row.name)
            value = None if text is None else _for_file(key, row.name, text)
            is_new = change_config(self._config.path, lambda data: [Change(path, value)])
            if not is_new and text is None:
                self._say(f"{row.name} is not set in {self._config.path}", is_problem=False)
                return True
            self._config = self._load()
        except EdgeError as error:
            self._say(str(error), is_problem=True)
            return False
        self._refill()
        now = self._rows[row.name]
        first = now.origin.startswith(("env ", "flag ", "profile "))
        self._say(
            f"written; but {now.origin} comes first" if first else f"{row.name} is {_nothing(now.value)}"
        )
        self.post_message(self.Changed(self._config))
        return True

    def _close(self) -> None:
        self.query_one("#value").remove_class("-open")
        self.query_one(_Settings).focus()

    def _say(self, line: str, *, is_problem: bool = False) -> None:
        said = self.query_one("#said", Static)
        said.set_class(is_problem, "-problem")
        said.update(Content(safe_line(line)))

    def action_leave(self) -> None:
        if self.query_one("#value").has_class("-open"):
            self._say("")
            self._close()
        else:
            self.dismiss(None)


# --- rows --------------------------------------------------------------------------------------------


def rows(config: Config) -> list[Row]:
    """The table's, then the remotes', then the keys."""
    found = [_row(key.name, key, config) for key in SCHEMA]
    for name, setting in config.settings.items():
        if name.startswith("remotes."):
            value = "(a command)" if name.endswith(".api_key_cmd") else as_text(setting.value)
            found.append(Row(name, value, setting.origin, find_key(name)[1].help, None))
    return found + [_row(key.name, key, config) for key in KEYS]


def _row(name: str, key: Key, config: Config) -> Row:
    setting = config.settings.get(name)
    value = key.default if setting is None else setting.value
    return Row(name, as_text(value), config.origin(name), key.help, key)


def _for_file(key: Key, name: str, text: str) -> object:
    """Raises: UsageError: the setting can't have this value."""
    try:
        given = from_text(key, text)
        right = checked(key, given)
    except ValueError as error:
        raise UsageError(f"{name} {error}") from None
    if key.kind == "path" and not text.startswith("~"):
        return os.path.abspath(str(right))
    return [*right] if isinstance(right, tuple) else right if key.kind == "keys" else given


def _heading(row: Row) -> str:
    if row.name.startswith("ui.keymap."):
        return _KEYS_HEADING
    return row.name.rpartition(".")[0] or "general"


def _content(row: Row, is_wide: bool) -> Content:
    name = row.name.removeprefix("ui.keymap.")
    own = "bold" if row.origin != "default" else ""
    value = row.value if len(row.value) <= _VALUE_WIDTH else row.value[: _VALUE_WIDTH - 1] + "…"
    pieces: list[str | tuple[str, str]] = [f"  {name:<{_NAME_WIDTH}} ", (f"{value:<{_VALUE_WIDTH}}", own)]
    if is_wide:
        pieces.append((f" {row.origin}", "dim"))
    return Content.assemble(*pieces)


def _expected(row: Row) -> str:
    assert row.key is not None
    if row.key.choices:
        return ", ".join(row.key.choices)
    return {"flag": "true or false", "keys": "such as ctrl+t, or several with commas"}.get(
        row.key.kind, row.key.kind
    )


def _nothing(value: str) -> str:
    return value or "not set"
