"""Continues traces from any of their places, through the engine that writes rollouts.

A trial is a rollout whose first span is given: the trace up to there, which a stand-in for the large model
recites. So all that rollouts have is had here too: batching, seeds, endpoints, the client's own decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sr_edge.roles import Limits, Message, Outcome, RemoteStream, Schedule
from sr_train.annotate.measured import Trial
from sr_train.problems import fit_opening
from sr_train.rollout.big import Big, Opened
from sr_train.rollout.engine import BatchedEngine
from sr_train.rollout.hub import Hub
from sr_train.rollout.local import BatchedLocal
from sr_train.rollout.requests import Cursor, RolloutRequest
from sr_train.rollout.vocabulary import Vocabulary

if TYPE_CHECKING:
    from sr_edge.markers import Markers
    from sr_train.checkpoint import Loaded

_ROOM = 1.5
"""The large model's span may be so much longer than the step of the trace that it stands for."""
_SPARE = 16  # tokens


class Continuing:
    """A `measured.Continue` on a checkpoint."""

    def __init__(
        self,
        loaded: Loaded,
        markers: Markers,
        big: Big | None,
        *,
        limits: Limits,
        temperature: float,
        max_rows: int,
    ) -> None:
        """Args:
        markers: which the small model must not write.
        big: writes the span of a trial that has help; None takes the trace's own step for it.
        limits: of what is written, without what is given.
        """
        self._loaded = loaded
        self._vocabulary = Vocabulary(loaded.tokenizer, [])
        self._markers = markers
        self._big = big
        self._limits = limits
        self._temperature = temperature
        self._max_rows = max_rows

    def __call__(self, trials: Sequence[Trial]) -> list[str | None]:
        given = {trial.key: self._given(trial) for trial in trials}
        longest = max((each.num_tokens for each in given.values()), default=0)
        room = self._limits.max_tokens + longest
        engine = BatchedEngine(
            self._loaded.model,
            self._loaded.tokenizer,
            self._markers,
            _Reciting(given, self._big),
            limits=Limits(max_tokens=room, max_span_tokens=room, soft_span_tokens=room),
            max_spans=1,
            temperature=self._temperature,
            max_rows=self._max_rows,
        )
        rollouts = engine.run([_request(trial, given[trial.key]) for trial in trials])
        return [
            None if rollout.remote_failed else rollout.transcript.text[len(self._before(trial)) :]
            for trial, rollout in zip(trials, rollouts, strict=True)
        ]

    def _given(self, trial: Trial) -> _Given:
        recited = self._before(trial)
        num_own = self._num_tokens(trial.step)
        if trial.is_helped and self._big is None:
            recited += trial.step
        span = int(_ROOM * num_own) + _SPARE if trial.is_helped and self._big is not None else 0
        return _Given(recited, span, self._num_tokens(recited) + span + _SPARE)

    def _before(self, trial: Trial) -> str:
        """With the think tag that the template lacks, or without the one that it writes."""
        trace = trial.problem.trace
        prompt = self._vocabulary.render((Message("user", trial.problem.question),))
        fitted = fit_opening(trace, prompt.opening)
        return fitted[: max(0, len(trial.before) + len(fitted) - len(trace))]

    def _num_tokens(self, text: str) -> int:
        return len(self._loaded.tokenizer.encode(text, add_special_tokens=False))


@dataclass(frozen=True, slots=True)
class _Given:
    """How one trial begins."""

    recited: str
    span: int
    """Tokens that the large model may add to it; 0: none."""
    num_tokens: int
    """All of that, at most."""


def _request(trial: Trial, given: _Given) -> RolloutRequest:
    def schedule(cursor: Cursor) -> Schedule:
        return lambda num_tokens: given.num_tokens if num_tokens == 0 else None

    messages = (Message("user", trial.problem.question),)
    is_given = bool(given.recited or given.span)
    return RolloutRequest(
        messages=messages,
        key=trial.key,
        policy="auto" if is_given else "local",
        schedule=schedule if is_given else None,
    )


class _Reciting:
    """A `Big` that recites what is given before the large model, where there is one, adds a span to it."""

    def __init__(self, given: Mapping[tuple[int, ...], _Given], big: Big | None) -> None:
        self._given = given
        self._big = big

    @contextmanager
    def running(self, hub: Hub) -> Iterator[None]:
        inner: AbstractContextManager[object] | None = None if self._big is None else self._big.running(hub)
        if inner is None:
            yield
        else:
            with inner:
                yield

    def open(self, request: RolloutRequest, local: BatchedLocal) -> Opened:
        given = self._given[request.key]
        inner = self._big.open(request, local) if self._big is not None and given.span else None
        return _Opened(given, inner)


class _Opened:
    def __init__(self, given: _Given, inner: Opened | None) -> None:
        self._given = given
        self._inner = inner

    @property
    def name(self) -> str:
        return "the trace" if self._inner is None else self._inner.name

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> RemoteStream:
        recited = self._given.recited
        inner = None
        if self._inner is not None:
            inner = self._inner.stream(messages, recited, self._given.span)
        return _Recital(recited, inner)

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()


class _Recital:
    """The recited text, then the large model's until its first line ends: a step, as in the trace."""

    def __init__(self, recited: str, inner: RemoteStream | None) -> None:
        self._recited = recited
        self._inner = inner
        self._written = ""
        self._is_over = False

    def read(self, timeout: float) -> str | None:
        if self._recited:
            text, self._recited = self._recited, ""
            return text
        if self._inner is None or self._is_over:
            return None
        added = self._inner.read(timeout)
        if added is None:
            return None
        self._written += added
        blank = len(self._written) - len(self._written.lstrip())
        line_end = self._written.find("\n", blank)
        if line_end < 0:
            return added
        self._is_over = True
        self._inner.close()
        return added[: len(added) - (len(self._written) - line_end - 1)]

    @property
    def outcome(self) -> Outcome:
        """`cap`: it had to stop here, and the small model goes on."""
        return Outcome("cap") if self._inner is None or self._is_over else self._inner.outcome

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()
