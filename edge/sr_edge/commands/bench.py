"""`sr-edge bench`: how fast this machine is, beside named peers."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sr_edge import __version__
from sr_edge.commands import INTERRUPTED
from sr_edge.commands.bar import Bar
from sr_edge.commands.completion import model_names
from sr_edge.commands.interrupt import Interrupt
from sr_edge.commands.listing import print_table, say
from sr_edge.commands.output import note
from sr_edge.errors import EdgeError, UsageError

if TYPE_CHECKING:
    from sr_edge.bench.machine import Machine
    from sr_edge.bench.report import Found, Report, Row
    from sr_edge.bench.setting import Setting


class Subject(Enum):
    DECODE = "decode"
    GROWTH = "growth"
    MEMORY = "memory"
    STARTUP = "startup"
    BUSY = "busy"
    TURNS = "turns"
    REOPENING = "reopening"
    HANDBACK = "handback"
    WALL = "wall"
    BIG = "big"
    SERVE = "serve"
    ALL = "all"


_SUBJECTS = {
    Subject.DECODE: "sr_edge.bench.decode",
    Subject.GROWTH: "sr_edge.bench.growth",
    Subject.MEMORY: "sr_edge.bench.memory",
    Subject.STARTUP: "sr_edge.bench.startup",
    Subject.BUSY: "sr_edge.bench.busy",
    Subject.TURNS: "sr_edge.bench.turns",
    Subject.REOPENING: "sr_edge.bench.reopening",
    Subject.HANDBACK: "sr_edge.bench.handback",
    Subject.WALL: "sr_edge.bench.wall",
    Subject.BIG: "sr_edge.bench.speculation",
    Subject.SERVE: "sr_edge.bench.served",
}
"""In the order of `all`: modules with `rows` (see `sr_edge.bench.report`)."""

_MOST_THREADS = 1024


def bench(
    subjects: Annotated[
        list[Subject],
        typer.Argument(
            metavar="|".join(subject.value for subject in Subject),
            help="What to measure; several may be named. docs/speed.md says what each row means.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            metavar="REF",
            autocompletion=model_names,
            help="The small model: a GGUF, or its name in `sr-edge models`. Default: the built-in one, which "
            "is too small to tell much.",
        ),
    ] = None,
    synthetic: Annotated[
        str | None,
        typer.Option(
            "--synthetic",
            metavar="tiny|1.5b|7b",
            help="Instead: random weights in the shape of a real model, made once and kept in the cache.",
        ),
    ] = None,
    big: Annotated[
        str | None,
        typer.Option(
            "--big", metavar="REF", help="A large model on this machine. Default: the built-in one."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            min=1,
            max=_MOST_THREADS,
            metavar="N",
            help="Of every side. Default: what the client takes by itself.",
        ),
    ] = None,
    pairs: Annotated[
        int, typer.Option("--pairs", min=1, metavar="N", help="Rounds; each side runs once in each.")
    ] = 5,
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, metavar="N", help="Of each run that writes.")
    ] = 128,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all that was measured to FILE.")
    ] = None,
    markdown_path: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write a table for documents to FILE.")
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="DIR", help="Draw who wrote which tokens when, as PNG and SVG, into DIR."
        ),
    ] = None,
    llama_bench: Annotated[
        Path | None,
        typer.Option("--llama-bench", metavar="PATH", help="llama.cpp's own. Default: the one on the PATH."),
    ] = None,
) -> None:
    """Measure how fast this machine is, beside named peers.

    Sides are compared in alternating rounds, most of them in processes of their own. For figures that mean
    something, let nothing else run. The table goes to stdout.
    """
    environ = dict(os.environ)  # before anything of ours changes how llama.cpp's threads wait
    from sr_edge.bench.machine import describe
    from sr_edge.bench.report import Skipped, as_json, as_markdown, sorted_out
    from sr_edge.bench.setting import Setting, threads_for

    if model is not None and synthetic is not None:
        raise UsageError("-m and --synthetic exclude each other: there is one small model")
    if llama_bench is not None and not llama_bench.is_file():
        raise UsageError(f"--llama-bench {llama_bench}: there is no such file")
    for path in (json_path, markdown_path):
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"{path}: its folder does not exist")
        if path is not None and path.is_dir():
            raise UsageError(f"{path}: this is a folder: name a file in it")
    if plots is not None:
        from sr_edge.bench.plot import check_plotting

        check_plotting(plots)
    wanted = list(_SUBJECTS) if Subject.ALL in subjects else list(dict.fromkeys(subjects))
    found: list[Found] = []
    with tempfile.TemporaryDirectory(prefix="sr-edge-bench-") as home:
        path = _model(model, synthetic, environ)
        on_path = shutil.which("llama-bench")
        setting = Setting(
            model=path,
            threads=threads or threads_for(path),
            pairs=pairs,
            environ=environ,
            home=Path(home),
            big=None if big is None else _named(big, environ),
            llama_bench=llama_bench.absolute() if llama_bench else Path(on_path) if on_path else None,
            tokens=tokens,
            say=note,
        )
        machine = describe(environ)
        is_cut = False
        try:
            for subject in wanted:
                try:
                    found.extend(_rows(subject, setting))
                except EdgeError as error:
                    found.append(Skipped(subject.value, "all of it", str(error)))
                except Exception as error:  # what was measured before is not lost
                    reason = f"{type(error).__name__}: {error}. This is a bug"
                    found.append(Skipped(subject.value, "all of it", reason))
        except KeyboardInterrupt:
            is_cut = True
        report = _report(setting, machine, found)
    _print(report)
    for target, text in ((json_path, as_json), (markdown_path, as_markdown)):
        if target is not None:
            _write(target, text(report))
    if plots is not None:
        from sr_edge.bench.plot import plot

        if sorted_out(found)[2]:
            note(f"drawn: {', '.join(map(str, plot(report.timelines, plots)))}")
        else:
            note("nothing to draw: no answer of two writers was measured")
    if is_cut:
        note("interrupted: these are the figures so far")
        raise typer.Exit(INTERRUPTED)
    if not report.rows:
        raise typer.Exit(EdgeError.exit_code)


def _rows(subject: Subject, setting: Setting) -> Iterator[Found]:
    found: Iterator[Found] = import_module(_SUBJECTS[subject]).rows(setting)
    return found


def _model(model: str | None, synthetic: str | None, environ: dict[str, str]) -> Path:
    from sr_edge.bench.models import synthetic as made
    from sr_edge.passport import demo_paths

    if synthetic is not None:
        with Interrupt() as interrupt, Bar(f"making the model {synthetic}", interrupt) as bar:
            return made(synthetic, environ, bar.progress)
    return demo_paths().small if model is None else _named(model, environ)


def _named(reference: str, environ: dict[str, str]) -> Path:
    from sr_edge.gguf_header import read_header
    from sr_edge.shelf import find

    path = find(reference, environ)
    read_header(path)  # else each measurement finds out
    return path


def _report(setting: Setting, machine: Machine, found: list[Found]) -> Report:
    from sr_edge.bench.report import Report, sorted_out
    from sr_edge.shelf import amount

    rows, skipped, timelines = sorted_out(found)
    return Report(
        when=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        command=shlex.join(sys.argv[1:]),
        sr_edge=__version__,
        machine=machine,
        model=f"{setting.model.name}, {amount(setting.model.stat().st_size)}",
        threads=setting.threads,
        pairs=setting.pairs,
        rows=tuple(rows),
        skipped=tuple(skipped),
        timelines=tuple(timelines),
    )


def _print(report: Report) -> None:
    from sr_edge.bench.report import machine_lines

    if report.rows:
        # A narrow terminal cuts off the right: the figure must not be there.
        heading = ("subject", "measured", "goal", "what", "range", "made from")
        print_table(heading, [_cells(row) for row in report.rows], right=(1,))
    for row in report.rows:
        if row.note:
            say(f"{row.subject}, {row.name}: {row.note}")
    for one in report.skipped:
        note(f"{one.subject}, {one.name}: not measured: {one.reason}")
    for line in machine_lines(report):
        say(line)


def _cells(row: Row) -> tuple[str, ...]:
    from sr_edge.bench.report import figure, goal, made_from, within

    return (
        row.subject,
        figure(row.figure.median, row.unit),
        goal(row),
        row.name,
        within(row.figure, row.unit),
        made_from(row),
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise EdgeError(f"{path}: {error.strerror}: the table above has the figures") from None
