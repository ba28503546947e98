"""What stands in an empty conversation: what this is, what works now, and what more there could be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual import on
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from sr_edge.terminal import safe_line

EXAMPLES = (
    "Ida fills 28 bags with 4 coins each. Tom gives her 93 more. How many coins does Ida have now?",
    "There are 5 jars with 41 nuts each. Another 43 nuts come by post. How many nuts are there now?",
    "Rosa finds 186 beads at home. Leo brings 4 tins with 6 beads each. Rosa loses 15 of them. "
    "How many beads does Rosa have in the end?",
)
"""For the built-in pair, which knows such problems and nothing else."""

_WHAT = (
    "A small model on this machine writes the answer, and a large one the steps that are too hard for it. "
    "You see who wrote what."
)


@dataclass(frozen=True, slots=True)
class Setup:
    """What is there to answer with."""

    model: str | None
    """None: the built-in pair."""
    remote: str | None
    is_offline: bool = False


class Welcome(VerticalScroll, can_focus=False):
    DEFAULT_CSS = """
    Welcome {
        height: 1fr;
        max-width: 100;
        padding: 1 2 0 2;
        scrollbar-size-vertical: 1;
        scrollbar-background: $background;
        Static { height: auto; margin-bottom: 1; }
        #what { text-style: bold; }
        OptionList {
            height: auto;
            border: none;
            padding: 0;
            margin-bottom: 1;
            background: transparent;
            text-wrap: nowrap;
            text-overflow: ellipsis;
            &:focus { border: none; }
            &:blur > .option-list--option-highlighted { background: transparent; text-style: none; }
        }
        #more { color: $text-muted; }
    }
    """

    @dataclass
    class Chosen(Message):
        """An example: it belongs into the prompt, and is not sent."""

        text: str

    def __init__(self, setup: Setup, examples: Sequence[str] | None = None, *, id: str | None = None) -> None:
        """Args: examples: by default those that the built-in pair can solve, where that answers."""
        super().__init__(id=id)
        self._setup = setup
        if examples is None:
            examples = EXAMPLES if setup.model is None else ()
        self._examples = tuple(examples)

    def compose(self) -> ComposeResult:
        yield Static(Content(_WHAT), id="what")
        yield Static(_now(self._setup, bool(self._examples)), id="now")
        if self._examples:
            yield OptionList(
                *(
                    Option(Content(f"• {safe_line(text)}"), id=str(n))
                    for n, text in enumerate(self._examples)
                ),
                compact=True,
            )
        yield Static(_more(self._setup), id="more")

    @on(OptionList.OptionSelected)
    def _selected(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        assert message.option.id is not None
        self.post_message(self.Chosen(self._examples[int(message.option.id)]))


def _now(setup: Setup, has_examples: bool) -> Content:
    if setup.model is None:
        words = "Works now, without a network, with a tiny pair of models that is built in."
        return Content(
            words + " It knows problems like these; Tab and Enter take one:" if has_examples else words
        )
    who = safe_line(setup.model)
    if setup.is_offline:
        return Content(f"{who} answers. Offline: nothing leaves this machine.")
    if setup.remote is None:
        return Content(f"{who} answers alone: there is no remote yet.")
    return Content(f"{who} answers, and may ask {safe_line(setup.remote)}. Shift+Tab decides who may write.")


def _more(setup: Setup) -> Content:
    rows: list[tuple[str, tuple[str, ...]]] = []
    if setup.model is None:
        rows.append(("a real model", ("sr-edge models import FILE.gguf", "sr-edge chat -m FILE.gguf")))
    if setup.remote is None and not setup.is_offline:
        rows.append(("a large one", ("sr-edge remote add NAME URL", "sr-edge keys set NAME")))
    rows.append(("is all well?", ("sr-edge doctor",)))
    lines: list[Content] = []
    for what, commands in rows:
        for number, command in enumerate(commands):
            lines.append(Content.assemble(f"{'' if number else what:<14}", (command, "$text-accent")))
    return Content("\n").join(lines)
