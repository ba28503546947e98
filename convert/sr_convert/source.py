"""What is converted: named tensors, whose rows are read a few at a time.

A `Checkpoint` is one; merging a LoRA adapter and adding the markers each wrap one. The names are Hugging
Face's (`model.embed_tokens.weight`), the values float32 whatever they are stored as.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Dtype: TypeAlias = Literal["F32", "F16", "BF16"]
"""As safetensors spells them."""


class Source(Protocol):
    @property
    def config(self) -> Mapping[str, Any]:
        """The checkpoint's `config.json`, as changed by whoever wraps it (a grown `vocab_size`)."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor that the model has.

        A head that is tied to the embedding is absent, unless the checkpoint stores it all the same.
        """
        ...

    def dtype_of(self, name: str) -> Dtype:
        """What the tensor is stored as: values that nobody changed survive a rounding to it."""
        ...

    def rows(self, name: str, first: int, last: int) -> NDArray[np.float32]:
        """Rows `first` to before `last`; of a tensor with one dimension, its elements.

        The array is the caller's to change. Safe to call from several threads at once.
        """
        ...
