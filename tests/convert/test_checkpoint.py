"""What a checkpoint's folder may hold, and what is refused: each with its own line, first of all."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.convert.making import make_checkpoint

from sr_convert.checkpoint import Checkpoint, cached_origin, name_of, open_checkpoint, read_header
from sr_edge.errors import ModelError

EMBEDDING = "model.embed_tokens.weight"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sharded") / "model", shards=3)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def shards(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "copy"))


def reconfigured(folder: Path, **changes: Any) -> Path:
    """None deletes a key."""
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def resaved(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    tensors = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def said(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        open_checkpoint(folder)
    text = str(error.value)
    assert "\n" not in text
    return text


# --- what is read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_of_the_model_is_there(tmp_path: Path, architecture: Any, tied: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_checkpoint(tmp_path / "model", architecture, tied=tied, dtype="bfloat16", shards=2)
    checkpoint = open_checkpoint(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    parameters = {name: value.detach().numpy() for name, value in model.named_parameters()}
    assert checkpoint.architecture == architecture
    assert set(checkpoint.shapes) == set(parameters)
    for name, values in parameters.items():
        assert checkpoint.dtype_of(name) == "BF16"
        np.testing.assert_array_equal(checkpoint.rows(name, 0, len(values)), values)
        np.testing.assert_array_equal(checkpoint.rows(name, 3, 11), values[3:11])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_are_widened_exactly(tmp_path: Path, dtype: Any) -> None:
    folder = make_checkpoint(tmp_path / "model", dtype=dtype)
    stored = load_file(folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    for name, values in stored.items():
        read = checkpoint.rows(name, 0, len(values))
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, values.astype(np.float32))


def test_tensors_come_in_the_order_of_the_files(shards: Path) -> None:
    entries = list(open_checkpoint(shards).tensors.values())
    assert len({entry.path for entry in entries}) >= 3
    assert [(e.path, e.offset) for e in entries] == sorted((e.path, e.offset) for e in entries)


def test_a_head_that_is_stored_though_tied_is_kept(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", tied=True)
    assert "lm_head.weight" not in open_checkpoint(folder).shapes
    resaved(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDING]}))
    assert "lm_head.weight" in open_checkpoint(folder).shapes


def test_buffers_of_old_saves_are_left_out(folder: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    resaved(folder, lambda tensors: tensors.update({name: np.ones(8, np.float32)}))
    assert name not in open_checkpoint(folder).shapes


def test_a_file_that_shrinks_meanwhile_is_no_crash(folder: Path) -> None:
    checkpoint: Checkpoint = open_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="became shorter meanwhile"):
        checkpoint.rows(EMBEDDING, 0, 1)


@pytest.mark.parametrize(
    "kinds", [{"max_window_layers": 2}, {"max_window_layers": 0, "layer_types": ["full_attention"] * 2}]
)
def test_a_window_that_no_layer_has_is_none(folder: Path, kinds: dict[str, Any]) -> None:
    """As transformers gives it to the layers from `max_window_layers` on, unless `layer_types` says which."""
    window = {"layer_types": None, "use_sliding_window": True, "sliding_window": 64}
    assert open_checkpoint(reconfigured(folder, **window | kinds)).architecture == "qwen2"
    other = {"max_window_layers": 1, "layer_types": None}
    assert "a window of 64 tokens" in said(reconfigured(folder, **other))
    other = {"max_window_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}
    assert "a window of 64 tokens" in said(reconfigured(folder, **other))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_repository_in_the_hubs_cache_is_known(folder: Path, tmp_path: Path) -> None:
    """Its folder is named by the commit, and its files are links."""
    repo = tmp_path / "hub" / "models--some--Model--1B"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for path in folder.iterdir():
        path.rename(repo / "blobs" / f"of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/of-{path.name}")
    assert open_checkpoint(snapshot).shapes
    assert cached_origin(snapshot) == f"some/Model--1B@{COMMIT}"
    assert name_of(snapshot) == "Model--1B"
    link = tmp_path / "mine"
    link.symlink_to(snapshot)
    assert name_of(link) == "Model--1B"


def test_every_other_folder_is_called_by_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cached_origin(folder) is None
    (tmp_path / "link").symlink_to(folder)
    assert name_of(tmp_path / "link") == "link"
    monkeypatch.chdir(folder)
    assert name_of(Path()) == "copy"


# --- what is refused -------------------------------------------------------------------------------------


def test_what_is_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    assert "no such folder: name the folder of a checkpoint" in said(tmp_path / "nowhere")
    assert said(Path("Qwen/Qwen3-0.6B")).endswith("by: sr-edge models pull Qwen/Qwen3-0.6B")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "there is no such folder" in said(tmp_path / "nothing")
    assert "this is a file" in said(folder / "config.json")
    assert "there is no config.json" in said(empty)
    (empty / "adapter_config.json").write_text("{}")
    assert (
        f"this is a LoRA adapter, not a model: name the checkpoint that it was trained on, and the adapter "
        f"with --lora {empty}" in said(empty)
    )
    (folder / "model.safetensors").unlink()
    assert "there are no weights in it" in said(folder)
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    assert "a GGUF already" in said(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    assert "the weights are pickles" in said(folder)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "converted are Qwen2ForCausalLM, Qwen3ForCausalLM"),
        ({"architectures": None, "model_type": "phi3"}, "does not say the model's architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "the checkpoint is quantised (gptq)"),
        ({"hidden_size": 128}, "x 64, by config.json it has"),
        ({"hidden_size": "64"}, "'64' cannot be the model's hidden_size"),
        ({"hidden_size": True}, "True cannot be the model's hidden_size"),
        ({"intermediate_size": None}, "it does not say the model's intermediate_size"),
        ({"intermediate_size": 256}, "shape 64 x 128, by config.json it has 64 x 256"),
        ({"num_hidden_layers": 3}, "the tensor model.layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, "by config.json the model has 1 layers"),
        ({"num_attention_heads": 5, "num_key_value_heads": 2}, "5 attention heads cannot share 2"),
        ({"num_key_value_heads": None}, "4 attention heads cannot share 32"),  # transformers' for Qwen
        ({"head_dim": 32}, "4 heads of 32 are not the hidden size of 64"),
        ({"num_key_value_heads": 4}, "k_proj.bias has the shape 32, by config.json it has 64"),
        ({"hidden_act": "gelu"}, "the activation is 'gelu'"),
        (
            {"use_sliding_window": True, "sliding_window": 256, "layer_types": None, "max_window_layers": 1},
            "attends within a window of 256 tokens",
        ),
        ({"partial_rotary_factor": 0.5}, "only a part of each head is rotated"),
        ({"is_causal": False}, "the model is no decoder"),
        ({"vocab_size": 1000}, "x 64, by config.json it has 1000 x 64"),
    ],
)  # fmt: skip
def test_configs_that_do_not_fit(folder: Path, changes: dict[str, Any], part: str) -> None:
    assert part in said(reconfigured(folder, **changes))


@pytest.mark.parametrize("text", ["", "{", "[]", "\ufffe", '{"a": 1, ' + "[" * 100_000])
def test_configs_that_are_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "get the file again" in said(folder)


def test_parts_that_are_missing_or_left_over(shards: Path) -> None:
    parts = sorted(shards.glob("model-*"))
    shutil.copy(parts[0], shards / "model-00009-of-00009.safetensors")
    assert "model-00009-of-00009.safetensors is there, and model.safetensors.index.json does not" in said(
        shards
    )
    (shards / "model-00009-of-00009.safetensors").unlink()
    parts[1].rename(shards / "aside")
    assert f"{parts[1].name} is missing, of 4 files" in said(shards)
    (shards / "aside").rename(parts[1])
    open_checkpoint(shards)
    (shards / "model.safetensors.index.json").unlink()
    assert "no model.safetensors.index.json: get that file too" in said(shards)


def test_an_index_of_another_save(shards: Path) -> None:
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    here, there = sorted(set(index["weight_map"].values()))[:2]
    moved = next(name for name, file in index["weight_map"].items() if file == here)
    for changed, part in (
        ({moved: there}, f"says that {moved} is in {there}, and it is not"),
        ({"model.extra": here}, "says that model.extra is in"),
        ({moved: "../../secret.safetensors"}, "which is no safetensors file of this folder"),
        ({moved: 3}, "which is no safetensors file of this folder"),
    ):
        path.write_text(json.dumps({"weight_map": index["weight_map"] | changed}))
        assert part in said(shards)
    left = {name: file for name, file in index["weight_map"].items() if name != moved}
    path.write_text(json.dumps({"weight_map": left}))
    assert f"holds {moved}, which" in said(shards)
    path.write_text("{}")
    assert "there is no 'weight_map' in it" in said(shards)


def test_a_tensor_in_two_files(shards: Path) -> None:
    parts = sorted(shards.glob("model-*"))
    tensors = load_file(parts[1])
    name, values = next(iter(load_file(parts[0]).items()))
    save_file(tensors | {name: values}, parts[1])
    assert f"the tensor {name} is in {parts[0].name} and in {parts[1].name}" in said(shards)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.layers.0.mlp.up_proj.qweight", "the checkpoint is quantised"),
        ("model.layers.0.mlp.up_proj.weight_scale", "the checkpoint is quantised"),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", "saved with an adapter inside"),
        ("model.layers.0.mlp.up_proj.base_layer.weight", "saved with an adapter inside"),
        ("score.weight", "llama.cpp has no place"),
        ("model.layers.0.self_attn.o_proj.bias", "llama.cpp has no place"),
        ("embed_tokens.weight", "a model without its head"),
    ],
)
def test_tensors_of_other_kinds_of_models(folder: Path, name: str, part: str) -> None:
    assert part in said(resaved(folder, lambda tensors: tensors.update({name: np.zeros(4, np.float32)})))


@pytest.mark.parametrize(("dtype", "part"), [(np.float64, "is float64"), (np.uint8, "of type U8"),
                                             (np.int32, "of type I32")])  # fmt: skip
def test_tensors_of_other_types(folder: Path, dtype: type, part: str) -> None:
    resaved(folder, lambda tensors: tensors.update({UP: tensors[UP].astype(dtype)}))
    assert part in said(folder)


def test_a_tensor_that_is_missing(folder: Path) -> None:
    assert f"the tensor {UP} is missing" in said(resaved(folder, lambda tensors: tensors.pop(UP)))
    resaved(folder, lambda tensors: tensors.update({UP: np.zeros((128, 64), np.float32)}))
    resaved(folder, lambda tensors: tensors.pop("lm_head.weight"))
    assert "the tensor lm_head.weight is missing" in said(folder)


def test_biases_that_the_config_denies(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama", attention_bias=True, mlp_bias=True)
    open_checkpoint(folder)
    assert "the model has no such bias (mlp_bias)" in said(reconfigured(folder, mlp_bias=False))


# --- files that are damaged ------------------------------------------------------------------------------


def packed(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def floats(*extent: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": extent}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"GGUF\x03\0\0\0" + bytes(32), "a GGUF under another name"),
        (b"PK\x03\x04" + b"\xff" * 32, "a pickle under another name"),
        (b"\xff" * 64, "this is no safetensors file"),
        (struct.pack("<Q", 1000) + b"{}", "cut short, within its header"),
        (packed(b"{,}"), "the header cannot be read"),
        (packed(b'{"a": 1, "a": 2}'), "a name is in it twice"),
        (packed(b"\xff\xfe{}"), "the header cannot be read"),
        (packed([]), "the header is no JSON object"),
        (packed({"a": 1}), "the header says nonsense of the tensor 'a'"),
        (packed({"a": floats(-8, 0)}), "the header says nonsense"),
        (packed({"a": floats(0, 8, 8)}, bytes(8)), "the header says nonsense"),
        (packed({"a": floats(0, 8, shape=(1 << 60,))}, bytes(8)), "the header says nonsense"),
        (packed({"a": floats(0, 4)}, bytes(4)), "of shape (2,) in F32 cannot be 4 bytes long"),
        (packed({"a": floats(0, 8, dtype="F8_E4M3", shape=(8,))}, bytes(8)), "is in 8-bit floats"),
        (packed({"a": floats(0, 8), "b": floats(4, 12)}, bytes(12)), "overlap or leave gaps at byte 4"),
        (packed({"a": floats(0, 8), "b": floats(12, 20)}, bytes(20)), "overlap or leave gaps at byte 12"),
        (packed({"a": floats(0, 8)}, bytes(7)), "the file is cut short: its tensors end at byte 8"),
        (packed({"a": floats(0, 8)}, bytes(9)), "1 bytes follow the last tensor"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        read_header(path)
    assert part in str(error.value)


@pytest.mark.parametrize("length", [0, 5, 8, 100, 2000, 100_000])
def test_cut_anywhere(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    assert "get it again" in said(folder) or "get the file again" in said(folder)
