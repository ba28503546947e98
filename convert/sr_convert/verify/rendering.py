"""Whether a prompt that the client builds from the file is the one that the model was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from sr_convert.verify.reference import quiet_transformers
from sr_convert.verify.report import Judgement, Row
from sr_convert.verify.tokens import OwnWords
from sr_edge import template
from sr_edge.errors import ModelError
from sr_edge.roles import Message
from sr_edge.vocabulary import Vocabulary

Renderer: TypeAlias = Callable[[Sequence[Message]], str]
"""Raises: ModelError: the template refuses these messages."""

_EXCERPT = 30


def compare_templates(
    words: OwnWords,
    own: Renderer,
    file_template: str | None,
    theirs: Renderer,
    vocabulary: Vocabulary,
    conversations: Sequence[Sequence[Message]],
) -> Row:
    """Render conversations by both, and cut what came out.

    Args:
        own: by the checkpoint's template.
        theirs: by the file's, as the client does it.
    """
    limit = "the same prompts"
    if words.template is None or file_template is None:
        if words.template == file_template:
            return Row("template", "equal", "none", limit)
        who, other = ("file", "checkpoint") if words.template is None else ("checkpoint", "file")
        return Row("template", "differs", f"only in the {who}", limit, f"the {other} has no chat template")
    rendered = 0
    for messages in conversations:
        prompts = _or_refusal(own, messages), _or_refusal(theirs, messages)
        if prompts == (None, None):
            continue
        difference = _difference(words, vocabulary, *prompts)
        if difference:
            return Row("template", "differs", "another prompt", limit, difference)
        rendered += 1
    figures = {"conversations": rendered}
    if rendered == 0:
        detail = "the checkpoint's template refuses every conversation that was tried"
        return Row("template", "not checked", "", limit, detail, figures)
    same_text = words.template.strip() == file_template.strip()
    detail = "" if same_text else "the templates are spelled differently"
    judgement: Judgement = "equal" if same_text else "close"
    return Row("template", judgement, f"{rendered} conversations", limit, detail, figures)


def client_renderer(chat_template: str | None, bos: str | None, eos: str | None) -> Renderer:
    """As the client renders a model file's template; without one, contents alone."""

    def render(messages: Sequence[Message]) -> str:
        return template.render(chat_template, messages, bos_token=bos or "", eos_token=eos or "").text

    return render


def transformers_renderer(words: OwnWords) -> Renderer:
    """As transformers renders the checkpoint's template. Raises: ImportError: it is not installed."""
    with quiet_transformers() as transformers:
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=words.tokenizer,
            chat_template=words.template,
            **{name: words.special(name) for name in ("bos_token", "eos_token") if words.special(name)},
        )

    def render(messages: Sequence[Message]) -> str:
        turns = [{"role": one.role, "content": one.content} for one in messages]
        try:
            return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template may fail in any way that Python can
            raise ModelError(f"the chat template fails: {' '.join(str(error).split())[:200]}") from None

    return render


def _or_refusal(render: Renderer, messages: Sequence[Message]) -> str | None:
    try:
        return render(messages)
    except ModelError:
        return None


def _difference(words: OwnWords, vocabulary: Vocabulary, own: str | None, theirs: str | None) -> str:
    if own is None or theirs is None:
        who = "checkpoint" if own is None else "file"
        return f"a conversation that one template renders is refused by that of the {who}"
    if own != theirs:
        at = next((i for i, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b), None)
        at = min(len(own), len(theirs)) if at is None else at
        return (
            f"after {own[max(0, at - _EXCERPT) : at]!r} the checkpoint has {own[at : at + _EXCERPT]!r}, "
            f"the file {theirs[at : at + _EXCERPT]!r}"
        )
    if words.encode(own) != vocabulary.scaffold(theirs):
        return "the prompts are equal, their ids are not"
    return ""
