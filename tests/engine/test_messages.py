"""What the two processes say to each other comes through as it was."""

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge.engine.messages import (
    Answer,
    Answered,
    Answering,
    Asked,
    Choices,
    Command,
    Decide,
    Died,
    Draft,
    Failed,
    Forget,
    GoOffline,
    Loading,
    Note,
    Open,
    Ready,
    Report,
    Steer,
    Stop,
    Verdict,
    Working,
    decode,
    encode,
)
from sr_edge.events import (
    Event,
    Finished,
    FinishReason,
    LocalToken,
    SpanClosed,
    SpanDelta,
    SpanOpened,
    Started,
)
from sr_edge.policy import Dial
from sr_edge.roles import First, Message

TEXT = st.text()  # lone surrogates and line separators of all kinds among them
MAYBE = st.none() | TEXT
NUMBER = st.integers(0, 10**9)
REAL = st.floats(0, 1e9)
IDS = st.lists(NUMBER, max_size=4).map(tuple)
FLAGS = st.dictionaries(TEXT, st.none() | st.booleans() | NUMBER | REAL | TEXT | st.lists(TEXT, max_size=2))
MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), TEXT), max_size=3
).map(tuple)


def one_of(literal):
    return st.sampled_from(get_args(literal))


EVENTS = {
    Started: st.builds(Started, prompt_ids=IDS, model=TEXT, big=MAYBE, reused=NUMBER, opening=TEXT, at=REAL),
    LocalToken: st.builds(LocalToken, id=NUMBER, text=TEXT, logprob=st.floats(-99, 0), at=REAL),
    SpanOpened: st.builds(
        SpanOpened,
        span=NUMBER,
        trigger=st.sampled_from(["marker", "policy", "random", "user"]),
        p_open=st.none() | REAL,
        remote=MAYBE,
        sent_tokens=NUMBER,
        sent_bytes=NUMBER,
        at=REAL,
    ),
    SpanDelta: st.builds(SpanDelta, span=NUMBER, text=TEXT, at=REAL),
    SpanClosed: st.builds(
        SpanClosed,
        span=NUMBER,
        ids=IDS,
        end=st.sampled_from(["handback", "cancelled", "error"]),
        cost=st.none() | REAL,
        ttft=st.none() | REAL,
        error=MAYBE,
        at=REAL,
    ),
    Finished: st.builds(
        Finished,
        reason=one_of(FinishReason),
        prompt_tokens=NUMBER,
        local_tokens=NUMBER,
        remote_tokens=NUMBER,
        seconds=REAL,
        error=MAYBE,
        at=REAL,
    ),
}
PASTS = st.lists(st.one_of(*EVENTS.values()), max_size=4).map(tuple)
KINDS = {
    **EVENTS,
    Open: st.builds(
        Open,
        st.builds(
            Choices,
            config=MAYBE,
            profile=MAYBE,
            flags=FLAGS,
            big=MAYBE,
            big_model=MAYBE,
            hedge=st.none() | st.booleans(),
        ),
    ),
    Answer: st.builds(
        Answer,
        NUMBER,
        MESSAGES,
        PASTS,
        past_model=MAYBE,
        first=st.none() | one_of(First),
        conversation=MAYBE,
    ),
    Draft: st.builds(Draft, MESSAGES, conversation=MAYBE),
    Forget: st.builds(Forget, TEXT),
    Stop: st.builds(Stop, NUMBER),
    Steer: st.builds(Steer, one_of(Dial), st.floats(-99, 99)),
    Decide: st.builds(Decide, one_of(Verdict)),
    GoOffline: st.builds(GoOffline),
    Loading: st.builds(Loading, st.floats(0, 1)),
    Ready: st.builds(
        Ready,
        TEXT,
        NUMBER,
        big=MAYBE,
        leaves=st.booleans(),
        where=MAYBE,
        can_ask=st.booleans(),
        offline=st.booleans(),
        price=st.none() | st.tuples(REAL, REAL),
        notices=st.lists(TEXT, max_size=3).map(tuple),
    ),
    Failed: st.builds(Failed, TEXT),
    Answering: st.builds(Answering, NUMBER),
    Working: st.builds(Working, st.sampled_from(["reading", "catching up"]), NUMBER, NUMBER),
    Asked: st.builds(Asked, NUMBER, TEXT, TEXT, NUMBER, NUMBER, TEXT, cost=st.none() | REAL),
    Note: st.builds(Note, TEXT),
    Answered: st.builds(Answered, NUMBER, error=MAYBE, spent=st.none() | st.tuples(REAL, NUMBER)),
    Died: st.builds(Died, TEXT, number=st.none() | NUMBER),
}


def test_every_kind_is_tried():
    assert set(KINDS) == {*get_args(Command), *get_args(Report), *get_args(Event)}
    assert len({kind.kind for kind in KINDS}) == len(KINDS), "one name each"


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_message_comes_through_as_it_was(kind, data):
    message = data.draw(KINDS[kind])
    line = encode(message)
    assert "\n" not in line
    assert "\r" not in line
    on_the_wire = line.encode("utf-8", "backslashreplace")
    assert decode(on_the_wire.decode()) == message


def test_an_answer_with_its_past_can_always_be_sent():
    past = (LocalToken(id=1, text="\udc80\u2028", logprob=-0.5),)
    encode(Answer(1, (Message("user", "\udc80"),), past)).encode("ascii")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "llama_model_loader: loaded",
        "[]",
        "1",
        "null",
        "{}",
        '{"say": "shout"}',
        '{"say": null}',
        '{"say": "stop"}',
        '{"say": "stop", "number": 1, "louder": true}',
        '{"say": "open", "choices": {"colour": "red"}}',
        '{"say": "answer", "number": 1, "messages": [{"role": "user"}]}',
        '{"say": "answer", "number": 1, "messages": [], "past": ["{}"]}',
        '{"event": "local_token"}',
        '{"say": ["stop"]}',
        "[" * 100_000,
    ],
)
def test_anything_else_is_no_message(line):
    with pytest.raises(ValueError, match=r"."):
        decode(line)


def test_what_the_child_finds_by_itself_is_not_sent():
    assert set(json.loads(encode(Open(Choices())))["choices"]) == {
        "config",
        "profile",
        "flags",
        "lora",
        "big",
        "big_model",
        "hedge",
    }
