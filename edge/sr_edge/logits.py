"""What a model file computes, to be compared with what it should: logits as exact as llama.cpp has them.

Its key-value cache is kept in 32 bits, and nothing is computed in a faster, less exact order. For writing
with a model there is `local`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sr_edge.errors import UsageError
from sr_edge.gguf_header import read_header
from sr_edge.llama import OUTPUTS, Llama
from sr_edge.vocabulary import Vocabulary


class Scorer:
    """One model in memory. Use it from one thread at a time, and close it."""

    def __init__(self, path: Path, *, context_size: int | None = None, threads: int | None = None) -> None:
        """Args:
            context_size: None for what the model was trained for, 8192 at most.
        Raises:
            ModelError, UsageError
        """
        tensors = read_header(path).tensors
        self._llama = Llama(
            path, context_size=context_size, threads=threads, gpu_layers=0, kv_type="f32", tensors=tensors
        )

    @property
    def vocabulary(self) -> Vocabulary:
        return self._llama.vocabulary

    @property
    def context_size(self) -> int:
        return self._llama.context_size

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """What the model expects after each of the ids, given those before it; shape (ids, vocabulary).

        Raises:
            UsageError: there are more ids than the context holds.
        """
        rows = np.empty((len(ids), self.vocabulary.size), np.float32)
        for start, part in self.blocks(ids):
            rows[start : start + len(part)] = part
        return rows

    def blocks(self, ids: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The same a few rows at a time, for long texts: the index of the first, and the rows.

        Do nothing else with the model meanwhile.
        """
        self._begin(len(ids))
        for start in range(0, len(ids), OUTPUTS):
            part = ids[start : start + OUTPUTS]
            self._llama.decode(part, sequence=0, position=start, outputs=range(len(part)))
            yield start, np.stack([self._llama.logits(i) for i in range(len(part))])

    def greedy(self, ids: Sequence[int], n: int) -> list[int]:
        """The n likeliest ids after these, one by one, whatever they mean: nothing ends it sooner.

        Raises:
            UsageError: they do not fit in the context.
        """
        if not ids:
            raise ValueError("nothing to continue")
        self._begin(len(ids) + n)
        written: list[int] = []
        position, new = 0, list(ids)
        while len(written) < n:
            for start in range(0, len(new), OUTPUTS):
                part = new[start : start + OUTPUTS]
                self._llama.decode(part, sequence=0, position=position, outputs=[len(part) - 1])
                position += len(part)
            new = [int(self._llama.logits().argmax())]
            written += new
        return written

    def _begin(self, count: int) -> None:
        if count > self.context_size:
            raise UsageError(
                f"{count} tokens for a context of {self.context_size}: take fewer, or a larger context"
            )
        self._llama.keep(0, 0)

    def close(self) -> None:
        self._llama.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
