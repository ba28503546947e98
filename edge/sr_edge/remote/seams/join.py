"""The whitespace between the answer and what goes on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sr_edge.remote.seams.part import Part

if TYPE_CHECKING:
    from sr_edge.remote.seams.repeat import Repeat
    from sr_edge.remote.seams.think import Think
    from sr_edge.remote.seams.wrapping import Announcement, Wrapping


# --- whitespace ---------------------------------------------------------------------------------------------


class Join(Part):
    """The whitespace between the answer and a reply that goes on from it without its last whitespace."""

    def __init__(self, full: str) -> None:
        super().__init__()
        self._body = full.rstrip()
        self._there = full[len(self._body) :]

    def _decide(self, *, is_whole: bool) -> str | None:
        text = self._held.lstrip()
        if not text and not is_whole:
            return None
        space = self._held[: len(self._held) - len(text)]
        return self._joint(space, text) + text

    def _joint(self, space: str, text: str) -> str:
        if not self._body:
            return ""
        there = self._there
        if there:
            space = space[len(there) :] if space.startswith(there) else ""
        if "\n" in there + space:
            return _at_most_one_blank_line(there, space)
        return "" if there else re.sub(r"^ +\Z", " ", space)


class ExactJoin(Join):
    """The same where the answer was sent to the last space: the reply's own is kept, but for what is too much
    of it."""

    def __init__(self, full: str, announcement: Announcement | None = None) -> None:
        super().__init__(full)
        self._announcement = announcement

    def _joint(self, space: str, text: str) -> str:
        if self._announcement is not None and self._announcement.dropped:
            return " " if text and not self._there and _wants_space(self._body, text[0]) else ""
        if "\n" in self._there + space:
            return _at_most_one_blank_line(self._there, space)
        return space.lstrip(" ") if self._there.endswith(" ") else re.sub(r"^ {2,}", " ", space)


class TurnJoin(Join):
    """The same for a turn of its own, whose first whitespace tells little."""

    def __init__(self, full: str, think: Think, wrapping: Wrapping, repeat: Repeat) -> None:
        super().__init__(full)
        self._think = think
        self._wrapping = wrapping
        self._repeat = repeat

    def _joint(self, space: str, text: str) -> str:
        if self._repeat.shows_join:
            return super()._joint(space, text)  # it shows by itself how it goes on
        if self._wrapping.reopens_code:
            return space.removeprefix("\n") if "\n" in self._there else space
        if not text or self._there:
            return ""
        if not space or ("\n" in space and (self._think.dropped or self._wrapping.dropped)):
            return " " if _wants_space(self._body, text[0]) else ""
        return super()._joint(space, text)


def _at_most_one_blank_line(there: str, space: str) -> str:
    room = max(0, 2 - there.count("\n"))
    if space.count("\n") <= room:
        return space
    indentation = space.rpartition("\n")[2]
    return "\n" * room + (indentation if room or not there.endswith(" ") else "")


_NO_SPACE_AFTER = frozenset("([{“„«\u2018\\^_-/–—~@#&")

_SPACE_BEFORE = frozenset("=+<>&“„«\u2018\\")

UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\uff00-\uffef]")
"""Thai, Lao, Burmese, Khmer, Chinese and Japanese, and their punctuation."""


def _wants_space(body: str, first: str) -> bool:
    """Between the answer's last character and the first of a turn that was asked to go on from it."""
    last = body[-1]
    if last in _NO_SPACE_AFTER or UNSPACED.match(last) or UNSPACED.match(first):
        return False
    paragraph = body.rpartition("\n\n")[2]
    if last in '$"`' and paragraph.count(last) % 2:
        return False  # it opens something
    if first in '$"`':
        return paragraph.count(first) % 2 == 0  # it opens something
    return first.isalnum() or first in _SPACE_BEFORE
