"""Rollouts by an engine that writes whole segments, such as vLLM, under the client's own decoder.

Such an engine cannot be asked token by token. So it writes ahead: up to the opening marker, the answer's end
or the last token that may be. The decoder, which stays the one that decides, is then served from that segment
one token at a time; what it does not take is forgotten. As in `engine`, each rollout is a greenlet; here they
wait for each other longer, since one call for many is what such an engine is good at.

What differs from an engine that goes token by token: nothing is known of a token before its segment is
written, so a schedule cannot look at the next one's entropy; the times in the events are those of whole
segments; and a span is read in pieces of `piece_chars`, since each reading is a forward pass over all that
is before it. No torch here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, Self, cast

from greenlet import getcurrent, greenlet

from sr_edge.errors import ContextFullError, EdgeError, UsageError
from sr_edge.events import Event
from sr_edge.markers import Markers
from sr_edge.remote.local_gguf import LocalStream
from sr_edge.roles import (
    NO_BIAS,
    Limits,
    Message,
    Outcome,
    Prompt,
    RemoteModel,
    RemoteStream,
    Sampled,
    is_probed,
)
from sr_edge.split import SplitDecoder
from sr_train.rollout.engine import SpanSteering
from sr_train.rollout.hub import Hub
from sr_train.rollout.requests import Rollout, RolloutRequest, rollout_of

if TYPE_CHECKING:
    from sr_train.rollout.big import Big
    from sr_train.rollout.local import BatchedLocal

_SMALL_WRITER, _SPAN_WRITER = 0, 1


class SegmentError(EdgeError):
    """The engine wrote what it was not asked for. A rollout of such segments would be silently wrong."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a segment is sampled. Segments of the same terms can be written in one call."""

    temperature: float
    """0: always the likeliest token."""
    stops: tuple[int, ...]
    """The segment ends with the first of these, which belongs to it. In order."""
    banned: tuple[int, ...] = ()
    """Never sampled. In order."""
    bias: tuple[tuple[int, float], ...] = ()
    """By token, added to its logit."""


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """A stretch of text that one rollout wants written ahead."""

    prefix: tuple[int, ...]
    terms: Terms
    max_tokens: int
    key: tuple[int, ...]
    """The rollout's own, for engines that draw each sequence's random numbers by themselves."""
    writer: int
    """Of the rollout: 0 writes the answer, 1 the spans where the small model fills them itself."""
    num_sampled: int
    """Tokens that this writer has sampled before."""


@dataclass(frozen=True, slots=True)
class Segment:
    """At least one token, up to a stop; or fewer than `max_tokens` if the engine likes to be asked again."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each id under the model; one that knows it after temperature, bans and bias only gives that."""


class Segments(Protocol):
    """Who writes the segments."""

    def generate(self, requests: Sequence[SegmentRequest]) -> list[Segment]:
        """One segment for each, in order. May be called with none, see `any_waits`."""

    def any_waits(self, here: bool) -> bool:
        """Whether anybody waits for segments. An engine that several processes share, and must call at the
        same time, answers for all of them; any other repeats what it is told.
        """


class CloseProbe(Protocol):
    """Knows where the small model would take the pen back."""

    def log_p_close(self, rows: Sequence[tuple[Sequence[int], int]]) -> list[list[float]]:
        """For each row of ids, and after each of its last so many: log p that the closing marker follows."""


class Vocabulary(Protocol):
    """The small model's; see `sr_train.rollout.vocabulary`."""

    def render(self, messages: Sequence[Message]) -> Prompt: ...
    def ordinary(self, text: str) -> list[int]: ...
    def piece(self, id: int) -> bytes: ...
    def is_end(self, id: int) -> bool: ...


class SegmentEngine:
    """See `sr_train.rollout.requests.RolloutEngine`. The model's weights may change between two runs."""

    def __init__(
        self,
        segments: Segments,
        probe: CloseProbe,
        vocabulary: Vocabulary,
        markers: Markers,
        big: Big | Literal["self"] | None,
        *,
        name: str,
        end_ids: Collection[int],
        context: int,
        limits: Limits = Limits(),
        max_spans: int = 12,
        temperature: float = 1.0,
        max_rows: int = 256,
        patience: float = 1.0,
        piece_chars: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
            big: `self`: the small model fills its spans, from the context that it asked in, until it closes
                them, as in the paper. None: all rollouts are written without a large model.
            name: the small model's, for the events.
            end_ids: all tokens that end an answer.
            context: tokens that the small model can hold.
            max_spans: as `engine.BatchedEngine`.
            max_rows: rollouts that are written at once.
            patience: seconds that rollouts who could go on wait for those whose large model still writes, so
                that one call serves them all.
            piece_chars: of a span, that are read at once. Fewer let the small model stop the large one
                sooner; more read the text before them less often.
        Raises:
            UsageError: the model's markers are text, which no stop token stands for.
        """
        if markers.form != "token":
            raise UsageError(
                "an engine that writes whole segments stops at a marker that is one token; this model's are "
                'text: add the markers first, or set rollout.engine = "transformers"'
            )
        self._segments = segments
        self._probe = probe
        self._vocabulary = vocabulary
        self._markers = markers
        self._big = big
        self._name = name
        self._end_ids = frozenset(end_ids)
        self._context = context
        self._limits = limits
        self._max_spans = max_spans
        self._temperature = temperature
        self._max_rows = max_rows
        self._patience = patience
        self._piece_chars = piece_chars
        self._clock = clock

    def run(
        self, requests: Sequence[RolloutRequest], done: Callable[[int], None] = lambda index: None
    ) -> list[Rollout]:
        """Raises:
        ContextFullError: a prompt is longer than the model's context.
        SegmentError: the engine wrote what it was not asked for.
        UsageError: a schedule looks at the next token's entropy.
        """
        rollouts: list[Rollout | None] = [None] * len(requests)
        hub = Hub()
        desk = _Desk(self._segments, self._probe, self._patience, hub)

        def job(index: int) -> Callable[[], None]:
            def work() -> None:
                with desk.rollout():
                    rollouts[index] = rollout_of(requests[index], self._events(requests[index], desk))
                done(index)

            return work

        with ExitStack() as stack:
            stack.enter_context(hub.decoding(desk))
            if self._big is not None and self._big != "self":
                stack.enter_context(self._big.running(hub))
            hub.run((job(index) for index in range(len(requests))), self._max_rows)
        while self._segments.any_waits(False):  # in other processes, which cannot be served alone
            self._segments.generate([])
        return [rollout for rollout in rollouts if rollout is not None]

    def _events(self, request: RolloutRequest, desk: _Desk) -> Iterator[Event]:
        steering = SpanSteering(
            request.bias, self._max_spans if request.schedule is None and request.policy == "auto" else None
        )
        may_ask = self._big is not None and request.policy == "auto" and request.schedule is None
        local = SegmentLocal(
            desk,
            self._vocabulary,
            self._markers,
            name=self._name,
            key=request.key,
            temperature=self._temperature if request.temperature is None else request.temperature,
            end_ids=self._end_ids,
            context=self._context,
            max_tokens=self._limits.max_tokens,
            may_ask=lambda: may_ask and steering.now().asks,
        )
        with ExitStack() as stack:
            opened: RemoteModel | None = None
            if self._big == "self" and request.policy != "local":
                opened = _Pieces(_Itself(local), self._piece_chars)
            elif self._big is not None and self._big != "self" and request.policy != "local":
                big = self._big.open(request, cast("BatchedLocal", local))
                stack.callback(big.close)
                opened = _Pieces(big, self._piece_chars)
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


class SegmentLocal:
    """One rollout's small model: see `sr_edge.roles.LocalModel`, of which it has what needs no branch."""

    def __init__(
        self,
        desk: _Desk,
        vocabulary: Vocabulary,
        markers: Markers,
        *,
        name: str,
        key: tuple[int, ...],
        temperature: float,
        end_ids: frozenset[int],
        context: int,
        max_tokens: int,
        may_ask: Callable[[], bool],
        writer: int = _SMALL_WRITER,
    ) -> None:
        """Args:
        max_tokens: of an answer.
        may_ask: whether the opening marker is allowed as a rule; where it is banned all the same, that
            holds for one token.
        """
        self._desk = desk
        self._vocabulary = vocabulary
        self._markers = markers
        self._name = name
        self._key = key
        self._temperature = temperature
        self._end_ids = end_ids
        self._context = context
        self._max_tokens = max_tokens
        self._may_ask = may_ask
        self._writer = writer
        self._num_sampled = 0
        self._ids: list[int] = []
        self._prompt_length = 0
        self._ahead: deque[tuple[int, float]] = deque()
        self._ahead_terms: Terms | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def markers(self) -> Markers | None:
        return self._markers

    @property
    def ids(self) -> Sequence[int]:
        return self._ids

    @property
    def batch_tokens(self) -> int:
        return 1

    @property
    def room(self) -> int:
        return self._context - len(self._ids)

    def render(self, messages: Sequence[Message]) -> Prompt:
        prompt = self._vocabulary.render(messages)
        self._prompt_length = len(prompt.ids)
        return prompt

    def tokenize(self, text: str) -> list[int]:
        return self._vocabulary.ordinary(text)

    def piece(self, id: int) -> bytes:
        return self._vocabulary.piece(id)

    def is_end(self, id: int) -> bool:
        return self._vocabulary.is_end(id)

    def sample(self, banned: Collection[int] = (), logit_bias: Mapping[int, float] = NO_BIAS) -> Sampled:
        if self.room < 1:
            raise ContextFullError(f"the context of {self._context} tokens is full")
        terms = self._terms(banned, logit_bias)
        if terms != self._ahead_terms:  # what is there was sampled in another way
            self._forget()
        if not self._ahead:
            self._order(terms)
        id, logprob = self._ahead.popleft()
        self._ids.append(id)
        self._num_sampled += 1
        return Sampled(id, logprob)

    def feed(self, ids: Sequence[int], *, probe: bool | Sequence[bool] = False) -> list[float]:
        if not ids:
            return []
        if len(ids) > self.room:
            raise ContextFullError(f"{len(ids)} tokens for {self.room} places")
        closes: list[float] = []
        if probe is not False and any(is_probed(probe, n) for n in range(len(ids))):
            everywhere = self._desk.read([*self._ids, *ids], len(ids))
            closes = [close for n, close in enumerate(everywhere) if is_probed(probe, n)]
        self._forget()
        self._ids += ids
        return closes

    def rewind(self, n: int) -> None:
        if n < len(self._ids):
            self._forget()
            del self._ids[n:]

    def fork(self, n: int | None = None, *, greedy: bool = True) -> Self:
        raise AssertionError("markers that are tokens need no branch, and nothing is hedged here")

    def adopt(self, branch: Self) -> None:
        raise AssertionError("there are no branches here")

    def entropy(self) -> float:
        """For schedules; see `sr_train.rollout.requests.Cursor`."""
        raise UsageError(
            "where spans open by the next token's entropy, the answer is written token by token: "
            'set rollout.engine = "transformers"'
        )

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _terms(self, banned: Collection[int], logit_bias: Mapping[int, float]) -> Terms:
        stops = {*self._end_ids, *self._markers.open_ids} - set(banned)
        return Terms(
            self._temperature,
            tuple(sorted(stops)),
            tuple(sorted(set(banned))),
            tuple(sorted(logit_bias.items())),
        )

    def _order(self, terms: Terms) -> None:
        written = self._ids[self._prompt_length :]
        closes = sum(id in self._markers.close_ids for id in written)  # which do not count
        max_tokens = max(1, min(self.room, self._max_tokens - len(written) + closes))
        if self._may_ask() and set(self._markers.open_ids) & set(terms.banned):
            max_tokens = 1  # with the next token it may ask again
        request = SegmentRequest(
            tuple(self._ids), terms, max_tokens, self._key, self._writer, self._num_sampled
        )
        segment = self._desk.write(request)
        _check_segment(segment, terms)
        self._ahead.extend(zip(segment.ids, segment.logprobs, strict=True))
        self._ahead_terms = terms

    def _forget(self) -> None:
        self._ahead.clear()
        self._ahead_terms = None


class _Filling(SegmentLocal):
    """Writes on from wherever the cursor beside it is, and ends with the closing marker."""

    def __init__(self, beside: SegmentLocal) -> None:
        closes = beside._markers.close_ids
        super().__init__(
            beside._desk,
            beside._vocabulary,
            replace(beside._markers, close_ids=()),  # not banned
            name=f"{beside._name} itself",
            key=beside._key,
            temperature=beside._temperature,
            end_ids=beside._end_ids | set(closes),
            context=beside._context,
            max_tokens=beside._max_tokens,
            may_ask=lambda: False,
            writer=_SPAN_WRITER,
        )
        self._beside = beside
        self._closes = closes

    def render(self, messages: Sequence[Message]) -> Prompt:
        """All that the other one holds, its opening marker included."""
        self._prompt_length = len(self._beside.ids)
        return Prompt(tuple(self._beside.ids), "", "")

    def is_end(self, id: int) -> bool:
        return id in self._closes or super().is_end(id)

    def limit(self, max_tokens: int) -> None:
        """From here on an answer is a span of so many tokens."""
        self._max_tokens = max_tokens


def _check_segment(segment: Segment, terms: Terms) -> None:
    if not segment.ids or len(segment.ids) != len(segment.logprobs):
        raise SegmentError(
            f"a segment of {len(segment.ids)} tokens with {len(segment.logprobs)} log-probabilities: the "
            "engine has to leave the stop token in what it returns, and to give one for each token"
        )
    if set(segment.ids[:-1]) & set(terms.stops):
        raise SegmentError("a segment goes on after its stop token: the engine does not heed stop_token_ids")
    if set(segment.ids) & set(terms.banned):
        raise SegmentError("a segment holds a banned token: the engine does not heed logit_bias")


# --- where rollouts wait -----------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Order:
    """A segment that a rollout waits for."""

    request: SegmentRequest
    waiter: greenlet
    since: float
    segment: Segment | None = None


@dataclass(slots=True, eq=False)
class _Reading:
    """A piece of a span that a rollout wants to have read."""

    ids: Sequence[int]
    count: int
    waiter: greenlet
    closes: list[float] = field(default_factory=list)


class _Desk:
    """Where rollouts wait for the engine. See `hub.Decoder`.

    Readings are done at once; segments once all rollouts wait for one, or the first has waited for long.
    """

    def __init__(self, segments: Segments, probe: CloseProbe, patience: float, hub: Hub) -> None:
        self._segments = segments
        self._probe = probe
        self._patience = patience
        self._hub = hub
        self._num_rollouts = 0
        self._readings: list[_Reading] = []
        self._orders: list[_Order] = []
        self._alarm: threading.Timer | None = None
        self._idle = greenlet(self._do_nothing)

    # a rollout's side

    @contextmanager
    def rollout(self) -> Iterator[None]:
        """While one is written."""
        self._num_rollouts += 1
        try:
            yield
        finally:
            self._num_rollouts -= 1

    def write(self, request: SegmentRequest) -> Segment:
        order = _Order(request, getcurrent(), time.monotonic())
        self._orders.append(order)
        self._hub.pause()
        assert order.segment is not None
        return order.segment

    def read(self, ids: Sequence[int], count: int) -> list[float]:
        """After each of the last `count` ids: log p that the closing marker follows."""
        reading = _Reading(ids, count, getcurrent())
        self._readings.append(reading)
        self._hub.pause()
        return reading.closes

    # the hub's side

    @contextmanager
    def running(self, pause: Callable[[], object]) -> Iterator[None]:
        try:
            yield
        finally:
            self._no_alarm()

    @property
    def waiting(self) -> Sequence[_Reading | _Order]:
        """What would be done now."""
        if self._readings:
            return self._readings
        if not self._orders:
            return []
        left = self._orders[0].since + self._patience - time.monotonic()
        if len(self._orders) == self._num_rollouts or left <= 0:
            return self._orders
        if self._alarm is None:  # large models may say nothing until then
            self._alarm = threading.Timer(left, self._hub.wake, [self._idle])
            self._alarm.daemon = True
            self._alarm.start()
        return []

    def step(self) -> Sequence[_Reading | _Order]:
        if self._readings:
            readings, self._readings = self._readings, []
            closes = self._probe.log_p_close([(reading.ids, reading.count) for reading in readings])
            for reading, close in zip(readings, closes, strict=True):
                reading.closes = close
            return readings
        orders, self._orders = self._orders, []
        self._no_alarm()
        self._segments.any_waits(True)
        segments = self._segments.generate([order.request for order in orders])
        for order, segment in zip(orders, segments, strict=True):
            order.segment = segment
        return orders

    def _no_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm.join()
            self._alarm = None

    def _do_nothing(self) -> None:
        """Woken so that the hub looks at `waiting` again."""
        while True:
            self._hub.pause()


# --- who writes spans --------------------------------------------------------------------------------------


class _Itself:
    """The small model, as a large one."""

    def __init__(self, local: SegmentLocal) -> None:
        self._cursor = _Filling(local)

    @property
    def name(self) -> str:
        return self._cursor.name

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> RemoteStream:
        self._cursor.limit(max_tokens)
        return LocalStream(self._cursor, messages, "", max_tokens, 1, time.monotonic)


class _Pieces:
    """A large model whose text comes in pieces of some size."""

    def __init__(self, big: RemoteModel, piece_chars: int) -> None:
        self._big = big
        self._piece_chars = piece_chars

    @property
    def name(self) -> str:
        return self._big.name

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> RemoteStream:
        return _PieceStream(self._big.stream(messages, answer, max_tokens), self._piece_chars)


class _PieceStream:
    def __init__(self, stream: RemoteStream, piece_chars: int) -> None:
        self._stream = stream
        self._piece_chars = piece_chars
        self._is_over = False

    def read(self, timeout: float) -> str | None:
        """As `RemoteStream.read`, but waits for a whole piece."""
        texts: list[str] = []
        length = 0
        while not self._is_over and length < self._piece_chars:
            text = self._stream.read(timeout)
            if text is None:
                self._is_over = True
            else:
                texts.append(text)
                length += len(text)
        return "".join(texts) if length else None

    @property
    def outcome(self) -> Outcome:
        return self._stream.outcome

    def close(self) -> None:
        self._stream.close()
