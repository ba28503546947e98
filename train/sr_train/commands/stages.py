"""`sr-edge train annotate`, `sft` and `grpo`: the stages that make a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sr_train.commands.common import (
    DryRun,
    Fresh,
    Named,
    Offline,
    Out,
    Settings,
    finished,
    opened,
    recipe_of,
    rehearse,
    stays_offline,
    told,
)

if TYPE_CHECKING:
    from sr_edge.remote.endpoint import Endpoint
    from sr_train.problems import Problem
    from sr_train.recipe import BigPart, Recipe
    from sr_train.remotes import Render
    from sr_train.run import RunFolder, StageFolder


def annotate(
    recipe: Named,
    out: Out = None,
    settings: Settings = None,
    fresh: Fresh = False,
    offline: Offline = False,
    dry_run: DryRun = False,
) -> None:
    """Mark the difficult steps of worked solutions: by a judge's opinion, by measuring, or by both.

    Leaves dataset.jsonl, a data set card and statistics in RUN/annotate. What was asked and measured is kept
    line by line: after a kill the same command goes on.
    """
    loaded = recipe_of(recipe, settings)
    if dry_run:
        rehearse(loaded)
        return
    offline = stays_offline(offline)
    from sr_train.annotate.pipeline import annotate as run_annotate
    from sr_train.annotate.steps import split_steps
    from sr_train.demo.workings import split_workings

    run = opened(loaded, out, "annotate", fresh=fresh)
    place = run.stage("annotate")
    if _is_done(place, fresh=fresh):
        finished(place.path / "dataset.jsonl")
        return
    problems = _problems(loaded, offline)
    if fresh:
        place.clear()
    with place as stage:
        made = run_annotate(
            loaded,
            problems,
            stage.path,
            report=told(run),
            offline=offline,
            split=split_workings if loaded.data.source.startswith("demo:") else split_steps,
        )
        stage.finish({"dataset": made.name})
    finished(made)


def sft(
    recipe: Named,
    out: Out = None,
    settings: Settings = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            "--rows",
            metavar="FILE",
            help="Annotated traces as JSON lines. Default: those of RUN/annotate.",
            show_default=False,
        ),
    ] = None,
    fresh: Fresh = False,
    offline: Offline = False,
    dry_run: DryRun = False,
) -> None:
    """Teach the small model to ask, on annotated traces. Leaves a model in RUN/sft/model.

    Goes on from its last checkpoint after a kill. On several GPUs:
    `accelerate launch --config_file FILE -m sr_edge train sft RECIPE`.
    """
    loaded = recipe_of(recipe, settings)
    if dry_run:
        rehearse(loaded)
        return
    stays_offline(offline)
    from sr_edge.errors import UsageError
    from sr_train.sft.rows import read_annotated
    from sr_train.sft.training import train_sft

    run = opened(loaded, out, "sft", fresh=fresh)
    if _is_done(run.stage("sft"), fresh=fresh):
        finished(run.stage("sft").model)
        return
    path = rows or run.stage("annotate").path / "dataset.jsonl"
    if not path.is_file():
        raise UsageError(
            f"{path} is missing: `sr-edge train annotate {recipe}` makes it, or name annotated traces with "
            "--rows"
        )
    annotated = list(read_annotated(path))
    kept = loaded.data.validation
    training, validation = (annotated[:-kept], annotated[-kept:]) if kept else (annotated, [])
    finished(train_sft(loaded, training, run, resume=not fresh, report=told(run), validation=validation))


def grpo(
    recipe: Named,
    out: Out = None,
    settings: Settings = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="What is trained: a folder, a repository or demo:small. Default: RUN/sft/model.",
            show_default=False,
        ),
    ] = None,
    fresh: Fresh = False,
    offline: Offline = False,
    dry_run: DryRun = False,
) -> None:
    """Reinforcement learning in which the large model really writes the spans. Leaves RUN/grpo/model.

    What the large model wrote is read by the small one and has no part in the loss. Goes on from its last
    checkpoint after a kill. On several GPUs:
    `accelerate launch --config_file FILE -m sr_edge train grpo RECIPE`.
    """
    loaded = recipe_of(recipe, settings)
    if dry_run:
        rehearse(loaded)
        return
    offline = stays_offline(offline)
    from sr_train.grpo.training import train_grpo
    from sr_train.remotes import open_big

    run = opened(loaded, out, "grpo", fresh=fresh)
    if _is_done(run.stage("grpo"), fresh=fresh):
        finished(run.stage("grpo").model)
        return
    begins = start or _taught(run, recipe)
    problems = _problems(loaded, offline)
    if loaded.data.validation:
        problems = problems[: -loaded.data.validation]

    def reach(part: BigPart, render: Render) -> Endpoint:
        return open_big(part, render, offline=offline)

    finished(train_grpo(loaded, problems, begins, run, resume=not fresh, report=told(run), reach=reach))


def _is_done(stage: StageFolder, *, fresh: bool) -> bool:
    if fresh or not stage.is_done:
        return False
    told(stage.run)("this stage is done already; --fresh begins it again")
    return True


def _problems(recipe: Recipe, offline: bool) -> list[Problem]:
    from sr_train.problems import read_problems

    data = recipe.data
    return read_problems(data.source, split=data.split, limit=data.limit, seed=recipe.seed, offline=offline)


def _taught(run: RunFolder, recipe: str) -> str:
    from sr_edge.errors import UsageError

    stage = run.stage("sft")
    if not stage.is_done:
        raise UsageError(
            f"{run.path} has no model that was taught to ask: `sr-edge train sft {recipe}` makes one, or "
            "name another beginning with --from"
        )
    return str(stage.model)
