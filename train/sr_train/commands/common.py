"""What the stages' commands share: the recipe, the run's folder, and how progress is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sr_edge.commands.listing import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from sr_train.recipe import Recipe
    from sr_train.run import RunFolder, Stage

Named = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A TOML file, or the name of a recipe that ships: see `sr-edge train recipes`.",
        show_default=False,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting of the recipe, such as reward.lam=0.3. May be repeated.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--out",
        metavar="RUN",
        help="The run's folder. Default: runs/ and the recipe's name, here. A run that is there goes on.",
        show_default=False,
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Remove what this stage left there, and begin again.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Build the real model's shape and the first batch, print memory, tokens and hours, and stop.",
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Open no socket; files on this machine still work.")]


def recipe_of(named: str, settings: list[str] | None) -> Recipe:
    from sr_train.recipe import load_recipe

    return load_recipe(named, settings or ())


def opened(recipe: Recipe, out: Path | None, stage: Stage, *, fresh: bool = False) -> RunFolder:
    from sr_train.run import RunFolder, command_line

    folder = out or Path("runs") / recipe.name
    return RunFolder.open(folder, recipe, command_line(), stage=stage, fresh=fresh)


def stays_offline(offline: bool) -> bool:
    """Whether nothing may be sent, by the option or by the user's settings. The hub is not asked then either:
    its libraries look at the environment as they are imported, which is later.
    """
    from sr_edge.config import load_config

    is_offline = offline or load_config(environ=os.environ).offline
    if is_offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    return is_offline


def told(run: RunFolder) -> Callable[[str], None]:
    """Prints a stage's news to stderr, from the first process of a launch only."""

    def tell(line: str) -> None:
        if run.is_main:
            print(f"==> {line}", file=sys.stderr, flush=True)

    return tell


def finished(path: Path) -> None:
    """The one line on stdout: what the stage made. From the first process of a launch only."""
    if os.environ.get("RANK", "0") == "0":
        say(str(path))


def rehearse(recipe: Recipe) -> None:
    """`--dry-run`."""
    from sr_train.dry_run import dry_run

    dry_run(recipe, say)
