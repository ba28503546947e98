"""Models that follow a script through the true Protocols.

`ScriptedLocal([[*b"ab", OPEN], [*b"c", END]])` writes `ab`, asks for a span, and after it writes `c`.
Its tokens are the 256 bytes and three control tokens. `TextLocal` writes any text by tokens of your
choice, markers as plain text. `ScriptedRemote` sends scripted texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from sr_edge import markers as m
from sr_edge.errors import ContextFullError
from sr_edge.markers import Markers
from sr_edge.roles import NO_BIAS, Message, Outcome, Prompt, Sampled, is_probed

OPEN, CLOSE, END = 256, 257, 258
_TURN = 259  # stands for a turn's header in a rendered prompt
_WORDS = 1000  # ids of `words` begin here
_SURE, _NEVER = -0.01, -20.0  # log-probabilities

WantsPen = Callable[[str], bool]
"""From the span's text so far to whether the small model would close it here."""


class ScriptedLocal:
    """A local model over bytes that writes its segments, one after each span, and checks its caller.

    A segment that ends in OPEN asks for a span; if the span leaves nothing behind, the next segment
    follows at once. `wants_pen` decides the hand-back. `calls` records what a real model would decode.
    """

    def __init__(
        self,
        segments: Sequence[Sequence[int]],
        *,
        wants_pen: WantsPen = lambda text: False,
        context: int = 4096,
        with_markers: bool = True,
        min_span: int = 1,
        words: Collection[str] = (),
        batch_tokens: int = 1,
    ) -> None:
        """Args:
        words: texts that are one token, to make tokenisation depend on what follows; the longest wins.
        """
        self._script = [id for segment in segments for id in segment] + [END]
        self._wants_pen = wants_pen
        self._context = context
        self._words = sorted(words, key=lambda word: (-len(word), word))
        self._ids: list[int] = []
        self._prompt_length = 0
        self._batch_tokens = batch_tokens
        self._markers = Markers("token", (OPEN,), (CLOSE,), min_span=min_span) if with_markers else None
        self.calls: list[int] = []
        """Tokens of each feed."""
        self.tokenized = 0
        """Bytes tokenised in all."""

    @property
    def name(self) -> str:
        return "scripted"

    @property
    def markers(self) -> Markers | None:
        return self._markers

    @property
    def ids(self) -> Sequence[int]:
        return self._ids

    @property
    def room(self) -> int:
        return self._context - len(self._ids)

    @property
    def batch_tokens(self) -> int:
        return self._batch_tokens

    def render(self, messages: Sequence[Message]) -> Prompt:
        ids = [id for message in messages for id in (_TURN, *self.tokenize(message.content))] + [_TURN]
        text = "".join(f"{message.role}: {message.content}\n" for message in messages) + "assistant: "
        self._prompt_length = len(ids)
        return Prompt(tuple(ids), text, "")

    def tokenize(self, text: str) -> list[int]:
        self.tokenized += len(text.encode())
        ids: list[int] = []
        at = 0
        while at < len(text):
            word = next((word for word in self._words if text.startswith(word, at)), "")
            ids += [_WORDS + self._words.index(word)] if word else text[at].encode()
            at += len(word) or 1
        return ids

    def piece(self, id: int) -> bytes:
        if id >= _WORDS:
            return self._words[id - _WORDS].encode()
        return bytes([id]) if id < 256 else b""

    def is_end(self, id: int) -> bool:
        return id == END

    def sample(self, banned: Collection[int] = (), logit_bias: Mapping[int, float] = NO_BIAS) -> Sampled:
        assert self.room > 0, "sampled into a full context"
        id = self._next(banned)
        assert id not in banned
        self._ids.append(id)
        return Sampled(id, _SURE)

    def feed(self, ids: Sequence[int], *, probe: bool | Sequence[bool] = False) -> list[float]:
        if len(ids) > self.room:
            raise ContextFullError("scripted context is full")
        self.calls.append(len(ids))
        closes = []
        for n, id in enumerate(ids):
            self._ids.append(id)
            if is_probed(probe, n):
                closes.append(_SURE if self._wants_pen(self._span_text()) else _NEVER)
        return closes

    def rewind(self, n: int) -> None:
        assert 0 <= n <= len(self._ids)
        del self._ids[n:]

    def fork(self, n: int | None = None, *, greedy: bool = True) -> ScriptedLocal:
        branch = ScriptedLocal([], wants_pen=self._wants_pen, context=self._context, words=self._words)
        branch._script = self._script
        branch._prompt_length = self._prompt_length
        branch._ids = self._ids[:n]
        return branch

    def adopt(self, branch: ScriptedLocal) -> None:
        self._ids[:] = branch._ids

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _span_text(self) -> str:
        last = max((n for n, id in enumerate(self._ids) if id == OPEN), default=self._prompt_length - 1)
        return b"".join(map(self.piece, self._ids[last + 1 :])).decode("utf-8", "replace")

    def _next(self, banned: Collection[int]) -> int:
        """A function of the ids alone: the script position is found by reading them again."""
        at, inside = 0, False
        for id in self._ids[self._prompt_length :]:
            if inside:
                inside = id != CLOSE
                continue
            while self._script[at] == OPEN and id != OPEN and at + 1 < len(self._script):
                at += 1  # this span left nothing behind
            if self._script[at] == id:
                inside = id == OPEN
                at = min(at + 1, len(self._script) - 1)
        while self._script[at] in banned and at + 1 < len(self._script):
            at += 1
        return self._script[at]


class TextLocal(ScriptedLocal):
    """A local model whose markers are plain text. It writes `tokens` in order, each any piece of text."""

    def __init__(
        self, tokens: Sequence[str], *, closes_after: Collection[str] = (), context: int = 4096
    ) -> None:
        """Args:
        closes_after: span texts after which the model would write the close marker.
        """
        super().__init__([], context=context)
        self._tokens = list(tokens)
        self._closes_after = closes_after
        vocabulary = sorted({*tokens, "</", "big", "model", ">"})
        self._vocabulary = {text: 2000 + n for n, text in enumerate(vocabulary)}
        self._by_id = {id: text for text, id in self._vocabulary.items()}
        self._markers = Markers("text", tuple(super().tokenize(m.OPEN)), tuple(super().tokenize(m.CLOSE)))
        self._written = 0
        self._sampled_at: dict[int, int] = {}

    def piece(self, id: int) -> bytes:
        return self._by_id[id].encode() if id in self._by_id else super().piece(id)

    def sample(self, banned: Collection[int] = (), logit_bias: Mapping[int, float] = NO_BIAS) -> Sampled:
        assert self.room > 0
        at = self._position()
        while at < len(self._tokens) and self._vocabulary[self._tokens[at]] in banned:
            at = self._skip_marker(at)
        id = END if at >= len(self._tokens) else self._vocabulary[self._tokens[at]]
        self._sampled_at[len(self._ids)] = at
        self._ids.append(id)
        return Sampled(id, _SURE)

    def feed(self, ids: Sequence[int], *, probe: bool | Sequence[bool] = False) -> list[float]:
        super().feed(ids)
        end = len(self._ids)
        return [
            math.log(0.6) if self._span_before(end - len(ids) + n + 1) in self._closes_after else _NEVER
            for n in range(len(ids))
            if is_probed(probe, n)
        ]

    def rewind(self, n: int) -> None:
        super().rewind(n)
        self._sampled_at = {at: token for at, token in self._sampled_at.items() if at < n}

    def fork(self, n: int | None = None, *, greedy: bool = True) -> ScriptedLocal:
        """Greedy: a branch that only shows whether the close marker would come. Else one that writes on."""
        if not greedy:
            return self._branch(len(self._ids) if n is None else n)
        wants = self._span_before(len(self._ids) if n is None else n) in self._closes_after
        branch = TextLocal(["</", "big", "model", ">"] if wants else ["no"])
        branch._vocabulary, branch._by_id = {**self._vocabulary, "no": 1999}, {**self._by_id, 1999: "no"}
        return branch

    def adopt(self, branch: ScriptedLocal) -> None:
        assert isinstance(branch, TextLocal)
        super().adopt(branch)
        self._sampled_at = branch._sampled_at

    def _branch(self, n: int) -> TextLocal:
        branch = TextLocal(self._tokens, closes_after=self._closes_after, context=self._context)
        branch._ids, branch._prompt_length = self._ids[:n], self._prompt_length
        branch._sampled_at = {at: token for at, token in self._sampled_at.items() if at < n}
        return branch

    def _position(self) -> int:
        last = max(self._sampled_at.values(), default=-1)
        return last + 1

    def _skip_marker(self, at: int) -> int:
        text = ""
        while at < len(self._tokens) and m.OPEN not in text:
            text += self._tokens[at]
            at += 1
        return at

    def _span_before(self, at: int) -> str:
        text = b"".join(map(self.piece, self._ids[self._prompt_length : at])).decode("utf-8", "replace")
        return text.rpartition(m.OPEN)[2]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a scripted remote sends for one span: its pieces of text, then how it ends."""

    pieces: tuple[str, ...] = ()
    outcome: Outcome = field(default_factory=lambda: Outcome("stop"))


class ScriptedRemote:
    """A remote that sends one reply a span, in order; without replies left it is done at once."""

    def __init__(self, replies: Iterable[Reply | str] = ()) -> None:
        self._replies = [Reply((r,)) if isinstance(r, str) else r for r in replies]
        self.asked: list[str] = []
        """The answer so far, as it was handed over for each span."""
        self.streams: list[ScriptedStream] = []

    @property
    def name(self) -> str:
        return "scripted remote"

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> ScriptedStream:
        reply = self._replies[len(self.asked)] if len(self.asked) < len(self._replies) else Reply()
        self.asked.append(answer)
        stream = ScriptedStream(reply)
        self.streams.append(stream)
        return stream


class ScriptedStream:
    """Hands out one piece a `read`; an empty piece is a moment of silence."""

    def __init__(self, reply: Reply) -> None:
        self._pieces = list(reply.pieces)
        self._outcome = reply.outcome
        self.closed = False
        self.read_after_close = False
        self.unread = 0

    def read(self, timeout: float) -> str | None:
        self.read_after_close |= self.closed
        return self._pieces.pop(0) if self._pieces else None

    @property
    def outcome(self) -> Outcome:
        return self._outcome

    def close(self) -> None:
        self.closed = True
        self.unread = len(self._pieces)
