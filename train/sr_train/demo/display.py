"""A progress bar for each stage of each model, on standard error."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sr_train.demo.pipeline import Report

_VERBS = {"pretrain": "learns to reason", "measure": "is measured", "sft": "learns to ask"}


class Display:
    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, report: Report) -> None:
        key = report.role, report.stage
        progress = report.progress
        if key not in self._tasks:
            description = f"the {report.role} model {_VERBS[report.stage]}"
            self._tasks[key] = self._bars.add_task(description, total=progress.num_steps, loss="")
        loss = "" if report.stage == "measure" else f"loss {progress.loss:.4f}"
        self._bars.update(self._tasks[key], completed=progress.step, loss=loss)
