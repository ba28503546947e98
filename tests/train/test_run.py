"""A run's folder: claiming, going on, stages, and what a killed process leaves."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from sr_edge.errors import UsageError
from sr_train import run as run_module
from sr_train.recipe import (
    BigPart,
    DataPart,
    ModelPart,
    Recipe,
    RewardPart,
    RolloutPart,
    SftPart,
    load_recipe,
)
from sr_train.run import (
    MetricsLog,
    RunFolder,
    append_line,
    last_checkpoint,
    read_lines,
    read_metrics,
    recipe_text,
    write_whole,
)

RECIPE = Recipe(
    name="tiny",
    model=ModelPart("demo:base"),
    data=DataPart("demo:train"),
    sft=SftPart(
        trainer={"learning_rate": 1e-3, "save_steps": 10, "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
    ),
)


def opened(
    folder: Path, recipe: Recipe = RECIPE, *, fresh: bool = False, rank: int = 0, world: int = 1
) -> RunFolder:
    environ = {"RANK": str(rank), "WORLD_SIZE": str(world)}
    return RunFolder.open(folder, recipe, ["sr-edge", "train", "sft"], fresh=fresh, environ=environ)


def test_claim_writes_all_that_is_needed_to_run_it_again(tmp_path: Path) -> None:
    opened(tmp_path / "deep" / "run")
    assert load_recipe(str(tmp_path / "deep/run/recipe.toml")) == RECIPE
    record = opened(tmp_path / "deep" / "run").record()
    assert record["seed"] == 0
    assert [call["command"] for call in record["calls"]] == [["sr-edge", "train", "sft"]] * 2
    assert {"torch", "trl", "transformers", "sr-edge"} <= set(record["calls"][0]["versions"])
    assert record["calls"][0]["platform"]["cpus"] == os.cpu_count()


def test_recipe_of_every_kind_of_value_survives_its_file(tmp_path: Path) -> None:
    odd = replace(RECIPE, about='a "quoted"\nline \\ and ünï', big=BigPart(remote="http://localhost:1/v1"))
    (tmp_path / "recipe.toml").write_text(recipe_text(odd), "utf-8")
    assert load_recipe(str(tmp_path / "recipe.toml")) == odd


def test_setting_may_change_until_a_stage_that_uses_it_has_begun(tmp_path: Path) -> None:
    with opened(tmp_path).stage("sft") as stage:
        stage.finish({})
    dearer = replace(RECIPE, reward=RewardPart(lam=0.8))
    with opened(tmp_path, dearer).stage("grpo"):
        pass
    assert RunFolder.read(tmp_path).recipe.reward.lam == 0.8
    with pytest.raises(UsageError, match=r"reward\.lam was 0\.8, is 0\.5.*--fresh"):
        opened(tmp_path, RECIPE)
    for stage in ("annotate", "sft"):  # come before it
        RunFolder.open(tmp_path, RECIPE, ["again"], stage=stage, environ={})
    assert RunFolder.read(tmp_path).recipe == RECIPE
    RunFolder.open(tmp_path, dearer, ["back"], stage="grpo", environ={})
    longer = replace(RECIPE, rollout=RolloutPart(max_tokens=9))
    run = RunFolder.open(tmp_path, longer, ["sr-edge", "train", "evaluate"], stage="evaluate", environ={})
    assert run.recipe == longer
    with pytest.raises(UsageError, match="of the recipe tiny, not of other"):
        RunFolder.open(tmp_path, replace(RECIPE, name="other"), ["evaluate"], stage="evaluate", environ={})
    assert RunFolder.read(tmp_path).recipe == dearer


def test_other_seed_is_refused_and_fresh_starts_again(tmp_path: Path) -> None:
    with opened(tmp_path).stage("sft") as stage:
        stage.finish({})
    (tmp_path / "notes.txt").write_text("mine")
    other = replace(RECIPE, seed=1)
    with pytest.raises(UsageError, match="seed was 0, is 1"):
        opened(tmp_path, other)
    assert opened(tmp_path, RECIPE).stage("sft").is_done
    run = opened(tmp_path, other, fresh=True)
    assert not run.stage("sft").is_done
    assert run.record().get("stages") is None
    assert len(run.record()["calls"]) == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_setting_that_no_result_depends_on_may_change(tmp_path: Path) -> None:
    with opened(tmp_path).stage("sft"):
        pass
    opened(
        tmp_path, replace(RECIPE, sft=replace(RECIPE.sft, trainer={**RECIPE.sft.trainer, "save_steps": 5}))
    )
    with pytest.raises(UsageError, match=r"sft\.trainer\.learning_rate"):
        opened(tmp_path, replace(RECIPE, sft=SftPart(trainer={**RECIPE.sft.trainer, "learning_rate": 1.0})))


def test_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    for fresh in (False, True):
        with pytest.raises(UsageError, match=r"sft but no run\.json"):
            opened(tmp_path, fresh=fresh)
    assert (tmp_path / "sft").is_dir()
    with pytest.raises(UsageError, match="holds no run"):
        RunFolder.read(tmp_path)


def test_record_tells_how_a_stage_went(tmp_path: Path) -> None:
    run = opened(tmp_path)
    with pytest.raises(ZeroDivisionError), run.stage("sft"):
        raise ZeroDivisionError("no reason")
    entry = run.record()["stages"]["sft"]
    assert (entry["status"], entry["error"]) == ("failed", "ZeroDivisionError: no reason")
    with pytest.raises(UsageError, match="not done"):
        run.stage("sft").result()
    with run.stage("sft") as stage:
        assert run.record()["stages"]["sft"]["status"] == "running"
        stage.finish({"loss": 0.5})
    entry = run.record()["stages"]["sft"]
    assert entry["status"] == "done"
    assert len(entry["resumed"]) == 1
    assert run.stage("sft").result() == {"loss": 0.5}
    assert load_recipe(str(run.stage("sft").path / "recipe.toml")) == RECIPE
    run.stage("sft").clear()
    assert run.record()["stages"] == {}
    assert [path.name for path in run.stage("sft").path.iterdir()] == [".run.lock"]
    with run.stage("evaluate"):
        pass
    assert run.record()["stages"]["evaluate"]["status"] == "ended"


def test_stage_that_is_begun_again_takes_other_settings_and_leaves_no_figures(tmp_path: Path) -> None:
    for name in ("annotate", "sft"):
        with opened(tmp_path).stage(name) as stage:
            stage.metrics().write(300, {"loss": 0.1})
            stage.finish({})
    other = replace(RECIPE, sft=SftPart(span_loss="mask"))
    seed = replace(RECIPE, seed=7)

    def again(recipe: Recipe, *, fresh: bool, world: int = 1) -> RunFolder:
        environ = {"RANK": "0", "WORLD_SIZE": str(world)}
        return RunFolder.open(tmp_path, recipe, ["again"], stage="sft", fresh=fresh, environ=environ)

    with pytest.raises(UsageError, match=r"sft\.span_loss.*begin it again with --fresh"):
        again(other, fresh=False)
    with pytest.raises(UsageError, match=r"seed was 0, is 7.*stage annotate.*`sr-edge train annotate` and"):
        again(seed, fresh=True)  # annotations are not made again by teaching again
    with pytest.raises(UsageError, match="in several processes"):
        again(other, fresh=True, world=2)
    run = again(other, fresh=True)
    assert run.stage("sft").is_done  # it is removed once the settings are known to be good
    run.stage("sft").clear()
    assert run.stage("annotate").is_done
    assert [line["stage"] for line in read_metrics(run.metrics_path)] == ["annotate"]


def test_stage_that_somebody_is_at_work_in_is_not_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "LOCK_SECONDS", 0.05)
    with opened(tmp_path).stage("sft") as stage:
        stage.model.mkdir()
        with pytest.raises(UsageError, match="another sr-edge is at work"):
            RunFolder.read(tmp_path).stage("sft").clear()
        assert stage.model.is_dir()


def test_stage_is_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "LOCK_SECONDS", 0.05)
    run = opened(tmp_path)
    with run.stage("sft"):
        with pytest.raises(UsageError, match="another sr-edge is at work"):
            RunFolder.read(tmp_path).stage("sft").__enter__()
        with pytest.raises(UsageError, match="another sr-edge is at work"):
            opened(tmp_path, fresh=True)
        with RunFolder.read(tmp_path).stage("evaluate"):  # of what is there so far
            pass
    with RunFolder.read(tmp_path).stage("sft"):
        pass


def test_other_processes_of_a_launch_read_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "JOIN_SECONDS", 0.1)
    with pytest.raises(UsageError, match="has not claimed it"):
        opened(tmp_path, rank=1, world=2)
    with pytest.raises(UsageError, match="in several processes"):
        opened(tmp_path, fresh=True, world=2)
    opened(tmp_path, world=2)
    before = sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
    longer = replace(RECIPE, rollout=RolloutPart(max_tokens=9))
    with pytest.raises(UsageError, match="has not claimed it"):
        opened(tmp_path, longer, rank=1, world=2)
    RunFolder.open(tmp_path, longer, [], stage="evaluate", environ={"RANK": "1", "WORLD_SIZE": "2"})
    second = opened(tmp_path, rank=1, world=2)
    with second.stage("sft") as stage:
        stage.metrics().write(1, {"loss": 1.0})
        stage.finish({})
        stage.clear()
    assert sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()) == before


def test_metrics_survive_a_torn_line_and_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    log = MetricsLog(path, "grpo")
    log.write(1, {"loss": 3.0})
    log.write(2, {"loss": float("nan")})
    with open(path, "ab") as file:
        file.write(b'{"stage": "grpo", "step": 3, "lo')
    log.write(2, {"loss": 2.0})
    log.write(2, {"eval_loss": 4.0})
    MetricsLog(path, "sft").write(9, {"loss": 1.0})
    shown = [
        (line["stage"], line["step"], line.get("loss"), line.get("eval_loss")) for line in read_metrics(path)
    ]
    assert shown == [
        ("sft", 9, 1.0, None),
        ("grpo", 1, 3.0, None),
        ("grpo", 2, 2.0, None),
        ("grpo", 2, None, 4.0),
    ]
    assert [line["step"] for line in read_metrics(path, "sft")] == [9]


def test_last_checkpoint_is_one_that_was_written_to_its_end(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for number, text in ((9, "{}"), (10, "{}"), (100, '{"global_st'), (101, None)):
        (tmp_path / f"checkpoint-{number}").mkdir()
        if text is not None:
            (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text(text)
    (tmp_path / "checkpoint-old").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_whole_file_is_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_whole(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"run\.json cannot be written: No space left"):
        write_whole(path, "new")
    assert [each.name for each in tmp_path.iterdir()] == ["run.json"]
    assert path.read_text() == "old"


def test_killed_writer_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    """It claims, begins, logs and finishes without end; whatever it was at, all can be read."""
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from sr_train.recipe import DataPart, ModelPart, Recipe
        from sr_train.run import RunFolder
        recipe = Recipe(name="tiny", model=ModelPart("demo:base"), data=DataPart("demo:train"))
        step = 0
        while True:
            run = RunFolder.open(Path(sys.argv[1]), recipe, ["kill"])
            with run.stage("grpo") as stage:
                for _ in range(20):
                    step += 1
                    stage.metrics().write(step, {"text": "x" * 5000})
                    print(step, flush=True)
                stage.finish({"step": step})
            run.stage("grpo").clear()
    """)
    for kill_after in (3, 20, 25):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if int(line) >= kill_after:
                    break
        process.send_signal(signal.SIGKILL)
        process.wait()
        recipe = Recipe(name="tiny", model=ModelPart("demo:base"), data=DataPart("demo:train"))
        run = opened(tmp_path, recipe)
        with run.stage("grpo") as stage:  # nobody holds it any more
            stage.metrics().write(kill_after, {"text": "after"})
        lines = list(read_lines(run.metrics_path))
        assert lines[-1]["text"] == "after"
        assert json.loads((tmp_path / "run.json").read_text())["calls"]


def test_line_is_appended_after_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2')
    append_line(path, '{"a": 3}')
    assert [line["a"] for line in read_lines(path)] == [1, 3]
