"""What the two processes say to each other, a JSON line each.

The events of an answer go as they are (`events.to_json`), between `Answering` and `Answered`. All else is one
of the classes here: `{"say": "stop", "number": 3}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from sr_edge.events import Event, from_json, to_json
from sr_edge.policy import Dial
from sr_edge.roles import First, Message

Verdict = Literal["yes", "no"]


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user chose on the command line; the child finds settings and keys by itself."""

    config: str | None = None
    """Path of the settings, instead of the user's own."""
    profile: str | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    """By setting, as `config.load_config` takes them."""
    lora: str | None = None
    """Path of an adapter for the small model."""
    big: str | None = None
    big_model: str | None = None
    hedge: bool | None = None


# --- to the child ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """Load the models."""

    kind: ClassVar[str] = "open"
    choices: Choices


@dataclass(frozen=True, slots=True)
class Answer:
    """Write an answer. `past` and `first` as in `SplitDecoder.generate`."""

    kind: ClassVar[str] = "answer"
    number: int
    messages: tuple[Message, ...]
    past: tuple[Event, ...] = ()
    past_model: str | None = None
    """Which small model wrote it: the ids mean nothing to another."""
    first: First | None = None
    conversation: str | None = None
    """Whose cache may be kept on disk, and had back from there."""


@dataclass(frozen=True, slots=True)
class Draft:
    """The last of these messages is still being typed: to be read while there is nothing else to do."""

    kind: ClassVar[str] = "draft"
    messages: tuple[Message, ...]
    conversation: str | None = None


@dataclass(frozen=True, slots=True)
class Forget:
    """The user removed this conversation."""

    kind: ClassVar[str] = "forget"
    conversation: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End this answer, whatever is under way."""

    kind: ClassVar[str] = "stop"
    number: int


@dataclass(frozen=True, slots=True)
class Steer:
    """Turn the dials, now and for what follows."""

    kind: ClassVar[str] = "steer"
    dial: Dial
    bias: float


@dataclass(frozen=True, slots=True)
class Decide:
    """The user's answer to the last `Asked`."""

    kind: ClassVar[str] = "decide"
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class GoOffline:
    """For good: a span that is being written is hung up on, and none leaves after it."""

    kind: ClassVar[str] = "go_offline"


# --- from the child ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loading:
    kind: ClassVar[str] = "loading"
    done: float
    """0 to 1."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The models are there."""

    kind: ClassVar[str] = "ready"
    model: str
    context: int
    """Tokens."""
    big: str | None = None
    leaves: bool = False
    """Whether spans go over the network."""
    where: str | None = None
    """Host and port."""
    can_ask: bool = True
    """Whether the small model has markers, as one token each."""
    offline: bool = False
    hears_one_question: bool = False
    """It is not told what was said before; see `Session.told`."""
    price: tuple[float, float] | None = None
    """US dollars per million tokens, in and out."""
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The models cannot be opened."""

    kind: ClassVar[str] = "failed"
    error: str


@dataclass(frozen=True, slots=True)
class Answering:
    kind: ClassVar[str] = "answering"
    number: int


@dataclass(frozen=True, slots=True)
class Working:
    """See `roles.Progress`."""

    kind: ClassVar[str] = "working"
    doing: Literal["reading", "catching up"]
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A span wants to leave: the child waits for `Decide`."""

    kind: ClassVar[str] = "asked"
    span: int
    remote: str
    where: str
    tokens: int
    """Of the conversation, in local tokens."""
    size: int
    """Bytes of the request."""
    text: str
    """The request, as it would leave."""
    cost: float | None = None
    """US dollars, at most; None where no price is known."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the user should know."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer is over, in whatever way."""

    kind: ClassVar[str] = "answered"
    number: int
    error: str | None = None
    """Why it could not begin, or broke off without a `Finished`."""
    spent: tuple[float, int] | None = None
    """What the remote has cost today: US dollars and tokens."""


# --- said by the host itself -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Died:
    """The process is gone. The next answer begins with a new one."""

    kind: ClassVar[str] = "died"
    reason: str
    number: int | None = None
    """The answer that it was writing."""


Command: TypeAlias = Open | Answer | Draft | Forget | Stop | Steer | Decide | GoOffline
Report: TypeAlias = Loading | Ready | Failed | Answering | Working | Asked | Note | Answered | Died

_KINDS: dict[str, type[Any]] = {cls.kind: cls for cls in (*get_args(Command), *get_args(Report))}


def encode(message: Command | Report | Event) -> str:
    """One line, without the newline."""
    if message.kind not in _KINDS:
        assert not isinstance(message, Command | Report)
        return to_json(message)
    if isinstance(message, Answer):
        data = {
            "number": message.number,
            "messages": [asdict(one) for one in message.messages],
            "past": [to_json(event) for event in message.past],
            "past_model": message.past_model,
            "first": message.first,
            "conversation": message.conversation,
        }
    else:
        data = asdict(message)
    return json.dumps({"say": message.kind, **data}, ensure_ascii=True)


def decode(line: str) -> Command | Report | Event:
    """Raises: ValueError: neither a message nor an event."""
    try:
        data = json.loads(line)
    except RecursionError:
        raise ValueError("not a message between the two processes") from None
    kind = data.pop("say", None) if isinstance(data, dict) else None
    if kind is None:
        return from_json(line)
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None or not data.keys() <= {one.name for one in fields(cls)}:
        raise ValueError(f"not a message between the two processes: {kind!r}")
    try:
        if cls is Open:
            return Open(Choices(**data["choices"]))
        if cls in (Answer, Draft):
            data["messages"] = tuple(Message(**one) for one in data["messages"])
        if cls is Answer:
            data["past"] = tuple(from_json(one) for one in data["past"])
        message: Command | Report = cls(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"an incomplete message {kind!r}: {error}") from None
    return message
