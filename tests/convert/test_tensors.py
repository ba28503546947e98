"""The values that a GGUF gets: bit for bit those of llama.cpp's own tools, in whatever pieces."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from tests.convert.making import make_checkpoint

from sr_convert.checkpoint import open_checkpoint
from sr_convert.source import Dtype
from sr_convert.tensors import PackedType, PlannedTensor, interleaved, pack, plan, rope_factors
from sr_edge.errors import ModelError

TYPES: tuple[PackedType, ...] = get_args(PackedType)


@dataclass(frozen=True)
class OneTensor:
    """A source of one tensor, that is in memory."""

    values: NDArray[np.float32]

    @property
    def config(self) -> Mapping[str, Any]:
        return {}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {"w": self.values.shape}

    def dtype_of(self, name: str) -> Dtype:
        return "F32"

    def rows(self, name: str, first: int, last: int) -> NDArray[np.float32]:
        return self.values[first:last].copy()


def packed(values: NDArray[np.float32], type: PackedType) -> bytes:
    tensor = PlannedTensor("w", type, values.shape, "w")
    whole = pack(OneTensor(values), tensor, 0, len(values)).tobytes()
    assert len(whole) == tensor.num_bytes
    return whole


# Of every magnitude that float16 has, and of those that it rounds to nothing.
weights = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.sampled_from([32, 64, 96])),
    elements=st.one_of(
        st.floats(-60000, 60000, width=32),
        st.floats(-1, 1, width=32),
        st.floats(-(2.0**-13), 2.0**-13, width=32),
        st.integers(-254, 254).map(lambda n: n / 2),  # halves of a Q8_0 unit, where the largest is 127
        st.sampled_from([0.0, -0.0, 127.0, -127.0, 1e-40]),
    ),
)


@given(weights)
def test_each_type_has_the_bits_that_ggml_has(values: NDArray[np.float32]) -> None:
    for type in TYPES:
        expected = quantize(values, GGMLQuantizationType[type])
        assert packed(values, type) == expected.tobytes(), type


def test_every_bfloat16_becomes_itself_and_the_nearest_float16() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32) << 16
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    assert packed(values[None], "BF16") == (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    values = values[np.abs(values) < values.max()]  # half a step beyond the largest is too much
    halfway = (values.view(np.uint32) | 0x8000).view(np.float32)[None]  # to the even one of two
    assert packed(halfway, "BF16") == quantize(halfway, GGMLQuantizationType.BF16).tobytes()
    values = values[np.abs(values) < 65520]  # the first that float16 cannot hold
    assert packed(values[None], "F16") == values.astype(np.float16).tobytes()


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("head", [0, 64])
def test_pieces_join_to_the_whole(type: PackedType, head: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal((192, 96), np.float32)
    tensor = PlannedTensor("w", type, values.shape, "w", head)
    whole = pack(OneTensor(values), tensor, 0, 192).tobytes()
    monkeypatch.setattr("sr_convert.tensors._PIECE", 96 * 40)
    pieces = list(tensor.pieces())
    assert len(pieces) == (5 if head == 0 else 3)
    joined = bytearray(len(whole))
    for first, last in reversed(pieces):
        piece = pack(OneTensor(values), tensor, first, last).tobytes()
        joined[tensor.offset_of(first) : tensor.offset_of(first) + len(piece)] = piece
    assert joined == whole


@given(st.integers(1, 400), st.integers(1, 5000), st.sampled_from([0, 2, 64]))
def test_pieces_cover_every_row_once(rows: int, width: int, head: int) -> None:
    tensor = PlannedTensor("w", "F16", (rows * (head or 1), width), "w", head)
    pieces = list(tensor.pieces())
    assert [row for first, last in pieces for row in range(first, last)] == list(range(tensor.shape[0]))
    assert all((last - first) % (head or 1) == 0 for first, last in pieces)


def test_rotating_neighbours_gives_the_scores_that_rotating_halves_gave() -> None:
    head, rng = 16, np.random.default_rng(0)
    query, key = (rng.standard_normal((3 * head, 8)).astype(np.float32) for _ in range(2))
    hidden = rng.standard_normal(8).astype(np.float32)
    angles = rng.uniform(0, 6, head // 2)

    def rotated(vector: NDArray[Any], pairs: list[tuple[int, int]], turn: float) -> NDArray[Any]:
        turned = vector.copy()
        for (a, b), angle in zip(pairs, angles * turn, strict=True):
            turned[..., a] = vector[..., a] * math.cos(angle) - vector[..., b] * math.sin(angle)
            turned[..., b] = vector[..., b] * math.cos(angle) + vector[..., a] * math.sin(angle)
        return turned

    def scores(q: NDArray[Any], k: NDArray[Any], pairs: list[tuple[int, int]]) -> NDArray[Any]:
        q, k = (q @ hidden).reshape(3, head), (k @ hidden).reshape(3, head)
        return np.einsum("hd,hd->h", rotated(q, pairs, 5), rotated(k, pairs, 2))

    halves = [(i, i + head // 2) for i in range(head // 2)]
    neighbours = [(2 * i, 2 * i + 1) for i in range(head // 2)]
    theirs = scores(query, key, halves)
    ours = scores(interleaved(query, head), interleaved(key, head), neighbours)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert np.abs(scores(query, key, neighbours) - theirs).max() > 0.1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("type", TYPES)
def test_values_that_are_no_numbers_are_refused(value: float, type: PackedType) -> None:
    values = np.ones((2, 32), np.float32)
    values[1, 7] = value
    with pytest.raises(ModelError, match="the tensor w holds values that are no finite numbers"):
        packed(values, type)


def test_values_that_float16_cannot_hold_are_refused_with_a_type_that_can() -> None:
    values = np.full((1, 32), 65519.0, np.float32)
    packed(values, "F16")
    values[0, 3] = -70000
    with pytest.raises(ModelError, match=r"up to 7e\+04, which F16 cannot: choose --type bf16 or f32"):
        packed(values, "F16")
    packed(values, "BF16")


@pytest.mark.parametrize(
    ("type", "most", "more"), [("Q8_0", 8321039.5, 8321040.0), ("BF16", 3.3895314e38, 3.3961776e38)]
)
def test_the_largest_value_that_a_type_holds(type: PackedType, most: float, more: float) -> None:
    values = np.ones((2, 32), np.float32)
    values[1, 3] = -most
    packed(values, type)
    packed(values * 0 + most, "F32")
    values[1, 3] = more
    with pytest.raises(ModelError, match=f"which {type} cannot: choose --type"):
        packed(values, type)


# --- the plan --------------------------------------------------------------------------------------------


def test_what_stays_float32_and_what_is_packed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", "qwen3", hidden=80, inner=96))
    planned = {tensor.name: tensor for tensor in plan(checkpoint, "qwen3", "Q8_0")}
    assert planned["blk.1.attn_q_norm.weight"].type == planned["output_norm.weight"].type == "F32"
    assert planned["blk.0.ffn_down.weight"].type == "Q8_0"
    assert planned["blk.0.ffn_up.weight"].type == "F16"  # rows of 80 are no whole blocks
    assert planned["token_embd.weight"].shape == checkpoint.shapes["model.embed_tokens.weight"]
    assert len(planned) == len(checkpoint.shapes)


def test_only_a_llamas_queries_and_keys_are_reordered(tmp_path: Path) -> None:
    options: dict[str, Any] = {"attention_bias": True, "heads": 4, "kv_heads": 2, "head_dim": 24}
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "llama", "llama", **options))
    heads = {tensor.name: tensor.head for tensor in plan(checkpoint, "llama", "F32") if tensor.head}
    assert heads == {f"blk.{i}.attn_{which}.{part}": 24 for i in (0, 1) for which in "qk"
                     for part in ("weight", "bias")}  # fmt: skip
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "qwen"))
    assert not any(tensor.head for tensor in plan(checkpoint, "qwen2", "F32"))


@pytest.mark.parametrize("head", [64, 128])
def test_llama_3_divides_frequencies_as_transformers_does(head: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(hidden_size=head * 4, num_attention_heads=4, head_dim=head, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(np.arange(0, head, 2) / head)
    for written in ({"rope_parameters": rope}, {"rope_scaling": rope, "rope_theta": 500000.0}):
        factors = rope_factors({"head_dim": head, **written}, "llama")
        assert factors is not None
        np.testing.assert_allclose(plain / factors, scaled.numpy(), rtol=1e-5)
        assert (factors[0], factors[-1]) == (1.0, 32.0)
    assert rope_factors({"head_dim": head, "rope_theta": 500000.0}, "llama") is None


def test_llama_3_frequencies_are_a_tensor_of_the_plan(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}  # fmt: skip
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", "llama", rope=rope))
    first = plan(checkpoint, "llama", "F16")[0]
    assert (first.name, first.type, first.shape) == ("rope_freqs.weight", "F32", (8,))
    values = np.frombuffer(pack(checkpoint, first, 0, 8).tobytes(), np.float32)
    assert (values[0], values[-1]) == (1, 8)
    equal = {"rope_parameters": {**rope, "low_freq_factor": 4.0, "rope_theta": 1e4}, "head_dim": 16}
    with pytest.raises(ModelError, match="are equal"):
        rope_factors(equal, "llama")
    with pytest.raises(ModelError, match="cannot be converted for qwen2"):
        plan(replace(checkpoint, architecture="qwen2"), "qwen2", "F16")
