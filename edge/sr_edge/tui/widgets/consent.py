"""The question whether a span may be sent, with what would leave. Decoding waits for its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static

from sr_edge.budget import dollars
from sr_edge.report import size
from sr_edge.terminal import safe, safe_line

Verdict = Literal["yes", "no", "always"]

SETTLE_SECONDS = 0.5
"""So long its keys do nothing: they may be the end of a word that was meant for the prompt."""


@dataclass(frozen=True, slots=True)
class Request:
    """What would leave the machine for one span."""

    remote: str
    tokens: int
    bytes: int
    usd: float | None
    """At most, as far as it can be told; None without prices."""
    text: str
    """As it would be sent: hidden parts are hidden."""
    note: str = ""
    """Such as what was hidden."""


class _Choice(Static):
    """One of the answers, for the mouse."""

    @dataclass
    class Clicked(Message):
        key: str

    def __init__(self, key: str, words: str) -> None:
        super().__init__(Content.assemble((f"[{key}]", "bold"), f" {words}"))
        self._key = key

    async def _on_click(self, event: events.Click) -> None:
        event.stop()
        self.post_message(self.Clicked(self._key))


class Consent(Widget, can_focus=True):
    """One question at a time, or hidden."""

    DEFAULT_CSS = """
    Consent {
        display: none;
        height: auto;
        padding: 0 1;
        border: round $warning;
        &.-asked { display: block; }
        &:focus { border: round $warning-lighten-2; }
        #question { height: auto; }
        #choices { height: auto; }
        _Choice { width: auto; margin-right: 2; height: 1; pointer: pointer; }
        _Choice:hover { text-style: underline; }
        border-subtitle-color: $text-muted;
        #sent { height: auto; max-height: 30vh; display: none; border-top: solid $warning-darken-2; }
        #sent { scrollbar-size-vertical: 1; scrollbar-background: $background; }
        &.-viewing #sent { display: block; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "decide('yes')", "send"),
        Binding("n", "decide('no')", "stay local"),
        Binding("v", "view", "view"),
        Binding("a", "decide('always')", "always"),
        Binding("up,k", "scroll_text(-1)", "up", show=False),
        Binding("down,j", "scroll_text(1)", "down", show=False),
        Binding("pageup", "scroll_text(-10)", "page up", show=False),
        Binding("pagedown,space", "scroll_text(10)", "page down", show=False),
    ]

    @dataclass
    class Decided(Message):
        """The user's answer. The question is gone."""

        verdict: Verdict

    def __init__(self, *, settle: float = SETTLE_SECONDS, id: str | None = None) -> None:
        super().__init__(id=id)
        self._settle = settle
        self._settling: Timer | None = None
        self._request: Request | None = None
        self._before: Widget | None = None  # who had the focus
        self.border_subtitle = "Tab comes here"

    def compose(self) -> ComposeResult:
        yield Static(id="question", markup=False)
        with Horizontal(id="choices"):
            yield _Choice("y", "send")
            yield _Choice("n", "stay local")
            yield _Choice("v", "view")
            yield _Choice("a", "always")
        with VerticalScroll(id="sent", can_focus=False):
            yield Static(id="text", markup=False)

    @property
    def is_asking(self) -> bool:
        return self._request is not None

    def ask(self, request: Request, *, take_focus: bool = True) -> None:
        """Show the question.

        Args:
            take_focus: not while the user is typing a prompt: its letters would be answers.
        """
        self._request = request
        self.query_one("#question", Static).update(Content(question(request)))
        self.query_one("#text", Static).update(Content(safe(request.text)))
        self.remove_class("-viewing")
        self.add_class("-asked")
        if take_focus:
            self._before = self.screen.focused
            self.focus()
            if self._settle:
                self._settling = self.set_timer(self._settle, self._settled)

    def withdraw(self) -> None:
        """Hide it without an answer: the span was given up."""
        self._request = None
        self._settled()
        self.remove_class("-asked", "-viewing")
        self.query_one("#text", Static).update("")
        if self.has_focus:
            if self._before is not None and self._before.is_attached and self._before.focusable:
                self._before.focus()
            else:
                self.screen.focus_next()
        self._before = None

    def action_decide(self, verdict: Verdict) -> None:
        if self._settling is None:
            self._decide(verdict)

    def action_view(self) -> None:
        if self._settling is None:
            self.toggle_class("-viewing")

    def action_scroll_text(self, lines: int) -> None:
        self.query_one("#sent").scroll_relative(y=lines, animate=False)

    @on(_Choice.Clicked)
    def _clicked(self, message: _Choice.Clicked) -> None:
        message.stop()
        verdicts: dict[str, Verdict] = {"y": "yes", "n": "no", "a": "always"}
        if message.key in verdicts:
            self._decide(verdicts[message.key])
        else:
            self.toggle_class("-viewing")

    def _decide(self, verdict: Verdict) -> None:
        if self._request is not None:
            self.withdraw()
            self.post_message(self.Decided(verdict))

    def _on_focus(self, event: events.Focus) -> None:
        self.border_subtitle = None

    def _on_blur(self, event: events.Blur) -> None:
        self.border_subtitle = "Tab comes here"

    def _settled(self) -> None:
        if self._settling is not None:
            self._settling.stop()
            self._settling = None


def question(request: Request) -> str:
    """`lab wants 1,812 tokens of this chat · 7.2 kB · ~$0.0006`"""
    parts = [
        f"{safe_line(request.remote)} wants {request.tokens:,} tokens of this chat",
        size(request.bytes),
        "cost unknown" if request.usd is None else f"~{dollars(request.usd)}",
        *([safe_line(request.note)] if request.note else []),
    ]
    return " · ".join(parts)
