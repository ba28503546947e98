"""How a config says that positions are rotated, in its old and its new form, and what of it is converted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sr_convert.architectures import ArchitectureName
from sr_edge.errors import ModelError

CONVERTED = ("default", "linear", "yarn", "llama3")
DEFAULT_BASE = 10000.0


def rope_of(config: Mapping[str, Any], architecture: ArchitectureName) -> dict[str, Any]:
    """The rotation's parameters under the names of transformers 5, `rope_type` and `rope_theta` always there.

    Old configs have `rope_theta` and `rope_scaling` side by side, new ones `rope_parameters`.

    Raises:
        ModelError: llama.cpp has no such rotation, or a number of it is missing or out of range.
    """
    written = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(written, Mapping):
        raise ModelError(f"config.json: its rotary positions are no table but {written!r:.60}: get it again")
    rope = {key: value for key, value in written.items() if value is not None}
    if isinstance(rope.get("full_attention"), Mapping):
        rope = dict(rope["full_attention"])
    rope.setdefault("rope_theta", config.get("rope_theta") or DEFAULT_BASE)
    rope.setdefault("rope_type", rope.get("type", "default"))
    kind = rope["rope_type"]
    if kind not in CONVERTED or (kind == "llama3" and architecture != "llama") or "mrope_section" in rope:
        named = "mrope" if "mrope_section" in rope else kind
        known = ", ".join(other for other in CONVERTED if other != "llama3" or architecture == "llama")
        raise ModelError(
            f"config.json: rotary positions of the kind {named!r} cannot be converted for {architecture}: "
            f"llama.cpp has {known}"
        )
    _check(rope, "rope_theta")
    if kind == "default":
        return rope
    _check(rope, "factor")
    if kind == "linear":
        return rope
    rope.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    _check(rope, "original_max_position_embeddings")
    optional: tuple[str, ...]
    if kind == "yarn":
        if rope.get("truncate") is False:
            raise ModelError(
                "config.json: its yarn does not round the range of corrected dimensions (truncate: false), "
                "llama.cpp always does: the model cannot be converted"
            )
        optional = ("extrapolation_factor", "attention_factor", "attn_factor", "beta_fast", "beta_slow")
        optional += ("mscale", "mscale_all_dim")
    else:
        rope.setdefault("low_freq_factor", 1.0)
        rope.setdefault("high_freq_factor", 4.0)
        optional = ("low_freq_factor", "high_freq_factor")
    for key in optional:
        if key in rope:
            _check(rope, key)
    return rope


def yarn_magnitude(rope: Mapping[str, Any]) -> float:
    """What llama.cpp is to multiply its own magnitude of rotated vectors by, so that it is transformers'.

    Source: YaRN, arXiv:2309.00071, section 3.4; a config may say another magnitude.
    """
    factor = float(rope["factor"])
    usual = _magnitude(factor)
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"]) / usual
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return _magnitude(factor, rope["mscale"]) / _magnitude(factor, rope["mscale_all_dim"]) / usual
    return 1.0


def _magnitude(factor: float, scale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _check(rope: Mapping[str, Any], key: str) -> None:
    value = rope.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        shown = "is missing" if value is None else f"is {value!r:.40}"
        raise ModelError(f"config.json: {key} of its rotary positions {shown}: get config.json again")
