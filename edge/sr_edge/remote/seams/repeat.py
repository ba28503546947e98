"""A reply that repeats what was sent, or the end of it: what of that is meant, and what is a run-up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from sr_edge.extract import THINK
from sr_edge.remote.dialects import is_blank, split_thought
from sr_edge.remote.seams.join import UNSPACED
from sr_edge.remote.seams.part import CLOSING_QUOTE, MAX_HELD, QUOTES, Part

if TYPE_CHECKING:
    from sr_edge.remote.seams.part import Dropped


MIN_ECHO = 8
"""Characters of an answer, or of its last line, sentence or clause. Less may well be repeated by a reply that
means it: "ha", "ha ha"."""

MIN_REPEAT = 40
"""Characters at the answer's end. The same, where the answer is continued as it stands."""

MIN_OVERLAP = 3
"""Characters, whole words. The same, where a turn of its own is asked for: such like to take a run-up. A line
that is begun anew counts even if it is shorter."""


class Echo(Part):
    """Raw completions: one of the sent texts, to the letter."""

    def __init__(self, echoes: tuple[str, ...], min_echo: int) -> None:
        super().__init__()
        self._alive = [echo for echo in echoes if len(echo) >= min_echo]
        self._length = 0
        self._found = 0

    def push(self, text: str) -> str:
        # As in `Part`, but without a look at all that is held for each character: prompts are long.
        if self._is_open:
            return text
        self._held += text
        while self._length < len(self._held) and self._alive:
            at = self._length
            self._alive = [e for e in self._alive if at < len(e) and e[at] == self._held[at]]
            self._length += 1 if self._alive else 0
            if any(len(e) == self._length for e in self._alive):
                self._found = self._length
        if any(len(e) > self._length for e in self._alive):
            return ""
        return self.flush()

    def flush(self) -> str:
        if self._is_open:
            return ""
        self._is_open = True
        if self._found:
            self.dropped.append("echo")
        return self._held[self._found :]


# --- repetitions --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Run:
    """An end of the answer that a reply may begin with. Without whitespace: that may differ."""

    text: str
    at: int
    """Where in `text` it begins."""
    is_echo: bool
    """It is all that was sent, or all of that after the thought."""
    if_finished: bool = True
    """It counts where its last word ends in the reply too."""
    if_broken_off: bool = True
    """It counts where the reply goes on with its last word: "multi", "multiply"."""
    in_line: bool = False
    """It counts where the reply does not begin a new line."""


class Repeat(Part):
    """The longest end of the answer that the reply begins with: words, a line, a paragraph, or all of it."""

    def __init__(
        self,
        full: str,
        min_echo: int,
        *,
        is_asking: bool,
        tags: tuple[str, ...] = (),
        closers: list[str] | None = None,
    ) -> None:
        """Args:
        min_echo: characters of the whole answer that count as its repetition.
        tags: may stand after the repetition.
        closers: where a quotation mark is put that was opened before it.
        """
        super().__init__()
        self._is_asking = is_asking
        self._tags = tags
        self._closers = closers
        self.shows_join = False
        """What follows was written right after what the answer ends in."""
        self._alive = list(_runs(full, min_echo, is_asking=is_asking))
        self._matched = 0  # characters but whitespace
        self._quote = ""  # before them
        self._at = 0  # characters of _held that were looked at
        self._found: _Found | None = None
        self._doubtful: _Found | None = None  # depends on the next character

    def _decide(self, *, is_whole: bool) -> str | None:
        while self._at < len(self._held) and (self._alive or self._doubtful):
            self._look_at(self._held[self._at])
            self._at += 1
        if (self._alive or self._doubtful) and not is_whole:
            return None
        self._settle("")
        found = self._found
        if found is None:
            return self._held
        rest = self._held[found.end :]
        text = rest.lstrip()
        self.shows_join = True
        for tag in self._tags:
            if text.startswith(tag):
                rest, self.shows_join = text.removeprefix(tag).lstrip(), False
                break
            if tag.startswith(text) and not is_whole:
                return None
        if self._quote and self._closers is not None:
            self._closers.append(CLOSING_QUOTE.get(self._quote, self._quote))
        self.dropped.append(found.kind)
        return rest

    def _look_at(self, character: str) -> None:
        self._settle(character)
        if character.isspace():
            if character == "\n" and not self._matched:
                self._alive = [run for run in self._alive if not run.in_line]
            return
        at = self._matched
        alive = [run for run in self._alive if self._is_same(run.text[run.at + at], character)]
        if not alive and not at and self._is_asking and character in QUOTES and not self._quote:
            self._quote = character
            return
        self._matched += 1
        done = [run for run in alive if len(run.text) == run.at + self._matched]
        self._alive = [run for run in alive if len(run.text) > run.at + self._matched]
        if done:
            self._doubtful = _Found(
                self._at + 1,
                "echo" if any(run.is_echo for run in done) else "overlap",
                if_finished=any(run.if_finished for run in done),
                if_broken_off=any(run.if_broken_off for run in done),
            )
            if self._doubtful.if_finished and self._doubtful.if_broken_off:
                self._settle("")

    def _settle(self, following: str) -> None:
        """Whether the run that was met counts, by the character that follows it."""
        found, self._doubtful = self._doubtful, None
        if found is None:
            return
        last = self._held[found.end - 1]
        if not (following.isalnum() and last.isalnum()):
            counts = found.if_finished
        else:
            counts = found.if_broken_off and following.isdigit() == last.isdigit()
        self._found = found if counts else self._found

    def _is_same(self, ours: str, theirs: str) -> bool:
        # A turn begins with a capital letter, although it repeats the middle of a sentence.
        return ours == theirs or (self._is_asking and ours.lower() == theirs.lower())


@dataclass(frozen=True, slots=True)
class _Found:
    end: int
    kind: Dropped
    if_finished: bool
    if_broken_off: bool


_SURE = 20
"""Characters but whitespace: so much is repeated, not met by chance."""


def _runs(full: str, min_echo: int, *, is_asking: bool) -> Iterator[_Run]:
    """The ends of the answer that count as a repetition, in the ways in which it may have been sent."""
    if is_blank(full):
        return
    thought, text = split_thought(full)
    bases = {full.strip()}
    if thought is not None:
        joined = f"{thought.strip()}\n\n{text.strip()}".strip()
        bases = {full.lstrip().removeprefix(THINK).strip(), joined, text.strip()} - {""}
    for base in sorted(bases):
        yield from _runs_of(base, min_echo, is_asking=is_asking, space=full[len(full.rstrip()) :])


def _runs_of(base: str, min_echo: int, *, is_asking: bool, space: str) -> Iterator[_Run]:
    """Args:
    space: what `base` ended in.
    """
    before = [0, *accumulate(0 if c.isspace() else 1 for c in base)]
    squeezed = "".join(base.split())
    lines = {match.end() - 1 for match in _LINE.finditer(base)}
    words = {match.start() for match in _WORD.finditer(base, max(0, len(base) - MAX_HELD))}
    starts = _starts(base)
    for at in sorted(lines | words | starts):
        text, run = base[at:], _Run(squeezed, before[at], is_echo=at == 0)
        if at == 0 and min_echo == 1:
            yield run  # the server is known to do so
        elif _stands_twice(squeezed, run.at) or not (at in lines or any(c.isalnum() for c in text)):
            continue
        elif is_asking:
            least = 1 if at in lines else MIN_OVERLAP
            if "\n" in space:  # a new line may well begin as the last one ended
                least = MIN_ECHO
            counts = len(text) >= least and not _is_term(base, at, lines, starts)
            breaks_off = not space and _breaks_off(base, at, counts=counts)
            if counts or breaks_off:
                yield replace(run, if_finished=counts, if_broken_off=breaks_off)
        elif len(text) < MIN_ECHO or _is_term(base, at, lines, starts):
            continue
        elif at == 0 or len(text) >= MIN_REPEAT:
            yield run
        elif at in starts and "\n" not in space:
            yield replace(run, if_broken_off=_breaks_off(base, at, counts=True), in_line=True)


_LINE = re.compile(r"^\s*\S", re.MULTILINE)

_WORD = re.compile(r"(?<!\w)\w|(?<!\S)\S|[^\w\s]")

_STARTS = (
    re.compile(r"^[ \t]*(?:[-*+>#]+|\d+[.)])[ \t]+(?=\S)"),  # what marks an item, a heading, a quotation
    re.compile(r"[.!?:;…][\"'”’)\]*_]*\s+(?=\S)|[。\uff01\uff1f\uff1b\uff1a](?=\S)"),
    re.compile(r",\s+(?=\S)|[\uff0c、](?=\S)|\s[–—]\s+(?=[^\W\d]{2})"),
)


def _starts(base: str) -> set[int]:
    """Where its last line begins, in that the last sentence, and in that the last clause."""
    line = base.rpartition("\n")[2]
    ends = {0}
    for pattern in _STARTS:
        ends |= {match.end() for match in [*pattern.finditer(line)][-1:]}
    indent = len(line) - len(line.lstrip())
    return {len(base) - len(line) + max(end, indent) for end in ends}


def _stands_twice(squeezed: str, at: int) -> bool:
    """Whether what stands from `at` on stands right before that, too; it may overlap: "x * x * x *"."""
    length = len(squeezed) - at
    if length > MAX_HELD:
        return False
    return squeezed.find(squeezed[at:], max(0, at - length), len(squeezed) - 1) >= 0


RELATION = re.compile(r"[=<>≤≥≠≈≡→⇒]|\\(?:leq?|geq?|neq?|approx|equiv|to|implies|iff)\b")

OPERATOR = re.compile(rf"[-+*/^%±×÷·⋅\u2217\u2212–]|\\(?:cdot|times|div|pm)\b|{RELATION.pattern}")

_MINUS = re.compile(r"[-±\u2212–]|\\pm\b")

_COMMAND = re.compile(r"\\[A-Za-z]+")

_LETTERS = re.compile(r"[^\W\d_]+")


def _is_term(base: str, at: int, lines: set[int], starts: set[int]) -> bool:
    """Whether what stands from `at` on is what a sum, a product or a list may well go on with."""
    text = base[at:]
    if len(text) > MAX_HELD or not _is_maths(text) or not any(c.isalnum() for c in text):
        return False
    ends_in_comma = text[-1] in ",;"
    ends_open = ends_in_comma or _ends_in(OPERATOR, text)
    if at in lines and not ends_open and text[0] not in "([":
        return False  # nothing can follow it: the line is begun anew
    run = "".join(text.split())
    if (run + run).find(run, 1) < len(run):
        return True  # "2 + 2 +": the same again and again
    if len(run) >= _SURE:
        return False
    relates, num_operators = RELATION.search(text) is not None, len(OPERATOR.findall(text))
    if at in starts and (relates or num_operators > 1):
        return False
    if text[0] in "([":
        return True
    if OPERATOR.match(text):  # after "=" may come "- 5", but after no operator "* 5"
        is_signed = _MINUS.match(text) is not None and _ends_in(RELATION, text)
        return not ends_open or ends_in_comma or is_signed
    if not ends_open or (ends_in_comma and relates):
        return not num_operators  # an expression that is complete: the same can't follow it
    is_sure = relates or (ends_in_comma and num_operators > 0)
    return not (is_sure and _AFTER_WORD.search(base, max(0, at - 40), at))


def _ends_in(pattern: re.Pattern[str], text: str) -> bool:
    return any(match.end() == len(text) for match in pattern.finditer(text))


_AFTER_WORD = re.compile(r"[^\W\d_]{2,}\s+\Z")


def _is_maths(text: str) -> bool:
    """Figures with their units, single letters and operators only."""
    if _LONG_WORD.search(text):  # as a rule, and soon found
        return False
    letters = _LETTERS.findall(_UNIT.sub(" ", _COMMAND.sub(" ", text)))
    return not UNSPACED.search(text) and max(map(len, letters), default=0) <= 1


_UNIT = re.compile(r"(?<=\d) ?[^\W\d_]{2}(?![^\W_])")

_LONG_WORD = re.compile(r"(?<![^\W\d_])(?<!\\)[^\W\d_]{3}")
"""Longer than a unit, and no command."""

MIN_BROKEN_OFF = 4
"""Letters. Fewer are a word, and the next may well begin with them too: "the theorem", "per person"."""

_WHOLE = frozenset({"even", "over", "under", "four", "seven", "eight", "nine", "point"})
"""The same: "even events", "four fourths"."""


def _breaks_off(base: str, at: int, *, counts: bool) -> bool:
    """Whether a reply that goes on with the last word of what stands from `at` on has repeated it in full."""
    text = base[at:]
    if not text[-1].isalnum():
        return False
    if len(text) > MAX_HELD or any(c.isspace() for c in text) or UNSPACED.match(text[-1]):
        return counts
    if re.fullmatch(r"\d[\d.,]*\d", text):
        return base[at - 1 : at] not in (".", ",") or at == 0
    letters = text.removeprefix("\\")
    return letters.isalpha() and len(text) >= MIN_BROKEN_OFF and letters.lower() not in _WHOLE
