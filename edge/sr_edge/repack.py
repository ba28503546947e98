"""Which weights llama.cpp lays out anew for the processor while it loads, so that the file is only read.

Of the kinds of memory that it may put them into those for AMX are not to be trusted, see `processor.has_amx`;
and to force these there in their place made reading sixteen tokens half as fast again, and writing, of which
there is more, a sixth slower.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from sr_edge.gguf_header import Tensor

_Q4_0, _Q8_0, _Q2_K, _Q4_K, _Q5_K, _Q6_K, _IQ4_NL = 2, 8, 10, 12, 13, 14, 20
_ROWS: Final = 8
"""Rows of a matrix that are interleaved: their number must be a multiple of it."""

# Only these are nothing but multiplied. A table of embeddings is looked up in too, row by row.
_MULTIPLIED: Final = re.compile(
    r"blk\.\d+\.(?:attn_(?:q|k|v|qkv|output)|ffn_(?:gate|up|down))\.weight|output\.weight"
)


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
