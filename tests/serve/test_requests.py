"""Bodies as clients send them: what they come to, and by what name the others are refused."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sr_edge.extract import END_THINK, THINK
from sr_edge.local import SamplerSettings
from sr_edge.remote.dialects import DIALECTS, Quirks, request
from sr_edge.roles import Message, Prompt
from sr_edge.serve.replies import encoded, problem_of
from sr_edge.serve.requests import (
    CHAT,
    COMPLETION,
    MAX_CHOICES,
    MAX_MESSAGES,
    MAX_METADATA,
    MAX_NAME_CHARS,
    MAX_PROMPTS,
    MAX_SEED,
    MAX_STOP_CHARS,
    MAX_STOPS,
    MAX_TOKENS,
    BadRequest,
    RequestLimits,
    model_ids,
    parse_chat,
    parse_completion,
)

MODELS = model_ids("sr-edge demo small", has_big=True)
LIMITS = RequestLimits(
    models=MODELS,
    sampling=SamplerSettings(temperature=0.6, seed=3),
    max_tokens=200,
    opening="<think>\n",
    vocabulary_size=50,
)
PLAIN = RequestLimits(models=MODELS)
HI = [{"role": "user", "content": "hi"}]


def chat(limits=LIMITS, /, **body):
    return parse_chat(json.dumps({"messages": HI} | body).encode(), limits)


def completion(**body):
    return parse_completion(json.dumps({"prompt": "so"} | body).encode(), LIMITS)


def refusal(parse, body):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(BadRequest) as caught:
        parse(raw, LIMITS)
    return caught.value


# --- what is meant ------------------------------------------------------------------------------------


def test_what_is_not_said_is_the_servers_choice():
    request = chat()
    assert request.messages == (Message("user", "hi"),)
    assert request.wanted.model == "sr-edge-demo-small"
    assert request.wanted.policy == "auto"
    assert request.wanted.sampling == SamplerSettings(0.6, 0.95, 40, 3)
    assert (request.wanted.max_tokens, request.wanted.stops, request.wanted.stream) == (200, (), False)
    (job,) = request.jobs(agent="curl", seconds=9.0)
    assert (job.client, job.seconds, job.prompt, job.continues) == ("curl", 9.0, None, "")


def test_what_is_said_is_kept():
    request = chat(
        model="sr-edge-demo-small:remote",
        temperature=0,
        top_p=1,
        top_k=0,
        seed=MAX_SEED,
        max_completion_tokens=7,
        stop="\n\n",
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        sr_edge={"events": True},
        user="me",
        metadata={"a": "b"},
    )
    wanted = request.wanted
    assert wanted.policy == "remote"
    assert wanted.sampling == SamplerSettings(0.0, 1.0, 0, MAX_SEED)
    assert (wanted.max_tokens, wanted.stops) == (7, ("\n\n",))
    assert (wanted.stream, wanted.include_usage, wanted.logprobs, wanted.events) == (True,) * 4
    assert request.jobs(agent="curl")[0].client == "me"


def test_messages_are_told_as_text():
    request = chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "reasoning_content": "left out", "refusal": None},
            {"role": "user", "content": ""},
        ]
    )
    assert request.messages == (
        Message("system", "be brief"),
        Message("user", "a\nb"),
        Message("assistant", "c"),
        Message("user", ""),
    )


def test_prompts_may_be_texts_or_ids():
    assert completion(prompt="a").prompts == ("a",)
    assert completion(prompt=["a", "b"]).prompts == ("a", "b")
    assert completion(prompt=[1, 49]).prompts == ((1, 49),)
    assert completion(prompt=[[1], [2, 3]]).prompts == ((1,), (2, 3))
    jobs = completion(prompt=["a", "b"], max_tokens=3, model="sr-edge-demo-small:local").jobs(agent="x")
    assert [(job.prompt, job.messages, job.max_tokens, job.policy) for job in jobs] == [
        ("a", (), 3, "local"),
        ("b", (), 3, "local"),
    ]
    assert completion(logprobs=0).wanted.logprobs
    assert not completion(logprobs=None).wanted.logprobs


def test_choices_of_a_prompt_are_jobs_that_differ_in_their_seed():
    def seeds(jobs):
        return [job.sampling.seed for job in jobs]

    assert seeds(chat(n=3, seed=7).jobs(agent="x")) == [7, 8, 9]
    assert seeds(chat(n=3, seed=MAX_SEED).jobs(agent="x")) == [MAX_SEED, 0, 1]
    assert seeds(chat(PLAIN, n=MAX_CHOICES).jobs(agent="x")) == [None] * MAX_CHOICES
    jobs = completion(prompt=["a", "b"], n=2, seed=7).jobs(agent="x")
    assert [(job.prompt, job.sampling.seed) for job in jobs] == [("a", 7), ("a", 8), ("b", 7), ("b", 8)]


def test_model_ids_are_made_of_the_small_models_name():
    assert model_ids("DeepSeek R1/Distill: 1.5B", has_big=False) == {
        "deepseek-r1-distill-1.5b": "auto",
        "deepseek-r1-distill-1.5b:local": "local",
    }
    assert list(model_ids("日本", has_big=True)) == ["model", "model:local", "model:remote"]


NEUTRAL = {
    "frequency_penalty": 0.0,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "logprobs": False,
    "max_tokens": None,
    "modalities": ["text"],
    "n": 1,
    "parallel_tool_calls": True,
    "presence_penalty": 0,
    "prompt_cache_key": "k",
    "response_format": {"type": "text"},
    "service_tier": "auto",
    "stop": None,
    "store": False,
    "stream_options": None,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
}


def test_what_changes_nothing_is_accepted():
    assert chat(**NEUTRAL) == chat()
    assert chat(**dict.fromkeys(CHAT.kinds.keys() - {"messages"})) == chat()
    assert completion(**dict.fromkeys(COMPLETION.kinds.keys() - {"prompt"})) == completion()


# --- an answer that goes on ---------------------------------------------------------------------------


def continued(limits, *, flag=True, **message):
    turn = {"role": "assistant"} | message
    request = chat(
        limits, messages=[*HI, turn], continue_final_message=flag, add_generation_prompt=False, stream=True
    )
    assert request.messages == (Message("user", "hi"),)
    assert request.jobs(agent="x")[0].continues == request.continues
    return request.continues


def test_the_last_answer_is_continued_where_it_breaks_off():
    thinking = LIMITS
    assert continued(thinking, reasoning_content="hm") == "hm"
    assert continued(thinking, reasoning_content="hm", content="so") == "hm</think>so"
    assert continued(thinking, reasoning_content="hm", content="", flag="content") == "hm</think>"
    assert continued(thinking, reasoning_content="hm", content=" ", flag="reasoning_content") == "hm"
    assert continued(thinking, content="so") == "</think>so"
    assert continued(thinking, content="<think>\nhm") == "hm"
    assert continued(thinking, content=" <think>hm</think>so") == "hm</think>so"
    assert continued(thinking, content="hm</think>so") == "hm</think>so"
    assert continued(thinking, content="") == ""
    assert continued(PLAIN, content="so") == "so"
    assert continued(PLAIN, reasoning_content="hm") == "<think>hm"
    assert continued(PLAIN, reasoning_content="hm", content="so") == "<think>hm</think>so"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": HI}, "continue_final_message"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "continue_final_message"),
        (
            {"messages": [*HI, {"role": "assistant", "content": "a"}], "add_generation_prompt": True},
            "add_generation_prompt",
        ),
    ],
)
def test_a_continuation_of_nothing_is_refused(body, param):
    assert refusal(parse_chat, body | {"continue_final_message": True}).param == param


def test_no_thought_goes_on_after_its_answer():
    body = {"messages": [*HI, {"role": "assistant", "content": "a"}]}
    assert refusal(parse_chat, body | {"continue_final_message": "reasoning_content"}).status == 400
    assert refusal(parse_chat, {"messages": HI, "add_generation_prompt": False}).status == 400


# --- what clients send --------------------------------------------------------------------------------


def asked_by_sr_edge(dialect, answer, opening):
    """Sends, and leaves out what is refused, as our own client does: the request that is read at last."""
    quirks = Quirks()
    for _ in range(9):
        body = request(
            dialect,
            quirks,
            messages=[Message("user", "hi")],
            prompt=Prompt((1,), f"user: hi\nassistant: {opening}", opening),
            answer=answer,
            sampling={"temperature": 0.6, "top_p": 0.95, "seed": 4},
            max_tokens=20,
            model=None,
        )
        parse = parse_completion if dialect.is_exact else parse_chat
        try:
            return parse(json.dumps(body).encode(), LIMITS if opening else PLAIN)
        except BadRequest as error:
            text = encoded(problem_of(error).body).decode()
            found = quirks.after_refusal(error.status, text, body)
            if found is None:
                return None
            quirks = found
    raise AssertionError("it never comes to an end")


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("opening", ["", "<think>\n"])
@pytest.mark.parametrize("answer", ["a b c", "a b c</think>\n\nIt is", ""])
def test_another_sr_edge_is_served_in_every_dialect_but_marks(dialect, opening, answer):
    found = asked_by_sr_edge(dialect, answer, opening)
    if found is None:
        assert dialect.mark is not None
        return
    assert found.wanted.include_usage
    assert found.wanted.sampling.seed == 4
    if dialect.is_exact:
        assert found.prompts == (f"user: hi\nassistant: {opening}{answer}",)
    elif found.continues and opening and dialect.partial in ("apart", "whole"):
        thought, end, text = found.continues.partition(END_THINK)
        assert THINK not in thought
        assert (thought.strip(), end, text.strip()) == tuple(s.strip() for s in answer.partition(END_THINK))


def test_lm_eval_is_served():
    body = {"model": "sr-edge-demo-small", "max_tokens": 256, "temperature": 0, "seed": 1234}
    messages = [{"role": "user", "content": "hi", "type": "text"}]
    assert chat(**body, messages=messages, stop=[]).messages == (Message("user", "hi"),)
    assert chat(**body, stop=["\n\n", "Q:"]).wanted.stops == ("\n\n", "Q:")
    assert completion(**body, prompt=[[1, 2], [3]], stop=["\n"]).prompts == ((1, 2), (3,))
    scored = {"prompt": [[1, 2]], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1, "echo": True}
    refused = refusal(parse_completion, scored)
    assert (refused.param, refused.code) == ("logprobs", "unsupported_parameter")


# --- what is refused ----------------------------------------------------------------------------------

_BAD_JSON = [
    b"",
    b"{",
    b"[]x",
    b"\xff\xfe{}",
    b'{"messages": NaN}',
    b'{"messages": [{"role": "user", "content": "hi"}], "temperature": Infinity}',
    b'{"temperature": 1, "temperature": 0}',
    b'{"messages": [{"role": "user", "role": "user", "content": ""}]}',
    b"[" * 100_000,
    b'{"metadata": ' + b'{"a":' * 40 + b"1" + b"}" * 41,
    b'{"user": "\\ud800"}',
    b'{"\\udc00": 1}',
    b'{"seed": ' + b"1" * 5000 + b"}",
]


@pytest.mark.parametrize("body", _BAD_JSON, ids=range(len(_BAD_JSON)))
def test_what_is_no_json_is_refused(body):
    for parse in (parse_chat, parse_completion):
        error = refusal(parse, body)
        assert (error.status, error.code) == (400, "invalid_json")
        assert len(error.message) < 400


@pytest.mark.parametrize("body", [[], None, "hi", 3])
def test_a_body_that_is_no_object_is_refused(body):
    assert refusal(parse_chat, body).code == "invalid_type"


def _turn(**fields):
    return [{"role": "user", "content": "hi"} | fields]


_BAD_CHAT = [
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"temperature": "1"}, "temperature", "invalid_type"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_p": 1.01}, "top_p", "invalid_value"),
    ({"top_k": -1}, "top_k", "invalid_value"),
    ({"seed": -1}, "seed", "invalid_value"),
    ({"seed": MAX_SEED + 1}, "seed", "invalid_value"),
    ({"seed": 1.5}, "seed", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": -1}, "max_tokens", "invalid_value"),
    ({"max_tokens": MAX_TOKENS + 1}, "max_tokens", "invalid_value"),
    ({"max_tokens": 10**400}, "max_tokens", "invalid_value"),
    ({"max_tokens": True}, "max_tokens", "invalid_type"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": MAX_CHOICES + 1}, "n", "invalid_value"),
    ({"n": 1.5}, "n", "invalid_type"),
    ({"n": True}, "n", "invalid_type"),
    ({"stream": 1}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage", "invalid_type"),
    ({"stream_options": {"chunk": 1}}, "stream_options.chunk", "unsupported_parameter"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
    ({"stop": ["a", 1]}, "stop[1]", "invalid_type"),
    ({"stop": ["a"] * (MAX_STOPS + 1)}, "stop", "invalid_value"),
    ({"stop": "a" * (MAX_STOP_CHARS + 1)}, "stop", "invalid_value"),
    ({"logprobs": 1}, "logprobs", "invalid_type"),
    ({"logprobs": True, "top_logprobs": 1}, "top_logprobs", "unsupported_parameter"),
    ({"frequency_penalty": 0.1}, "frequency_penalty", "unsupported_parameter"),
    ({"logit_bias": {"1": 5}}, "logit_bias", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
    ({"store": True}, "store", "unsupported_parameter"),
    ({"temprature": 1}, "temprature", "unsupported_parameter"),
    ({"n_discard": -5}, "n_discard", "unsupported_parameter"),
    ({"sr_edge": {"event": True}}, "sr_edge.event", "unsupported_parameter"),
    ({"user": "u" * (MAX_NAME_CHARS + 1)}, "user", "invalid_value"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    ({"metadata": {str(n): "" for n in range(MAX_METADATA + 1)}}, "metadata", "invalid_value"),
    ({"messages": None}, "messages", "missing_required_parameter"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": {}}, "messages", "invalid_type"),
    ({"messages": HI * (MAX_MESSAGES + 1)}, "messages", "invalid_value"),
    ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": _turn(role="tool")}, "messages[0].role", "unsupported_value"),
    ({"messages": _turn(role=["user"])}, "messages[0].role", "unsupported_value"),
    ({"messages": _turn(content=None)}, "messages[0].content", "missing_required_parameter"),
    ({"messages": _turn(content=1)}, "messages[0].content", "invalid_type"),
    ({"messages": _turn(name="me")}, "messages[0].name", "unsupported_parameter"),
    ({"messages": _turn(reasoning_content="hm")}, "messages[0].reasoning_content", "unsupported_parameter"),
    (
        {"messages": _turn(content=[{"type": "image_url", "image_url": {"url": "x"}}])},
        "messages[0].content[0].image_url",
        "unsupported_parameter",
    ),
    (
        {"messages": _turn(content=[{"type": "input_audio", "text": ""}])},
        "messages[0].content[0].type",
        "unsupported_value",
    ),
    (
        {"messages": [*HI, {"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}]},
        "messages[1].tool_calls",
        "unsupported_parameter",
    ),
    (
        {"messages": [*HI, {"role": "assistant", "content": "a", "prefix": True}]},
        "messages[1].prefix",
        "unsupported_parameter",
    ),
    ({"continue_final_message": "refusal"}, "continue_final_message", "unsupported_value"),
]


@pytest.mark.parametrize(("body", "param", "code"), _BAD_CHAT)
def test_what_cannot_be_meant_is_refused_by_its_name(body, param, code):
    error = refusal(parse_chat, {"messages": HI} | body)
    assert (error.param, error.code, error.status) == (param, code, 400)
    assert len(error.message) < 300


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [""]}, "prompt[0]", "invalid_value"),
        ({"prompt": [[]]}, "prompt[0]", "invalid_value"),
        ({"prompt": 5}, "prompt", "invalid_type"),
        ({"prompt": [1, "a"]}, "prompt[1]", "invalid_type"),
        ({"prompt": ["a", [1]]}, "prompt[1]", "invalid_type"),
        ({"prompt": [True]}, "prompt[0]", "invalid_type"),
        ({"prompt": [-1]}, "prompt[0]", "invalid_value"),
        ({"prompt": [50]}, "prompt", "invalid_value"),
        ({"prompt": [[2**40]]}, "prompt[0][0]", "invalid_value"),
        ({"prompt": ["a"] * (MAX_PROMPTS + 1)}, "prompt", "invalid_value"),
        ({"prompt": [1], "echo": True}, "echo", "unsupported_parameter"),
        ({"logprobs": 1}, "logprobs", "unsupported_parameter"),
        ({"logprobs": False}, "logprobs", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"messages": HI}, "messages", "unsupported_parameter"),
        ({"continue_final_message": True}, "continue_final_message", "unsupported_parameter"),
    ],
)
def test_raw_prompts_that_cannot_be_meant_are_refused(body, param, code):
    error = refusal(parse_completion, {"prompt": "so"} | body)
    assert (error.param, error.code) == (param, code)


def test_an_unknown_model_is_told_which_there_are():
    error = refusal(parse_chat, {"messages": HI, "model": "gpt-4o"})
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert all(id in error.message for id in MODELS)


# --- what always holds --------------------------------------------------------------------------------

_names = sorted(
    {*CHAT.kinds, *COMPLETION.kinds, "role", "content", "type", "text", "include_usage", "events"}
)
leaves = st.sampled_from(
    [None, True, False, 0, 1, -1, 0.5, 1e308, 2**70, "", "a", "user", "assistant", "text"]
)
flat = leaves | st.lists(leaves, max_size=2) | st.dictionaries(st.sampled_from(_names), leaves, max_size=3)
junk = flat | st.lists(flat, max_size=2)
bodies = st.dictionaries(st.sampled_from(_names), junk, max_size=5)


def refused_or_not(parse, body):
    try:
        parse(body, LIMITS)
    except BadRequest as error:
        return problem_of(error)
    return None


@settings(max_examples=200)
@given(bodies, st.booleans(), st.booleans())
def test_junk_is_read_or_refused_and_never_anything_else(body, has_messages, has_prompt):
    if has_messages:
        body = {**body, "messages": HI}
    if has_prompt:
        body = {**body, "prompt": "so"}
    for parse in (parse_chat, parse_completion):
        problem = refused_or_not(parse, json.dumps(body).encode())
        if problem is not None:
            assert problem.status in (400, 404)
            assert json.loads(encoded(problem.body))["error"]["message"]


@settings(max_examples=150)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b'{"messages":[{"role":"user","content":"\\u0000"}]}')
def test_bytes_are_read_or_refused_and_never_anything_else(body):
    for parse in (parse_chat, parse_completion):
        refused_or_not(parse, body)


def test_a_number_of_too_many_digits_is_refused_in_our_own_words():
    with pytest.raises(BadRequest, match=r"a number in it has too many digits$"):
        parse_chat(b'{"seed": ' + b"9" * 5000 + b"}", LIMITS)
