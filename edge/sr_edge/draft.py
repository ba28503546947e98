"""The hedge of a span: what the small model writes on a branch while the large one has not begun.

If the large model begins in time the branch is dropped; else it is the answer, and no time was lost. The
draft never asks for help itself, so it may run to the end of the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from sr_edge.markers import Markers
from sr_edge.scanner import Token, scanner_for


class _Sampled(Protocol):
    @property
    def id(self) -> int: ...
    @property
    def logprob(self) -> float: ...


class Branch(Protocol):
    """What drafting needs of a fork; see `roles.LocalModel` for the meaning."""

    @property
    def ids(self) -> Sequence[int]: ...
    def sample(self, banned: Collection[int] = ()) -> _Sampled: ...
    def rewind(self, n: int) -> None: ...
    def piece(self, id: int) -> bytes: ...
    def is_end(self, id: int) -> bool: ...


class Draft:
    """Owns the end of its branch, and closes nothing."""

    def __init__(
        self, branch: Branch, markers: Markers | None, *, max_tokens: int, banned: Collection[int]
    ) -> None:
        """Args:
        max_tokens: of the branch beyond what it shares.
        banned: in the first step: the token that asked.
        """
        self._branch = branch
        self._never: frozenset[int] = frozenset()
        if markers is not None and markers.form == "token":
            self._never = frozenset(markers.open_ids + markers.close_ids)
        self._banned = self._never | set(banned)
        self._scanner = scanner_for(markers)
        self._end = len(branch.ids) + max_tokens
        self._tokens: list[Token] = []
        self.is_done = False
        """The small model has ended the answer."""

    def step(self) -> bool:
        """Write one more token. False if there is nothing more to write, or no room for it."""
        if self.is_done or len(self._branch.ids) >= self._end:
            return False
        sampled = self._branch.sample(self._banned)
        self._banned = self._never
        scan = self._scanner.push(sampled.id, sampled.logprob, self._branch.piece(sampled.id))
        self._tokens += scan.released
        if scan.opening:  # spelled as text: another word instead
            self._branch.rewind(len(self._branch.ids) - len(scan.opening))
            self._banned = self._never | {scan.opening[0].id}
        elif self._branch.is_end(sampled.id):
            self.is_done = True
        return True

    def take(self) -> Sequence[Token]:
        """All that was written, once nothing is to follow."""
        self._tokens += self._scanner.flush()
        return self._tokens
