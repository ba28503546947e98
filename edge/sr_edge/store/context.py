"""What of a conversation a model is told, and what it is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sr_edge.extract import split_reasoning
from sr_edge.roles import Message
from sr_edge.store.records import Turn
from sr_edge.terminal import safe_line

_TITLE_CHARACTERS = 60


def messages(turns: Sequence[Turn], *, prompt: str = "") -> list[Message]:
    """User and assistant in turn, and the prompt after them. Of an answer only what follows its reasoning.

    A question whose answer has nothing but reasoning is one message with the next question: chat templates
    want the two sides to alternate. One that was refused is left out.
    """
    told: list[Message] = []
    refused = {turn.parent for turn in turns if turn.status == "refused"}
    for turn in turns:
        if turn.id in refused:
            continue
        content = turn.text
        if turn.role == "assistant":
            opening = turn.transcript.opening if turn.transcript else ""
            content = split_reasoning(opening, turn.text)[1].strip()
            if not content:
                continue
        _add(told, Message(turn.role, content))
    if prompt:
        _add(told, Message("user", prompt))
    return told


def _add(told: list[Message], message: Message) -> None:
    if told and told[-1].role == message.role:
        message = replace(message, content=f"{told.pop().content}\n\n{message.content}")
    told.append(message)


def title_of(prompt: str) -> str:
    """Its beginning, on one line."""
    line = safe_line(prompt)
    if len(line) <= _TITLE_CHARACTERS:
        return line
    start = line[:_TITLE_CHARACTERS]
    return (start.rpartition(" ")[0] or start) + "…"
