"""May this span leave? Asked before each one, before anything is sent or even looked up.

In this order: offline, how many spans the answer may have, the breaker, the budget.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Protocol

from sr_edge.events import End
from sr_edge.roles import Gate, Grant, Outcome, Refusal, SpanRequest

Dial = Literal["auto", "ask", "local", "remote"]
"""`roles.Policy`, and `ask`: as `auto`, but the user sees what would leave, and decides."""

Consent = Callable[[SpanRequest], bool]
"""Asks the user; waits as long as it takes."""

MAX_SPANS = 12
"""Of one answer. A text that makes the small model ask again and again costs no more than this."""

COOLDOWNS = (5.0, 10.0, 20.0, 60.0)
"""Seconds without asking after the first failure in a row, the second, the third and all others."""

MAX_WAIT = 120.0
"""Seconds; a remote that asks for more is asked again all the same."""

Knock = Callable[[Callable[[bool], None]], None]
"""Asks, without waiting and without sending any user text, whether the remote is there, and calls back."""


class Purse(Protocol):
    """What spans may cost."""

    def begin_answer(self) -> None: ...
    def allowance(self, request: SpanRequest) -> int | str:
        """How many tokens the span may have, at least 1, or why none."""

    def spend(self, request: SpanRequest, outcome: Outcome, tokens: int) -> float | None:
        """Count a span that was asked for. Returns its cost in US dollars, if prices are known."""


class SpanGate:
    """The one place that says no. For one remote and one thread; only the `Breaker` may be shared."""

    def __init__(
        self,
        *,
        offline: bool,
        uses_network: bool,
        max_spans: int = MAX_SPANS,
        breaker: Breaker | None = None,
        purse: Purse | None = None,
    ) -> None:
        """Args:
        uses_network: False for a second GGUF, which offline does not keep from answering.
        purse: None where spans cost nothing.
        """
        self._is_offline = offline and uses_network
        self._max_spans = max_spans
        self._breaker = breaker or Breaker()
        self._purse = purse
        self._left = 0  # spans of this answer that were let through

    def admit(self, request: SpanRequest) -> Grant | Refusal:
        if request.is_first:
            self._left = 0
            if self._purse is not None:
                self._purse.begin_answer()
        if self._is_offline:
            return Refusal("offline", "offline: nothing is sent")
        if self._left >= self._max_spans:
            return Refusal(
                "budget",
                f"the answer has had its {self._max_spans} spans; allow more: "
                "`sr-edge config set offload.max_spans N`",
            )
        reason = self._breaker.refusal()
        if reason is not None:
            return Refusal("declined", reason)
        tokens = request.max_tokens if self._purse is None else self._purse.allowance(request)
        if isinstance(tokens, str):
            return Refusal("budget", tokens)
        self._left += 1
        return Grant(min(tokens, request.max_tokens))

    def report(self, request: SpanRequest, end: End, outcome: Outcome, tokens: int) -> float | None:
        if end != "cancelled":
            self._breaker.report(outcome)
        return None if self._purse is None else self._purse.spend(request, outcome, tokens)

    def go_offline(self) -> None:
        """For good: no span leaves from now on."""
        self._is_offline = True


def nobody(request: SpanRequest) -> bool:
    """There is nobody to ask."""
    return False


class DialGate:
    """The user's dial before another gate. It may be turned from any thread while an answer is written."""

    def __init__(self, inner: Gate | None, *, dial: Dial, leaves: bool, consent: Consent = nobody) -> None:
        """Args:
        inner: None lets every span leave.
        leaves: whether anything leaves this machine; if not, nobody is asked.
        """
        self._inner = inner
        self._leaves = leaves
        self.dial: Dial = dial
        self.consent = consent

    def admit(self, request: SpanRequest) -> Grant | Refusal:
        if self.dial == "local":
            return Refusal("declined", "local: nothing leaves this machine")
        decision = self._inner.admit(request) if self._inner else Grant(request.max_tokens)
        if not isinstance(decision, Grant) or not self._leaves or self.dial != "ask":
            return decision
        if self.consent(replace(request, max_tokens=decision.max_tokens)):
            return decision
        why = "nobody was there to ask" if self.consent is nobody else "you kept it here"
        return Refusal("declined", f"ask: {why}")

    def report(self, request: SpanRequest, end: End, outcome: Outcome, tokens: int) -> float | None:
        return self._inner.report(request, end, outcome, tokens) if self._inner else None


class Breaker:
    """Opens at the first failure: there is a local model to go on with.

    After a while it knocks, which nobody waits for, and closes once the remote has answered. Without
    somebody who can knock, one span is let through to try. A remote that does not accept the key, the
    address or the model is not asked again at all. It may be used from several threads.
    """

    def __init__(self, *, knock: Knock | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        clock: seconds, monotonic.
        """
        self._knock = knock
        self._clock = clock
        self._failures = 0  # in a row
        self._open_until: float | None = None  # None: closed
        self._is_refused = False
        self._error = ""
        self._is_knocking = False
        self._heard: bool | None = None  # written by the knocking thread
        self._lock = threading.Lock()

    def refusal(self) -> str | None:
        """Why not to ask now. None is a leave to ask, and after a failure the one try."""
        with self._lock:
            return self._refusal()

    def report(self, outcome: Outcome) -> None:
        with self._lock:
            self._report(outcome)

    def _refusal(self) -> str | None:
        if self._is_refused:
            return f"not asked again, after: {self._error}"
        if self._hear() or self._open_until is None:
            return None
        wait = self._open_until - self._clock()
        if wait > 0:
            return f"not asked for {max(wait, 1):.0f} s more, after: {self._error}"
        if self._knock is None:
            self._wait(COOLDOWNS[0])  # until the try is heard of
            return None
        if not self._is_knocking:
            self._is_knocking = True
            self._knock(self._listen)
            if self._hear():  # at once
                return None
        return f"not asked before it is known to be back, after: {self._error}"

    def _report(self, outcome: Outcome) -> None:
        if outcome.end not in ("error", "stalled"):
            self._close()
            return
        self._error = outcome.error or outcome.end
        match outcome.fault:
            case "request":
                return
            case "refused":
                self._is_refused = True
            case "busy" if outcome.retry_after is not None:
                self._wait(min(outcome.retry_after, MAX_WAIT))
            case _:
                self._fail()

    def _fail(self) -> None:
        self._wait(COOLDOWNS[min(self._failures, len(COOLDOWNS) - 1)])
        self._failures += 1

    def _wait(self, seconds: float) -> None:
        self._open_until = self._clock() + seconds

    def _close(self) -> None:
        self._failures, self._open_until = 0, None

    def _listen(self, is_there: bool) -> None:
        self._heard = is_there

    def _hear(self) -> bool:
        """Whether the remote has answered a knock just now."""
        heard, self._heard = self._heard, None
        if heard is None:
            return False
        self._is_knocking = False
        if heard:
            self._open_until = None  # how well it is, the next span tells
        else:
            self._fail()
        return heard
