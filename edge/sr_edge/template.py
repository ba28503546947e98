"""Renders a model's own chat template, and keeps apart what the template wrote and what people wrote.

A prompt that is tokenised in one piece lets a user type control tokens. So the template never sees the
contents: it renders unguessable placeholders, and the result is cut where they stand. What follows from it:

* White space around a content, and think tags in an assistant's, are shown to the template, which may trim or
  cut there as it likes. It sees nothing else of a content, so nothing that a user types can steer it.
* A template that asks what else a content says (its length, a command in its first word), or rewrites it
  (upper case, JSON), does so to a placeholder: it takes its default branch; the content is put in unchanged.
* A template that leaves out an earlier answer, or the thoughts in it, is followed. One that leaves out a
  question or the system message is refused.

The template is code from the model file: it runs in Jinja's sandbox, which keeps it from files, sockets and
Python, not from being slow.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sr_edge.errors import ModelError
from sr_edge.roles import Message

_THINK_TAGS = re.compile(r"(</?think>)")
_DIGITS = 6  # of a placeholder's number
_OPEN_THINKING = re.compile(r"<think>\s*\Z")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the prompt, and who wrote it."""

    text: str
    author: Literal["template", "system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Rendering:
    pieces: tuple[Piece, ...]
    opening: str
    """What the template began the answer with, such as an open think tag; often empty."""

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def render(
    template: str | None, messages: Sequence[Message], *, bos_token: str = "", eos_token: str = ""
) -> Rendering:
    """Render up to where the assistant begins to write.

    A model without a template is no chat model: it continues the contents, with an empty line between them.

    Raises:
        ModelError: the template is broken, refuses these messages, or leaves one of them out.
    """
    if template is None:
        lines = [
            part
            for message in messages
            for part in (Piece("\n\n", "template"), Piece(message.content, message.role))
        ]
        return Rendering(tuple(lines[1:]), opening="")

    hidden = _Hidden()
    shown = [{"role": message.role, "content": hidden.hide(message)} for message in messages]
    text = _run(template, shown, bos_token, eos_token)
    pieces = hidden.restore(text)
    opening = _OPEN_THINKING.search(pieces[-1].text) if pieces and pieces[-1].author == "template" else None
    return Rendering(tuple(pieces), opening.group() if opening else "")


class _Hidden:
    """Contents, and the placeholders that stand for them."""

    def __init__(self) -> None:
        self._nonce = "x" + secrets.token_hex(16)
        self._contents: list[Piece] = []

    def hide(self, message: Message) -> str:
        if message.role != "assistant":
            return self._placeholder(message.content, message)
        parts = _THINK_TAGS.split(message.content)
        return "".join(part if i % 2 else self._placeholder(part, message) for i, part in enumerate(parts))

    def _placeholder(self, text: str, message: Message) -> str:
        content = text.strip()
        if not content:
            return text
        self._contents.append(Piece(content, message.role))
        before, after = text[: -len(text.lstrip())], text[len(text.rstrip()) :]
        return f"{before}{self._nonce}{len(self._contents) - 1:0{_DIGITS}d}{after}"

    def restore(self, text: str) -> list[Piece]:
        first, *rest = text.split(self._nonce)  # a pattern with the nonce in it would be compiled each time
        found = [int(part[:_DIGITS]) for part in rest]
        times = Counter(found)
        for i, content in enumerate(self._contents):
            if times[i] > 1:
                raise ModelError("its chat template repeats what was said: use another GGUF of the model")
            if times[i] == 0 and content.author != "assistant":
                what = "question" if content.author == "user" else "system message"
                raise ModelError(f"its chat template leaves out the {what}: use another GGUF of the model")
        pieces = [Piece(first, "template")]
        for number, part in zip(found, rest, strict=True):
            pieces += [self._contents[number], Piece(part[_DIGITS:], "template")]
        return [piece for piece in pieces if piece.text]


def _run(template: str, messages: list[dict[str, str]], bos_token: str, eos_token: str) -> str:
    try:
        return _compiled(template).render(
            messages=messages,
            add_generation_prompt=True,
            bos_token=bos_token,
            eos_token=eos_token,
            tools=None,
            documents=None,
        )
    except Exception as error:  # a template may fail in any way that Python can
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"its chat template fails: {reason}: change the messages, or use another GGUF of the model"
        ) from None


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    """Kept: to compile takes ten times as long as to render. What a rendering sets ends with it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment.from_string(template)


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's part for training, means nothing here."""

    tags = {"generation"}  # noqa: RUF012, the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Without Jinja's escaping for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
