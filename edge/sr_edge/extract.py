"""Finds the parts of an answer's text: what is reasoning, what is the answer, what is in the box. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Generic, Literal, TypeVar

THINK, END_THINK = "<think>", "</think>"

Part = Literal["reasoning", "answer"]
_Origin = TypeVar("_Origin")


def split_reasoning(opening: str, text: str) -> tuple[str, str]:
    """Reasoning and answer, without the think tags.

    Args:
        opening: what the chat template wrote before `text`; `text` may begin inside its open think tag.
    Returns:
        The answer is empty while the reasoning has not ended. Text without think tags is all answer;
        an end tag alone (a template that leaves out the begin tag) ends reasoning that began with `text`.
    """
    thinks = is_thinking(opening) or END_THINK in text.partition(THINK)[0]
    splitter = ReasoningSplitter[None](thinks=thinks)
    pieces = [*splitter.push(text, None), *splitter.flush()]
    reasoning = "".join(piece for part, piece, _ in pieces if part == "reasoning")
    return reasoning, "".join(piece for part, piece, _ in pieces if part == "answer")


def is_thinking(opening: str) -> bool:
    """Whether a think tag is open at the end of what the chat template wrote."""
    return opening.rfind(THINK) > opening.rfind(END_THINK)


class ReasoningSplitter(Generic[_Origin]):
    """The same for text that arrives in pieces, each with its origin; a possible tag is held back.

    Think tags count where reasoning can begin (at the start, and right after other reasoning) or end.
    Elsewhere they are text that somebody wrote about.
    """

    def __init__(self, *, thinks: bool) -> None:
        self._state: Literal["start", "thinking", "answer"] = "thinking" if thinks else "start"
        self._held: list[tuple[str, _Origin]] = []  # single characters

    def push(self, text: str, origin: _Origin) -> Iterator[tuple[Part, str, _Origin]]:
        """What is certain by now, in order."""
        self._held.extend((character, origin) for character in text)
        while self._held:
            held = "".join(character for character, _ in self._held)
            if self._state == "start":
                blank = len(held) - len(held.lstrip())
                if held[blank:].startswith(THINK):
                    del self._held[: blank + len(THINK)]
                    self._state = "thinking"
                elif THINK.startswith(held[blank:]):
                    return
                else:
                    self._state = "answer"
            elif self._state == "thinking" and END_THINK in held:
                at = held.index(END_THINK)
                yield from self._release(at)
                del self._held[: len(END_THINK)]
                self._state = "start"
            else:
                yield from self._release(len(held) - self._tag_begun(held))
                return

    def flush(self) -> Iterator[tuple[Part, str, _Origin]]:
        """What was held back, now that nothing follows."""
        yield from self._release(len(self._held))

    def _tag_begun(self, held: str) -> int:
        if self._state == "answer":
            return 0
        return next((n for n in range(len(END_THINK) - 1, 0, -1) if held.endswith(END_THINK[:n])), 0)

    def _release(self, n: int) -> Iterator[tuple[Part, str, _Origin]]:
        released, self._held = self._held[:n], self._held[n:]
        part: Part = "reasoning" if self._state == "thinking" else "answer"
        for origin, characters in groupby(released, key=lambda held: held[1]):
            yield part, "".join(character for character, _ in characters), origin


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}`, whose braces may be nested; None without one."""
    opener = "\\boxed{"
    at = text.rfind(opener)
    while at >= 0:
        start = at + len(opener)
        end = _closing_brace(text, start)
        if end is not None:
            return text[start:end]
        at = text.rfind(opener, 0, at)
    return None


def _closing_brace(text: str, start: int) -> int | None:
    r"""Where the brace that is open before `start` closes. `\{` and `\}` are printed braces: not counted."""
    depth, at = 1, start
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return None
