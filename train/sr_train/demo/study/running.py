"""Runs the study: two tasks at once on two cores, first those that the others begin with."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from sr_train.demo.study.plan import Size, Task, learned, taught
from sr_train.demo.study.work import run_task


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
    """
    context = multiprocessing.get_context("spawn")  # a forked torch may hang in its thread pool
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for tasks in (taught(seeds), list(learned(seeds, names))):
            _run(pool, tasks, size, out, report)


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
