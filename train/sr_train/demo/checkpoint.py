"""The built-in models as transformers checkpoints, made from their GGUFs: what the demo recipe begins with.

`base` is the small model before it was taught to ask; `small` and `big` are the pair that ships. Q8_0
matrices become float32, so a checkpoint computes what its GGUF does, to rounding.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sr_edge.errors import ModelError
from sr_edge.passport import demo_paths
from sr_train.demo.model import RMS_EPS, ROPE_THETA
from sr_train.demo.tokenizer import (
    CHAT_TEMPLATE,
    CONTROL_TOKENS,
    END_OF_TEXT,
    IM_END,
    USER_TOKENS,
    assembled_tokenizer,
)

DemoName = Literal["base", "small", "big"]
NAMES: tuple[DemoName, ...] = get_args(DemoName)


def demo_checkpoint(name: DemoName, folder: Path) -> Path:
    """Leave the checkpoint in folder, unless it is there.

    Raises:
        ModelError: the built-in models are not here; only an incomplete installation lacks them.
    """
    if (folder / "config.json").is_file():
        return folder
    path = demo_paths().small.with_name(f"{name}.gguf")
    if not path.is_file():
        raise ModelError(f"the built-in model {path} is missing: install sr-edge again")
    reader = gguf.GGUFReader(path)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_tensors(reader), partial / "model.safetensors", metadata={"format": "pt"})
    _write_json(partial / "config.json", _config(reader))
    _write_json(partial / "generation_config.json", _ends(reader))
    _write_tokenizer(reader, partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)  # whole, or not there
    return folder


def _tensors(reader: gguf.GGUFReader) -> dict[str, Tensor]:
    """Under transformers' names, the tied head left out."""
    num_layers = int(_field(reader, "qwen2.block_count"))
    own_names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, num_layers)
    suffixes = ("weight", "bias")
    names = {}
    for theirs in ["model.embed_tokens", "model.norm", *_block_names(num_layers)]:
        for suffix in suffixes:
            own = own_names.get_name(f"{theirs}.{suffix}", try_suffixes=(".weight", ".bias"))
            names[own] = f"{theirs}.{suffix}"
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        tensors[names[tensor.name]] = torch.from_numpy(np.ascontiguousarray(values))
    return tensors


def _block_names(num_layers: int) -> list[str]:
    parts = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
        "input_layernorm",
        "post_attention_layernorm",
    )
    return [f"model.layers.{layer}.{part}" for layer in range(num_layers) for part in parts]


def _config(reader: gguf.GGUFReader) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": int(_field(reader, "qwen2.embedding_length")),
        "intermediate_size": int(_field(reader, "qwen2.feed_forward_length")),
        "num_hidden_layers": int(_field(reader, "qwen2.block_count")),
        "num_attention_heads": int(_field(reader, "qwen2.attention.head_count")),
        "num_key_value_heads": int(_field(reader, "qwen2.attention.head_count_kv")),
        "max_position_embeddings": int(_field(reader, "qwen2.context_length")),
        "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
        "rms_norm_eps": RMS_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        **_ends(reader),
    }


def _ends(reader: gguf.GGUFReader) -> dict[str, int]:
    return {
        "bos_token_id": int(_field(reader, "tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(_field(reader, "tokenizer.ggml.eos_token_id")),
        "pad_token_id": int(_field(reader, "tokenizer.ggml.padding_token_id")),
    }


def _write_tokenizer(reader: gguf.GGUFReader, folder: Path) -> None:
    tokens, merges = _field(reader, "tokenizer.ggml.tokens"), _field(reader, "tokenizer.ggml.merges")
    assembled_tokenizer(tokens, merges).save(folder / "tokenizer.json")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(_field(reader, "qwen2.context_length")),
        "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {
            str(tokens.index(token)): {
                "content": token,
                "special": token in CONTROL_TOKENS,
                "normalized": False,
                "lstrip": False,
                "rstrip": False,
                "single_word": False,
            }
            for token in (*CONTROL_TOKENS, *USER_TOKENS)
        },
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _field(reader: gguf.GGUFReader, key: str) -> Any:
    found = reader.get_field(key)
    assert found is not None, key  # we wrote these files
    return found.contents()


def _write_json(path: Path, table: Mapping[str, object]) -> None:
    path.write_text(json.dumps(table, indent=2) + "\n", "utf-8")
