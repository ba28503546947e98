"""What travels out of the history: frozen records, and the error that says why there are none."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal

from sr_edge.errors import EdgeError
from sr_edge.events import FinishReason
from sr_edge.transcript import Transcript

Role = Literal["user", "assistant"]

Status = Literal["running", "done", "stopped", "length", "error", "refused", "cut"]
"""Of a turn. `cut`: whoever wrote it died; it is never stored, but found out."""

STATUS_OF: dict[FinishReason, Status] = {
    "stop": "done",
    "length": "length",
    "cancelled": "stopped",
    "error": "error",
    "refused": "refused",
}


class HistoryError(EdgeError):
    """The history cannot be read or written; answers do without it."""

    def __init__(self, message: str, *, is_passing: bool = False) -> None:
        """Args:
        is_passing: whether it may go by itself, such as a full disk: to try again is worth it.
        """
        super().__init__(message)
        self.is_passing = is_passing


@dataclass(frozen=True, slots=True)
class Conversation:
    """Times are seconds since 1970, for people: order is by use, whatever the clock said."""

    id: str
    title: str
    created: float
    updated: float
    head: str | None
    """The turn that is shown last."""
    turns: int
    """Of all branches."""
    model: str


@dataclass(frozen=True, slots=True)
class Turn:
    id: str
    conversation: str
    parent: str | None
    role: Role
    created: float
    text: str
    """What the user typed, or what of the answer is visible so far, without the opening."""
    status: Status
    transcript: Transcript | None
    """Of an answer. Its `ids` and `sampled` are empty: the events have them."""
    branch: int
    """Its place among those that could stand here, from 1."""
    branches: int
    edited: bool
    policy: str
    seed: int | None


@dataclass(frozen=True, slots=True)
class Hit:
    conversation: Conversation
    turn: str
    role: Role
    snippet: str
    """What stands around the words that were found, each between \\x02 and \\x03."""
    at: float
    """When the turn was begun."""


@dataclass(frozen=True, slots=True)
class RemoteStats:
    """What one large model did."""

    remote: str
    spans: int
    tokens: int
    """Local ones."""
    sent_bytes: int
    cost: float | None


@dataclass(frozen=True, slots=True)
class Stats:
    conversations: int
    prompts: int
    answers: int
    cut: int
    """Answers that were cut."""
    local_tokens: int
    remote_tokens: int
    spans: int
    sent_bytes: int
    cost: float | None
    """US dollars; None where no price was known."""
    remotes: tuple[RemoteStats, ...]
    oldest: float | None
    newest: float | None
    file_bytes: int


_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # 32; no letter that looks like another


def new_id() -> str:
    """Random, so that a few characters tell two apart; order is kept elsewhere."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(12))
