"""What was written, by whom: text as it came, with a bar at its left that shows the writer.

All spans of a part are drawn by one widget, line by line, and only what is in sight. A bar's shape tells
the writer where there are no colours: thin for the small model, thick for a remote, dashed where a remote
was wanted and the small model wrote.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.cache import LRUCache
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.selection import Selection
from textual.strip import Strip

from sr_edge.budget import dollars
from sr_edge.extract import Part
from sr_edge.terminal import safe_line
from sr_edge.transcript import SpanRecord
from sr_edge.tui.blocks import Block, Blocks
from sr_edge.tui.hues import HUES, Hues
from sr_edge.tui.quiet import Growing
from sr_edge.tui.wrap import TAB, Line, wrap

BARS = {"local": "│", "remote": "┃", "fallback": "╎"}
CHOSEN_BAR = "█"
BADGES = {"remote": "◆", "fallback": "◇"}

_MIN_WIDTH = 4  # cells of text, however narrow the terminal
_NAME_WIDTH = 20
_MAX_STRIPS = 256


class Trace(Growing):
    """One part of an answer, or all of it, as `blocks` has it."""

    ALLOW_SELECT = True
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "trace--text",
        "trace--bar",
        "trace--dim",
        "trace--chosen",
        "trace--hover",
        *(f"trace--{hue}" for hue in HUES),
    }
    DEFAULT_CSS = """
    Trace {
        width: 1fr;
        height: auto;
        color: $foreground;
        & > .trace--text { color: $foreground; }
        & > .trace--bar, & > .trace--dim { color: $text-muted; }
        & > .trace--chosen { background: $primary-muted; }
        & > .trace--hover { background: $boost; }
        & > .trace--accent { color: $text-accent; }
        & > .trace--success { color: $text-success; }
        & > .trace--secondary { color: $text-secondary; }
        & > .trace--primary { color: $text-primary; }
    }
    """

    cursor: reactive[int | None] = reactive(None, repaint=False)
    """The span that keys act on, by its number."""
    hovered: reactive[int | None] = reactive(None, repaint=False)

    class SpanChosen(Message):
        """Enter or a click on a span."""

        def __init__(self, trace: Trace, span: int) -> None:
            super().__init__()
            self.trace = trace
            self.span = span

        @property
        def control(self) -> Trace:
            return self.trace

    def __init__(
        self,
        *,
        hues: Hues | None = None,
        labels: bool = True,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        """Args: labels: whether each span says at its end what it took."""
        super().__init__(id=id, classes=classes)
        self._has_labels = labels
        self._hues = hues or Hues()
        self._blocks = Blocks()
        self._part: Part | None = None
        self._seen = 0  # revision of the blocks
        self._width = 0  # for which all below holds
        self._drawn: list[_Drawn] = []
        self._ends: list[int] = []  # the row after each of them
        self._strips: LRUCache[tuple[int, int], Strip] = LRUCache(_MAX_STRIPS)
        self._serials = count()
        self._base = Style()  # of the strips
        self._num_painted = 0
        self._pressed: tuple[int, int] | None = None

    # --- content -------------------------------------------------------------------------------------

    def show(self, blocks: Blocks, part: Part | None) -> None:
        """Draw one part of the blocks, or all of them, from now on."""
        self._blocks, self._part = blocks, part
        self._start_over()
        self.refresh(layout=True)

    def show_labels(self, shown: bool) -> None:
        """Whether each span says at its end what it took."""
        self._has_labels = shown
        self._start_over()
        self.refresh(layout=True)

    def grew(self) -> None:
        """Events were added to the blocks since. Only what changed is wrapped and painted."""
        if not self._width:
            return
        height = self._height
        first = self._update()
        if self._height != height:
            self.refresh(layout=True, repaint=False)
        if first < self._height:
            self._repaint(first, self._height)

    @property
    def spans(self) -> list[int]:
        """The numbers of the spans that are drawn, in order."""
        return list(
            dict.fromkeys(drawn.span for drawn in self._drawn if drawn.span is not None and drawn.height)
        )

    def line_of(self, span: int) -> int | None:
        """The row, from 0, at which a span begins; None where it isn't drawn."""
        for n, drawn in enumerate(self._drawn):
            if drawn.span == span and drawn.height:
                return self._start(n)
        return None

    def span_at(self, row: int) -> int | None:
        n = bisect_right(self._ends, row)
        return self._drawn[n].span if row >= 0 and n < len(self._drawn) else None

    # --- the cursor ----------------------------------------------------------------------------------

    def watch_cursor(self, old: int | None, new: int | None) -> None:
        self._repaint_spans(old, new)

    def watch_hovered(self, old: int | None, new: int | None) -> None:
        self._repaint_spans(old, new)

    def _repaint_spans(self, *spans: int | None) -> None:
        for n, drawn in enumerate(self._drawn):
            if drawn.span is not None and drawn.span in spans:
                self._repaint(self._start(n), self._ends[n])

    def on_mouse_move(self, event: events.MouseMove) -> None:
        at = event.get_content_offset(self)
        self.hovered = None if at is None else self.span_at(at.y)

    def on_leave(self) -> None:
        self.hovered = None

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self._pressed = (event.x, event.y)

    def on_click(self, event: events.Click) -> None:
        at = event.get_content_offset(self)
        span = None if at is None else self.span_at(at.y)
        if span is not None and self._pressed == (event.x, event.y):  # else text was selected
            self.cursor = span
            self.post_message(self.SpanChosen(self, span))

    # --- rows ----------------------------------------------------------------------------------------

    @property
    def _height(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _start(self, n: int) -> int:
        return self._ends[n - 1] if n else 0

    def get_content_width(self, container: Size, viewport: Size) -> int:
        return container.width

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        if width != self._width:
            self._start_over()
            self._width = width
        if width:
            self._update()
        return self._height

    def _start_over(self) -> None:
        self._drawn.clear()
        self._ends.clear()
        self._strips.clear()
        self._seen = -1

    def _update(self) -> int:
        """Lay out what changed. Returns the first row that is not as it was."""
        blocks = self._blocks
        if blocks.revision == self._seen:
            return self._height
        first = blocks.unchanged_since(self._seen)
        self._seen = blocks.revision
        kept = bisect_left(self._drawn, first, key=lambda drawn: drawn.index)
        stale = self._drawn[kept] if kept < len(self._drawn) else None
        row = self._start(kept)
        del self._drawn[kept:], self._ends[kept:]
        for index in range(first, len(blocks)):
            block = blocks[index]
            if self._part is not None and block.part != self._part:
                continue
            drawn = _Drawn(index, next(self._serials), block)
            before = stale if stale and stale.index == index else None
            same_rows = drawn.lay(self._width, before, has_label=self._has_labels)
            if len(self._drawn) == kept:
                row += same_rows
            self._drawn.append(drawn)
            self._ends.append(self._height + drawn.height)
        return row

    def _repaint(self, first: int, end: int) -> None:
        self.refresh(Region(0, first, self.size.width, end - first))

    # --- painting ------------------------------------------------------------------------------------

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._strips.clear()

    def render_lines(self, crop: Region) -> list[Strip]:
        if self._seen < 0 and self._width:
            self._update()  # painted before it was laid out anew: blank rows would stay
        self._num_painted += crop.height
        if self._num_painted > 4 * _MAX_STRIPS:  # what Textual keeps of each line would only ever grow
            self._styles_cache.clear()
            self._num_painted = crop.height
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        base = self.get_component_rich_style("trace--text")
        if base != self._base:
            self._strips.clear()
            self._base = base
        n = bisect_right(self._ends, y)
        if n >= len(self._drawn):
            return Strip.blank(self.size.width, base)
        drawn, row = self._drawn[n], y - self._start(n)
        selection = self.text_selection
        selected = selection.get_span(n) if selection is not None else None
        is_marked = drawn.span is not None and drawn.span in (self.cursor, self.hovered)
        if selected is not None or is_marked:
            return self._strip(n, drawn, row, selected)
        key = (drawn.serial, row)
        strip = self._strips.get(key)
        if strip is None:
            strip = self._strips[key] = self._strip(n, drawn, row, None)
        return strip

    def _strip(self, n: int, drawn: _Drawn, row: int, selected: tuple[int, int] | None) -> Strip:
        width = self._width
        style = self.get_component_rich_style
        base = text_style = style("trace--text")
        dim, bar_style = style("trace--dim"), style("trace--bar")
        if drawn.voice == "remote":
            text_style = bar_style = style(f"trace--{HUES[self._hues.number(drawn.remote)]}")
        background = base
        is_chosen = drawn.span is not None and drawn.span == self.cursor
        if is_chosen or (drawn.span is not None and drawn.span == self.hovered):
            name = "trace--chosen" if is_chosen else "trace--hover"
            background = Style(bgcolor=style(name).bgcolor)
            base, text_style, dim, bar_style = (
                each + background for each in (base, text_style, dim, bar_style)
            )
        content = drawn.row(row)
        bar = CHOSEN_BAR if is_chosen else BARS[drawn.voice]
        gutter = (bar + " " + (drawn.badge if row == 0 else "")).ljust(drawn.gutter)
        at = content.line[0] if content.line else (0 if content.is_before else len(drawn.text))
        # One cell each, all of them at the beginning of the line: where a selection begins there
        segments = [Segment(char, bar_style + _place(at, n)) for char in gutter]
        used = len(gutter)
        if content.line is not None:
            for text, offset in _pieces(drawn.text, content.line, selected):
                is_selected = selected is not None and _is_in(offset, selected)
                piece_style = text_style + self.selection_style if is_selected else text_style
                segments.append(Segment(text, piece_style + _place(offset, n)))
                used += cell_len(text)
        elif content.note:
            segments.append(Segment(content.note, dim))
            used += cell_len(content.note)
        label = content.label
        if label:
            segments.append(Segment(" " * (width - used - cell_len(label)), base))
            segments.append(Segment(label, dim))
            used = width
        if used < width:
            segments.append(Segment(" " * (width - used), base))
        strip = Strip(segments)
        return strip if strip.cell_length == width else strip.adjust_cell_length(width, base)

    # --- selecting -----------------------------------------------------------------------------------

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The text as it was written: without bars, and without the breaks of lines that were too long."""
        texts = []
        for n, drawn in enumerate(self._drawn):
            if (span := selection.get_span(n)) is not None:
                start, end = span
                texts.append(drawn.text[start : None if end < 0 else end])
        return "".join(texts).strip("\n"), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()


# --- one block -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of text, or a note, or neither; and what stands at its right end."""

    line: Line | None = None
    note: str = ""
    label: str = ""
    is_before: bool = False
    """Whether the block's text comes after it."""


@dataclass(slots=True)
class _Drawn:
    """A block, wrapped: notes of a span that brought nothing, text, a note on why it was cut, the label."""

    index: int
    """Among all blocks."""
    serial: int
    block: Block
    gutter: int = 0
    """Cells."""
    head: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)
    label: str = ""
    label_is_apart: bool = False
    height: int = 0

    @property
    def voice(self) -> str:
        return self.block.voice

    @property
    def span(self) -> int | None:
        return self.block.span

    @property
    def text(self) -> str:
        return self.block.text

    @property
    def remote(self) -> str:
        record = self.block.record
        return (record.remote if record else None) or "remote"

    @property
    def badge(self) -> str:
        return f"{BADGES[self.voice]}{self.span} " if self.span is not None else ""

    def lay(self, width: int, before: _Drawn | None, *, has_label: bool) -> int:
        """Wrap it. Returns how many rows, from the first on, are those of `before`, when there was less."""
        block = self.block
        self.gutter = 2 + len(self.badge)
        room = max(_MIN_WIDTH, width - self.gutter)
        same = self._wrap(room, before)
        if block.record is not None:
            note = _note(block)
            if note and (block.voice == "fallback" or not self.lines):
                self.head = _lines_of(note, room)
            elif note:
                self.tail = _lines_of(note, room)
            if has_label and block.voice == "remote" and self.lines:
                self.label = (
                    set_cell_size(label, room) if cell_len(label := _label(block.record)) > room else label
                )
        if self.label:
            used = cell_len(self.tail[-1]) if self.tail else self._cells(self.lines[-1])
            self.label_is_apart = used + 2 + cell_len(self.label) > room
        self.height = len(self.head) + len(self.lines) + len(self.tail) + self.label_is_apart
        if before is None or self.head != before.head or self.badge != before.badge:
            return 0
        return len(self.head) + same

    def _wrap(self, room: int, before: _Drawn | None) -> int:
        """Returns how many lines are as they were."""
        text = self.text
        end = len(text.rstrip())
        if not end:
            return 0
        if (
            before is not None
            and before.lines
            and before.gutter == self.gutter
            and text.startswith(before.text)
        ):
            start = before.lines[-1][0]
            kept = len(before.lines) - 1
            before.lines.pop()
            self.lines = before.lines  # `before` is never drawn again
            self.lines.extend(wrap(text, room, start, end))
            return kept
        start = len(text) - len(text.lstrip())
        start = text.rfind("\n", 0, start) + 1 or start  # blank lines go, the first one's indentation stays
        self.lines = wrap(text, room, start, end)
        return 0

    def _cells(self, line: Line) -> int:
        text = self.text[line[0] : line[1]]
        return cell_len(text.replace("\t", " " * TAB))

    def row(self, row: int) -> _Row:
        is_last = row == self.height - 1
        label = self.label if is_last else ""
        if row < len(self.head):
            return _Row(note=self.head[row], label=label, is_before=True)
        row -= len(self.head)
        if row < len(self.lines):
            return _Row(line=self.lines[row], label=label)
        row -= len(self.lines)
        return _Row(note=self.tail[row] if row < len(self.tail) else "", label=label)


def _note(block: Block) -> str:
    record = block.record
    if block.note:
        return f"({block.note})"
    return "…" if record is not None and record.end is None and not block.text.strip() else ""


def _lines_of(note: str, room: int) -> list[str]:
    return [note[start:end] for start, end in wrap(note, room)]


def _label(record: SpanRecord) -> str:
    """`lab 46 tok 0.9 s $0.0003`; empty while it writes."""
    if record.end is None:
        return ""
    name = safe_line(record.remote or "remote")
    if cell_len(name) > _NAME_WIDTH:
        name = set_cell_size(name, _NAME_WIDTH - 1).rstrip() + "…"
    seconds = f"{record.seconds:.{1 if record.seconds < 9.95 else 0}f} s"
    cost = [] if record.cost is None else [dollars(record.cost)]
    return " ".join([name, f"{record.tokens} tok", seconds, *cost])


def _pieces(text: str, line: Line, selected: tuple[int, int] | None) -> Iterator[tuple[str, int]]:
    """The line as it is shown, cut where a selection begins and ends, each with its place in the text."""
    start, end = line
    cuts = [start, end]
    if selected is not None:
        low, high = selected
        cuts += [cut for cut in (low, high) if start < cut < end]
    cuts.sort()
    for low, high in pairwise(cuts):
        if low == high:
            continue
        for n, piece in enumerate(text[low:high].split("\t")):
            if n:
                low += 1
                for _ in range(TAB):
                    yield " ", low - 1
            if piece:
                yield piece, low
                low += len(piece)


def _is_in(offset: int, selected: tuple[int, int]) -> bool:
    low, high = selected
    return low <= offset and (high < 0 or offset < high)


def _place(offset: int, block: int) -> Style:
    """What tells Textual which character a cell is, for selecting with the mouse."""
    return Style.from_meta({"offset": (offset, block)})
