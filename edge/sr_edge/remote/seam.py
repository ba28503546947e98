"""Makes a reply read on from the answer so far, whatever the convention by which it was asked for. Pure.

Any cut of a reply into pieces gives the same text: its beginning is decided on character by character. Held
back is only what may yet turn out to be a repetition, a preamble or whitespace: a few words, but for a reply
that repeats the answer, which is held for as long as it does; and a last paragraph that may take leave.

What is sent ends without whitespace (but for raw completions), so the reply brings its own. Where the answer
ends in whitespace already, the same whitespace of the reply is taken for that; any other gives way to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sr_edge.extract import is_thinking
from sr_edge.remote.dialects import Dialect, delimiter, is_blank
from sr_edge.remote.seams.ending import Closing, Ending
from sr_edge.remote.seams.join import ExactJoin, Join, TurnJoin
from sr_edge.remote.seams.repeat import MIN_ECHO, Echo, Repeat
from sr_edge.remote.seams.think import Think
from sr_edge.remote.seams.wrapping import Announcement, Wrapping

if TYPE_CHECKING:
    from sr_edge.remote.seams.part import Dropped, Part


class Seam:
    """Drops from a reply what is not the continuation, and joins the rest to the answer."""

    def __init__(
        self, answer: str, *, dialect: Dialect, opening: str, prompt: str = "", echoes: bool = False
    ) -> None:
        """Args:
        opening: what the template wrote before `answer`, such as an open think tag.
        prompt: the text of the prompt, where raw completions sent it.
        echoes: the server is known to repeat what was sent: no repetition is too short to be one.
        """
        min_echo = 1 if echoes else MIN_ECHO
        full = opening + answer
        self.takes_reasoning = is_thinking(full) and dialect.continues_thought
        """A reasoning field of the reply continues the open thought; else it is the server's own."""
        self._parts: list[Part] = (
            [Echo((prompt + answer, full, answer), min_echo), *_exact_parts(full)]
            if dialect.is_exact
            else list(_parts(full, dialect, min_echo))
        )

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """What was dropped so far, in the order of the reply."""
        return tuple(dropped for part in self._parts for dropped in part.dropped)

    def push(self, text: str) -> str:
        """The text that is certain by now."""
        for part in self._parts:
            text = part.push(text)
        return text

    def flush(self) -> str:
        """The rest, once the reply is complete."""
        text = ""
        for part in self._parts:
            text = part.push(text) + part.flush()
        return text


def _exact_parts(full: str) -> Iterator[Part]:
    if is_blank(full):
        return  # all that comes is the model's own
    if is_thinking(full):
        yield ExactJoin(full)
        return
    think = Think(full)
    announcement = Announcement(think)
    yield think
    yield announcement
    yield ExactJoin(full, announcement)


def _parts(full: str, dialect: Dialect, min_echo: int) -> Iterator[Part]:
    reopens = is_thinking(full) and dialect.continues_thought
    think = Think(full, reopens=reopens, is_inside=dialect.thinks_aloud)
    yield think
    if not dialect.is_asking or is_blank(full):
        yield Repeat(full, min_echo, is_asking=False)
        yield Join(full)
        return
    names = tuple(name for name in (delimiter(full), "continuation") if f"{name}>" not in full)
    closers: list[str] = []  # what is opened before the continuation, and may be closed after it
    wrapping = Wrapping(full, names, closers)
    tags = tuple(f"</{name}>" for name in names)
    repeat = Repeat(full, min_echo, is_asking=True, tags=tags, closers=closers)
    yield wrapping
    yield repeat
    yield TurnJoin(full, think, wrapping, repeat)
    yield Ending(tags, closers)
    yield Closing()
