"""One entry of a GGUF's metadata: its key, its value, and the type it is written as."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gguf import GGUFValueType

Scalar: TypeAlias = str | int | float | bool
Value: TypeAlias = Scalar | Sequence[str] | Sequence[int] | Sequence[float] | Sequence[bool]

_PACKED = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True, slots=True)
class Field:
    """`item_type` is the type of each item of an array, and None for everything else."""

    key: str
    value: Value
    type: GGUFValueType
    item_type: GGUFValueType | None = None

    def is_sound(self) -> bool:
        """Whether the value can be written as its type; an empty array cannot."""
        if self.type is not GGUFValueType.ARRAY:
            return _fits(self.value, self.type)
        if isinstance(self.value, (str, int, float)) or self.item_type is None or not self.value:
            return False
        return all(_fits(item, self.item_type) for item in self.value)


def string(key: str, value: str) -> Field:
    return Field(key, value, GGUFValueType.STRING)


def uint32(key: str, value: int) -> Field:
    return Field(key, value, GGUFValueType.UINT32)


def float32(key: str, value: float) -> Field:
    return Field(key, value, GGUFValueType.FLOAT32)


def boolean(key: str, value: bool) -> Field:
    return Field(key, value, GGUFValueType.BOOL)


def strings(key: str, values: Sequence[str]) -> Field:
    return Field(key, values, GGUFValueType.ARRAY, GGUFValueType.STRING)


def int32s(key: str, values: Sequence[int]) -> Field:
    return Field(key, values, GGUFValueType.ARRAY, GGUFValueType.INT32)


def _fits(value: object, type: GGUFValueType) -> bool:
    if type is GGUFValueType.STRING:
        if not isinstance(value, str):
            return False
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:  # half a surrogate pair: JSON can spell it, UTF-8 cannot
            return False
        return True
    if type is GGUFValueType.BOOL:
        return isinstance(value, bool)
    if isinstance(value, bool) or type not in _PACKED:
        return False
    try:
        struct.pack(_PACKED[type], value)
    except (struct.error, OverflowError, TypeError):
        return False
    return True
