"""`sr-edge train …` as a user types it: what is refused before anything is removed, sent or computed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sr_edge.errors import UsageError
from sr_train.command import app
from sr_train.commands.common import stays_offline
from sr_train.recipe import load_recipe
from sr_train.run import RunFolder


def train(*words: str) -> str:
    """What it prints on stdout. Raises: what the command raises."""
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def run_of(folder: Path, *settings: str) -> RunFolder:
    return RunFolder.open(folder, load_recipe("demo", settings), ["test"], environ={})


@pytest.mark.parametrize(
    ("name", "made"), [("annotate", "dataset.jsonl"), ("sft", "model"), ("grpo", "model")]
)
def test_stage_that_is_done_is_told_and_not_run_again(name, made, tmp_path):
    with run_of(tmp_path).stage(name) as stage:
        stage.finish({})
    assert train(name, "demo", "-o", str(tmp_path)).split() == [str(stage.path / made)]


def test_setting_that_is_refused_removes_nothing(tmp_path):
    with run_of(tmp_path).stage("sft") as stage:
        stage.model.mkdir()
        stage.finish({})
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "1", "question": "q", "answer": "a", "text": "t"}\n')
    for setting in (
        "sft.trainer.lerning_rate=1",
        "sft.trainer.optim=magic",
        "sft.trainer.eval_strategy=steps",
    ):
        with pytest.raises(UsageError, match=r"sft\.trainer"):
            train("sft", "demo", "-o", str(tmp_path), "--rows", str(rows), "--fresh", "--set", setting)
        assert stage.is_done
        assert stage.model.is_dir()


def test_problems_for_validation_are_annotated_too_so_that_there_is_something_to_validate_on(
    tmp_path, monkeypatch
):
    asked = []

    def annotate(recipe, problems, out, **_):
        asked.extend(problems)
        return out / "dataset.jsonl"

    monkeypatch.setattr("sr_train.annotate.pipeline.annotate", annotate)
    train("annotate", "demo", "-o", str(tmp_path), "--set", "data.limit=7", "--set", "data.validation=2")
    assert len(asked) == 7


def test_export_takes_settings_of_its_own_and_no_others(tmp_path):
    run_of(tmp_path)
    with pytest.raises(UsageError, match=r"reward\.lam=0\.1: the model is trained"):
        train("export", str(tmp_path), "--set", "reward.lam=0.1")
    with pytest.raises(UsageError, match=r"no repository to push to: --set hub\.repo"):
        train("export", str(tmp_path), "--push")  # before hours of converting
    with pytest.raises(UsageError, match="no model is trained yet"):
        train("export", str(tmp_path), "--set", "hub.repo=me/mine")


@pytest.mark.parametrize("by_settings", [False, True])
def test_offline_holds_for_the_libraries_too(by_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("SR_EDGE_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert not stays_offline(False)
    assert "HF_HUB_OFFLINE" not in os.environ
    if by_settings:
        (tmp_path / "config.toml").write_text("offline = true\n")
    assert stays_offline(not by_settings)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_nothing_heavy_is_imported_before_a_command_runs():
    script = "import sys, sr_train.command; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "sr_train.commands.stages" in loaded
    assert not loaded & {"torch", "transformers", "huggingface_hub", "datasets"}
