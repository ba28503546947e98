"""The rehearsal: every recipe that ships passes it, and what it counts is what the libraries then use."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_edge.errors import UsageError
from sr_train.checkpoint import load_for_training, meta_model
from sr_train.dry_run import (
    CARDS,
    Rehearsal,
    activation_memory,
    dry_run,
    fixed_memory,
    shape_of,
    shipped_shapes,
    size_of,
    synthetic_rows,
)
from sr_train.recipe import AdapterPart, DataPart, LogPart, ModelPart, Recipe, load_recipe, shipped_recipes
from sr_train.sft.rows import spans_apart
from sr_train.stand_in import make_stand_in

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's

FULL = ModelPart("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", dtype="float32")
TIED = ModelPart("Qwen/Qwen3-1.7B", dtype="float32")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def rehearsed(recipe: Recipe) -> tuple[Rehearsal, str]:
    said: list[str] = []
    return dry_run(recipe, said.append), "\n".join(said)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_recipe_that_ships_passes(name: str) -> None:
    recipe = load_recipe(name)
    found, said = rehearsed(recipe)
    height, width = found.batch
    assert height == recipe.sft.trainer["per_device_train_batch_size"]
    assert 0 < found.learned < height * width
    if recipe.sft.trainer.get("packing"):
        assert 0.9 * recipe.sft.trainer["max_length"] < width <= recipe.sft.trainer["max_length"]
    for word in ("parameters", "at the peak", "tokens a step", "about", "assumed"):
        assert word in said
    assert [stage.name for stage in found.stages] == ["fine-tuning", "GRPO"]
    small, large = CARDS[0], CARDS[1]
    if "24gb" in name:
        assert all(stage.fits(small) for stage in found.stages)
    if recipe.adapter is None and recipe.model.base == FULL.base:
        assert not any(stage.fits(small) for stage in found.stages)
        assert all(stage.fits(large) for stage in found.stages)


def test_shapes_that_ship_are_the_published_sizes(tmp_path: Path) -> None:
    assert len(shipped_shapes()) == 2
    sizes = {
        part.base: size_of(
            meta_model(part, shape_of(part.base, tmp_path).config), Recipe("x", part, DataPart("demo:train"))
        )
        for part in (FULL, TIED)
    }
    assert sizes[FULL.base].parameters == 1_777_088_000
    assert sizes[TIED.base].parameters == 1_720_574_976
    assert sizes[FULL.base].embedded == 151_936 * 1536
    assert sizes[TIED.base].embedded == 0


@pytest.mark.parametrize("part", [FULL, TIED])
@pytest.mark.parametrize("adapter", [None, AdapterPart(rank=4)])
def test_weights_gradients_and_optimiser_are_what_a_step_takes(
    part: ModelPart, adapter: AdapterPart | None, tmp_path: Path
) -> None:
    """Counted on the meta device, and measured on the same model with weights after a step of AdamW."""
    shape = meta_model(part, shape_of(part.base, tmp_path).config).config
    base = make_stand_in(tmp_path / "base", shape)
    local = replace(part, base=str(base))
    recipe = Recipe("x", local, DataPart("demo:train"), adapter=adapter)
    loaded = load_for_training(local, adapter, tmp_path, train_markers=True)
    model: Any = loaded.model
    size = size_of(meta_model(local), recipe)
    trained = [each for each in model.parameters() if each.requires_grad]
    assert size.trained == sum(each.numel() for each in trained)
    assert size.weight_bytes == sum(each.numel() * each.element_size() for each in model.parameters())
    optimizer = torch.optim.AdamW(trained)
    ids = torch.tensor([[loaded.open_id, 5, loaded.close_id, 7]])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    gradients = sum(each.grad.numel() * 4 for each in trained if each.grad is not None)
    states = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    memory = fixed_memory(size, recipe, "adamw_torch", 0.0)
    assert memory.gradients == gradients
    assert memory.optimizer == sum(value.numel() * value.element_size() for value in states)


def test_activations_are_of_the_size_that_autograd_keeps(tmp_path: Path) -> None:
    shape = meta_model(FULL, shape_of(FULL.base, tmp_path).config).config
    base = make_stand_in(tmp_path / "base", shape)
    local = replace(FULL, base=str(base))
    recipe = Recipe("x", local, DataPart("demo:train"))
    loaded = load_for_training(local, None, tmp_path)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model: Any = loaded.model
    owned = {each.untyped_storage().data_ptr() for each in model.parameters()}
    ids = torch.randint(0, 300, (2, 128))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    measured = sum(size for pointer, size in kept.items() if pointer not in owned)
    counted = activation_memory(size_of(meta_model(local), recipe), recipe, 256, is_checkpointed=False)
    assert 0.6 < counted / measured < 1.6


def test_setting_that_a_library_refuses_is_named() -> None:
    recipe = load_recipe("splitreason-1.5b")
    for setting, says in (
        ("sft.trainer.learning_rat=1", r"sft\.trainer\.learning_rat .*learning_rate"),
        ("grpo.trainer.optim='nothing'", r"grpo\.trainer: .*nothing"),
        ("grpo.trainer.per_device_train_batch_size=3", "divides the 128 rollouts"),
        ("model.base='somebody/unknown'", "the shape of somebody/unknown is not known here"),
    ):
        with pytest.raises(UsageError, match=says):
            dry_run(load_recipe("splitreason-1.5b", [setting]), lambda _: None)
    with pytest.raises(UsageError, match=r"log\.to names wandb.*metrics\.jsonl is written in any case"):
        dry_run(replace(recipe, log=LogPart(("wandb",))), lambda _: None)


def test_quantized_weights_take_a_quarter(tmp_path: Path) -> None:
    part = replace(FULL, dtype="bfloat16")
    model = meta_model(part, shape_of(part.base, tmp_path).config)
    lora, qlora = (
        size_of(model, Recipe("x", part, DataPart("demo:train"), adapter=AdapterPart(kind=kind)))
        for kind in ("lora", "qlora")
    )
    assert lora.trained == qlora.trained
    body = lora.parameters - 2 * lora.embedded
    saved = lora.weight_bytes - qlora.weight_bytes
    assert 0.70 < saved / (2 * body) < 0.75


def test_synthetic_rows_are_annotated_rows() -> None:
    rows = list(synthetic_rows(1000, 2))
    assert len(rows) == 8
    assert len({len(row.text) for row in rows}) == 8
    assert all(len(spans_apart(row.id, row.text)) >= 3 for row in rows)
