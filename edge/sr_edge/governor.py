"""How many threads decode: fewer while other programs need the cores, all of them when they do no longer.

Threads that compute one token wait for each other some 500 times. As soon as one of them has to share its
core they all wait for it, and two threads are slower than one. Here is decided when that is so, from what
single tokens take; nothing here knows llama.cpp. The measures are named at their constants.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

SLOW: Final = 1.75
"""Times what a token takes at its best. Noise of an idle machine stays below, one competitor above."""
OVERDUE: Final = 3.0
"""Times the same: a token that takes as long is not waited for, but begun again with fewer threads."""
LEAST_LIMIT: Final = 0.05
"""Seconds in which nothing is overdue."""

_IN_A_ROW = 2  # slow tokens before something is done about it
_WARM_UP = 2  # tokens after loading, in which weights may come from the disk
_NO_FASTER = 1.15  # more threads that take so many times as long as fewer are slow, whatever they took before
_HELPS = 0.9  # of what a token took with more threads: else fewer were no help
_TRIED = 3  # tokens until that is known
_BUCKET = 1024  # tokens of context
_GROWTH = 0.25  # what a token may take longer for each bucket; measured: 0.05 for a 1.5B
_SPARE = 0.25  # of a core: what other programs may use of those that are wanted
_LOOK = 0.5  # seconds between two looks at the other programs
_FIRST_WAIT, _LONGEST_WAIT = (
    1.0,
    64.0,
)  # seconds before more threads are tried; doubled when that was too early
_RELAPSE = 10.0  # seconds after which it was not too early
_PATIENCE: Mapping[bool | None, float] = MappingProxyType({True: 1.0, None: 4.0, False: 16.0})
"""Times the wait: where the cores are known to be free, where nothing is known, where they are in use."""


class Pace:
    """What one token of one model takes at its best, by threads and length of the context."""

    def __init__(self, known: Mapping[int, float] = MappingProxyType({})) -> None:
        """Args:
        known: seconds by number of threads, with little context.
        """
        self._best: dict[int, dict[int, float]] = {n: {0: seconds} for n, seconds in known.items()}
        self._to_warm_up = _WARM_UP
        self.num_slow = 0
        """Tokens in a row."""

    @property
    def is_warm(self) -> bool:
        """Whether the first tokens, which tell nothing, are over."""
        return self._to_warm_up == 0

    def warm_up(self) -> None:
        self._to_warm_up -= 1

    def expected(self, threads: int, length: int) -> float | None:
        """Seconds, from above: of a context that was not seen yet it is guessed. None: nothing is known."""
        best, bucket = self._best.get(threads), length // _BUCKET
        if not best:
            return None
        if bucket not in best:
            best[bucket] = min(
                seconds * (1 + _GROWTH * max(0, bucket - other)) for other, seconds in best.items()
            )
        return best[bucket]

    def expected_of_fewer(self, threads: int, length: int) -> float | None:
        """The shortest that is expected of any smaller number of threads."""
        known = [self.expected(n, length) for n in [*self._best] if n < threads]
        return min((seconds for seconds in known if seconds is not None), default=None)

    def note(self, threads: int, length: int, seconds: float) -> None:
        expected = self.expected(threads, length)
        if expected is None or seconds < expected:
            self._best.setdefault(threads, {})[length // _BUCKET] = seconds

    def forget(self) -> None:
        """The machine is not what it was: on battery, or hot."""
        self._best.clear()
        self.num_slow = 0


@dataclass(slots=True)
class _Trial:
    """Whether fewer threads are faster."""

    pace: Pace
    lowered: int
    """Where it began."""
    above: float
    """Seconds that a token took there."""
    was_given_up: bool
    """Then it would have taken more; nobody knows how much."""
    until: float
    taken: list[float] = field(default_factory=list)
    seen: dict[int, float] = field(default_factory=dict)
    """The shortest seconds by threads, at about the same length."""


class Governor:
    """One for all models of a process, which share its cores. Use it from one thread at a time."""

    def __init__(
        self,
        *,
        cores: int,
        others: Callable[[], float | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        cores: that this process may use.
        others: how many of them other programs have used lately; None: nobody knows.
        """
        self._cores = cores
        self._others = others
        self._clock = clock
        self._lowered = 0  # how often the threads were halved
        self._changed_at = -_RELAPSE
        self._raised_at = -_RELAPSE
        self._look_at = 0.0
        self._wait = _FIRST_WAIT
        self._trial: _Trial | None = None

    def threads(self, ceiling: int) -> int:
        """For the next step of a model that may use `ceiling` of them."""
        if self._lowered:
            self._look(ceiling)
        return _halved(ceiling, self._lowered)

    def limit(self, pace: Pace, ceiling: int, length: int) -> float | None:
        """Seconds after which the next token should be begun again with fewer threads; None: never."""
        threads = _halved(ceiling, self._lowered)
        if threads == 1 or self._trial is not None or not pace.is_warm:
            return None
        expected = pace.expected(threads, length)
        return None if expected is None else max(LEAST_LIMIT, OVERDUE * expected)

    def took(self, pace: Pace, ceiling: int, length: int, seconds: float) -> None:
        """One token was decoded with `threads` of them."""
        if not pace.is_warm:
            pace.warm_up()
            return
        threads = _halved(ceiling, self._lowered)
        if self._trial is not None and self._trial.pace is pace:
            pace.note(threads, length, seconds)
            self._judge(self._trial, threads, length, seconds)
            return
        if threads > 1 and self._is_slow(pace, threads, length, seconds):
            pace.num_slow += 1
            if pace.num_slow >= _IN_A_ROW:
                self._lower(pace, seconds, was_given_up=False)
            return
        pace.num_slow = 0
        pace.note(threads, length, seconds)

    def overran(self, pace: Pace, seconds: float) -> None:
        """A token was given up after so long: see `limit`."""
        self._lower(pace, seconds, was_given_up=True)

    def _is_slow(self, pace: Pace, threads: int, length: int, seconds: float) -> bool:
        fewer = pace.expected_of_fewer(threads, length)
        if fewer is not None and seconds > _NO_FASTER * fewer:
            return True
        expected = pace.expected(threads, length)
        if expected is None:  # begun on a busy machine, it would be taken for a slow one
            return fewer is None and self._is_quiet(threads) is False
        return seconds > SLOW * expected

    def _is_quiet(self, threads: int) -> bool | None:
        used = self._others()
        return None if used is None else used <= self._cores - threads + _SPARE

    def _lower(self, pace: Pace, seconds: float, *, was_given_up: bool) -> None:
        now = self._clock()
        too_early = now - self._raised_at < _RELAPSE
        self._wait = min(2 * self._wait, _LONGEST_WAIT) if too_early else _FIRST_WAIT
        self._trial = _Trial(pace, self._lowered, seconds, was_given_up, until=now + _RELAPSE)
        self._lowered += 1
        self._changed_at = now
        pace.num_slow = 0
        self._others()  # what they use is counted from here on

    def _judge(self, trial: _Trial, threads: int, length: int, seconds: float) -> None:
        trial.taken.append(seconds)
        if len(trial.taken) < _TRIED:
            return
        trial.seen[threads] = min(trial.taken)
        if trial.seen[threads] <= _HELPS * trial.above:
            self._trial = None
        elif trial.was_given_up and threads > 1:
            trial.taken.clear()
            trial.until = self._clock() + _RELAPSE
            self._lowered += 1
        else:  # not others are in the way, as far as is known: the machine is slower now
            self._trial = None
            trial.pace.forget()
            for fewer, shortest in trial.seen.items():
                trial.pace.note(fewer, length, shortest)
            self._lowered = trial.lowered
            self._changed_at = self._clock()

    def _look(self, ceiling: int) -> None:
        """Go up again, if it is time."""
        now = self._clock()
        if self._trial is not None:
            if now < self._trial.until:
                return
            self._trial = None  # its model is silent
        if now < self._look_at:
            return
        self._look_at = now + _LOOK
        if self._raised_at == self._changed_at and now - self._raised_at >= _RELAPSE:
            self._wait = _FIRST_WAIT  # the last step up was right
        is_quiet = self._is_quiet(_halved(ceiling, self._lowered - 1))
        if now - self._changed_at >= self._wait * _PATIENCE[is_quiet]:
            self._raise(now)

    def _raise(self, now: float) -> None:
        self._lowered -= 1
        self._changed_at = self._raised_at = now


def _halved(threads: int, times: int) -> int:
    return max(1, threads >> times)
