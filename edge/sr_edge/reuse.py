"""Which ids stand for a conversation, where the cache holds its earlier answers.

A model does not write the ids that a tokenizer makes of its text, and its answers hold markers, which nobody
sees. Tokenised again, an earlier answer would be read again from there on. So the ids that were written stand
for it, where their visible text is the message's. Markers among them stay: the model wrote them, or read them
as its own, and no other control token is taken over. What others wrote is always as the tokenizer has it, so
that no prompt depends on what was asked before. Pure; standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sr_edge.markers import Markers, strip_markers


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the rendered conversation, tokenised by itself."""

    author: Literal["template", "system", "user", "assistant"]
    ids: Sequence[int]


class Words(Protocol):
    def piece(self, id: int) -> bytes:
        """The bytes that a token stands for; none for a control token."""

    def is_control(self, id: int) -> bool: ...


def as_written(
    parts: Sequence[Part], cache: Sequence[int], words: Words, markers: Markers | None
) -> list[int]:
    """The conversation's ids, an earlier answer's as they lie in the cache.

    They are taken over from the beginning up to the first answer that is another one there.
    """
    ids = [id for part in parts for id in part.ids]
    written: list[int] = []
    at = 0  # in `ids`; as far as `written` goes
    for answer in _answers(parts, ids, words):
        start = len(written) + answer.start - at  # in the cache
        if list(cache[len(written) : start]) != ids[at : answer.start]:
            break
        stop = _end_of_same(cache, start, _text(ids[answer.start : answer.stop], words), words, markers)
        if stop is None:
            break
        written += cache[len(written) : stop]
        at = answer.stop
    return written + ids[at:]


def _answers(parts: Sequence[Part], ids: Sequence[int], words: Words) -> list[slice]:
    """Where each earlier answer stands, from the control token before it to the one after it.

    White space at its ends may be one token with the template's, and a template may write think tags into it.
    """
    bounds = [0]
    for part in parts:
        bounds.append(bounds[-1] + len(part.ids))
    answers: list[slice] = []
    n = 0
    while n < len(parts):
        if parts[n].author != "assistant":
            n += 1
            continue
        start, before = bounds[n], n - 1
        if before >= 0 and parts[before].author == "template":
            start = next(
                (i + 1 for i in reversed(range(bounds[before], start)) if words.is_control(ids[i])), start
            )
        stop = None
        while n < len(parts) and parts[n].author in ("assistant", "template") and stop is None:
            if parts[n].author == "assistant":
                end = bounds[n + 1]
            else:
                stop = next((i for i in range(bounds[n], bounds[n + 1]) if words.is_control(ids[i])), None)
            n += 1
        answers.append(slice(start, end if stop is None else stop))
    return answers


def _end_of_same(
    cache: Sequence[int], start: int, text: str, words: Words, markers: Markers | None
) -> int | None:
    """Up to where the cache says this text; None if it doesn't."""
    marks = markers.open_ids + markers.close_ids if markers is not None and markers.form == "token" else ()
    stop = start
    while stop < len(cache) and (cache[stop] in marks or not words.is_control(cache[stop])):
        stop += 1
    visible = _text(cache[start:stop], words)
    if markers is not None and markers.form == "text":
        visible = strip_markers(visible)
    if not visible.startswith(text):
        return None
    rest = visible[len(text) :]
    if rest.strip():
        return None
    while rest:  # white space that the template, or who told it of the answer, cut off
        piece = words.piece(cache[stop - 1]).decode("utf-8", "replace")
        if not rest.endswith(piece):
            return None
        rest = rest[: len(rest) - len(piece)]
        stop -= 1
    if marks and markers is not None:
        last = next((id for id in reversed(cache[start:stop]) if id in marks), None)
        if last in markers.open_ids:  # the span's end went with the white space
            return None
    return stop


def _text(ids: Sequence[int], words: Words) -> str:
    return b"".join(map(words.piece, ids)).decode("utf-8", "replace")
