"""The demo pair from nothing: the tokenizer, then both models at once, each in a process of its own."""

import hashlib
import json
import multiprocessing
import queue
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from typing import get_args

from sr_edge.errors import EdgeError, UsageError
from sr_train.demo.export import Role
from sr_train.demo.loop import Progress
from sr_train.demo.passport import write_passport
from sr_train.demo.recipe import Recipe, demo_recipe
from sr_train.demo.stages import Stages
from sr_train.demo.tokenizer import DemoTokenizer, train_tokenizer

ROLES: tuple[Role, ...] = get_args(Role)


class TrainingError(EdgeError):
    """A training process ended before its model was written."""


@dataclass(frozen=True)
class Report:
    role: Role
    stage: str
    progress: Progress


def make_demo_pair(
    out: Path, seed: int, steps_scale: float, is_fresh: bool, report: Callable[[Report], None]
) -> None:
    """Leave small.gguf, big.gguf, their passports and base.gguf in out.

    Goes on from whatever a cut-off run left there.

    Raises:
        UsageError: out holds a run of another recipe or seed.
        TrainingError: one of the two processes died; run again to go on.
    """
    recipe = demo_recipe(steps_scale)
    if is_fresh:
        _clear(out)
    _claim(out, recipe, seed)
    tokenizer_path = out / "tokenizer.json"
    if not tokenizer_path.exists():
        train_tokenizer(seed).save(tokenizer_path)
    _train_both(out, seed, steps_scale, report)
    for role in ROLES:
        shutil.copyfile(out / role / f"{role}.gguf", out / f"{role}.gguf")
        write_passport(out, role, recipe, DemoTokenizer.load(tokenizer_path), seed)
    shutil.copyfile(out / "small" / "base.gguf", out / "base.gguf")


def _clear(out: Path) -> None:
    """Remove what a run leaves, and nothing else that the folder may hold."""
    for role in ROLES:
        shutil.rmtree(out / role, ignore_errors=True)
        (out / f"{role}.gguf").unlink(missing_ok=True)
        (out / f"{role}.toml").unlink(missing_ok=True)
    (out / "base.gguf").unlink(missing_ok=True)
    (out / "tokenizer.json").unlink(missing_ok=True)
    (out / "run.json").unlink(missing_ok=True)


def _claim(out: Path, recipe: Recipe, seed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    settings = json.dumps({"seed": seed, "recipe": asdict(recipe)}, indent=2, sort_keys=True) + "\n"
    path = out / "run.json"
    if path.exists() and path.read_text("utf-8") != settings:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        raise UsageError(
            f"{out} holds a run of another recipe or seed ({path.name} {digest}): "
            "choose another --out, or start again with --fresh"
        )
    path.write_text(settings, "utf-8")


def _train_both(out: Path, seed: int, steps_scale: float, report: Callable[[Report], None]) -> None:
    context = multiprocessing.get_context("spawn")  # a forked torch may hang in its thread pool
    reports: Queue[Report] = context.Queue()
    workers = {
        role: context.Process(target=_train_one, args=(role, out, seed, steps_scale, reports), daemon=True)
        for role in ROLES
    }
    for worker in workers.values():
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers.values()):
            with suppress(queue.Empty):
                report(reports.get(timeout=0.5))
            for role, worker in workers.items():
                if worker.exitcode not in (None, 0):
                    raise TrainingError(
                        f"the {role} model's process ended with {worker.exitcode}; "
                        "run the same command again to go on from its last checkpoint"
                    )
        while not reports.empty():
            report(reports.get())
    finally:
        for worker in workers.values():
            worker.terminate()
            worker.join()
    for role, worker in workers.items():
        if worker.exitcode != 0:
            raise TrainingError(f"the {role} model's process ended with {worker.exitcode}")


def _train_one(role: Role, out: Path, seed: int, steps_scale: float, reports: "Queue[Report]") -> None:
    import torch

    torch.set_num_threads(1)  # the other core is the other model's
    tokenizer = DemoTokenizer.load(out / "tokenizer.json")
    stages = Stages(
        demo_recipe(steps_scale),
        tokenizer,
        role,
        seed,
        out / role,
        lambda stage, progress: reports.put(Report(role, stage, progress)),
    )
    stages.run()
