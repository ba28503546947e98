"""The small model's cursors: a new question goes where most of its conversation is in the cache already."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from sr_edge.local import LlamaLocal, Rendered
from sr_edge.reading import common_length

_SAME = 0.5
"""Of what a cursor holds: with so much in common, a conversation goes on, is edited, or asked again."""
_MIN_BORROWED = 16  # tokens: fewer are read as fast


@dataclass(frozen=True, slots=True)
class PoolFigures:
    cursors: int
    taken: int
    cached_tokens: int
    """Of all conversations, under way or not."""


class Pool:
    """Owns which cursor is whose. Its methods are called while nobody computes (`Turns`)."""

    def __init__(self, cursors: Sequence[LlamaLocal]) -> None:
        self._cursors = tuple(cursors)
        self._idle = list(cursors)  # the longest idle first
        self._lock = threading.Lock()  # `figures` is asked for at any time
        for cursor in cursors:
            cursor.park()

    def take(self, rendered: Rendered) -> LlamaLocal:
        """The cursor for this conversation. There is one: no more answers are written at once than there
        are."""
        return self._take(
            [
                common_length(cursor.ids, cursor.prompt_of(rendered).ids) if cursor.ids else 0
                for cursor in self._cursors
            ]
        )

    def take_for(self, ids: Sequence[int]) -> LlamaLocal:
        """The cursor for this text."""
        return self._take([common_length(cursor.ids, ids) for cursor in self._cursors])

    def give(self, cursor: LlamaLocal) -> None:
        with self._lock:
            self._idle.append(cursor)
        cursor.park()

    def figures(self) -> PoolFigures:
        with self._lock:
            taken = len(self._cursors) - len(self._idle)
        return PoolFigures(len(self._cursors), taken, sum(len(cursor.ids) for cursor in self._cursors))

    def _take(self, common: Sequence[int]) -> LlamaLocal:
        in_common = dict(zip(map(id, self._cursors), common, strict=True))
        with self._lock:
            goes_on = [one for one in self._idle if in_common[id(one)] >= max(1, _SAME * len(one.ids))]
            empty = [one for one in self._idle if not one.ids]
            cursor = max(goes_on, key=lambda one: in_common[id(one)]) if goes_on else (empty or self._idle)[0]
            self._idle.remove(cursor)
        cursor.unpark()
        lender = max(self._cursors, key=lambda one: in_common[id(one)])
        if in_common[id(lender)] >= in_common[id(cursor)] + _MIN_BORROWED:
            cursor.rewind(0)
            cursor.borrow(lender, in_common[id(lender)])
        return cursor
