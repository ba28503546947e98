"""Continues texts with a GGUF as a server does: many at once, in one batch, what they share computed once.

That is what makes many short continuations of nearly the same text affordable at all (vLLM's continuous
batching and prefix cache). The small model of the client is `sr_edge.local`; it needs none of this.
"""

from __future__ import annotations

import codecs
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from sr_edge import template
from sr_edge.errors import ContextFullError, GenerationError, UsageError
from sr_edge.gguf_header import Tensor, read_header
from sr_edge.llama import BATCH, Llama
from sr_edge.markers import partial_length
from sr_edge.reading import common_length
from sr_edge.roles import Message
from sr_edge.vocabulary import Vocabulary

MAX_TOGETHER = 64
"""Texts that are continued in one batch; more wait, as they do at a server."""


@dataclass(frozen=True, slots=True)
class Row:
    """One token of a batch, appended to a sequence that holds `position` of them."""

    id: int
    sequence: int
    position: int
    is_output: bool = False
    """Whether logits after it are wanted."""


class WideLlama(Llama):
    """A model whose batches mix as many sequences as they like."""

    def __init__(
        self,
        path: Path,
        *,
        context_size: int | None = None,
        threads: int | None = None,
        tensors: Sequence[Tensor] = (),
        sequences: int = MAX_TOGETHER + 1,
    ) -> None:
        super().__init__(
            path,
            context_size=context_size,
            threads=threads,
            gpu_layers=-1,
            kv_type="f16",
            tensors=tensors,
            sequences=sequences,
            outputs=sequences,
        )
        self._num_sequences = sequences
        self._wide: Any = self._api.llama_batch_init(BATCH, 0, 1)
        self.computed = 0
        """Tokens that went through the model, in all batches."""
        self.outputs = 0
        """Those after which logits were computed."""

    def decode_rows(self, rows: Sequence[Row]) -> None:
        """Raises:
        ContextFullError, GenerationError: it is unknown what the sequences hold.
        """
        context = self._handles.open_context()
        if not 0 < len(rows) <= BATCH:
            raise ValueError(f"a batch of {len(rows)}; it can be 1 to {BATCH}")
        outputs = sum(row.is_output for row in rows)
        if outputs > self._num_sequences:  # llama.cpp would abort
            raise ValueError(f"more than {self._num_sequences} outputs")
        batch = self._wide
        batch.n_tokens = len(rows)
        for n, row in enumerate(rows):
            if not 0 <= row.sequence < self._num_sequences:
                raise ValueError(f"there is no sequence {row.sequence}")
            batch.token[n] = self.vocabulary.check(row.id)
            batch.pos[n] = row.position
            batch.n_seq_id[n] = 1
            batch.seq_id[n][0] = row.sequence
            batch.logits[n] = row.is_output
        self.decodes += 1
        self.computed += len(rows)
        self.outputs += outputs
        self._library.forget_errors()
        is_token = len(rows) == outputs == 1
        result = self._compute(context, batch, rows[0].position, is_token=is_token)
        if result == 1:
            raise ContextFullError(f"the context of {self.context_size} tokens is full: ask for less")
        if result != 0:
            reason = self._library.complaint(f"error {result}")
            raise GenerationError(f"llama.cpp could not go on: {reason}: try again with a smaller context")

    def cut(self, sequence: int, n: int) -> None:
        """As `keep`, of any sequence."""
        self._api.llama_memory_seq_rm(self._memory(), sequence, n, -1)

    def share(self, source: int, target: int, n: int) -> None:
        """As `copy`, of any sequences."""
        if n:
            self._api.llama_memory_seq_cp(self._memory(), source, target, 0, n)

    def close(self) -> None:
        if self._finalizer.alive and hasattr(self, "_wide"):
            self._api.llama_batch_free(self._wide)
        super().close()


@dataclass(frozen=True, slots=True)
class Wish:
    """How texts are to be continued. The names are those of OpenAI's and vLLM's parameters."""

    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int | None = None
    skip_special_tokens: bool = True
    """Whether control tokens leave no text; then no stop string can match one."""
    include_stop_str_in_output: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """What one step brought to one text."""

    index: int
    """Of the prompt."""
    text: str
    """What may be shown by now: the beginning of a stop string is held back."""
    tokens: int
    """Of this text, so far."""
    finish: Literal["stop", "length"] | None = None
    stop_reason: str | None = None
    """The stop string that was written; None if the model was done by itself."""


class BatchWriter:
    """One model in memory, for one thread at a time. What the last texts shared is kept for the next ones."""

    def __init__(
        self,
        path: Path,
        *,
        context_size: int | None = None,
        threads: int | None = None,
        max_together: int = MAX_TOGETHER,
    ) -> None:
        """Raises:
        ModelError: the file is missing or unusable.
        """
        header = read_header(path)
        self._metadata = header.texts()
        self.name = self._metadata.get("general.name", "") or path.stem
        self._max_together = max_together
        self.llama = WideLlama(
            path,
            context_size=context_size,
            threads=threads,
            tensors=header.tensors,
            sequences=max_together + 1,
        )
        self._kept: list[int] = []  # ids whose cells sequence 0 holds

    @property
    def context_size(self) -> int:
        return self.llama.context_size

    @property
    def computed(self) -> int:
        """Tokens that went through the model so far, prompts included."""
        return self.llama.computed

    @property
    def batches(self) -> int:
        return self.llama.decodes

    def chat_prompt(self, messages: Sequence[Message]) -> str:
        """By the model's own template, up to where the assistant goes on. An assistant's turn at the end is
        continued.

        Raises:
            ModelError: the template refuses these messages.
        """
        *before, last = messages
        partial = last.content if last.role == "assistant" else None
        spelled = {}
        for which in ("bos", "eos"):
            id = self._metadata.get(f"tokenizer.ggml.{which}_token_id", "")
            spelled[which] = self.llama.vocabulary.spelling(int(id)) if id.isdecimal() else ""
        rendering = template.render(
            self._metadata.get("tokenizer.chat_template"),
            messages if partial is None else before,
            bos_token=spelled["bos"],
            eos_token=spelled["eos"],
        )
        if partial is None:
            return rendering.text
        return rendering.text + partial.removeprefix(rendering.opening)

    def count(self, text: str) -> int:
        """Tokens of a prompt."""
        return len(self.llama.vocabulary.scaffold(text))

    def write(self, prompts: Sequence[str], wish: Wish) -> Generator[list[Written]]:
        """Continue each of the prompts, whose control tokens are meant. One item for each step.

        Raises:
            UsageError: a prompt is empty, or does not fit.
        """
        vocabulary = self.llama.vocabulary
        all_ids = [vocabulary.scaffold(prompt) for prompt in prompts]
        for ids in all_ids:
            if not ids:
                raise UsageError("an empty prompt: there is nothing to continue")
            if len(ids) + wish.max_tokens > self.context_size:
                raise UsageError(
                    f"{len(ids)} tokens and {wish.max_tokens} more for a context of {self.context_size}: "
                    "ask for less"
                )
        trunk = max(all_ids, key=len)[:-1]
        waiting = [_Text(n, list(ids), wish) for n, ids in enumerate(all_ids)]
        random = np.random.default_rng(wish.seed)
        try:
            while waiting:
                group = waiting[: self._how_many(waiting, trunk, wish.max_tokens)]
                del waiting[: len(group)]
                yield from self._write_together(group, trunk, wish, random)
        except GenerationError:
            self.forget()
            raise

    def _how_many(self, waiting: Sequence[_Text], trunk: Sequence[int], max_tokens: int) -> int:
        """As many as there are cells for: each has its own for what it does not share with the trunk."""
        room = self.context_size - len(trunk)
        for n, text in enumerate(waiting[: self._max_together]):
            room -= len(text.ids) - common_length(text.ids, trunk) + max_tokens
            if room < 0:
                return max(1, n)
        return min(len(waiting), self._max_together)

    def _write_together(
        self, texts: Sequence[_Text], trunk: Sequence[int], wish: Wish, random: np.random.Generator
    ) -> Generator[list[Written]]:
        rows = self._prefill(texts, trunk)
        running = list(texts)
        try:
            while running:
                self.llama.decode_rows(rows)
                step = []
                for at, text in enumerate(running):
                    id = _chosen(self.llama.logits(at), wish.temperature, random)
                    step.append(text.take(id, self.llama.vocabulary))
                running = [text for text, one in zip(running, step, strict=True) if one.finish is None]
                rows = [text.last_row() for text in running]
                yield step
        finally:
            if texts[0].sequence == 0:
                self._kept = texts[0].ids[: self.llama.length(0)]
            else:
                for text in texts:
                    self.llama.cut(text.sequence, 0)

    def _prefill(self, texts: Sequence[_Text], trunk: Sequence[int]) -> list[Row]:
        """Compute what the texts hold, but for the last token of each, which is the first batch."""
        shared = common_length(self._kept, trunk)
        self.llama.cut(0, shared)
        for start in range(shared, len(trunk), BATCH):
            part = trunk[start : start + BATCH]
            self.llama.decode_rows([Row(id, 0, start + n) for n, id in enumerate(part)])
        self._kept = list(trunk)
        if len(texts) == 1 and texts[0].ids[:-1] == trunk:
            return [texts[0].last_row()]
        tails: list[Row] = []
        for sequence, text in enumerate(texts, start=1):
            text.sequence = sequence
            own = min(common_length(trunk, text.ids), len(text.ids) - 1)
            self.llama.cut(sequence, 0)
            self.llama.share(0, sequence, own)
            tails += [Row(id, sequence, own + n) for n, id in enumerate(text.ids[own:-1])]
        for start in range(0, len(tails), BATCH):
            self.llama.decode_rows(tails[start : start + BATCH])
        return [text.last_row() for text in texts]

    def forget(self) -> None:
        """Let go of what is kept of the last texts."""
        for sequence in range(self._max_together + 1):
            self.llama.cut(sequence, 0)
        self._kept = []

    def close(self) -> None:
        self.llama.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


class _Text:
    """One text as it grows."""

    def __init__(self, index: int, ids: list[int], wish: Wish) -> None:
        self.ids = ids
        self.sequence = 0
        self._index = index
        self._wish = wish
        self._tokens = 0
        self._held = ""  # written, and not to be shown before it is known not to begin a stop string
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def last_row(self) -> Row:
        """What is to be computed next."""
        return Row(self.ids[-1], self.sequence, len(self.ids) - 1, True)

    def take(self, id: int, vocabulary: Vocabulary) -> Written:
        self.ids.append(id)
        self._tokens += 1
        if vocabulary.is_end(id):
            return self._done("stop")
        if vocabulary.is_control(id):
            self._held += "" if self._wish.skip_special_tokens else vocabulary.spelling(id)
        else:
            self._held += self._decoder.decode(vocabulary.piece(id))
        found = [(at, stop) for stop in self._wish.stop if (at := self._held.find(stop)) >= 0]
        if found:
            at, stop = min(found)
            end = at + (len(stop) if self._wish.include_stop_str_in_output else 0)
            return Written(self._index, self._held[:end], self._tokens, "stop", stop)
        if self._tokens >= self._wish.max_tokens:
            return self._done("length")
        held = partial_length(self._held, self._wish.stop) if self._wish.stop else 0
        shown = len(self._held) - held
        text, self._held = self._held[:shown], self._held[shown:]
        return Written(self._index, text, self._tokens)

    def _done(self, finish: Literal["stop", "length"]) -> Written:
        return Written(self._index, self._held + self._decoder.decode(b"", final=True), self._tokens, finish)


def _chosen(logits: NDArray[np.float32], temperature: float, random: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    weights = np.exp((logits - logits.max()) / temperature)
    return int(random.choice(len(weights), p=weights / weights.sum(dtype=np.float64)))
