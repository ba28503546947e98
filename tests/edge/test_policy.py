"""Which spans may leave."""

import pytest

from sr_edge.policy import SpanGate
from sr_edge.split import Refusal


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gate(clock):
    return SpanGate(offline=False, uses_network=True, clock=clock)


def test_online_and_well_every_span_leaves(gate):
    for _ in range(3):
        assert gate.refusal() is None
        gate.report("handback", None)


def test_offline_no_span_leaves(clock):
    gate = SpanGate(offline=True, uses_network=True, clock=clock)
    assert gate.refusal() == Refusal("offline", "offline: nothing is sent")
    clock.now += 3600
    assert gate.refusal().end == "offline"


def test_a_second_gguf_is_never_offline(clock):
    assert SpanGate(offline=True, uses_network=False, clock=clock).refusal() is None


def test_offline_is_said_before_the_breaker(clock):
    gate = SpanGate(offline=True, uses_network=True, clock=clock)
    gate.report("error", "connection refused")
    assert gate.refusal().end == "offline"


@pytest.mark.parametrize("end", ["error", "stalled"])
def test_one_failure_stops_the_asking_for_a_while(gate, clock, end):
    gate.report(end, "connection refused at 127.0.0.1:9")
    clock.now += 12
    assert gate.refusal() == Refusal(
        "declined", "not asked for 18 s more, after: connection refused at 127.0.0.1:9"
    )
    clock.now += 18
    assert gate.refusal() is None


def test_after_the_while_one_span_tries(gate, clock):
    gate.report("stalled", None)
    clock.now += 30
    assert gate.refusal() is None
    assert gate.refusal().end == "declined", "one, not two"
    gate.report("error", "still refused")
    clock.now += 29
    assert "still refused" in gate.refusal().reason
    clock.now += 1
    assert gate.refusal() is None
    gate.report("stop", None)
    assert gate.refusal() is None


def test_a_try_that_is_never_heard_of_does_not_block_for_ever(gate, clock):
    gate.report("error", "refused")
    clock.now += 30
    assert gate.refusal() is None
    gate.report("cancelled", None)
    clock.now += 30
    assert gate.refusal() is None


@pytest.mark.parametrize("end", ["cancelled", "budget", "declined", "offline"])
def test_ends_that_prove_nothing_change_nothing(gate, clock, end):
    gate.report(end, None)
    assert gate.refusal() is None
    gate.report("error", "refused")
    gate.report(end, None)
    assert gate.refusal().end == "declined"
