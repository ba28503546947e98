"""What one reply says: its text, how it ended, what failed; whatever a server may send."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_edge.remote.dialects import dialect_named
from sr_edge.remote.reply import ReplyError, ReplyReader, UnreadableError, error_text, parse_object
from sr_edge.remote.seam import Seam
from sr_edge.remote.sse import ServerSentEvent, SseDecoder


def chat(finish=None, **delta):
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def read(*events, thinking=False, seam=None):
    """The text, and the reader; the failure if there is one."""
    reader, text = ReplyReader(thinking=thinking, seam=seam), ""
    try:
        for event in events:
            event = event if isinstance(event, ServerSentEvent) else ServerSentEvent(event)
            text += reader.push(event) or ""
    except ReplyError as failed:
        return text + failed.text, reader, str(failed)
    return text + reader.flush(), reader, None


# --- how it ended -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        ("stop", "stop"),
        ("STOP", "stop"),
        ("eos", "stop"),
        ("eos_token", "stop"),
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("completed", "stop"),
        ("COMPLETE", "stop"),
        ("length", "cap"),
        ("max_tokens", "cap"),
        ("MAX_TOKENS", "cap"),
        ("model_length", "cap"),
    ],
)
def test_finish_reasons_that_end_well(reason, end):
    text, reader, failure = read(chat(content="so 3"), chat(reason, content="."))
    assert (text, reader.finished, failure) == ("so 3.", end, None)
    assert reader.is_complete


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("content_filter", "the remote's content filter cut it off"),
        ("insufficient_system_resource", "the remote ran out of resources"),
        ("error", "the remote broke off with an error"),
        ("tool_calls", "the remote ended with finish reason 'tool_calls'"),
        ("function_call", "the remote ended with finish reason 'function_call'"),
        ("abort", "the remote ended with finish reason 'abort'"),
        ("\x1b[31mred\n", "the remote ended with finish reason '[31mred'"),
    ],
)
def test_finish_reasons_that_are_failures_keep_the_text(reason, line):
    text, reader, failure = read(chat(content="so 3"), chat(reason, content="."))
    assert (text, failure) == ("so 3.", line)
    assert not reader.is_complete
    assert reader.characters == 5


def test_a_failure_keeps_what_was_held_back_too():
    seam = Seam("the number of wagons", dialect=dialect_named("prefix"), opening="")
    assert read(chat("content_filter", content="the number"), seam=seam)[0] == "the number"


@pytest.mark.parametrize("reason", [None, "", "null", "NULL", 3, [], {}, True])
def test_what_is_no_finish_reason_ends_nothing(reason):
    _, reader, failure = read(json.dumps({"choices": [{"delta": {}, "finish_reason": reason}]}))
    assert (reader.is_complete, failure) == (False, None)


def test_the_first_finish_reason_counts():
    assert read(chat("stop", content="x"), chat("error"))[1].finished == "stop"
    assert read(chat("stop", content="x"), chat(content="more"))[0] == "x"


# --- errors -------------------------------------------------------------------------------------------------

ERRORS = {
    "in the data": b'data: {"error": {"message": "overloaded", "code": 503}}\n\n',
    "in the data, as text": b'data: {"error": "overloaded"}\n\n',
    "as an event": b'event: error\ndata: {"message": "overloaded"}\n\n',
    "as an event, no json": b"event: error\ndata: overloaded\n\n",
    "as a field": b'error: {"code": 500, "message": "overloaded", "type": "server_error"}\n\n',
    "with a choice": b'data: {"error": {"code": "server_error", "message": "overloaded"}, '
    b'"choices": [{"delta": {"content": ""}, "finish_reason": "error"}]}\n\n',
    "in a choice": b'data: {"choices": [{"delta": {}, "error": {"message": "overloaded"}, '
    b'"finish_reason": "error"}]}\n\n',
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("before", [0, 1, 2])
def test_an_error_is_never_text(name, before):
    data = (
        b"".join(f"data: {chat(content=piece)}\n\n".encode() for piece in ("so ", "3")[:before])
        + ERRORS[name]
    )
    decoder = SseDecoder()
    text, reader, failure = read(*[*decoder.push(data), *decoder.flush()])
    assert text == "so 3"[: [0, 3, 4][before]]
    assert failure == "the remote reported an error: overloaded"
    assert not reader.is_complete


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": {"message": "a"}}, "a"),
        ({"error": "a"}, "a"),
        ({"message": "a"}, "a"),
        ({"detail": "a"}, "a"),
        ({"detail": [{"loc": ["body"], "msg": "a"}]}, '[{"loc": ["body"], "msg": "a"}]'),
        ({"error": True, "message": "a"}, "a"),
        ({"error": {"code": 3}}, '{"code": 3}'),
        ({}, ""),
    ],
)
def test_error_bodies(body, text):
    assert error_text(body) == text


def test_an_error_without_a_bottom_has_a_text():
    body = {"message": "a"}
    for _ in range(100_000):
        body = {"error": body}
    assert error_text(body)
    while "error" in body:  # or else freeing it is what has no bottom
        body = body.pop("error")


# --- json ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        "",
        "{nope",
        "nope",
        "3",
        "null",
        '"text"',
        "[1]",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"choices": ' + "[" * 990 + "]" * 990 + "}",
        "[" * 900 + "]" * 900,
        '{"usage": %s}' % ("9" * 10_000),
        '{"usage": NaN}',
        '{"usage": {"prompt_tokens": Infinity}}',
        '{"choices": [{"delta": {"content": -Infinity}}]}',
        '{"a": 1, "a": 2}',
        "\ufeff{}",
        "{}\x00",
        '{"error": ' * 400 + "{}" + "}" * 400,
    ],
)  # fmt: skip
def test_whatever_is_sent_is_read_or_refused_by_name(data):
    text, reader, _ = read(data)
    assert text == ""
    assert not reader.is_complete
    with contextlib.suppress(ReplyError):
        parse_object(data)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_what_python_only_takes_for_json_is_refused(constant):
    with pytest.raises(UnreadableError, match="not JSON"):
        parse_object(f'{{"usage": {constant}}}')


def test_of_a_key_that_is_there_twice_the_last_counts():
    assert read('{"choices": [], "choices": [{"delta": {"content": "x"}}]}')[0] == "x"


KEYS = [
    "choices", "delta", "message", "text", "content", "reasoning", "reasoning_content", "index",
    "finish_reason", "usage", "error", "prompt_tokens", "model", "detail",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("ab\ud800", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=400)
@given(st.lists(JSON, max_size=4), st.booleans(), st.sampled_from(["instruct", "completions", "vllm-think"]))
def test_no_json_is_too_strange(bodies, thinking, name):
    seam = Seam("a b", dialect=dialect_named(name), opening="<think>\n" if thinking else "")
    text, reader, _ = read(*map(json.dumps, bodies), thinking=thinking, seam=seam)
    text.encode()
    assert reader.characters == len(text)
    assert reader.prompt_tokens is None or reader.prompt_tokens >= 0


def test_lone_surrogates_become_replacement_characters():
    assert read(r'{"choices": [{"delta": {"content": "a\ud800b \ud83d\ude00"}}]}')[0] == "a\ufffdb \U0001f600"


# --- events -------------------------------------------------------------------------------------------------


def test_what_comes_twice_under_one_id_is_dropped_and_equal_text_is_not():
    ha = chat(content="ha ")
    assert read(ha, ha)[0] == "ha ha "
    assert read(ServerSentEvent(ha, id="1"), ServerSentEvent(ha, id="2"))[0] == "ha ha "
    assert read(ServerSentEvent(ha, id="1"), ServerSentEvent(ha, id="1"), ServerSentEvent(ha))[0] == "ha ha "


def test_an_id_that_all_events_share_says_nothing():
    pieces = ["so ", "ha ", "ha ", "3"]
    assert read(*(ServerSentEvent(chat(content=piece), id="1") for piece in pieces))[0] == "so ha ha 3"


def test_ids_are_those_of_their_own_event():
    data = b"id: 7\ndata: a\n\ndata: b\n\nid: x\0y\ndata: c\n\nid: 8\n\ndata: d\n\n"
    assert [event.id for event in SseDecoder().push(data)] == ["7", "", "", ""]


@pytest.mark.parametrize("count", [10**400, 10**9 + 1, -1, 1e9, True, "9", None, [9]])
def test_a_count_that_cannot_be_meant_is_not_said(count):
    usage = {"prompt_tokens": count, "completion_tokens": count}
    _, reader, failure = read(json.dumps({"choices": [], "usage": usage}))
    assert (reader.prompt_tokens, reader.completion_tokens, failure) == (None, None, None)


def test_a_count_may_be_large():
    _, reader, _ = read(json.dumps({"usage": {"prompt_tokens": 10**9, "completion_tokens": 0}}))
    assert (reader.prompt_tokens, reader.completion_tokens) == (10**9, 0)


def test_the_model_that_answers_is_noted():
    other = json.dumps({"model": "other", "choices": []})
    assert read(chat(content="x"), other)[1].model == "other"
    assert read(json.dumps({"model": 3, "choices": []}))[1].model is None


# --- thoughts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_continues_a_thought_only_where_the_dialect_means_it(field):
    events = (chat(**{field: " of it"}), chat("stop", content="Text"))
    for name, text in (
        ("vllm-think", " of it"),
        ("reasoning", " of it"),
        ("prefix", "Text"),
        ("instruct", " Text"),
    ):
        seam = Seam("One", dialect=dialect_named(name), opening="<think>\n")
        assert read(*events, thinking=True, seam=seam)[0] == text
