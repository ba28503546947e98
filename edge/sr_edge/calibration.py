"""How fast one model is on one machine: measured once, kept in the cache folder, and measured anew elsewhere.

What is learned of it: with how many threads a token takes least, how many tokens should be read at once, and
what a token takes at its best, which is the governor's yardstick.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from sr_edge.files import write_private

VERSION: Final = 1
BUDGET: Final = 3.0
"""Seconds that measuring may take; what is under way then is finished."""
MAX_BATCH: Final = 32
DEFAULT_BATCH: Final = 16

_TOKENS = 16  # for each number of threads
_FEWEST = 3
_SECONDS = 0.5  # for the same, where tokens are slow
_BATCHES = (16, 8, 4, 32)  # in the order of what must be known
_AS_FAST = 1.05  # times the least: then fewer threads are as good
_AS_CHEAP = 1.3  # times the least per token: then a smaller batch is better, since it need not be waited for
_BUSY = 0.5  # cores in use by others, with which nothing that is measured means anything


class Decode(Protocol):
    def __call__(self, num_tokens: int, threads: int) -> float:
        """Decode so many tokens in one batch after nothing; how many seconds that took."""


@dataclass(frozen=True, slots=True)
class Calibration:
    seconds: Mapping[int, float]
    """Of one token, by threads."""
    batch_seconds: Mapping[int, float]
    """Of a batch, by the number of its tokens, with all threads."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", MappingProxyType(dict(self.seconds)))
        object.__setattr__(self, "batch_seconds", MappingProxyType(dict(self.batch_seconds)))

    @property
    def threads(self) -> int:
        """The fewest that are as fast as any."""
        return min(
            n for n, seconds in self.seconds.items() if seconds <= _AS_FAST * min(self.seconds.values())
        )

    @property
    def batch_tokens(self) -> int:
        """The smallest batch that costs a token hardly more than the best one; at least 1."""
        each = {n: seconds / n for n, seconds in self.batch_seconds.items()}
        if DEFAULT_BATCH not in each:  # it was too slow to be measured
            return DEFAULT_BATCH
        return min(n for n, seconds in each.items() if seconds <= _AS_CHEAP * min(each.values()))


def measure(
    decode: Decode,
    *,
    cores: int,
    others: Callable[[], float | None],
    check: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> Calibration | None:
    """None if other programs were in the way.

    Args:
        cores: the most threads.
        others: how many cores other programs have used lately; None: nobody knows.
        check: called between two steps; what it raises ends the measuring.
    """
    until = clock() + BUDGET

    def step(num_tokens: int, threads: int) -> float:
        check()
        seconds = decode(num_tokens, threads)
        if is_busy(others()):
            raise _BusyError
        return seconds

    def shortest(threads: int) -> float:
        until = clock() + _SECONDS
        taken: list[float] = []
        while len(taken) < _FEWEST or (len(taken) < _TOKENS and clock() < until):
            taken.append(step(1, threads))
        return min(taken)

    try:
        step(MAX_BATCH, cores)  # weights come from the disk
        seconds = {cores: shortest(cores)}
        batches = {1: seconds[cores]}
        for num_tokens in _BATCHES:
            if clock() < until:
                batches[num_tokens] = step(num_tokens, cores)
        for threads in sorted({1, cores // 2, cores - 1} - {0, cores}, reverse=True):
            if clock() < until:
                seconds[threads] = shortest(threads)
    except _BusyError:
        return None
    return Calibration(seconds, batches)


def is_busy(others: float | None) -> bool:
    """Whether now is no time to measure."""
    return others is not None and others > _BUSY


class _BusyError(Exception):
    pass


# --- kept ----------------------------------------------------------------------------------------------


def place(folder: Path, of: Mapping[str, str]) -> Path:
    """Where a calibration is kept.

    Args:
        of: what it holds for: model, engine, machine.
    """
    digest = hashlib.sha256(json.dumps({"version": VERSION, **of}, sort_keys=True).encode()).hexdigest()
    return folder / "calibration" / f"{digest[:24]}.json"


def load(folder: Path, of: Mapping[str, str]) -> Calibration | None:
    """None if there is none, or none that can be used: then it is to be measured."""
    try:
        data = json.loads(place(folder, of).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or data.get("version") != VERSION or data.get("of") != dict(of):
        return None
    try:
        seconds, batches = _times(data.get("seconds")), _times(data.get("batch_seconds"))
    except OverflowError:
        return None
    return Calibration(seconds, batches) if seconds and batches else None


def save(folder: Path, of: Mapping[str, str], calibration: Calibration) -> None:
    """Raises: UsageError: it cannot be written."""
    data = {
        "version": VERSION,
        "of": dict(of),
        "seconds": dict(calibration.seconds),
        "batch_seconds": dict(calibration.batch_seconds),
    }
    write_private(place(folder, of), json.dumps(data, indent=1) + "\n")


def _times(value: object) -> dict[int, float] | None:
    """Seconds by number, as JSON has them, if that is what it is."""
    if not isinstance(value, dict) or not value:
        return None
    times: dict[int, float] = {}
    for number, seconds in value.items():
        if not (number.isdecimal() and number.isascii() and 0 < len(number) < 5 and int(number)):
            return None
        if not isinstance(seconds, int | float) or isinstance(seconds, bool):
            return None
        if not (math.isfinite(seconds) and seconds > 0):
            return None
        times[int(number)] = float(seconds)
    return times
