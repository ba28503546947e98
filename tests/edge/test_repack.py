"""Which weights llama.cpp reorders, and that the model computes the same however it is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sr_edge import processor, repack
from sr_edge.bench.synthetic import write_synthetic
from sr_edge.gguf_header import Tensor

X86 = "CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 1 | AMX_INT8 = 1 | OPENMP = 1 | REPACK = 1 | "
ARM = "CPU : NEON = 1 | ARM_FMA = 1 | DOTPROD = 1 | REPACK = 1 | "
Q4_K, Q6_K, F32 = 12, 14, 0


def tensor(name: str, kind: int = Q4_K, shape: tuple[int, ...] = (256, 512)) -> Tensor:
    return Tensor(name, shape, kind, 0, 0)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_synthetic(path, "tiny")
    return path


@pytest.mark.parametrize(
    ("one", "info", "expected"),
    [
        (tensor("blk.0.ffn_up.weight"), X86, True),
        (tensor("output.weight"), X86, True),
        (tensor("blk.0.attn_v.weight", Q6_K), X86, False),
        (tensor("blk.0.attn_v.weight", Q6_K), ARM, True),
        (tensor("token_embd.weight"), X86, False),  # looked up in
        (tensor("blk.0.ffn_up_exps.weight", shape=(256, 512, 8)), X86, False),
        (tensor("blk.0.attn_k.weight", shape=(256, 12)), X86, False),  # not whole groups of rows
        (tensor("blk.0.attn_norm.weight", F32, (256,)), X86, False),
        (tensor("blk.0.ffn_up.weight"), "CPU : AVX2 = 0 | REPACK = 1 | ", False),
        (tensor("blk.0.ffn_up.weight"), "CPU : AVX2 = 1 | ", False),
        (tensor("blk.0.ffn_up.weight"), "", False),
    ],
)
def test_only_what_the_processor_multiplies_is_reordered(one: Tensor, info: str, expected: bool) -> None:
    assert repack.repackable([one], info) == [one] * expected


def test_amx_is_what_llama_cpp_was_compiled_for() -> None:
    assert processor.has_amx(X86)
    assert not processor.has_amx(ARM)
    assert not processor.has_amx(X86.replace("AMX_INT8 = 1", "AMX_INT8 = 0"))


# In a child: how the weights lie is chosen when llama.cpp is loaded, and a wrong choice ends the process.
_LOGITS = """
import sys
from pathlib import Path
import numpy as np
from sr_edge import llama
from sr_edge.gguf_header import read_header

path = Path(sys.argv[1])
tensors = read_header(path).tensors if sys.argv[2] == "reordered" else ()
model = llama.Llama(path, context_size=64, threads=1, gpu_layers=0, kv_type="f32", tensors=tensors)
model.decode([*range(300, 316)], sequence=0, position=0, outputs=[15])
batch = model.logits().copy()
model.keep(0, 0)
for n in range(16):
    model.decode([300 + n], sequence=0, position=n, outputs=[0])
np.save(sys.argv[3], [batch, model.logits()])
"""


def test_reordered_weights_compute_the_same(synthetic: Path, tmp_path: Path) -> None:
    rows = {}
    for way in ("reordered", "as they are"):
        out = tmp_path / f"{way}.npy"
        done = subprocess.run(
            [sys.executable, "-c", _LOGITS, str(synthetic), way, str(out)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert done.returncode == 0, done.stderr
        rows[way] = np.load(out)
    spread = rows["as they are"].std()
    assert np.abs(rows["reordered"] - rows["as they are"]).max() < 0.1 * spread
    assert np.abs(rows["reordered"][0] - rows["reordered"][1]).max() < 0.1 * spread
