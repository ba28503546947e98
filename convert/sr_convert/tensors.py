"""Which tensors a GGUF gets from a source, and how their rows are packed into its types.

The plan is made of names, shapes and sizes alone; the values are packed later, a few rows at a time and in
any order. Every value is what llama.cpp's own converter writes, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sr_convert.architectures import (
    GGUF_LAYER_PREFIX,
    LAYER_PREFIX,
    ROPE_FREQS,
    TABLE,
    ArchitectureName,
    Row,
)
from sr_convert.rope import rope_of
from sr_convert.source import Source
from sr_edge.errors import ModelError

PackedType: TypeAlias = Literal["F32", "F16", "BF16", "Q8_0"]

_PIECE = 1 << 18
"""Elements that are packed at once: a megabyte of float32, which stays in a core's own cache."""

_Q8_BLOCK = 32
_Q8_BLOCK_BYTES = 34  # a scale in float16, and one byte per element


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    name: str
    """In the GGUF."""
    type: PackedType
    shape: tuple[int, ...]
    """The slowest dimension first, as numpy has it."""
    source: str | None
    """Its name in the source; None where `values` are all of it."""
    head: int = 0
    """Rows of one head, which are reordered among themselves; 0 where none are."""
    values: tuple[float, ...] = ()

    @property
    def num_bytes(self) -> int:
        return _num_bytes(self.type, math.prod(self.shape))

    def offset_of(self, row: int) -> int:
        """Of a row's first byte."""
        return _num_bytes(self.type, row * math.prod(self.shape[1:]))

    def pieces(self) -> Iterator[tuple[int, int]]:
        """First and last row (not included) of each part that is packed at once; heads stay whole."""
        width, unit = math.prod(self.shape[1:]), self.head or 1
        step = max(1, _PIECE // (width * unit)) * unit
        for first in range(0, self.shape[0], step):
            yield first, min(first + step, self.shape[0])


def plan(source: Source, architecture: ArchitectureName, type: PackedType) -> list[PlannedTensor]:
    """The GGUF's tensors, in the order of the source's.

    One-dimensional ones stay float32. A tensor whose rows are not whole Q8_0 blocks becomes F16.

    Raises:
        ModelError: positions are encoded in a way that the architecture cannot express.
    """
    planned: list[PlannedTensor] = []
    factors = rope_factors(source.config, architecture)
    if factors is not None:
        planned.append(PlannedTensor(ROPE_FREQS, "F32", (len(factors),), None, values=factors))
    for name, shape in source.shapes.items():
        gguf, row = _renamed(name, architecture)
        heads = source.config["num_attention_heads"]
        if row.interleaved and row.shape[0] == "keys":
            heads = source.config.get("num_key_value_heads") or heads
        planned.append(
            PlannedTensor(
                gguf, _type_of(type, shape), shape, name, head=shape[0] // heads if row.interleaved else 0
            )
        )
    return planned


def _renamed(name: str, architecture: ArchitectureName) -> tuple[str, Row]:
    table = TABLE[architecture]
    if not name.startswith(LAYER_PREFIX):
        row = table.whole[name]
        return row.gguf, row
    layer, _, rest = name.removeprefix(LAYER_PREFIX).partition(".")
    row = table.layer[rest]
    assert row.gguf.startswith(GGUF_LAYER_PREFIX)
    return row.gguf.format(layer=layer), row


def _type_of(wanted: PackedType, shape: tuple[int, ...]) -> PackedType:
    if len(shape) == 1:
        return "F32"
    return "F16" if wanted == "Q8_0" and shape[-1] % _Q8_BLOCK else wanted


def _num_bytes(type: PackedType, elements: int) -> int:
    if type == "Q8_0":
        return elements // _Q8_BLOCK * _Q8_BLOCK_BYTES
    return elements * (4 if type == "F32" else 2)


# --- packing -------------------------------------------------------------------------------------------


def pack(source: Source, tensor: PlannedTensor, first: int, last: int) -> NDArray[Any]:
    """Rows `first` to before `last` as they lie in the file. Safe in several threads at once.

    Raises:
        ModelError: a value is not finite, or too large for the type.
    """
    if tensor.source is None:
        return np.array(tensor.values[first:last], "<f4")
    rows = source.rows(tensor.source, first, last)
    if tensor.head:
        rows = interleaved(rows, tensor.head)
    if tensor.type != "F16" and _largest(rows) >= _TOO_LARGE[tensor.type]:
        raise ModelError(f"the tensor {tensor.source} {_unfit(rows, tensor.type)}")
    packed = _PACKERS[tensor.type](rows)
    if tensor.type == "F16" and _largest(packed) >= _F16_INFINITE:  # half as long to look through as the rows
        raise ModelError(f"the tensor {tensor.source} {_unfit(rows, tensor.type)}")
    return packed


def interleaved(rows: NDArray[np.float32], head: int) -> NDArray[np.float32]:
    """Within each head of `head` rows: 0, head / 2, 1, head / 2 + 1, ..."""
    paired = rows.reshape(-1, 2, head // 2, *rows.shape[1:])  # (heads, 2, head / 2, ...)
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(rows.shape)


_INFINITE, _F16_INFINITE = 0x7F800000, 0x7C00
_TOO_LARGE: Mapping[PackedType, int] = {
    "F32": _INFINITE,
    "BF16": 0x7F7F8000,  # would be rounded up to infinity
    "Q8_0": int(np.float32(65520 * 127).view(np.uint32)),  # as its block's scale would
}
"""The bits of the smallest magnitude that is too large."""


def _largest(values: NDArray[Any]) -> int:
    """The bits of the largest magnitude: one pass over them, where comparing the values would need three."""
    if values.dtype.itemsize == 2:
        return int((values.view(np.uint16) & 0x7FFF).max(initial=0))
    return int((values.view(np.uint32) & 0x7FFFFFFF).max(initial=0))


def _unfit(rows: NDArray[np.float32], type: PackedType) -> str:
    if _largest(rows) >= _INFINITE:
        return (
            "holds values that are no finite numbers: the training diverged, or the file is damaged; get the "
            "checkpoint again, or take an earlier one"
        )
    most, other = float(np.abs(rows).max()), "f32" if type == "BF16" else "bf16 or f32"
    return f"holds values up to {most:.3g}, which {type} cannot: choose --type {other}"


def _to_f32(rows: NDArray[np.float32]) -> NDArray[Any]:
    return rows.astype("<f4", copy=False)


def _to_f16(rows: NDArray[np.float32]) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # told apart by `pack`
        return rows.astype("<f2")


def _to_bf16(rows: NDArray[np.float32]) -> NDArray[Any]:
    """To the nearest, ties to even."""
    bits = rows.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded.astype("<u2")


def _to_q8_0(rows: NDArray[np.float32]) -> NDArray[Any]:
    """Blocks of 32: a scale in float16, the largest value over 127, and each value in units of it."""
    blocks = rows.reshape(-1, _Q8_BLOCK)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(all="ignore"):
        inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    values = blocks * inverse
    signs = np.sign(values)
    np.abs(values, out=values)
    whole = np.floor(values)
    values -= whole
    whole += values >= 0.5  # halves away from zero, exactly: adding a half first would round on its own
    whole *= signs
    packed = np.empty((len(blocks), _Q8_BLOCK_BYTES), np.uint8)
    packed[:, :2] = scales.astype("<f2").view(np.uint8)
    packed[:, 2:] = whole.astype(np.int8).view(np.uint8)
    return packed


_PACKERS = {"F32": _to_f32, "F16": _to_f16, "BF16": _to_bf16, "Q8_0": _to_q8_0}


# --- rotary frequencies --------------------------------------------------------------------------------


def rope_factors(config: Mapping[str, Any], architecture: ArchitectureName) -> tuple[float, ...] | None:
    """Llama 3.1's divisors of the rotary frequencies; None where the config asks for none.

    Computed in float32, one operation after the other as torch does them, so that every bit is the same.

    Raises:
        ModelError: llama.cpp has no such rotation, or a number of it makes no sense.
    """
    rope = rope_of(config, architecture)
    if rope["rope_type"] != "llama3":
        return None
    base, factor, context = rope["rope_theta"], rope["factor"], rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    if low == high:
        raise ModelError(
            "config.json: low_freq_factor and high_freq_factor of its rotary positions are equal: get "
            "config.json again"
        )
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    one = np.float32(1)
    exponents = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
    # the power in float64, rounded once: the nearest float32, whoever computes it
    powers = np.power(np.float64(np.float32(base)), exponents.astype(np.float64)).astype(np.float32)
    waves = (one / (one / powers)) * np.float32(2 * math.pi)
    factors: list[float] = []
    for wave in waves:
        if wave < np.float32(context / high):
            factors.append(1.0)
        elif wave > np.float32(context / low):
            factors.append(float(factor))
        else:
            turns = (one / wave) * np.float32(context)
            smooth = (turns - np.float32(low)) / np.float32(high - low)
            factors.append(float(one / ((one - smooth) / np.float32(factor) + smooth)))
    return tuple(factors)
