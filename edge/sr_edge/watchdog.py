"""A thread that raises the alarm when a step takes too long. It looks on only while steps are taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

_SHORTEST: Final = 0.02  # seconds between two looks: each one costs the steps some microseconds
_LONGEST: Final = 0.1
_IDLE: Final = 1.0  # seconds without a step until the thread ends


class Watchdog:
    """For one step at a time."""

    def __init__(self, alarm: Callable[[], None]) -> None:
        """Args:
        alarm: called on a thread of its own, never after `end` of the step that it is for.
        """
        self._alarm = alarm
        self._lock = threading.Lock()
        self._until: float | None = None
        self._is_overdue = False
        self._is_looking = False

    def begin(self, seconds: float) -> None:
        """A step begins, which should take less."""
        with self._lock:
            self._until = time.monotonic() + seconds
            self._is_overdue = False
            if not self._is_looking:
                self._is_looking = True
                threading.Thread(target=self._look, name="sr-edge watchdog", daemon=True).start()

    def end(self) -> bool:
        """Whether the alarm was raised."""
        with self._lock:
            self._until = None
            return self._is_overdue

    def _look(self) -> None:
        idle_since = time.monotonic()
        while True:
            with self._lock:
                now = time.monotonic()
                if self._until is not None:
                    idle_since = now
                    if now >= self._until:
                        self._until = None
                        self._is_overdue = True
                        self._alarm()
                elif now - idle_since >= _IDLE:
                    self._is_looking = False
                    return
                left = _LONGEST if self._until is None else self._until - now
            time.sleep(min(max(left, _SHORTEST), _LONGEST))
