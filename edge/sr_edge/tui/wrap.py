"""Wraps text at words, to a number of cells. A line that another one follows stays when text is added.

Where all characters are narrow, as in most text, a line costs one search; else each of them is measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.cells import split_graphemes

TAB = 4
"""Cells of a tab, wherever it stands."""

_NARROW = re.compile(  # characters of one cell, whatever stands next to them
    "[ -~\xa0-\xac\xae-\u02ff\u0370-\u0482\u048a-\u052f\u1e00-\u1fff\u2010-\u2027\u2030-\u205e"
    "\u2070-\u2071\u2074-\u208e\u2090-\u209c\u20a0-\u20bf\u2100-\u214f\u2150-\u218b\u2190-\u2319"
    "\u2500-\u25fc\u27c0-\u2aff\u2800-\u28ff]*"
)

Line = tuple[int, int]
"""Where it begins and ends in the text; the white space at which it was broken belongs to none."""


def wrap(text: str, width: int, start: int = 0, end: int | None = None) -> list[Line]:
    """The lines of `text[start:end]`, at least one. The beginning of any line may be `start`."""
    end = len(text) if end is None else end
    lines: list[Line] = []
    while True:
        at = text.find("\n", start, end)
        stop = end if at < 0 else at
        if stop - start <= width and _NARROW.fullmatch(text, start, stop):
            lines.append((start, _without_spaces(text, start, stop)))
        elif _NARROW.fullmatch(text, start, stop):
            lines.extend(_wrapped(text, width, start, stop))
        else:
            lines.extend(_measured(text, width, start, stop))
        if at < 0:
            return lines
        start = at + 1


def _wrapped(text: str, width: int, start: int, stop: int) -> Iterator[Line]:
    while stop - start > width:
        cut = text.rfind(" ", start, start + width + 1)
        if cut < 0 or not text[start:cut].strip(" "):
            cut = after = start + width  # one word fills the line, or nothing but the spaces before it does
        else:
            after = cut
            while after < stop and text[after] == " ":
                after += 1
        yield start, _without_spaces(text, start, cut)
        start = after
        if start == stop:
            return
    yield start, _without_spaces(text, start, stop)


def _measured(text: str, width: int, start: int, stop: int) -> Iterator[Line]:
    """The same for any characters. Wide ones may stand at the beginning of a line, as in Chinese."""
    line, used = start, 0
    next_line: int | None = None  # where it would begin, were the line broken
    used_there = 0
    has_ink = was_wide = False
    spaced = text[start:stop].replace("\t", " ")  # a tab would count as part of what stands before it
    for first, last, cells in split_graphemes(spaced)[0]:
        here = start + first
        cells = TAB if text[here] == "\t" else cells
        if text[here] in " \t" and last == first + 1:  # else it bears a mark
            if not has_ink and used + cells > width and here > line:
                yield line, line
                line, used = here, 0
            used += cells
            if has_ink:
                next_line, used_there = start + last, used
            was_wide = False
            continue
        if has_ink and (was_wide or cells > 1):
            next_line, used_there = here, used
        if used + cells > width and here > line:
            if next_line is not None:
                yield line, _without_spaces(text, line, next_line)
                line, used, next_line = next_line, used - used_there, None
            if used + cells > width and here > line:
                yield line, _without_spaces(text, line, here)
                line, used = here, 0
        used += cells
        has_ink, was_wide = True, cells > 1
    yield line, _without_spaces(text, line, stop)


def _without_spaces(text: str, start: int, stop: int) -> int:
    while stop > start and text[stop - 1] in " \t":
        stop -= 1
    return stop
