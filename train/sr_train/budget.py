"""A price for the large model's tokens that holds their share at a target: dual ascent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DAMPING = 10.0
"""How much of the price answers the present error, in units of what one step adds to it. Without it price and
share swing for ever: the share falls as long as the price is too high, not as far as it is too high."""
LIMIT = 4.0
"""The price stays within it on both sides: a right answer is worth 1."""


class DualAscent:
    """The multiplier of "the share is the target". Negative where asking must be paid for."""

    def __init__(self, target: float, rate: float) -> None:
        self.target = target
        self._rate = rate
        self._multiplier = 0.0
        self._error = 0.0

    def price(self) -> float:
        """Of all tokens of an answer; for a part of them, that part of it."""
        return _within(self._multiplier + DAMPING * self._rate * self._error)

    def update(self, mean_share: float) -> None:
        """Hear the share that the last rollouts had, all of them together."""
        if not math.isfinite(mean_share):
            return
        self._error = mean_share - self.target
        self._multiplier = _within(self._multiplier + self._rate * self._error)

    def state(self) -> dict[str, float]:
        return {"multiplier": self._multiplier, "error": self._error}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._multiplier, self._error = float(state["multiplier"]), float(state["error"])


def _within(price: float) -> float:
    return max(-LIMIT, min(LIMIT, price))
