"""What the header of a GGUF says about its model, without loading it."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from struct import pack

from sr_edge.errors import MarkerError
from sr_edge.gguf_header import Header
from sr_edge.markers import KEY_CLOSE_ID, KEY_OPEN_ID, OPEN, Markers, find_markers
from sr_edge.report import size

MAX_CONTEXT = 8192
"""Tokens that a model is opened with at most, unless the user asks for more."""

_QUANTIZATIONS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
"""llama.cpp's numbers of what most of a file's tensors are."""

_F16 = 2  # bytes of one number in the KV cache
_WORKSPACE = 96 << 20  # an allowance for the buffers of the computation
_METADATA = 64 << 20  # bytes; no real vocabulary takes more


@dataclass(frozen=True, slots=True)
class Facts:
    name: str
    architecture: str
    parameters: int
    file_size: int
    """Bytes."""
    quantization: str
    context: int
    """Tokens that the model was trained for."""
    vocabulary: int
    markers: Markers | None
    """None: it cannot ask for help."""
    marker_problem: str | None
    licence: str | None
    base: str | None
    memory: int
    """Bytes that it needs, with the context that it is opened with."""


def amount(count: int) -> str:
    """Bytes of files and memory, as a person reads them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else size(count)


def facts_of(header: Header) -> Facts:
    texts = header.texts()
    markers, problem = _markers(header, texts)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    bits = header.file_size * 8 / header.num_parameters
    kind = header.metadata.get("general.file_type")
    known = _QUANTIZATIONS.get(kind) if isinstance(kind, int) else None
    return Facts(
        name=texts.get("general.name", ""),
        architecture=header.architecture,
        parameters=header.num_parameters,
        file_size=header.file_size,
        quantization=known or f"{bits:.1f} bits a weight",
        context=_number(header, "context_length"),
        vocabulary=getattr(tokens, "count", 0),
        markers=markers,
        marker_problem=problem,
        licence=texts.get("general.license") or texts.get("general.license.name"),
        base=texts.get("general.base_model.0.name"),
        memory=memory_need(header),
    )


def memory_need(header: Header, context: int | None = None) -> int:
    """Bytes of the weights, of a KV cache for `context` tokens, and of what the computation needs beside.

    Args:
        context: None for what the model is opened with.
    """
    return header.file_size + cache_need(header, context) + min(_WORKSPACE, header.file_size)


def cache_need(header: Header, context: int | None = None) -> int:
    """Bytes of a KV cache; arguments as above."""
    heads = _number(header, "attention.head_count")
    kv_heads = _number(header, "attention.head_count_kv", heads)
    key = _number(header, "attention.key_length", _number(header, "embedding_length") // heads)
    value = _number(header, "attention.value_length", key)
    context = context or min(_number(header, "context_length"), MAX_CONTEXT)
    return context * _number(header, "block_count") * kv_heads * (key + value) * _F16


def _number(header: Header, key: str, otherwise: int = 0) -> int:
    """`read_header` has made sure that it is a whole number, where it must be there."""
    value = header.metadata.get(f"{header.architecture}.{key}", otherwise)
    return value if isinstance(value, int) else otherwise


def _markers(header: Header, texts: Mapping[str, str]) -> tuple[Markers | None, str | None]:
    """As the vocabulary has them; whether they are control tokens is seen when the model is loaded."""
    with header.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:

        def token_id(spelling: str) -> int | None:
            if data.find(pack("<Q", len(spelling)) + spelling.encode(), 0, _METADATA) < 0:
                return None
            said = texts.get(KEY_OPEN_ID if spelling == OPEN else KEY_CLOSE_ID, "0")
            return int(said) if said.isdecimal() else -1

        try:
            return find_markers(texts, token_id, lambda text: (0,)), None
        except MarkerError as error:
            return None, str(error)
