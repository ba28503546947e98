"""What a chat puts after a continuation: what closes the wrapping, and farewells."""

from __future__ import annotations

import re

from sr_edge.remote.seams.part import MAX_HELD, Part


class Ending(Part):
    """What closes the wrapping, and what is written after that."""

    def __init__(self, tags: tuple[str, ...], closers: list[str]) -> None:
        super().__init__()
        self._tags = tags
        self._closers = closers
        self._is_over = False
        self._depth = 0  # of fences inside of ours

    def push(self, text: str) -> str:
        out: list[str] = []
        for character in text:
            if self._is_over:
                break
            if self._held or character.isspace() or character in "<`" or character in self._closers:
                out.append(self._look_at(character))
            else:
                out.append(character)
        return "".join(out)

    def flush(self) -> str:
        text, self._held = self._held, ""
        if self._is_over:
            return ""
        self._is_over = True
        for closer in self._closers:
            if text.rstrip().endswith(closer):
                text = text.rstrip().removesuffix(closer).rstrip()
        return text

    def _look_at(self, character: str) -> str:
        """What is certain to be no end, once `character` has come too."""
        self._held += character
        text = self._held.lstrip()
        if text in self._tags or self._closes_fence():
            self._is_over, self._held = True, ""
            return ""
        may_end = (
            any(tag.startswith(text) for tag in self._tags)
            or text.rstrip() in self._closers
            or ("```" in self._closers and "```".startswith(text))
        )
        if may_end and len(self._held) < MAX_HELD:
            return ""
        if re.fullmatch(r"\s*\n[ \t]*```[^\s`]", self._held):
            self._depth += 1
        self._held, before = "", self._held[:-1]
        if before and (character.isspace() or character in "<`" or character in self._closers):
            return before + self._look_at(character)
        return before + character

    def _closes_fence(self) -> bool:
        if "```" not in self._closers or not re.fullmatch(r"\s*\n[ \t]*```[ \t]*\n", self._held):
            return False
        self._depth -= 1
        return self._depth < 0


_FAREWELLS = (
    "i hope this helps", "i hope that helps", "i hope this clarifies", "hope this helps", "hope that helps",
    "let me know if", "let me know whether", "please let me know", "feel free to ask",
    "feel free to reach out", "feel free to let me know", "please feel free to", "if you have any questions",
    "if you have any other questions", "if you have any further questions", "if you have any more questions",
    "if you need anything else", "if you need any further", "if you need any more", "would you like me to",
    "is there anything else",
)  # fmt: skip

_FAREWELL = re.compile(rf"(?:{'|'.join(_FAREWELLS)})\b[^\n.!?]{{0,140}}[.!?]+[^\w\n]*\s*", re.IGNORECASE)


class Closing(Part):
    """A paragraph at the very end that takes leave of the reader. It is held, with the break before it, while
    it may be one."""

    def push(self, text: str) -> str:
        return "".join(map(self._look_at, text))

    def flush(self) -> str:
        text, self._held = self._held, ""
        if text.strip() and not _after_farewells(text.lstrip()):
            self.dropped.append("closing")
            return ""
        return text

    def _look_at(self, character: str) -> str:
        """What is certain to be none, once `character` has come too."""
        self._held += character
        if len(self._held) < MAX_HELD and self._may_be_one():
            return ""
        text, self._held = self._held, ""
        if character.isspace() and len(text) > 1:
            return text[:-1] + self._look_at(character)
        return text

    def _may_be_one(self) -> bool:
        text = self._held.lstrip()
        if not text:
            return True
        if self._held[: -len(text)].count("\n") < 2:
            return False
        rest = _after_farewells(text).lower()
        is_begun = any(rest.startswith(farewell) for farewell in _FAREWELLS)
        return (is_begun and "\n" not in rest) or any(farewell.startswith(rest) for farewell in _FAREWELLS)


def _after_farewells(text: str) -> str:
    while found := _FAREWELL.match(text):
        text = text[found.end() :]
    return text
