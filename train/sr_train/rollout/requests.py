"""What a rollout is asked for with, and what comes back. An engine is anything that turns one into the other.

The standard library and the client's own types only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sr_edge.events import Event, LocalToken, SpanClosed
from sr_edge.roles import Message, Policy, Schedule
from sr_edge.transcript import Transcript, fold


class Cursor(Protocol):
    """What a schedule may look at: where one answer of the small model is."""

    @property
    def ids(self) -> Sequence[int]:
        """All that the small model has read and written, the prompt included. Live: copy it to keep it."""

    def entropy(self) -> float:
        """Of the small model's next token, in nats, before temperature and truncation."""

    def piece(self, id: int) -> bytes:
        """The bytes that a token stands for; none for a control token."""


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One answer to write."""

    messages: tuple[Message, ...]
    key: tuple[int, ...]
    """Seeds its random numbers: with the same key and weights it is the same rollout, whatever it is batched
    with."""
    policy: Policy = "auto"
    """`local`: without a large model; `remote`: by the large model alone."""
    bias: float = 0.0
    """Added to the logit of the opening marker."""
    schedule: Callable[[Cursor], Schedule] | None = None
    """Decides where spans open in place of the small model's marker; None leaves it to the marker."""
    temperature: float | None = None
    """0: always the likeliest token. None: as the engine was told."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer that was written."""

    request: RolloutRequest
    events: tuple[Event, ...]
    transcript: Transcript
    remote_failed: bool
    """Whether a span was cut or left out because the large model failed: no fault of the small one's."""
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    """All ids after the prompt, as the small model's context holds them."""
    sampled: tuple[bool, ...]
    """For each of them, whether the small model sampled it: the loss mask."""
    logprobs: tuple[float, ...]
    """For each of them the small model's own log-probability, before temperature, truncation, bans and bias;
    0.0 where it was not sampled."""


class RolloutEngine(Protocol):
    """Writes rollouts."""

    def run(self, requests: Sequence[RolloutRequest], done: Callable[[int], None] = ...) -> list[Rollout]:
        """One rollout for each request, in their order.

        Args:
            done: hears the index of each request once it is answered, in the order in which that happens.
        """


def rollout_of(request: RolloutRequest, events: Iterable[Event]) -> Rollout:
    """The rollout that these events tell of."""
    events = tuple(events)
    transcript = fold(events)
    logprobs: list[float] = []
    for event in events:
        if isinstance(event, LocalToken):
            logprobs.append(event.logprob)
        elif isinstance(event, SpanClosed):
            logprobs.extend([0.0] * len(event.ids))
    return Rollout(
        request=request,
        events=events,
        transcript=transcript,
        remote_failed=transcript.degraded,
        prompt_ids=transcript.prompt_ids,
        completion_ids=transcript.ids,
        sampled=transcript.sampled,
        logprobs=tuple(logprobs),
    )
