"""`sr-edge train study`: the experiment behind the figures of the documentation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sr_train.commands.common import finished


def study(
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="DIR", help="Where runs and results go; it can go on there."),
    ] = Path("study"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="How many seeds.")] = 3,
    jobs: Annotated[int, typer.Option("--jobs", min=1, metavar="N", help="Runs at once, a core each.")] = 2,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Of the GRPO runs; may be repeated.", show_default=False),
    ] = None,
    steps_scale: Annotated[
        float,
        typer.Option("--steps-scale", min=0.001, max=10.0, help="Below 1: a shorter one, to see it work."),
    ] = 1.0,
) -> None:
    """Repeat the experiment of the documentation on the built-in pair: table and plot over several seeds.

    From a model taught by a judge that is often wrong, and from one taught by measured failures: GRPO with a
    large model that really writes the spans, with spans that the small model fills itself, with several
    prices and with budgets.
    """
    from sr_train.demo.study.plan import Size
    from sr_train.demo.study.report import write_study
    from sr_train.demo.study.running import run_study

    size = Size()
    if steps_scale != 1:
        size = Size(
            *(
                max(4, round(each * steps_scale))
                for each in (size.num_rows, size.sft_steps, size.grpo_steps, size.num_evaluated)
            )
        )

    def tell(line: str) -> None:
        print(f"==> {line}", file=sys.stderr, flush=True)

    run_study(out, tuple(range(seeds)), size, jobs=jobs, names=tuple(only or ()), report=tell)
    for path in write_study(out, range(seeds), out):
        finished(path)
