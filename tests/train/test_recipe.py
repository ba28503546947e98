"""Recipes: read strictly, extended, set from the command line, and those that ship."""

from dataclasses import fields
from pathlib import Path

import pytest

from sr_edge.errors import UsageError
from sr_train.recipe import Recipe, load_recipe, recipe_table, shipped_recipes
from sr_train.run import recipe_text

REAL = ("splitreason-1.5b", "splitreason-1.5b-24gb", "splitreason-1.5b-8x80gb", "qwen3-1.7b")
ACCELERATE = Path(__file__).resolve().parents[2] / "train" / "launch"
LEAST = 'name = "x"\n[model]\nbase = "demo:base"\n[data]\nsource = "demo:train"\n'


def read(tmp_path: Path, text: str, *settings: str) -> Recipe:
    path = tmp_path / "mine.toml"
    path.write_text(text, "utf-8")
    return load_recipe(str(path), settings)


def test_least_recipe_has_every_other_setting_by_itself(tmp_path: Path) -> None:
    recipe = read(tmp_path, LEAST)
    assert recipe.reward.kind == "gated"
    assert {each.name for each in fields(Recipe)} >= recipe_table(recipe).keys()
    assert "adapter" not in recipe_table(recipe)


@pytest.mark.parametrize("name", [*REAL])
def test_shipped_recipe_reads_and_reads_back(name: str, tmp_path: Path) -> None:
    assert name in shipped_recipes()
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.hardware
    assert read(tmp_path, recipe_text(recipe)) == recipe


def test_shipped_recipes_extend_one_another() -> None:
    paper, small_card, eight = (load_recipe(name) for name in REAL[:3])
    assert paper.adapter is None
    assert small_card.adapter is not None
    assert small_card.data.source == paper.data.source
    assert small_card.sft.trainer["num_train_epochs"] == 3
    per_step = [
        recipe.num_processes
        * recipe.sft.trainer["gradient_accumulation_steps"]
        * recipe.sft.trainer["per_device_train_batch_size"]
        * recipe.sft.trainer["max_length"]
        for recipe in (paper, small_card, eight)
    ]
    assert per_step[0] == per_step[1] == 64 * 16384
    assert 0.95 < per_step[2] / per_step[0] <= 1
    assert load_recipe("qwen3-1.7b").adapter == small_card.adapter


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LEAST + "[sft]\nspan_los = 'mask'", r"no setting sft\.span_los: there are span_loss"),
        (LEAST + "[sft]\nspan_loss = 'half'", r"sft\.span_loss = 'half': it can be mask, train, close"),
        (LEAST + "[reward]\nlam = 1.0", r"reward\.lam = 1\.0"),
        (LEAST + "[reward]\nlam = nan", "finite"),
        (LEAST + "[reward]\nlam = 'much'", "it is a number"),
        (LEAST + "[reward]\nkind = 'budget'", r"needs reward\.target_share"),
        (LEAST + "[reward]\nunit = 'dollars'", r"needs prices: set latency\.dollars_in"),
        (LEAST + "[grpo]\nnum_generations = 1", "at least 2"),
        (LEAST + "[grpo]\nnum_generations = true", "a whole number"),
        (LEAST + "[log]\nto = 'wandb'", "it is a list"),
        (LEAST + "[log]\nto = ['paper']", "it can be tensorboard"),
        (LEAST + "[big]\nmodel = 'a'\nremote = 'b'", "exclude each other"),
        ("seed = 3\n" + LEAST.replace('name = "x"\n', ""), "lacks name"),
        ("model = 3\nname = 'x'\n[data]\nsource = 'demo:train'", "model is a table"),
        ("name = ", "no TOML"),
        ("extends = 'nowhere'\n" + LEAST, "no recipe nowhere"),
        ("extends = 'mine'\n" + LEAST, "leads nowhere"),
    ],
)
def test_recipe_that_cannot_be_meant_is_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        read(tmp_path, text)


def test_set_reaches_every_depth(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        LEAST,
        "seed=7",
        "reward.lam=0.3",
        "grpo.trainer.learning_rate=1e-5",
        "adapter.rank=8",
        "log.to=[]",
        "data.source=my file.jsonl",
    )
    assert (recipe.seed, recipe.reward.lam, recipe.grpo.trainer) == (7, 0.3, {"learning_rate": 1e-5})
    assert recipe.adapter is not None
    assert (recipe.adapter.rank, recipe.log.to, recipe.data.source) == (8, (), "my file.jsonl")


@pytest.mark.parametrize("setting", ["seed", "=3", "reward..lam=1", "seed.x=1", "seed=many"])
def test_set_that_cannot_be_meant_is_refused(setting: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read(tmp_path, "seed = 1\n" + LEAST, setting)


@pytest.mark.parametrize("path", sorted(ACCELERATE.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_takes_its_settings(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    kind = {
        "ddp": "MULTI_GPU",
        "cpu2": "MULTI_GPU",
        "fsdp2": "FSDP",
        "zero2": "DEEPSPEED",
        "zero3": "DEEPSPEED",
    }
    assert config.distributed_type == kind[path.stem]
    assert config.mixed_precision == ("no" if path.stem == "cpu2" else "bf16")
    assert config.use_cpu is (path.stem == "cpu2")


def test_there_are_settings_for_accelerate() -> None:
    assert len(list(ACCELERATE.glob("*.yaml"))) == 5


def test_missing_recipe_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"no recipe nothing: .*splitreason-1\.5b"):
        load_recipe("nothing")


@pytest.mark.parametrize(
    "setting",
    [
        "data.validation=-1",  # as a slice it would leave one problem to train on
        "rollout.max_rows=0",
        "rollout.max_spans=-1",
        "big.attempts=0",
        "big.concurrency=0",
        "big.temperature=-0.1",
        "big.timeout=0.0",
        "evaluate.samples=0",
        "evaluate.temperature=-1",
        "adapter.rank=0",
        "num_processes=0",
        "annotate.concurrency=0",
        "annotate.requests_per_minute=0",  # which would be no limit
        "annotate.surprisal_quantile=80",
        "annotate.target_share=20",
        "annotate.continuations=-1",
    ],
)
def test_value_that_would_silently_do_something_else_is_refused(setting: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=setting.partition("=")[0].replace(".", r"\.")):
        read(tmp_path, LEAST, setting)
