"""Who takes part in split decoding, and what passes between them.

A `LocalModel` is a cursor over one KV cache, a `RemoteModel` a source of text, and a `Gate` decides what may
leave. `split` brings them together; nothing here does anything. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol, Self

from sr_edge.events import End
from sr_edge.markers import Markers
from sr_edge.reading import Places


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation, up to where the assistant begins to write."""

    ids: tuple[int, ...]
    """Scaffold and contents tokenised separately: no content yields a control token."""
    text: str
    opening: str
    """The end of `text` that belongs to the answer already, such as an open think tag; often empty."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One sampled token. `logprob` is the model's own, before temperature and truncation."""

    id: int
    logprob: float


NO_BIAS: Mapping[int, float] = MappingProxyType({})


class LocalModel(Protocol):
    """A cursor over one KV cache.

    `ids` is what the cache holds. A sampled token belongs to it at once; an implementation may decode it
    later, with what follows.
    """

    @property
    def name(self) -> str: ...
    @property
    def markers(self) -> Markers | None: ...
    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def room(self) -> int:
        """Tokens that still fit."""

    @property
    def batch_tokens(self) -> int:
        """From how many on reading several at once gains no more: about 16 on a CPU, 1 on a GPU."""

    def render(self, messages: Sequence[Message]) -> Prompt: ...
    def tokenize(self, text: str) -> list[int]:
        """Ids of ordinary text; what looks like a control token in it stays text."""

    def piece(self, id: int) -> bytes:
        """The bytes that a token stands for; none for a control token."""

    def is_end(self, id: int) -> bool:
        """Whether the token ends the answer."""

    def sample(self, banned: Collection[int] = (), logit_bias: Mapping[int, float] = NO_BIAS) -> Sampled:
        """Sample a token and append it; tokens in `banned` have probability 0 in this step.

        Args:
            logit_bias: by token, added to its logit before it is sampled; `logprob` stays the model's own.
        """

    def feed(self, ids: Sequence[int], *, probe: bool | Sequence[bool] = False) -> list[float]:
        """Prefill ids; where nothing is probed, an implementation may do so later, with what follows.

        Args:
            probe: after which of them to tell log p that a closing marker (or, in text form, a token that
                can begin one) follows: after all, none, or as one flag for each says.
        Returns: a number for each that is probed.
        Raises:
            ContextFullError: they do not fit; nothing was fed.
        """

    def rewind(self, n: int) -> None:
        """Keep the first `n` ids."""

    def fork(self, n: int | None = None, *, greedy: bool = True) -> LocalModel:
        """A branch that shares the first `n` ids' cells. The caller closes it.

        Args:
            greedy: whether it takes the likeliest tokens, whatever the model itself does.
        """

    def adopt(self, branch: Self) -> None:
        """Take over all that a branch of this cursor holds; nothing is decoded again. Closes the branch."""

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *args: object) -> None: ...


def is_probed(probe: bool | Sequence[bool], n: int) -> bool:
    """Whether `probe`, as `LocalModel.feed` has it, names the n-th id."""
    return probe if isinstance(probe, bool) else probe[n]


Fault = Literal[
    "unreachable",  # no connection, cut, silent, or ill (5xx): it may be well in a while
    "refused",  # the key, the address or the model is not accepted: it stays so until the user changes it
    "busy",  # it asks us to wait, or a quota is used up
    "request",  # it answered, but not to this request: the next one may do
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a remote stream ended: by itself, or by failing. A failure is data, not an exception."""

    end: Literal["stop", "cap", "stalled", "error"]
    """`stop`: it said that it was done; `cap`: it reached `max_tokens`, or left what it was to continue."""
    error: str | None = None
    """One line that a user can act on; None if nothing failed."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    fault: Fault | None = None
    """What failed, for whoever decides about the next span; None if nothing did."""
    retry_after: float | None = None
    """Seconds that the remote asks us to wait."""


class RemoteStream(Protocol):
    """One span being written."""

    def read(self, timeout: float) -> str | None:
        """All text that arrived since the last call; waits up to `timeout` seconds for the first of it.

        Returns "" if none came in time, None when the stream is over and read to its end.
        """

    @property
    def outcome(self) -> Outcome:
        """Valid once `read` has returned None, or after `close` (then as far as it is known)."""

    def close(self) -> None:
        """Hang up, at any moment and as often as you like. Returns at once."""


class RemoteModel(Protocol):
    """A large model that can continue an answer."""

    @property
    def name(self) -> str: ...

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> RemoteStream:
        """Continue `answer` (what is visible so far, without markers and without the prompt's opening)."""


@dataclass(frozen=True, slots=True)
class SpanRequest:
    """A span that wants to leave. Counts are of this answer so far, in local tokens."""

    span: int
    """Its number in the answer."""
    sent_tokens: int
    """Prompt and answer so far: what would be sent."""
    local_tokens: int
    remote_tokens: int
    max_tokens: int
    """The most that it may become."""
    taken_over: int = 0
    """Spans of the answer that were written before: this one is the first of a run if it follows them."""
    answer: str = ""
    """The visible text so far, as it would be sent."""

    @property
    def is_first(self) -> bool:
        return self.span == self.taken_over + 1


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a span may not leave."""

    end: Literal["declined", "offline", "budget"]
    reason: str


@dataclass(frozen=True, slots=True)
class Grant:
    """The span may leave."""

    max_tokens: int
    """And have so many tokens: at least 1, at most what was asked for."""


class Gate(Protocol):
    """Decides whether a span may leave, and hears how it went."""

    def admit(self, request: SpanRequest) -> Grant | Refusal: ...
    def report(self, request: SpanRequest, end: End, outcome: Outcome, tokens: int) -> float | None:
        """Hear how an admitted span ended. Returns what it cost in US dollars, if prices are known.

        Args:
            tokens: local ones, of the text that the remote wrote, read or not.
        """


@dataclass(frozen=True, slots=True)
class Limits:
    """Counts are of local tokens."""

    max_tokens: int = 4096
    """Of the whole answer, spans included."""
    max_span_tokens: int = 512
    soft_span_tokens: int = 256
    """From here on a span ends with its paragraph."""
    places: Places = "word"
    """Where the small model may take the pen back."""


Policy = Literal["auto", "local", "remote"]
"""Who writes: both, as the small model asks; the small model alone; the large model alone."""

First = Literal["local", "remote"]
"""Who writes on where an earlier answer is taken over: not the large model, or the large model."""


@dataclass(frozen=True, slots=True)
class Steering:
    """What the user may change while an answer is written."""

    asks: bool = True
    """Whether the small model may ask for help."""
    bias: float = 0.0
    """Added to the logit of the opening marker, where that is one token: above 0 it asks more often."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What is under way where no event tells."""

    doing: Literal["reading", "catching up"]
    """Reading the prompt, in tokens; or what a span brought faster than it can be read, in characters."""
    done: int
    total: int


Schedule = Callable[[int], int | None]
"""The random baseline: from the number of tokens so far to the size of a span to open here, or None."""
