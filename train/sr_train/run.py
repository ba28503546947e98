"""A run's folder: whose recipe it holds, which stages are done, and all that is needed to make it again.

    RUN/recipe.toml run.json metrics.jsonl      the recipe in full, who ran what with which versions, figures
    RUN/annotate, sft, grpo, evaluate, export   a folder for each stage; done.json in it: it is complete

What stands in a stage's folder is the stage's own matter. Nothing heavy is imported here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import tomlkit

from sr_edge.errors import UsageError
from sr_edge.files import BusyError, locked
from sr_train.recipe import Recipe, load_recipe, recipe_table

Stage = Literal["annotate", "sft", "grpo", "evaluate", "export"]
STAGES: tuple[Stage, ...] = get_args(Stage)

RECIPE = "recipe.toml"
RECORD = "run.json"
METRICS = "metrics.jsonl"
DONE = "done.json"
_LOCK = ".run.lock"  # as `_locked` makes it

JOIN_SECONDS = 60.0
"""How long the other processes of a launch wait for the first one to claim the folder."""

LOCK_SECONDS = 2.0
"""Longer than run.json is held by anybody."""

_PACKAGES = (
    "sr-edge", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy",
    "math-verify", "rapidfuzz", "llama-cpp-python", "gguf", "vllm", "bitsandbytes", "deepspeed",
)  # fmt: skip

_USED: Mapping[Stage, tuple[str, ...]] = {
    "annotate": ("seed", "model", "data", "annotate"),
    "sft": ("seed", "model", "adapter", "data", "handback", "sft"),
    "grpo": (
        "seed", "model", "adapter", "data", "handback", "rollout", "big", "latency", "reward", "grpo",
    ),
    "evaluate": (),
    "export": (),
}  # fmt: skip
"""The parts of a recipe that a stage's result depends on."""

_FREE = frozenset({
    "annotate.concurrency", "annotate.requests_per_minute",
    "big.concurrency", "big.attempts", "big.timeout", "big.max_dollars",
    "sft.trainer.logging_steps", "sft.trainer.save_steps", "sft.trainer.save_total_limit",
    "grpo.trainer.logging_steps", "grpo.trainer.save_steps", "grpo.trainer.save_total_limit",
})  # fmt: skip
"""Settings within them that no result depends on."""


class RunFolder:
    """One run, one folder. Changes are written at once, so that whatever ends the process leaves it whole."""

    def __init__(self, path: Path, recipe: Recipe, *, is_main: bool) -> None:
        self.path = path
        self.recipe = recipe
        self.is_main = is_main
        """Whether this process writes: the first of a launch does, the others read."""

    @classmethod
    def open(
        cls,
        folder: Path,
        recipe: Recipe,
        command: Sequence[str],
        *,
        stage: Stage | None = None,
        fresh: bool = False,
        environ: Mapping[str, str] = os.environ,
    ) -> Self:
        """Claim the folder for this recipe, or go on in one that holds it.

        A setting may change from one call to the next as long as no stage has begun that uses it and that
        this call goes on with or builds upon.

        Args:
            command: the command line, for the record.
            stage: what this call is for; None for all of them. Evaluation and export leave recipe.toml as
                the training wrote it.
            fresh: with a stage: it will be begun again, so what it began with does not count. Without one:
                remove the run that is there, and start again.
        Raises:
            UsageError: it holds a run of another recipe or seed, or files of somebody else.
        """
        is_main = environ.get("RANK", "0") == "0"
        if fresh and environ.get("WORLD_SIZE", "1") != "1":
            raise UsageError(
                f"--fresh in several processes would remove files in {folder} under the others: "
                "remove them before the launch, or name another folder"
            )
        run = cls(folder, recipe, is_main=is_main)
        if not is_main:
            run._join(needs_recipe=stage is None or bool(_USED[stage]))
            return run
        make_folder(folder)
        with _locked(folder):
            if fresh and stage is None:
                run._clear()
            run._claim(command, stage, fresh=fresh)
        return run

    @classmethod
    def read(
        cls, folder: Path, settings: Sequence[str] = (), environ: Mapping[str, str] = os.environ
    ) -> Self:
        """The run that is there, with the recipe that it holds.

        Args:
            settings: see `load_recipe`; for this call only.

        Raises:
            UsageError: there is none.
        """
        if not (folder / RECORD).is_file():
            raise UsageError(f"{folder} holds no run: {RECORD} is missing; name the folder of a training run")
        recipe = load_recipe(str(folder / RECIPE), settings)
        return cls(folder, recipe, is_main=environ.get("RANK", "0") == "0")

    def stage(self, name: Stage) -> StageFolder:
        """A look at it; `with run.stage(name) as stage:` begins it, or goes on with it."""
        return StageFolder(self, name)

    @property
    def metrics_path(self) -> Path:
        return self.path / METRICS

    def record(self) -> dict[str, Any]:
        """What run.json says."""
        record: dict[str, Any] = _read_json(self.path / RECORD)
        return record

    # --- claiming ----------------------------------------------------------------------------------------

    def _claim(self, command: Sequence[str], stage: Stage | None, *, fresh: bool) -> None:
        path = self.path / RECORD
        if path.exists():
            record = self.record()
            self._check_same(record, stage, fresh=fresh)
        else:
            foreign = sorted(name for name in _names() if (self.path / name).exists())
            if foreign:
                raise UsageError(
                    f"{self.path} holds {', '.join(foreign)} but no {RECORD}: it is no run of ours that can "
                    "go on; choose another folder, or move these away"
                )
            record = {"v": 1, "name": self.recipe.name, "seed": self.recipe.seed, "started": now()}
        record.setdefault("calls", []).append({"at": now(), "command": list(command), **surroundings()})
        if stage is None or _USED[stage] or not path.exists():
            write_whole(self.path / RECIPE, recipe_text(self.recipe))
        self._write(record)

    def _check_same(self, record: Mapping[str, Any], stage: Stage | None, *, fresh: bool) -> None:
        """Raises: UsageError: a stage that this call builds upon was begun with another setting."""
        if record.get("name") != self.recipe.name:
            raise UsageError(
                f"{self.path} holds a run of the recipe {record.get('name')}, not of {self.recipe.name}: "
                "choose another folder, or remove this one"
            )
        wanted = _flat(recipe_table(self.recipe))
        for begun in _upon(stage):
            path = self.path / begun / RECIPE
            if not path.is_file() or (fresh and begun == stage):
                continue
            held = _flat(recipe_table(load_recipe(str(path))))
            changed = [
                key
                for key in sorted({*held, *wanted})
                if held.get(key) != wanted.get(key) and key.split(".")[0] in _USED[begun] and key not in _FREE
            ]
            if not changed:
                continue
            shown = "; ".join(
                f"{key} was {_shown(held, key)}, is {_shown(wanted, key)}" for key in changed[:4]
            )
            more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
            again = "--fresh" if stage in (None, begun) else f"`sr-edge train {begun}` and --fresh"
            raise UsageError(
                f"{self.path} holds a run of another recipe or seed ({shown}{more}), and the stage {begun} "
                f"has begun with it: choose another folder, set it back, or begin it again with {again}"
            )

    def _join(self, *, needs_recipe: bool) -> None:
        """Wait until the first process of this launch has claimed the folder for the same recipe."""
        deadline = time.monotonic() + JOIN_SECONDS
        wanted = recipe_text(self.recipe)
        while True:
            with suppress(OSError):
                is_same = (self.path / RECIPE).read_text("utf-8") == wanted or not needs_recipe
                if is_same and (self.path / RECORD).exists():
                    return
            if time.monotonic() > deadline:
                raise UsageError(
                    f"{self.path}: the first process of the launch has not claimed it in {JOIN_SECONDS:g} s; "
                    "the folder must be one that all machines share"
                )
            time.sleep(0.05)

    def _clear(self) -> None:
        """Remove what a run leaves, and nothing else that the folder may hold."""
        if not (self.path / RECORD).exists():
            return
        with ExitStack() as held:
            for stage in STAGES:
                if (self.path / stage).is_dir():
                    held.enter_context(_locked(self.path / stage))  # nobody may be at work in it
        for name in _names():
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _write(self, record: Mapping[str, Any]) -> None:
        write_whole(self.path / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    def _note(self, stage: Stage, entry: Mapping[str, Any]) -> None:
        if not self.is_main:
            return
        with _locked(self.path):
            record = self.record()
            stages = record.setdefault("stages", {})
            stages[stage] = {**stages.get(stage, {}), **entry}
            self._write(record)

    def _forget(self, stage: Stage) -> None:
        with _locked(self.path):
            record = self.record()
            record.get("stages", {}).pop(stage, None)
            self._write(record)
            if self.metrics_path.exists():
                kept = (line for line in read_lines(self.metrics_path) if line.get("stage") != stage)
                lines = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in kept)
                write_whole(self.metrics_path, lines)


class StageFolder:
    """A stage's part of a run. In a `with` it is this process's alone, and run.json tells when and how."""

    def __init__(self, run: RunFolder, name: Stage) -> None:
        self.run = run
        self.name = name
        self.path = run.path / name
        self._held = ExitStack()

    @property
    def is_done(self) -> bool:
        return (self.path / DONE).is_file()

    @property
    def model(self) -> Path:
        """Where a stage that trains leaves its model."""
        return self.path / "model"

    def result(self) -> dict[str, Any]:
        """What `finish` was given.

        Raises:
            UsageError: the stage is not done.
        """
        if not self.is_done:
            raise UsageError(
                f"{self.run.path}: the stage {self.name} is not done; run `sr-edge train {self.name}`"
            )
        result: dict[str, Any] = _read_json(self.path / DONE)
        return result

    def finish(self, result: Mapping[str, Any]) -> None:
        """Say that the stage is complete. To be called last, when all of its files are on the disk."""
        if self.run.is_main:
            write_whole(self.path / DONE, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
            self.run._note(self.name, {"status": "done", "ended": now()})

    def clear(self) -> None:
        """Remove what is in it and its lines of the metrics, to begin again; but for the lock, which stays.

        Raises:
            UsageError: somebody is at work in it.
        """
        if not self.run.is_main:
            return
        if self.path.exists():
            with _locked(self.path):
                for path in self.path.iterdir():
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    elif path.name != _LOCK:
                        path.unlink()
        self.run._forget(self.name)

    def metrics(self) -> MetricsLog:
        return MetricsLog(self.run.metrics_path, self.name, is_main=self.run.is_main)

    def __enter__(self) -> Self:
        if not self.run.is_main:
            return self
        make_folder(self.path)
        self._held.enter_context(_locked(self.path))
        if not self.is_done:
            text = recipe_text(self.run.recipe)
            write_whole(self.path / RECIPE, text)
            begun = self.run.record().get("stages", {}).get(self.name, {})
            again = {"resumed": [*begun.get("resumed", []), now()]} if begun else {"started": now()}
            digest = hashlib.sha256(text.encode()).hexdigest()
            self.run._note(self.name, {**again, "status": "running", "recipe_sha256": digest})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.is_done or not self.run.is_main:
                return
            if error is None:  # a stage without an end of its own, as evaluations are
                self.run._note(self.name, {"status": "ended", "ended": now()})
            else:
                status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                why = f"{type(error).__name__}: {error}"[:1000]
                self.run._note(self.name, {"status": status, "ended": now(), "error": why})
        finally:
            self._held.close()


# --- metrics ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MetricsLog:
    """Appends to a run's metrics.jsonl, a JSON object a line: when, which stage, which step, the figures."""

    path: Path
    stage: Stage
    is_main: bool = True

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        if not self.is_main:
            return
        line = {"at": now(), "stage": self.stage, "step": step, **{k: _finite(v) for k, v in figures.items()}}
        append_line(self.path, json.dumps(line, ensure_ascii=False))


def read_metrics(path: Path, stage: Stage | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in order of step, without what a resumed run wrote twice: the later counts.

    Args:
        stage: of this one only.
    """
    kept: dict[tuple[str, int, tuple[str, ...]], dict[str, Any]] = {}
    for line in read_lines(path):
        if stage is None or line["stage"] == stage:
            kept[line["stage"], line["step"], tuple(sorted(line))] = line
    return sorted(kept.values(), key=lambda line: (STAGES.index(line["stage"]), line["step"]))


# --- files -----------------------------------------------------------------------------------------------


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by `text` at once: whatever ends the process, the old or the new file is there, whole.

    Raises:
        UsageError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            with open(temporary, "x", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from None


def append_line(path: Path, line: str) -> None:
    """One line more; a line that a killed process left half is ended first.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        with open(path, "ab+") as file:
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = f"\n{line}"
            file.write(f"{line}\n".encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines; none if there is no file. Half a line is passed over."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    for line in lines:
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror or error}") from None


def last_checkpoint(folder: Path) -> Path | None:
    """The newest of a trainer's checkpoint-N that was written to its end.

    The trainer writes trainer_state.json after weights, optimiser and random states.
    """
    numbered: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdecimal():
            numbered.append((int(number), path))
    for _, path in sorted(numbered, reverse=True):
        with suppress(OSError, ValueError):
            json.loads((path / "trainer_state.json").read_text("utf-8"))
            return path
    return None


def recipe_text(recipe: Recipe) -> str:
    """As TOML that `load_recipe` reads back."""
    return f"# Every setting of this run, spelled out.\n{tomlkit.dumps(recipe_table(recipe))}"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}): start again with --fresh") from None


def _locked(folder: Path) -> ExitStack:
    """Keep other processes out. Raises: UsageError: one is in."""
    held = ExitStack()
    try:
        held.enter_context(locked(folder / "run", timeout=LOCK_SECONDS))
    except BusyError:
        raise UsageError(
            f"{folder}: another sr-edge is at work in it; wait for that one, or choose another folder"
        ) from None
    return held


# --- the record ------------------------------------------------------------------------------------------


def surroundings() -> dict[str, Any]:
    """What a result may depend on besides the recipe: versions, the machine, the commit of a checkout."""
    found: dict[str, Any] = {
        "versions": versions(),
        "platform": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
        },
    }
    commit = _commit()
    return {**found, "commit": commit} if commit else found


def versions() -> dict[str, str]:
    """Of the packages that training uses, those that are installed."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> str | None:
    """Of the checkout that this package lies in, with `+` if files differ from it; None outside of one."""
    here = Path(__file__).resolve()
    root = here.parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+" if changes else commit


def _upon(stage: Stage | None) -> tuple[Stage, ...]:
    """The stages whose settings a call must keep: its own, and those before it."""
    if stage is None:
        return STAGES
    return STAGES[: STAGES.index(stage) + 1] if _USED[stage] else ()


def _names() -> tuple[str, ...]:
    return (*STAGES, METRICS, RECIPE, RECORD)  # by the last one it is known as ours


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "not set"


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def command_line() -> tuple[str, ...]:
    """Of this process, without where the program lies."""
    return (Path(sys.argv[0]).name, *sys.argv[1:])
