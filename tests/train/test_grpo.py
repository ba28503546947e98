"""GRPO end to end on small models, and what we rely on in TRL."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.convert.making import make_checkpoint, token_ids
from tests.train.scripted_rollouts import FAILED, Script, ScriptedEngine
from trl.trainer.grpo_trainer import GRPOTrainer

from sr_edge.errors import RemoteError, UsageError
from sr_edge.testing import Reply, ScriptedRemote
from sr_train.checkpoint import Loaded, load_for_training
from sr_train.grpo.callbacks import OffloadState
from sr_train.grpo.training import SpentError, grpo_config, grpo_trainer, train_grpo
from sr_train.problems import Problem
from sr_train.recipe import (
    AdapterPart,
    BigPart,
    DataPart,
    GrpoPart,
    LatencyPart,
    LogPart,
    ModelPart,
    Recipe,
    RewardPart,
    RolloutPart,
)
from sr_train.rollout.requests import Rollout, RolloutEngine, RolloutRequest
from sr_train.run import RunFolder, read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PROBLEMS = [Problem(f"p{n}", f"How many are {n}?", str(n)) for n in range(6)]
TABLE = {"max_steps": 4, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "save_steps": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It asks now and then: the opening marker's row is long, so its logit is often the highest or lowest."""
    folder = make_checkpoint(tmp_path_factory.mktemp("tiny"), markers="token", hidden=32, inner=48, tied=True)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    open_id = token_ids(folder)["<bigmodel>"]
    tensors["model.embed_tokens.weight"][open_id] *= 1.7
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def recipe(checkpoint: Path, **parts: Any) -> Recipe:
    made = Recipe(
        name="tiny",
        model=ModelPart(str(checkpoint), dtype="float32"),
        data=DataPart("demo:train"),
        rollout=RolloutPart(max_tokens=24, max_span_tokens=6, soft_span_tokens=4, max_spans=3),
        big=BigPart(model=str(checkpoint), dtype="float32"),
        reward=RewardPart(unit="share"),
        grpo=GrpoPart(num_prompts=2, num_generations=4, trainer=TABLE),
        log=LogPart(to=()),
    )
    return dataclasses.replace(made, **parts)


def trained(recipe: Recipe, folder: Path, **options: Any) -> RunFolder:
    run = RunFolder.open(folder, recipe, ["test"])
    train_grpo(recipe, PROBLEMS, recipe.model.base, run, **options)
    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# --- what we rely on in TRL -----------------------------------------------------------------------------


def scripted(recipe: Recipe, folder: Path, write: Callable[[RolloutRequest], Script]) -> GRPOTrainer:
    """TRL's trainer over scripts; their ids are bytes, which any vocabulary has."""
    loaded = load_for_training(recipe.model, None, folder / "cache")
    engine = ScriptedEngine(write)
    trainer, _ = grpo_trainer(
        recipe, loaded, {each.id: each for each in PROBLEMS}, grpo_config(recipe, folder), lambda *_: engine
    )
    trainer.engine = engine
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def rows(*ids: str) -> list[dict[str, str]]:
    return [{"prompt": id} for id in ids for _ in range(4)]


def test_trl_hands_out_whole_groups_and_takes_our_mask(checkpoint, tmp_path):
    trainer = scripted(recipe(checkpoint), tmp_path, lambda request: Script("ab<>c", ("xyz",)))
    trainer.train()
    requests = trainer.engine.requests
    assert len(requests) == 4 * 8
    for at in range(0, len(requests), 4):
        assert len({each.messages for each in requests[at : at + 4]}) == 1
    assert [each.key for each in requests] == [(0, step, 0, row) for step in range(4) for row in range(8)]
    # abc, the opening marker and the end; not the span
    assert [log["completions/mean_length"] for log in trainer.state.log_history[:4]] == [5] * 4


def test_trl_masks_and_counts_as_we_say(checkpoint, tmp_path):
    trainer = scripted(recipe(checkpoint), tmp_path, lambda request: Script("ab<>c", ("xyz",)))
    inputs = trainer._generate_and_score_completions(rows("p1", "p2"))
    assert inputs["tool_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 1, 1]] * 8
    assert inputs["num_items_in_batch"] == 5 * 8


def test_trl_leaves_dropped_rows_out(checkpoint, tmp_path, caplog):
    """Their advantage is zero, and the others' is what it would be without them, under every scaling."""

    def write(request: RolloutRequest) -> Script:
        row = request.key[-1]
        return Script(rf"a<>b \boxed{{{row}}}", (Reply((), FAILED) if row >= 3 else "x",))

    for scale in ("none", "group", "batch"):
        given = recipe(checkpoint, grpo=GrpoPart(2, 4, trainer={**TABLE, "scale_rewards": scale}))
        trainer = scripted(given, tmp_path, write)
        inputs = trainer._generate_and_score_completions(rows("p1", "p2"))  # all of the second group fail
        worth = torch.tensor(list(trainer._logs["rewards"]["offload_reward"]))[:3]
        expected = worth - worth.mean()
        if scale != "none":
            expected /= worth.std() + 1e-4
        assert worth[1] > worth[0] == worth[2]
        torch.testing.assert_close(inputs["advantages"][:3], expected)
        assert not inputs["advantages"][3:].any()
        assert (inputs["tool_mask"] * inputs["completion_mask"])[3:].sum() == 0


def test_batch_without_any_reward_teaches_nothing(checkpoint, tmp_path):
    given = recipe(checkpoint, grpo=GrpoPart(2, 4, trainer={**TABLE, "max_steps": 2}))
    trainer = scripted(given, tmp_path, lambda request: Script("a<>b", (Reply((), FAILED),)))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    assert trainer.state.log_history[0]["offload/dropped"] == 1


def test_large_model_that_is_gone_ends_the_run(checkpoint, tmp_path):
    trainer = scripted(recipe(checkpoint), tmp_path, lambda request: Script("a<>b", (Reply((), FAILED),)))
    with pytest.raises(RemoteError, match=r"in 3 batches: it is not there"):
        trainer.train()


def test_micro_batches_teach_what_one_batch_does(checkpoint, tmp_path):
    def write(request: RolloutRequest) -> Script:
        row = request.key[-1]
        return Script("ab" * (row % 3) + rf"<>c \boxed{{{1 if row % 2 else 7}}}", ("xyz",))

    results = []
    for micro in (8, 2):
        table = {**TABLE, "max_steps": 2, "optim": "sgd", "per_device_train_batch_size": micro}
        given = recipe(checkpoint, grpo=GrpoPart(2, 4, trainer=table))
        trainer = scripted(given, tmp_path / str(micro), write)
        trainer.train()
        assert len(trainer.engine.requests) == 16
        results.append(trainer.model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-4, atol=1e-6, msg=name)


# --- end to end ------------------------------------------------------------------------------------------


def test_model_learns_to_ask_where_that_is_rewarded(checkpoint, tmp_path):
    """Nobody is ever right here, and asking is then worth something: asking grows from chance to habit."""
    table = {**TABLE, "max_steps": 8, "learning_rate": 1e-2, "save_strategy": "no"}
    given = recipe(
        checkpoint,
        reward=RewardPart(explore=1.0, unit="share"),
        rollout=RolloutPart(max_tokens=16, max_span_tokens=3, soft_span_tokens=2, max_spans=1),
        grpo=GrpoPart(4, 8, trainer=table),
    )
    run = trained(given, tmp_path / "run")
    asked = [line["offload/asked"] for line in read_metrics(run.metrics_path) if "offload/asked" in line]
    assert len(asked) == 8
    assert max(asked[:2]) < 0.2
    assert min(asked[-3:]) > 0.6


def test_run_leaves_a_model_with_a_note_and_is_not_run_twice(checkpoint, tmp_path):
    told: list[str] = []
    run = trained(recipe(checkpoint), tmp_path / "run", report=told.append)
    stage = run.stage("grpo")
    assert stage.is_done
    assert stage.result()["steps"] == 4
    note = json.loads((stage.model / "sr_edge.json").read_text())
    assert note["handback"] == {"tau": 0.5, "min_span": 1}
    assert [line.split(":")[0] for line in told] == [f"step {n}/4" for n in range(1, 5)]
    sample = json.loads((stage.path / "rollouts.jsonl").read_text().splitlines()[0])
    assert sample["step"] == 0
    before = weights(stage.model)
    trained(recipe(checkpoint), tmp_path / "run", report=told.append, make_engine=_none_needed)
    assert weights(stage.model).keys() == before.keys()
    assert len(told) == 4


def _none_needed(recipe: Recipe, loaded: Loaded, trainer: GRPOTrainer) -> RolloutEngine:
    raise AssertionError("it is done")


def test_run_that_was_cut_ends_where_it_would_have(checkpoint, tmp_path):
    """The last checkpoint half written, the one before it whole: same rollouts, same price, same weights."""
    given = recipe(checkpoint, reward=RewardPart(kind="budget", target_share=0.3, dual_rate=0.5))
    whole = trained(given, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    cut = tmp_path / "cut" / "grpo"
    (cut / "done.json").unlink()
    shutil.rmtree(cut / "model")
    (cut / "checkpoint-4" / "trainer_state.json").write_text('{"global_step"')
    saved = OffloadState.saved(cut / "checkpoint-2")
    assert saved is not None
    assert saved["dual"]["multiplier"] != 0
    told: list[str] = []
    again = trained(given, tmp_path / "cut", report=told.append)
    assert told[0] == "going on from checkpoint-2"
    expected = weights(whole.stage("grpo").model)
    for name, value in weights(again.stage("grpo").model).items():
        assert torch.equal(value, expected[name]), name
    clocks = ("at", "step_time", "offload/offload_seconds_measured")
    lines = [
        [
            {name: value for name, value in line.items() if name not in clocks}
            for line in read_metrics(run.metrics_path)
            if "offload/share" in line and line["step"] > 2
        ]
        for run in (whole, again)
    ]
    assert lines[0] == lines[1]


def test_adapter_is_trained_and_merged_with_a_reference(checkpoint, tmp_path):
    def engine(recipe: Recipe, loaded: Loaded, trainer: GRPOTrainer) -> RolloutEngine:
        return ScriptedEngine(lambda request: Script("a<>b" if request.key[-1] % 2 else "ab", ("x",)))

    given = recipe(
        checkpoint,
        adapter=AdapterPart(rank=4, alpha=8),
        grpo=GrpoPart(2, 4, trainer={**TABLE, "beta": 0.02, "max_steps": 2}),
        reward=RewardPart(explore=1.0),
    )
    run = trained(given, tmp_path / "run", make_engine=engine)
    before, after = weights(checkpoint), weights(run.stage("grpo").model)
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed
    assert "model.embed_tokens.weight" not in changed
    lines = [line for line in read_metrics(run.metrics_path) if "offload/share" in line]
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert lines[1]["kl"] > 0


def test_marker_rows_stay_exact_on_a_quantised_base(checkpoint, tmp_path):
    """TRL makes all that is trained on one bfloat16, which would round the rows' small steps away."""
    given = recipe(checkpoint, adapter=AdapterPart(rank=4, alpha=8))
    loaded = load_for_training(given.model, given.adapter, tmp_path / "cache", train_markers=True)
    loaded.model.is_loaded_in_4bit = True
    by_id = {each.id: each for each in PROBLEMS}
    engine = ScriptedEngine(lambda request: Script("ab"))
    grpo_trainer(given, loaded, by_id, grpo_config(given, tmp_path), lambda *_: engine)
    kinds = {name: each.dtype for name, each in loaded.model.named_parameters() if each.requires_grad}
    assert {kind for name, kind in kinds.items() if "trainable_tokens" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "lora_" in name} == {torch.bfloat16}


def test_run_stops_before_the_bill_is_too_high(checkpoint, tmp_path):
    def engine(recipe: Recipe, loaded: Loaded, trainer: GRPOTrainer) -> RolloutEngine:
        return ScriptedEngine(lambda request: Script("ab<>c", ("xyz",)))

    prices = LatencyPart(dollars_out=1e6 / 24)  # a step costs a dollar
    given = recipe(checkpoint, latency=prices, big=BigPart(model="any", max_dollars=2.5))
    run = RunFolder.open(tmp_path / "run", given, ["test"])
    with pytest.raises(SpentError, match=r"cost \$2.00"):
        train_grpo(given, PROBLEMS, checkpoint, run, make_engine=engine)
    assert not run.stage("grpo").is_done
    more = dataclasses.replace(given, big=BigPart(model="any", max_dollars=9.0))
    run = RunFolder.open(tmp_path / "run", more, ["test"])
    told: list[str] = []
    train_grpo(more, PROBLEMS, checkpoint, run, make_engine=engine, report=told.append)
    assert told[0] == "going on from checkpoint-2"
    assert run.stage("grpo").result()["dollars"] == pytest.approx(4.0)


def test_rollouts_of_a_model_that_writes_its_own_spans(checkpoint, tmp_path):
    given = recipe(
        checkpoint, big=BigPart(fill="self"), grpo=GrpoPart(1, 4, trainer={**TABLE, "max_steps": 1})
    )
    assert trained(given, tmp_path / "run").stage("grpo").is_done


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"learning_rat": 1.0}, "no setting of TRL's GRPOConfig: did you mean learning_rate"),
        ({"num_generations": 4}, "grpo.num_generations"),
        ({"gradient_accumulation_steps": 2}, "grpo.num_prompts"),
        ({"per_device_train_batch_size": 3}, "divides the 8 rollouts"),
        ({"per_device_train_batch_size": 2, "steps_per_generation": 3}, "cuts a group"),
        (
            {"loss_type": "dapo", "epsilon_high": "much", "max_steps": -1, "save_strategy": "now"},
            "grpo.trainer",
        ),
    ],
)
def test_setting_that_cannot_be_meant_is_named(checkpoint, tmp_path, table, said):
    given = recipe(checkpoint, grpo=GrpoPart(2, 4, trainer=table))
    with pytest.raises(UsageError, match=said):
        grpo_config(given, tmp_path)


def test_greedy_rollouts_are_refused(checkpoint, tmp_path):
    given = recipe(checkpoint, rollout=RolloutPart(temperature=0.0))
    with pytest.raises(UsageError, match=r"rollout\.temperature"):
        grpo_config(given, tmp_path)


def test_kl_to_a_model_without_markers_is_refused(checkpoint, tmp_path):
    """TRL would read the reference anew: without the rows that the markers were given."""
    plain = make_checkpoint(tmp_path / "plain", markers="none", hidden=32, inner=48, tied=True)
    table = {**TABLE, "beta": 0.02, "max_steps": 1, "save_strategy": "no"}
    given = recipe(plain, grpo=GrpoPart(1, 2, trainer=table))
    with pytest.raises(UsageError, match=r"begin with what SFT left, or set grpo\.trainer\.beta=0"):
        trained(given, tmp_path / "run")
    given = recipe(checkpoint, grpo=GrpoPart(1, 2, trainer=table))
    run = trained(given, tmp_path / "other")
    lines = [line for line in read_metrics(run.metrics_path) if "offload/share" in line]
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6)


def test_nobody_to_write_the_spans_is_named(checkpoint, tmp_path):
    with pytest.raises(UsageError, match=r"set big\.model, big\.remote"):
        trained(recipe(checkpoint, big=BigPart()), tmp_path / "run")


def test_spans_are_written_by_an_endpoint_that_is_closed_at_the_end(checkpoint, tmp_path):
    closed: list[bool] = []

    class Once(ScriptedRemote):
        def __enter__(self) -> Once:
            return self

        def __exit__(self, *args: object) -> None:
            closed.append(True)

    remote = Once(["so it is"] * 1000)
    given = recipe(
        checkpoint,
        big=BigPart(remote="home", cache=False),
        grpo=GrpoPart(4, 8, trainer={**TABLE, "max_steps": 3, "save_strategy": "no"}),
    )
    run = trained(given, tmp_path / "run", reach=lambda part, render: remote)
    assert closed == [True]
    lines = [line for line in read_metrics(run.metrics_path) if "offload/share" in line]
    assert len(remote.asked) >= sum(line["offload/spans"] * 32 for line in lines) > 0


def test_problems_without_an_answer_are_left_out(checkpoint, tmp_path):
    told: list[str] = []
    given = recipe(checkpoint, grpo=GrpoPart(1, 4, trainer={**TABLE, "max_steps": 1}))
    run = RunFolder.open(tmp_path / "run", given, ["test"])
    train_grpo(given, [*PROBLEMS, Problem("bad", "?", "")], checkpoint, run, report=told.append)
    assert told[0].startswith("1 of 7 problems left out")
    with pytest.raises(UsageError, match="no problem"):
        train_grpo(given, [Problem("bad", "?", "")], checkpoint, run, resume=False)


def test_rollouts_are_written_by_the_model_in_evaluation_mode(checkpoint, tmp_path):
    modes: list[bool] = []

    class Watching(ScriptedEngine):
        model: torch.nn.Module

        def run(
            self, requests: Sequence[RolloutRequest], done: Callable[[int], None] = lambda index: None
        ) -> list[Rollout]:
            modes.append(self.model.training or torch.is_grad_enabled())
            return super().run(requests, done)

    engine = Watching(lambda request: Script("ab"))

    def make(recipe: Recipe, loaded: Loaded, trainer: GRPOTrainer) -> RolloutEngine:
        engine.model = loaded.model
        return engine

    trained(recipe(checkpoint), tmp_path / "run", make_engine=make)
    assert modes == [False] * 4
