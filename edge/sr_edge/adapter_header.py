"""Refuses a bad LoRA adapter, a GGUF too, before llama.cpp sees it.

llama.cpp aborts the process where a value's type, or the embedding's shape, is another than it takes for
granted; and what it does not know in an adapter, it leaves out without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from sr_edge.errors import ModelError
from sr_edge.gguf_header import Header, Tensor, read_contents

_LORA_TYPES = (0, 1, 30, 8)  # F32, F16, BF16, Q8_0: what llama.cpp multiplies an adapter from


def read_adapter_header(path: Path, base: Header) -> Header:
    """Read and check a LoRA adapter that is to be used with the model `base`.

    Raises:
        ModelError: the file is missing, damaged, no such adapter, or one of another model.
    """
    contents = read_contents(path)
    metadata, kinds = contents.metadata, contents.kinds
    kind, method = metadata.get("general.type"), metadata.get("adapter.type")
    if kind != "adapter":
        what = "a model" if kind in (None, "model") else repr(str(kind)[:80])
        raise ModelError(f"{path}: this is {what}, not an adapter: name a LoRA adapter's GGUF")
    if method != "lora":
        raise ModelError(f"{path}: the adapter is of the kind {str(method)[:80]!r}: only 'lora' can be used")
    architecture = metadata.get("general.architecture")
    if architecture != base.architecture:
        raise ModelError(
            f"{path}: the adapter belongs to a model of the architecture {str(architecture)[:80]!r}, and "
            f"{base.path} is {base.architecture!r}: name the model that the adapter was trained on"
        )
    if any(key.startswith("adapter.alora.") for key in metadata):
        raise ModelError(
            f"{path}: this is an activated LoRA, which works from certain tokens on only: use a plain one"
        )
    alpha = metadata.get("adapter.lora.alpha", 1.0)
    if kinds.get("adapter.lora.alpha", "float32") != "float32" or not isfinite(float(str(alpha))):
        raise ModelError(f"{path}: its alpha is no 32-bit number: the file is damaged; get it again")
    _check_pairs(path, contents.tensors, base)
    return Header(path, base.architecture, metadata, contents.tensors, contents.file_size)


def _check_pairs(path: Path, tensors: Sequence[Tensor], base: Header) -> None:
    pairs: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        name, _, part = tensor.name.rpartition(".")
        if part not in ("lora_a", "lora_b") or tensor.kind not in _LORA_TYPES or len(tensor.shape) != 2:
            raise ModelError(
                f"{path}: llama.cpp cannot apply {tensor.name!r}, of shape {tensor.shape} and type "
                f"{tensor.kind}: merge the adapter into its model instead (`sr-edge convert --lora`)"
            )
        pairs.setdefault(name, {})[part] = tensor
    if not pairs:
        raise ModelError(f"{path}: the adapter holds no weights: the file is damaged; get it again")
    targets = {tensor.name: tensor.shape for tensor in base.tensors}
    for name, parts in pairs.items():
        if len(parts) < 2:
            raise ModelError(f"{path}: half of the adapter's {name!r} is missing: get the file again")
        if name == "token_embd.weight" and "output.weight" not in targets:
            raise ModelError(
                f"{path}: the adapter changes the embedding, which in {base.path} is the output layer too; "
                "llama.cpp cannot apply it: merge it into the model instead (`sr-edge convert --lora`)"
            )
        (rank, rows), (columns, a_rows) = parts["lora_b"].shape, parts["lora_a"].shape
        if name == "token_embd.weight":  # looked up, not multiplied with: A is transposed
            shape, ranks = (rows, a_rows), {rank, columns}
        else:
            shape, ranks = (columns, rows), {rank, a_rows}
        if targets.get(name) != shape or len(ranks) > 1:
            has = f"has {targets[name]}" if name in targets else "has none"
            raise ModelError(
                f"{path}: the adapter's {name!r} is for a tensor of shape {shape}; {base.path} {has}: name "
                "the model that the adapter was trained on"
            )
