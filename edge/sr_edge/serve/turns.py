"""Who computes: the answers that are written at once take turns at the models, a step at a time.

A model is used by one thread at a time, and two that compute at once would only take the cores from each
other. Turns are given first come, first served. What one conversation samples is decoded along with the step
of another (see `LlamaLocal`), so that two answers take little longer than one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, Self

from sr_edge.local import LlamaLocal
from sr_edge.markers import Markers
from sr_edge.roles import NO_BIAS, Message, Outcome, Prompt, RemoteModel, RemoteStream, Sampled

_PIECE = 64
"""Tokens: larger batches are hardly faster on a CPU, and whoever waits for one waits a second."""


class Computing(Protocol):
    """See `LlamaLocal.stop`."""

    def stop(self) -> None: ...
    def go_on(self) -> None: ...


class Player:
    """One answer, as far as turns go. It belongs to one thread; only `Turns` changes it."""

    def __init__(self) -> None:
        self.is_stopped = False
        """Whatever it computes ends at once with a `StoppedError`."""


class Turns:
    """Owns the turn. It may be taken again by who has it."""

    def __init__(self, models: Sequence[Computing]) -> None:
        self._models = models
        self._mutex = threading.Lock()
        self._holder: Player | None = None
        self._depth = 0
        self._waiting: deque[tuple[Player, threading.Lock]] = deque()

    @contextmanager
    def turn(self, player: Player) -> Iterator[None]:
        self._take(player)
        try:
            yield
        finally:
            self._give()

    def stop(self, player: Player) -> None:
        """From any thread: in the middle of a step, if it has the turn. For good."""
        with self._mutex:
            player.is_stopped = True
            if self._holder is player:
                self._stop_models()

    def _take(self, player: Player) -> None:
        with self._mutex:
            if self._holder is player:
                self._depth += 1
                return
            if self._holder is None:
                self._begin(player)
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append((player, mine))
        mine.acquire()

    def _give(self) -> None:
        with self._mutex:
            self._depth -= 1
            if self._depth:
                return
            assert self._holder is not None
            if self._holder.is_stopped:
                for model in self._models:
                    model.go_on()
            self._holder = None
            if self._waiting:
                player, theirs = self._waiting.popleft()
                self._begin(player)
                theirs.release()

    def _begin(self, player: Player) -> None:
        self._holder, self._depth = player, 1
        if player.is_stopped:
            self._stop_models()

    def _stop_models(self) -> None:
        for model in self._models:
            model.stop()


class TurnedLocal:
    """A cursor that takes the turn for each step. See `roles.LocalModel`."""

    def __init__(
        self,
        cursor: LlamaLocal,
        turns: Turns,
        player: Player,
        render: Callable[[Sequence[Message]], Prompt] | None = None,
    ) -> None:
        """Args:
        render: instead of the model's own template.
        """
        self.cursor = cursor
        self._turns = turns
        self._player = player
        self._render = render or cursor.render

    @property
    def name(self) -> str:
        return self.cursor.name

    @property
    def markers(self) -> Markers | None:
        return self.cursor.markers

    @property
    def ids(self) -> Sequence[int]:
        return self.cursor.ids

    @property
    def room(self) -> int:
        return self.cursor.room

    @property
    def batch_tokens(self) -> int:
        return self.cursor.batch_tokens

    def render(self, messages: Sequence[Message]) -> Prompt:
        return self._render(messages)

    def tokenize(self, text: str) -> list[int]:
        return self.cursor.tokenize(text)

    def piece(self, id: int) -> bytes:
        return self.cursor.piece(id)

    def is_end(self, id: int) -> bool:
        return self.cursor.is_end(id)

    def sample(self, banned: Collection[int] = (), logit_bias: Mapping[int, float] = NO_BIAS) -> Sampled:
        with self._turns.turn(self._player):
            return self.cursor.sample(banned, logit_bias)

    def feed(self, ids: Sequence[int], *, probe: bool | Sequence[bool] = False) -> list[float]:
        """A long prompt is read in pieces, so that others have their turn meanwhile."""
        before = len(self.cursor.ids)
        if probe or len(ids) <= _PIECE or len(ids) > self.cursor.room:
            with self._turns.turn(self._player):
                return self.cursor.feed(ids, probe=probe)
        try:
            for at in range(0, len(ids), _PIECE):
                with self._turns.turn(self._player):
                    self.cursor.feed(ids[at : at + _PIECE])
        except BaseException:
            self.rewind(before)
            raise
        return []

    def rewind(self, n: int) -> None:
        with self._turns.turn(self._player):
            self.cursor.rewind(n)

    def fork(self, n: int | None = None, *, greedy: bool = True) -> TurnedLocal:
        with self._turns.turn(self._player):
            return TurnedLocal(self.cursor.fork(n, greedy=greedy), self._turns, self._player, self._render)

    def adopt(self, branch: Self) -> None:
        with self._turns.turn(self._player):
            self.cursor.adopt(branch.cursor)

    def close(self) -> None:
        with self._turns.turn(self._player):
            self.cursor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


class TurnedRemote:
    """A large GGUF that takes the turn for each of its steps. See `roles.RemoteModel`."""

    def __init__(self, remote: RemoteModel, turns: Turns, player: Player) -> None:
        self._remote = remote
        self._turns = turns
        self._player = player

    @property
    def name(self) -> str:
        return self._remote.name

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> TurnedStream:
        with self._turns.turn(self._player):
            return TurnedStream(self._remote.stream(messages, answer, max_tokens), self._turns, self._player)


class TurnedStream:
    """See `roles.RemoteStream`."""

    def __init__(self, stream: RemoteStream, turns: Turns, player: Player) -> None:
        self._stream = stream
        self._turns = turns
        self._player = player

    def read(self, timeout: float) -> str | None:
        with self._turns.turn(self._player):
            return self._stream.read(timeout)

    @property
    def outcome(self) -> Outcome:
        return self._stream.outcome

    def close(self) -> None:
        with self._turns.turn(self._player):
            self._stream.close()
