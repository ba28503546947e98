"""The architectures that are converted, as tables: their tensors' names, their shapes, their sizes' names.

A row says what a tensor of a checkpoint is called in a GGUF, its shape in terms of the model's sizes, when
it must be there, and whether its rows are reordered. What is done with the rows is in `tensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

ArchitectureName: TypeAlias = Literal["qwen2", "qwen3", "llama"]
ARCHITECTURES: tuple[ArchitectureName, ...] = get_args(ArchitectureName)

Size: TypeAlias = Literal["hidden", "inner", "vocabulary", "queries", "keys", "head"]
"""A dimension. `queries` and `keys` are the heads of that kind times `head`, the width of one."""

Presence: TypeAlias = Literal["always", "untied", "attention_bias", "mlp_bias"]
"""When a tensor is in the checkpoint: the last two are flags of its config, and without them it must not be
there; a head that is tied may be there all the same, and is used then."""


@dataclass(frozen=True, slots=True)
class Row:
    gguf: str
    """`{layer}` stands for the layer's number."""
    shape: tuple[Size, ...]
    presence: Presence = "always"
    interleaved: bool = False
    """Of a head, llama.cpp rotates neighbouring rows together, transformers row i and row i + head / 2."""


@dataclass(frozen=True, slots=True)
class Architecture:
    name: ArchitectureName
    hf_class: str
    """What `architectures` in a config says."""
    whole: Mapping[str, Row]
    """The tensors that are there once."""
    layer: Mapping[str, Row]
    """Those of each layer, without their prefix `model.layers.N.`."""
    free_head: bool
    """Whether a head's width may be other than the hidden size over the number of heads."""
    default_head: int | None = None
    """A head's width where the config does not say one; None: the hidden size over the number of heads."""
    default_kv_heads: int | None = None
    """Heads of keys and values where the config does not name them; None, and where it says null: all."""


LAYER_PREFIX = "model.layers."
GGUF_LAYER_PREFIX = "blk."
ROPE_FREQS = "rope_freqs.weight"

UNUSED_ENDING = ".rotary_emb.inv_freq"
"""A buffer that old versions of transformers saved: it follows from the config."""

_WHOLE = {
    "model.embed_tokens.weight": Row("token_embd.weight", ("vocabulary", "hidden")),
    "model.norm.weight": Row("output_norm.weight", ("hidden",)),
    "lm_head.weight": Row("output.weight", ("vocabulary", "hidden"), "untied"),
}


def _layer(bias: Presence | None, *, interleaved: bool = False) -> dict[str, Row]:
    """What all three have. `bias`: that of the queries, keys and values."""
    rows = {
        "input_layernorm.weight": Row("blk.{layer}.attn_norm.weight", ("hidden",)),
        "self_attn.q_proj.weight": Row(
            "blk.{layer}.attn_q.weight", ("queries", "hidden"), interleaved=interleaved
        ),
        "self_attn.k_proj.weight": Row(
            "blk.{layer}.attn_k.weight", ("keys", "hidden"), interleaved=interleaved
        ),
        "self_attn.v_proj.weight": Row("blk.{layer}.attn_v.weight", ("keys", "hidden")),
        "self_attn.o_proj.weight": Row("blk.{layer}.attn_output.weight", ("hidden", "queries")),
        "post_attention_layernorm.weight": Row("blk.{layer}.ffn_norm.weight", ("hidden",)),
        "mlp.gate_proj.weight": Row("blk.{layer}.ffn_gate.weight", ("inner", "hidden")),
        "mlp.up_proj.weight": Row("blk.{layer}.ffn_up.weight", ("inner", "hidden")),
        "mlp.down_proj.weight": Row("blk.{layer}.ffn_down.weight", ("hidden", "inner")),
    }
    if bias is not None:
        rows |= {
            "self_attn.q_proj.bias": Row(
                "blk.{layer}.attn_q.bias", ("queries",), bias, interleaved=interleaved
            ),
            "self_attn.k_proj.bias": Row("blk.{layer}.attn_k.bias", ("keys",), bias, interleaved=interleaved),
            "self_attn.v_proj.bias": Row("blk.{layer}.attn_v.bias", ("keys",), bias),
        }
    return rows


TABLE: Mapping[ArchitectureName, Architecture] = {
    "qwen2": Architecture(
        "qwen2", "Qwen2ForCausalLM", _WHOLE, _layer("always"), free_head=False, default_kv_heads=32
    ),
    "qwen3": Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        _WHOLE,
        _layer("attention_bias")
        | {
            "self_attn.q_norm.weight": Row("blk.{layer}.attn_q_norm.weight", ("head",)),
            "self_attn.k_norm.weight": Row("blk.{layer}.attn_k_norm.weight", ("head",)),
        },
        free_head=True,
        default_head=128,
        default_kv_heads=32,
    ),
    "llama": Architecture(
        "llama",
        "LlamaForCausalLM",
        _WHOLE,
        _layer("attention_bias", interleaved=True)
        | {
            "self_attn.o_proj.bias": Row("blk.{layer}.attn_output.bias", ("hidden",), "attention_bias"),
            "mlp.gate_proj.bias": Row("blk.{layer}.ffn_gate.bias", ("inner",), "mlp_bias"),
            "mlp.up_proj.bias": Row("blk.{layer}.ffn_up.bias", ("inner",), "mlp_bias"),
            "mlp.down_proj.bias": Row("blk.{layer}.ffn_down.bias", ("hidden",), "mlp_bias"),
        },
        free_head=True,
    ),
}


def usual_kv_heads(config: Mapping[str, Any], architecture: ArchitectureName) -> int | None:
    """What transformers takes for a `num_key_value_heads` that is null or missing; None: as many as heads."""
    return None if "num_key_value_heads" in config else TABLE[architecture].default_kv_heads
