"""The server's own thought at the beginning of a reply."""

from __future__ import annotations

from sr_edge.extract import END_THINK, THINK, is_thinking
from sr_edge.remote.seams.part import MAX_HELD, Part

_THOUGHTS = {THINK: END_THINK, "<thinking>": "</thinking>"}


class Think(Part):
    """A think block in the content is the server's own thought. Its tag may also just re-open ours."""

    def __init__(self, full: str, *, reopens: bool = False, is_inside: bool = False) -> None:
        super().__init__()
        tags = (THINK,) if reopens else tuple(tag for tag in _THOUGHTS if tag == THINK or tag not in full)
        self._tags = tags if is_thinking(full) else (*tags, END_THINK)
        self._end = END_THINK
        self._reopens = reopens
        self._is_inside = self._is_open = is_inside
        if is_inside:
            self.dropped.append("think")

    def push(self, text: str) -> str:
        if not self._is_inside:
            text = super().push(text)
        if self._is_inside:  # perhaps since just now: `text` is then what follows the tag
            self._held += text
            _, end, after = self._held.partition(self._end)
            self._held = after if end else self._held[-len(self._end) + 1 :]
            self._is_inside = not end
            return after
        return text

    def flush(self) -> str:
        return "" if self._is_inside else super().flush()

    def _decide(self, *, is_whole: bool) -> str | None:
        text = self._held.lstrip()
        for tag in self._tags:
            if text.startswith(tag):
                self.dropped.append("think")
                self._is_inside = tag in _THOUGHTS and not self._reopens
                self._end = _THOUGHTS.get(tag, END_THINK)
                self._held = ""
                return ""
        may_be_one = any(tag.startswith(text) for tag in self._tags)
        return None if may_be_one and not is_whole and len(self._held) < MAX_HELD else self._held
