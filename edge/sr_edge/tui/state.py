"""What is going on, folded from what the engine says: who is waited for, and whether anything leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sr_edge.engine.host import Heard
from sr_edge.engine.messages import (
    Answered,
    Answering,
    Asked,
    Died,
    Failed,
    Loading,
    Ready,
    Working,
)
from sr_edge.events import DEGRADED_ENDS, Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started
from sr_edge.policy import Dial

Phase = Literal[
    "asleep",  # no model is loaded, and none is being loaded
    "loading",
    "reading",  # the prompt
    "local",
    "waiting",  # for the remote's first text
    "asking",  # the user, whether a span may leave
    "remote",
    "catching up",  # the small model reads what the remote wrote faster
    "stopping",
    "idle",
    "stopped",
    "failed",
]

BUSY: frozenset[Phase] = frozenset(
    {"loading", "reading", "local", "waiting", "asking", "remote", "catching up", "stopping"}
)

Link = Literal["online", "slow", "offline", "local only", "key rejected"]

SLOW = 2.0
"""Seconds to the first text, from which on a remote is called slow."""


@dataclass(slots=True)
class State:
    """One owner: the chat screen."""

    dial: Dial
    clock: Callable[[], float] = time.monotonic
    phase: Phase = "asleep"
    done: float = 0.0
    """Of the loading, 0 to 1; of the prompt, tokens."""
    total: int = 0
    since: float = 0.0
    """When the phase began."""
    remote: str = ""
    ready: Ready | None = None
    problem: str = ""
    """Why there is no model."""
    context_used: int = 0
    ttft: float | None = None
    """Of the last span."""
    is_offline: bool = False
    _link: Link = "online"
    answer_cost: float | None = None
    answer_tokens: int = 0
    """Of the remote, in this answer."""
    spent: tuple[float, int] | None = None
    """Today: US dollars and tokens of all remotes."""
    local_tokens: int = 0
    remote_tokens: int = 0
    spans: int = 0
    """Of this answer."""

    @property
    def link(self) -> Link:
        if self.ready is not None and not self.ready.leaves:
            return "local only"
        if self.dial == "local":
            return "local only"
        if self.is_offline or (self.ready is not None and self.ready.offline):
            return "offline"
        return self._link

    @property
    def is_busy(self) -> bool:
        return self.phase in BUSY

    def stopping(self) -> None:
        """The user wants the answer to end, whether it has begun or not."""
        self._enter("stopping")

    def decided(self) -> None:
        """The user has answered whether a span may leave."""
        self._enter("local")

    def add(self, heard: Heard) -> None:
        match heard:
            case Loading(done):
                self._enter("loading")
                self.done = done
            case Ready():
                self.ready, self.problem = heard, ""
                self.remote = heard.big or ""
                self._enter("idle")
            case Failed(error):
                self.problem = error
                self._enter("failed")
            case Answering():
                self.answer_cost, self.answer_tokens = None, 0
                self.local_tokens = self.remote_tokens = self.spans = 0
                self.done, self.total = 0.0, 0
                self._enter("reading")
            case Working(doing, done, total):
                if doing == "reading":
                    self.done, self.total = done, total
                if self.phase != "stopping":
                    self._enter(doing)
            case Asked(remote=remote):
                self.remote = remote
                self._enter("asking")
            case Started():
                self.context_used = len(heard.prompt_ids)
                self._write("local")
            case LocalToken():
                self.context_used += 1
                self.local_tokens += 1
                if self.phase not in ("waiting", "remote"):
                    self._write("local")
            case SpanOpened():
                self.spans += 1
                self.remote = heard.remote or self.remote
                if heard.sent_bytes:
                    self._write("waiting")
            case SpanDelta():
                self._write("remote")
            case SpanClosed():
                self.context_used += len(heard.ids)
                self.remote_tokens += heard.tokens
                self._hear_end(heard)
                self._write("local")
            case Finished():
                self._enter("stopped" if heard.reason == "cancelled" else "idle")
            case Answered(error=error, spent=spent):
                self.spent = spent or self.spent
                if self.phase not in ("idle", "stopped"):
                    self._enter("stopped" if error is None else "idle")
            case Died(reason):
                self.problem = reason
                self._enter("asleep")

    def _hear_end(self, closed: SpanClosed) -> None:
        if closed.cost is not None:
            self.answer_cost = (self.answer_cost or 0.0) + closed.cost
        self.answer_tokens += (closed.remote_completion_tokens or 0) + (closed.remote_prompt_tokens or 0)
        self.ttft = closed.ttft if closed.ttft is not None else self.ttft
        if closed.end in DEGRADED_ENDS:
            self._link = "key rejected" if "API key" in (closed.error or "") else "offline"
        elif closed.ttft is not None:
            self._link = "slow" if closed.ttft > SLOW else "online"

    def _write(self, phase: Phase) -> None:
        if self.phase != "stopping":
            self._enter(phase)

    def _enter(self, phase: Phase) -> None:
        if phase != self.phase:
            self.phase, self.since = phase, self.clock()
