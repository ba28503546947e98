"""What answers cost by the model, and that measured answers give its speeds back."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from tests.train.scripted_rollouts import FAILED, rollout

from sr_edge.errors import UsageError
from sr_edge.events import Event, Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started, to_json
from sr_edge.testing import Reply
from sr_edge.transcript import fold
from sr_train.latency import LatencyModel, fit, measured, read_streams
from sr_train.recipe import LatencyPart

PART = LatencyPart(
    rtt=0.5,
    big_prefill=1000,
    big_decode=50,
    small_prefill=100,
    small_decode=10,
    dollars_in=2.0,
    dollars_out=10.0,
)


def test_cost_by_hand():
    transcript = rollout("abc<>d", "12345").transcript
    (span,) = transcript.spans
    cost = LatencyModel(PART).cost(transcript)
    assert transcript.local_tokens == 6  # abc, the opening marker, d, the end
    waiting = 0.5 + span.sent_tokens / 1000 + 5 / 50
    assert cost.offload_seconds == pytest.approx(waiting)
    assert cost.seconds == pytest.approx(transcript.prompt_tokens / 100 + 6 / 10 + waiting)
    assert cost.dollars == pytest.approx((span.sent_tokens * 2 + 5 * 10) / 1e6)
    alone = LatencyModel(PART).big_only(transcript)
    assert alone.seconds == pytest.approx(0.5 + transcript.prompt_tokens / 1000 + 11 / 50)
    assert alone.dollars == pytest.approx((transcript.prompt_tokens * 2 + 11 * 10) / 1e6)


def test_span_is_read_no_faster_than_the_small_model_reads():
    transcript = rollout("a<>b", "x" * 60).transcript
    slow = LatencyModel(replace(PART, small_prefill=20)).cost(transcript)
    assert slow.offload_seconds == pytest.approx(0.5 + transcript.spans[0].sent_tokens / 1000 + 60 / 20)


def test_span_that_stayed_here_costs_nothing():
    transcript = rollout("abc").transcript
    assert LatencyModel(PART).cost(transcript).offload_seconds == 0
    tried = rollout("a<>b", Reply((), FAILED)).transcript
    assert LatencyModel(PART).cost(tried).offload_seconds >= 0.5  # it was sent, and nothing came


def test_bill_goes_by_the_large_models_own_count():
    transcript = rollout("abc<>d", "12345").transcript
    (span,) = transcript.spans
    counted = replace(span, remote_prompt_tokens=100, remote_completion_tokens=3)
    assert LatencyModel(PART).cost(replace(transcript, spans=(counted,))).dollars == pytest.approx(230 / 1e6)


def stream(rng: random.Random, part: LatencyPart, *, slow: bool = False) -> list[Event]:
    """An answer as a machine of these speeds would have given it; `slow`: something else was going on."""
    factor = rng.uniform(5, 50) if slow else 1.0
    at, events = 0.0, list[Event]()
    prompt = rng.randint(50, 400)
    at += prompt / part.small_prefill * factor
    events.append(Started(tuple(range(prompt)), "small", at=at))
    local, waited = 0, 0.0
    for span in range(1, 4):
        for _ in range(rng.randint(5, 20)):
            at += factor * rng.uniform(0.9, 1.1) / part.small_decode
            local += 1
            events.append(LocalToken(1, "a", -1.0, at=at))
        sent, tokens = prompt + local + rng.randint(0, 2000), rng.randint(10, 60)
        ttft = factor * (part.rtt + sent / part.big_prefill) * rng.uniform(0.98, 1.02)
        seconds = ttft + factor * (tokens - 1) / part.big_decode
        events.append(SpanOpened(span, "marker", 0.5, "big", sent_tokens=sent, at=at))
        at += seconds
        waited += seconds + 0.01
        events.append(SpanDelta(span, "x" * tokens, at=at))
        at += 0.01
        closed = SpanClosed(
            span, (1,) * (tokens + 1), "stop", tokens, ttft=ttft, seconds=seconds, resume=0.01
        )
        events.append(replace(closed, at=at))
    read = prompt / part.small_prefill * factor
    events.append(Finished("stop", prompt, local, 99, seconds=at, local_seconds=at - waited - read, at=at))
    return events


def test_fit_gives_the_speeds_back_though_some_answers_were_slow():
    rng = random.Random(3)
    true = LatencyPart(rtt=0.4, big_prefill=3000, big_decode=35, small_prefill=80, small_decode=25)
    found = fit([stream(rng, true, slow=n % 6 == 0) for n in range(40)], LatencyPart())
    for name in ("rtt", "big_prefill", "big_decode", "small_prefill", "small_decode"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=0.1), name


def test_fit_keeps_what_the_answers_do_not_show():
    alone = [event for event in stream(random.Random(1), PART) if isinstance(event, Started | LocalToken)]
    found = fit([[*alone, Finished("stop", 9, 9, 0, seconds=1.0, local_seconds=1.0)]], PART)
    assert (found.rtt, found.big_prefill, found.big_decode) == (PART.rtt, PART.big_prefill, PART.big_decode)
    assert found.small_decode == pytest.approx(10, rel=0.2)
    assert fit([], PART) == PART


def test_measured_is_what_the_clock_said():
    transcript = fold(stream(random.Random(1), PART))
    cost = measured(transcript)
    assert cost.seconds == transcript.seconds
    assert cost.offload_seconds == pytest.approx(sum(span.seconds + 0.01 for span in transcript.spans))


def test_calibration_file(tmp_path: Path):
    rng = random.Random(0)
    path = tmp_path / "events.jsonl"
    streams = [stream(rng, replace(PART, small_decode=33)) for _ in range(3)]
    cut = stream(rng, PART)[:-1]
    path.write_text("\n".join(to_json(event) for events in [*streams, cut] for event in events))
    assert read_streams(path) == streams  # the one that was cut is left out
    model = LatencyModel.of(replace(PART, calibration=str(path)))
    assert model.part.small_decode == pytest.approx(33, rel=0.1)


def test_calibration_file_that_cannot_be_used_is_named(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    with pytest.raises(UsageError, match=r"cannot be read"):
        read_streams(path)
    path.write_text("no event\n")
    with pytest.raises(UsageError, match=r"line 1"):
        read_streams(path)
    path.write_text(to_json(LocalToken(1, "a", -1.0)))
    with pytest.raises(UsageError, match=r"begins with"):
        read_streams(path)
    path.write_text(to_json(Started((1,), "small")))
    with pytest.raises(UsageError, match=r"no finished answer"):
        read_streams(path)


def test_speed_of_zero_is_refused():
    with pytest.raises(UsageError, match="speeds"):
        LatencyModel(replace(PART, big_decode=0))
