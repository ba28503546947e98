"""What may be asked over HTTP: JSON bodies in OpenAI's shapes, read into frozen requests. Pure.

Every parameter has one row in `CHAT` or `COMPLETION`, which reads it and describes it: `openapi` prints that.
What is in no table is refused, and so is a value that would mean something which is not done here: a client
is told, not served half. A value that changes nothing (null, a penalty of 0, no tools) is accepted,
since clients send such.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn, Protocol, TypeAlias

from sr_edge.errors import EdgeError
from sr_edge.extract import END_THINK, THINK, is_thinking
from sr_edge.local import SamplerSettings
from sr_edge.roles import Message, Policy
from sr_edge.serve.jobs import Job

MAX_MESSAGES = 1000
MAX_PROMPTS = 16
MAX_CHOICES = 16
"""Of one prompt."""
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_TOKENS = 1_000_000
MAX_TOP_K = 1_000_000
MAX_SEED = 2**32 - 2
MAX_NAME_CHARS = 512
"""Of a user's name, and of keys and values that are for the client alone."""
MAX_METADATA = 16
_MAX_DEPTH = 32
_MAX_ID = 2**31 - 1


class BadRequest(EdgeError):
    """What was sent is not what can be answered."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a request is measured by, and what it does not say itself."""

    models: Mapping[str, Policy]
    """By the ids that a request may name; the first is meant where it names none. See `model_ids`."""
    sampling: SamplerSettings = field(default_factory=SamplerSettings)
    max_tokens: int = 4096
    """Of an answer, where the request does not say."""
    opening: str = ""
    """What the template writes for the assistant before the first token, such as an open think tag."""
    vocabulary_size: int | None = None
    """Of the small model, whose ids a raw prompt may be given in."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What both kinds of request have in common."""

    model: str
    policy: Policy
    n: int
    """Choices for each prompt."""
    sampling: SamplerSettings
    """Of the first choice; see `samplings`."""
    max_tokens: int
    stops: tuple[str, ...]
    """Texts that end the answer and are no part of it; none is empty."""
    stream: bool
    include_usage: bool
    """Of a stream: whether it ends with a chunk that counts."""
    logprobs: bool
    events: bool
    """Whether our own events come along."""
    user: str | None

    def samplings(self) -> tuple[SamplerSettings, ...]:
        """One for each choice of a prompt. The same seed would give the same answer `n` times."""
        first, seed = self.sampling, self.sampling.seed
        if seed is None:
            return (first,) * self.n
        return tuple(replace(first, seed=(seed + k) % (MAX_SEED + 1)) for k in range(self.n))


@dataclass(frozen=True, slots=True)
class ChatRequest:
    wanted: Wanted
    messages: tuple[Message, ...]
    continues: str
    """See `Job.continues`."""

    def jobs(self, *, agent: str, seconds: float | None = None) -> tuple[Job, ...]:
        """One for each choice.

        Args:
            agent: who asks, where the request names no user.
            seconds: see `Job`.
        """
        wanted = self.wanted
        return tuple(
            Job(
                messages=self.messages,
                prompt=None,
                continues=self.continues,
                sampling=sampling,
                max_tokens=wanted.max_tokens,
                policy=wanted.policy,
                client=wanted.user or agent,
                seconds=seconds,
            )
            for sampling in wanted.samplings()
        )


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    wanted: Wanted
    prompts: tuple[str | tuple[int, ...], ...]
    """`Wanted.n` choices each, in this order. None is empty."""
    echo: bool
    """Each choice's text begins with its prompt; then all of these are texts."""

    def jobs(self, *, agent: str, seconds: float | None = None) -> tuple[Job, ...]:
        """One for each choice, those of the first prompt first; arguments as in `ChatRequest.jobs`."""
        wanted = self.wanted
        return tuple(
            Job(
                messages=(),
                prompt=prompt,
                continues="",
                sampling=sampling,
                max_tokens=wanted.max_tokens,
                policy=wanted.policy,
                client=wanted.user or agent,
                seconds=seconds,
            )
            for prompt in self.prompts
            for sampling in wanted.samplings()
        )


def model_ids(name: str, *, has_big: bool) -> dict[str, Policy]:
    """The ids under which a pair is served: as it is, without the large model, and by that alone.

    Args:
        name: the small model's.
    """
    slug = re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.") or "model"
    ids: dict[str, Policy] = {slug: "auto", f"{slug}:local": "local"}
    return ids | {f"{slug}:remote": "remote"} if has_big else ids


def parse_chat(body: bytes, limits: RequestLimits) -> ChatRequest:
    """Raises: BadRequest."""
    asked = CHAT.read(_load(body), "")
    messages: tuple[_Turn, ...] = asked["messages"]
    continues = ""
    if asked.get("continue_final_message"):
        continues = _continued(messages, asked["continue_final_message"], limits.opening)
        messages = messages[:-1]
    if asked.get("add_generation_prompt") not in (None, not asked.get("continue_final_message")):
        _refuse(
            "add_generation_prompt is the opposite of continue_final_message: leave it out",
            "add_generation_prompt",
        )
    return ChatRequest(
        wanted=_wanted(asked, limits, logprobs=bool(asked.get("logprobs"))),
        messages=tuple(turn.message for turn in messages),
        continues=continues,
    )


def parse_completion(body: bytes, limits: RequestLimits) -> CompletionRequest:
    """Raises: BadRequest."""
    asked = COMPLETION.read(_load(body), "")
    prompts: tuple[str | tuple[int, ...], ...] = asked["prompt"]
    echo = bool(asked.get("echo"))
    for prompt in prompts:
        if isinstance(prompt, tuple) and limits.vocabulary_size is not None:
            highest = max(prompt)
            if highest >= limits.vocabulary_size:
                _refuse(
                    f"prompt: no token has the id {highest}; the model has {limits.vocabulary_size}", "prompt"
                )
        if isinstance(prompt, tuple) and echo:
            _refuse(
                "echo is not supported for a prompt in ids: send it as text", "echo", "unsupported_parameter"
            )
    wanted = _wanted(asked, limits, logprobs=asked.get("logprobs") is not None)
    return CompletionRequest(wanted=wanted, prompts=prompts, echo=echo)


def _wanted(asked: Mapping[str, Any], limits: RequestLimits, *, logprobs: bool) -> Wanted:
    model = asked.get("model")
    if model is None:
        model = next(iter(limits.models))
    if model not in limits.models:
        raise BadRequest(
            f"the model {_shown(model)} does not exist: there are {', '.join(limits.models)}",
            param="model",
            code="model_not_found",
            status=404,
        )
    max_tokens, newer = asked.get("max_tokens"), asked.get("max_completion_tokens")
    if max_tokens is not None and newer is not None and max_tokens != newer:
        _refuse("max_tokens and max_completion_tokens are the same: give one of them", "max_tokens")
    defaults = limits.sampling
    return Wanted(
        model=model,
        policy=limits.models[model],
        n=_or(asked.get("n"), 1),
        sampling=SamplerSettings(
            temperature=_or(asked.get("temperature"), defaults.temperature),
            top_p=_or(asked.get("top_p"), defaults.top_p),
            top_k=_or(asked.get("top_k"), defaults.top_k),
            seed=_or(asked.get("seed"), defaults.seed),
        ),
        max_tokens=_or(_or(max_tokens, newer), limits.max_tokens),
        stops=asked.get("stop") or (),
        stream=bool(asked.get("stream")),
        include_usage=bool((asked.get("stream_options") or {}).get("include_usage")),
        logprobs=logprobs,
        events=bool((asked.get("sr_edge") or {}).get("events")),
        user=asked.get("user") or None,
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _continued(
    turns: Sequence[_Turn], where: Literal[True, "content", "reasoning_content"], opening: str
) -> str:
    """What stands after the template's opening, of an answer that is to go on."""
    param = "continue_final_message"
    if turns[-1].message.role != "assistant":
        _refuse(f"{param}: the last message must be the assistant's", param)
    if len(turns) == 1:
        _refuse(f"{param}: a message that is answered must stand before the one that goes on", param)
    content, thought = turns[-1].message.content, turns[-1].thought
    if where == "reasoning_content":
        if content.strip():
            _refuse(f"{param}: the thought can't go on before content: leave the content out", param)
        content = ""
    has_answer = bool(content) or where == "content"
    if not is_thinking(opening):
        if not thought:
            return content
        return THINK + thought + (END_THINK + content if has_answer else "")
    if not thought:
        head = content.lstrip()
        for begun in (opening.lstrip(), THINK):
            if head.startswith(begun):
                return head.removeprefix(begun)
        if END_THINK in content:  # only the opening tag was left out
            return content
    return thought + END_THINK + content if has_answer else thought


# --- JSON ---------------------------------------------------------------------------------------------------


def _load(body: bytes) -> object:
    try:
        value: object = json.loads(
            body.decode(), object_pairs_hook=_unique, parse_constant=lambda name: _not_json(f"{name} is none")
        )
    except RecursionError:
        _not_json("it is nested too deep")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        _not_json(str(error)[:200])
    except ValueError:  # Python reads no whole number of more than 4300
        _not_json("a number in it has too many digits")
    _check_inside(value)
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                _not_json(f"the key {_shown(key)} stands twice in one object")
            seen.add(key)
    return found


def _check_inside(value: object) -> None:
    """Nesting, and characters that no text has."""
    level: list[object] = [value]
    for _ in range(_MAX_DEPTH):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str) and not item.isascii():
                try:
                    item.encode()
                except UnicodeEncodeError:
                    _not_json("a text in it has half a surrogate pair")
        if not below:
            return
        level = below
    _not_json(f"it is nested deeper than {_MAX_DEPTH}")


def _not_json(why: str) -> NoReturn:
    raise BadRequest(f"the body is not JSON that can be read: {why}", code="invalid_json")


def _refuse(message: str, param: str, code: str = "invalid_value") -> NoReturn:
    raise BadRequest(message, param=param or None, code=code)


def _mistyped(param: str, wanted: str, value: object) -> NoReturn:
    _refuse(f"{param or 'the body'} must be {wanted}, not {_shown(value)}", param, "invalid_type")


def _shown(value: object) -> str:
    """A value in a message, where it is short."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str) and len(value) > 60:
        value = f"{value[:60]}..."
    return json.dumps(value, ensure_ascii=False)


# --- what a value may be ------------------------------------------------------------------------------------

Schema: TypeAlias = dict[str, Any]


class Kind(Protocol):
    """What a value may be: read and checked, or described."""

    def read(self, value: object, param: str) -> Any:
        """Raises: BadRequest."""

    def schema(self) -> Schema: ...


@dataclass(frozen=True, slots=True)
class Number:
    minimum: float
    maximum: float
    is_open: bool = False
    """The minimum itself is too small."""

    def read(self, value: object, param: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            _mistyped(param, "a number", value)
        is_low = value <= self.minimum if self.is_open else value < self.minimum
        if is_low or value > self.maximum or not math.isfinite(value):
            least = f"more than {self.minimum:g}" if self.is_open else f"at least {self.minimum:g}"
            _refuse(f"{param} must be {least} and at most {self.maximum:g}, not {_number(value)}", param)
        return float(value)

    def schema(self) -> Schema:
        least = "exclusiveMinimum" if self.is_open else "minimum"
        return {"type": "number", least: self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class Integer:
    minimum: int
    maximum: int

    def read(self, value: object, param: str) -> int:
        is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_whole:
            _mistyped(param, "a whole number", value)
        if not self.minimum <= value <= self.maximum:
            _refuse(
                f"{param} must be at least {self.minimum} and at most {self.maximum}, not {_number(value)}",
                param,
            )
        return int(value)

    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}


def _number(value: float) -> str:
    return str(value) if abs(value) < 10**20 else "so extreme a number"


@dataclass(frozen=True, slots=True)
class Text:
    """Lengths in characters."""

    maximum: int | None = None
    minimum: int = 0

    def read(self, value: object, param: str) -> str:
        if not isinstance(value, str):
            _mistyped(param, "a text", value)
        if len(value) < self.minimum:
            _refuse(f"{param} is empty", param)
        if self.maximum is not None and len(value) > self.maximum:
            _refuse(f"{param} has {len(value)} characters; at most {self.maximum} are allowed", param)
        return value

    def schema(self) -> Schema:
        found: Schema = {"type": "string"}
        if self.minimum:
            found["minLength"] = self.minimum
        if self.maximum is not None:
            found["maxLength"] = self.maximum
        return found


@dataclass(frozen=True, slots=True)
class Flag:
    def read(self, value: object, param: str) -> bool:
        if not isinstance(value, bool):
            _mistyped(param, "true or false", value)
        return value

    def schema(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class OneOf:
    """A closed list. Where it is what changes nothing, anything else is not supported."""

    values: tuple[object, ...]
    is_neutral: bool = True

    def read(self, value: object, param: str) -> Any:
        for one in self.values:
            if value == one and isinstance(value, bool) == isinstance(one, bool):
                return one
        allowed = " or ".join(json.dumps(one) for one in self.values)
        if self.is_neutral:
            but = f" but as {allowed}" if allowed else ""
            _refuse(f"{param} is not supported{but}: leave it out", param, "unsupported_parameter")
        _refuse(f"{param} must be {allowed}, not {_shown(value)}", param, "unsupported_value")

    def schema(self) -> Schema:
        return {"enum": list(self.values)}


@dataclass(frozen=True, slots=True)
class ListOf:
    item: Kind
    maximum: int | None = None
    minimum: int = 0

    def read(self, value: object, param: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            _mistyped(param, "a list", value)
        if len(value) < self.minimum:
            _refuse(f"{param} is empty", param)
        if self.maximum is not None and len(value) > self.maximum:
            _refuse(f"{param} has {len(value)} entries; at most {self.maximum} are allowed", param)
        return tuple(self.item.read(item, f"{param}[{n}]") for n, item in enumerate(value))

    def schema(self) -> Schema:
        found: Schema = {"type": "array", "items": self.item.schema()}
        if self.minimum:
            found["minItems"] = self.minimum
        if self.maximum is not None:
            found["maxItems"] = self.maximum
        return found


@dataclass(frozen=True, slots=True)
class Either:
    """A text or number by itself, or a list."""

    single: Kind
    several: Kind

    def read(self, value: object, param: str) -> Any:
        return (self.several if isinstance(value, list) else self.single).read(value, param)

    def schema(self) -> Schema:
        return {"anyOf": [self.single.schema(), self.several.schema()]}


@dataclass(frozen=True, slots=True)
class Labels:
    """Names and texts that are for the client alone."""

    def read(self, value: object, param: str) -> Mapping[str, str]:
        if not isinstance(value, dict):
            _mistyped(param, "an object", value)
        if len(value) > MAX_METADATA:
            _refuse(f"{param} has {len(value)} entries; at most {MAX_METADATA} are allowed", param)
        text = Text(MAX_NAME_CHARS)
        return {text.read(key, param): text.read(item, f"{param}.{key[:60]}") for key, item in value.items()}

    def schema(self) -> Schema:
        text = Text(MAX_NAME_CHARS).schema()
        return {
            "type": "object",
            "maxProperties": MAX_METADATA,
            "propertyNames": {"maxLength": MAX_NAME_CHARS},
            "additionalProperties": text,
        }


@dataclass(frozen=True, slots=True)
class Fields:
    """An object. What is not required may be null, which is as if it were not there."""

    kinds: Mapping[str, Kind]
    required: frozenset[str] = frozenset()

    def read(self, value: object, param: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            _mistyped(param, "an object", value)
        prefix = f"{param}." if param else ""
        for name in value:
            if name not in self.kinds:
                _refuse(
                    f"{prefix}{name[:100]} is an unsupported parameter: leave it out",
                    prefix + name[:100],
                    "unsupported_parameter",
                )
        found = {}
        for name, kind in self.kinds.items():
            if value.get(name) is not None:
                found[name] = kind.read(value[name], prefix + name)
            elif name in self.required:
                _refuse(f"{prefix}{name} is missing", prefix + name, "missing_required_parameter")
        return found

    def schema(self) -> Schema:
        found: Schema = {
            "type": "object",
            "properties": {
                name: kind.schema() if name in self.required else _or_null(kind.schema())
                for name, kind in self.kinds.items()
            },
            "additionalProperties": False,
        }
        if self.required:
            found["required"] = [name for name in self.kinds if name in self.required]
        return found


def _or_null(schema: Schema) -> Schema:
    if "enum" in schema:
        return schema | {"enum": [*schema["enum"], None]}
    if "anyOf" in schema:
        return schema | {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    return schema | {"type": [schema["type"], "null"]}


# --- messages -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Turn:
    message: Message
    thought: str = ""
    """`reasoning_content`. Of an earlier answer it is not told again: so templates of such models have it."""


class Content:
    """A text, or a list of texts."""

    _parts = ListOf(
        Fields(
            {"type": OneOf(("text",), is_neutral=False), "text": Text()}, required=frozenset({"type", "text"})
        ),
        maximum=MAX_MESSAGES,
    )

    def read(self, value: object, param: str) -> str:
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            _mistyped(param, "a text or a list of texts", value)
        return "\n".join(part["text"] for part in self._parts.read(value, param))

    def schema(self) -> Schema:
        return {"anyOf": [{"type": "string"}, self._parts.schema()]}


_Role: TypeAlias = Literal["system", "user", "assistant"]
_ROLES: Mapping[str, _Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_TOLD = ("system", "developer", "user")
_TEXT_TYPE = OneOf(("text",))
"""lm-eval puts it beside the role."""


class Turn:
    """One message of a conversation."""

    _told = Fields(
        {"role": OneOf(_TOLD, is_neutral=False), "content": Content(), "type": _TEXT_TYPE},
        required=frozenset({"role", "content"}),
    )
    _answered = Fields(
        {
            "role": OneOf(("assistant",), is_neutral=False),
            "content": Content(),
            "reasoning_content": Text(),
            "type": _TEXT_TYPE,
            # what clients send back of an answer as they got it
            "annotations": OneOf(([],)),
            "audio": OneOf(()),
            "function_call": OneOf(()),
            "partial": OneOf((False,)),
            "prefix": OneOf((False,)),
            "refusal": OneOf(()),
            "tool_calls": OneOf(([],)),
        },
        required=frozenset({"role"}),
    )

    def read(self, value: object, param: str) -> _Turn:
        role = value.get("role") if isinstance(value, dict) else None
        if isinstance(role, str) and role not in _ROLES:
            _refuse(
                f"{param}.role must be one of {', '.join(_ROLES)}, not {_shown(role)}",
                f"{param}.role",
                "unsupported_value",
            )
        found = (self._answered if role == "assistant" else self._told).read(value, param)
        message = Message(_ROLES[found["role"]], found.get("content", ""))
        return _Turn(message, found.get("reasoning_content", ""))

    def schema(self) -> Schema:
        return {"anyOf": [self._told.schema(), self._answered.schema()]}


# --- prompts ------------------------------------------------------------------------------------------------


class Prompts:
    """A text, ids, or a list of either."""

    _text = Text(minimum=1)
    _ids = ListOf(Integer(0, _MAX_ID), minimum=1)

    def read(self, value: object, param: str) -> tuple[str | tuple[int, ...], ...]:
        if isinstance(value, str):
            return (self._text.read(value, param),)
        if not isinstance(value, list):
            _mistyped(param, "a text, a list of ids, or a list of such", value)
        if value and not isinstance(value[0], str | list):
            return (self._ids.read(value, param),)
        kind: Kind = self._text if value and isinstance(value[0], str) else self._ids
        return ListOf(kind, MAX_PROMPTS, 1).read(value, param)

    def schema(self) -> Schema:
        kinds = (
            self._text,
            self._ids,
            ListOf(self._text, MAX_PROMPTS, 1),
            ListOf(self._ids, MAX_PROMPTS, 1),
        )
        return {"anyOf": [kind.schema() for kind in kinds]}


# --- the tables ---------------------------------------------------------------------------------------------


class Stops(Either):
    def read(self, value: object, param: str) -> tuple[str, ...]:
        found = super().read(value, param)
        return (found,) if isinstance(found, str) else found


def _rows() -> Iterator[tuple[str, Kind]]:
    stop = Text(MAX_STOP_CHARS, minimum=1)
    yield "model", Text()
    yield "stream", Flag()
    yield "stream_options", Fields({"include_usage": Flag(), "include_obfuscation": OneOf((False,))})
    yield "n", Integer(1, MAX_CHOICES)
    yield "max_tokens", Integer(1, MAX_TOKENS)
    yield "temperature", Number(0, 2)
    yield "top_p", Number(0, 1, is_open=True)
    yield "top_k", Integer(0, MAX_TOP_K)
    yield "seed", Integer(0, MAX_SEED)
    yield "stop", Stops(stop, ListOf(stop, MAX_STOPS))
    yield "user", Text(MAX_NAME_CHARS)
    yield "sr_edge", Fields({"events": Flag()})
    # what changes nothing
    yield "frequency_penalty", OneOf((0,))
    yield "logit_bias", OneOf(({},))
    yield "min_p", OneOf((0,))
    yield "presence_penalty", OneOf((0,))
    yield "repetition_penalty", OneOf((1,))


_SHARED = dict(_rows())

CHAT = Fields(
    {
        "messages": ListOf(Turn(), MAX_MESSAGES, 1),
        **_SHARED,
        "max_completion_tokens": Integer(1, MAX_TOKENS),
        "logprobs": Flag(),
        "top_logprobs": OneOf((0,)),
        "continue_final_message": OneOf((True, False, "content", "reasoning_content"), is_neutral=False),
        "add_generation_prompt": Flag(),
        "metadata": Labels(),
        "store": OneOf((False,)),
        "prompt_cache_key": Text(MAX_NAME_CHARS),
        "safety_identifier": Text(MAX_NAME_CHARS),
        # what changes nothing
        "audio": OneOf(()),
        "chat_template_kwargs": OneOf(({},)),
        "function_call": OneOf(("none", "auto")),
        "functions": OneOf(([],)),
        "modalities": OneOf((["text"],)),
        "parallel_tool_calls": Flag(),
        "reasoning_effort": OneOf(()),
        "response_format": OneOf(({"type": "text"},)),
        "service_tier": OneOf(("auto", "default")),
        "tool_choice": OneOf(("none", "auto")),
        "tools": OneOf(([],)),
        "verbosity": OneOf(("medium",)),
    },
    required=frozenset({"messages"}),
)

COMPLETION = Fields(
    {
        "prompt": Prompts(),
        **_SHARED,
        "echo": Flag(),
        "logprobs": OneOf((0,)),
        # what changes nothing
        "best_of": OneOf((1,)),
        "suffix": OneOf(("",)),
    },
    required=frozenset({"prompt"}),
)
