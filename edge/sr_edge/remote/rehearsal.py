"""What would leave, without anything leaving: a remote that only takes down the first request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sr_edge.remote.endpoint import Preview
from sr_edge.roles import Message, Outcome


class Previews(Protocol):
    @property
    def name(self) -> str: ...
    def preview(self, messages: Sequence[Message], answer: str, max_tokens: int) -> Preview: ...


class Rehearsal:
    """A `RemoteModel` that writes nothing; `preview` is the request of the first span."""

    def __init__(self, endpoint: Previews) -> None:
        self._endpoint = endpoint
        self.preview: Preview | None = None

    @property
    def name(self) -> str:
        return self._endpoint.name

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> NothingWritten:
        if self.preview is None:
            self.preview = self._endpoint.preview(messages, answer, max_tokens)
        return NothingWritten()


class NothingWritten:
    """A span that is over as soon as it began."""

    def read(self, timeout: float) -> str | None:
        return None

    @property
    def outcome(self) -> Outcome:
        return Outcome("stop")

    def close(self) -> None:
        pass
