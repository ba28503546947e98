"""`python -m tests.convert.shape15 DIR`: a checkpoint of 1.5 billion random weights, for measuring.

It has the shape of Qwen2.5-1.5B with an untied head, as R1-Distill-Qwen-1.5B has it, in bfloat16 and in
shards. Its tokenizer is made up: as many tokens as the real one, merged from nothing sensible. Seconds,
3.6 GB.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, ROWS, TOKENS = 1536, 8960, 28, 12, 2, 151936, 151643
HEAD = HIDDEN // HEADS
_SHARD = 1 << 30


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (ROWS, HIDDEN)}
    for layer in range(LAYERS):
        found |= {
            f"model.layers.{layer}.{name}": shape
            for name, shape in {
                "input_layernorm.weight": (HIDDEN,),
                "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
                "self_attn.q_proj.bias": (HIDDEN,),
                "self_attn.k_proj.weight": (KV_HEADS * HEAD, HIDDEN),
                "self_attn.k_proj.bias": (KV_HEADS * HEAD,),
                "self_attn.v_proj.weight": (KV_HEADS * HEAD, HIDDEN),
                "self_attn.v_proj.bias": (KV_HEADS * HEAD,),
                "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
                "post_attention_layernorm.weight": (HIDDEN,),
                "mlp.gate_proj.weight": (INNER, HIDDEN),
                "mlp.up_proj.weight": (INNER, HIDDEN),
                "mlp.down_proj.weight": (HIDDEN, INNER),
            }.items()
        }
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (ROWS, HIDDEN)}


def make(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(folder)
    _write_tokenizer(folder)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes().items():
        if sum(map(_size, shards[-1].values())) + _size(shape) > _SHARD and shards[-1]:
            shards.append({})
        shards[-1][name] = shape
    noise = np.random.default_rng(seed).standard_normal(1 << 22, np.float32)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / file, shard, noise)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(map(_size, shapes().values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _size(shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape))


def _write_shard(path: Path, shard: dict[str, tuple[int, ...]], noise: np.ndarray) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shard.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + _size(shape)]}
        end += _size(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shard.values():
            scale = np.float32(0.02 if len(shape) > 1 else 1)
            pattern = ((noise * scale).view(np.uint32) >> 16).astype("<u2")  # truncated to bfloat16
            left = _size(shape) // 2
            while left:
                file.write(pattern[:left].tobytes())
                left -= min(left, len(pattern))


def _write_config(folder: Path) -> None:
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": ROWS,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": TOKENS,
        "eos_token_id": TOKENS,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _write_tokenizer(folder: Path) -> None:
    """Byte-level BPE with Qwen 2's cuts: all pairs of tokens in order, until there are enough."""
    from tests.convert.making import QWEN2_SPLIT
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    known = set(tokens)
    for left in tokens:  # grows as it goes
        for right in tokens[:256]:
            if len(tokens) == TOKENS:
                break
            if left + right not in known:
                known.add(left + right)
                tokens.append(left + right)
                merges.append((left, right))
        else:
            continue
        break
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(make(Path(sys.argv[1])))
