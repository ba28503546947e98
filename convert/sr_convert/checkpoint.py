"""A checkpoint's folder: its config and its safetensors files, checked before anything is read from them.

Nothing is mapped into memory and nothing stays open: rows are read where they lie, so the largest checkpoint
needs no more than one piece of one tensor. What cannot be converted is refused here, by name.

What lives elsewhere: the tokenizer (`tokenizer`), what the config's numbers become (`describing`), LoRA
adapters (`lora`).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard, get_args

import numpy as np
from numpy.typing import NDArray

from sr_convert.architectures import (
    LAYER_PREFIX,
    TABLE,
    UNUSED_ENDING,
    ArchitectureName,
    Row,
    Size,
    usual_kv_heads,
)
from sr_convert.source import Dtype
from sr_edge.errors import ModelError

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    path: Path
    offset: int
    """Of its first byte in the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A `Source`."""

    folder: Path
    config: Mapping[str, Any]
    architecture: ArchitectureName
    tensors: Mapping[str, TensorEntry]
    """Those of the architecture, in the order in which they lie in their files."""

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return MappingProxyType({name: entry.shape for name, entry in self.tensors.items()})

    def dtype_of(self, name: str) -> Dtype:
        return self.tensors[name].dtype

    def rows(self, name: str, first: int, last: int) -> NDArray[np.float32]:
        return read_rows(self.tensors[name], first, last)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the config and the headers, and check that they agree.

    Raises:
        ModelError: the folder holds no checkpoint that can be converted.
    """
    config = _read_config(folder)
    architecture = architecture_of(folder, config)
    _check_config(folder, config)
    entries: dict[str, TensorEntry] = {}
    for path in _weight_files(folder):
        for entry in read_header(path):
            if entry.name in entries:
                raise ModelError(
                    f"{folder}: the tensor {entry.name} is in {entries[entry.name].path.name} and in "
                    f"{path.name}: one of the two is left over from another save; get the checkpoint again"
                )
            entries[entry.name] = entry
    _check_index(folder, entries)
    wanted = expected_shapes(folder, config, architecture)
    _check_tensors(folder, config, entries, wanted)
    ordered = sorted((entries[name] for name in wanted if name in entries), key=lambda e: (e.path, e.offset))
    return Checkpoint(
        folder, MappingProxyType(config), architecture, MappingProxyType({e.name: e for e in ordered})
    )


def read_rows(entry: TensorEntry, first: int, last: int) -> NDArray[np.float32]:
    """Rows `first` to before `last` as float32; of a tensor with one dimension, its elements.

    Raises:
        ModelError: the file is not what it was when it was opened.
    """
    width = math.prod(entry.shape[1:])
    stored = np.empty(((last - first) * width,), _STORED[entry.dtype])
    size = stored.itemsize
    try:
        with entry.path.open("rb", buffering=0) as file:
            file.seek(entry.offset + first * width * size)
            view = stored.data.cast("B")
            while view:
                read = file.readinto(view)
                if not read:
                    raise ModelError(f"{entry.path}: the file became shorter meanwhile: run it again")
                view = view[read:]
    except OSError as error:
        raise ModelError(f"{entry.path}: the file cannot be read: {error.strerror or error}") from None
    return _widened(stored, entry.dtype).reshape(last - first, *entry.shape[1:])


_STORED: Mapping[Dtype, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


def _widened(stored: NDArray[Any], dtype: Dtype) -> NDArray[np.float32]:
    if dtype != "BF16":
        return stored.astype(np.float32, copy=False)
    bits = stored.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


# --- the config ----------------------------------------------------------------------------------------

_MAX_LAYERS = 512
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
_QUANTISED = "the original weights are needed: name the checkpoint that was quantised, or its base model"


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.exists():
        hint = "name the folder of a checkpoint"
        if re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(folder)):
            hint += f"; one of the hub is fetched and converted by: sr-edge models pull {folder}"
        raise ModelError(f"{folder}: there is no such folder: {hint}")
    if not folder.is_dir():
        raise ModelError(f"{folder}: this is a file: name the folder that config.json and the weights are in")
    path = folder / CONFIG
    if not path.exists():
        if (folder / ADAPTER_CONFIG).exists():
            raise ModelError(
                f"{folder}: this is a LoRA adapter, not a model: name the checkpoint that it was trained on, "
                f"and the adapter with --lora {folder}"
            )
        if (folder / "params.json").exists():
            raise ModelError(
                f"{folder}: a checkpoint in its maker's own form (params.json): get the one for "
                f"transformers, with a {CONFIG}"
            )
        raise ModelError(f"{folder}: there is no {CONFIG} in it: name the folder of a whole checkpoint")
    config = read_json(path)
    if not isinstance(config, dict):
        raise ModelError(f"{path}: this is no config, which is a JSON object: get the file again")
    return config


def cached_origin(folder: Path) -> str | None:
    """REPO@COMMIT of a folder in the hub's own cache, whose name is the commit alone; None of any other."""
    folder = folder.resolve()
    repo = folder.parent.parent.name
    if (
        folder.parent.name != "snapshots"
        or not repo.startswith("models--")
        or not re.fullmatch(r"[0-9a-f]{40}", folder.name)
    ):
        return None
    return f"{repo.removeprefix('models--').replace('--', '/', 1)}@{folder.name}"


def name_of(folder: Path) -> str:
    """What a user calls it: a link by its own name, a repository in the hub's cache by the repository's."""
    origin = cached_origin(folder)
    if origin is not None:
        return origin.partition("@")[0].rpartition("/")[2]
    return os.path.basename(os.path.abspath(folder))


def read_json(path: Path) -> Any:
    """Raises: ModelError: it cannot be read, or is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: the file cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one of them
        raise ModelError(f"{path}: this is no JSON ({error}): get the file again") from None


def architecture_of(folder: Path, config: Mapping[str, Any]) -> ArchitectureName:
    """Raises: ModelError: it is none that is converted."""
    supported = ", ".join(architecture.hf_class for architecture in TABLE.values())
    named = config.get("architectures")
    if not isinstance(named, list) or not named:
        kind = config.get("model_type")
        for architecture in TABLE.values():
            if kind == architecture.name:
                return architecture.name
        raise ModelError(
            f"{folder / CONFIG}: it does not say the model's architecture ('architectures'); converted are "
            f"{supported}"
        )
    for architecture in TABLE.values():
        if named == [architecture.hf_class]:
            return architecture.name
    raise ModelError(
        f"{folder / CONFIG}: the architecture is {', '.join(map(str, named))[:80]}; converted are "
        f"{supported}: choose such a model"
    )


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    path = folder / CONFIG
    quantised = config.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        method = str(method or "by an unknown method")[:40]
        raise ModelError(f"{path}: the checkpoint is quantised ({method}); {_QUANTISED}")
    for key in _SIZES:
        _size(path, config, key)
    if config["num_hidden_layers"] > _MAX_LAYERS:
        raise ModelError(
            f"{path}: {config['num_hidden_layers']:,} layers are more than the {_MAX_LAYERS} that llama.cpp "
            "has room for: get the file again"
        )
    _size(path, config, "max_position_embeddings", 1)
    epsilon = config.get("rms_norm_eps")
    if epsilon is not None and not (isinstance(epsilon, float) and 0 <= epsilon < 1):
        raise ModelError(f"{path}: {epsilon!r:.40} cannot be the model's rms_norm_eps: get the file again")
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(
            f"{path}: the activation is {str(config['hidden_act'])[:40]!r}; llama.cpp computes 'silu' for "
            "this architecture: the model cannot be converted"
        )
    window = config.get("sliding_window")
    if config.get("use_sliding_window") is True and isinstance(window, int) and _has_window(config):
        raise ModelError(
            f"{path}: the model attends within a window of {window} tokens, which llama.cpp does not do for "
            "this architecture: if it runs without one too, set use_sliding_window to false in this file"
        )
    if config.get("partial_rotary_factor", 1) not in (None, 1):
        raise ModelError(
            f"{path}: only a part of each head is rotated (partial_rotary_factor), which llama.cpp does not "
            "do for this architecture: the model cannot be converted"
        )
    if config.get("is_causal") is False:
        raise ModelError(f"{path}: the model is no decoder (is_causal: false): name one that writes text")


def _has_window(config: Mapping[str, Any]) -> bool:
    """Whether there is a layer for the window: by the layers' kinds, or from this layer on."""
    kinds, first = config.get("layer_types"), config.get("max_window_layers", 28)
    if isinstance(kinds, list):
        return "full_attention" not in kinds or len(set(map(str, kinds))) > 1
    return not isinstance(first, int) or first < config["num_hidden_layers"]


def _size(path: Path, config: Mapping[str, Any], key: str, otherwise: int | None = None) -> int:
    value = config.get(key)
    if value is None and otherwise is not None:
        return otherwise
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31:
        return value
    said = "it does not say" if value is None else f"{repr(value)[:40]} cannot be"
    raise ModelError(f"{path}: {said} the model's {key}: get the file again")


def expected_shapes(
    folder: Path, config: Mapping[str, Any], architecture: ArchitectureName
) -> dict[str, tuple[tuple[int, ...], Row]]:
    """Every tensor that may be there, by the config; see `Row.presence`."""
    path, table = folder / CONFIG, TABLE[architecture]
    hidden, heads = _size(path, config, "hidden_size"), _size(path, config, "num_attention_heads")
    keys = _size(path, config, "num_key_value_heads", usual_kv_heads(config, architecture) or heads)
    head = _size(path, config, "head_dim", table.default_head or hidden // heads)
    if heads % keys:
        raise ModelError(
            f"{path}: {heads} attention heads cannot share {keys} key-value heads: get the file again"
        )
    if head % 2:
        raise ModelError(f"{path}: a head is {head} wide, which makes no pairs to rotate: get the file again")
    if not table.free_head and head * heads != hidden:
        raise ModelError(
            f"{path}: {heads} heads of {head} are not the hidden size of {hidden}, as llama.cpp needs it for "
            f"{table.hf_class}: the model cannot be converted"
        )
    sizes: dict[Size, int] = {
        "hidden": hidden,
        "inner": _size(path, config, "intermediate_size"),
        "vocabulary": _size(path, config, "vocab_size"),
        "queries": heads * head,
        "keys": keys * head,
        "head": head,
    }
    rows = dict(table.whole)
    for layer in range(_size(path, config, "num_hidden_layers")):
        rows |= {f"{LAYER_PREFIX}{layer}.{name}": row for name, row in table.layer.items()}
    return {name: (tuple(sizes[size] for size in row.shape), row) for name, row in rows.items()}


def is_tied(config: Mapping[str, Any]) -> bool:
    return config.get("tie_word_embeddings") is True


# --- the weights ---------------------------------------------------------------------------------------


def _weight_files(folder: Path) -> list[Path]:
    present = {path.name for path in folder.glob("*.safetensors")}
    if (folder / INDEX).exists():
        named = set(_weight_map(folder).values())
        missing = sorted(named - present)
        if missing:
            raise ModelError(
                f"{folder}: {_listed(missing)} missing, of {len(named)} files that {INDEX} names: get the "
                "rest of the checkpoint"
            )
        left_over = sorted(name for name in present - named if name.startswith("model"))
        if left_over:
            raise ModelError(
                f"{folder}: {_listed(left_over)} there, and {INDEX} does not name it: it is of another save; "
                "keep the files of one"
            )
        return sorted(folder / name for name in named)
    if SINGLE in present:
        return [folder / SINGLE]
    shards = sorted(name for name in present if name.startswith("model-"))
    if shards:
        raise ModelError(
            f"{folder}: there are parts of a checkpoint ({shards[0]}, ...) but no {INDEX}: get that file too"
        )
    if any(folder.glob("pytorch_model*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise ModelError(
            f"{folder}: the weights are pickles (.bin, .pt), which can run code when they are read: get the "
            "checkpoint as safetensors, or save it anew: model.save_pretrained(FOLDER) with transformers"
        )
    if (folder / ADAPTER_CONFIG).exists():
        raise ModelError(
            f"{folder}: this is a LoRA adapter, not a model: name the checkpoint that it was trained on, and "
            f"the adapter with --lora {folder}"
        )
    if any(folder.glob("*.gguf")):
        raise ModelError(f"{folder}: the model in it is a GGUF already: there is nothing to convert")
    raise ModelError(f"{folder}: there are no weights in it ({SINGLE}): get the whole checkpoint")


def _weight_map(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    index = read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path}: there is no 'weight_map' in it: get the file again")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise ModelError(
                f"{path}: the tensor {name[:80]} is said to be in {str(file)[:80]!r}, which is no "
                "safetensors file of this folder: get the file again"
            )
    return weight_map


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def _check_index(folder: Path, entries: Mapping[str, TensorEntry]) -> None:
    if not (folder / INDEX).exists():
        return
    weight_map = _weight_map(folder)
    for name, file in weight_map.items():
        if name not in entries or entries[name].path.name != file:
            raise ModelError(
                f"{folder}: {INDEX} says that {name} is in {file}, and it is not: the files are of different "
                "saves; get the checkpoint again"
            )
    for name, entry in entries.items():
        if name not in weight_map:
            raise ModelError(
                f"{folder}: {entry.path.name} holds {name}, which {INDEX} does not name: the files are of "
                "different saves; get the checkpoint again"
            )


# Real headers have some kB to MB; safetensors itself stops at 100 MB.
_MAX_HEADER = 100_000_000
_DTYPES: Mapping[str, Dtype] = {dtype: dtype for dtype in get_args(Dtype)}


def read_header(path: Path) -> list[TensorEntry]:
    """The tensors of one safetensors file, by name; those of a type that is not float are refused.

    Raises:
        ModelError: it is no such file, cut, or damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= _MAX_HEADER:
                raise ModelError(f"{path}: {_not_safetensors(path)}")
            if 8 + length > size:
                raise ModelError(
                    f"{path}: the file is cut short, within its header: the download is incomplete; get it "
                    "again"
                )
            text = file.read(length)
    except OSError as error:
        raise ModelError(f"{path}: the file cannot be read: {error.strerror or error}") from None
    try:
        header = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: the header cannot be read ({error}): get the file again") from None
    if not isinstance(header, dict):
        raise ModelError(f"{path}: the header is no JSON object: get the file again")
    header.pop("__metadata__", None)
    start = 8 + length
    entries: list[tuple[int, int, TensorEntry]] = []
    for name, fields in header.items():
        entries.append(_entry(path, start, name, fields))
    _check_extents(path, [entry[:2] for entry in entries], size - start)
    return sorted((entry for _, _, entry in entries), key=lambda entry: entry.name)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is in it twice")
    return found


def _not_safetensors(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "the file is empty: get it again"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: fetch the file itself with `git lfs pull`"
    if start.lstrip()[:1] == b"<":
        return "a web page: the address was that of a page, not of the file; get it again"
    if start[:4] == b"GGUF":
        return "a GGUF under another name: there is nothing to convert"
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return "a pickle under another name: get the checkpoint as safetensors"
    return "this is no safetensors file: get it again"


def _entry(path: Path, start: int, name: str, fields: Any) -> tuple[int, int, TensorEntry]:
    """Returns where it begins and ends after the header, too."""
    damaged = ModelError(f"{path}: the header says nonsense of the tensor {name[:80]!r}: get the file again")
    if not isinstance(fields, dict):
        raise damaged
    dtype, shape, extent = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or not _are_naturals(shape) or not _are_naturals(extent):
        raise damaged
    if len(extent) != 2:
        raise damaged
    begin, end = extent
    stored = _DTYPES.get(dtype)
    if stored is None:
        raise ModelError(f"{path}: {_other_dtype(name[:80], dtype)}")
    if end - begin != math.prod(shape) * _STORED[stored].itemsize:
        raise ModelError(
            f"{path}: the tensor {name[:80]} of shape {tuple(shape)} in {dtype} cannot be {end - begin:,} "
            "bytes long: the file is damaged; get it again"
        )
    return begin, end, TensorEntry(name, stored, tuple(shape), path, start + begin)


def _are_naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 48 for number in value
    )


def _other_dtype(name: str, dtype: str) -> str:
    if dtype == "F64":
        return f"the tensor {name} is float64: save the checkpoint in float32, float16 or bfloat16"
    kind = "in 8-bit floats" if dtype.startswith("F8") else f"of type {dtype[:20]}"
    return f"the tensor {name} is {kind}: the checkpoint is quantised; {_QUANTISED}"


def _check_extents(path: Path, extents: Iterable[tuple[int, int]], size: int) -> None:
    """Neither gaps nor overlaps, as the format has it."""
    position = 0
    for begin, end in sorted(extents):
        if begin != position:
            raise ModelError(
                f"{path}: its tensors overlap or leave gaps at byte {begin:,}: the file is damaged; get it "
                "again"
            )
        position = end
    if position > size:
        raise ModelError(
            f"{path}: the file is cut short: its tensors end at byte {position:,} after the header, the file "
            f"at {size:,}: the download is incomplete; get it again"
        )
    if position < size:
        raise ModelError(
            f"{path}: {size - position:,} bytes follow the last tensor: the file is damaged; get it again"
        )


def _check_tensors(
    folder: Path,
    config: Mapping[str, Any],
    entries: Mapping[str, TensorEntry],
    wanted: Mapping[str, tuple[tuple[int, ...], Row]],
) -> None:
    for name, entry in entries.items():
        if name.endswith(UNUSED_ENDING):
            continue
        if name not in wanted:
            raise ModelError(f"{folder}: {_stranger(name, config)}")
        shape, row = wanted[name]
        if entry.shape != shape:
            raise ModelError(
                f"{folder}: the tensor {name} has the shape {_shape(entry.shape)}, by {CONFIG} it has "
                f"{_shape(shape)}: the two are of different models; get the checkpoint again"
            )
        if row.presence in ("attention_bias", "mlp_bias") and config.get(row.presence) is not True:
            raise ModelError(
                f"{folder}: there is a {name}, and by {CONFIG} the model has no such bias ({row.presence}): "
                "transformers would leave it out; set the flag in that file if the model was trained with it"
            )
    for name, (_, row) in wanted.items():
        if name not in entries and _is_needed(row, config):
            raise ModelError(
                f"{folder}: the tensor {name} is missing, which the model has by {CONFIG}: get the whole "
                "checkpoint"
            )


def _is_needed(row: Row, config: Mapping[str, Any]) -> bool:
    if row.presence == "always":
        return True
    if row.presence == "untied":
        return not is_tied(config)
    return config.get(row.presence) is True


_QUANTISED_ENDINGS = (
    ".qweight", ".qzeros", ".g_idx", ".scales", ".SCB", ".weight_scale", ".weight_scale_inv", ".absmax",
    ".quant_map", ".weight_packed",
)  # fmt: skip


def _stranger(name: str, config: Mapping[str, Any]) -> str:
    name = name[:100]
    if name.endswith(_QUANTISED_ENDINGS):
        return f"there is a {name}: the checkpoint is quantised; {_QUANTISED}"
    if ".lora_" in name or ".base_layer." in name:
        return (
            f"there is a {name}: the checkpoint was saved with an adapter inside; save it after "
            "merge_and_unload(), or save the adapter alone and name it with --lora"
        )
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if layer and int(layer[1]) >= config["num_hidden_layers"]:
        return (
            f"there is a {name}, and by {CONFIG} the model has {config['num_hidden_layers']} layers: the two "
            "are of different models; get the checkpoint again"
        )
    if f"model.{name}" == EMBEDDING or name.startswith("layers."):
        return f"there is a {name}: this is a model without its head; save it as one that generates text"
    return f"there is a {name}, for which llama.cpp has no place: the model cannot be converted"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "of a single number"
