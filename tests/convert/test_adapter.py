"""An adapter's GGUF beside the model's: it computes what peft does, and is what the official tool writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.convert.adapting import load_adapted, make_adapter
from tests.convert.making import Architecture, make_checkpoint
from tests.convert.official import contents, differences, llama_cpp_sources

from sr_convert.adapter import write_adapter
from sr_convert.checkpoint import open_checkpoint
from sr_convert.convert import Request, convert
from sr_convert.lora import read_adapter
from sr_edge.adapter_header import read_adapter_header
from sr_edge.errors import ModelError, UsageError
from sr_edge.gguf_header import read_header
from sr_edge.llama import Llama

pytestmark = pytest.mark.filterwarnings("ignore")  # peft warns of tied embeddings, transformers of peft

IDS = list(range(7, 31))


def write(base: Path, adapter: Path, out: Path, type: Literal["f32", "f16"] = "f32") -> Path:
    write_adapter(open_checkpoint(base), read_adapter(adapter), out, type, lambda done, whole: None)
    return out


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", layers=1)
    adapter, out = make_adapter(base, tmp_path / "adapter"), tmp_path / "adapter.gguf"
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="replace it with --force"):
        write(base, adapter, out)
    assert out.read_bytes() == b"mine"
    with pytest.raises(UsageError, match="there is no such directory"):
        write(base, adapter, tmp_path / "nowhere" / "adapter.gguf")
    with pytest.raises(UsageError, match="this is a directory"):
        write(base, adapter, tmp_path)


def ours(model: Path, lora: Path | None) -> NDArray[np.float32]:
    """Logits after each id, of llama.cpp with the adapter beside the model."""
    header = read_header(model)
    if lora is not None:
        read_adapter_header(lora, header)
    llama = Llama(model, context_size=None, threads=1, gpu_layers=0, kv_type="f32", lora=lora)
    try:
        llama.decode(IDS, sequence=0, position=0, outputs=range(len(IDS)))
        return np.stack([llama.logits(i) for i in range(len(IDS))])
    finally:
        llama.close()


def peft(base: Path, adapter: Path) -> NDArray[np.float32]:
    import torch

    with torch.no_grad():
        logits: NDArray[np.float32] = load_adapted(base, adapter)(torch.tensor([IDS])).logits[0].numpy()
    return logits


@pytest.mark.parametrize(
    ("architecture", "lora"),
    [
        ("llama", {"target_modules": "all-linear"}),
        ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "lora_alpha": 2}),
        (
            "llama",
            {"rank_pattern": {"k_proj": 2}, "target_modules": ["q_proj", "k_proj"], "use_rslora": True},
        ),
        ("qwen2", {"alpha_pattern": {"v_proj": 16}}),
        ("qwen3", {"use_rslora": True, "target_modules": ["k_proj", "up_proj"]}),
    ],
)
def test_llama_cpp_computes_the_same(tmp_path: Path, architecture: Architecture, lora: dict[str, Any]):
    base = make_checkpoint(tmp_path / "base", architecture)
    adapter = make_adapter(base, tmp_path / "adapter", **lora)
    model = tmp_path / "model.gguf"
    convert(Request(base, model, "f32"), lambda what, done, whole: None)
    theirs = peft(base, adapter)
    assert np.abs(ours(model, None) - theirs).max() > 0.05
    assert np.abs(ours(model, write(base, adapter, tmp_path / "f32.gguf")) - theirs).max() < 1e-3
    assert np.abs(ours(model, write(base, adapter, tmp_path / "f16.gguf", "f16")) - theirs).max() < 2e-2


def test_one_alpha_stays_and_several_are_multiplied_in(tmp_path: Path):
    base = make_checkpoint(tmp_path / "base", "qwen2")
    alike = make_adapter(base, tmp_path / "alike", r=4, lora_alpha=6)
    differing = make_adapter(base, tmp_path / "differing", r=4, lora_alpha=6, alpha_pattern={"v_proj": 12})
    kept, folded = (contents(write(base, folder, folder / "a.gguf")) for folder in (alike, differing))
    assert kept.fields["adapter.lora.alpha"][1] == 6
    assert folded.fields["adapter.lora.alpha"][1] == 0
    for name, scale in (("attn_q", 1.5), ("attn_v", 3)):
        before, after = (
            np.frombuffer(held.tensors[f"blk.0.{name}.weight.lora_b"][2], np.float32)
            for held in (kept, folded)
        )
        assert np.array_equal(after, before * np.float32(scale))


@pytest.mark.parametrize(
    ("tied", "lora", "reason"),
    [
        (True, {"trainable_token_indices": [3]}, r"trainable_token_indices"),
        (False, {"modules_to_save": ["norm"]}, r"norm.weight by a whole tensor \(modules_to_save"),
        (False, {"lora_bias": True}, "by a bias"),
        (False, {"bias": "lora_only"}, "by a bias"),
        (True, {"target_modules": ["embed_tokens"]}, "LoRA of an embedding that is the head too"),
        (True, {"target_modules": ["lm_head"]}, "LoRA of an embedding that is the head too"),
    ],
)
def test_what_such_a_file_cannot_hold(tmp_path: Path, tied: bool, lora: dict[str, Any], reason: str):
    base = make_checkpoint(tmp_path / "base", tied=tied)
    adapter = make_adapter(base, tmp_path / "adapter", **lora)
    with pytest.raises(ModelError, match=reason):
        write(base, adapter, tmp_path / "a.gguf")
    assert not list(tmp_path.glob("*.gguf"))


def test_an_adapter_of_another_base_is_refused(tmp_path: Path):
    adapter = make_adapter(make_checkpoint(tmp_path / "other", hidden=32), tmp_path / "adapter")
    with pytest.raises(ModelError, match="is of another model"):
        write(make_checkpoint(tmp_path / "base"), adapter, tmp_path / "a.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("type", ["f32", "f16"])
@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        ("llama", ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "embed_tokens", "lm_head"]),
        ("qwen2", ["q_proj", "gate_proj", "up_proj"]),
        ("qwen3", ["k_proj", "o_proj"]),
    ],
)
def test_the_official_tool_writes_the_same(
    tmp_path: Path, architecture: Architecture, targets: list[str], type: Literal["f32", "f16"]
):
    base = make_checkpoint(tmp_path / "base", architecture)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=targets)
    official = tmp_path / "official.gguf"
    tool = llama_cpp_sources() / "convert_lora_to_gguf.py"
    options = ["--base", str(base), "--outfile", str(official), "--outtype", type]
    subprocess.run([sys.executable, str(tool), *options, str(adapter)], check=True, capture_output=True)
    mine, theirs = contents(write(base, adapter, tmp_path / "ours.gguf", type)), contents(official)
    assert differences(mine, theirs) == []
    assert mine.fields.keys() >= {"adapter.lora.alpha", "adapter.type", "general.type"}
