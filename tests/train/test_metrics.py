"""Where a trainer's figures go: metrics.jsonl, and the programs that a recipe names."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from sr_edge.errors import UsageError
from sr_train.metrics import MetricsCallback, check_loggers, logging_arguments
from sr_train.recipe import DataPart, LogPart, ModelPart, Recipe
from sr_train.run import MetricsLog, read_metrics

RECIPE = Recipe("tiny", ModelPart("demo:base"), DataPart("demo:train"), seed=3, log=LogPart((), "mine"))


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.slope * x - labels) ** 2).mean()}


class Points(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.tensor([index / 8])
        return {"x": x, "labels": 2 * x}


def test_every_log_of_a_trainer_is_a_line(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "sft"),
        use_cpu=True,
        max_steps=4,
        logging_steps=2,
        per_device_train_batch_size=4,
        save_strategy="no",
        disable_tqdm=True,
        **logging_arguments(RECIPE, "sft", environ={}),
    )
    log = MetricsLog(tmp_path / "metrics.jsonl", "sft")
    Trainer(Line(), arguments, train_dataset=Points(), callbacks=[MetricsCallback(log)]).train()
    lines = read_metrics(tmp_path / "metrics.jsonl", "sft")
    assert (lines[0]["device"], lines[0]["processes"], lines[0]["max_steps"]) == ("cpu", 1, 4)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4]
    assert all(isinstance(line["loss"], float) for line in lines if "loss" in line)
    assert any("train_runtime" in line for line in lines)


def test_figures_of_every_kind_become_json(tmp_path: Path) -> None:
    class State:
        is_world_process_zero = True
        global_step = 5

    log = MetricsLog(tmp_path / "metrics.jsonl", "grpo")
    figures = {
        "a": torch.tensor(0.5),
        "b": torch.tensor([1.0, 2.0]),
        "c": None,
        "d": "text",
        "e": float("inf"),
    }
    callback = MetricsCallback(log)
    callback.on_log(None, State(), None, logs=figures)  # type: ignore[arg-type]
    State.is_world_process_zero = False
    callback.on_log(None, State(), None, logs={"x": 1})  # type: ignore[arg-type]
    (line,) = read_metrics(log.path)
    assert (line["a"], line["c"], line["d"], line["e"]) == (0.5, None, "text", None)
    assert line["b"] == "tensor([1., 2.])"


def test_run_is_named_where_it_is_logged() -> None:
    environ: dict[str, str] = {}
    told = logging_arguments(RECIPE, "grpo", environ)
    assert told == {"report_to": "none", "run_name": "tiny-grpo-seed3", "project": "mine"}
    assert environ == {}
    both = replace(RECIPE, log=LogPart(("tensorboard",)))
    assert logging_arguments(both, "grpo", environ)["report_to"] == ["tensorboard"]


def test_wandb_gets_its_project_unless_the_user_named_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr_train.metrics.find_spec", lambda name: name)
    recipe = replace(RECIPE, log=LogPart(("wandb",), "ours"))
    for environ, project in (({}, "ours"), ({"WANDB_PROJECT": "theirs"}, "theirs")):
        logging_arguments(recipe, "sft", environ)
        assert environ["WANDB_PROJECT"] == project


def test_logger_that_is_not_installed_is_named_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr_train.metrics.find_spec", lambda name: name if name == "tensorboard" else None)
    check_loggers(LogPart(("tensorboard",)))
    with pytest.raises(UsageError, match=r"pip install trackio.*--set 'log\.to=\['tensorboard'\]'"):
        check_loggers(LogPart(("tensorboard", "trackio")))
