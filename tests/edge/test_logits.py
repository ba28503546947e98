"""A model file's logits, exact enough to compare a conversion with what it came from."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.tiny_gguf import EMBEDDING, LAYERS, byte_spellings, write_tiny_gguf

from sr_edge.errors import ModelError, UsageError
from sr_edge.llama import open_vocabulary
from sr_edge.logits import Scorer

HEADS, THETA = 4, 10000.0
IDS = [int(id) for id in np.random.default_rng(5).integers(0, 276, 100)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def by_hand(path: Path, ids: list[int]) -> NDArray[np.float64]:
    """The same Qwen 2 in 64-bit numpy: what the model means, whatever llama.cpp does."""
    reader = gguf.GGUFReader(path)
    weights = {
        tensor.name: np.array(tensor.data, np.float64).reshape(tensor.shape[::-1])
        for tensor in reader.tensors
    }
    del reader

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weights[f"{name}.weight"]

    def linear(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    width = EMBEDDING // HEADS
    angles = np.arange(len(ids))[:, None] * THETA ** (-np.arange(0, width, 2) / width)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def turn(x: NDArray[np.float64]) -> NDArray[np.float64]:
        left, right = np.split(x, 2, axis=-1)
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)

    x = weights["token_embd.weight"][ids]  # (N, E)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        y = norm(x, block + "attn_norm")
        q = turn(linear(y, block + "attn_q").reshape(len(ids), HEADS, width))
        k = turn(linear(y, block + "attn_k").reshape(len(ids), HEADS // 2, width)).repeat(2, 1)
        v = linear(y, block + "attn_v").reshape(len(ids), HEADS // 2, width).repeat(2, 1)
        scores = np.einsum("nhd,mhd->hnm", q, k) / np.sqrt(width)
        scores = np.where(np.tri(len(ids), dtype=bool), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        x = x + linear(np.einsum("hnm,mhd->nhd", p, v).reshape(len(ids), -1), block + "attn_output")
        y = norm(x, block + "ffn_norm")
        gate = linear(y, block + "ffn_gate")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, block + "ffn_up"), block + "ffn_down")
    return linear(norm(x, "output_norm"), "output")


def test_logits_are_those_that_the_model_means(tiny: Path) -> None:
    expected = by_hand(tiny, IDS)
    with Scorer(tiny) as scorer:
        logits = scorer.logits(IDS)
    assert logits.shape == (100, 276)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 1e-4
    assert (logits.argmax(-1) == expected.argmax(-1)).all()


def test_an_earlier_text_leaves_no_trace(tiny: Path) -> None:
    with Scorer(tiny) as scorer:
        first = scorer.logits(IDS)
        scorer.logits(IDS[::-1])
        scorer.greedy(IDS[:3], 2)
        assert (scorer.logits(IDS) == first).all()
        starts, parts = zip(*scorer.blocks(IDS), strict=True)
        assert starts == (0, 32, 64, 96)
        assert (np.concatenate(parts) == first).all()


def test_greedy_ids_are_the_likeliest_one_by_one(tiny: Path) -> None:
    with Scorer(tiny) as scorer:
        written = scorer.greedy(IDS[:40], 12)
        assert len(written) == 12
        rows = scorer.logits([*IDS[:40], *written])
    assert written == [int(id) for id in rows[39:-1].argmax(-1)]


def test_what_does_not_fit_is_refused(tiny: Path) -> None:
    with Scorer(tiny, context_size=256) as scorer:
        assert scorer.logits([]).shape == (0, 276)
        with pytest.raises(UsageError, match="300 tokens for a context of 256"):
            scorer.logits([1] * 300)
        with pytest.raises(UsageError, match="257 tokens"):
            scorer.greedy([1] * 250, 7)


def test_a_vocabulary_is_opened_without_weights(tmp_path: Path) -> None:
    bare = vocabulary_alone(tmp_path / "bare.gguf", "qwen2")
    with open_vocabulary(bare) as vocabulary:
        assert vocabulary.size == 258
        assert [vocabulary.piece(id) for id in vocabulary.scaffold("the<|end|>")] == [b"t", b"he", b""]
    with pytest.raises(ValueError, match="the model is closed"):
        vocabulary.scaffold("the")
    with pytest.raises(ModelError, match="holds a vocabulary but no weights"):
        Scorer(bare)


def test_a_vocabulary_may_be_of_any_architecture(tmp_path: Path) -> None:
    with open_vocabulary(vocabulary_alone(tmp_path / "other.gguf", "starcoder")) as vocabulary:
        assert vocabulary.size == 258
    with pytest.raises(ModelError, match="unknown model architecture: 'mamba99'"):
        open_vocabulary(vocabulary_alone(tmp_path / "unknown.gguf", "mamba99")).__enter__()


def vocabulary_alone(path: Path, architecture: str) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*byte_spellings(), "<|end|>", "he"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL, gguf.TokenType.NORMAL])
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(256)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
