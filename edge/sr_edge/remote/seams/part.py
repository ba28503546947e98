"""One step of a seam: it looks at the beginning of what it is given, and lets the rest through."""

from __future__ import annotations

from typing import Literal

Dropped = Literal["echo", "overlap", "preamble", "think", "closing"]

MAX_HELD = 400
"""Characters of whitespace, or that may be a preamble; and where in the answer's end an overlap may begin."""


class Part:
    """A step that looks at the beginning of what it is given, and lets everything after it through.

    `_decide` is asked after each character; it says None while it can't tell.
    """

    def __init__(self) -> None:
        self.dropped: list[Dropped] = []
        self._held = ""
        self._is_open = False  # decided: the rest goes through

    def push(self, text: str) -> str:
        if self._is_open:
            return text
        for at, character in enumerate(text):
            self._held += character
            decided = self._decide(is_whole=False)
            if decided is not None:
                self._is_open = True
                return decided + text[at + 1 :]
        return ""

    def flush(self) -> str:
        if self._is_open:
            return ""
        self._is_open = True
        return self._decide(is_whole=True) or ""

    def _decide(self, *, is_whole: bool) -> str | None:
        """What of `_held` goes on, once that is certain."""
        raise NotImplementedError


QUOTES = "\"'“”„«»\u2018’`"

CLOSING_QUOTE = {"“": "”", "„": "“", "«": "»", "\u2018": "’"}
