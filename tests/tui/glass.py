"""What a terminal shows of the bytes that were written to it: as much of one as Textual needs."""

from __future__ import annotations

import codecs
import re

from rich.cells import cell_len

_ESCAPE = re.compile(
    r"\x1b(?:\[(?P<args>[0-9;?<>=!$ ]*)(?P<end>[@-~])|\](?P<osc>[^\x07\x1b]*)(?:\x07|\x1b\\)"
    r"|[PX^_](?P<text>[^\x1b]*)\x1b\\|(?P<simple>[=>78cDEHMNOZ])|[()][A-Z0-9])"
)
_MAX_ESCAPE = 4096


class Glass:
    """Rows of characters, the modes that are set, and what was in the stream that no terminal knows."""

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self.modes: set[str] = set()
        """Private modes that are on: `1049` is the alternate screen, `25` the cursor."""
        self.modes.add("25")
        self.strange: list[str] = []
        self._rows = [[" "] * columns for _ in range(lines)]
        self._x = self._y = 0
        self._rest = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> None:
        text = self._rest + self._decoder.decode(data)
        self._rest = ""
        at = 0
        while at < len(text):
            char = text[at]
            if char != "\x1b":
                self._put(char)
                at += 1
                continue
            match = _ESCAPE.match(text, at)
            if match is None:
                if len(text) - at < _MAX_ESCAPE:
                    self._rest = text[at:]  # the rest of it is still to come
                    return
                self.strange.append(text[at : at + 20])
                at += 1
                continue
            self._obey(match)
            at = match.end()

    def screen(self) -> str:
        return "\n".join("".join(row).rstrip() for row in self._rows)

    def _put(self, char: str) -> None:
        if char == "\r":
            self._x = 0
        elif char == "\n":
            self._y = min(self.lines - 1, self._y + 1)
        elif char == "\b":
            self._x = max(0, self._x - 1)
        elif char < " ":
            if char != "\x07":
                self.strange.append(char)
        else:
            width = cell_len(char)
            if width and self._x < self.columns:
                self._rows[self._y][self._x] = char
                for beside in range(self._x + 1, min(self.columns, self._x + width)):
                    self._rows[self._y][beside] = ""
            self._x = min(self.columns, self._x + width)

    def _obey(self, match: re.Match[str]) -> None:
        end, args = match["end"], match["args"] or ""
        if end is None:
            return
        if args[:1] in "?<>=" and args:
            if args[0] == "?" and end in "hl":
                names = args[1:].split(";")
                (self.modes.update if end == "h" else self.modes.difference_update)(names)
            return
        numbers = [int(one) if one.isdigit() else 0 for one in args.split(";")]
        first = numbers[0]
        if end in "Hf":
            self._y = min(self.lines, max(1, first)) - 1
            self._x = min(self.columns, max(1, numbers[1] if len(numbers) > 1 else 1)) - 1
        elif end == "A":
            self._y = max(0, self._y - max(1, first))
        elif end == "B":
            self._y = min(self.lines - 1, self._y + max(1, first))
        elif end == "C":
            self._x = min(self.columns - 1, self._x + max(1, first))
        elif end == "D":
            self._x = max(0, self._x - max(1, first))
        elif end == "G":
            self._x = min(self.columns, max(1, first)) - 1
        elif end == "J" and first == 2:
            self._rows = [[" "] * self.columns for _ in range(self.lines)]
        elif end == "K" and first == 0:
            self._rows[self._y][self._x :] = [" "] * (self.columns - self._x)
        elif end not in "mtcnqpu":
            self.strange.append(match.group())
