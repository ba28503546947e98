"""A LoRA adapter over a model: the merged model's logits, or a reason why not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.adapter_header import read_adapter_header
from sr_edge.errors import ModelError
from sr_edge.gguf_header import read_header
from sr_edge.llama import Llama
from sr_edge.local import LlamaLocal
from sr_edge.logits import Scorer

IDS = [int(id) for id in np.random.default_rng(5).integers(0, 276, 30)]
RANK, ALPHA = 4, 6.0
EMBEDDING, OUTPUT, UP = "token_embd.weight", "output.weight", "blk.1.ffn_up.weight"
TARGETS = ("blk.0.attn_q.weight", "blk.0.attn_v.weight", "blk.1.attn_output.weight", UP, OUTPUT, EMBEDDING)

Pairs = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def pairs_for(model: Path, targets: tuple[str, ...] = TARGETS) -> Pairs:
    """A and B as llama.cpp has them, of shapes (r, in) and (out, r); the embedding's are (vocabulary, r) and
    (width, r).
    """
    random = np.random.default_rng(3)
    shapes = {tensor.name: tensor.shape for tensor in read_header(model).tensors}

    def pair(inputs: int, outputs: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        a, b = random.standard_normal((RANK, inputs)) / 8, random.standard_normal((outputs, RANK)) / 8
        return a.astype(np.float32), b.astype(np.float32)

    pairs = {name: pair(*shapes[name]) for name in targets}
    if EMBEDDING in pairs:
        b, a = pairs[EMBEDDING]
        pairs[EMBEDDING] = a, np.ascontiguousarray(b.T)
    return pairs


def write_adapter(
    path: Path,
    pairs: Pairs,
    *,
    architecture: str = "qwen2",
    kind: str = "adapter",
    method: str | None = "lora",
    alpha: Callable[[gguf.GGUFWriter], None] = lambda writer: writer.add_float32("adapter.lora.alpha", ALPHA),
    more: dict[str, NDArray[Any]] | None = None,
    without: str = "",
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    if method is not None:
        writer.add_string("adapter.type", method)
    alpha(writer)
    for name, (a, b) in pairs.items():
        for part, values in (("lora_a", a), ("lora_b", b)):
            if f"{name}.{part}" != without:
                writer.add_tensor(f"{name}.{part}", values)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merged(path: Path, model: Path, pairs: Pairs) -> Path:
    """The model with the adapter in its weights."""
    path.write_bytes(model.read_bytes())
    tensors = {tensor.name: tensor for tensor in read_header(model).tensors}
    with path.open("r+b") as file:
        for name, (a, b) in pairs.items():
            delta = a @ b.T if name == EMBEDDING else b @ a
            file.seek(tensors[name].offset)
            weights = np.frombuffer(file.read(tensors[name].size), np.float32).reshape(delta.shape)
            file.seek(tensors[name].offset)
            file.write((weights + ALPHA / RANK * delta).astype(np.float32).tobytes())
    return path


@contextmanager
def opened(model: Path, lora: Path | None) -> Iterator[Llama]:
    llama = Llama(model, context_size=256, threads=1, gpu_layers=0, kv_type="f32", lora=lora)
    try:
        yield llama
    finally:
        llama.close()


def logits_with(model: Path, lora: Path | None) -> NDArray[np.float32]:
    with opened(model, lora) as llama:
        llama.decode(IDS, sequence=0, position=0, outputs=range(len(IDS)))
        return np.stack([llama.logits(i) for i in range(len(IDS))])


@pytest.mark.parametrize("targets", [*((name,) for name in TARGETS), TARGETS], ids="+".join)
def test_an_adapter_makes_the_merged_model(targets: tuple[str, ...], tiny: Path, tmp_path: Path) -> None:
    pairs = pairs_for(tiny, targets)
    lora = write_adapter(tmp_path / "lora.gguf", pairs)
    header = read_adapter_header(lora, read_header(tiny))
    assert header.num_tensors == 2 * len(targets)
    with Scorer(merged(tmp_path / "merged.gguf", tiny, pairs)) as scorer:
        expected = scorer.logits(IDS)
    found, without = logits_with(tiny, lora), logits_with(tiny, None)
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(without - expected).max() > 0.1


def test_without_an_alpha_the_product_is_taken_as_it_is(tiny: Path, tmp_path: Path) -> None:
    pairs = pairs_for(tiny, (UP,))
    a, b = pairs[UP]
    plain = write_adapter(tmp_path / "plain.gguf", {UP: (a, b * ALPHA / RANK)}, alpha=lambda writer: None)
    read_adapter_header(plain, read_header(tiny))
    scaled = write_adapter(tmp_path / "scaled.gguf", pairs)
    assert np.abs(logits_with(tiny, plain) - logits_with(tiny, scaled)).max() < 1e-4


def test_a_model_is_opened_with_its_adapter_and_without(tiny: Path, tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora.gguf", pairs_for(tiny))

    def first_logprob(adapter: Path | None) -> float:
        with LlamaLocal.open(tiny, temperature=0, lora=adapter) as model:
            model.feed(IDS)
            return model.sample().logprob

    assert first_logprob(None) == first_logprob(None) != first_logprob(lora) == first_logprob(lora)


def as_float64(writer: gguf.GGUFWriter) -> None:
    writer.add_float64("adapter.lora.alpha", ALPHA)


def as_text(writer: gguf.GGUFWriter) -> None:
    writer.add_string("adapter.lora.alpha", "6")


def as_nan(writer: gguf.GGUFWriter) -> None:
    writer.add_float32("adapter.lora.alpha", float("nan"))


def activated(writer: gguf.GGUFWriter) -> None:
    writer.add_array("adapter.alora.invocation_tokens", [1, 2])


def ones(rows: int, columns: int, type: Any = np.float32) -> NDArray[Any]:
    return np.ones((rows, columns), type)


NARROW = {"blk.0.attn_q.weight": (ones(2, 32), ones(64, 2))}
Q = {"blk.0.attn_q.weight": (ones(2, 64), ones(64, 2))}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a model": ({"kind": "model"}, "this is a model, not an adapter: name a LoRA adapter's GGUF"),
    "a vector": ({"kind": "imatrix"}, "this is 'imatrix', not an adapter"),
    "unnamed": ({"method": None}, "the adapter is of the kind 'None': only 'lora'"),
    "another method": ({"method": "ia3"}, "the adapter is of the kind 'ia3': only 'lora'"),
    "another architecture": ({"architecture": "llama"}, "architecture 'llama', and .*tiny.gguf is 'qwen2'"),
    "alpha as a double": ({"alpha": as_float64}, "its alpha is no 32-bit number"),
    "alpha as text": ({"alpha": as_text}, "its alpha is no 32-bit number"),
    "alpha as none": ({"alpha": as_nan}, "its alpha is no 32-bit number"),
    "activated": ({"alpha": activated}, "an activated LoRA"),
    "nothing in it": ({"pairs": {}}, "holds no weights"),
    "half": ({"without": "blk.0.attn_q.weight.lora_b"}, "half of the adapter's 'blk.0.attn_q.weight'"),
    "of a narrower model": (
        {"pairs": NARROW},
        r"is for a tensor of shape \(32, 64\); .*tiny.gguf has \(64, 64\): name the model",
    ),
    "of a deeper model": (
        {"pairs": {"blk.7.attn_q.weight": Q["blk.0.attn_q.weight"]}},
        "'blk.7.attn_q.weight' is for .* has none: name the model that the adapter was trained on",
    ),
    "ranks that differ": ({"pairs": {"blk.0.attn_q.weight": (ones(2, 64), ones(64, 3))}}, "is for a tensor"),
    "a norm": (
        {"more": {"blk.0.attn_norm.weight": np.ones(64, np.float32)}},
        "cannot apply 'blk.0.attn_norm.weight', of shape .* merge the adapter into its model",
    ),
    "whole numbers": (
        {"pairs": {"blk.0.attn_q.weight": (ones(2, 64, np.int32), ones(64, 2))}},
        "and type 26",
    ),
    "a list": (
        {"pairs": {"blk.0.attn_q.weight": (np.ones(64, np.float32), ones(64, 2))}},
        "of shape \\(64,\\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_adapter_is_refused_before_llama_cpp_sees_it(case: str, tiny: Path, tmp_path: Path) -> None:
    how, reason = BAD[case]
    lora = write_adapter(tmp_path / "bad.gguf", **{"pairs": Q} | how)
    with pytest.raises(ModelError, match=reason) as raised:
        LlamaLocal.open(tiny, lora=lora)
    assert str(raised.value).startswith(str(lora))


def test_an_adapter_of_the_embedding_needs_a_head_of_its_own(tiny: Path, tmp_path: Path) -> None:
    """llama.cpp aborts the process otherwise."""
    tied = write_tiny_gguf(tmp_path / "tied.gguf", tied=True)
    lora = write_adapter(tmp_path / "lora.gguf", pairs_for(tiny, (EMBEDDING,)))
    with pytest.raises(ModelError, match=r"is the output layer too; .*merge it into the model instead"):
        LlamaLocal.open(tied, lora=lora)
    other = write_adapter(tmp_path / "other.gguf", pairs_for(tiny, (UP,)))
    LlamaLocal.open(tied, lora=other).close()


def test_every_cut_of_an_adapter_is_refused(tiny: Path, tmp_path: Path) -> None:
    base = read_header(tiny)
    lora = write_adapter(tmp_path / "lora.gguf", pairs_for(tiny, (UP,)))
    size = lora.stat().st_size
    for end in range(size - 1, -1, -97):
        os.truncate(lora, end)
        with pytest.raises(ModelError):
            read_adapter_header(lora, base)


def test_what_llama_cpp_itself_refuses_names_both_files(tiny: Path, tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora.gguf", NARROW)
    with pytest.raises(ModelError, match=r"lora.gguf: llama.cpp cannot use it with .*tiny.gguf: .*shape"):
        logits_with(tiny, lora)


def test_an_adapter_is_no_model(tiny: Path, tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora.gguf", Q)
    with pytest.raises(ModelError, match="the file holds no model but 'adapter'"):
        LlamaLocal.open(lora)
