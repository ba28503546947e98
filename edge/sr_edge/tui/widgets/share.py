"""The line above an answer that says who wrote how much of it, and folds its reasoning."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size
from textual import events
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from sr_edge.terminal import safe_line
from sr_edge.tui.blocks import Share
from sr_edge.tui.hues import Hues

_CELLS = 16
_FILLED, _EMPTY = "█▓▒", "░"
_NAME_WIDTH = 20


class ShareBar(Static):
    """`▾ reasoning  local 61 % ███████░░░ lab 39 % · 3 spans`. In sight when the reasoning is not."""

    DEFAULT_CSS = """
    ShareBar {
        width: 1fr;
        height: 1;
        color: $text-muted;
        &.-folds { pointer: pointer; }
        &.-folds:hover { background: $boost; color: $text; }
    }
    """

    class Toggled(Message):
        """The reasoning is to be folded or unfolded."""

        def __init__(self, bar: ShareBar) -> None:
            super().__init__()
            self.bar = bar

        @property
        def control(self) -> ShareBar:
            return self.bar

    def __init__(
        self, *, hues: Hues | None = None, id: str | None = None, classes: str | None = None
    ) -> None:
        super().__init__(id=id, classes=classes, markup=False)
        self._hues = hues or Hues()
        self._share = Share()
        self._is_folded = self._can_fold = self._is_running = False
        self._what = "reasoning"

    def show(
        self,
        share: Share,
        *,
        folded: bool = False,
        can_fold: bool = False,
        running: bool = False,
        what: str = "reasoning",
    ) -> None:
        """Args:
        can_fold: whether there is anything to fold; without it a click does nothing.
        what: is folded.
        """
        state = (share, folded, can_fold, running, what)
        if state == (self._share, self._is_folded, self._can_fold, self._is_running, self._what):
            return
        self._share, self._is_folded, self._can_fold, self._is_running, self._what = state
        self.set_class(can_fold, "-folds")
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def on_click(self, event: events.Click) -> None:
        if self._can_fold:
            event.stop()
            self.post_message(self.Toggled(self))

    def _draw(self) -> None:
        self.update(self._line(self.size.width), layout=False)

    def _line(self, width: int) -> Content:
        share = self._share
        remotes = [(safe_line(name) or "remote", tokens) for name, tokens in share.remotes if tokens]
        total = share.local_tokens + sum(tokens for _, tokens in remotes)
        head = Content(f"{'▸' if self._is_folded else '▾'} {self._what}  ") if self._can_fold else Content("")
        if not total:
            return head.append_text("…" if self._is_running else "").truncate(max(1, width), ellipsis=True)
        percents = _percents([share.local_tokens, *(tokens for _, tokens in remotes)])
        spans = f" · {share.num_spans} span{'' if share.num_spans == 1 else 's'}" if share.num_spans else ""
        names = [
            (f"{_clipped(name)} {percent} %", self._hues.variable(name))
            for (name, _), percent in zip(remotes, percents[1:], strict=True)
        ]
        local = f"local {percents[0]} %"
        used = head.cell_length + cell_len(local + spans) + sum(cell_len(name) + 3 for name, _ in names)
        cells = min(_CELLS, width - used - 3) if remotes else 0
        line = head.append_text(local, "$text")
        if cells >= 4:
            line = line.append_text(" ").append(self._bar(remotes, total, cells))
        for n, (name, color) in enumerate(names):
            line = line.append_text(" " if n == 0 and cells >= 4 else " · ").append_text(name, color)
        return line.append_text(spans).truncate(max(1, width), ellipsis=True)

    def _bar(self, remotes: list[tuple[str, int]], total: int, cells: int) -> Content:
        """What is remote is filled, from the right; each remote that wrote has a cell at least."""
        parts = [(max(1, round(cells * tokens / total)), name) for name, tokens in remotes]
        while sum(count for count, _ in parts) > cells - 1 and any(count > 1 for count, _ in parts):
            most = max(range(len(parts)), key=lambda n: parts[n][0])
            parts[most] = (parts[most][0] - 1, parts[most][1])
        line = Content(_EMPTY * max(0, cells - sum(count for count, _ in parts)))
        for n, (count, name) in enumerate(parts):
            line = line.append_text(_FILLED[n % len(_FILLED)] * count, self._hues.variable(name))
        return line


def _clipped(name: str) -> str:
    return name if cell_len(name) <= _NAME_WIDTH else set_cell_size(name, _NAME_WIDTH - 1).rstrip() + "…"


def _percents(counts: list[int]) -> list[int]:
    """Whole percents whose sum is 100; who wrote anything has one at least."""
    total = sum(counts)
    percents = [max(1, round(100 * count / total)) if count else 0 for count in counts]
    percents[percents.index(max(percents))] += 100 - sum(percents)
    return percents
