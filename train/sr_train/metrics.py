"""Where the figures of a trainer go: the run's metrics.jsonl always, and what `[log]` names besides."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sr_edge.errors import UsageError
from sr_train.recipe import LogPart, Recipe
from sr_train.run import MetricsLog, Stage


class MetricsCallback(TrainerCallback):
    """Writes every log of a transformers trainer to the run's metrics.jsonl, from the first process only."""

    def __init__(self, log: MetricsLog) -> None:
        self._log = log

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            self._log.write(
                state.global_step,
                {
                    "device": device_name(args.device),
                    "processes": args.world_size,
                    "max_steps": state.max_steps,
                },
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            self._log.write(state.global_step, {name: _plain(value) for name, value in logs.items()})


def mean_loss(state: TrainerState) -> float | None:
    """Of all that was logged, before a resumption too: the trainer's own mean counts from there on only."""
    losses = [log["loss"] for log in state.log_history if "loss" in log]
    return sum(losses) / len(losses) if losses else None


def logging_arguments(
    recipe: Recipe, stage: Stage, environ: MutableMapping[str, str] = os.environ
) -> dict[str, Any]:
    """For a trainer's config: `report_to`, and how the run is called there.

    wandb takes its project from the environment alone: it is set there, unless it is set already.

    Raises:
        UsageError: the recipe names a program that is not installed.
    """
    check_loggers(recipe.log)
    if "wandb" in recipe.log.to:
        environ.setdefault("WANDB_PROJECT", recipe.log.project)
    return {
        "report_to": list(recipe.log.to) or "none",
        "run_name": f"{recipe.name}-{stage}-seed{recipe.seed}",
        "project": recipe.log.project,
    }


def check_loggers(log: LogPart) -> None:
    """Raises: UsageError: one that is named is not installed."""
    for name in log.to:
        if find_spec(name) is None:
            raise UsageError(
                f"log.to names {name}, which is not installed: pip install {name}, or leave it out with "
                f"--set 'log.to=[{', '.join(repr(other) for other in log.to if other != name)}]'; "
                "metrics.jsonl is written in any case"
            )


def device_name(device: torch.device) -> str:
    """As its maker calls it, with its memory; `cpu` for the CPU."""
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _plain(value: Any) -> Any:
    """A number out of a tensor or numpy's; what JSON cannot hold as its text."""
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "size", None) is not None:
        try:
            return item()
        except (RuntimeError, ValueError):  # of more than one element
            return str(value)
    return str(value)
