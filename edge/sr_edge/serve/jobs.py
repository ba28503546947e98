"""What is asked of the desk, and what it says of that: data on its way between the network and the lanes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from sr_edge.errors import EdgeError
from sr_edge.events import Event
from sr_edge.local import SamplerSettings
from sr_edge.roles import Message, Policy


@dataclass(frozen=True, slots=True)
class Job:
    """One answer that is wanted."""

    messages: tuple[Message, ...]
    """() where `prompt` is given."""
    prompt: str | tuple[int, ...] | None
    """A raw completion, which no template is put around; ids are the model's own."""
    continues: str
    """What the answer begins with already, as visible text after the template's opening; "" for nothing."""
    sampling: SamplerSettings
    max_tokens: int
    """Of the whole answer, spans included."""
    policy: Policy
    client: str
    """Who asks, for fairness."""
    seconds: float | None = None
    """From submitting to the end; None: the desk's own limit."""


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no answer, or no more of it."""

    error: EdgeError


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing follows. Heard exactly once of each job, last."""

    is_overdue: bool
    """Its time was up."""


Heard: TypeAlias = Event | Failed | Over
"""What is heard of one job, in order: the events of its answer, if it came to that, and its end."""


class Busy(EdgeError):
    """There is no place in the queue, or no more."""

    def __init__(self, message: str, *, retry_after: int) -> None:
        """Args:
        retry_after: seconds.
        """
        super().__init__(message)
        self.retry_after = retry_after


class Ticket(Protocol):
    """Held by whoever submitted a job."""

    def cancel(self) -> None:
        """From any thread, as often as you like. One that waits never runs; one that runs stops within a
        decode step."""
