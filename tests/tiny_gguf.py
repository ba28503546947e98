"""Tiny GGUF files for tests: a random Qwen2 of two layers, a vocabulary of bytes and a few words.

Random weights say nothing sensible, but they are a real model to llama.cpp: every call is the true one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
MERGES = ("h e", "t h", "Ġ t", "Ġt he", "l l", "e r", "< /", ". </", "Ġ </", "Ġ Ġ", "ĠĠ ĠĠ", "1 2")
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>")
MARKERS = ("<bigmodel>", "</bigmodel>")
USER_DEFINED = ("<think>", "</think>")

EMBEDDING, FEED_FORWARD, LAYERS = 64, 128, 2


def byte_spellings() -> list[str]:
    """How the 256 bytes are spelled in a byte-level BPE vocabulary: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(rest)) for b in range(0x100)]


def write_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    template: str | None = CHATML,
    control: Sequence[str] = CONTROL + MARKERS,
    user_defined: Sequence[str] = USER_DEFINED,
    words: Sequence[str] = (),
    add_bos: bool = False,
    context_length: int = 512,
    metadata: dict[str, str] | None = None,
    architecture: str = "qwen2",
    heads: int = 4,
    tied: bool = False,
) -> Path:
    """Write one; `words` are further ordinary tokens that no merge leads to; `tied` has no output layer."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    for key, value in (metadata or {}).items():
        writer.add_string(key, value)

    writer.add_context_length(context_length)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(EMBEDDING)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads // 2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)

    ordinary = byte_spellings() + [merge.replace(" ", "") for merge in MERGES] + list(words)
    tokens = [*ordinary, *control, *user_defined]
    kinds = [gguf.TokenType.NORMAL] * len(ordinary)
    kinds += [gguf.TokenType.CONTROL] * len(control) + [gguf.TokenType.USER_DEFINED] * len(user_defined)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(add_bos)
    if template is not None:
        writer.add_chat_template(template)

    random = np.random.default_rng(seed)

    def matrix(name: str, rows: int, columns: int) -> None:
        weights = random.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns)
        writer.add_tensor(name, weights.astype(np.float32))

    def vector(name: str, value: np.ndarray) -> None:
        writer.add_tensor(name, value.astype(np.float32))

    kv = EMBEDDING // 2
    writer.add_tensor("token_embd.weight", random.standard_normal((len(tokens), EMBEDDING), dtype=np.float32))
    vector("output_norm.weight", np.full(EMBEDDING, 2.0))  # spread logits: fewer near ties
    if not tied:
        matrix("output.weight", len(tokens), EMBEDDING)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        vector(block + "attn_norm.weight", np.ones(EMBEDDING))
        for name, rows in (("attn_q", EMBEDDING), ("attn_k", kv), ("attn_v", kv)):
            matrix(f"{block}{name}.weight", rows, EMBEDDING)
            vector(f"{block}{name}.bias", random.standard_normal(rows) / 4)
        matrix(block + "attn_output.weight", EMBEDDING, EMBEDDING)
        vector(block + "ffn_norm.weight", np.ones(EMBEDDING))
        matrix(block + "ffn_gate.weight", FEED_FORWARD, EMBEDDING)
        matrix(block + "ffn_up.weight", FEED_FORWARD, EMBEDDING)
        matrix(block + "ffn_down.weight", EMBEDDING, FEED_FORWARD)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
