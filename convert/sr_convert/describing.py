"""A GGUF's metadata but for the markers: the model's sizes, its rotary positions, its name and its origin.

Keys, values and types are those of llama.cpp's own converter. Nothing in a model card or in a generation
config, however damaged, stops a conversion: what cannot be written is left out.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_VERSION, GGUFValueType, GGUFWriter, LlamaFileType, Metadata, size_label

from sr_convert.architectures import TABLE, ArchitectureName, usual_kv_heads
from sr_convert.fields import Field, float32, string, uint32
from sr_convert.rope import rope_of, yarn_magnitude
from sr_convert.tensors import PackedType
from sr_convert.tokenizer import Words, tokenizer_fields
from sr_edge.errors import ModelError

KEY_SOURCE = "sr_edge.source"
"""REPO@COMMIT of the checkpoint, where it was pulled from a hub."""

_FILE_TYPES: Mapping[PackedType, LlamaFileType] = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
}


@dataclass(frozen=True, slots=True)
class Size:
    """A number of the config, under its key in a GGUF."""

    key: str
    config_key: str
    make: Callable[[str, Any], Field]
    default: Mapping[ArchitectureName, float]
    """What transformers takes where the config does not say it."""


def _all(value: float) -> dict[ArchitectureName, float]:
    return dict.fromkeys(TABLE, value)


_SIZES = (
    Size("block_count", "num_hidden_layers", uint32, _all(32)),
    Size(
        "context_length", "max_position_embeddings", uint32, {"qwen2": 32768, "qwen3": 32768, "llama": 2048}
    ),
    Size("embedding_length", "hidden_size", uint32, _all(4096)),
    Size(
        "feed_forward_length", "intermediate_size", uint32, {"qwen2": 22016, "qwen3": 22016, "llama": 11008}
    ),
    Size("attention.head_count", "num_attention_heads", uint32, _all(32)),
    Size("attention.layer_norm_rms_epsilon", "rms_norm_eps", float32, _all(1e-6)),
)

_SAMPLING = {
    "sampling_sequence": ("sequence",),
    "sampling_top_k": ("top_k",),
    "sampling_top_p": ("top_p",),
    "sampling_min_p": ("min_p",),
    "sampling_xtc_probability": ("xtc_probability",),
    "sampling_xtc_threshold": ("xtc_threshold",),
    "sampling_temp": ("temperature",),
    "sampling_penalty_last_n": ("penalty_last_n",),
    "sampling_penalty_repeat": ("penalty_repeat", "repetition_penalty"),
    "sampling_mirostat": ("mirostat",),
    "sampling_mirostat_tau": ("mirostat_tau",),
    "sampling_mirostat_eta": ("mirostat_eta",),
}
"""Recommended settings: their names in `gguf.Metadata`, and where generation_config.json has them."""


def describe(
    folder: Path,
    config: Mapping[str, Any],
    architecture: ArchitectureName,
    words: Words,
    type: PackedType,
    num_parameters: int,
    origin: str | None = None,
) -> list[Field]:
    """All of the metadata, the vocabulary too.

    Args:
        folder: the checkpoint's, whose model card, generation config and name are read.
        config: as it is after markers were added (`vocab_size`).
        num_parameters: elements of all tensors that are written.
        origin: REPO@COMMIT that the folder is a copy of; it names the model then, not the folder.
    Raises:
        ModelError: a number of the config is missing or out of range.
    """
    fields = [string("general.architecture", architecture), string("general.type", "model")]
    fields += _general(folder, num_parameters, origin)
    fields += _sizes(config, architecture, len(words.tokens))
    fields += _rope(config, architecture)
    fields.append(uint32("general.file_type", int(_FILE_TYPES[type])))
    fields.append(uint32("general.quantization_version", GGML_QUANT_VERSION))
    fields += tokenizer_fields(words)
    for field in fields:
        if not field.is_sound():
            raise ModelError(f"{field.key} cannot be written: {field.value!r:.60} is no {field.type.name}")
    return fields


# --- the model's numbers -----------------------------------------------------------------------


def _sizes(config: Mapping[str, Any], architecture: ArchitectureName, num_rows: int) -> Iterator[Field]:
    for size in _SIZES:
        value = _number(config, size.config_key, size.default[architecture])
        yield size.make(f"{architecture}.{size.key}", value)
    heads = _number(config, "num_attention_heads", 32)
    kv_heads = _number(config, "num_key_value_heads", usual_kv_heads(config, architecture) or heads)
    yield uint32(f"{architecture}.attention.head_count_kv", kv_heads)
    head = config.get("head_dim") or TABLE[architecture].default_head
    usual = _number(config, "hidden_size", 4096) // heads
    if head is not None or architecture == "llama":
        yield uint32(f"{architecture}.attention.key_length", head or usual)
        yield uint32(f"{architecture}.attention.value_length", head or usual)
    if architecture == "llama":
        yield uint32(f"{architecture}.vocab_size", num_rows)
        yield uint32(f"{architecture}.rope.dimension_count", head or usual)


def _number(config: Mapping[str, Any], key: str, default: float) -> Any:
    value = config.get(key)
    return default if value is None else value


def _rope(config: Mapping[str, Any], architecture: ArchitectureName) -> Iterator[Field]:
    rope = rope_of(config, architecture)
    prefix = f"{architecture}.rope"
    yield float32(f"{prefix}.freq_base", rope["rope_theta"])
    if rope["rope_type"] not in ("linear", "yarn"):
        return  # llama3's factors are a tensor
    yield string(f"{prefix}.scaling.type", rope["rope_type"])
    yield float32(f"{prefix}.scaling.factor", rope["factor"])
    if rope["rope_type"] == "linear":
        return
    yield uint32(f"{prefix}.scaling.original_context_length", int(rope["original_max_position_embeddings"]))
    attention = rope.get("attention_factor", rope.get("attn_factor"))
    for key, value in (
        ("yarn_ext_factor", rope.get("extrapolation_factor")),
        ("yarn_attn_factor", attention),
        ("yarn_beta_fast", rope.get("beta_fast")),
        ("yarn_beta_slow", rope.get("beta_slow")),
    ):
        if value is not None:
            yield float32(f"{prefix}.scaling.{key}", value)
    magnitude = yarn_magnitude(rope)
    if magnitude != 1.0:  # llama.cpp does not go by yarn_attn_factor
        yield float32(f"{prefix}.scaling.attn_factor", magnitude)


# --- its name and origin -----------------------------------------------------------------------


def _general(folder: Path, num_parameters: int, origin: str | None) -> list[Field]:
    """`general.*`: name, size, licence, base models, tags, recommended sampling."""
    folder = Path(os.path.abspath(folder))  # a name, even for "."; a link keeps its own
    card = _model_card(folder)
    if origin is None:
        named, model = _json(folder / "config.json"), folder
    else:
        repo = origin.partition("@")[0]
        named, model = {"_name_or_path": repo}, Path(repo)
    fields: list[Field] | None = None
    for tried in (card, {}):  # a card that its reader stumbles over is as good as none
        fields = _recorded(tried, named, model, folder, num_parameters)
        if fields is not None:
            break
    if fields is None:
        fields = [string("general.name", model.name)]
    if origin is not None:
        fields.append(string(KEY_SOURCE, origin))
        url = f"https://huggingface.co/{origin.partition('@')[0]}"
        if all(field.key != "general.source.repo_url" for field in fields):
            fields.append(string("general.source.repo_url", url))
    return fields


def _recorded(
    card: dict[str, Any], named: dict[str, Any], model: Path, folder: Path, num_parameters: int
) -> list[Field] | None:
    """What `gguf.Metadata` makes of it; None if it cannot."""
    writer = GGUFWriter(None, "none")
    with _quiet():
        try:
            metadata = Metadata.apply_metadata_heuristic(Metadata(), card, named, model, num_parameters)
            if metadata.name is None:
                metadata.name = model.name
            if metadata.size_label is None and num_parameters > 0:
                metadata.size_label = size_label(num_parameters, num_parameters, 0, 0)
            generation = _json(folder / "generation_config.json")
            for name, keys in _SAMPLING.items():
                setattr(metadata, name, next((generation[key] for key in keys if key in generation), None))
            metadata.set_gguf_meta_model(writer)
        except Exception:  # whatever a card may hold: it is somebody else's reader
            return None
    entries = writer.kv_data[0].items()
    fields = [_field(key, entry.value, entry.type) for key, entry in entries if key.startswith("general.")]
    sound = [field for field in fields if field.key != "general.architecture" and field.is_sound()]
    return sound if any(field.key == "general.name" for field in sound) else None


def _field(key: str, value: Any, type: GGUFValueType) -> Field:
    if type is GGUFValueType.ARRAY:  # tags and languages
        items = [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
        return Field(key, items, type, GGUFValueType.STRING)
    return Field(key, value, type)


def _model_card(folder: Path) -> dict[str, Any]:
    with _quiet():
        try:
            return Metadata.load_model_card(folder)
        except Exception:  # no YAML, no UTF-8, no access: a card decides nothing
            return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log lines of `gguf` about cards that it does not understand."""
    loggers = [logging.getLogger(name) for name in ("metadata", "gguf.gguf_writer")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
