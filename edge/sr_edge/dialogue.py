"""A conversation that goes on: the tree of its turns, the models that write, and the history that keeps all.

What the user wants comes in by method, on one thread; what the engine says is kept here before anybody is
shown it, on the engine's. Nothing is drawn here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from sr_edge.engine.host import Engine, Heard
from sr_edge.engine.messages import Answered, Died
from sr_edge.errors import EdgeError, UsageError
from sr_edge.events import Event, Finished, SpanClosed
from sr_edge.past import taken_over
from sr_edge.roles import First, Message
from sr_edge.store import (
    STATUS_OF,
    Conversation,
    HistoryError,
    Recorder,
    Status,
    Store,
    Turn,
    messages,
    title_of,
)
from sr_edge.transcript import Fold

CAN_GO_ON = frozenset({"stopped", "length", "error", "cut"})
"""Answers with these ends can be continued."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Something about the history that the user should know."""

    problem: str


class Dialogue:
    """Owns the conversation that is open. All but `hear` belongs to one thread."""

    def __init__(
        self, store: Store, engine: Callable[[Callable[[Heard], None]], Engine], *, is_kept: bool = True
    ) -> None:
        """Args:
        store: closed with the dialogue.
        engine: makes one, given who hears it.
        is_kept: whether the store outlives the dialogue; else nothing else of it may.
        """
        self._is_kept = is_kept
        self.store = store
        self.engine = engine(self.hear)
        self.show: Callable[[Heard | Kept], None] = _unseen
        """Gets all that the engine says, once it is kept; on the engine's thread."""
        self.conversation: Conversation | None = None
        self.turns: list[Turn] = []
        """From the first to the one that is shown last."""
        self.policy = "auto"
        """Of answers to come, for the history."""
        self._lock = threading.Lock()
        self._recorder: Recorder | None = None
        self._is_answering = False
        self._written: Turn | None = None  # the answer that is not among the turns yet
        self._fold = Fold()  # of it; filled on the engine's thread
        self._problem: str | None = None  # the last one that was shown

    @property
    def is_answering(self) -> bool:
        return self._is_answering

    @property
    def written(self) -> str | None:
        """The answer that was asked for last, until `reload`, whether it is still being written or not."""
        return self._written.id if self._written else None

    @property
    def running(self) -> str | None:
        """The turn that is being written."""
        recorder = self._recorder
        return recorder.turn if recorder and self.is_answering else None

    # --- moving about: nothing is sent ---------------------------------------------------------------

    def new(self) -> None:
        self._check_idle()
        self.conversation, self.turns, self._written = None, [], None

    def open(self, id: str, turn: str | None = None) -> None:
        """Args:
        turn: on the branch that is to be shown; None shows the one that was shown last.
        Raises:
            UsageError: there is no such conversation.
        """
        self._check_idle()
        conversation = self.store.conversation(id)
        head = conversation.head
        turns = self.store.thread(head) if head else []
        if turn is not None and turn not in [one.id for one in turns]:
            head = self.store.leaf(turn)
            turns = self.store.thread(head)
            self.store.set_head(conversation.id, head)
        self.conversation, self.turns, self._written = replace(conversation, head=head), turns, None

    def reload(self) -> None:
        """Read the last turn again, after an answer. What is not on disk yet stays as it is known.

        Only the last: a conversation of ten thousand spans takes a second to read. Other programs may show
        another branch meanwhile: this one stays where it is.

        Raises:
            UsageError, HistoryError: it cannot be read.
        """
        if self.conversation is None or self.is_answering:
            return
        written, self._written = self._written, None
        if written is not None:
            self.turns = [*(one for one in self.turns if one.id != written.id), self._as_known(written)]
        if not self.turns:
            return
        try:
            conversation = self.store.conversation(self.conversation.id)
            turns = [*self.turns[:-1], self.store.turn(self.turns[-1].id)]
        except EdgeError:
            if self._problem is None:
                raise
        else:
            self.conversation, self.turns = conversation, turns

    def look_again(self) -> None:
        """At the conversation's title. Raises: UsageError: it is gone."""
        if self.conversation is not None:
            self.conversation = self.store.conversation(self.conversation.id)

    def branch(self, turn: str, step: int) -> bool:
        """Show the branch before (-1) or after (1) this turn. False if there is none."""
        self._check_idle()
        siblings = [one.id for one in self.store.siblings(turn)]
        at = siblings.index(turn) + step
        if not 0 <= at < len(siblings):
            return False
        self._move_head(self.store.leaf(siblings[at]))
        return True

    # --- asking --------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A prompt, and its answer after what is shown."""
        self._check_idle()
        if self.conversation is None:
            self.conversation = self.store.new_conversation(title_of(text))
            self.turns = []
        self._ask_anew(self.turns, text, edited=False)

    def edit(self, turn: str, text: str) -> None:
        """Another prompt in the place of this one: a branch."""
        self._check_idle()
        self._ask_anew(self.turns[: self._index(turn)], text, edited=True)

    def regenerate(self, turn: str) -> None:
        """Another answer in the place of this one: a branch."""
        self._check_idle()
        at = self._index(turn)
        self._answer(self.turns[: at if self.turns[at].role == "assistant" else at + 1])

    def go_on(self, turn: str) -> None:
        """Continue an answer that was stopped, cut or failed, in its place.

        Raises:
            UsageError: it is whole.
        """
        self._check_idle()
        at = self._index(turn)
        one = self.turns[at]
        if one.status == "running":
            raise UsageError("another sr-edge is writing this answer: wait for its end")
        if one.role == "assistant" and one.status not in CAN_GO_ON:
            raise UsageError("this answer is whole: ask on, or have another one written (r)")
        if one.role == "user":
            self.regenerate(turn)
            return
        events = self.store.events(turn)
        past = taken_over(events)
        before = self.turns[:at]
        recorder = self.store.resume(turn, known=1 + len(past) if events else 0)
        with suppress(HistoryError):  # another branch is shown next time: no reason not to go on
            self.store.set_head(one.conversation, turn)
        self.turns = [*before, one]
        self._ask(recorder, before, past, _model_of(one))

    def rerun(self, turn: str, span: int, first: First) -> None:
        """Write this span again, by whom `first` says, and go on from there: a branch."""
        self._check_idle()
        at = self._index(turn)
        one = self.turns[at]
        past = taken_over(self.store.events(turn), before_span=span)
        self._answer(self.turns[:at], past=past, past_model=_model_of(one), first=first, taken_from=turn)

    def fork(self, turn: str) -> None:
        """A new conversation that holds a copy of this one up to the turn."""
        self._check_idle()
        at = self._index(turn)
        source, turns = self.conversation, self.turns[: at + 1]
        assert source is not None
        copy = self.store.new_conversation(f"{source.title} (fork)", model=source.model)
        parent: str | None = None
        for one in turns:
            if one.role == "user":
                parent = self.store.say(copy.id, parent, one.text, edited=one.edited).id
            else:
                assert parent is not None
                recorder = self.store.begin(parent, policy=one.policy, seed=one.seed)
                for event in self.store.events(one.id):
                    recorder.add(event)
                problem = recorder.close("stopped" if one.status in ("running", "cut") else one.status)
                if problem:
                    raise HistoryError(problem)
                parent = recorder.turn
        self.open(copy.id)

    def stop(self) -> None:
        self.engine.stop()

    def close(self) -> None:
        """End everything; what was written so far is kept, as stopped."""
        self.engine.close()
        self._end_recording("stopped")
        self.store.close()

    def draft(self, text: str, *, turn: str | None = None) -> None:
        """The user is typing this, in the place of `turn` if that is being edited: it may be read already."""
        if self.is_answering or self._written is not None or not text:
            return
        before = self.turns if turn is None else self.turns[: self._index(turn)]
        self.engine.draft(messages(before, prompt=text), conversation=self._kept_id)

    def remove(self, conversation: str) -> None:
        """Raises: HistoryError."""
        self.store.remove(conversation)
        self.engine.forget(conversation)

    @property
    def _kept_id(self) -> str | None:
        return self.conversation.id if self.conversation is not None and self._is_kept else None

    # --- hearing, on the engine's thread ---------------------------------------------------------------

    def hear(self, heard: Heard) -> None:
        """Keep what is to be kept, then show it. A span is shown as closed only when it is on disk."""
        if isinstance(heard, Event):
            recorder = self._recorder
            if recorder is not None:
                self._fold.add(heard)
                recorder.add(heard)
                if isinstance(heard, SpanClosed | Finished):
                    recorder.flush()
                    self._tell(recorder.problem)
        elif isinstance(heard, Died) and heard.number is None and self.engine.is_running:
            pass  # the one before: another writes by now
        elif isinstance(heard, Answered | Died):
            if isinstance(heard, Died) or heard.error:
                self._end_recording("error")
            else:  # one that was stopped before it began has no end of its own
                self._end_recording(None if self._fold.transcript.finish else "stopped")
            self._is_answering = False
        self.show(heard)

    def _end_recording(self, status: Status | None) -> None:
        with self._lock:
            recorder, self._recorder = self._recorder, None
        if recorder is not None:
            self._tell(recorder.close(status))

    def _tell(self, problem: str | None) -> None:
        if problem is not None and problem != self._problem:
            self.show(Kept(problem))
        self._problem = problem

    # --- helpers ---------------------------------------------------------------------------------------

    def _check_idle(self) -> None:
        """Raises: UsageError: an answer is being written."""
        if self.is_answering:
            raise UsageError("an answer is being written: stop it first (esc)")
        if self._written is not None:  # nobody has looked at it yet, and what comes next goes on from it
            with suppress(EdgeError):
                self.reload()

    def _index(self, turn: str) -> int:
        """Raises: UsageError: it is not among the turns."""
        at = next((n for n, one in enumerate(self.turns) if one.id == turn), None)
        if at is None:
            raise UsageError("this turn is not part of the conversation that is open (any more)")
        return at

    def _ask_anew(self, before: Sequence[Turn], text: str, *, edited: bool) -> None:
        assert self.conversation is not None
        parent = before[-1].id if before else None
        self.turns = [*before, self.store.say(self.conversation.id, parent, text, edited=edited)]
        self._answer(self.turns)

    def _answer(
        self,
        before: list[Turn],
        *,
        past: Sequence[Event] = (),
        past_model: str | None = None,
        first: First | None = None,
        taken_from: str | None = None,
    ) -> None:
        recorder = self.store.begin(before[-1].id, policy=self.policy, seed=None, taken_from=taken_from)
        self.turns = before
        self._ask(recorder, before, past, past_model, first)

    def _ask(
        self,
        recorder: Recorder,
        before: Sequence[Turn],
        past: Sequence[Event],
        past_model: str | None,
        first: First | None = None,
    ) -> None:
        told: list[Message] = messages(before)
        assert self.conversation is not None
        self._fold = Fold()
        self._written = Turn(
            id=recorder.turn,
            conversation=self.conversation.id,
            parent=before[-1].id,
            role="assistant",
            created=time.time(),
            text="",
            status="error",
            transcript=None,
            branch=1,
            branches=1,
            edited=False,
            policy=self.policy,
            seed=None,
        )
        self._recorder = recorder
        self._is_answering = True  # from here on: its end may be heard before the next line is over
        self.engine.answer(told, past=past, past_model=past_model, first=first, conversation=self._kept_id)

    def _move_head(self, turn: str) -> None:
        assert self.conversation is not None
        turns = self.store.thread(turn)
        self.store.set_head(self.conversation.id, turn)
        self.conversation, self.turns = replace(self.conversation, head=turn), turns

    def _as_known(self, turn: Turn) -> Turn:
        """The answer that is over, from what was heard of it."""
        transcript = self._fold.transcript
        status = STATUS_OF[transcript.finish] if transcript.finish is not None else turn.status
        return replace(turn, text=transcript.text, status=status, transcript=transcript)


def _unseen(heard: Heard | Kept) -> None:
    pass


def _model_of(turn: Turn) -> str | None:
    return turn.transcript.model if turn.transcript else None
