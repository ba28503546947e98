"""What goes along with a trainer: our state in its checkpoints, the bill's limit, a line a step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from sr_train.grpo.rollouts import OffloadRollouts


class OffloadState(TrainerCallback, ExportableState):
    """Puts what the rollouts carry along (price, bill) into trainer_state.json, and ends the run in time."""

    def __init__(self, rollouts: OffloadRollouts, max_dollars: float | None) -> None:
        self._rollouts = rollouts
        self._max_dollars = max_dollars
        self._before = rollouts.dollars
        self.is_spent = False
        """Whether one more step might have cost more than is allowed."""

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"offload": self._rollouts.state()}}

    @classmethod
    def saved(cls, checkpoint: Path) -> Mapping[str, Any] | None:
        """What was put into a checkpoint; None if it is not one of ours."""
        written = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
        kept = written.get("stateful_callbacks", {}).get(cls.__name__)
        if not isinstance(kept, dict):
            return None
        offload: Mapping[str, Any] = kept["attributes"]["offload"]
        return offload

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._before = self._rollouts.dollars

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        spent = self._rollouts.dollars
        last, self._before = spent - self._before, spent
        if self._max_dollars is not None and spent + last > self._max_dollars:
            if state.global_step < state.max_steps:
                self.is_spent = True
            control.should_save = True
            control.should_training_stop = True


class StepReport(TrainerCallback):
    """One line for each log, from the first process."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or logs is None or "offload/accuracy" not in logs:
            return
        shown = (
            f"{name} {float(logs[f'offload/{name}']):.3f}"
            for name in ("accuracy", "share", "spans", "accuracy_alone", "price", "dropped", "failed")
            if f"offload/{name}" in logs
        )
        self._report(f"step {state.global_step}/{state.max_steps}: {', '.join(shown)}")
