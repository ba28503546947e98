"""Writes many rollouts at once with the client's own `SplitDecoder`: what is trained is what is deployed.

Each rollout is a `SplitDecoder` in a greenlet of its own, over one row of a batch (`local`); the hub decodes
all rows that wait in one pass (`batch`). Where a rollout ends, the next one begins in its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sr_edge.errors import UsageError
from sr_edge.events import DEGRADED_ENDS, Event, SpanClosed
from sr_edge.markers import Markers
from sr_edge.roles import Limits, Schedule, Steering
from sr_edge.split import SplitDecoder
from sr_train.rollout.batch import Batch, Uniforms
from sr_train.rollout.big import Big, Opened, end_ids_of, name_of
from sr_train.rollout.hub import Hub
from sr_train.rollout.local import BatchedLocal
from sr_train.rollout.requests import Rollout, RolloutRequest, rollout_of
from sr_train.rollout.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_SMALL_WRITER = 0


def _unheard(index: int) -> None:
    pass


class BatchedEngine:
    """See `requests.RolloutEngine`. The model's weights may change between two runs."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        markers: Markers | None,
        big: Big | None,
        *,
        limits: Limits = Limits(),
        max_spans: int = 12,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_rows: int = 256,
        stops: Sequence[int] = (),
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        big: None: all rollouts are written without a large model.
        max_spans: of one rollout; then, and after a span whose large model failed, the small one cannot ask
            any more.
        max_rows: rollouts that are written at once.
        stops: tokens that end an answer, beside those that the checkpoint and its tokenizer name.
        Raises:
            UsageError: a setting is out of range, or the model is of a kind that is not written with here.
            ModelError: the tokenizer is of such a kind.
        """
        if max_rows < 1 or max_spans < 0 or not temperature >= 0 or not 0 < top_p <= 1:
            raise UsageError(
                "rollout.max_rows is at least 1, max_spans and temperature are 0 or more, "
                "and top-p is above 0 and at most 1"
            )
        self._vocabulary = Vocabulary(tokenizer, [*end_ids_of(model), *stops])
        close_ids = () if markers is None else self._vocabulary.close_ids(markers)
        kept = () if markers is None else markers.open_ids[:1]
        self._batch = Batch(model, close_ids=close_ids, kept_ids=kept, top_p=top_p)
        self._markers = markers
        self._big = big
        self._limits = limits
        self._max_spans = max_spans
        self._temperature = temperature
        self._max_rows = max_rows
        self._name = name or name_of(model)
        self._clock = clock

    def run(
        self, requests: Sequence[RolloutRequest], done: Callable[[int], None] = _unheard
    ) -> list[Rollout]:
        """Raises:
        ContextFullError: a prompt is longer than the model's context.
        UsageError: a key holds a negative number.
        """
        rollouts: list[Rollout | None] = [None] * len(requests)

        def job(index: int) -> Callable[[], None]:
            def work() -> None:
                rollouts[index] = rollout_of(requests[index], self._events(requests[index]))
                done(index)

            return work

        hub = Hub()
        with ExitStack() as stack:
            stack.enter_context(hub.decoding(self._batch))
            if self._big is not None:
                stack.enter_context(self._big.running(hub))
            hub.run((job(index) for index in range(len(requests))), self._max_rows)
        return [rollout for rollout in rollouts if rollout is not None]

    def _events(self, request: RolloutRequest) -> Iterator[Event]:
        temperature = self._temperature if request.temperature is None else request.temperature
        with ExitStack() as stack:
            local = stack.enter_context(
                BatchedLocal(
                    self._batch,
                    self._vocabulary,
                    name=self._name,
                    markers=self._markers,
                    temperature=temperature,
                    uniforms=Uniforms(request.key, _SMALL_WRITER),
                )
            )
            opened: Opened | None = None
            if self._big is not None and request.policy != "local":
                opened = self._big.open(request, local)
                stack.callback(opened.close)
            steering = SpanSteering(
                request.bias,
                self._max_spans if request.schedule is None and request.policy == "auto" else None,
            )
            decoder = SplitDecoder(
                local,
                opened,
                limits=self._limits,
                policy=request.policy,
                steer=steering.now,
                clock=self._clock,
            )
            schedule = None if request.schedule is None else steering.limited(request.schedule(local))
            for event in decoder.generate(request.messages, schedule=schedule):
                steering.see(event)
                yield event


class SpanSteering:
    """Whether the small model may ask: not after its last span, and nobody is asked who failed."""

    def __init__(self, bias: float, max_spans: int | None) -> None:
        """Args:
        max_spans: None where it is not the small model that asks: then `asks` is looked at in spans only.
        """
        self._num_left = max_spans
        self._has_failed = False
        self._steering = Steering(asks=max_spans != 0, bias=bias)

    def see(self, event: Event) -> None:
        if not isinstance(event, SpanClosed):
            return
        self._has_failed |= event.end in DEGRADED_ENDS
        if self._num_left is not None:
            self._num_left -= bool(event.ids)
            if self._has_failed or self._num_left == 0:
                self._steering = Steering(asks=False)

    def now(self) -> Steering:
        return self._steering

    def limited(self, schedule: Schedule) -> Schedule:
        return lambda num_tokens: None if self._has_failed else schedule(num_tokens)
