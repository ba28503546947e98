"""One task of the study, in a process of its own: a model is made, then measured on held-out problems."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sr_train.checkpoint import load_for_inference
from sr_train.demo.checkpoint import demo_checkpoint
from sr_train.demo.marking import by_failures, by_opinion, share_wrong, training_problems
from sr_train.demo.study.plan import BIASES, JUDGE_ERROR, Size, Task
from sr_train.demo.tokenizer import DemoTokenizer
from sr_train.evaluate.arms import Arm, arms_of
from sr_train.evaluate.figures import Figures
from sr_train.evaluate.running import Plan, evaluate
from sr_train.evaluate.sweeps import calibrate_bias
from sr_train.grpo.engine import batched_engine
from sr_train.grpo.training import train_grpo
from sr_train.latency import LatencyModel
from sr_train.problems import read_problems
from sr_train.recipe import Recipe, load_recipe
from sr_train.rollout.engine import BatchedEngine
from sr_train.run import RunFolder, write_whole
from sr_train.sft.rows import AnnotatedRow
from sr_train.sft.training import train_sft

EVALUATED_SEED = 1_000
"""Of the held-out problems: the same for every task, so that models are compared on the same ones."""

NUM_CALIBRATED = 256
FIGURES = "figures.json"


def run_task(task: Task, size: Size, out: Path) -> None:
    """Make and measure one model; what is there already is not made again."""
    torch.set_num_threads(1)  # the other cores are other tasks'
    folder = out / task.folder
    if (folder / FIGURES).is_file():
        return
    if task.learning is None:
        recipe = load_recipe("demo", _settings(task, size))
        run = RunFolder.open(folder, recipe, ("sr-edge", "train", "study", "--only", task.name))
        rows, facts = _rows(task, size, out)
        model = train_sft(recipe, rows, run)
    else:
        recipe = load_recipe("demo", [*_settings(task, size), *task.learning.settings])
        run = RunFolder.open(folder, recipe, ("sr-edge", "train", "study", "--only", task.name))
        problems = read_problems(recipe.data.source, limit=recipe.data.limit, seed=recipe.seed)
        start = out / Task(task.seed, task.teacher).folder / "sft" / "model"
        model, facts = train_grpo(recipe, problems, start, run), {}
    measured = _measured(task, size, recipe, run, model)
    write_whole(folder / FIGURES, json.dumps({**measured, **facts}, indent=2) + "\n")


def _settings(task: Task, size: Size) -> list[str]:
    return [
        f"seed={task.seed}",
        "log.to=[]",
        f"sft.trainer.max_steps={size.sft_steps}",
        f"grpo.trainer.max_steps={size.grpo_steps}",
    ]


def _rows(task: Task, size: Size, out: Path) -> tuple[list[AnnotatedRow], dict[str, Any]]:
    """The marked solutions, and what is to be told of the marks."""
    folder = demo_checkpoint("base", out / "base")
    loaded = load_for_inference(str(folder), "float32", out)

    def logits(ids: Tensor) -> Tensor:
        found: Tensor = loaded.model(input_ids=ids).logits
        return found

    tokenizer = DemoTokenizer.load(folder / "tokenizer.json")
    marked = measured = by_failures(logits, tokenizer, training_problems(task.seed, size.num_rows))
    if task.teacher == "opinion":
        marked = by_opinion(measured, JUDGE_ERROR, task.seed)
    rows = [
        AnnotatedRow(str(n), each.problem.question, each.problem.answer, each.text, each.unlearned)
        for n, each in enumerate(marked)
    ]
    return rows, {"wrong_marks": share_wrong(marked, measured)}


def _measured(task: Task, size: Size, recipe: Recipe, run: RunFolder, model: Path) -> dict[str, Any]:
    """All greedy, through the engine that training uses, with the real large model."""
    real = load_recipe("demo", _settings(task, size))  # whoever filled the spans in training
    loaded = load_for_inference(str(model), real.model.dtype, run.path / "cache")
    engine = batched_engine(real, loaded, run.path, None)
    is_taught = task.learning is None
    biases = BIASES if is_taught and task.teacher == "opinion" else ()
    figures = _evaluated(task, size, real, run, engine, ("small", "split", "random"), biases)
    found: dict[str, Any] = {"figures": asdict(figures)}
    if is_taught and task.teacher == "opinion":
        found["figures"]["arms"] += asdict(
            _evaluated(task, size, real, run, engine, ("big",), (), called="big")
        )["arms"]
    if task.learning is not None and task.learning.target_share is not None:
        problems = read_problems(recipe.data.source, limit=NUM_CALIBRATED, seed=recipe.seed)
        bias = calibrate_bias(engine, problems, task.learning.target_share, temperature=0.0).setting
        calibrated = _evaluated(task, size, real, run, engine, (), (bias,), called="calibrated")
        found |= {"bias": bias, "calibrated": asdict(calibrated)}
    return found


def _evaluated(
    task: Task,
    size: Size,
    recipe: Recipe,
    run: RunFolder,
    engine: BatchedEngine,
    names: tuple[str, ...],
    biases: tuple[float, ...],
    *,
    called: str = "held-out",
) -> Figures:
    arms = [Arm("split", biases[0])] if called == "calibrated" else arms_of(names, biases)
    return evaluate(
        engine,
        read_problems("demo:eval", limit=size.num_evaluated, seed=EVALUATED_SEED),
        arms,
        Plan(temperature=0.0, seed=task.seed),
        LatencyModel.of(recipe.latency),
        run.path / f"{called}.jsonl",
        about={"task": task.name, "seed": task.seed},
    )
