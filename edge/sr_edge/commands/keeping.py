"""How `ask` keeps its question and answer. What fails there is a line, never the end of the answer.

The history is imported where it is used: who wants none does not wait for it.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sr_edge.commands.output import note
from sr_edge.errors import UsageError
from sr_edge.events import Event, Finished, SpanClosed
from sr_edge.roles import Message

if TYPE_CHECKING:
    from sr_edge.store import Conversation, Recorder, Store, Turn


class Keeping:
    """One question and its answer: `begin`, every event through `add`, `finish`."""

    def __init__(self, *, keeps: bool, goes_on: bool = False, id: str | None = None) -> None:
        """Args:
            keeps: else nothing is written; what is there may be read.
            goes_on: with the conversation that was used last.
            id: go on with this one.
        Raises:
            UsageError: there is no such conversation.
            HistoryError: what is to be gone on with cannot be read.
        """
        self._keeps = keeps
        self._store: Store | None = None
        self._conversation: Conversation | None = None
        self._turns: list[Turn] = []
        self._recorder: Recorder | None = None
        self._has_warned = False
        self._is_finished = False
        self._begun: tuple[str, str, int | None] | None = None
        self._waiting: list[Event] | None = None  # while there is no store and may be one later
        if keeps or goes_on or id is not None:
            from sr_edge.store import HistoryError

            try:
                self._open(goes_on, id)
            except HistoryError as error:
                if goes_on or id is not None:
                    raise
                self._warn(f"{error}; this answer is kept in no history")
                self._waiting = [] if error.is_passing else None
            except BaseException:
                self._close_store()
                raise

    @property
    def conversation(self) -> str | None:
        """The one that is written in, once it has begun."""
        return self._conversation.id if self._recorder and self._conversation else None

    def told(self, question: str) -> list[Message]:
        """What the models get: what was said before, without reasoning, and the question."""
        before: list[Message] = []
        if self._turns:
            from sr_edge.store import messages

            before = messages(self._turns)
        if before and before[-1].role == "user":  # it never got an answer
            question = f"{before.pop().content}\n\n{question}"
        return [*before, Message("user", question)]

    def begin(self, question: str, *, policy: str, seed: int | None) -> None:
        """The question is on disk when this returns, unless a line said that it is not."""
        self._begun = (question, policy, seed)
        if self._keeps and self._store is not None and not self._store.is_read_only:
            from sr_edge.store import HistoryError

            try:
                self._begin(self._store)
            except HistoryError as error:
                self._warn(str(error))

    def add(self, event: Event) -> None:
        """A span is on disk before it is shown as closed."""
        if self._waiting is not None:
            self._waiting.append(event)
        self._is_finished = isinstance(event, Finished)
        if self._recorder is not None:
            self._recorder.add(event)
            if isinstance(event, SpanClosed | Finished):
                self._recorder.flush()
            if self._recorder.problem is not None:
                self._warn(f"{self._recorder.problem}; the answer is in memory, and this is tried again")

    def finish(self) -> str | None:
        """What could not be kept, in one line."""
        if self._waiting is not None and self._begun is not None:
            from sr_edge.store import HistoryError

            waiting, self._waiting = self._waiting, None
            try:
                self._try_again(waiting)
            except HistoryError as error:
                return str(error)
        if self._recorder is None:
            return None
        recorder, self._recorder = self._recorder, None
        return recorder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._recorder is not None:
            self._recorder.close(None if self._is_finished else "stopped")
        self._close_store()

    def _open(self, goes_on: bool, id: str | None) -> None:
        from sr_edge.store import Store, history_path

        self._store = Store.open(history_path(os.environ), warn=self._warn, create=self._keeps)
        if id is not None:
            self._conversation = self._store.conversation(id)
        elif goes_on:
            self._conversation = self._store.latest()
            if self._conversation is None:
                raise UsageError("no conversation to continue is kept yet: ask without -c first")
        if self._conversation is not None and self._conversation.head is not None:
            self._turns = self._store.thread(self._conversation.head)

    def _begin(self, store: Store) -> None:
        from sr_edge.store import title_of

        assert self._begun is not None
        question, policy, seed = self._begun
        if self._conversation is None:
            self._conversation = store.new_conversation(title_of(question))
        turn = store.say(self._conversation.id, self._conversation.head, question)
        self._recorder = store.begin(turn.id, policy=policy, seed=seed)

    def _try_again(self, events: list[Event]) -> None:
        """Where the file could not even be opened when the answer began."""
        self._open(goes_on=False, id=None)
        assert self._store is not None
        self._begin(self._store)
        for event in events:
            self.add(event)

    def _warn(self, line: str) -> None:
        """Once: what follows from it is no news."""
        if not self._has_warned:
            self._has_warned = True
            note(line)

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
