"""llama.cpp's quantiser behind a pipe: right files, or none and a reason."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import llama_cpp.llama_cpp as api
import numpy as np
import pytest
from tests import tiny_gguf
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.errors import EdgeError, ModelError, UsageError
from sr_edge.gguf_header import read_header
from sr_edge.imatrix import read_imatrix
from sr_edge.logits import Scorer
from sr_edge.quantizer import TYPES, Fallback, quantize

IDS = [int(id) for id in np.random.default_rng(5).integers(0, 276, 64)]
Q4_K, Q6_K, Q8_0 = 12, 14, 8  # ggml's numbers


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_tiny_gguf(path, metadata={"sr_edge.markers.form": "token", "sr_edge.base_model": "a/b"})


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of widths that K-quants divide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_gguf, "EMBEDDING", 256)
        patch.setattr(tiny_gguf, "FEED_FORWARD", 256)
        patch.setattr(tiny_gguf, "LAYERS", 1)
        return write_tiny_gguf(
            tmp_path_factory.mktemp("gguf") / "wide.gguf", words=[f"w{n}" for n in range(80)]
        )


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Whatever happens, nothing else is left in the folder."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder / "out.gguf"
    assert {*os.listdir(folder)} <= {"out.gguf"}


def weights(path: Path) -> dict[str, Any]:
    return {
        tensor.name: (tensor.tensor_type, np.array(tensor.data)) for tensor in gguf.GGUFReader(path).tensors
    }


def test_types_are_those_of_the_library() -> None:
    names = {name: f"LLAMA_FTYPE_MOSTLY_{name.upper()}" for name in TYPES} | {"f32": "LLAMA_FTYPE_ALL_F32"}
    names |= {name: f"LLAMA_FTYPE_MOSTLY_{name.upper()}_M" for name in ("q3_k", "q4_k", "q5_k")}
    assert {name: getattr(api, constant) for name, constant in names.items()} == dict(TYPES)


def test_q8_0_is_what_anybody_makes_of_the_weights(tiny: Path, out: Path) -> None:
    done = quantize(tiny, out, "q8_0", threads=1)
    assert (done.path, done.size, done.source_size) == (out, out.stat().st_size, tiny.stat().st_size)
    assert (done.fallbacks, done.without_importance) == ((), ())
    before, after = weights(tiny), weights(out)
    assert before.keys() == after.keys()
    for name, (kind, data) in after.items():
        wanted = before[name][1]
        if kind == Q8_0:
            wanted = gguf.quants.quantize(wanted, gguf.GGMLQuantizationType.Q8_0)
        assert np.array_equal(data, wanted), name
    assert {kind for name, (kind, _) in after.items() if "norm" in name or "bias" in name} == {0}


def test_the_metadata_survive(tiny: Path, out: Path) -> None:
    quantize(tiny, out, "q8_0", threads=1)
    before, after = dict(read_header(tiny).metadata), dict(read_header(out).metadata)
    assert after["sr_edge.markers.form"] == "token"
    assert (after.pop("general.file_type"), after.pop("general.quantization_version")) == (TYPES["q8_0"], 2)
    assert after == before


def test_a_k_quant_is_a_mixture_and_still_the_model(wide: Path, out: Path) -> None:
    done = quantize(wide, out, "q4_k_m", threads=2)
    assert done.fallbacks == ()
    kinds = {tensor.name: tensor.kind for tensor in read_header(out).tensors}
    assert kinds["output.weight"] == Q6_K
    assert kinds["blk.0.ffn_gate.weight"] == Q4_K
    with Scorer(wide) as exact, Scorer(out) as packed:
        a, b = exact.logits(IDS), packed.logits(IDS)
    assert 0.95 < np.corrcoef(a.ravel(), b.ravel())[0, 1] < 0.99999


def test_the_number_of_threads_changes_nothing(wide: Path, out: Path) -> None:
    files = []
    for threads in (1, 2, None):
        quantize(wide, out, "q4_k_m", threads=threads)
        files.append(out.read_bytes())
    assert files[0] == files[1] == files[2]


def test_a_width_that_does_not_fit_is_named(tiny: Path, out: Path) -> None:
    done = quantize(tiny, out, "q6_k", threads=1)
    assert Fallback("blk.0.ffn_up.weight", "q6_K", "q8_0") in done.fallbacks
    assert len(done.fallbacks) == 15  # every matrix once, but for the output, which is finer in any case
    with Scorer(out) as scorer:
        assert np.isfinite(scorer.logits(IDS)).all()


def test_progress_is_of_bytes_and_comes_to_its_end(wide: Path, out: Path) -> None:
    seen: list[tuple[int, int]] = []
    quantize(wide, out, "q8_0", threads=1, progress=lambda done, whole: seen.append((done, whole)))
    whole = sum(tensor.size for tensor in read_header(wide).tensors)
    assert {of for _, of in seen} == {whole}
    dones = [done for done, _ in seen]
    assert dones == sorted(dones)
    assert dones[-1] == whole
    assert len({*dones}) == 16  # the 15 tensors, and none


# --- importance matrices ---


def matrix_of(path: Path, *, but: str = "") -> dict[str, np.ndarray]:
    random = np.random.default_rng(8)
    return {
        tensor.name: random.exponential(1.0, tensor.shape[0]).astype(np.float32) ** 3
        for tensor in read_header(path).tensors
        if len(tensor.shape) == 2 and "token_embd" not in tensor.name and tensor.name != but
    }


def write_gguf_matrix(path: Path, entries: dict[str, np.ndarray], count: float = 4.0) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["words.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in entries.items():
        writer.add_tensor(f"{name}.in_sum2", (values * np.float32(count))[None])
        writer.add_tensor(f"{name}.counts", np.array([[count]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_dat_matrix(path: Path, entries: dict[str, np.ndarray], calls: int = 4) -> Path:
    data = struct.pack("<i", len(entries))
    for name, values in entries.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        data += (values * np.float32(calls)).tobytes()
    path.write_bytes(data + struct.pack("<ii", 7, 9) + b"words.txt")
    return path


def test_both_formats_of_an_importance_matrix_mean_the_same(wide: Path, tmp_path: Path, out: Path) -> None:
    entries = matrix_of(wide)
    new = write_gguf_matrix(tmp_path / "i.gguf", entries)
    old = write_dat_matrix(tmp_path / "i.dat", entries)
    for path in (new, old):
        matrix = read_imatrix(path)
        assert matrix.num_chunks == 7
        assert matrix.entries.keys() == entries.keys()
        assert all(np.array_equal(matrix.entries[name], entries[name]) for name in entries)
    quantize(wide, out, "q4_k_m", threads=1)
    without = weights(out)
    quantize(wide, out, "q4_k_m", imatrix=new, threads=1)
    by_new, metadata = weights(out), read_header(out).metadata
    quantize(wide, out, "q4_k_m", imatrix=old, threads=1)
    by_old = weights(out)
    for name in entries:
        assert np.array_equal(by_new[name][1], by_old[name][1])
        assert not np.array_equal(by_new[name][1], without[name][1])
    assert metadata["quantize.imatrix.file"] == "i.gguf"
    assert metadata["quantize.imatrix.entries_count"] == len(entries)
    assert metadata["quantize.imatrix.chunks_count"] == 7


def test_it_is_the_important_columns_that_stay_exact(wide: Path, tmp_path: Path, out: Path) -> None:
    name = "blk.0.ffn_up.weight"
    entries = {name: np.where(np.arange(256) % 32 < 4, 1.0, 1e-4).astype(np.float32)}
    quantize(wide, out, "q4_k_s", imatrix=write_gguf_matrix(tmp_path / "i.gguf", entries), threads=1)
    exact = weights(wide)[name][1]
    errors = (gguf.quants.dequantize(weights(out)[name][1], gguf.GGMLQuantizationType.Q4_K) - exact) ** 2
    assert errors[:, entries[name] == 1].mean() < 0.5 * errors[:, entries[name] < 1].mean()


def test_tensors_that_were_not_measured_are_named(wide: Path, tmp_path: Path, out: Path) -> None:
    matrix = write_gguf_matrix(tmp_path / "i.gguf", matrix_of(wide, but="blk.0.attn_v.weight"))
    assert quantize(wide, out, "q4_k_m", imatrix=matrix, threads=1).without_importance == (
        "blk.0.attn_v.weight",
    )


def test_very_low_bits_need_an_importance_matrix(wide: Path, tmp_path: Path, out: Path) -> None:
    with pytest.raises(UsageError, match=r"q2_k_s spoils a model without an importance matrix: .*--imatrix"):
        quantize(wide, out, "q2_k_s", threads=1)
    assert not out.exists()
    quantize(wide, out, "q2_k_s", imatrix=write_gguf_matrix(tmp_path / "i.gguf", matrix_of(wide)), threads=1)
    assert out.stat().st_size < wide.stat().st_size / 4


def test_very_low_bits_need_all_of_the_matrix(wide: Path, tmp_path: Path, out: Path) -> None:
    matrix = write_gguf_matrix(tmp_path / "i.gguf", matrix_of(wide, but="blk.0.ffn_up.weight"))
    with pytest.raises(
        ModelError, match=r"i\.gguf: Missing .* blk\.0\.ffn_up\.weight .*: measure it on this"
    ):
        quantize(wide, out, "q2_k_s", imatrix=matrix, threads=1)
    assert not out.exists()


BROKEN = {
    "no file": (lambda path, entries: None, "cannot be read: No such file"),
    "a folder": (lambda path, entries: path.mkdir(), "cannot be read: Is a directory"),
    "empty": (lambda path, entries: path.write_bytes(b""), "no importance matrix, or a damaged one"),
    "text": (
        lambda path, entries: path.write_text("a matrix " * 9),
        "no importance matrix, or a damaged one",
    ),
    "a model": (lambda path, entries: write_tiny_gguf(path), "a GGUF, but no importance matrix"),
    "none in it": (lambda path, entries: write_gguf_matrix(path, {}), "the importance matrix is empty"),
    "cut": (lambda path, entries: cut(write_gguf_matrix(path, entries)), "the file is cut short"),
    "cut, .dat": (lambda path, entries: cut(write_dat_matrix(path, entries)), "or a damaged one"),
    "not finite": (
        lambda path, entries: write_gguf_matrix(path, {"output.weight": np.full(256, np.nan, np.float32)}),
        "no mean squares",
    ),
    "negative": (
        lambda path, entries: write_dat_matrix(path, {"output.weight": -np.ones(256, np.float32)}),
        "no mean squares",
    ),
    "narrow": (
        lambda path, entries: write_gguf_matrix(path, {"output.weight": np.ones(128, np.float32)}),
        "128 columns for 'output.weight', and .*wide.gguf 256: it was measured on another model",
    ),
    "of another": (
        lambda path, entries: write_gguf_matrix(path, {"blk.9.attn_q.weight": np.ones(256, np.float32)}),
        "names no tensor of .*: it was measured on another model",
    ),
}


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_importance_matrix_is_refused(case: str, wide: Path, tmp_path: Path, out: Path) -> None:
    make, reason = BROKEN[case]
    path = tmp_path / "matrix"
    make(path, matrix_of(wide))
    with pytest.raises(ModelError, match=reason):
        quantize(wide, out, "q4_k_m", imatrix=path)
    assert not out.exists()


# --- what cannot be ---


def test_what_is_quantised_is_not_quantised_again_unasked(wide: Path, tmp_path: Path, out: Path) -> None:
    first = tmp_path / "first.gguf"
    quantize(wide, first, "q8_0", threads=1)
    with pytest.raises(UsageError, match=r"quantised already .*--requantize"):
        quantize(first, out, "q4_k_m", threads=1)
    quantize(first, out, "q4_k_m", threads=1, requantize=True)
    assert out.stat().st_size < first.stat().st_size


def test_wrong_usage_is_refused_before_anything_is_done(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(UsageError, match=r"'q4_m' is no type of weights: choose one of f32, f16, bf16, q8_0"):
        quantize(tiny, out, "q4_m")
    with pytest.raises(UsageError, match="0 threads"):
        quantize(tiny, out, "q8_0", threads=0)
    with pytest.raises(UsageError, match="cannot be quantised onto itself"):
        quantize(tiny, tiny.parent / "." / tiny.name, "q8_0")
    with pytest.raises(UsageError, match="this is a directory"):
        quantize(tiny, tmp_path, "q8_0")
    with pytest.raises(UsageError, match="no such directory: make it first"):
        quantize(tiny, tmp_path / "no" / "out.gguf", "q8_0")
    with pytest.raises(ModelError, match="no such file"):
        quantize(tmp_path / "no.gguf", out, "q8_0")
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_the_old_file(tiny: Path, out: Path) -> None:
    out.write_text("old")

    def stop(done: int, whole: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(tiny, out, "q4_k_m", progress=stop)
    assert out.read_text() == "old"


def test_no_room_is_seen_before_it_is_used(wide: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=600_000))
    with pytest.raises(EdgeError, match=r"will have 2 MB, and 1 MB are free there: make room") as raised:
        quantize(wide, out, "q8_0", threads=1)
    assert raised.value.exit_code == 1
    assert not out.exists()


def test_a_disk_that_fills_up_is_named(wide: Path, out: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        with pytest.raises(
            EdgeError, match=r"cannot be written: llama.cpp could not write all of it"
        ) as raised:
            quantize(wide, out, "q8_0", threads=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.exit_code == 1
    assert not out.exists()


def test_a_child_that_dies_is_a_message(wide: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def remember(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        children.append(popen(*args, **options))
        return children[-1]

    monkeypatch.setattr(subprocess, "Popen", remember)
    with pytest.raises(ModelError, match=r"llama\.cpp ended with SIGABRT while it quantised"):
        quantize(wide, out, "q4_k_m", progress=lambda *_: children[0].send_signal(signal.SIGABRT))
    assert not out.exists()


def test_a_child_whose_parent_is_gone_ends_and_clears_up(wide: Path, tmp_path: Path, out: Path) -> None:
    matrix = write_gguf_matrix(tmp_path / "i.gguf", matrix_of(wide))
    code = (
        "import sys; from pathlib import Path; from sr_edge.quantizer import quantize\n"
        "source, target, matrix = map(Path, sys.argv[1:])\n"
        "quantize(source, target, 'iq2_xs', imatrix=matrix, progress=lambda done, _: print(done, flush=True))"
    )
    command = [sys.executable, "-c", code, str(wide), str(out), str(matrix)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        while parent.stdout.readline() == b"0\n":
            pass
        parent.kill()
    give_up = time.monotonic() + 60
    while os.listdir(out.parent) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert os.listdir(out.parent) == []


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, out: Path) -> None:
    path = write_tiny_gguf(tmp_path / "nan.gguf")
    tensor = next(one for one in read_header(path).tensors if one.name == "output.weight")
    with path.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(np.full(64, np.nan, np.float32).tobytes())
    with pytest.raises(ModelError, match=r"cannot quantise it to q8_0: .*convert the file anew"):
        quantize(path, out, "q8_0", threads=1)
    assert not out.exists()
