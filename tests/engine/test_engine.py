"""The true child with the built-in pair: answers, dials, and what may leave."""

import itertools
import json
import threading

import pytest
from tests.engine.situations import (
    ENDLESS,
    HARD,
    QUESTION,
    STATES,
    choices,
    endpoint,
    long_prompt,
    opened,
    situation,
)

from sr_edge.engine.messages import Answered, Answering, Asked, Failed, Loading, Ready, Working
from sr_edge.events import Event, Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started
from sr_edge.past import taken_over
from sr_edge.roles import Message
from sr_edge.session import Session, SessionSettings
from sr_edge.testing.fault_endpoint import COMPLETIONS, HANG
from sr_edge.transcript import fold

ENDED = COMPLETIONS.stream(" 20 * 4 = 80")[1:]


@pytest.fixture(scope="module")
def running():
    """One child for all tests that leave it as it was."""
    with opened() as (engine, ear):
        engine.start()
        ear.wait(Ready)
        yield engine, ear


def ask(engine, ear, messages=QUESTION, **options):
    """One answer: its events."""
    before = len(ear.all)
    number = engine.answer(messages, **options)
    ear.answered(number)
    end = next(n for n, one in enumerate(ear.all) if isinstance(one, Answered) and one.number == number)
    return [one for one in ear.all[before:end] if isinstance(one, Event)]


def timeless(events):
    """Without what depends on the clock and on what was in the cache."""
    times = dict.fromkeys(("at", "seconds", "ttft", "resume", "local_seconds", "reused"))
    return [
        {name: getattr(e, name) for name in e.__slots__ if name not in times} | {"kind": e.kind}
        for e in events
    ]


# --- answers ---


def test_it_says_what_an_engine_in_this_process_would(running):
    engine, ear = running
    settings = SessionSettings(temperature=0, seed=1)
    with Session.open(settings) as session:
        for question in HARD[:4]:
            messages = [Message("user", question)]
            expected = list(session.answer(messages))
            assert timeless(ask(engine, ear, messages)) == timeless(expected)
    assert ear.of(SpanDelta)


def test_what_is_heard_has_an_order(running):
    engine, ear = running
    before = len(ear.all)
    ask(engine, ear)
    heard = ear.all[before:]
    assert isinstance(heard[0], Answering)
    assert isinstance(heard[-1], Answered)
    assert (heard[-1].error, heard[-1].number) == (None, heard[0].number)
    events = [type(one) for one in heard[1:-1] if not isinstance(one, Working)]
    assert events[0] is Started
    assert events[-1] is Finished


def test_loading_is_told_from_nothing_to_all():
    with opened() as (engine, ear):
        engine.start()
        ready = ear.wait(Ready)
        told = [one.done for one in ear.of(Loading)]
    assert told == sorted(told), "of both models as of one"
    assert told[0] < 0.1
    assert told[-1] == 1
    assert (ready.context, ready.leaves, ready.can_ask, ready.offline) == (1024, False, True, False)
    assert ready.big


def test_a_long_prompt_is_told_of_while_it_is_read(running):
    engine, ear = running
    before = len(ear.all)
    engine.stop()
    ask(engine, ear, long_prompt())
    told = [one for one in ear.all[before:] if isinstance(one, Working)]
    assert [one.doing for one in told][:2] == ["reading", "reading"]
    assert told[0].done == 0
    assert told[0].total > 512


def test_two_answers_in_a_row_come_one_after_the_other(running):
    engine, ear = running
    before = len(ear.all)
    numbers = [engine.answer(QUESTION), engine.answer([Message("user", HARD[1])])]
    for number in numbers:
        ear.answered(number)
    order = [(type(one), one.number) for one in ear.all[before:] if isinstance(one, Answering | Answered)]
    assert order == [(kind, number) for number in numbers for kind in (Answering, Answered)]


def test_a_stop_ends_all_that_was_asked_for(running):
    engine, ear = running
    numbers = [engine.answer(QUESTION), engine.answer(QUESTION)]
    ear.wait(Answering, lambda one: one.number == numbers[0])
    engine.stop()
    for number in numbers:
        ear.answered(number)
    assert not [one for one in ear.of(Answering) if one.number == numbers[1]]
    assert fold(ask(engine, ear)).finish == "stop", "the next one is not stopped"


def test_an_answer_goes_on_where_it_was_stopped(running):
    engine, ear = running
    whole = ask(engine, ear)
    half = taken_over(whole[: len(whole) // 3])
    half = tuple(itertools.takewhile(lambda e: not isinstance(e, SpanOpened), half))
    assert len(half) > 5
    events = ask(engine, ear, past=half, past_model=whole[0].model)
    assert tuple(events[1 : 1 + len(half)]) == half
    assert fold(events).text == fold(whole).text
    assert fold(events).ids == fold(whole).ids


def test_a_span_is_written_again_by_whom_the_user_says(running):
    engine, ear = running
    whole = ask(engine, ear)
    past = taken_over(whole, before_span=1)
    local = fold(ask(engine, ear, past=past, first="local"))
    remote = fold(ask(engine, ear, past=past, first="remote"))
    before = fold(past).text
    assert local.text.startswith(before)
    assert not local.trail[0].text[len(before) :].startswith("<")
    assert len(local.trail[0].text) > len(before), "the small model goes on"
    assert remote.spans[0].trigger == "user"
    assert remote.spans[0].text == fold(whole).spans[0].text


def test_another_model_cannot_go_on(running):
    engine, ear = running
    past = (LocalToken(id=5, text="x", logprob=-0.1),)
    number = engine.answer(QUESTION, past=past, past_model="another")
    assert "another wrote this" in ear.answered(number).error


def test_where_there_is_no_large_model_none_can_go_on():
    with opened(choices(**{"offload.policy": "local"})) as (engine, ear):
        number = engine.answer(QUESTION, first="remote")
        assert "there is no large model to go on" in ear.answered(number).error


def test_what_the_pair_was_not_made_for_is_not_gone_on_with_and_nothing_of_it_is_lost(running):
    engine, ear = running
    past = (LocalToken(id=5, text="x", logprob=-0.1),)
    before = len(ear.all)
    number = engine.answer([Message("user", "Who wrote Hamlet?")], past=past)
    assert "unknown here: Who, wrote, Hamlet" in ear.answered(number).error
    assert not [one for one in ear.all[before:] if isinstance(one, Event)], "no stream that lacks the past"


def test_a_prompt_that_does_not_fit_is_an_error_and_the_child_lives_on(running):
    engine, ear = running
    number = engine.answer(long_prompt(3))
    assert "the context holds 1024" in ear.answered(number).error
    assert fold(ask(engine, ear)).finish == "stop"


def test_a_past_that_is_none_is_an_error_and_the_child_lives_on(running):
    engine, ear = running
    number = engine.answer(QUESTION, past=[SpanDelta(span=7, text="x")])
    assert "span 7 is not open here" in ear.answered(number).error
    assert fold(ask(engine, ear)).finish == "stop"


# --- opening ---


@pytest.mark.parametrize("kind", ["missing", "bad"])
def test_a_model_that_cannot_be_opened_is_said_and_another_can_be(kind, tmp_path):
    path = tmp_path / "model.gguf"
    if kind == "bad":
        path.write_bytes(b"GGUF" + b"\xff" * 200)
    with opened(choices(model=str(path))) as (engine, ear):
        number = engine.answer(QUESTION)
        failed = ear.wait(Failed)
        assert str(path) in failed.error
        assert "no model is open" in ear.answered(number).error
        pid = engine.pid
        engine.reopen(choices())
        ear.wait(Ready)
        assert fold(ask(engine, ear)).finish == "stop"
        assert engine.pid == pid


def test_settings_that_cannot_be_meant_are_said():
    with opened(choices(**{"sampling.temperature": -1})) as (engine, ear):
        engine.start()
        assert "must be a number of 0 or more" in ear.wait(Failed).error


# --- stopping ---


@pytest.mark.parametrize("state", STATES)
def test_a_stop_ends_the_answer_in_every_state(state):
    with situation(state) as (engine, ear, number):
        engine.stop()
        answered = ear.answered(number)
        events = [one for one in ear.all if isinstance(one, Event)]
        assert answered.error is None
        if state in ("starting", "loading"):
            assert events == []
        else:
            assert fold(events).finish == "cancelled"
            assert isinstance(events[-1], Finished)
            opened_spans = [e for e in events if isinstance(e, SpanOpened)]
            assert len(opened_spans) == sum(isinstance(e, SpanClosed) for e in events)
        # and the same child answers the next one
        pid = engine.pid
        if state in ("silent", "streaming", "asked"):
            engine.steer(dial="local", bias=0.0)
        assert fold(ask(engine, ear)).finish == "stop"
        assert engine.pid == pid


def test_what_was_stopped_goes_on_as_if_it_had_not_been(running):
    """Stopped by an abort in the middle of whatever step, many times over."""
    engine, ear = running
    whole = fold(ask(engine, ear))
    past, model, spans = (), None, 0
    for n in range(200):
        before = len(ear.all)
        number = engine.answer(QUESTION, past=past, past_model=model)
        ear.wait(Started, after=before)
        for _ in range(n % 7):
            threading.Event().wait(0.003)
        engine.stop()
        ear.answered(number)
        events = [one for one in ear.all[before:] if isinstance(one, Event)]
        transcript = fold(events)
        assert tuple(events[1 : 1 + len(past)]) == past
        assert transcript.error is None
        past, model, spans = taken_over(events), transcript.model, len(transcript.spans)
        if transcript.finish == "stop":
            break
    assert transcript.finish == "stop"
    if spans == len(whole.spans) and all(span.end != "cancelled" for span in transcript.spans):
        assert transcript.ids == whole.ids


# --- the dial ---


def test_the_dial_is_turned_between_answers_and_in_the_middle(running):
    engine, ear = running
    engine.steer(dial="local", bias=0.0)
    assert fold(ask(engine, ear)).spans == ()
    engine.steer(dial="auto", bias=0.0)
    assert fold(ask(engine, ear)).spans


def test_the_bias_makes_it_ask_more_or_not_at_all(running):
    engine, ear = running

    def spans(bias):
        engine.steer(dial="auto", bias=bias)
        return sum(len(fold(ask(engine, ear, [Message("user", q)])).spans) for q in HARD[:3])

    straight = spans(0.0)
    assert spans(-50.0) == 0
    assert spans(8.0) > straight > 0
    engine.steer(dial="auto", bias=0.0)


def asking(*ops):
    return endpoint(*(ops or ENDED))


def test_nothing_is_sent_before_the_user_says_yes():
    with asking() as server, opened(choices(server)) as (engine, ear):
        engine.steer(dial="ask", bias=0.0)
        number = engine.answer(QUESTION)
        asked = ear.wait(Asked)
        assert server.connections == []
        assert (asked.where, asked.span) == (server.where, 1)
        assert HARD[0][:20] in asked.text
        assert asked.size > len(HARD[0])
        assert asked.tokens > 20
        assert not ear.of(SpanOpened), "it is not announced before it is allowed"
        engine.steer(dial="ask", bias=-50.0)  # it need not ask again
        engine.decide("yes")
        ear.answered(number)
        transcript = fold(one for one in ear.all if isinstance(one, Event))
        assert transcript.spans[0].text
        assert server.posts
        assert json.loads(asked.text)["prompt"] == server.posts[0].body["prompt"], (
            "what was shown is what was sent"
        )


def test_no_keeps_it_here():
    with asking() as server, opened(choices(server)) as (engine, ear):
        engine.steer(dial="ask", bias=0.0)
        number = engine.answer(QUESTION)
        ear.wait(Asked)
        engine.steer(dial="ask", bias=-50.0)  # it need not ask again
        engine.decide("no")
        ear.answered(number)
        spans = fold(one for one in ear.all if isinstance(one, Event)).spans
        assert {(span.end, span.error) for span in spans} == {("declined", "ask: you kept it here")}
        assert server.connections == []


@pytest.mark.parametrize(("dial", "sent"), [("auto", True), ("local", False)])
def test_turning_the_dial_answers_the_question(dial, sent):
    with asking() as server, opened(choices(server)) as (engine, ear):
        engine.steer(dial="ask", bias=0.0)
        number = engine.answer(QUESTION)
        ear.wait(Asked)
        engine.steer(dial=dial, bias=0.0)
        ear.answered(number)
        assert len(ear.of(Asked)) == 1, "always means always"
        assert bool(server.posts) is sent


def test_a_verdict_to_no_question_is_no_leave():
    with asking() as server, opened(choices(server)) as (engine, ear):
        engine.steer(dial="ask", bias=0.0)
        engine.decide("yes")
        number = engine.answer(QUESTION)
        ear.wait(Asked)
        engine.stop()
        ear.answered(number)
        assert server.connections == []


def test_going_offline_answers_the_question_too():
    with asking() as server, opened(choices(server)) as (engine, ear):
        engine.steer(dial="ask", bias=0.0)
        number = engine.answer(QUESTION)
        ear.wait(Asked)
        engine.go_offline()
        assert ear.answered(number).error is None
        assert server.connections == []


def test_going_offline_hangs_up_and_the_answer_goes_on_here():
    with endpoint(ENDLESS) as server, opened(choices(server)) as (engine, ear):
        number = engine.answer(QUESTION)
        ear.wait(SpanDelta)
        engine.go_offline()
        assert ear.answered(number).error is None
        posts = len(server.posts)
        spans = fold(one for one in ear.all if isinstance(one, Event)).spans
        assert spans[0].end == "error"
        assert "offline" in spans[0].error
        assert all(span.end == "offline" for span in spans[1:])
        before = len(ear.all)
        ask(engine, ear)
        assert {e.end for e in ear.all[before:] if isinstance(e, SpanClosed)} == {"offline"}
        assert len(server.posts) == posts


def test_offline_outlives_the_child_until_it_is_undone():
    with asking() as server, opened(choices(server)) as (engine, ear):
        engine.go_offline()
        engine.start()
        assert ear.wait(Ready).offline
        before = len(ear.all)
        engine.go_online()
        assert not ear.wait(Ready, after=before).offline
        ask(engine, ear)
        assert server.posts


def test_a_silent_remote_is_asked_and_named():
    with endpoint(HANG) as server, opened(choices(server)) as (engine, ear):
        engine.start()
        ready = ear.wait(Ready)
        assert (ready.leaves, ready.where) == (True, server.where)
