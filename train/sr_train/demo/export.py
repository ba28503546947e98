"""Writes a demo model as GGUF: Q8_0 matrices, the tokenizer, the chat template, and our own keys.

Any Qwen2-shaped model with tied embeddings fits. llama.cpp refuses a vocabulary without merges, and Q8_0
packs rows in blocks of 32, so every width must be a multiple of 32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from torch import Tensor

from sr_train.demo.model import RMS_EPS, ROPE_THETA, ModelShape
from sr_train.demo.tokenizer import (
    CHAT_TEMPLATE,
    CLOSE,
    CONTROL_TOKENS,
    END_OF_TEXT,
    IM_END,
    OPEN,
    USER_TOKENS,
    DemoTokenizer,
)

Role = Literal["small", "big"]


@dataclass(frozen=True)
class HandBack:
    """How the small model closes a span: p(close) above tau after at least min_span tokens."""

    tau: float = 0.5
    min_span: int = 1


def write_gguf(
    path: Path,
    tensors: Mapping[str, Tensor],
    shape: ModelShape,
    tokenizer: DemoTokenizer,
    role: Role | Literal["base"],
    hand_back: HandBack | None = None,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
) -> None:
    """Write tensors under transformers' Qwen2 names (`model.hf_state_dict`) to path.

    Args:
        role: `base` is the small model before it was taught to ask.
        hand_back: for the small model, whose file names the markers; None for the others, which have never
            seen them.
        quantization: of the matrices; norms and biases stay float32.
    """
    writer = gguf.GGUFWriter(path, "qwen2")
    try:
        writer.add_name(f"sr-edge demo {role}")
        writer.add_license("apache-2.0")
        writer.add_languages(["en"])
        _add_shape(writer, shape, quantization)
        _add_tokenizer(writer, tokenizer)
        writer.add_string("sr_edge.suite", "demo")
        writer.add_string("sr_edge.role", role)
        if hand_back is not None:
            writer.add_string("sr_edge.markers.form", "token")
            writer.add_uint32("sr_edge.markers.open_id", tokenizer.id(OPEN))
            writer.add_uint32("sr_edge.markers.close_id", tokenizer.id(CLOSE))
            writer.add_float32("sr_edge.handback.tau", hand_back.tau)
            writer.add_uint32("sr_edge.handback.min_span", hand_back.min_span)
        _add_tensors(writer, tensors, shape, quantization)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_shape(writer: gguf.GGUFWriter, shape: ModelShape, quantization: gguf.GGMLQuantizationType) -> None:
    is_q8 = quantization == gguf.GGMLQuantizationType.Q8_0
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if is_q8 else gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_heads)
    writer.add_layer_norm_rms_eps(RMS_EPS)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_vocab_size(shape.vocab)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: DemoTokenizer) -> None:
    vocabulary = tokenizer.vocabulary()
    types = [gguf.TokenType.NORMAL] * len(vocabulary)
    for token in CONTROL_TOKENS:
        types[tokenizer.id(token)] = gguf.TokenType.CONTROL
    for token in USER_TOKENS:
        types[tokenizer.id(token)] = gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary)
    writer.add_token_types(types)
    writer.add_token_merges(tokenizer.merges())
    writer.add_bos_token_id(tokenizer.id(END_OF_TEXT))  # else llama.cpp takes token 11, a comma
    writer.add_eos_token_id(tokenizer.id(IM_END))
    writer.add_pad_token_id(tokenizer.id(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_tensors(
    writer: gguf.GGUFWriter,
    tensors: Mapping[str, Tensor],
    shape: ModelShape,
    quantization: gguf.GGMLQuantizationType,
) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, shape.num_layers)
    for name, tensor in tensors.items():
        own_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert own_name is not None, name
        values = tensor.detach().float().numpy()
        if values.ndim == 1:
            writer.add_tensor(own_name, values.astype(np.float32))
        else:
            packed = gguf.quants.quantize(values, quantization)
            writer.add_tensor(own_name, packed, raw_dtype=quantization)
