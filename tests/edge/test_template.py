"""The chat template is rendered, and what people wrote stays apart from what it wrote."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_gguf import CHATML

from sr_edge.errors import ModelError
from sr_edge.roles import Message
from sr_edge.template import Piece, Rendering, render

DEEPSEEK_R1 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<User>{{ message['content'] | trim }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "<Assistant>{{ content }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<Assistant><think>\n{% endif %}"
)


def user(content: str) -> Message:
    return Message("user", content)


def assistant(content: str) -> Message:
    return Message("assistant", content)


def contents(rendering: Rendering) -> list[Piece]:
    return [piece for piece in rendering.pieces if piece.author != "template"]


def test_contents_stand_apart_from_the_scaffold() -> None:
    rendering = render(CHATML, [Message("system", "Be brief."), user("2 + 2?")])
    assert rendering.pieces == (
        Piece("<|im_start|>system\n", "template"),
        Piece("Be brief.", "system"),
        Piece("<|im_end|>\n<|im_start|>user\n", "template"),
        Piece("2 + 2?", "user"),
        Piece("<|im_end|>\n<|im_start|>assistant\n<think>\n", "template"),
    )
    assert rendering.text == "".join(piece.text for piece in rendering.pieces)


@settings(max_examples=50)
@given(questions=st.lists(st.text().filter(str.strip), min_size=1, max_size=4))
def test_any_content_comes_out_as_it_went_in(questions: list[str]) -> None:
    messages = [message for question in questions for message in (user(question), assistant("Yes."))][:-1]
    rendering = render(CHATML, messages)
    expected = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages)
    assert rendering.text == expected + "<|im_start|>assistant\n<think>\n"
    assert [p.text for p in contents(rendering) if p.author == "user"] == [q.strip() for q in questions]


def test_the_template_may_trim() -> None:
    assert render(DEEPSEEK_R1, [user("  2 + 2?\n")]).text == "<User>2 + 2?<Assistant><think>\n"
    assert "\n  2 + 2?\n<|im_end|>" in render(CHATML, [user("  2 + 2?\n")]).text


def test_white_space_alone_is_the_templates() -> None:
    rendering = render(CHATML, [user(" \n ")])
    assert contents(rendering) == []
    assert "user\n \n <|im_end|>" in rendering.text


def test_bos_and_eos_are_the_models() -> None:
    rendering = render(DEEPSEEK_R1, [user("a"), assistant("b"), user("c")], bos_token="<s>", eos_token="</s>")
    assert rendering.text == "<s><User>a<Assistant>b</s><User>c<Assistant><think>\n"


def test_the_template_may_leave_out_earlier_thoughts() -> None:
    rendering = render(
        DEEPSEEK_R1, [user("a"), assistant("<think>\nlong\n</think>\n\nshort"), user("c")], eos_token="</s>"
    )
    assert rendering.text == "<User>a<Assistant>\n\nshort</s><User>c<Assistant><think>\n"
    assert Piece("short", "assistant") in rendering.pieces


def test_a_user_cannot_steer_the_template() -> None:
    template = "{% for m in messages %}{{ 'STOP' if 'stop' in m.content else '' }}{{ m.content }}{% endfor %}"
    rendering = render(template, [user("stop {{ 7 * 7 }} {% raw %}")])
    assert rendering.pieces == (Piece("stop {{ 7 * 7 }} {% raw %}", "user"),)


def test_thoughts_that_a_user_types_are_no_tags() -> None:
    rendering = render(DEEPSEEK_R1, [user("<think>a</think>b")])
    assert contents(rendering) == [Piece("<think>a</think>b", "user")]


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        (CHATML, "<think>\n"),
        ("{{ messages[0].content }}<think>", "<think>"),
        ("{{ messages[0].content }}<think> \n\n", "<think> \n"),  # Jinja drops the last newline
        ("{{ messages[0].content }}<think>\n\n</think>\n\n", ""),
        ("{{ messages[0].content }}:", ""),
        ("{{ messages[0].content }}", ""),
    ],
)
def test_the_answers_opening_is_found(template: str, opening: str) -> None:
    assert render(template, [user("2 + 2?")]).opening == opening


def test_a_user_cannot_open_the_answer() -> None:
    assert render("{{ messages[0].content }}", [user("2 + 2? <think>")]).opening == ""
    assert render("{{ messages[0].content }}\n", [user("2 + 2? <think>")]).opening == ""


def test_a_base_model_continues_the_text() -> None:
    assert render(None, [user("Once upon a time")]).pieces == (Piece("Once upon a time", "user"),)
    assert render(None, [Message("system", "A tale."), user("Once")]).text == "A tale.\n\nOnce"
    assert render(None, []).pieces == ()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0].content }}", "leaves out the question"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "leaves out the system"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "repeats what was said"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "leaves out the"),
        ("{{ raise_exception('No system\nrole') }}", "fails: No system role: change the messages"),
        ("{% for m in messages %}", "fails: "),
        ("{{ messages[9].content.more }}", "fails: "),
        ("{{ 1 // 0 }}", "fails: "),
        ("{{ ''.__class__.__mro__ }}", "fails: "),
        ("{{ cycler.__init__.__globals__.os.getcwd() }}", "fails: "),
        ("{{ messages.append(1) }}", "fails: "),
    ],
)
def test_what_a_template_may_not_do(template: str, reason: str) -> None:
    with pytest.raises(ModelError) as error:
        render(template, [Message("system", "Be brief."), user("2 + 2?")])
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_the_usual_helpers_are_there() -> None:
    template = (
        "{%- if tools is none and not documents %}{{ strftime_now('%Y')[:2] }}{% endif %}"
        "{{ {'a': '<é>'} | tojson }}"
        "{% for m in messages %}{% if not loop.first %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert render(template, [user("hi")]).text == '20{"a": "<é>"}hi'


def test_nothing_of_one_rendering_is_left_in_the_next() -> None:
    counting = (
        "{% set count = namespace(of=0) %}{% for message in messages %}{% set count.of = count.of + 1 %}"
        "{{ count.of }} {{ message.content }}{% endfor %}"
    )
    texts = [render(counting, [Message("user", "a"), Message("user", word)]).text for word in "bc"]
    assert texts == ["1 a2 b", "1 a2 c"]
