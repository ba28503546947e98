"""Weights in the order in which the processor multiplies fastest: which ones, and how llama.cpp comes to it.

llama.cpp reorders them by itself while it loads. Two things it does not see: that a file which was mapped
into memory then lies there twice, and that its kernels for AMX are not to be trusted (`processor.has_amx`).
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from sr_edge.gguf_header import Tensor

_Q4_0, _Q8_0, _Q2_K, _Q4_K, _Q5_K, _Q6_K, _IQ4_NL = 2, 8, 10, 12, 13, 14, 20
_ROWS: Final = 8
"""Rows of a matrix that are interleaved: their number must be a multiple of it."""

# Only these are nothing but multiplied. A table of embeddings is looked up in too, row by row.
_MULTIPLIED: Final = re.compile(
    r"(?:blk\.(?P<layer>\d+)\.)(?P<part>attn_(?:q|k|v|qkv|output)|ffn_(?:gate|up|down))\.weight|output\.weight"
)
_BUFFER: Final = b"CPU_REPACK"
_REGISTRY: Final = b"CPU"


class _Override(ctypes.Structure):
    """`llama_model_tensor_buft_override`."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


@dataclass(frozen=True, slots=True)
class Overrides:
    """Which tensors llama.cpp is to put into which kind of memory. Keep it until the model is loaded."""

    array: ctypes.Array[_Override]

    @property
    def pointer(self) -> ctypes.c_void_p:
        return ctypes.cast(self.array, ctypes.c_void_p)


def repackable(tensors: Iterable[Tensor], system_info: str) -> list[Tensor]:
    """Those that this llama.cpp reorders on this processor.

    Args:
        system_info: what `llama_print_system_info` says.
    """
    kinds = _kinds(system_info)
    return [
        tensor
        for tensor in tensors
        if tensor.kind in kinds
        and len(tensor.shape) == 2
        and tensor.shape[1] % _ROWS == 0
        and _MULTIPLIED.fullmatch(tensor.name)
    ]


def _kinds(system_info: str) -> frozenset[int]:
    """ggml's numbers of the types, as its `repack.cpp` has them; a type too few costs speed, never more."""
    has = {name.strip() for name, _, value in _flags(system_info) if value.strip() == "1"}
    if "REPACK" not in has:
        return frozenset()
    if "AVX2" in has:
        return frozenset({_Q4_0, _Q4_K, _IQ4_NL} | ({_Q2_K} if "AVX512" in has else set()))
    if {"NEON", "DOTPROD"} <= has:
        return frozenset({_Q4_0, _Q8_0, _Q4_K, _Q5_K, _Q6_K, _IQ4_NL})
    return frozenset()


def _flags(system_info: str) -> Iterable[tuple[str, str, str]]:
    """`CPU : SSE3 = 1 | AVX = 1 | ` as parts."""
    return [part.rpartition(":")[2].partition("=") for part in system_info.split("|")]


def patterns(tensors: Sequence[Tensor]) -> list[bytes]:
    """Regular expressions that match the names of these and of no others.

    Few and short: llama.cpp compiles each of them anew for each tensor of the model.
    """
    layers: dict[str, list[str]] = {}
    for tensor in tensors:
        match = _MULTIPLIED.fullmatch(tensor.name)
        assert match is not None
        layers.setdefault(match["part"] or "", []).append(match["layer"] or "")
    return [
        (rf"^blk\.({'|'.join(numbers)})\.{part}\.weight$" if part else r"^output\.weight$").encode()
        for part, numbers in layers.items()
    ]


def overrides(api: ModuleType, tensors: Sequence[Tensor]) -> Overrides | None:
    """What makes llama.cpp reorder these where it would not choose so; None if it cannot be told.

    Args:
        tensors: of those that `repackable` returned: a wrong one would end the process.
    """
    buffer_type = _buffer_type(api._lib)
    if buffer_type is None or not tensors:
        return None
    entries = [_Override(pattern, buffer_type) for pattern in patterns(tensors)]
    return Overrides((_Override * (len(entries) + 1))(*entries, _Override(None, None)))


def _buffer_type(library: Any) -> int | None:
    """ggml's handle of that kind of memory. It has no function of its own: backends are asked by name."""
    try:
        registry_named = library.ggml_backend_reg_by_name
        device_of = library.ggml_backend_reg_dev_get
        function_of = library.ggml_backend_reg_get_proc_address
        name_of = library.ggml_backend_buft_name
    except AttributeError:
        return None
    registry_named.restype, registry_named.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    device_of.restype, device_of.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t]
    function_of.restype, function_of.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    registry = registry_named(_REGISTRY)
    device = device_of(registry, 0) if registry else None
    address = function_of(registry, b"ggml_backend_dev_get_extra_bufts") if device else None
    if not address:
        return None
    extra = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(device)
    at = 0
    while extra and extra[at]:
        if name_of(extra[at]) == _BUFFER:
            return int(extra[at])
        at += 1
    return None
