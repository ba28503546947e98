"""Runs the study: two tasks at once on two cores, first those that the others begin with."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from sr_edge.errors import UsageError
from sr_train.demo.study.plan import LEARNINGS, Size, Task, learned, taught
from sr_train.demo.study.work import run_task
from sr_train.run import make_folder, write_whole

SIZE = "size.json"


def run_study(
    out: Path,
    seeds: tuple[int, ...],
    size: Size,
    *,
    jobs: int,
    names: tuple[str, ...] = (),
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Leave a folder for each task in out. What is done is not done again.

    Args:
        jobs: tasks at once; each takes one core.
        names: of learnings; empty for all of them.
    Raises:
        UsageError: there is no learning of such a name; out holds a study of another size.
    """
    known = [learning.name for learning in LEARNINGS]
    for name in names:
        if name not in known:
            raise UsageError(f"the study has no run {name!r}: there are {', '.join(map(repr, known))}")
    _check_size(out, size)
    context = multiprocessing.get_context("spawn")  # a forked torch may hang in its thread pool
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for tasks in (taught(seeds), learned(seeds, names)):
            _run(pool, tasks, size, out, report)


def _check_size(out: Path, size: Size) -> None:
    """What is done is not done again: a short study, tried first, must not pass for the whole one."""
    path, wanted = out / SIZE, json.dumps(asdict(size), indent=2) + "\n"
    if path.is_file() and path.read_text("utf-8") != wanted:
        raise UsageError(f"{out} holds a study of another size: name another folder, or remove it")
    make_folder(out)
    write_whole(path, wanted)


def _run(
    pool: ProcessPoolExecutor, tasks: Iterable[Task], size: Size, out: Path, report: Callable[[str], None]
) -> None:
    waiting = {pool.submit(run_task, task, size, out): task for task in tasks}
    try:
        for count, done in enumerate(as_completed(waiting), 1):
            done.result()
            task = waiting[done]
            report(f"{count} of {len(waiting)}: {task.name}, seed {task.seed}")
    except BaseException:
        for future in waiting:
            future.cancel()
        raise
