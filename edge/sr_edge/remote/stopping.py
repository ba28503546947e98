"""Whether a server stops writing when we hang up: seen by how soon it has time for us again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from sr_edge.remote.calling import Call
from sr_edge.remote.dialects import COMPLETIONS, DIALECTS, INSTRUCT, Capabilities, Quirks, request
from sr_edge.remote.exchange import Reply
from sr_edge.remote.failure import FailedError
from sr_edge.remote.hearing import hear
from sr_edge.roles import Message, Prompt

_LONG, _SHORT = 160, 1  # tokens
_HEARD = 4  # chunks of the long reply before we hang up
_TELLING = 0.3  # seconds that the rest of it would take at least, for the difference to be seen
_QUESTION = (
    Message("user", "Count from 1 to 300, the numbers separated by spaces, and write nothing else."),
)

Ask: TypeAlias = Callable[[str, Mapping[str, Any]], Reply]


def stops(
    call: Call,
    ask: Ask,
    found: Capabilities,
    *,
    model: str | None,
    render: Callable[[Sequence[Message]], Prompt],
    clock: Callable[[], float],
) -> bool | None:
    """A server that has room for several requests at once seems to stop; None where nothing can be seen.

    Args:
        ask: posts a body to a path on `call`, for a reply that is a 200.
        found: how it is asked.
        render: a conversation as the local model reads it.
        clock: seconds, monotonic.
    """
    trial = _Trial(found.quirks, model, render(_QUESTION), is_raw=found.dialect(False).path == COMPLETIONS)

    def short() -> float:
        began = clock()
        reply = ask(*trial.of(_SHORT))
        hear(call.chunks(reply), call.hurry)
        took = clock() - began
        call.drain(reply)
        return took

    try:
        alone = short()
        times = [clock() for _ in islice(call.chunks(ask(*trial.of(_LONG))), _HEARD)]
        call.renew()
        if len(times) < _HEARD:
            return None
        rest = (times[-1] - times[0]) / (_HEARD - 1) * (_LONG - _HEARD)
        if rest < _TELLING + 2 * alone:
            return None
        return short() < alone + rest / 2
    except FailedError:
        return None


@dataclass(frozen=True, slots=True)
class _Trial:
    quirks: Quirks
    model: str | None
    prompt: Prompt
    is_raw: bool

    def of(self, max_tokens: int) -> tuple[str, dict[str, Any]]:
        dialect = DIALECTS[0] if self.is_raw else INSTRUCT
        body = request(
            dialect,
            self.quirks,
            messages=_QUESTION,
            prompt=self.prompt,
            answer="",
            sampling={"temperature": 0},
            max_tokens=max_tokens,
            model=self.model,
        )
        return dialect.path, body
