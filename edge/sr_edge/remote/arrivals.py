"""What a span's thread tells its reader, in order: frozen messages in a queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from sr_edge.remote.exchange import Stage
from sr_edge.roles import Outcome


@dataclass(frozen=True, slots=True)
class Reached:
    """A request has come so far."""

    at: float
    stage: Stage | Literal["resting"]
    """`resting`: before it is sent once more."""


@dataclass(frozen=True, slots=True)
class Content:
    """Something was written; `text` is empty where it is no part of the span, or not yet."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The text is complete. Usage may still come."""

    at: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing more comes."""

    outcome: Outcome


Arrival: TypeAlias = Reached | Content | Finished | Over
