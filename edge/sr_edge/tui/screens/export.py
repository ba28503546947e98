"""Writing a conversation to a file: in which form, and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from sr_edge.errors import EdgeError
from sr_edge.exporting import stem_of
from sr_edge.terminal import safe_line

Write = Callable[[str, Path], Path]
"""Of the format's name and the path that was asked for; says where it went. Raises EdgeError or OSError."""

FORMATS: tuple[tuple[str, str, str], ...] = (
    ("markdown", ".md", "to read and to edit"),
    ("html", ".html", "one page, with the colours of who wrote what"),
    ("json", ".json", "one object, with every span"),
    ("jsonl", ".jsonl", "the events of the answer, for sr-edge replay"),
    ("svg", ".svg", "a picture of the screen"),
)
"""Name, ending of the file, what it is for."""


class ExportScreen(ModalScreen[Path | None]):
    """Dismisses with the path that was written, or None. It says it too, before it goes."""

    DEFAULT_CSS = """
    ExportScreen {
        align: center middle;
        #box {
            width: 90%;
            max-width: 80;
            height: auto;
            max-height: 90%;
            border: round $border;
            background: $surface;
            padding: 0 1;
        }
        OptionList {
            height: auto;
            border: none;
            padding: 0;
            margin-bottom: 1;
            background: transparent;
            text-wrap: nowrap;
            text-overflow: ellipsis;
            &:focus { border: none; }
        }
        #said { height: auto; margin-top: 1; &.-problem { color: $text-error; } }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "back"),
        Binding("up", "move(-1)", "up", show=False, priority=True),
        Binding("down", "move(1)", "down", show=False, priority=True),
    ]

    def __init__(
        self, write: Write, title: str, *, folder: Path | None = None, chosen: str = "markdown"
    ) -> None:
        """Args:
        title: of the conversation, for the file's name.
        folder: where it goes unless the user says otherwise; by default the current one.
        chosen: a format's name.
        """
        super().__init__()
        self._write = write
        self._stem = stem_of(title)
        self._folder = folder or Path()
        self._names = [name for name, _, _ in FORMATS]
        self._at = self._names.index(chosen) if chosen in self._names else 0
        self._written: Path | None = None

    def compose(self) -> ComposeResult:
        with Vertical(id="box") as box:
            box.border_title = "export"
            box.border_subtitle = "↑↓ form  ⏎ write  esc back"
            yield OptionList(*(Option(Content(name)) for name in self._names), compact=True)
            yield Input(str(self._proposed(self._at)), compact=True)
            yield Static(id="said", markup=False)

    def on_mount(self) -> None:
        self._mark()
        self.query_one(Input).focus()

    # --- the form ----------------------------------------------------------------------------------------

    def action_move(self, lines: int) -> None:
        self._choose(max(0, min(self._at + lines, len(FORMATS) - 1)))

    def _choose(self, at: int) -> None:
        """A path that was typed keeps its name and its folder; only the ending follows the form."""
        line = self.query_one(Input)
        path, old = line.value, FORMATS[self._at][1]
        if path.endswith(old):
            line.value = path.removesuffix(old) + FORMATS[at][1]
            line.cursor_position = len(line.value)
        self._at = at
        self._mark()

    def _mark(self) -> None:
        listed = self.query_one(OptionList)
        for number, (name, _, purpose) in enumerate(FORMATS):
            mark = "●" if number == self._at else "○"
            row = Content.assemble(f"{mark} {name:<9} ", (purpose, "dim"))
            listed.replace_option_prompt_at_index(number, row)
        listed.highlighted = self._at

    def _proposed(self, at: int) -> Path:
        return self._folder / f"{self._stem}{FORMATS[at][1]}"

    @on(OptionList.OptionSelected)
    def _selected(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        self._choose(message.option_index)
        self.query_one(Input).focus()

    # --- writing -----------------------------------------------------------------------------------------

    @on(Input.Submitted)
    def _submitted(self, message: Input.Submitted) -> None:
        message.stop()
        if self._written is not None:
            self.dismiss(self._written)
            return
        typed = message.value.strip()
        try:
            path = Path(typed).expanduser() if typed else self._proposed(self._at)
            if path.is_dir():
                path /= self._proposed(self._at).name
            self._written = self._write(FORMATS[self._at][0], path)
        except (EdgeError, RuntimeError) as error:
            self._say(str(error), is_problem=True)
        except OSError as error:
            self._say(f"{typed or path} can't be written: {error.strerror or error}", is_problem=True)
        else:
            self._say(f"written to {self._written.absolute()}", is_problem=False)
            self.query_one("#box").border_subtitle = "⏎ done"
            message.input.disabled = True
            self.query_one(OptionList).disabled = True
            self.set_focus(None)

    def _say(self, line: str, *, is_problem: bool) -> None:
        said = self.query_one("#said", Static)
        said.set_class(is_problem, "-problem")
        said.update(Content(safe_line(line)))

    def key_enter(self) -> None:
        if self._written is not None:
            self.dismiss(self._written)

    def action_leave(self) -> None:
        self.dismiss(self._written)
