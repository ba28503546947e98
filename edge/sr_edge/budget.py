"""What the large model may cost: prices, limits, what has been spent, and how much a span may still have.

A span is granted only what every limit has room for, its prompt included; where too little is left it is
refused, and the small model goes on. What was spent on a day is kept in a file that all processes share.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from sr_edge.errors import UsageError
from sr_edge.files import locked, write_private
from sr_edge.roles import Outcome, SpanRequest

MIN_GRANT = 16
"""Tokens. A span that is cut before it has said anything costs its whole prompt for nothing."""

WARN_AT = 0.8
"""Part of a limit from which on the user is told."""


MAX_PRICE = 1e6
"""US dollars per million tokens: a dollar for each."""

MAX_TOKENS = 10**9
"""Of one span. What counts more has not counted."""

_MAX_TOTAL = 10**15  # dollars or tokens: beyond it floats are not exact, and nobody has that much


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """In US dollars."""
        prompt_cost = _bounded(self.input, MAX_PRICE) * _bounded(prompt_tokens, MAX_TOKENS)
        completion_cost = _bounded(self.output, MAX_PRICE) * _bounded(completion_tokens, MAX_TOKENS)
        return (prompt_cost + completion_cost) / 1e6


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits; None is none. Tokens are the remote's, prompts included."""

    usd_per_answer: float | None = None
    usd_per_day: float | None = None
    tokens_per_answer: int | None = None
    tokens_per_day: int | None = None
    share: float | None = None
    """Of an answer, in local tokens: the part that the remote may have written, at any moment."""


@dataclass(frozen=True, slots=True)
class Spent:
    usd: float = 0.0
    tokens: int = 0

    def __add__(self, other: Spent) -> Spent:
        usd = _bounded(self.usd, _MAX_TOTAL) + _bounded(other.usd, _MAX_TOTAL)
        return Spent(usd, self.tokens + other.tokens)


@dataclass(frozen=True, slots=True)
class Meter:
    """Holds a span against the limits. Dollars count only where a price is known."""

    budget: Budget
    price: Price | None = None

    def allowance(self, request: SpanRequest, *, answer: Spent, today: Spent) -> int | str:
        """How many tokens the span may have, at most what it asks for, or in one line why none.

        Args:
            answer, today: what has been spent so far.
        """
        limits: list[_Limit | _Share] = [*self._limits(answer, today), *self._share(request)]
        wanted = max(0, min(request.max_tokens, MAX_TOKENS))
        low, high = 0, wanted  # all limits have room for `low`, or none has for anything
        while low < high:
            middle = (low + high + 1) // 2
            if all(limit.has_room(request.sent_tokens, middle) for limit in limits):
                low = middle
            else:
                high = middle - 1
        least = min(MIN_GRANT, wanted)
        if low >= max(1, least):
            return low
        for limit in limits:
            if not limit.has_room(request.sent_tokens, least):
                return limit.refusal(request.sent_tokens, least)
        return "no tokens left for a span"

    def warnings(self, *, answer: Spent, today: Spent) -> dict[str, str]:
        """A line for each limit that is nearly used up, by its name in the settings."""
        return {
            limit.key: limit.warning()
            for limit in self._limits(answer, today)
            if limit.most and limit.used >= WARN_AT * limit.most
        }

    def _limits(self, answer: Spent, today: Spent) -> Iterator[_Limit]:
        budget = self.budget
        if self.price is not None:
            cost = self.price.cost
            yield from _limit("usd_per_answer", "answer", answer.usd, budget.usd_per_answer, cost, dollars)
            yield from _limit("usd_per_day", "day", today.usd, budget.usd_per_day, cost, dollars)
        yield from _limit(
            "tokens_per_answer", "answer", answer.tokens, budget.tokens_per_answer, _total, _tokens
        )
        yield from _limit("tokens_per_day", "day", today.tokens, budget.tokens_per_day, _total, _tokens)

    def _share(self, request: SpanRequest) -> Iterator[_Share]:
        if self.budget.share is not None:
            local, remote = request.local_tokens, request.remote_tokens
            yield _Share(
                _bounded(self.budget.share, 1), _bounded(local, _MAX_TOTAL), _bounded(remote, _MAX_TOTAL)
            )


def _limit(
    key: str,
    whose: str,
    used: float,
    most: float | None,
    cost: Callable[[float, float], float],
    show: Callable[[float], str],
) -> Iterator[_Limit]:
    """One, or none where nothing is set."""
    if most is not None:
        yield _Limit(key, whose, _bounded(used, _MAX_TOTAL), _bounded(most, _MAX_TOTAL), cost, show)


@dataclass(frozen=True, slots=True)
class _Limit:
    key: str
    whose: str
    used: float
    most: float
    cost: Callable[[float, float], float]
    """Of so many prompt tokens and so many others, in the unit of the limit."""
    show: Callable[[float], str]

    def has_room(self, prompt_tokens: int, tokens: int) -> bool:
        return self.used + self.cost(prompt_tokens, tokens) <= self.most

    def refusal(self, prompt_tokens: int, tokens: int) -> str:
        needed = self.used + self.cost(prompt_tokens, tokens)
        left = f"{self.show(max(0, self.most - self.used))} left of {self.show(self.most)}"
        state = "is used up" if self.used >= self.most else f"is too small for another span: {left}"
        of = f" of {self.show(self.most)}" if self.used >= self.most else ""
        return f"the {self.whose}'s budget{of} {state}; {self._way_out(max(needed, 2 * self.most, 1e-4))}"

    def warning(self) -> str:
        part = f"{100 * self.used / self.most:.0f} %"
        return f"{part} of the {self.whose}'s budget of {self.show(self.most)} is used up"

    def _way_out(self, value: float) -> str:
        return f"allow more: `sr-edge config set budget.{self.key} {_rounded_up(value)}`"


@dataclass(frozen=True, slots=True)
class _Share:
    most: float
    local_tokens: float
    remote_tokens: float

    def has_room(self, prompt_tokens: int, tokens: int) -> bool:
        written = self.remote_tokens + tokens
        return written <= self.most * (self.local_tokens + written)

    def refusal(self, prompt_tokens: int, tokens: int) -> str:
        return (
            f"the remote has had its share of the answer, {self.most * 100:.3g} %; allow more: "
            f"`sr-edge config set budget.share {min(1.0, 2 * self.most) or 0.5:.3g}`"
        )


def _total(prompt_tokens: float, completion_tokens: float) -> float:
    return _bounded(prompt_tokens, MAX_TOKENS) + _bounded(completion_tokens, MAX_TOKENS)


def _tokens(count: float) -> str:
    return f"{count:.0f} tokens"


def _rounded_up(value: float) -> str:
    """To one significant digit, and in plain figures."""
    unit = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return f"{max(1, math.ceil(value / unit - 1e-9)) * unit:.10f}".rstrip("0").rstrip(".")


def dollars(amount: float) -> str:
    """With two significant digits, and cents at least."""
    amount = _bounded(amount, _MAX_TOTAL)
    digits = 2 if amount == 0 else max(2, 1 - math.floor(math.log10(amount)))
    return f"${amount:.{min(digits, 8)}f}"


def _bounded(value: float, most: float) -> float:
    """Between nothing and `most`: an answer must not be lost to what a server counts. NaN is nothing."""
    return float(min(value, most)) if value > 0 else 0.0


# --- one conversation --------------------------------------------------------------------------------


class Account:
    """What one remote may cost and has cost: a `policy.Purse`. Limits per day are those of all remotes."""

    def __init__(
        self, meter: Meter, ledger: Ledger, remote: str, *, warn: Callable[[str], None] = lambda line: None
    ) -> None:
        """Args:
        warn: gets a line when a limit is nearly used up, once each, and when nothing can be saved.
        """
        self._meter = meter
        self._ledger = ledger
        self._remote = remote
        self._warn = warn
        self._warned: set[str] = set()
        self._answer = Spent()

    def begin_answer(self) -> None:
        self._answer = Spent()

    def allowance(self, request: SpanRequest) -> int | str:
        if request.is_first:
            self.begin_answer()
        return self._meter.allowance(request, answer=self._answer, today=self._ledger.spent())

    def spend(self, request: SpanRequest, outcome: Outcome, tokens: int) -> float | None:
        """Count a span. Where the remote does not say how many tokens it counts, the local ones are taken."""
        prompt_tokens = _believable(outcome.prompt_tokens)
        completion_tokens = _believable(outcome.completion_tokens)
        if prompt_tokens is None:
            is_free = outcome.end == "error" and not tokens and completion_tokens is None
            prompt_tokens = 0 if is_free else request.sent_tokens
        if completion_tokens is None:
            completion_tokens = tokens
        price = self._meter.price
        usd = None if price is None else price.cost(prompt_tokens, completion_tokens)
        spent = Spent(usd or 0.0, prompt_tokens + completion_tokens)
        self._answer += spent
        self._ledger.add(self._remote, spent.usd, spent.tokens)
        self._tell()
        return usd

    def _tell(self) -> None:
        lines = self._meter.warnings(answer=self._answer, today=self._ledger.spent())
        if self._ledger.problem is not None:
            lines["problem"] = self._ledger.problem
        for key, line in lines.items():
            if key not in self._warned:
                self._warned.add(key)
                self._warn(line)


def _believable(count: int | None) -> int | None:
    return count if count is not None and 0 <= count <= MAX_TOKENS else None


# --- what was spent ----------------------------------------------------------------------------------

KEEP_DAYS = 31

_VERSION = 1
_NANO = 1_000_000_000  # dollars are kept as whole nanodollars: sums are exact in any order
_MAX_NANO = _MAX_TOTAL * _NANO
_LOCK_SECONDS = 1.0  # an answer waits for this

_Totals = dict[str, dict[str, tuple[int, int]]]
"""From day to remote to nanodollars and tokens."""


class Ledger:
    """What each remote has cost, by local day. Several threads and processes may add at once.

    Nothing is raised: where the file can't be read or written, counting goes on in memory, `problem` says
    so, and what is missing is added as soon as it can be.
    """

    def __init__(self, path: Path, *, today: Callable[[], date] = date.today) -> None:
        self._path = path
        self._today = today
        self._unsaved: _Totals = {}
        self._lock = threading.Lock()
        self.problem: str | None = None
        """One line for the user; None if all is saved."""

    def spent(self, remote: str | None = None) -> Spent:
        """Today's.

        Args:
            remote: None for all of them.
        """
        with self._lock:  # else what is just being saved counts twice, or not at all
            totals = self._known()
        of_day = totals.get(self._day(totals), {})
        entries = [entry for name, entry in of_day.items() if remote in (None, name)]
        return Spent(sum(nano for nano, _ in entries) / _NANO, sum(tokens for _, tokens in entries))

    def add(self, remote: str, usd: float, tokens: int) -> None:
        nano, count = round(_bounded(usd, _MAX_TOTAL) * _NANO), int(_bounded(tokens, _MAX_TOTAL))
        with self._lock:
            day = self._day(self._known())
            self._unsaved = _sum(self._unsaved, {day: {remote: (nano, count)}})
            try:
                with locked(self._path, timeout=_LOCK_SECONDS):
                    self._save()
            except UsageError as error:
                self.problem = f"what is spent is counted for this run only: {error}"

    def _known(self) -> _Totals:
        """All that was spent, as far as it can be read."""
        try:
            saved = self._read() or {}
        except UsageError as error:
            self.problem = f"what was spent before is not known: {error}"
            saved = {}
        return _sum(saved, self._unsaved)

    def _day(self, totals: _Totals) -> str:
        """Today, or tomorrow where something was spent then: the clock has gone back, or the traveller."""
        today = self._today()
        tomorrow = (today + timedelta(days=1)).isoformat()
        return tomorrow if tomorrow in totals else today.isoformat()

    def _save(self) -> None:
        problem = None
        saved = self._read()
        if saved is None:
            problem = self._set_aside()
            saved = {}
        totals = _sum(saved, self._unsaved)
        newest = sorted(totals)[-KEEP_DAYS:]  # by count: a clock that jumps ahead must not clear them all
        days = {
            day: {
                name: {"nanodollars": nano, "tokens": tokens} for name, (nano, tokens) in totals[day].items()
            }
            for day in sorted({*newest, *self._unsaved})
        }
        write_private(self._path, json.dumps({"version": _VERSION, "days": days}, indent=1) + "\n")
        self._unsaved = {}
        self.problem = problem

    def _read(self) -> _Totals | None:
        """None: what is there is not ours.

        Raises:
            UsageError: it cannot be read, or a newer version wrote it.
        """
        try:
            data = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UsageError(f"{self._path} cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError):
            return None
        return _parsed(data, self._path)

    def _set_aside(self) -> str:
        """Keep what is there under another name. Returns the line that tells."""
        n = 1
        while (aside := self._path.with_name(f"{self._path.name}.corrupt-{n}")).exists():
            n += 1
        try:
            os.replace(self._path, aside)
        except OSError as error:
            raise UsageError(f"{self._path} cannot be moved: {error.strerror or error}") from None
        return f"what was spent before is not counted: the file was damaged, and is kept as {aside}"


def _parsed(data: Any, path: Path) -> _Totals | None:
    if not isinstance(data, dict):
        return None
    version = data.get("version")
    if isinstance(version, int) and version > _VERSION:
        raise UsageError(f"{path} was written by a newer sr-edge: upgrade this one")
    try:
        totals = {
            date.fromisoformat(day).isoformat(): {
                str(name): (entry["nanodollars"], entry["tokens"]) for name, entry in of.items()
            }
            for day, of in data["days"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    entries = [entry for of in totals.values() for entry in of.values()]
    return totals if all(_is_count(n, _MAX_NANO) and _is_count(t, _MAX_TOTAL) for n, t in entries) else None


def _is_count(figure: object, most: int) -> bool:
    return type(figure) is int and 0 <= figure <= most


def _sum(a: _Totals, b: _Totals) -> _Totals:
    total = {day: dict(of) for day, of in a.items()}
    for day, of in b.items():
        into = total.setdefault(day, {})
        for name, (nano, tokens) in of.items():
            had = into.get(name, (0, 0))
            into[name] = (min(had[0] + nano, _MAX_NANO), min(had[1] + tokens, _MAX_TOTAL))
    return total
