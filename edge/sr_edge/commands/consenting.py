"""`--policy ask` on a terminal: what would leave is shown, and the user answers y, n, v or a."""

from __future__ import annotations

import json
import select
import sys
from collections.abc import Callable, Sequence

from sr_edge.budget import dollars
from sr_edge.commands.leaving import receiver
from sr_edge.policy import Consent, nobody
from sr_edge.report import StreamView, size
from sr_edge.roles import Message, SpanRequest
from sr_edge.session import Session
from sr_edge.terminal import safe

_POLL = 0.05  # seconds between two looks at `interrupted`


def consent_of(
    session: Session,
    told: Sequence[Message],
    view: StreamView,
    interrupted: Callable[[], bool],
) -> Consent:
    """Asks on this terminal. Without one there is nobody to ask, and nothing leaves.

    Args:
        told: the conversation.
        view: makes way for the question.
    """
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return nobody

    def consent(request: SpanRequest) -> bool:
        outside = session.outside
        assert outside is not None
        preview = outside.preview(told, request.answer, request.max_tokens)
        body = json.dumps(preview.body, ensure_ascii=False)
        most = outside.price.cost(request.sent_tokens, request.max_tokens) if outside.price else None
        cost = "cost unknown" if most is None else f"at most {dollars(most)}"
        view.make_way()
        _say(
            f"{receiver(outside.model.name, outside.endpoint.where)} wants {request.sent_tokens:,} tokens of "
            f"this conversation ({size(len(body.encode()))}, {cost})"
        )
        while not interrupted():
            match _answer("send it? y yes · n no · v view · a always: ", interrupted):
                case "y" | "yes":
                    return True
                case "a" | "always":
                    session.dial = "auto"
                    return True
                case "v" | "view":
                    _say(json.dumps(preview.body, ensure_ascii=False, indent=2))
                case "n" | "no" | None:
                    return False
        return False

    return consent


def _answer(question: str, interrupted: Callable[[], bool]) -> str | None:
    """What was typed, in small letters; None at the end of the input, or once the user stops."""
    print(question, end="", file=sys.stderr, flush=True)
    while sys.platform != "win32" and not select.select([sys.stdin], [], [], _POLL)[0]:
        if interrupted():
            return None
    line = sys.stdin.readline()
    return line.strip().lower() if line else None


def _say(text: str) -> None:
    print(safe(text), file=sys.stderr, flush=True)
