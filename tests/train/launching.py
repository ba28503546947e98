"""Training runs of the built-in pair in processes of their own, for tests; what it does is said in `main`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]

Stage = Literal["sft", "grpo"]
Blow = Literal["never", "mid-rollout", "mid-save"]


def recipe(folder: Path, num_prompts: int, max_steps: int) -> Any:
    """What one process has of a step, in a folder for all; whatever is carried along from step to step is in.

    The built-in pair, for it asks and is sometimes right, so that there is something to learn from.
    """
    from sr_train.demo.checkpoint import demo_checkpoint
    from sr_train.recipe import (
        BigPart,
        DataPart,
        GrpoPart,
        LogPart,
        ModelPart,
        Recipe,
        RewardPart,
        RolloutPart,
        SftPart,
    )

    small, big = (demo_checkpoint(name, folder / name) for name in ("small", "big"))
    trainer = {
        "max_steps": max_steps,
        "learning_rate": 3e-4,
        "lr_scheduler_type": "linear",
        "save_steps": 2,
    }
    return Recipe(
        name="tiny",
        seed=5,
        model=ModelPart(str(small), dtype="float32"),
        data=DataPart("demo:train"),
        sft=SftPart(
            "close", 0.1, {**trainer, "per_device_train_batch_size": num_prompts, "logging_steps": 1}
        ),
        rollout=RolloutPart(
            max_tokens=160, max_span_tokens=40, soft_span_tokens=30, max_spans=4, remote_dropout=0.25
        ),
        big=BigPart(model=str(big), dtype="float32", temperature=1.0),
        reward=RewardPart(kind="budget", target_share=0.1, unit="share"),
        grpo=GrpoPart(num_prompts=num_prompts, num_generations=4, trainer=trainer),
        log=LogPart(to=()),
    )


def train(stages: Sequence[Stage], folder: Path, run_path: Path, num_prompts: int, max_steps: int) -> None:
    """Train, or go on, in this process."""
    import torch

    from sr_train.problems import read_problems
    from sr_train.run import RunFolder

    torch.set_num_threads(1)
    made = recipe(folder, num_prompts, max_steps)
    run = RunFolder.open(run_path, made, ["test"])
    problems = read_problems("demo:train", limit=40)
    if "sft" in stages:
        from sr_train.sft.rows import AnnotatedRow
        from sr_train.sft.training import train_sft

        rows = [AnnotatedRow(each.id, each.question, each.answer, _marked(each.trace)) for each in problems]
        train_sft(made, rows, run)
    if "grpo" in stages:
        from sr_train.grpo.training import train_grpo

        train_grpo(made, problems, made.model.base, run)


def _marked(trace: str | None) -> str:
    """The second line as the large model's."""
    assert trace is not None
    lines = trace.split("\n")
    lines[1] = f"<bigmodel>{lines[1]}</bigmodel>"
    return "\n".join(lines)


def strike(blow: Blow, at: int) -> None:
    """See to it that this process is killed, with no chance to clean up.

    Args:
        at: `mid-rollout`: in this batch of rollouts, counted from 1, when the first is written. `mid-save`:
            at this step, when the weights are written and the trainer's state is in the making.
    """
    from transformers import TrainerState

    from sr_train.rollout.engine import BatchedEngine

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if blow == "mid-rollout":
        run = BatchedEngine.run
        calls = []

        def run_and_die(self: Any, requests: Any, done: Any = lambda index: None) -> Any:
            calls.append(1)
            return run(self, requests, (lambda index: die()) if len(calls) == at else done)

        BatchedEngine.run = run_and_die  # type: ignore[method-assign]
    elif blow == "mid-save":
        save = TrainerState.save_to_json

        def save_or_die(self: TrainerState, json_path: str) -> None:
            if self.global_step == at:
                Path(json_path).write_text('{"global_st')
                die()
            save(self, json_path)

        TrainerState.save_to_json = save_or_die  # type: ignore[method-assign]


def launch(
    stages: Sequence[Stage],
    folder: Path,
    run_path: Path,
    num_prompts: int,
    max_steps: int,
    *,
    num_processes: int = 1,
    blow: Blow = "never",
    at: int = 0,
) -> subprocess.CompletedProcess[str]:
    """`train` in new processes."""
    command = [sys.executable]
    if num_processes > 1:
        config = ROOT / "train/launch/cpu2.yaml"
        command += ["-m", "accelerate.commands.launch", "--config_file", str(config)]
        command += ["--num_processes", str(num_processes), "--main_process_port", "0"]
    command += [
        __file__,
        ",".join(stages),
        str(folder),
        str(run_path),
        str(num_prompts),
        str(max_steps),
        blow,
        str(at),
    ]
    paths = [ROOT / "edge", ROOT / "train", ROOT / "convert", ROOT]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600, check=False)


def steps(run_path: Path, stage: Stage) -> dict[int, dict[str, Any]]:
    """By number, what a run's metrics say of each step; all but what clocks say."""
    from sr_train.run import read_metrics

    clocks = {"at", "step_time", "offload/offload_seconds_measured"}
    lines = [line for line in read_metrics(run_path / "metrics.jsonl", stage) if "loss" in line]
    return {
        line["step"]: {name: value for name, value in line.items() if name not in clocks} for line in lines
    }


def main() -> None:
    stages, folder, run_path, num_prompts, max_steps, blow, at = sys.argv[1:]
    strike(blow, int(at))  # type: ignore[arg-type]
    train(stages.split(","), Path(folder), Path(run_path), int(num_prompts), int(max_steps))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
