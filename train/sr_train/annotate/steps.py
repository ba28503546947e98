r"""Cuts a trace into steps, each at a place where a marker may stand. Pure.

A step is a sentence or a line, never less: its end takes the line breaks that follow, its beginning the
blanks that precede it, as tokenisers join them. The steps together are the trace, byte by byte. No cut lies
within mathematics (`$…$`, `$$…$$`, `\(…\)`, `\[…\]`, an environment), code or a box.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sr_edge.extract import END_THINK, THINK

MIN_STEP = 16
"""Characters, blanks around it not counted: "Wait." is one with the sentence after it."""

Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a trace, from character `start` to before `end`."""

    start: int
    end: int
    is_markable: bool
    """Whether it may be marked, as a whole: it is reasoning, and neither a box nor a tag is in it."""


def split_steps(trace: str) -> tuple[Step, ...]:
    """The steps of a trace; joined they are the trace."""
    spans = protected(trace)
    breaks = {at for at in _breaks(trace) if not is_within(at, spans)} - {0, len(trace)}
    softs = {at for at in _sentence_ends(trace) if not is_within(at, spans)} - breaks - {0, len(trace)}
    starts = [0, *sorted(breaks | softs)] if trace else []
    ends = [*starts[1:], len(trace)]
    pieces = _joined(trace, list(zip(starts, ends, strict=False)), breaks)
    end_of_thought = trace.rfind(END_THINK)
    return tuple(
        Step(start, end, _is_markable(trace[start:end]) and (end_of_thought < 0 or end <= end_of_thought))
        for start, end in pieces
    )


def is_within(at: int, spans: Sequence[Interval]) -> bool:
    """Whether a position lies inside one of the intervals, their borders not counted."""
    return any(start < at < end for start, end in spans)


def protected(text: str) -> list[Interval]:
    """Where no marker may stand: mathematics, code, boxes. Rather too much than too little."""
    found = list(_delimited(text))
    outside = list(text)
    for start, end in found:
        outside[start:end] = ["\n" if c == "\n" else " " for c in text[start:end]]
    found += _dollars("".join(outside))
    return sorted(found)


# --- steps -----------------------------------------------------------------------------------------------

_LINE_ENDS = re.compile(r"\n(?:[^\S\n]*\n)*")
_TAGS = re.compile(f"{re.escape(THINK)}|{re.escape(END_THINK)}")
_SENTENCE_ENDS = re.compile(r"""[.!?…]["'”’»)\]*_]*(?=[ \t]+\S)|[\u3002\uff01\uff1f]["'”’»\uff09]*(?=\S)""")
_ABBREVIATIONS = re.compile(
    r"(?:^|[\s(])(?:e\.g|i\.e|etc|cf|vs|resp|approx|w\.l\.o\.g|fig|eq|eqn|no|nos|thm|lem|prop|cor|sec|ch|st|dr|"
    r"mr|mrs|ms|prof|[a-z])\.$",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"(?:^|\n)[ \t]*(?:[-*>#]+[ \t]*)?\(?\d{1,3}\.$")


def _breaks(trace: str) -> Iterator[int]:
    """Where one step ends in any case: line ends and think tags."""
    for found in _LINE_ENDS.finditer(trace):
        yield found.end()
    for found in _TAGS.finditer(trace):
        yield found.start()
        yield found.end()


def _sentence_ends(trace: str) -> Iterator[int]:
    for found in _SENTENCE_ENDS.finditer(trace):
        end = found.end()
        follows = trace[end:].lstrip(" \t")[:1] if trace[end] in " \t" else trace[end]
        before = trace[max(0, end - 16) : end]
        if not (follows.islower() or _ABBREVIATIONS.search(before) or _NUMBERED.search(before)):
            yield end


def _joined(trace: str, pieces: list[Interval], breaks: set[int]) -> list[Interval]:
    """Short sentences together with a neighbour of the same line."""
    joined: list[Interval] = []
    for start, end in pieces:
        is_short = (
            joined and min(len(trace[start:end].strip()), len(trace[slice(*joined[-1])].strip())) < MIN_STEP
        )
        if is_short and start not in breaks:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _is_markable(piece: str) -> bool:
    return (
        any(c.isalnum() for c in piece)
        and "\\boxed" not in piece
        and "\\fbox" not in piece
        and THINK not in piece
        and END_THINK not in piece
    )


# --- where no marker may stand ---------------------------------------------------------------------------

_OPENERS = re.compile(
    r"""(?P<fence>^[ \t]*(?:`{3,}|~{3,}))
      | (?P<environment>\\begin\{(?P<name>[^{}\n]*)\})
      | (?P<display>\\\[) | (?P<inline>\\\() | (?P<dollars>\$\$)
      | (?P<box>\\(?:boxed|fbox)[ \t]*\{)
      | (?P<ticks>`+)
      | \\.""",
    re.MULTILINE | re.VERBOSE | re.DOTALL,
)
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n")


def _delimited(text: str) -> Iterator[Interval]:
    """All but single dollars. What is never closed goes to the end: of its paragraph, or of the text."""
    at = 0
    while opened := _OPENERS.search(text, at):
        at = opened.end()
        end: int | None
        match opened.lastgroup:
            case "fence":
                fence = opened[0].strip()
                closing = re.compile(rf"^[ \t]*{re.escape(fence)}[`~]*[ \t]*$", re.MULTILINE)
                end = _after(closing, text, _line_end(text, at)) or len(text)
            case "environment" | "name":
                closing = re.compile(re.escape(f"\\end{{{opened['name']}}}"))
                end = _after(closing, text, at) or len(text)
            case "display":
                end = _after(_CLOSE_DISPLAY, text, at) or _paragraph_end(text, at)
            case "inline":
                end = _after(_CLOSE_INLINE, text, at) or _paragraph_end(text, at)
            case "dollars":
                end = _after(_CLOSE_DOLLARS, text, at) or _paragraph_end(text, at)
            case "box":
                end = _brace_end(text, at) or len(text)
            case "ticks":
                closing = re.compile(rf"(?<!`){opened[0]}(?!`)")
                end = _after(closing, text, at)
                if end is None or end > _paragraph_end(text, at):
                    continue  # a tick and nothing more
            case _:
                continue  # an escaped character
        yield opened.start(), end
        at = end


_CLOSE_DISPLAY = re.compile(r"(?<!\\)(?:\\\\)*\\\]")
_CLOSE_INLINE = re.compile(r"(?<!\\)(?:\\\\)*\\\)")
_CLOSE_DOLLARS = re.compile(r"(?<!\\)\$\$")


def _after(closing: re.Pattern[str], text: str, at: int) -> int | None:
    found = closing.search(text, at)
    return found.end() if found else None


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _paragraph_end(text: str, at: int) -> int:
    found = _PARAGRAPH_END.search(text, at)
    return found.start() if found else len(text)


def _brace_end(text: str, at: int) -> int | None:
    """After the brace that is open before `at`."""
    depth = 1
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] in "{}":
            depth += 1 if text[at] == "{" else -1
            if depth == 0:
                return at + 1
        at += 1
    return None


def _dollars(text: str) -> Iterator[Interval]:
    """Formulas between single dollars, none of which crosses a blank line.

    A dollar may also be money. There are two ways to pair them, as they come and as Pandoc does; where the
    two do not agree, all from a paragraph's first dollar to its last is taken for a formula.
    """
    start = 0
    for end in [*(found.start() for found in _PARAGRAPH_END.finditer(text)), len(text)]:
        signs = [at for at in range(start, end) if text[at] == "$" and not _is_escaped(text, at)]
        simple = list(zip(signs[::2], signs[1::2], strict=False))
        if len(signs) % 2 == 0 and simple == list(_pandoc_pairs(text, signs)):
            yield from ((a, b + 1) for a, b in simple)
        elif len(signs) > 1:
            yield signs[0], signs[-1] + 1
        start = end


def _pandoc_pairs(text: str, signs: Sequence[int]) -> Iterator[Interval]:
    """An opening dollar has no blank after it, a closing one none before it and no digit after it."""
    opened: int | None = None
    for at in signs:
        follows, precedes = text[at + 1 : at + 2], text[at - 1 : at] if at else ""
        if opened is None:
            opened = at if follows.strip() else None
        elif precedes.strip() and not follows.isdigit():
            yield opened, at
            opened = None


def _is_escaped(text: str, at: int) -> bool:
    slashes = 0
    while at - slashes > 0 and text[at - slashes - 1] == "\\":
        slashes += 1
    return slashes % 2 == 1
