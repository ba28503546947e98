"""The small model in a batch of many: `LocalModel` for one rollout, on one row of a `Batch`.

As with the client's, a sampled token is decoded with what follows it. Whatever needs the model waits, in the
rollout's own greenlet, until the batch is decoded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Self

from sr_edge.errors import ContextFullError
from sr_edge.markers import Markers
from sr_edge.roles import NO_BIAS, Message, Prompt, Sampled, is_probed
from sr_train.rollout.batch import Batch, Row, Uniforms
from sr_train.rollout.vocabulary import Vocabulary


class BatchedLocal:
    """See `roles.LocalModel` and `requests.Cursor`. Use it in one greenlet, while the batch runs."""

    def __init__(
        self,
        batch: Batch,
        vocabulary: Vocabulary,
        *,
        name: str,
        markers: Markers | None,
        temperature: float,
        uniforms: Uniforms,
    ) -> None:
        self._batch = batch
        self._vocabulary = vocabulary
        self._name = name
        self._markers = markers
        self._row = Row(temperature, uniforms)

    @property
    def name(self) -> str:
        return self._name

    @property
    def markers(self) -> Markers | None:
        return self._markers

    @property
    def ids(self) -> Sequence[int]:
        """Live: copy it to keep it."""
        return self._row.ids

    @property
    def room(self) -> int:
        return self._batch.context - len(self._row.ids)

    @property
    def batch_tokens(self) -> int:
        return 1

    def render(self, messages: Sequence[Message]) -> Prompt:
        return self._vocabulary.render(messages)

    def tokenize(self, text: str) -> list[int]:
        return self._vocabulary.ordinary(text)

    def piece(self, id: int) -> bytes:
        return self._vocabulary.piece(id)

    def is_end(self, id: int) -> bool:
        return self._vocabulary.is_end(id)

    def sample(self, banned: Collection[int] = (), logit_bias: Mapping[int, float] = NO_BIAS) -> Sampled:
        self._need_room(1)
        row = self._row
        row.wish, row.banned, row.bias = "sample", tuple(banned), logit_bias
        self._batch.wait(row)
        id, logprob = row.sampled
        row.ids.append(id)
        return Sampled(id, logprob)

    def feed(self, ids: Sequence[int], *, probe: bool | Sequence[bool] = False) -> list[float]:
        self._need_room(len(ids))
        if not ids:
            return []
        row = self._row
        row.logits = None
        row.ids += ids
        if probe is False or not any(is_probed(probe, n) for n in range(len(ids))):
            return []  # decoded with what follows
        row.wish, row.probed, row.closes = "probe", len(ids), []
        self._batch.wait(row)
        return [close for n, close in enumerate(row.closes) if is_probed(probe, n)]

    def entropy(self) -> float:
        """Of the next token, in nats."""
        self._row.wish = "entropy"
        self._batch.wait(self._row)
        return self._row.entropy

    def rewind(self, n: int) -> None:
        row = self._row
        if not 0 <= n <= len(row.ids):
            raise ValueError(f"cannot keep {n} of {len(row.ids)} tokens")
        if n != row.decoded:  # else the last token was not decoded yet, and the logits before it are kept
            row.logits = None
        row.decoded = min(row.decoded, n)
        del row.ids[n:]

    def fork(self, n: int | None = None, *, greedy: bool = True) -> BatchedLocal:
        """A greedy branch on the same row: as long as it lasts, this cursor is at rest."""
        assert greedy, "a rollout drafts nothing"
        return _Trial(self, len(self._row.ids) if n is None else n)

    def adopt(self, branch: Self) -> None:
        raise AssertionError("a rollout drafts nothing")

    def close(self) -> None:
        self._batch.free(self._row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _need_room(self, num_tokens: int) -> None:
        if num_tokens > self.room:
            raise ContextFullError(f"the context of {self._batch.context} tokens is full")


class SelfCursor(BatchedLocal):
    """The same model on another row, which writes on from wherever the cursor beside it is."""

    def __init__(self, beside: BatchedLocal, *, temperature: float | None, uniforms: Uniforms) -> None:
        """Args:
        temperature: None: as the cursor beside it.
        """
        markers = beside._markers
        super().__init__(
            beside._batch,
            beside._vocabulary,
            name=f"{beside._name} itself",
            markers=None if markers is None else replace(markers, close_ids=()),  # not banned: it ends a span
            temperature=beside._row.temperature if temperature is None else temperature,
            uniforms=uniforms,
        )
        self._beside = beside
        self._closing = () if markers is None or markers.form == "text" else markers.close_ids

    def render(self, messages: Sequence[Message]) -> Prompt:
        """All that the other one holds, its opening marker included."""
        return Prompt(tuple(self._beside.ids), "", "")

    def is_end(self, id: int) -> bool:
        return id in self._closing or super().is_end(id)


class _Trial(BatchedLocal):
    """What the cursor would write, greedily; its row is put back at the end."""

    def __init__(self, cursor: BatchedLocal, n: int) -> None:
        super().__init__(
            cursor._batch,
            cursor._vocabulary,
            name=cursor._name,
            markers=cursor._markers,
            temperature=0.0,
            uniforms=cursor._row.uniforms,
        )
        self._row = cursor._row
        self._kept = n
        self._rest = self._row.ids[n:]
        self.rewind(n)

    def sample(self, banned: Collection[int] = (), logit_bias: Mapping[int, float] = NO_BIAS) -> Sampled:
        temperature, self._row.temperature = self._row.temperature, 0.0
        try:
            return super().sample(banned, logit_bias)
        finally:
            self._row.temperature = temperature

    def close(self) -> None:
        self.rewind(self._kept)
        self.feed(self._rest)
