"""A LoRA adapter as a GGUF of its own, which llama.cpp adds to a model's weights when it is loaded.

Such a file holds pairs of matrices and one alpha for all of them, nothing else. Where the pairs' scales are
not one alpha's, as patterns make them, each is multiplied into its B. What it cannot hold, such as trained
rows or whole tensors, is refused by name: merged into the model (`lora`) an adapter may have all of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
from gguf import GGML_QUANT_VERSION
from numpy.typing import NDArray

from sr_convert.checkpoint import EMBEDDING, HEAD, Checkpoint, TensorEntry, is_tied, read_rows
from sr_convert.fields import Field, float32, string, uint32
from sr_convert.lora import Adapter, Change, Merged, Pair, blocks, read_matrix
from sr_convert.source import Dtype
from sr_convert.tensors import PackedType, PlannedTensor, plan
from sr_convert.writing import Progress, check_out, num_bytes, publish, workshop, write_gguf
from sr_edge import __version__
from sr_edge.errors import ModelError
from sr_edge.markers import KEY_BASE_MODEL, KEY_VERSION

AdapterType: TypeAlias = Literal["f32", "f16"]

_TYPES: Mapping[AdapterType, PackedType] = {"f32": "F32", "f16": "F16"}


def write_adapter(
    base: Checkpoint,
    adapter: Adapter,
    out: Path,
    type: AdapterType,
    progress: Progress,
    *,
    force: bool = False,
) -> None:
    """Write the GGUF, whole or not at all.

    Args:
        base: the checkpoint that it was trained on: names and the order of rows are those of its GGUF.
        force: whether a file that is there is replaced.
    Raises:
        UsageError: no file can be written there.
        ModelError: the adapter is of another base, or does more than such a file can say.
        EdgeError: the disk has no room, or is broken.
    """
    check_out(out, force=force)
    Merged(base, adapter)  # refuses what does not fit
    pairs = {name: _pair(base, adapter, name, change) for name, change in adapter.changes.items()}
    alphas = {pair.scale * pair.rank for pair in pairs.values()}
    is_folded = len(alphas) > 1
    alpha = 0.0 if is_folded else alphas.pop()  # zero: llama.cpp scales nothing
    packed = _TYPES[type]
    planned = {tensor.source: tensor for tensor in plan(base, base.architecture, packed)}
    tensors: list[PlannedTensor] = []
    for name, pair in pairs.items():
        whole = planned[name]
        a, b = pair.a.shape, pair.b.shape
        if pair.of_embedding:
            a = a[::-1]  # looked up by token, row by row
        tensors += [
            PlannedTensor(f"{whole.name}.lora_a", packed, a, f"{name}.a"),
            PlannedTensor(f"{whole.name}.lora_b", packed, b, f"{name}.b", head=whole.head),
        ]
    fields = [
        string("general.type", "adapter"),
        string("adapter.type", "lora"),
        float32("adapter.lora.alpha", alpha),
        uint32("general.quantization_version", GGML_QUANT_VERSION),
        string(KEY_VERSION, __version__),
        *_base_fields(adapter),
    ]
    with workshop(out, num_bytes(tensors)) as folder:
        made = folder / "adapter.gguf"
        write_gguf(made, base.architecture, fields, tensors, _Matrices(base, pairs, is_folded), progress)
        publish(made, out, force=force)


def _pair(base: Checkpoint, adapter: Adapter, name: str, change: Change) -> Pair:
    """Raises: ModelError: something else is changed too."""
    what = None
    if change.row_values is not None:
        what = "the rows of single tokens (trainable_token_indices)"
    elif change.shift is not None or name.endswith(".bias"):
        what = "a bias"
    elif change.pair is None:
        what = "a whole tensor (modules_to_save)"
    elif name in (EMBEDDING, HEAD) and is_tied(base.config):
        what = "LoRA of an embedding that is the head too"
    elif change.whole is not None and not _is_the_bases(base, name, change.whole):
        what = "a whole tensor (a grown vocabulary, or an embedding trained before)"
    if what is not None or change.pair is None:
        raise ModelError(
            f"{adapter.folder}: it changes {name} by {what}, which an adapter's GGUF cannot hold: merge it "
            "into the model instead (sr-edge convert CHECKPOINT --lora ADAPTER)"
        )
    return change.pair


def _is_the_bases(base: Checkpoint, name: str, whole: TensorEntry) -> bool:
    """Whether peft only saved along what the base has: it does so with an embedding that has LoRA."""
    return whole.shape == base.shapes[name] and all(
        np.array_equal(read_rows(whole, first, last), base.rows(name, first, last))
        for first, last in blocks(whole.shape)
    )


def _base_fields(adapter: Adapter) -> list[Field]:
    name = adapter.base_model
    return [string(KEY_BASE_MODEL, name)] if name and not Path(name).is_absolute() else []


class _Matrices:
    """A `Source` of the pairs' matrices, as `TENSOR.a` and `TENSOR.b`."""

    def __init__(self, base: Checkpoint, pairs: Mapping[str, Pair], is_folded: bool) -> None:
        self._pairs = {f"{name}.{side}": (pair, side) for name, pair in pairs.items() for side in "ab"}
        self._is_folded = is_folded
        self.config: Mapping[str, Any] = base.config
        self.shapes: Mapping[str, tuple[int, ...]] = MappingProxyType(
            {name: (pair.a if side == "a" else pair.b).shape for name, (pair, side) in self._pairs.items()}
        )

    def dtype_of(self, name: str) -> Dtype:
        pair, side = self._pairs[name]
        return (pair.a if side == "a" else pair.b).dtype

    def rows(self, name: str, first: int, last: int) -> NDArray[np.float32]:
        pair, side = self._pairs[name]
        if side == "a":
            if pair.of_embedding:
                return np.ascontiguousarray(read_matrix(pair.a)[:, first:last].T)
            return read_rows(pair.a, first, last)
        rows = read_rows(pair.b, first, last)
        if self._is_folded:
            rows *= np.float32(pair.scale)
        return rows
