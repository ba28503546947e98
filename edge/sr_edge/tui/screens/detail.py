"""All there is to know about one span: why it left, what was sent, times, cost, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, TypeAlias

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from sr_edge.budget import Price, dollars
from sr_edge.events import End, Trigger
from sr_edge.report import NOT_SENT, size
from sr_edge.terminal import safe, safe_line
from sr_edge.transcript import SpanRecord
from sr_edge.tui.wrap import wrap

Doing: TypeAlias = Literal["local", "remote", "fork", "copy"]
"""What is to be done with the span: written again by one of the two, forked at, copied."""

Sent: TypeAlias = str
"""The text that was sent, as far as it is known. Empty: nothing was."""

MAX_SENT = 100_000
"""Characters of what was sent that are shown; its end."""

_KEYS = "[v] what was sent  [l] again, locally  [b] again, remotely  [f] fork  [y] copy  [esc] close"
_MIN_WIDTH = 8

_TRIGGERS: dict[Trigger, str] = {
    "marker": "the small model asked for help",
    "policy": "the policy asks for it here",
    "random": "chance decided, as the random baseline does",
    "user": "you asked for it",
}

_ENDS: dict[End, str] = {
    "handback": "the small model wanted to write again",
    "stop": "the remote had said all it wanted to",
    "boundary": "a paragraph ended, and the span was long enough",
    "cap": "the span had reached its largest size",
    "budget": "a limit was reached",
    "cancelled": "you stopped the answer",
    "stalled": "the remote fell silent",
    "error": "the remote failed",
    "declined": "it was refused before anything left this machine",
    "offline": "offline: nothing left this machine",
}


class SpanDetail(ModalScreen[Doing | None]):
    """Dismisses with what is to be done, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss_with('')", "close", key_display="esc"),
        Binding("l", "dismiss_with('local')", "again, locally", id="span.local"),
        Binding("b", "dismiss_with('remote')", "again, remotely", id="span.remote"),
        Binding("f", "dismiss_with('fork')", "fork here", id="chat.fork"),
        Binding("y", "dismiss_with('copy')", "copy", id="block.copy"),
        Binding("v", "show_sent", "what was sent", id="span.view"),
    ]
    DEFAULT_CSS = """
    SpanDetail {
        align: center middle;
        & > Vertical {
            width: 94%;
            max-width: 100;
            height: auto;
            border: round $primary;
            background: $surface;
            padding: 0 1;
        }
        #scroll { height: auto; scrollbar-size-vertical: 1; }
        #facts { height: auto; }
        #text, #sent { height: auto; border-left: outer $secondary; padding: 0 1; margin-top: 1; }
        #sent { display: none; border-left: outer $panel; color: $text-muted; }
        #keys { height: auto; color: $text-muted; margin-top: 1; }
        &.-sent #sent { display: block; }
        &.-sent #text { display: none; }
    }
    """

    def __init__(
        self,
        record: SpanRecord,
        *,
        sent: Sent = "",
        price: Price | None = None,
        shows_sent: bool = False,
    ) -> None:
        """Args:
        price: of the remote that the span went to, if it is known.
        shows_sent: at first, instead of what the span says.
        """
        super().__init__()
        self._record = record
        self._sent = sent
        self._price = price
        self.set_class(shows_sent, "-sent")

    def compose(self) -> ComposeResult:
        record = self._record
        with Vertical() as box:
            name = safe_line(record.remote or "")
            box.border_title = Content(f"span {record.span}" + (f" · {name}" if name else ""))
            with VerticalScroll(id="scroll"):
                yield Static(id="facts", markup=False)
                yield Static(safe(record.text) or "(no text)", id="text", markup=False)
                yield Static(self._shown(), id="sent", markup=False)
            yield Static(_KEYS, id="keys", markup=False)

    def on_mount(self) -> None:
        self.query_one("#scroll").focus()

    def on_resize(self) -> None:
        """The facts stay in their column, and the keys in sight, however small the screen is."""
        width = max(_MIN_WIDTH, min(100, self.size.width * 94 // 100) - 4)
        facts = span_facts(self._record, price=self._price)
        self.query_one("#facts", Static).update(_table(list(facts), width - 1))
        of_keys = 1 + len(wrap(_KEYS, width))
        self.query_one("#scroll").styles.max_height = max(3, self.size.height - of_keys - 2)

    def action_show_sent(self) -> None:
        self.toggle_class("-sent")

    def action_dismiss_with(self, doing: str) -> None:
        match doing:
            case "local" | "remote" | "fork" | "copy":
                self.dismiss(doing)
            case _:
                self.dismiss(None)

    def _shown(self) -> str:
        if not self._sent:
            return "nothing was sent" if not self._record.sent_bytes else "what was sent is not kept"
        text = safe(self._sent[-MAX_SENT:])
        return (
            f"… {len(self._sent) - MAX_SENT} characters before\n{text}"
            if len(self._sent) > MAX_SENT
            else text
        )


def span_facts(record: SpanRecord, *, price: Price | None = None) -> Iterator[tuple[str, str]]:
    """A name and what there is to say, line by line; what is not known is left out."""
    why = _TRIGGERS[record.trigger]
    if record.trigger == "marker" and record.p_open is not None:
        why += f" (p {record.p_open:.2f})"
    yield "why", why
    if record.sent_bytes and record.end not in NOT_SENT:
        yield "sent", f"{record.sent_tokens:,} tokens · {size(record.sent_bytes)}"
    else:
        yield "sent", "nothing"
    times = [
        *([] if record.ttft is None else [f"first text after {_seconds(record.ttft)}"]),
        *([] if not record.seconds else [f"{_seconds(record.seconds)} in all"]),
        *([] if record.resume is None else [f"back to the small model in {_seconds(record.resume)}"]),
    ]
    if times:
        yield "time", " · ".join(times)
    if record.tokens:
        speed = _speed(record)
        yield "text", f"{record.tokens:,} tokens" + (f" · {speed:.0f} tok/s" if speed else "")
    if record.remote_prompt_tokens is not None or record.remote_completion_tokens is not None:
        prompt, completion = record.remote_prompt_tokens, record.remote_completion_tokens
        counted = (
            f"{'?' if count is None else f'{count:,}'} {what}"
            for count, what in ((prompt, "read"), (completion, "written"))
        )
        yield "its count", " · ".join(counted)
    cost = _cost(record, price)
    if cost:
        yield "cost", cost
    yield "ended", "it is still writing" if record.end is None else _ENDS[record.end]
    if record.error:
        yield "error", safe_line(record.error)


def _speed(record: SpanRecord) -> float | None:
    seconds = record.seconds - (record.ttft or 0.0)
    return record.tokens / seconds if seconds > 0.05 else None


def _cost(record: SpanRecord, price: Price | None) -> str:
    if record.cost is None:
        why = "no price is set" if price is None else "the remote did not count"
        return f"not known: {why}" if record.sent_bytes and record.end not in NOT_SENT else ""
    if price is None or record.remote_prompt_tokens is None or record.remote_completion_tokens is None:
        return dollars(record.cost)
    prompt, completion = record.remote_prompt_tokens, record.remote_completion_tokens
    return f"{prompt:,} × ${price.input:g}/M + {completion:,} × ${price.output:g}/M = {dollars(record.cost)}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _table(rows: list[tuple[str, str]], width: int) -> Content:
    column = max(len(name) for name, _ in rows) + 2
    lines = [
        Content.assemble((("" if n else name).ljust(column), "dim"), what[start:end])
        for name, what in rows
        for n, (start, end) in enumerate(wrap(what, max(_MIN_WIDTH, width - column)))
    ]
    return Content("\n").join(lines)
