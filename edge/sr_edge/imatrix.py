"""Importance matrices: how much each column of a weight matters, as `llama-imatrix` has measured it.

Both of its formats are read: the GGUF, and the .dat of before. Nothing in the file is trusted.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sr_edge.errors import ModelError
from sr_edge.gguf_header import Contents, Tensor, read_contents

_SUMS, _COUNTS = ".in_sum2", ".counts"
_F32 = 0
_I32 = struct.Struct("<i")
_MAX_DAT = 1 << 30
"""Bytes. A model of 70 billion parameters has 40 million."""


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    path: Path
    entries: Mapping[str, NDArray[np.float32]]
    """By tensor: mean squares of what its columns were multiplied with."""
    num_chunks: int
    """Of text that it was measured on; 0: the file does not say."""


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Raises: ModelError: the file is missing, damaged, or something else."""
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        matrix = _from_gguf(read_contents(path)) if is_gguf else _from_dat(path)
    except OSError as error:
        raise ModelError(f"{path}: the importance matrix cannot be read: {error.strerror}") from None
    for name, values in matrix.entries.items():
        if not np.isfinite(values).all() or (values < 0).any():
            raise ModelError(
                f"{path}: its values for {name!r} are no mean squares: the file is damaged; measure it anew"
            )
    return matrix


def check_imatrix(matrix: ImportanceMatrix, model: Path, tensors: Sequence[Tensor]) -> None:
    """Raises: ModelError: it was measured on another model."""
    known = {tensor.name: tensor for tensor in tensors}
    if not known.keys() & matrix.entries.keys():
        raise ModelError(f"{matrix.path}: it names no tensor of {model}: it was measured on another model")
    for name, values in matrix.entries.items():
        # llama.cpp itself leaves the embedding out, where it is of another size
        if name not in known or name == "token_embd.weight":
            continue
        shape = known[name].shape
        wanted = shape[0] * prod(shape[2:])
        if len(values) != wanted:
            raise ModelError(
                f"{matrix.path}: it has {len(values)} columns for {name!r}, and {model} {wanted}: it was "
                "measured on another model"
            )


def _from_gguf(contents: Contents) -> ImportanceMatrix:
    path, kind = contents.path, contents.metadata.get("general.type")
    if kind != "imatrix":
        raise ModelError(f"{path}: this is a GGUF, but no importance matrix: make one with `llama-imatrix`")
    tensors = {tensor.name: tensor for tensor in contents.tensors}
    entries: dict[str, NDArray[np.float32]] = {}
    for name, sums in tensors.items():
        if not name.endswith(_SUMS):
            continue
        entry = name.removesuffix(_SUMS)
        counts = tensors.get(entry + _COUNTS)
        matrices = prod(sums.shape[1:])
        if counts is None or {sums.kind, counts.kind} != {_F32} or prod(counts.shape) != matrices:
            raise ModelError(f"{path}: its {entry!r} is incomplete: the file is damaged; get it again")
        with np.errstate(all="ignore"):  # what comes of it is checked
            count = np.round(_values(path, counts))[:, None]
            sums_of = _values(path, sums).reshape(matrices, -1)
            entries[entry] = np.where(count > 0, sums_of / count, np.float32(1)).reshape(-1)
    if not entries:
        raise ModelError(f"{path}: the importance matrix is empty: measure it anew")
    chunks = contents.metadata.get("imatrix.chunk_count", 0)
    return ImportanceMatrix(path, MappingProxyType(entries), chunks if isinstance(chunks, int) else 0)


def _values(path: Path, tensor: Tensor) -> NDArray[np.float32]:
    return np.fromfile(path, "<f4", prod(tensor.shape), offset=tensor.offset).astype(np.float32, copy=False)


def _from_dat(path: Path) -> ImportanceMatrix:
    """Number of entries, and of each the length of its name, the name, calls, values, their sums; chunks."""
    if path.stat().st_size > _MAX_DAT:
        raise ModelError(f"{path}: this is no importance matrix: make one with `llama-imatrix`")
    data = path.read_bytes()
    try:
        entries, position = _dat_entries(data)
    except (struct.error, ValueError):
        raise ModelError(
            f"{path}: this is no importance matrix, or a damaged one: make one with `llama-imatrix`"
        ) from None
    rest = data[position : position + 4]  # older files end here
    chunks = max(0, int.from_bytes(rest, "little", signed=True)) if len(rest) == 4 else 0
    return ImportanceMatrix(path, MappingProxyType(entries), chunks)


def _dat_entries(data: bytes) -> tuple[dict[str, NDArray[np.float32]], int]:
    """The entries, and where they end. Raises: struct.error, ValueError: it is not of this format."""
    position = 0

    def number() -> int:
        nonlocal position
        (value,) = _I32.unpack_from(data, position)
        position += _I32.size
        return int(value)

    entries: dict[str, NDArray[np.float32]] = {}
    count = number()
    if count < 1:
        raise ValueError("no entries")
    for _ in range(count):
        length = number()
        name = data[position : position + length].decode() if length > 0 else ""
        position += length
        calls, size = number(), number()
        if not name or name in entries or calls < 0 or size < 1:
            raise ValueError(name)
        sums = np.frombuffer(data, "<f4", size, position)  # raises where the data end before
        position += sums.nbytes
        entries[name] = np.divide(sums, max(calls, 1), dtype=np.float32)
    return entries, position
