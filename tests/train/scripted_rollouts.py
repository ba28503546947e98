"""Rollouts from scripts: the client's own decoder over scripted models, no weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sr_edge.roles import Limits, Message, Outcome
from sr_edge.split import SplitDecoder
from sr_edge.testing import OPEN, Reply, ScriptedLocal, ScriptedRemote
from sr_train.rollout.requests import Rollout, RolloutRequest, rollout_of

FAILED = Outcome("error", "it is not there", fault="unreachable")


@dataclass(frozen=True)
class Script:
    """What the small model writes, `<>` where it asks, and what it is answered there."""

    text: str
    replies: tuple[str | Reply, ...] = ()

    @property
    def segments(self) -> list[list[int]]:
        *asking, last = self.text.split("<>")
        return [*([*part.encode(), OPEN] for part in asking), [*last.encode()]]


Write = Callable[[RolloutRequest], Script]


class ScriptedEngine:
    """Answers each request as `write` says, and remembers what it was asked."""

    def __init__(self, write: Write, limits: Limits = Limits()) -> None:
        self._write = write
        self._limits = limits
        self.requests: list[RolloutRequest] = []

    def run(
        self, requests: Sequence[RolloutRequest], done: Callable[[int], None] = lambda index: None
    ) -> list[Rollout]:
        self.requests += requests
        rollouts = []
        for index, request in enumerate(requests):
            script = self._write(request)
            decoder = SplitDecoder(
                ScriptedLocal(script.segments),
                None if request.policy == "local" else ScriptedRemote(script.replies),
                limits=self._limits,
                policy=request.policy,
            )
            rollouts.append(rollout_of(request, decoder.generate(request.messages)))
            done(index)
        return rollouts


def rollout(text: str, *replies: str | Reply, limits: Limits = Limits()) -> Rollout:
    request = RolloutRequest((Message("user", "How many?"),), key=(0,))
    return ScriptedEngine(lambda _: Script(text, replies), limits).run([request])[0]
