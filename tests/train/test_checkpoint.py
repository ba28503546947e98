"""Markers in a checkpoint, adapters around it, and what is saved, on small random checkpoints."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, PeftModel, get_peft_model
from tests.convert.making import make_checkpoint, token_ids
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.utils import add_fused_lm_head

from sr_convert.convert import Request, convert
from sr_edge.errors import ModelError, UsageError
from sr_edge.marker_rows import first_row, free_ids
from sr_edge.markers import CLOSE, OPEN
from sr_train.checkpoint import (
    Loaded,
    load_for_inference,
    load_for_training,
    load_tokenizer,
    meta_model,
    resolve_base,
    save_trained,
)
from sr_train.recipe import AdapterPart, HandbackPart, ModelPart

KINDS = [("qwen2", True), ("qwen2", False), ("qwen3", True), ("llama", False)]
HANDBACK = HandbackPart(tau=0.4, min_span=2)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[tuple[str, bool], Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        (kind, tied): make_checkpoint(folder / f"{kind}-{tied}", kind, tied=tied, seed=n, dtype="float32")
        for n, (kind, tied) in enumerate(KINDS)
    }


def part(folder: Path) -> ModelPart:
    return ModelPart(str(folder), dtype="float32")


def ends(model) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


def logits_of(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


# --- markers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_markers_take_unused_rows_and_all_others_stay(kind, checkpoints, tmp_path):
    folder = checkpoints[kind]
    before = AutoModelForCausalLM.from_pretrained(folder)
    spelled = AutoTokenizer.from_pretrained(folder)
    loaded = load_for_training(part(folder), None, tmp_path)

    assert (loaded.open_id, loaded.close_id) == free_ids(set(token_ids(folder).values()), 2)
    for old, new in zip(ends(before), ends(loaded.model), strict=True):
        expected = old.detach().clone()
        for id, marker in ((loaded.open_id, OPEN), (loaded.close_id, CLOSE)):
            ids = spelled.encode(marker, add_special_tokens=False)
            expected[id] = torch.from_numpy(first_row(old.detach()[ids].numpy()))
        assert torch.equal(new, expected)
    embedding, head = ends(loaded.model)
    assert (embedding is head) is kind[1]


@pytest.mark.parametrize("tied", [True, False])
def test_a_full_embedding_grows_by_what_is_missing(tied, tmp_path):
    folder = make_checkpoint(tmp_path / "full", tied=tied, num_tokens=908)
    assert max(token_ids(folder).values()) == 907
    before = ends(AutoModelForCausalLM.from_pretrained(folder))
    loaded = load_for_training(part(folder), None, tmp_path)
    assert (loaded.open_id, loaded.close_id) == (908, 909)
    assert loaded.model.config.vocab_size == 910
    for old, new in zip(before, ends(loaded.model), strict=True):
        assert torch.equal(new[:908], old)
        assert len(new) == 910
        assert new[908:].std() > 0
    embedding, head = ends(loaded.model)
    assert (embedding is head) is tied
    again = load_for_inference(str(save(loaded, tmp_path / "saved")), "float32", tmp_path)
    assert torch.equal(logits_of(again.model, [3, 909, 4]), logits_of(loaded.model, [3, 909, 4]))


def test_markers_that_are_there_keep_their_rows_and_become_special(tmp_path):
    folder = make_checkpoint(tmp_path / "marked", markers="token")
    before = ends(AutoModelForCausalLM.from_pretrained(folder))
    loaded = load_for_training(part(folder), None, tmp_path)
    for old, new in zip(before, ends(loaded.model), strict=True):
        assert torch.equal(old, new)
    assert all(loaded.tokenizer.added_tokens_decoder[id].special for id in (loaded.open_id, loaded.close_id))


def test_markers_hide_from_what_is_decoded_without_special_tokens(checkpoints):
    tokenizer = load_tokenizer(part(checkpoints["llama", False]))
    ids = tokenizer.encode(f"a{OPEN}b{CLOSE}c", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "abc"
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"a{OPEN}b{CLOSE}c"


@pytest.mark.parametrize("kind", [("qwen2", True), ("llama", False)])
def test_a_trainer_begins_with_the_model_that_the_converter_prepares(kind, checkpoints, tmp_path):
    folder = checkpoints[kind]
    prepared, saved = tmp_path / "prepared.gguf", tmp_path / "saved.gguf"
    convert(Request(folder, prepared, type="f32", add_markers=True), lambda *_: None)
    trained = save(load_for_training(part(folder), None, tmp_path), tmp_path / "model")
    convert(Request(trained, saved, type="f32"), lambda *_: None)
    one, other = ({t.name: t.data for t in GGUFReader(path).tensors} for path in (prepared, saved))
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert np.array_equal(values, other[name]), name
    fields = GGUFReader(saved).fields
    assert fields["sr_edge.handback.tau"].contents() == pytest.approx(0.4)
    assert fields["sr_edge.markers.form"].contents() == "token"
    assert fields["sr_edge.training_run"].contents() == "test"


# --- saving ----------------------------------------------------------------------------------------------


def save(loaded: Loaded, folder: Path, base: str = "owner/base") -> Path:
    return save_trained(loaded, folder, handback=HANDBACK, base_model=base, training_run="test")


def test_a_saved_model_replaces_the_one_before_and_says_how_to_use_it(checkpoints, tmp_path):
    loaded = load_for_training(part(checkpoints["qwen2", True]), None, tmp_path)
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    (folder / "left-over.bin").write_text("of an earlier save")
    for killed in (".model.partial", ".model.replaced"):
        (folder.parent / killed).mkdir()
        (folder.parent / killed / "model.safetensors").write_text("of a save that was killed")
    assert save(loaded, folder) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert not (folder / "left-over.bin").exists()
    assert json.loads((folder / "sr_edge.json").read_text()) == {
        "v": 1,
        "markers": "token",
        "handback": {"tau": 0.4, "min_span": 2},
        "base_model": "owner/base",
        "training_run": "test",
    }
    again = load_for_inference(str(folder), "float32", tmp_path)
    assert (again.open_id, again.close_id) == (loaded.open_id, loaded.close_id)
    assert again.tokenizer.chat_template == loaded.tokenizer.chat_template
    assert torch.equal(logits_of(again.model, [1, 2, 3]), logits_of(loaded.model, [1, 2, 3]))
    assert not again.model.training
    assert not any(each.requires_grad for each in again.model.parameters())


def test_a_save_that_fails_leaves_the_one_before(checkpoints, tmp_path, monkeypatch):
    loaded = load_for_training(part(checkpoints["qwen2", True]), None, tmp_path)
    folder = save(loaded, tmp_path / "model")
    monkeypatch.setattr(
        type(loaded.tokenizer), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        save(loaded, folder)
    monkeypatch.undo()
    load_for_inference(str(folder), "float32", tmp_path)


def test_no_path_of_the_trainers_machine_is_written(checkpoints, tmp_path):
    folder = checkpoints["qwen2", True]
    loaded = load_for_training(part(folder), None, tmp_path)
    saved = save(loaded, tmp_path / "model", base=str(folder))
    assert json.loads((saved / "sr_edge.json").read_text())["base_model"] == folder.name
    for path in saved.glob("*.json*"):
        assert str(folder.parent) not in path.read_text(), path.name


# --- adapters --------------------------------------------------------------------------------------------


def adapted(checkpoint: Path, cache: Path, **adapter) -> Loaded:
    """With an adapter that is no longer nothing."""
    loaded = load_for_training(part(checkpoint), AdapterPart(rank=4, alpha=8, **adapter), cache)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return loaded


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_computes_what_the_adapter_did(kind, checkpoints, tmp_path):
    loaded = adapted(checkpoints[kind], tmp_path)
    loaded.model.eval()
    again = load_for_inference(str(save(loaded, tmp_path / "model")), "float32", tmp_path)
    ids = [5, loaded.open_id, 17, loaded.close_id, 40]
    untrained = load_for_training(part(checkpoints[kind]), None, tmp_path)
    assert (logits_of(loaded.model, ids) - logits_of(untrained.model, ids)).abs().max() > 0.05
    assert (logits_of(loaded.model, ids) - logits_of(again.model, ids)).abs().max() < 1e-4
    embedding, head = ends(again.model)
    assert (embedding is head) is kind[1]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_markers_are_trained_and_no_others(kind, checkpoints, tmp_path):
    loaded = adapted(checkpoints[kind], tmp_path)
    again = load_for_inference(str(save(loaded, tmp_path / "model")), "float32", tmp_path)
    untrained = load_for_training(part(checkpoints[kind]), None, tmp_path)
    for old, new in zip(ends(untrained.model), ends(again.model), strict=True):
        changed = (old != new).any(dim=1).nonzero().flatten().tolist()
        assert changed == [loaded.open_id, loaded.close_id]
    deltas = [each for name, each in loaded.model.named_parameters() if "trainable_tokens" in name]
    assert len(deltas) == (1 if kind[1] else 2)
    assert torch.equal(ends(again.model)[0][[loaded.open_id, loaded.close_id]], deltas[0])


@pytest.mark.parametrize("kind", KINDS)
def test_trls_fused_head_sees_the_trained_rows(kind, checkpoints, tmp_path):
    loaded = adapted(checkpoints[kind], tmp_path)
    model = loaded.model
    assert isinstance(model, PeftModel)
    model.eval()
    ids = torch.tensor([[5, loaded.open_id, 17, loaded.close_id, 40]])
    expected = model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs",))
    fused = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
    assert torch.allclose(fused, expected, atol=1e-5)
    fused[0, 2].backward()  # of the closing marker
    deltas = {name: each.grad for name, each in model.named_parameters() if "trainable_tokens" in name}
    for name, gradient in deltas.items():
        opens, closes = gradient.abs().amax(dim=1)
        assert opens > 0, name
        if kind[1] or "lm_head" in name:  # the embedding's row of it comes after the prediction
            assert closes > 0, name


def test_a_marked_base_keeps_its_markers_rows_unless_asked_otherwise(tmp_path):
    folder = make_checkpoint(tmp_path / "marked", markers="token", tied=True)

    def trained(train_markers: bool | None) -> list[str]:
        loaded = load_for_training(part(folder), AdapterPart(), tmp_path, train_markers=train_markers)
        named = loaded.model.named_parameters()
        return [name for name, each in named if each.requires_grad and "lora_" not in name]

    assert trained(None) == []
    assert len(trained(True)) == 1


def test_an_adapter_begins_the_same_whatever_was_drawn_before(checkpoints, tmp_path):
    begun = []
    for seed in (3, 3, 4):
        torch.rand(7)
        loaded = load_for_training(part(checkpoints["qwen2", True]), AdapterPart(), tmp_path, seed=seed)
        begun.append([each for name, each in loaded.model.named_parameters() if "lora_A" in name])
    assert all(map(torch.equal, begun[0], begun[1]))
    assert not any(map(torch.equal, begun[0], begun[2]))


def test_trained_rows_are_float32_where_the_base_is_not(tmp_path):
    folder = make_checkpoint(tmp_path / "half", tied=True, dtype="bfloat16")
    loaded = load_for_training(ModelPart(str(folder)), AdapterPart(), tmp_path)
    assert loaded.model.dtype == torch.bfloat16
    assert {each.dtype for each in loaded.model.parameters() if each.requires_grad} == {torch.float32}
    again = load_for_inference(str(save(loaded, tmp_path / "model")), "bfloat16", tmp_path)
    assert again.model.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own call
def test_an_adapters_folder_is_merged_when_it_is_loaded(checkpoints, tmp_path):
    folder = checkpoints["qwen2", False]
    plain = AutoModelForCausalLM.from_pretrained(folder)
    wrapped = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    wrapped.peft_config["default"].base_model_name_or_path = str(folder)
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    loaded = load_for_inference(str(tmp_path / "adapter"), "float32", tmp_path)
    before = logits_of(wrapped, [1, 2, 3])[:, : loaded.open_id]
    assert (logits_of(loaded.model, [1, 2, 3])[:, : loaded.open_id] - before).abs().max() < 1e-4


# --- what cannot be ---------------------------------------------------------------------------------------


def test_qlora_without_its_package_says_what_to_install(checkpoints, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(UsageError, match="pip install bitsandbytes"):
        load_for_training(part(checkpoints["qwen2", True]), AdapterPart(kind="qlora"), tmp_path)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("demo:huge", "there are demo:base, demo:small, demo:big"),
        ("./not/here", "no folder"),
        ("a/b/c", "no folder"),
    ],
)
def test_a_base_that_is_nowhere_is_named(base, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        resolve_base(base, tmp_path)


def test_a_folder_without_a_model_is_named(checkpoints, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"config\.json is missing"):
        resolve_base(str(tmp_path / "empty"), tmp_path)
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        load_for_training(part(tmp_path / "empty"), None, tmp_path)
    assert resolve_base("owner/name", tmp_path) == "owner/name"


def test_the_built_in_base_is_loaded(tmp_path):
    loaded = load_for_training(ModelPart("demo:base", dtype="float32"), None, tmp_path)
    assert loaded.tokenizer.decode([loaded.open_id, loaded.close_id]) == OPEN + CLOSE
    assert load_tokenizer(ModelPart("demo:base")).get_vocab() == loaded.tokenizer.get_vocab()


def test_the_meta_model_has_the_shape_of_its_config(checkpoints, tmp_path):
    folder = checkpoints["llama", False]
    model = meta_model(part(folder))
    real = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is type(real)
    assert model.num_parameters() == real.num_parameters()
    assert {each.device.type for each in model.parameters()} == {"meta"}
    with pytest.raises(UsageError, match="shape of owner/name"):
        meta_model(ModelPart("owner/name"))
