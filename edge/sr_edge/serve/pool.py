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
MAX_BYTES_AWAY = 512 << 20
"""Of conversations that wait beside the model's own memory."""


@dataclass(frozen=True, slots=True)
class PoolFigures:
    cursors: int
    taken: int
    cached_tokens: int
    """Of all conversations, under way or not."""


class Pool:
    """Owns which cursor is whose. Its methods are called while nobody computes (`Turns`)."""

    def __init__(self, cursors: Sequence[LlamaLocal], *, max_bytes_away: int = MAX_BYTES_AWAY) -> None:
        self._cursors = tuple(cursors)
        self._max_bytes_away = max_bytes_away
        self._idle = list(cursors)  # the longest idle first
        self._lock = threading.Lock()  # `figures` is asked for at any time
        for cursor in cursors:
            cursor.park()

    def take(self, rendered: Rendered) -> LlamaLocal:
        """The cursor for this conversation. There is one: no more answers are written at once than there
        are."""
        prompts = [cursor.prompt_of(rendered).ids if cursor.ids else () for cursor in self._cursors]
        return self._take(prompts)

    def take_for(self, ids: Sequence[int]) -> LlamaLocal:
        """The cursor for this text."""
        return self._take([ids] * len(self._cursors))

    def give(self, cursor: LlamaLocal) -> None:
        with self._lock:
            self._idle.append(cursor)
        cursor.park()

    def figures(self) -> PoolFigures:
        with self._lock:
            taken = len(self._cursors) - len(self._idle)
        return PoolFigures(len(self._cursors), taken, sum(len(cursor.ids) for cursor in self._cursors))

    def _take(self, prompts: Sequence[Sequence[int]]) -> LlamaLocal:
        """Args:
        prompts: as each of the cursors would have it.
        """
        common: dict[int, int] = {}
        goes_on: list[LlamaLocal] = []
        for cursor, prompt in zip(self._cursors, prompts, strict=True):
            same = common[id(cursor)] = common_length(cursor.ids, prompt)
            if same and (same >= _SAME * len(cursor.ids) or same >= len(prompt) - 1):
                goes_on.append(cursor)
        with self._lock:
            going_on = [one for one in self._idle if one in goes_on]
            empty = [one for one in self._idle if not one.ids]
            chosen = max(going_on, key=lambda one: common[id(one)]) if going_on else (empty or self._idle)[0]
            self._idle.remove(chosen)
        lender = max(self._cursors, key=lambda one: common[id(one)])
        if common[id(lender)] >= common[id(chosen)] + _MIN_BORROWED:
            chosen.rewind(0)
            chosen.unpark()
            chosen.borrow(lender, common[id(lender)])
        else:
            chosen.unpark()
        self._clear_cells()
        return chosen

    def _clear_cells(self) -> None:
        """Of those who are idle: every step of the model would go over them."""
        bytes_away = 0
        for cursor in reversed(self._idle):
            cursor.put_away()
            bytes_away += cursor.bytes_away
            if bytes_away > self._max_bytes_away:
                cursor.rewind(0)
