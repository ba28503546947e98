"""The whole way: a checkpoint becomes a GGUF that runs, and that computes what transformers computes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray
from tests.convert.adapting import load_adapted, load_base, make_adapter
from tests.convert.making import make_checkpoint, token_ids

from sr_convert.convert import Converted, Request, convert
from sr_edge.errors import EdgeError, ModelError, UsageError
from sr_edge.gguf_header import read_header
from sr_edge.local import LlamaLocal
from sr_edge.logits import Scorer
from sr_edge.markers import CLOSE, OPEN

ARCHITECTURES: Any = ("qwen2", "qwen3", "llama")
IDS = [int(i) for i in np.random.default_rng(0).integers(0, 880, 96)]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("whole") / "model", hidden=256, inner=256, dtype="bfloat16"
    )


def quiet(what: str, done: int, whole: int) -> None:
    pass


def made(checkpoint: Path, out: Path, type: str = "f32", **options: Any) -> Converted:
    return convert(Request(checkpoint=checkpoint, out=out, type=type, **options), quiet)


def logits(path: Path, ids: Sequence[int] = IDS) -> NDArray[np.float32]:
    with Scorer(path, threads=1) as scorer:
        return scorer.logits(ids)


def expected(model: Any, ids: Sequence[int] = IDS) -> NDArray[np.float32]:
    import torch

    with torch.no_grad():
        found: NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return found


def assert_same(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    assert np.abs(ours - theirs).max() < 1e-3
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()
    assert theirs.std() > 1  # they tell right from wrong


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_it_computes_what_transformers_computes(tmp_path: Path, architecture: Any, tied: bool) -> None:
    options: dict[str, Any] = {} if architecture == "qwen2" else {"head_dim": 24}
    if architecture == "llama":
        options |= {"attention_bias": True, "mlp_bias": True, "rope": LLAMA3}
    folder = make_checkpoint(
        tmp_path / "model", architecture, tied=tied, dtype="bfloat16", shards=2, **options
    )
    made(folder, tmp_path / "model.gguf")
    assert_same(logits(tmp_path / "model.gguf"), expected(load_base(folder)))


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_positions_that_are_scaled(tmp_path: Path, kind: str) -> None:
    rope = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 32}
    folder = make_checkpoint(tmp_path / "model", rope=rope)
    made(folder, tmp_path / "model.gguf")
    plain = make_checkpoint(tmp_path / "plain")
    theirs = expected(load_base(folder))
    assert_same(logits(tmp_path / "model.gguf"), theirs)
    assert np.abs(expected(load_base(plain)) - theirs).max() > 0.1


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0", "q6_k", "q4_k_m", "iq4_xs"])
def test_each_type_runs_and_the_finer_is_nearer(checkpoint: Path, tmp_path: Path, type: str) -> None:
    out = tmp_path / "model.gguf"
    stages: list[str] = []
    request = Request(checkpoint, out, type, threads=1)
    assert convert(request, lambda what, done, whole: stages.append(what)).notices == ()
    assert list(dict.fromkeys(stages)) == (
        ["converting"] if type in ("f16", "bf16", "q8_0") else ["converting", "quantising"]
    )
    assert list(tmp_path.iterdir()) == [out]
    with LlamaLocal.open(out, temperature=0.0) as model:
        model.feed(model.tokenize("So the answer is"))
        assert model.sample().id >= 0
        assert model.markers is None
    theirs = expected(load_base(checkpoint))
    error = float(np.abs(logits(out) - theirs).mean() / theirs.std())
    most = {"f16": 2e-3, "bf16": 0.01, "q8_0": 0.04, "q6_k": 0.1, "q4_k_m": 0.4, "iq4_xs": 0.4}[type]
    assert error < most
    bits = out.stat().st_size * 8 / read_header(out).num_parameters
    assert bits < {"f16": 18, "bf16": 18, "q8_0": 10, "q6_k": 8.5, "q4_k_m": 7.5, "iq4_xs": 7}[type]


def test_markers_are_added_as_control_tokens(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    notices = made(checkpoint, out, "q4_k_m", add_markers=True, tau=0.25, threads=1).notices
    assert "the markers are tokens" in notices[0]
    with LlamaLocal.open(out, temperature=0.0) as model:
        assert model.markers is not None
        (opening,), (closing,) = model.markers.open_ids, model.markers.close_ids
        assert model.markers.tau == 0.25
        assert opening not in model.tokenize(OPEN)
        assert max(token_ids(checkpoint).values()) < opening < closing
        model.feed([*model.tokenize("So"), opening, *model.tokenize(" it is")], probe=True)
    made(checkpoint, tmp_path / "plain.gguf")
    made(checkpoint, tmp_path / "marked.gguf", add_markers=True)
    plain, marked = logits(tmp_path / "plain.gguf"), logits(tmp_path / "marked.gguf")
    np.testing.assert_array_equal(
        np.delete(plain, [opening, closing], 1), np.delete(marked, [opening, closing], 1)
    )


def test_trained_markers_are_recorded_without_being_asked_for(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "token", markers="token")
    made(folder, tmp_path / "token.gguf")
    with LlamaLocal.open(tmp_path / "token.gguf") as model:
        ids = token_ids(folder)
        assert model.markers is not None
        assert (model.markers.open_ids, model.markers.close_ids) == ((ids[OPEN],), (ids[CLOSE],))
    folder = make_checkpoint(tmp_path / "text", markers="text")
    made(folder, tmp_path / "text.gguf")
    with LlamaLocal.open(tmp_path / "text.gguf") as model:
        assert model.markers is not None
        assert model.markers.form == "text"


@pytest.mark.filterwarnings("ignore")  # peft's, about what is its own business
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_is_merged(tmp_path: Path, architecture: Any) -> None:
    folder = make_checkpoint(tmp_path / "model", architecture, tied=architecture == "qwen2")
    adapter = make_adapter(
        folder,
        tmp_path / "adapter",
        target_modules=["q_proj", "k_proj", "down_proj"],
        trainable_token_indices={"embed_tokens": [5, 880]},
    )
    made(folder, tmp_path / "model.gguf", adapter=adapter)
    theirs = expected(load_adapted(folder, adapter))
    assert_same(logits(tmp_path / "model.gguf"), theirs)
    assert np.abs(expected(load_base(folder)) - theirs).max() > 0.1
    made(folder, tmp_path / "quantised.gguf", "q4_0", adapter=adapter, add_markers=True, threads=1)
    with LlamaLocal.open(tmp_path / "quantised.gguf") as model:
        assert model.markers is not None


@pytest.mark.filterwarnings("ignore")
def test_the_adapters_own_tokenizer_is_the_one_it_was_trained_with(tmp_path: Path) -> None:
    from tests.convert.making import write_tokenizer

    folder = make_checkpoint(tmp_path / "model")
    adapter = make_adapter(folder, tmp_path / "adapter")
    write_tokenizer(adapter, markers=True)
    made(folder, tmp_path / "model.gguf", adapter=adapter)
    with LlamaLocal.open(tmp_path / "model.gguf") as model:
        assert model.markers is not None
        assert model.markers.open_ids == (token_ids(adapter)[OPEN],)


def test_a_repository_in_the_hubs_cache_keeps_its_name(checkpoint: Path, tmp_path: Path) -> None:
    name = "DeepSeek-R1-Distill-Qwen-1.5B-GRPO-SpeculativeReasoner"
    folder = tmp_path / f"models--akhauriyash--{name}" / "snapshots" / ("0" * 40)
    shutil.copytree(checkpoint, folder)
    made(folder, tmp_path / "model.gguf")
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["sr_edge.source"].contents() == f"akhauriyash/{name}@{'0' * 40}"
    assert fields["sr_edge.markers.form"].contents() == "text"
    assert "0000" not in fields["general.name"].contents()


def test_widths_that_blocks_do_not_divide_are_told(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", hidden=80, inner=96)
    notices = made(folder, tmp_path / "model.gguf", "q8_0").notices
    assert len(notices) == 1
    assert "have a width that Q8_0 cannot divide: F16 instead" in notices[0]
    kinds = {tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds == {"F32", "F16", "Q8_0"}
    notices = made(folder, tmp_path / "k.gguf", "q4_k_m", threads=1).notices
    assert "cannot divide" in notices[0]


# --- what stops it ---------------------------------------------------------------------------------------


def test_what_cannot_be_meant(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    with pytest.raises(UsageError, match="'q4' is no type of weights: choose one of f32, f16"):
        made(checkpoint, out, "q4")
    with pytest.raises(UsageError, match="an importance matrix changes nothing for f16"):
        made(checkpoint, out, "f16", imatrix=tmp_path / "imatrix.dat")
    with pytest.raises(UsageError, match="this is a directory"):
        made(checkpoint, tmp_path)
    with pytest.raises(UsageError, match="there is no such directory"):
        made(checkpoint, tmp_path / "nowhere" / "model.gguf")
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="replace it with --force"):
        made(checkpoint, out)
    with pytest.raises(UsageError, match="this file is no GGUF, and is not replaced"):
        made(checkpoint, out, force=True)
    assert out.read_bytes() == b"mine"
    out.write_bytes(b"GGUF, an older one")
    made(checkpoint, out, force=True)
    assert read_header(out).architecture == "qwen2"


@pytest.mark.parametrize("type", ["f16", "q4_k_m"])
@pytest.mark.parametrize("stage", ["converting", "quantising"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, EdgeError("stop")])
def test_nothing_is_left_of_a_conversion_that_was_stopped(
    checkpoint: Path, tmp_path: Path, type: str, stage: str, error: Any
) -> None:
    def stop(what: str, done: int, whole: int) -> None:
        if what == stage:
            raise error

    if type == "f16" and stage == "quantising":
        return
    with pytest.raises(type_of(error)):
        convert(Request(checkpoint, tmp_path / "model.gguf", type, threads=1), stop)
    assert list(tmp_path.iterdir()) == []


def type_of(error: Any) -> type[BaseException]:
    return error if isinstance(error, type) else type(error)


def test_weights_that_are_no_numbers_leave_no_file(checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][17, 3] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    for kind in ("f16", "q8_0", "q4_k_m"):
        with pytest.raises(ModelError, match=r"up_proj\.weight holds values that are no finite numbers"):
            made(folder, tmp_path / "model.gguf", kind)
    assert list(tmp_path.iterdir()) == [folder]
