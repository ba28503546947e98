"""`sr-edge train`: nothing heavy is imported before a command runs."""

import typer

from sr_edge.commands import STYLE
from sr_train.commands.demo import demo
from sr_train.commands.measuring import evaluate, export
from sr_train.commands.showing import recipes
from sr_train.commands.stages import annotate, grpo, sft
from sr_train.commands.study import study

app = typer.Typer(help="Train models that ask for help.", no_args_is_help=True, **STYLE)


@app.callback()
def train() -> None:
    """Teach a small model when to ask a large one, and bring it to the laptop.

    The stages in order: annotate, sft, grpo, evaluate, export. Each takes a RECIPE and a run's folder, and
    goes on where it was after a kill.
    """


for command in (annotate, sft, grpo, evaluate, export, recipes, study, demo):
    app.command()(command)
