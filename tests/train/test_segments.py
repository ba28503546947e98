"""Whole segments under the client's decoder: the same rollouts as token by token, in few calls."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.convert.making import make_checkpoint
from tests.train.segment_models import CheckpointSegments
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sr_edge.errors import UsageError
from sr_edge.events import Event, Finished, LocalToken, SpanClosed, SpanOpened
from sr_edge.markers import CLOSE, OPEN, Markers
from sr_edge.roles import Limits, Message, Outcome
from sr_edge.testing.oracle import broken_laws
from sr_train.rollout.big import EndpointBig, SelfBig
from sr_train.rollout.close_probe import ForwardProbe
from sr_train.rollout.engine import BatchedEngine
from sr_train.rollout.requests import Rollout, RolloutRequest
from sr_train.rollout.segments import Segment, SegmentEngine, SegmentError, SegmentLocal
from sr_train.rollout.vocabulary import Vocabulary

CONTEXT = 160
OPTIONS: dict[str, Any] = {"limits": Limits(60, 20, 12), "max_spans": 3, "temperature": 1.0, "max_rows": 8}
QUESTION = (Message("user", "How many ways are there?"),)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


class Tiny:
    """A random checkpoint with markers, and what the engines need of it."""

    def __init__(self, folder: Path) -> None:
        make_checkpoint(folder, hidden=32, heads=2, kv_heads=1, inner=64, layers=1, markers="token", seed=3)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        self.model.eval()
        self.end_ids = [self.tokenizer.eos_token_id]
        self.vocabulary = Vocabulary(self.tokenizer, self.end_ids)
        self.open_id = self.tokenizer.convert_tokens_to_ids(OPEN)
        self.close_id = self.tokenizer.convert_tokens_to_ids(CLOSE)

    def markers(self, tau: float = 0.02) -> Markers:
        """Random weights give the closing marker no more than a few percent."""
        return Markers("token", (self.open_id,), (self.close_id,), tau, 1)


class HashBig:
    """Writes spans that depend on the answer so far, as a large model would, and sometimes fails."""

    name = "hash"

    def __init__(self, seed: int, piece: int = 7, failures: float = 0.3) -> None:
        self._seed = seed
        self._piece = piece
        self._failures = failures

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> HashStream:
        dice = random.Random(f"{self._seed} {answer}")
        words = [
            "the sum",
            " is 42",
            ", so",
            " x = 7",
            ".\n\n",
            "Entonces",
            " ¿qué?",
            " 我们",
            "  ",
            "\\frac{1}{2}",
        ]
        text = "".join(dice.choice(words) for _ in range(dice.randrange(30)))
        ends = [Outcome("stop"), Outcome("cap")]
        if dice.random() < self._failures:
            ends = [Outcome("error", "it broke"), Outcome("stalled", "it fell silent")]
        return HashStream(text, self._piece, dice.choice(ends))

    def close(self) -> None:
        pass


class HashStream:
    def __init__(self, text: str, piece: int, outcome: Outcome) -> None:
        self._pieces = [text[at : at + piece] for at in range(0, len(text), piece)]
        self.outcome = outcome

    def read(self, timeout: float) -> str | None:
        return self._pieces.pop(0) if self._pieces else None

    def close(self) -> None:
        self._pieces = []


def engine_of(tiny: Tiny, segments: Any = None, big: Any = None, **options: Any) -> SegmentEngine:
    return SegmentEngine(
        segments or CheckpointSegments(tiny.model),
        ForwardProbe(tiny.model, tiny.close_id),
        tiny.vocabulary,
        tiny.markers(),
        big,
        name="tiny",
        end_ids=tiny.end_ids,
        context=CONTEXT,
        **({"piece_chars": 1} | OPTIONS | options),
    )


def token_by_token(tiny: Tiny, big: Any, **options: Any) -> BatchedEngine:
    return BatchedEngine(
        tiny.model,
        tiny.tokenizer,
        tiny.markers(),
        SelfBig() if big == "self" else big,
        name="tiny",
        **(OPTIONS | options),
    )


def timeless(events: Sequence[Event]) -> list[Event]:
    """Without times and probabilities."""
    told = []
    for event in events:
        event = replace(event, at=0.0)
        if isinstance(event, LocalToken):
            event = replace(event, logprob=0.0)
        if isinstance(event, SpanOpened):
            event = replace(event, p_open=None)
        if isinstance(event, SpanClosed):
            event = replace(event, p_close=None, ttft=None, seconds=0.0, resume=None)
        if isinstance(event, Finished):
            event = replace(event, seconds=0.0, local_seconds=0.0)
        told.append(event)
    return told


def numbers(events: Sequence[Event]) -> list[float]:
    """The probabilities, which depend a little on what was batched."""
    found: list[float | None] = []
    for event in events:
        match event:
            case LocalToken():
                found.append(event.logprob)
            case SpanOpened():
                found.append(event.p_open)
            case SpanClosed():
                found.append(event.p_close)
            case _:
                pass
    return [math.nan if each is None else each for each in found]


class AtOnce:
    """A large model that never keeps a rollout waiting."""

    def __init__(self, remote: HashBig) -> None:
        self._remote = remote

    def running(self, hub: object) -> AbstractContextManager[None]:
        return nullcontext()

    def open(self, request: RolloutRequest, local: object) -> HashBig:
        return self._remote


# --- the same rollouts -----------------------------------------------------------------------------------


def every(n: int) -> Callable[[Any], Any]:
    """A schedule: a span of five tokens where the answer's length is a multiple of n."""
    return lambda cursor: lambda written: 5 if written and written % n == 0 else None


@given(
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.0, 0.7, 1.0, 1.6]),
    bias=st.sampled_from([0.0, 4.0, 8.0]),
    at_most=st.sampled_from([None, 1, 3]),
    limits=st.builds(Limits, st.integers(1, 45), st.integers(1, 20), st.integers(1, 20)),
    max_spans=st.integers(0, 4),
    piece=st.integers(1, 40),
    fills_itself=st.booleans(),
)
@example(  # one that lies on a border here, see below
    seed=195768,
    temperature=0.7,
    bias=0.0,
    at_most=1,
    limits=Limits(17, 1, 1),
    max_spans=0,
    piece=1,
    fills_itself=False,
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_segments_give_what_the_decoder_gives_token_by_token(
    tiny, seed, temperature, bias, at_most, limits, max_spans, piece, fills_itself
):
    options = {"limits": limits, "max_spans": max_spans, "temperature": temperature}
    requests = [
        RolloutRequest(QUESTION, (seed, 0), bias=bias),
        RolloutRequest(QUESTION, (seed, 1), bias=bias, temperature=0.0),
        RolloutRequest(QUESTION, (seed, 2), "local", bias=bias),
        RolloutRequest(QUESTION, (seed, 3), "remote"),
        RolloutRequest(QUESTION, (seed, 4), bias=bias),
        RolloutRequest(QUESTION, (seed, 5), schedule=every(9)),
    ]
    big: Any = "self" if fills_itself else AtOnce(HashBig(seed, piece))
    expected = token_by_token(tiny, big, **options).run(requests)
    segments = CheckpointSegments(tiny.model, at_most=at_most)
    rollouts = engine_of(tiny, segments, big, **options).run(requests)
    for rollout, other in zip(rollouts, expected, strict=True):
        assert broken_laws(rollout.events) == []
        if not parted_by_rounding(timeless(rollout.events), timeless(other.events)):
            assert timeless(rollout.events) == timeless(other.events)
            assert numbers(rollout.events) == pytest.approx(numbers(other.events), abs=2e-3, nan_ok=True)


def parted_by_rounding(events: Sequence[Event], others: Sequence[Event]) -> bool:
    """Whether they first differ where one sampled a token and the other its neighbour by id.

    A random number that lies on the border of two tokens falls on either side of it: the last digits of the
    probabilities depend on what was batched. Anything else that differs is another token by far.
    """
    for one, other in zip(events, others, strict=False):
        if one != other:
            are_tokens = isinstance(one, LocalToken) and isinstance(other, LocalToken)
            return are_tokens and abs(one.id - other.id) == 1
    return False


def test_rollouts_go_on_together(tiny):
    """One call a span, not one a rollout."""
    segments = CheckpointSegments(tiny.model)
    requests = [RolloutRequest(QUESTION, (1, n), bias=9.0) for n in range(8)]
    rollouts = engine_of(tiny, segments, AtOnce(HashBig(1, failures=0.0))).run(requests)
    most_spans = max(len(rollout.transcript.spans) for rollout in rollouts)
    assert most_spans > 1
    assert len(segments.calls[0]) == len(requests)
    assert len(segments.calls) <= most_spans + 1


def test_rollouts_wait_for_those_whose_large_model_is_slower(tiny):
    dice = random.Random(7)

    class Slow(HashBig):
        def stream(self, messages, answer, max_tokens):
            time.sleep(dice.random() / 50)
            return super().stream(messages, answer, max_tokens)

    segments = CheckpointSegments(tiny.model)
    requests = [RolloutRequest(QUESTION, (1, n), bias=9.0) for n in range(8)]
    engine = engine_of(tiny, segments, EndpointBig(Slow(1, failures=0.0)), patience=60.0)
    most_spans = max(len(rollout.transcript.spans) for rollout in engine.run(requests))
    assert most_spans > 1
    assert len(segments.calls) <= most_spans + 1


def test_free_rows_are_filled_and_rollouts_told_of(tiny):
    segments = CheckpointSegments(tiny.model)
    requests = [RolloutRequest(QUESTION, (2, n), bias=6.0) for n in range(7)]
    big = AtOnce(HashBig(2))
    told: list[int] = []
    few = engine_of(tiny, segments, big, max_rows=2).run(requests, told.append)
    assert sorted(told) == list(range(7))
    assert max(map(len, segments.calls)) == 2
    many = engine_of(tiny, None, big, max_rows=7).run(requests)
    assert [timeless(one.events) for one in few] == [timeless(one.events) for one in many]


def test_a_slow_large_model_holds_up_the_others_for_a_while_only(tiny):
    """The rollout that waits for it comes back later; the others were written on meanwhile."""
    is_released = threading.Event()

    class Slow(HashBig):
        def stream(self, messages, answer, max_tokens):
            if not is_released.wait(20):
                raise TimeoutError
            return HashStream("so", 2, Outcome("stop"))

    class Watched(CheckpointSegments):
        def generate(self, requests):
            if len(self.calls) == 3:  # those that ask nobody have come this far without the slow one
                is_released.set()
            return super().generate(requests)

    segments = Watched(tiny.model, at_most=5)
    requests = [RolloutRequest(QUESTION, (3, 0), bias=50.0)]
    requests += [RolloutRequest(QUESTION, (3, n), "local") for n in range(1, 4)]
    big = EndpointBig(Slow(0))
    rollouts = engine_of(tiny, segments, big, patience=0.01, limits=Limits(30, 20, 20)).run(requests)
    assert is_released.is_set()
    assert rollouts[0].transcript.spans[0].text == "so"
    assert len(rollouts[1].completion_ids) == 30


def test_a_span_is_read_in_few_pieces_and_to_the_same_end(tiny):
    requests = [RolloutRequest(QUESTION, (4, n), bias=9.0) for n in range(6)]
    big = AtOnce(HashBig(4, piece=1, failures=0.0))
    calls: list[int] = []

    class Counting(ForwardProbe):
        def log_p_close(self, rows):
            calls.append(len(rows))
            return super().log_p_close(rows)

    def run(piece_chars: int) -> tuple[list[Rollout], int]:
        calls.clear()
        engine = engine_of(tiny, None, big, piece_chars=piece_chars)
        engine._probe = Counting(tiny.model, tiny.close_id)
        return engine.run(requests), sum(calls)

    whole, num_whole = run(1000)
    small, num_small = run(1)
    assert [one.transcript.text for one in whole] == [one.transcript.text for one in small]
    num_spans = sum(len(one.transcript.spans) for one in whole)
    assert num_whole <= 2 * num_spans < num_small


# --- what an engine must not do --------------------------------------------------------------------------


class Wrong:
    """Returns the same segment to everybody."""

    def __init__(self, *ids: int, logprobs: int | None = None) -> None:
        self._segment = Segment(ids, (0.0,) * (len(ids) if logprobs is None else logprobs))

    def any_waits(self, here: bool) -> bool:
        return here

    def generate(self, requests):
        return [self._segment] * len(requests)


@pytest.mark.parametrize("wrong", ["empty", "no stop", "banned", "logprobs"])
def test_a_segment_that_was_not_asked_for_is_an_error(tiny, wrong):
    segments = {
        "empty": Wrong(),
        "no stop": Wrong(5, tiny.open_id, 6),
        "banned": Wrong(5, tiny.close_id),
        "logprobs": Wrong(5, 6, logprobs=1),
    }[wrong]
    with pytest.raises(SegmentError):
        engine_of(tiny, segments, AtOnce(HashBig(0))).run([RolloutRequest(QUESTION, (0,))])


def test_what_fails_in_the_engine_reaches_the_caller_and_leaves_nothing_behind(tiny):
    class Broken(CheckpointSegments):
        def generate(self, requests):
            if self.calls:
                raise OSError("the GPU fell off")
            return super().generate(requests)

    before = threading.active_count()
    requests = [RolloutRequest(QUESTION, (6, n), bias=9.0) for n in range(5)]
    with pytest.raises(OSError, match="fell off"):
        engine_of(tiny, Broken(tiny.model), EndpointBig(HashBig(6)), patience=30.0).run(requests)
    assert threading.active_count() == before


def test_what_cannot_be_expressed_is_refused_by_name(tiny):
    def by_entropy(cursor: Any) -> Any:
        return lambda written: 5 if cursor.entropy() > 1 else None

    with pytest.raises(UsageError, match="entropy"):
        engine_of(tiny, None, AtOnce(HashBig(0))).run([RolloutRequest(QUESTION, (0,), schedule=by_entropy)])
    text = Markers("text", (1, 2), (3, 4))
    with pytest.raises(UsageError, match="one token"):
        SegmentEngine(
            Wrong(), Wrong(), tiny.vocabulary, text, None, name="", end_ids=(), context=9, limits=Limits()
        )


# --- the probe -------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9),
    counts=st.lists(st.integers(1, 30), min_size=9, max_size=9),
    max_tokens=st.sampled_from([1, 40, 10**6]),
    max_outputs=st.sampled_from([1, 20, 10**6]),
)
@settings(max_examples=30, deadline=None)
def test_the_probe_tells_of_each_row_what_it_would_tell_of_it_alone(
    tiny, lengths, counts, max_tokens, max_outputs
):
    dice = random.Random(sum(lengths))
    rows = [
        ([dice.randrange(tiny.model.config.vocab_size) for _ in range(length)], min(count, length))
        for length, count in zip(lengths, counts, strict=False)
    ]
    probe = ForwardProbe(tiny.model, tiny.close_id, max_tokens=max_tokens, max_outputs=max_outputs)
    tiny.model.train()
    told = probe.log_p_close(rows)
    assert tiny.model.training
    tiny.model.eval()
    for (ids, count), closes in zip(rows, told, strict=True):
        with torch.no_grad():
            scores = tiny.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert closes == pytest.approx(scores[-count:, tiny.close_id].tolist(), abs=1e-4)


def test_what_was_written_ahead_is_forgotten_where_the_text_turns_out_another(tiny):
    """As `roles.LocalModel` promises, whether or not today's decoder does it in that order."""
    orders: list[tuple[int, ...]] = []

    class Desk:
        def write(self, request):
            orders.append(request.prefix)
            return Segment((10, 11, 12), (-1.0, -2.0, -3.0))

    def local() -> SegmentLocal:
        return SegmentLocal(
            Desk(),
            tiny.vocabulary,
            tiny.markers(),
            name="tiny",
            key=(0,),
            temperature=1.0,
            end_ids=frozenset(tiny.end_ids),
            context=CONTEXT,
            max_tokens=50,
            may_ask=lambda: False,
        )

    for change in ("rewind", "feed", "banned", "bias"):
        orders.clear()
        cursor = local()
        cursor.feed([1, 2, 3])
        assert [cursor.sample().id, cursor.sample().id] == [10, 11]
        banned, bias = (), {}
        if change == "rewind":
            cursor.rewind(4)
        elif change == "feed":
            cursor.feed([7])
        elif change == "banned":
            banned = (99,)
        else:
            bias = {99: 1.0}
        before = tuple(cursor.ids)
        assert cursor.sample(banned, bias).id == 10
        assert orders == [(1, 2, 3), before], change
    cursor.rewind(len(cursor.ids))  # nothing: what is there is still right
    assert cursor.sample(banned, bias).id == 11
