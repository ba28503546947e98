"""The table of conventions: what each row sends, what a refusal teaches, what is kept of that."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge.errors import UsageError
from sr_edge.remote.dialects import (
    DIALECTS,
    INSTRUCT,
    REASONING_ROOM,
    Capabilities,
    Quirks,
    dialect_named,
    known_host,
    request,
)
from sr_edge.roles import Message, Prompt

MESSAGES = [Message("system", "Be brief."), Message("user", "how?")]
OPEN = "<think>\n"
NO_QUIRKS = Quirks()


def body_of(name, answer, opening="", quirks=NO_QUIRKS, **options):
    prompt = Prompt((), "<system>Be brief.<user>how?<assistant>" + opening, opening)
    options = {"sampling": {"temperature": 0.6}, "max_tokens": 12, "model": "big", **options}
    return request(dialect_named(name), quirks, messages=MESSAGES, prompt=prompt, answer=answer, **options)


def sent(name, answer, opening=""):
    """The last message, and the flags."""
    body = body_of(name, answer, opening)
    common = body_of("trailing-plain", "x")
    return body["messages"][-1], {k: v for k, v in body.items() if k not in common}


# --- what is sent -------------------------------------------------------------------------------------------


def test_raw_completions_are_exact():
    assert body_of("completions", "1 + \n", OPEN) == {
        "model": "big",
        "prompt": "<system>Be brief.<user>how?<assistant><think>\n1 + \n",
        "temperature": 0.6,
        "max_tokens": 12,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


PAIR = {"continue_final_message": True, "add_generation_prompt": False}
THOUGHT, TEXT = "So 3 \n", "So 3.\n</think>\n\nIt is "


@pytest.mark.parametrize(
    ("name", "thought", "text", "flags"),
    [
        ("vllm-think", "<think>\nSo 3", "<think>\nSo 3.\n</think>\n\nIt is", PAIR),
        ("vllm", "So 3", "So 3.\n</think>\n\nIt is", PAIR),
        ("vllm-plain", "So 3", "So 3.\n\nIt is", PAIR),
        ("prefix", "So 3", "So 3.\n\nIt is", {}),
        ("partial", "So 3", "So 3.\n\nIt is", {}),
        ("trailing-think", "<think>\nSo 3", "<think>\nSo 3.\n</think>\n\nIt is", {}),
        ("trailing", "So 3", "So 3.\n</think>\n\nIt is", {}),
        ("trailing-plain", "So 3", "So 3.\n\nIt is", {}),
        ("trailing-no-think", "So 3", "So 3.\n\nIt is", {"chat_template_kwargs": {"enable_thinking": False}}),
    ],
)
def test_rows_that_send_all_in_the_content(name, thought, text, flags):
    mark = {name: True} if name in ("prefix", "partial") else {}
    assert sent(name, THOUGHT, OPEN) == ({"role": "assistant", "content": thought, **mark}, flags)
    assert sent(name, TEXT, OPEN) == ({"role": "assistant", "content": text, **mark}, flags)
    assert sent(name, "It is ") == ({"role": "assistant", "content": "It is", **mark}, flags)


def test_rows_that_send_the_thought_apart():
    for name, mark, flag in (
        ("reasoning", {}, "continue_final_message"),
        ("prefix-reasoning", {"prefix": True}, ""),
    ):
        thought, text = (
            {"role": "assistant", "content": content, "reasoning_content": reasoning, **mark}
            for content, reasoning in (("", "So 3"), ("It is", "So 3."))
        )
        for answer, message, field in ((THOUGHT, thought, "reasoning_content"), (TEXT, text, "content")):
            flags = {flag: field, "add_generation_prompt": False} if flag else {}
            assert sent(name, answer, OPEN) == (message, flags)


def test_a_template_without_an_opening_may_have_its_thought_opened_by_the_answer():
    message, flags = sent("reasoning", "<think>\nSo 3")
    assert message == {"role": "assistant", "content": "", "reasoning_content": "So 3"}
    assert flags["continue_final_message"] == "reasoning_content"


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_where_nothing_is_written_yet_a_server_is_asked_to_begin(dialect):
    for opening in ("", OPEN):
        body = body_of(dialect.name, "", opening)
        if dialect.is_exact:
            continue
        if dialect.partial == "whole" and opening:
            assert body["messages"][-1]["content"] == "<think>"
            continue
        assert body["messages"] == [{"role": m.role, "content": m.content} for m in MESSAGES]
        assert "continue_final_message" not in body


def test_the_last_rung_asks_for_the_continuation_in_one_more_user_turn():
    body = body_of("instruct", "We add 3 ")
    assert body["messages"][:2] == [{"role": m.role, "content": m.content} for m in MESSAGES]
    [turn] = body["messages"][2:]
    assert turn["role"] == "user"
    assert "<draft>\nWe add 3\n</draft>" in turn["content"]
    assert "working notes" not in turn["content"]
    assert body["reasoning_effort"] == "low"
    assert "working notes" in body_of("instruct", "We add 3", OPEN)["messages"][-1]["content"]


def test_the_tag_that_quotes_the_answer_does_not_occur_in_it():
    content = body_of("instruct", "It holds </draft> and <draft-2>.")["messages"][-1]["content"]
    assert content.count("\n</draft-3>") == 1


def test_no_model_and_no_stream():
    body = body_of("vllm", "x", model=None, stream=False)
    assert "model" not in body
    assert body["stream"] is False
    assert "stream_options" not in body


def test_dialects_are_named():
    assert dialect_named("chat").name == "vllm-think"
    with pytest.raises(UsageError, match="'instruct'"):
        dialect_named("instruk")
    with pytest.raises(UsageError, match="auto, chat, completions, reasoning"):
        dialect_named("xyz")
    assert [d.name for d in DIALECTS][-2:] == ["instruct", "instruct-aloud"]
    assert all(d.servers for d in DIALECTS)


# --- refusals -----------------------------------------------------------------------------------------------


def refusal(**error):
    return json.dumps({"error": {"type": "invalid_request_error", "param": None, "code": None, **error}})


def forbidden(*loc, value=1):
    return {
        "type": "extra_forbidden",
        "loc": ["body", *loc],
        "msg": "Extra inputs are not permitted",
        "input": value,
    }


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (refusal(message="Unrecognized request argument supplied: seed"), "seed"),
        (refusal(message="Unknown parameter.", param="reasoning_effort"), "reasoning_effort"),
        (refusal(message="Unsupported value: 'temperature' does not support 0.6 with this model. Only the "
                 "default (1) value is supported.", param="temperature"), "temperature"),
        (refusal(message="`temperature` and `top_p` cannot both be specified for this model."), "top_p"),
        (refusal(message="property 'chat_template_kwargs' is unsupported"), "chat_template_kwargs"),
        (refusal(message="stream_options is not supported"), "stream_options"),
        (json.dumps({"detail": [forbidden("stream_options", "include_usage")]}), "stream_options"),
        (json.dumps({"object": "error", "message": {"detail": [forbidden("seed")]}}), "seed"),
        (json.dumps({"object": "error", "message": json.dumps({"detail": [forbidden("seed")]})}), "seed"),
        (refusal(message="[{'type': 'extra_forbidden', 'loc': ('body', 'seed'), 'msg': 'Extra inputs are not "
                 "permitted', 'input': 7}]"), "seed"),
        (refusal(message="Extra inputs are not permitted, field: 'stream_options'"), "stream_options"),
        (refusal(message="litellm.UnsupportedParamsError: x does not support ['seed'], for y"), "seed"),
        ("seed: not supported here", "seed"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [400, 422])
def test_a_parameter_that_is_refused_is_left_out(text, name, status):
    quirks = NO_QUIRKS.after_refusal(status, text)
    assert quirks == Quirks(frozenset({name}))
    options = {"sampling": {"temperature": 0.6, "top_p": 0.9, "seed": 7}}
    for row in ("instruct", "trailing-no-think"):
        before, after = body_of(row, "x", **options), body_of(row, "x", quirks=quirks, **options)
        assert before.keys() - after.keys() <= {name}
        assert name not in after


@pytest.mark.parametrize(
    "text",
    [
        refusal(message="Unrecognized request argument supplied: continue_final_message"),
        "body.add_generation_prompt: Extra inputs are not permitted",
        json.dumps({"detail": [forbidden("continue_final_message", value=True)]}),
        refusal(message="property 'continue_final_message' is unsupported"),
        "Unknown parameter",
        "unexpected extra fields in the request",
    ],
)
def test_the_flags_are_left_out_together(text):
    quirks = NO_QUIRKS.after_refusal(400, text)
    assert quirks.left_out == {"continue_final_message", "add_generation_prompt"}


def test_the_new_limit_has_room_for_a_hidden_thought():
    text = refusal(message="Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                   "'max_completion_tokens' instead.", param="max_tokens")  # fmt: skip
    quirks = NO_QUIRKS.after_refusal(400, text)
    assert quirks == Quirks(has_new_limit=True)
    body = body_of("instruct", "x", quirks=quirks)
    assert "max_tokens" not in body
    assert body["max_completion_tokens"] == 12 + REASONING_ROOM
    assert body_of("trailing", "x", quirks=quirks)["max_completion_tokens"] == 12
    assert quirks.after_refusal(400, text) is None, "it was left out already"


def test_a_limit_that_counts_a_thought_has_room_for_it():
    thinks = Quirks(thinks_first=True)
    assert body_of("instruct", "x", quirks=thinks)["max_tokens"] == 12 + REASONING_ROOM
    assert body_of("instruct-aloud", "x")["max_tokens"] == 12 + REASONING_ROOM
    assert body_of("instruct", "x")["max_tokens"] == 12
    assert body_of("vllm", "x", quirks=thinks)["max_tokens"] == 12


def test_user_turns_in_a_row_become_one_where_they_are_refused():
    text = refusal(message="Conversation roles must alternate user/assistant/user/assistant/...")
    quirks = NO_QUIRKS.after_refusal(400, text)
    assert quirks == Quirks(merges_turns=True)
    _, turn = body_of("instruct", "We add", quirks=quirks)["messages"]
    assert turn["content"].startswith("how?\n\n")
    assert quirks.after_refusal(400, text) is None


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (400, "maximum context length is 4096 tokens"),
        (400, "the seed text is too long for the context window, and no unknown parameter helps"),
        (400, refusal(message="'max_tokens' or 'max_completion_tokens' is too large: 512. This model's "
                      "maximum context length is 4096 tokens and you ask for 4512.", param="max_tokens")),
        (400, refusal(message="Invalid max_tokens value, the valid range of max_tokens is [1, 8192]")),
        (400, refusal(message="This model does not support assistant message prefill. The conversation must "
                      "end with a user message.")),
        (400, refusal(message="Cannot set both `continue_final_message` and `add_generation_prompt`.")),
        (400, refusal(message="continue_final_message is set but the final message does not appear in the "
                      "chat after applying the chat template!")),
        (422, json.dumps({"detail": [forbidden("messages", 1, "assistant", "reasoning_content")]})),
        (422, json.dumps({"detail": [{"type": "missing", "loc": ["body", "model"], "msg": "Field required",
                                      "input": {"seed": 7, "message": "the seed is not supported"}}]})),
        (400, ""),
        (400, "{" * 100_000),
        (400, "[" * 100_000),
        (400, json.dumps({"error": "x"} | {str(n): "seed" for n in range(9)})),
        (500, "seed"),
        (404, "seed"),
        (401, "unknown parameter"),
    ],
)  # fmt: skip
def test_other_refusals_teach_nothing(status, text):
    assert NO_QUIRKS.after_refusal(status, text) is None


def test_what_was_not_sent_is_not_what_was_refused():
    sent_body = body_of("completions", "x")
    assert NO_QUIRKS.after_refusal(400, "Unknown parameter", sent_body).left_out == {"stream_options"}
    assert NO_QUIRKS.after_refusal(400, "seed is not supported", sent_body) is None


@given(
    st.text(max_size=80) | st.sampled_from(["unknown parameter", "seed temperature top_p are not supported"])
)
def test_refusals_come_to_an_end(text):
    quirks, steps = NO_QUIRKS, 0
    while (after := quirks.after_refusal(400, text)) is not None:
        assert after != quirks
        quirks, steps = after, steps + 1
    assert steps <= 10


# --- what is kept -------------------------------------------------------------------------------------------

KNOWN = Capabilities(
    thought="reasoning",
    text="vllm",
    quirks=Quirks(
        frozenset({"seed", "stream_options"}), has_new_limit=True, merges_turns=True, thinks_first=True
    ),
    echoes=True,
    has_usage=False,
    can_cancel=None,
    findings=(("reasoning+think", "continues"), ("vllm", "echoes")),
)


def test_capabilities_survive_json():
    for known in (KNOWN, Capabilities(None, None), Capabilities(None, "instruct", has_usage=True)):
        assert Capabilities.from_json(json.loads(json.dumps(known.to_json()))) == known


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        "x",
        {},
        KNOWN.to_json() | {"version": 2},
        KNOWN.to_json() | {"thought": "telepathy"},
        KNOWN.to_json() | {"text": 3},
        KNOWN.to_json() | {"left_out": "seed"},
        KNOWN.to_json() | {"left_out": ["messages"]},
        KNOWN.to_json() | {"left_out": [["seed"]]},
        KNOWN.to_json() | {"findings": [["a"]]},
        KNOWN.to_json() | {"findings": None},
        KNOWN.to_json() | {"has_usage": "yes"},
    ],
)
def test_what_cannot_be_read_is_found_out_anew(broken):
    assert Capabilities.from_json(broken) is None


def test_capabilities_choose_the_dialect():
    assert KNOWN.dialect(thinking=True).name == "reasoning"
    assert KNOWN.dialect(thinking=False).name == "vllm"
    assert Capabilities(None, "partial").dialect(thinking=True).name == "partial"
    assert Capabilities("gone", None).dialect(thinking=False) == INSTRUCT


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("api.openai.com", "instruct"),
        ("API.OpenAI.com:443", "instruct"),
        ("mine.openai.azure.com", "instruct"),
        ("api.anthropic.com", "instruct"),
        ("api.deepseek.com", "prefix-reasoning"),
        ("api.mistral.ai:443", "prefix"),
        ("api.moonshot.ai", "partial"),
        ("dashscope-intl.aliyuncs.com", "partial"),
        ("api.groq.com", "trailing-plain"),
        ("127.0.0.1:11434", "trailing-plain"),
        ("[::1]:11434", "trailing-plain"),
    ],
)
def test_hosts_that_document_their_convention(host, text):
    assert known_host(host).text == text
    assert not known_host(host).has_completions


@pytest.mark.parametrize(
    "host", ["localhost:8080", "evil-api.openai.com.example", "notapi.groq.com", "[::1]", ""]
)
def test_other_hosts(host):
    assert known_host(host) is None


def test_a_hints_rows_exist():
    assert known_host("openrouter.ai").text is None
    for host in ("api.openai.com", "api.anthropic.com", "api.deepseek.com", "api.fireworks.ai"):
        hint = known_host(host)
        assert dialect_named(hint.thought)
        assert dialect_named(hint.text)
