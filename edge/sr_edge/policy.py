"""May this span leave? Asked before each one, before anything is sent or even looked up."""

from __future__ import annotations

import time
from collections.abc import Callable

from sr_edge.events import DEGRADED_ENDS, End
from sr_edge.split import Refusal

_ANSWERED: frozenset[End] = frozenset({"handback", "stop", "boundary", "cap"})
"""Ends that prove that the remote is there. `budget` and `cancelled` may come before it was asked."""


class SpanGate:
    """Offline first, then a breaker that opens at the first failure: there is a local model to go on with.

    It stays open for `cooldown` seconds, then lets one span try. If that one fails too, or is never heard
    of again, it takes another `cooldown` until the next.
    """

    def __init__(
        self,
        *,
        offline: bool,
        uses_network: bool,
        cooldown: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        uses_network: False for a second GGUF, which offline does not keep from answering.
        clock: seconds, monotonic.
        """
        self._is_offline = offline and uses_network
        self._cooldown = cooldown
        self._clock = clock
        self._closed_until: float | None = None  # None: nothing has failed
        self._error = ""

    def refusal(self) -> Refusal | None:
        """None lets the span leave, and after a failure counts as the one try."""
        if self._is_offline:
            return Refusal("offline", "offline: nothing is sent")
        if self._closed_until is None:
            return None
        wait = self._closed_until - self._clock()
        if wait > 0:
            return Refusal("declined", f"not asked for {wait:.0f} s more, after: {self._error}")
        self._wait()
        return None

    def report(self, end: End, error: str | None) -> None:
        if end in DEGRADED_ENDS:
            self._error = error or end
            self._wait()
        elif end in _ANSWERED:
            self._closed_until = None

    def _wait(self) -> None:
        self._closed_until = self._clock() + self._cooldown
