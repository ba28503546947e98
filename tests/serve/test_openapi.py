"""The document says what is read and what is sent: a validator that nobody here wrote compares them."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sr_edge.events import Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started
from sr_edge.serve.jobs import Over
from sr_edge.serve.openapi import document
from sr_edge.serve.replies import ChatReply, CompletionReply, encoded, problem_of
from sr_edge.serve.requests import (
    CHAT,
    COMPLETION,
    BadRequest,
    RequestLimits,
    model_ids,
    parse_chat,
    parse_completion,
)

MODELS = model_ids("tiny", has_big=True)
LIMITS = RequestLimits(models=MODELS)
DOCUMENT = document(list(MODELS))
SCHEMAS = DOCUMENT["components"]["schemas"]
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def is_valid():
    jsonschema_rs = pytest.importorskip("jsonschema_rs")  # it comes with the judges
    components = DOCUMENT["components"]
    validators = {
        name: jsonschema_rs.Draft202012Validator(
            {"$ref": f"#/components/schemas/{name}", "components": components}
        )
        for name in SCHEMAS
    }
    return lambda name, value: validators[name].is_valid(value)


def references(value):
    if isinstance(value, dict):
        yield from [value["$ref"]] if "$ref" in value else []
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from references(item)


def test_all_that_is_referred_to_is_there():
    assert {f"#/components/schemas/{name}" for name in SCHEMAS} == {*references(DOCUMENT)}
    assert json.loads(encoded(DOCUMENT)) == json.loads(json.dumps(DOCUMENT))


def test_a_raw_prompt_is_described_with_the_models_own_ids():
    described = document(["tiny"], vocabulary_size=300)["components"]["schemas"]["CompletionRequest"]
    _, ids, _, several = described["properties"]["prompt"]["anyOf"]
    assert ids["items"]["maximum"] == several["items"]["items"]["maximum"] == 299
    limits = RequestLimits(models=MODELS, vocabulary_size=300)
    for prompt in ([299], [[5], [299]]):
        assert parse_completion(json.dumps({"prompt": prompt}).encode(), limits).prompts
    for prompt in ([300], [[5], [300]]):
        with pytest.raises(BadRequest, match="300"):
            parse_completion(json.dumps({"prompt": prompt}).encode(), limits)


def test_every_parameter_is_described_and_no_other():
    for schema, table in (("ChatRequest", CHAT), ("CompletionRequest", COMPLETION)):
        assert SCHEMAS[schema]["properties"].keys() == table.kinds.keys()
        assert SCHEMAS[schema]["additionalProperties"] is False
    assert SCHEMAS["ChatRequest"]["required"] == ["messages"]
    assert SCHEMAS["ChatRequest"]["properties"]["model"]["enum"] == [*MODELS, None]


def test_only_the_page_and_the_health_need_no_token():
    operations = {
        (path, method): operation
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
        if method in ("get", "post")
    }
    free = {where for where, operation in operations.items() if operation.get("security") == []}
    assert free == {("/", "get"), ("/health", "get")}
    assert DOCUMENT["security"] == [{"token": []}]
    assert {path for path, method in operations if method == "post"} == {
        "/v1/chat/completions",
        "/v1/completions",
    }


_values = st.sampled_from(
    [
        *(None, True, False, 0, 1, 2, 16, 17, -1, 0.0, 1.0, 0.5, 2.5, 1e300, 2**32 - 2, 2**32 - 1, 2**40),
        *(
            "",
            "a",
            "auto",
            "none",
            "default",
            "medium",
            "text",
            "content",
            "reasoning_content",
            "tiny:remote",
        ),
        *([], {}, [""], ["a"], ["text"], [1], [[1]], [[]], ["a", 1], {"type": "text"}, {"a": "b"}, {"a": 1}),
        *({"include_usage": True}, {"include_usage": None}, {"events": False}, {"events": 0}, {"x": None}),
    ]
)
_turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "developer", "assistant", "tool", None])},
    optional={
        "content": st.sampled_from(["a", "", None, 1, [], [{"type": "text", "text": "a"}], [{"type": "x"}]]),
        "reasoning_content": st.sampled_from(["a", None, 1]),
        "type": st.sampled_from(["text", "x", None]),
        "tool_calls": st.sampled_from([[], None, [{}]]),
        "name": st.none(),
    },
)


def bodies(table, **required):
    """With no more than a few parameters beyond those: else hardly any would be read."""
    others = st.dictionaries(
        st.sampled_from(sorted(table.kinds.keys() - required.keys())), _values, max_size=3
    )
    return st.builds(lambda must, may: must | may, st.fixed_dictionaries(required), others)


def refusal(parse, body):
    try:
        parse(json.dumps(body).encode(), LIMITS)
    except BadRequest as error:
        return error
    return None


@settings(max_examples=300)
@given(bodies(CHAT, messages=st.just(HI) | st.lists(_turns, max_size=3)))
def test_a_conversation_is_read_where_the_document_allows_it(is_valid, body):
    assume(None in (body.get("max_tokens"), body.get("max_completion_tokens")))
    error = refusal(parse_chat, body)
    if error is None or error.param != "continue_final_message":  # no schema can look at the last message
        assert is_valid("ChatRequest", body) == (error is None)
    assert error is None or is_valid("Error", problem_of(error).body)


@settings(max_examples=150)
@given(bodies(COMPLETION, prompt=st.just("a") | _values))
def test_a_prompt_is_read_where_the_document_allows_it(is_valid, body):
    assert is_valid("CompletionRequest", body) == (refusal(parse_completion, body) is None)


@pytest.mark.parametrize("asks_all", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_sent_is_what_the_document_says(is_valid, stream, asks_all):
    heard = [
        Started((1, 2), "tiny", "big", opening="<think>\n"),
        LocalToken(1, "hm</think>so", -0.5),
        SpanOpened(1, "marker", 0.5, "big", sent_tokens=2, sent_bytes=3),
        SpanDelta(1, "yes"),
        SpanClosed(1, (3,), "stop", tokens=1, cost=0.5, ttft=0.1, seconds=0.2),
        LocalToken(2, "", -0.5),
        Finished("stop", 2, 2, 1, seconds=1.0),
        Over(False),
    ]
    more = {"stream": stream}
    if asks_all:
        more |= {"stream_options": {"include_usage": True}, "sr_edge": {"events": True}}
    chat = parse_chat(json.dumps({"messages": HI, "logprobs": asks_all} | more).encode(), LIMITS)
    raw = parse_completion(
        json.dumps({"prompt": "a", "logprobs": 0 if asks_all else None} | more).encode(), LIMITS
    )
    for reply, name in (
        (ChatReply(chat, id="1", created=1), "ChatCompletionChunk" if stream else "ChatCompletion"),
        (CompletionReply(raw, id="1", created=1), "Completion"),
    ):
        chunks = [chunk for one in heard for chunk in reply.push(one)]
        sent = chunks if stream else [reply.whole()]
        assert len(sent) > (5 if stream else 0)
        for one in sent:
            assert is_valid(name, json.loads(encoded(one))), one
