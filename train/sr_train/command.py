"""`sr-edge train`: nothing heavy is imported before a command runs."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Train models that ask for help.", no_args_is_help=True)


@app.callback()
def train() -> None:
    """Train models that ask for help."""


@app.command()
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
    """Make the demo pair from nothing: two tiny models, seeded and resumable."""
    _need_extra()
    from sr_train.demo.display import Display
    from sr_train.demo.pipeline import make_demo_pair

    with Display() as display:
        make_demo_pair(out, seed, steps_scale, not resume, display.show)
    typer.echo(f"{out / 'small.gguf'}\n{out / 'big.gguf'}")


def _need_extra() -> None:
    from importlib.util import find_spec

    if any(find_spec(package) is None for package in ("torch", "tokenizers", "gguf")):
        typer.echo("sr-edge train needs the train extra: pip install 'sr-edge[train]'", err=True)
        raise typer.Exit(2)
