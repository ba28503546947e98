"""The conventions by which servers continue a text that somebody else began: a table, a row each. Pure.

The rows stand in the order of the ladder: raw completions continue exactly what was sent; then the answer as
an unfinished message, its thought in the field made for it; then the same with everything in `content`; last
a user turn that asks for the continuation. What a server really does with a row is found out by `probe`; what
its reply needs before it reads on is done by `seam`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sr_edge.errors import UsageError
from sr_edge.extract import END_THINK, THINK, is_thinking
from sr_edge.roles import Message, Prompt

CHAT = "/chat/completions"
COMPLETIONS = "/completions"

Partial = Literal["exact", "apart", "whole", "reopened", "prose", "asked"]
"""How the answer so far is sent.

exact     the local model's own rendering, to the last space
apart     the thought in `reasoning_content`, what follows it in `content`
whole     all in `content`, as it stands: with both think tags
reopened  as `whole`, less the opening tag: the server's template writes that one
prose     all in `content`, without think tags: for models and templates that know none
asked     quoted in a user turn
"""

_FIELD = "reasoning_content or content"  # stands for the name of the field that is continued


@dataclass(frozen=True, slots=True)
class Dialect:
    """A row of the table."""

    name: str
    """What a user may write as `api`."""
    partial: Partial
    flags: tuple[tuple[str, object], ...] = ()
    """Of the request: without them the server begins a new turn, or refuses."""
    mark: str | None = None
    """Of the last message: the same."""
    servers: str = ""
    """Who documents it."""

    @property
    def path(self) -> str:
        return COMPLETIONS if self.partial == "exact" else CHAT

    @property
    def is_exact(self) -> bool:
        """Sent with its last whitespace. All others go without: templates strip it, Anthropic refuses it."""
        return self.partial == "exact"

    @property
    def is_asking(self) -> bool:
        """The reply is a turn of its own, with all that chat models put around such."""
        return self.partial == "asked"

    @property
    def thinks_aloud(self) -> bool:
        """The reply begins with a thought that only an end tag tells from the text."""
        return self.name == "instruct-aloud"

    @property
    def continues_thought(self) -> bool:
        """A reasoning field of the reply continues our open thought. Else it is the server's own."""
        return self.partial in ("exact", "apart", "whole", "reopened")


_PAIR = (("continue_final_message", True), ("add_generation_prompt", False))
_FIELD_PAIR = (("continue_final_message", _FIELD), ("add_generation_prompt", False))
_NO_THINKING = (("chat_template_kwargs", {"enable_thinking": False}),)

DIALECTS = (
    Dialect("completions", "exact", servers="vLLM, SGLang, llama.cpp, LM Studio, Fireworks"),
    Dialect("reasoning", "apart", _FIELD_PAIR, servers="llama.cpp since May 2026"),
    Dialect("prefix-reasoning", "apart", mark="prefix", servers="DeepSeek (its /beta)"),
    Dialect("vllm-think", "whole", _PAIR, servers="vLLM, llama.cpp since May 2026"),
    Dialect("vllm", "reopened", _PAIR, servers="SGLang, and vLLM with templates that open the thought"),
    Dialect("vllm-plain", "prose", _PAIR, servers="vLLM and TGI with a model that has no thoughts"),
    Dialect("prefix", "prose", mark="prefix", servers="Mistral, DeepSeek, LiteLLM"),
    Dialect("partial", "prose", mark="partial", servers="Moonshot (Kimi), Alibaba Model Studio (Qwen)"),
    Dialect("trailing-think", "whole", servers="Ollama, OpenRouter"),
    Dialect("trailing", "reopened", servers="llama.cpp before May 2026 with templates that open the thought"),
    Dialect("trailing-plain", "prose", servers="Ollama, Groq, OpenRouter, Anthropic up to 4.5"),
    Dialect("trailing-no-think", "prose", _NO_THINKING, servers="llama.cpp before May 2026"),
    Dialect("instruct", "asked", servers="OpenAI, Anthropic since 4.6, and every other chat"),
    Dialect("instruct-aloud", "asked", servers="R1 behind a server that leaves its thoughts in the content"),
)
_NAMED = {dialect.name: dialect for dialect in DIALECTS}
_ALIASES = {"chat": "vllm-think"}
INSTRUCT = _NAMED["instruct"]


def dialect_named(name: str) -> Dialect:
    """`chat` is another name for the row of vLLM.

    Raises:
        UsageError: there is none of that name.
    """
    dialect = _NAMED.get(_ALIASES.get(name, name))
    if dialect is None:
        near = difflib.get_close_matches(name.lower(), [*_NAMED, *_ALIASES, "auto"], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are auto, chat, {', '.join(_NAMED)}"
        raise UsageError(f"no API {name!r}: {hint}")
    return dialect


# --- the request --------------------------------------------------------------------------------------------


def request(
    dialect: Dialect,
    quirks: Quirks,
    *,
    messages: Sequence[Message],
    prompt: Prompt,
    answer: str,
    sampling: Mapping[str, float | int],
    max_tokens: int,
    model: str | None,
    stream: bool = True,
) -> dict[str, Any]:
    """The whole body.

    Args:
        prompt: the conversation as the local model reads it; only raw completions send its text.
        answer: what is written so far, after `prompt.opening`.
        sampling: by the names that OpenAI gives them.
        model: None sends none.
    """
    full = prompt.opening + answer
    body: dict[str, Any] = {} if model is None else {"model": model}
    if dialect.is_exact:
        body["prompt"] = prompt.text + answer
    else:
        body |= _turns(dialect, quirks, messages, full)
    body |= sampling
    body["max_tokens"] = max_tokens
    if dialect.is_asking:
        body["reasoning_effort"] = "low"  # the thought is ours: only the next step is wanted
    body["stream"] = stream
    if stream:
        body["stream_options"] = {"include_usage": True}
    return quirks.applied(body, dialect)


def _turns(dialect: Dialect, quirks: Quirks, messages: Sequence[Message], full: str) -> dict[str, Any]:
    """The messages, and the flags that say what to do with the last one."""
    turns: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in messages]
    if dialect.is_asking:
        if is_blank(full):
            return {"messages": turns}  # nothing to continue: the server begins the answer
        turn = asked(full)
        if quirks.merges_turns and turns and turns[-1]["role"] == "user":
            turn = f"{turns.pop()['content']}\n\n{turn}"
        return {"messages": [*turns, {"role": "user", "content": turn}]}
    partial = _partial(dialect, full)
    if not any(partial.get(field) for field in ("content", "reasoning_content")):
        return {"messages": turns}  # the same; or a thought that the template opens by itself
    if dialect.mark is not None:
        partial[dialect.mark] = True
    field = "reasoning_content" if is_thinking(full) else "content"
    flags = {name: field if value is _FIELD else value for name, value in dialect.flags}
    return {"messages": [*turns, partial]} | flags


def _partial(dialect: Dialect, full: str) -> dict[str, Any]:
    """The unfinished message, without the whitespace that it ends in."""
    thought, text = split_thought(full)
    partial: dict[str, Any] = {"role": "assistant"}
    match dialect.partial:
        case "apart" if thought is not None:
            partial |= {"content": text.strip(), "reasoning_content": thought.strip()}
        case "reopened" if thought is not None:
            partial["content"] = full.lstrip().removeprefix(THINK).strip()
        case "prose" if thought is not None:
            partial["content"] = f"{thought.strip()}\n\n{text.strip()}".strip()
        case _:
            partial["content"] = full.rstrip()
    return partial


def split_thought(full: str) -> tuple[str | None, str]:
    """The thought that `full` begins with, without its tags, if any; and the text after it."""
    head = full.lstrip()
    if not head.startswith(THINK):
        return None, full
    thought, _, text = head.removeprefix(THINK).partition(END_THINK)
    return thought, text


def is_blank(full: str) -> bool:
    """Whether there is nothing to continue but perhaps a think tag."""
    thought, text = split_thought(full)
    return not (thought or "").strip() and not text.strip()


_ASKED = """\
The answer so far stands between <{name}> and </{name}>. It breaks off where </{name}> stands.

<{name}>
{partial}
</{name}>

Continue it from exactly there, seamlessly. Write only what comes next, from the middle of a sentence or a \
formula if that is where it breaks off. If it breaks off inside a word or a number, begin with that whole \
word or number. Repeat and summarise nothing else of it, write no preamble, no comment and no closing \
summary, and put neither quotation marks nor a code fence around it. Write as much as the next step needs \
and then stop."""
_ASKED_THINKING = " These are working notes, not yet the answer to the user: go on working in the same voice."


def asked(full: str) -> str:
    """The user turn that asks for the continuation."""
    thought, text = split_thought(full)
    partial = full.strip() if thought is None else f"{thought.strip()}\n\n{text.strip()}".strip()
    turn = _ASKED.format(name=delimiter(full), partial=partial)
    return turn + _ASKED_THINKING if is_thinking(full) else turn


def delimiter(full: str) -> str:
    """The name of the tag that quotes the answer so far: one that does not occur in it."""
    name, number = "draft", 1
    while f"{name}>" in full:
        number += 1
        name = f"draft-{number}"
    return name


# --- what a server refuses ----------------------------------------------------------------------------------

_CONTINUE_FLAGS = ("continue_final_message", "add_generation_prompt")
_OPTIONAL = (
    *_CONTINUE_FLAGS, "chat_template_kwargs", "reasoning_effort", "stream_options", "seed", "top_p",
    "temperature",
)  # fmt: skip
"""The rarest first: where a server does not say which one it means, that is the likeliest."""

REASONING_ROOM = 1024
"""Tokens, where the limit counts a hidden thought too."""

_BAD_REQUEST = (400, 422)
_TOO_LONG = re.compile(
    r"context.?(length|window|size)|too (large|long)|maximum (context|number)", re.IGNORECASE
)
_UNKNOWN = re.compile(
    r"""\b(unknown | unrecogni[sz]ed | unexpected | unsupported | extra | additional) \W+ (\w+\W+){0,3}
      (field | input | parameter | argument | propert | key)""",
    re.IGNORECASE | re.VERBOSE,
)
_UNSUPPORTED = re.compile(
    r"""un(supported|known|recogni[sz]ed|expected) | not\s(supported|permitted|allowed)
    | extra[_ ](forbidden|input)""",
    re.IGNORECASE | re.VERBOSE,
)
_ALTERNATE = re.compile(
    r"roles must alternate|consecutive (user|messages|roles)|roles? .{0,40}alternat", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Quirks:
    """Parameters that a server refuses or spells otherwise. Each refusal adds one: that comes to an end."""

    left_out: frozenset[str] = frozenset()
    has_new_limit: bool = False
    """`max_completion_tokens` instead of `max_tokens`: so it is with models that think."""
    merges_turns: bool = False
    """Two user turns in a row are refused."""
    thinks_first: bool = False
    """A turn of its own begins with a thought, which the limit counts too."""

    def applied(self, body: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
        body = {name: value for name, value in body.items() if name not in self.left_out}
        thinks = self.has_new_limit or self.thinks_first or dialect.thinks_aloud
        if dialect.is_asking and thinks:
            body["max_tokens"] += REASONING_ROOM
        if self.has_new_limit:
            body["max_completion_tokens"] = body.pop("max_tokens")
        return body

    def after_refusal(self, status: int, text: str, sent: Collection[str] | None = None) -> Quirks | None:
        """What to leave out next; None if what was refused is not one of the parameters that can be.

        Args:
            text: the body of the refusal.
            sent: the request's body, or its keys. None takes all that were not left out for sent.
        """
        if status not in _BAD_REQUEST:
            return None
        said = _Refusal.read(text)
        if _ALTERNATE.search(said.message) and not self.merges_turns:
            return replace(self, merges_turns=True)
        if _TOO_LONG.search(said.message):
            return None
        is_about_limit = "max_completion_tokens" in said.message or said.names("max_tokens")
        if is_about_limit and not self.has_new_limit and _UNSUPPORTED.search(said.message + text[:200]):
            return replace(self, has_new_limit=True)
        there = [n for n in _OPTIONAL if n not in self.left_out and (sent is None or n in sent)]
        is_unknown = bool(_UNSUPPORTED.search(said.message))
        # The flags that continue are a convention: that they were misused is no reason to do without.
        name = next((n for n in there if said.names(n) and (is_unknown or n not in _CONTINUE_FLAGS)), None)
        if name is None and not said.fields and _UNKNOWN.search(said.message):
            name = next(iter(there), None)
        if name is None:
            return None
        names = _CONTINUE_FLAGS if name in _CONTINUE_FLAGS else (name,)
        return replace(self, left_out=self.left_out.union(names))


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What a refusal says of parameters. The request, which some quote in it, is no part of that."""

    fields: tuple[str, ...]
    message: str

    @classmethod
    def read(cls, text: str) -> _Refusal:
        found: list[tuple[str, str]] = []
        try:
            found = list(_leaves(json.loads(text[:65536]), depth=0))
        except (ValueError, RecursionError):
            found = [("message", text)]
        fields = tuple(value for key, value in found if key in ("param", "loc"))
        return cls(fields, "\n".join(value for key, value in found if key not in ("param", "loc"))[:4096])

    def names(self, parameter: str) -> bool:
        said = "include_usage" if parameter == "stream_options" else parameter
        words = rf"(?<!\w)({parameter}|{said})(?!\w)"
        return any(re.search(words, field) for field in self.fields) or bool(re.search(words, self.message))


def _leaves(value: object, depth: int, key: str = "") -> Iterator[tuple[str, str]]:
    """The texts of an error body, with their keys: OpenAI's, llama.cpp's, FastAPI's (`loc`, `msg`), and the
    same as JSON in a text (Mistral)."""
    if depth > 8:
        return
    if isinstance(value, str):
        if key in ("error", "message", "detail", "msg", "param", "type", "code", ""):
            if value.startswith(("{", "[")) and key not in ("param", "type", "code"):
                try:
                    yield from _leaves(json.loads(value), depth + 1, key)
                    return
                except (ValueError, RecursionError):
                    pass
            yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, depth + 1, str(name)) if name != "input" else ()
    elif isinstance(value, list):
        if key == "loc":
            yield key, ".".join(str(part) for part in value)
        else:
            for item in value:
                yield from _leaves(item, depth + 1, key)


# --- what is known of a server ------------------------------------------------------------------------------

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What is known of one model at one address."""

    thought: str | None
    """The dialect that continues inside an open think block; None: not known."""
    text: str | None
    """The one that continues outside of one."""
    quirks: Quirks = Quirks()
    echoes: bool = False
    """It repeats what was sent before it goes on."""
    has_usage: bool | None = None
    can_cancel: bool | None = None
    findings: tuple[tuple[str, str], ...] = ()
    """Dialect and verdict, of a thought where the name ends in `+think`."""

    def dialect(self, thinking: bool) -> Dialect:
        name = (self.thought or self.text) if thinking else (self.text or self.thought)
        return _NAMED.get(name or "", INSTRUCT)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "thought": self.thought,
            "text": self.text,
            "left_out": sorted(self.quirks.left_out),
            "has_new_limit": self.quirks.has_new_limit,
            "merges_turns": self.quirks.merges_turns,
            "thinks_first": self.quirks.thinks_first,
            "echoes": self.echoes,
            "has_usage": self.has_usage,
            "can_cancel": self.can_cancel,
            "findings": [list(finding) for finding in self.findings],
        }

    @classmethod
    def from_json(cls, value: object) -> Capabilities | None:
        """None where it is not what `to_json` of this version gave: then it is found out anew."""
        if not isinstance(value, Mapping) or value.get("version") != _VERSION:
            return None
        names, flags = (
            (value.get("thought"), value.get("text")),
            (value.get("has_usage"), value.get("can_cancel")),
        )
        left_out, findings = value.get("left_out"), value.get("findings")
        if not all(name is None or (isinstance(name, str) and name in _NAMED) for name in names):
            return None
        if not all(flag is None or isinstance(flag, bool) for flag in flags):
            return None
        if not isinstance(left_out, list) or not all(name in _OPTIONAL for name in left_out):
            return None
        if not isinstance(findings, list) or not all(_is_pair(finding) for finding in findings):
            return None
        return cls(
            *names,
            Quirks(
                frozenset(left_out),
                value.get("has_new_limit") is True,
                value.get("merges_turns") is True,
                value.get("thinks_first") is True,
            ),
            value.get("echoes") is True,
            *flags,
            tuple((finding[0], finding[1]) for finding in findings),
        )


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)


# --- hosts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hint:
    """What a host documents; None: nothing."""

    thought: str | None
    text: str | None
    has_completions: bool = False
    """Raw ones: Ollama's go through the chat template and are none."""
    is_settled: bool = False
    """It documents that nothing else can work: what looks like a continuation is luck."""


_HOSTS = (
    ("api.openai.com", Hint("instruct", "instruct", is_settled=True)),
    ("openai.azure.com", Hint("instruct", "instruct", is_settled=True)),
    ("api.anthropic.com", Hint("instruct", "instruct")),  # up to 4.5: trailing
    ("api.deepseek.com", Hint("prefix-reasoning", "prefix-reasoning")),
    ("api.mistral.ai", Hint("prefix", "prefix")),
    ("api.moonshot.ai", Hint("partial", "partial")),
    ("api.moonshot.cn", Hint("partial", "partial")),
    ("aliyuncs.com", Hint("partial", "partial")),
    ("api.groq.com", Hint("trailing-plain", "trailing-plain")),
    ("openrouter.ai", Hint(None, None)),  # it is the upstream's affair
    ("api.fireworks.ai", Hint("completions", "completions", has_completions=True)),
    (":11434", Hint(None, "trailing-plain")),  # Ollama's port
)


def wraps_prompts(headers: Mapping[str, str], fingerprint: str | None) -> bool:
    """Whether a reply to raw completions is that of a server that puts a chat template around the prompt.

    Ollama does (https://github.com/ollama/ollama/issues/5544), and LiteLLM where its upstream only chats:
    what comes back is a new turn. Both can be told by what they sign their replies with.

    Args:
        headers: names in lower case.
        fingerprint: the reply's `system_fingerprint`.
    """
    return fingerprint == "fp_ollama" or any(name.startswith("x-litellm-") for name in headers)


def known_host(host: str) -> Hint | None:
    """What is documented of a host, given with or without its port."""
    name, _, port = host.lower().rpartition(":") if not host.endswith("]") else (host.lower(), "", "")
    name = name or host.lower()
    for known, hint in _HOSTS:
        if known == f":{port}" or name == known or name.endswith("." + known):
            return hint
    return None
