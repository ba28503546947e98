"""Watches what the small model writes for the opening marker, and turns token bytes into text.

In token form the marker is one id. In text form it is matched on the decoded text: whatever may still
become a marker is held back, so that no text is ever shown and then taken away.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from sr_edge.markers import CLOSE_SPELLINGS, OPEN, Markers, partial_length


@dataclass(frozen=True, slots=True)
class Token:
    """A sampled token and the visible text that it completes: no marker, no half character."""

    id: int
    logprob: float
    text: str


@dataclass(frozen=True, slots=True)
class Scan:
    """What one more token makes certain: tokens to show, and after them perhaps an opening marker's own."""

    released: tuple[Token, ...] = ()
    opening: tuple[Token, ...] = ()


class Scanner(Protocol):
    def push(self, id: int, logprob: float, piece: bytes) -> Scan: ...
    def flush(self) -> tuple[Token, ...]:
        """What is still held back, once it is clear that nothing follows."""

    def restart(self) -> None:
        """Other text follows what was scanned so far."""

    def resume(self, written: bytes) -> None:
        """As `restart`; but these bytes, which were shown before, may end inside a character."""


def scanner_for(markers: Markers | None) -> Scanner:
    if markers is not None and markers.form == "text":
        return TextScanner()
    return TokenScanner(markers.open_ids[0] if markers else None)


class TokenScanner:
    def __init__(self, open_id: int | None) -> None:
        self._open_id = open_id
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int, logprob: float, piece: bytes) -> Scan:
        if id == self._open_id:
            unfinished = bool(self._utf8.getstate()[0])
            return Scan(opening=(Token(id, logprob, "\ufffd" if unfinished else ""),))
        return Scan(released=(Token(id, logprob, self._utf8.decode(piece)),))

    def flush(self) -> tuple[Token, ...]:
        return ()

    def restart(self) -> None:
        self._utf8.reset()

    def resume(self, written: bytes) -> None:
        self.restart()
        self._utf8.decode(written)


class TextScanner:
    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: list[Token] = []

    def push(self, id: int, logprob: float, piece: bytes) -> Scan:
        self._held.append(Token(id, logprob, self._utf8.decode(piece)))
        for spelling in CLOSE_SPELLINGS:  # outside a span it closes nothing: not shown
            at = _text(self._held).find(spelling)
            if at >= 0:
                self._held = _cut(self._held, at, at + len(spelling))
        text = _text(self._held)
        at = text.find(OPEN)
        if at >= 0:
            first = _tokens_before(self._held, at)
            tokens = _cut(self._held, at, at + len(OPEN))
            self._held = []
            return Scan(tuple(tokens[:first]), tuple(tokens[first:]))
        certain = _tokens_before(self._held, len(text) - partial_length(text))
        released, self._held = self._held[:certain], self._held[certain:]
        return Scan(tuple(released))

    def flush(self) -> tuple[Token, ...]:
        held, self._held = tuple(self._held), []
        return held

    def restart(self) -> None:
        self._utf8.reset()
        self._held = []

    def resume(self, written: bytes) -> None:
        self.restart()
        self._utf8.decode(written)


def _text(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)


def _tokens_before(tokens: Sequence[Token], at: int) -> int:
    """How many whole tokens lie before character `at`."""
    end = 0
    for n, token in enumerate(tokens):
        end += len(token.text)
        if end > at:
            return n
    return len(tokens)


def _cut(tokens: Sequence[Token], start: int, stop: int) -> list[Token]:
    """The same tokens, their text without the characters from `start` to `stop`."""
    out, at = [], 0
    for token in tokens:
        a = max(start - at, 0)
        b = max(stop - at, 0)
        out.append(replace(token, text=token.text[:a] + token.text[b:]))
        at += len(token.text)
    return out
