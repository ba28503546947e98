"""`sr-edge train demo`: the built-in pair from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the run and its models go.")
    ] = Path("demo-run"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the data and the first weights.")] = 0,
    resume: Annotated[
        bool,
        typer.Option("--resume/--fresh", help="Go on from what DIR holds, or remove it and start again."),
    ] = True,
    steps_scale: Annotated[
        float,
        typer.Option("--steps-scale", min=0.0005, max=10.0, help="Below 1: a shorter run, to see it work."),
    ] = 1.0,
) -> None:
    """Make the built-in pair from nothing: two tiny models, seeded and resumable."""
    from sr_train.demo.display import Display
    from sr_train.demo.pipeline import make_demo_pair

    with Display() as display:
        make_demo_pair(out, seed, steps_scale, not resume, display.show)
    typer.echo(f"{out / 'small.gguf'}\n{out / 'big.gguf'}")
