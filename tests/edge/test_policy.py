"""Which spans may leave."""

import pytest

from sr_edge.policy import COOLDOWNS, MAX_WAIT, Breaker, DialGate, SpanGate
from sr_edge.roles import Grant, Outcome, Refusal, SpanRequest

DOWN = Outcome("error", "connection refused at 127.0.0.1:9", fault="unreachable")
WELL = Outcome("stop")


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Door:
    """Somebody to knock at, who answers when the test says so."""

    def __init__(self):
        self.heard = []

    def __call__(self, heard):
        self.heard.append(heard)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gate(clock):
    return SpanGate(offline=False, uses_network=True, breaker=Breaker(clock=clock))


def request(span=1, max_tokens=64):
    return SpanRequest(span, sent_tokens=100, local_tokens=50, remote_tokens=10, max_tokens=max_tokens)


def refusal(gate, span=1):
    """Why not; None if the span may leave."""
    decision = gate.admit(request(span))
    return decision if isinstance(decision, Refusal) else None


def report(gate, outcome, end=None, span=1):
    return gate.report(request(span), end or outcome.end, outcome, 5)


def test_online_and_well_every_span_leaves(gate):
    for span in range(1, 4):
        assert gate.admit(request(span)) == Grant(64)
        report(gate, WELL, "handback", span)


def test_offline_no_span_leaves(clock):
    gate = SpanGate(offline=True, uses_network=True, breaker=Breaker(clock=clock))
    assert refusal(gate) == Refusal("offline", "offline: nothing is sent")
    clock.now += 3600
    assert refusal(gate).end == "offline"


def test_a_second_gguf_is_never_offline():
    assert refusal(SpanGate(offline=True, uses_network=False)) is None


def test_offline_is_said_before_the_breaker(clock):
    gate = SpanGate(offline=True, uses_network=True, breaker=Breaker(clock=clock))
    report(gate, DOWN)
    assert refusal(gate).end == "offline"


def test_offline_can_be_switched_on_between_spans(gate):
    assert refusal(gate) is None
    gate.go_offline()
    assert refusal(gate, 2).end == "offline"


def test_an_answer_has_so_many_spans_and_the_next_one_as_many_again():
    gate = SpanGate(offline=False, uses_network=True, max_spans=3)
    assert [refusal(gate, span) is None for span in range(1, 51)] == [True] * 3 + [False] * 47
    assert refusal(gate, 4).end == "budget"
    assert "3 spans" in refusal(gate, 4).reason
    assert refusal(gate, 1) is None


# --- the breaker -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["error", "stalled"])
def test_one_failure_stops_the_asking_for_a_while(gate, clock, end):
    report(gate, Outcome(end, "connection refused at 127.0.0.1:9", fault="unreachable"))
    clock.now += 2
    assert refusal(gate) == Refusal(
        "declined", "not asked for 3 s more, after: connection refused at 127.0.0.1:9"
    )
    clock.now += 3
    assert refusal(gate) is None


def test_the_while_grows_with_each_failure_in_a_row(gate, clock):
    for cooldown in (*COOLDOWNS, COOLDOWNS[-1]):
        report(gate, DOWN)
        clock.now += cooldown - 0.5
        assert refusal(gate) is not None
        clock.now += 0.5
        assert refusal(gate) is None
    report(gate, WELL)
    report(gate, DOWN)
    clock.now += COOLDOWNS[0]
    assert refusal(gate) is None, "and is short again after a success"


def test_without_a_knock_one_span_tries_not_two(gate, clock):
    report(gate, DOWN)
    clock.now += COOLDOWNS[0]
    assert refusal(gate) is None
    assert refusal(gate).end == "declined"


def test_a_try_that_is_never_heard_of_does_not_block_for_ever(gate, clock):
    report(gate, DOWN)
    clock.now += 5
    assert refusal(gate) is None
    report(gate, WELL, "cancelled")
    clock.now += 5
    assert refusal(gate) is None


def test_the_half_open_breaker_knocks_and_no_span_is_risked(clock):
    door = Door()
    gate = SpanGate(offline=False, uses_network=True, breaker=Breaker(knock=door, clock=clock))
    report(gate, DOWN)
    clock.now += COOLDOWNS[0] - 1
    assert refusal(gate) is not None
    assert not door.heard, "not before its time"
    clock.now += 1
    assert "known to be back" in refusal(gate).reason
    assert refusal(gate) is not None
    assert len(door.heard) == 1, "one knock at a time"
    door.heard[0](False)
    assert f"{COOLDOWNS[1]:.0f} s more" in refusal(gate).reason
    clock.now += COOLDOWNS[1]
    assert refusal(gate) is not None
    door.heard[1](True)
    assert refusal(gate) is None


def test_an_answered_knock_does_not_make_up_for_failures(clock):
    """A list of models can be well where the models are not."""
    breaker = Breaker(knock=lambda heard: heard(True), clock=clock)
    for cooldown in (*COOLDOWNS, COOLDOWNS[-1]):
        breaker.report(DOWN)
        clock.now += cooldown - 0.5
        assert breaker.refusal() is not None
        clock.now += 0.5
        assert breaker.refusal() is None
    breaker.report(WELL)
    breaker.report(DOWN)
    clock.now += COOLDOWNS[0]
    assert breaker.refusal() is None


def test_a_knock_that_is_answered_at_once_costs_no_span(clock):
    breaker = Breaker(knock=lambda heard: heard(True), clock=clock)
    breaker.report(DOWN)
    clock.now += COOLDOWNS[0]
    assert breaker.refusal() is None


def test_a_remote_that_refuses_us_is_not_asked_again(gate, clock):
    report(gate, Outcome("error", "lab does not accept the API key", fault="refused"))
    clock.now += 1e6
    assert refusal(gate) == Refusal("declined", "not asked again, after: lab does not accept the API key")


@pytest.mark.parametrize(("asked", "waited"), [(30.0, 30.0), (0.0, 0.0), (1e35, MAX_WAIT)])
def test_a_busy_remote_is_given_the_time_that_it_asks_for(gate, clock, asked, waited):
    report(gate, Outcome("error", "busy", fault="busy", retry_after=asked))
    if waited:
        clock.now += waited - 1
        assert refusal(gate) is not None
        clock.now += 1
    assert refusal(gate) is None


def test_a_request_that_was_not_accepted_is_not_held_against_the_remote(gate):
    report(gate, Outcome("error", "too long", fault="request"))
    assert refusal(gate) is None


def test_ends_that_prove_nothing_change_nothing(gate):
    report(gate, DOWN, "cancelled")
    assert refusal(gate) is None
    report(gate, DOWN)
    report(gate, WELL, "cancelled")
    assert refusal(gate) is not None


def test_a_draft_that_was_faster_is_not_held_against_the_remote(gate):
    report(gate, WELL, "stalled")
    assert refusal(gate) is None


# --- the purse -------------------------------------------------------------------------------------------


class Coins:
    """Allows so many tokens in all."""

    def __init__(self, tokens):
        self.left = self.tokens = tokens

    def begin_answer(self):
        self.left = self.tokens

    def allowance(self, request):
        return self.left or "the purse is empty"

    def spend(self, request, outcome, tokens):
        self.left = max(0, self.left - tokens)
        return tokens / 1000


def test_a_span_has_no_more_tokens_than_the_purse_allows():
    gate = SpanGate(offline=False, uses_network=True, purse=Coins(8))
    assert gate.admit(request(1, max_tokens=64)) == Grant(8)
    assert report(gate, WELL) == 0.005
    assert gate.admit(request(2, max_tokens=2)) == Grant(2)
    report(gate, WELL)
    assert gate.admit(request(3)) == Refusal("budget", "the purse is empty")


def test_each_answer_has_the_purse_anew_whether_its_first_span_left_or_not(clock):
    gate = SpanGate(offline=False, uses_network=True, breaker=Breaker(clock=clock), purse=Coins(5))
    report(gate, DOWN)
    assert refusal(gate).end == "declined"
    clock.now += 100
    assert gate.admit(request(2)) == Grant(5)
    report(gate, WELL)
    assert refusal(gate, 3).end == "budget"
    assert gate.admit(request(1)) == Grant(5)


def test_a_failed_span_is_paid_for_too():
    gate = SpanGate(offline=False, uses_network=True, purse=Coins(8))
    assert report(gate, DOWN) == 0.005
    assert report(gate, WELL, "cancelled") == 0.005


# --- the dial --------------------------------------------------------------------------------------------


class User:
    """Says one thing, and takes down what they were asked."""

    def __init__(self, says):
        self.says, self.asked = says, []

    def __call__(self, request):
        self.asked.append(request)
        return self.says


def dialled(dial, says=True, *, leaves=True, inner=None):
    user = User(says)
    return DialGate(inner, dial=dial, leaves=leaves, consent=user), user


@pytest.mark.parametrize("dial", ["auto", "remote"])
def test_nobody_is_asked_where_the_dial_does_not_say_so(dial, gate):
    dialled_gate, user = dialled(dial, says=False, inner=gate)
    assert dialled_gate.admit(request()) == Grant(64)
    assert user.asked == []


@pytest.mark.parametrize("leaves", [True, False])
def test_local_lets_no_span_out(leaves, gate):
    dialled_gate, user = dialled("local", inner=gate, leaves=leaves)
    assert dialled_gate.admit(request()) == Refusal("declined", "local: nothing leaves this machine")
    assert user.asked == []


def test_ask_asks_and_takes_the_answer(gate):
    dialled_gate, user = dialled("ask", inner=gate)
    assert dialled_gate.admit(request(1)) == Grant(64)
    user.says = False
    assert dialled_gate.admit(request(2)) == Refusal("declined", "ask: you kept it here")
    assert [asked.span for asked in user.asked] == [1, 2]


def test_where_nobody_is_there_to_ask_nothing_leaves(gate):
    dialled_gate = DialGate(gate, dial="ask", leaves=True)
    assert dialled_gate.admit(request()) == Refusal("declined", "ask: nobody was there to ask")


def test_a_model_on_this_machine_never_asks():
    dialled_gate, user = dialled("ask", says=False, leaves=False)
    assert dialled_gate.admit(request()) == Grant(64)
    assert user.asked == []


def test_the_dial_can_be_turned_between_two_spans(gate):
    dialled_gate, user = dialled("auto", says=False, inner=gate)
    ends = []
    for span, dial in enumerate(["auto", "local", "ask", "auto"], 1):
        dialled_gate.dial = dial
        decision = dialled_gate.admit(request(span))
        ends.append(decision.reason[:3] if isinstance(decision, Refusal) else None)
    assert ends == [None, "loc", "ask", None]
    assert len(user.asked) == 1


def test_what_may_not_leave_anyway_is_not_asked_about(clock):
    breaker = Breaker(clock=clock)
    for inner, end in [
        (SpanGate(offline=True, uses_network=True), "offline"),
        (SpanGate(offline=False, uses_network=True, max_spans=0), "budget"),
        (SpanGate(offline=False, uses_network=True, purse=Coins(0)), "budget"),
        (SpanGate(offline=False, uses_network=True, breaker=breaker), "declined"),
    ]:
        breaker.report(DOWN)
        dialled_gate, user = dialled("ask", inner=inner)
        assert dialled_gate.admit(request()).end == end
        assert user.asked == []


def test_the_user_is_asked_about_what_the_purse_allows():
    inner = SpanGate(offline=False, uses_network=True, purse=Coins(8))
    dialled_gate, user = dialled("ask", inner=inner)
    dialled_gate.admit(request(max_tokens=64))
    assert [asked.max_tokens for asked in user.asked] == [8]


def test_what_a_span_cost_is_told_through_the_dial():
    dialled_gate, _ = dialled("ask", inner=SpanGate(offline=False, uses_network=True, purse=Coins(8)))
    dialled_gate.admit(request())
    assert dialled_gate.report(request(), "stop", WELL, 5) == 0.005
    assert dialled("auto")[0].report(request(), "stop", WELL, 5) is None


def test_an_answer_that_goes_on_has_its_spans_and_its_purse_anew():
    gate = SpanGate(offline=False, uses_network=True, max_spans=2, purse=Coins(8))
    for span in (1, 2):
        gate.admit(request(span))
    report(gate, WELL), report(gate, WELL)
    assert refusal(gate, 3).end == "budget"
    first = SpanRequest(3, sent_tokens=1, local_tokens=1, remote_tokens=1, max_tokens=64, taken_over=2)
    assert gate.admit(first) == Grant(8)
    second = SpanRequest(4, sent_tokens=1, local_tokens=1, remote_tokens=1, max_tokens=64, taken_over=2)
    assert gate.admit(second) == Grant(8)
