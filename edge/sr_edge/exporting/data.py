"""A conversation as data: one JSON object, and the events of an answer as JSON lines.

Texts are exact. What would steer a terminal or is no character stands as an escape, which means the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sr_edge.events import Event, to_json
from sr_edge.exporting.parts import totals
from sr_edge.report import as_json
from sr_edge.terminal import safe_json
from sr_edge.transcript import Transcript

if TYPE_CHECKING:
    from sr_edge.store import Conversation, Turn

VERSION = 1


def as_object(conversation: Conversation, turns: Sequence[Turn]) -> dict[str, Any]:
    """The conversation with these of its turns. An answer is what `sr-edge ask --json` prints, and its trail:
    the texts in order, each with its writer."""
    whole = totals(turns)
    return {
        "v": VERSION,
        "conversation": {
            "id": conversation.id,
            "title": conversation.title,
            "created": conversation.created,
            "updated": conversation.updated,
            "model": conversation.model,
            "head": conversation.head,
        },
        "turns": [_turn(turn) for turn in turns],
        "usage": {**asdict(whole), "remote_share": whole.remote_share},
    }


def _turn(turn: Turn) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "id": turn.id,
        "parent": turn.parent,
        "role": turn.role,
        "created": turn.created,
        "branch": turn.branch,
        "branches": turn.branches,
    }
    if turn.role == "user":
        return {**facts, "text": turn.text, "edited": turn.edited}
    facts |= {"status": turn.status, "policy": turn.policy, "seed": turn.seed}
    if turn.transcript is None:
        return {**facts, "text": turn.text}
    return {**facts, **as_json(turn.transcript), "trail": _trail(turn.transcript)}


def _trail(transcript: Transcript) -> list[dict[str, Any]]:
    return [
        {"origin": segment.origin, "span": segment.span, "text": segment.text} for segment in transcript.trail
    ]


def json_text(conversation: Conversation, turns: Sequence[Turn]) -> str:
    """`as_object` as a file holds it."""
    value = json.dumps(as_object(conversation, turns), ensure_ascii=False, indent=2)
    return safe_json(value) + "\n"


def json_lines(events: Iterable[Event]) -> str:
    """The events of one answer, one to a line: `sr-edge replay` shows them again."""
    return "".join(f"{safe_json(to_json(event))}\n" for event in events)
