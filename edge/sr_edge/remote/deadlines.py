"""How long a span may take, on our own clock, whatever sockets or the operating system may be waiting for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

MAX_SLEEP = 5.0  # seconds that the machine may have slept during a span


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds."""

    connect: float = 4.0
    """From dialling until the request leaves: name look-up, connection, TLS."""
    first_byte: float = 10.0
    """From the request to any byte of the reply's head."""
    first_content: float = 30.0
    """From asking to the first text of the span itself: reasoning that is no part of it does not count."""
    idle: float = 10.0
    """Between two things written, such reasoning included. Comments and empty events are none."""
    total: float = 120.0
    linger: float = 0.5
    """From the finish reason to the usage that may follow it."""


def _boot_time() -> float:
    """Goes on while the machine sleeps, where there is such a clock (Linux)."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class SleepWatch:
    """Notices that the machine has slept since: one clock stood still, the other did not."""

    def __init__(
        self, awake: Callable[[], float] = time.monotonic, always: Callable[[], float] = _boot_time
    ) -> None:
        """Args:
        awake: seconds, stands still while the machine sleeps.
        always: seconds, does not.
        """
        self._awake = awake
        self._always = always
        self._gap = always() - awake()

    def has_slept(self) -> bool:
        return self._always() - self._awake() - self._gap > MAX_SLEEP
