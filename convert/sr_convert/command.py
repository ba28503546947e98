"""`sr-edge convert`, `quantize` and `verify`: nothing heavy is imported before one runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from sr_edge.commands import STYLE
from sr_edge.commands.bar import Bar
from sr_edge.commands.interrupt import ENDING, Interrupt
from sr_edge.commands.listing import print_json, print_table, say
from sr_edge.commands.output import note
from sr_edge.errors import UsageError
from sr_edge.gguf_header import read_header
from sr_edge.shelf import amount, facts_of

if TYPE_CHECKING:
    from sr_convert.adapter import AdapterType
    from sr_convert.verify import Verdict

convert_app = typer.Typer(**STYLE)
quantize_app = typer.Typer(**STYLE)
verify_app = typer.Typer(**STYLE)

DEFAULT_TYPE = "q8_0"

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A folder with config.json, tokenizer and safetensors, as transformers saves a model.",
        show_default=False,
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option("--lora", metavar="FOLDER", help="Merge this LoRA adapter, as peft saves one."),
]
Matrix = Annotated[
    Path | None,
    typer.Option("--imatrix", metavar="FILE", help="An importance matrix for the quantiser."),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="N", help="Of the quantiser. Default: the physical cores."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]
AsObject = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@convert_app.command("convert")
def convert_(
    checkpoint: Checkpoint,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FILE", help="The GGUF. Default: the folder's name and the type, here."
        ),
    ] = None,
    type_: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Of the weights: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m or another of llama.cpp's. "
            "Default: q8_0.",
        ),
    ] = None,
    lora: Adapter = None,
    as_adapter: Annotated[
        bool,
        typer.Option("--as-adapter", help="Write the adapter alone, for `sr-edge ask --lora`."),
    ] = False,
    add_markers: Annotated[
        bool,
        typer.Option("--add-markers", help="Put <bigmodel> and </bigmodel> on rows that no token uses."),
    ] = False,
    text_markers: Annotated[
        bool, typer.Option("--text-markers", help="Record that the markers are plain text in this model.")
    ] = False,
    tau: Annotated[
        float | None,
        typer.Option("--tau", metavar="P", help="The hand-back threshold to record, between 0 and 1."),
    ] = None,
    imatrix: Matrix = None,
    threads: Threads = None,
    verifies: Annotated[
        bool, typer.Option("--verify", help="Compare the result with the checkpoint afterwards.")
    ] = False,
    force: Force = False,
) -> None:
    """Convert a trained checkpoint to GGUF.

    Qwen 2, Qwen 3 and Llama 3, and what descends from them. The weights stream through, a few rows at a time.
    Ctrl-C, a full disk or a bad checkpoint leave nothing behind. Exit codes: 0 written, 1 no room on the disk
    or --verify found a difference, 2 wrong usage, 4 the checkpoint is missing or unusable.
    """
    if add_markers and text_markers:
        raise UsageError("--add-markers and --text-markers exclude each other: a marker is a token, or text")
    if as_adapter:
        for option, is_given in (
            ("--add-markers", add_markers),
            ("--text-markers", text_markers),
            ("--tau", tau is not None),
            ("--imatrix", imatrix is not None),
            ("--verify", verifies),
        ):
            if is_given:
                raise UsageError(f"{option} is for a whole model: leave it out, or leave --as-adapter out")
        _write_adapter(checkpoint, lora, out, (type_ or "f16").lower(), force=force)
        return
    from sr_convert.checkpoint import name_of
    from sr_convert.convert import Request, convert

    type_ = (type_ or DEFAULT_TYPE).lower()
    out = out or Path(f"{name_of(checkpoint)}-{type_.upper()}.gguf")
    request = Request(
        checkpoint=checkpoint,
        out=out,
        type=type_,
        adapter=lora,
        add_markers=add_markers,
        text_markers=text_markers,
        tau=tau,
        imatrix=imatrix,
        threads=threads,
        force=force,
    )
    with Interrupt(*ENDING) as interrupt, Bar("converting", interrupt) as bar:
        converted = convert(request, bar.stage)
    _say_written(out, converted.notices)
    if verifies:
        _print_verdict(_verified(out, checkpoint, lora, tau=tau), as_object=False)


def _write_adapter(checkpoint: Path, lora: Path | None, out: Path | None, type_: str, *, force: bool) -> None:
    from sr_convert.adapter import write_adapter
    from sr_convert.checkpoint import name_of, open_checkpoint
    from sr_convert.lora import read_adapter

    if lora is None:
        raise UsageError("--as-adapter writes the adapter that --lora FOLDER names")
    types: dict[str, AdapterType] = {"f32": "f32", "f16": "f16"}
    if type_ not in types:
        raise UsageError(f"--type {type_}: an adapter is written as f32 or f16")
    out = out or Path(f"{name_of(lora)}-LoRA-{type_.upper()}.gguf")
    with Interrupt(*ENDING) as interrupt, Bar("converting", interrupt) as bar:
        base, adapter = open_checkpoint(checkpoint), read_adapter(lora)
        write_adapter(base, adapter, out, types[type_], bar.progress, force=force)
    say(f"{out}: {amount(out.stat().st_size)}, an adapter", keeps_spaces=True)
    say(f'to use it: sr-edge ask -m BASE.gguf --lora {quote(str(out))} "PROBLEM"', keeps_spaces=True)


@quantize_app.command("quantize")
def quantize(
    source: Annotated[Path, typer.Argument(metavar="GGUF", help="In f32, f16 or bf16.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="The smaller one. Default: the name with the type, here.",
            show_default=False,
        ),
    ] = None,
    type_: Annotated[
        str,
        typer.Option("--type", metavar="TYPE", help="q8_0, q6_k, q5_k_m, q4_k_m or another of llama.cpp's."),
    ] = "q4_k_m",
    imatrix: Matrix = None,
    threads: Threads = None,
    requantize: Annotated[
        bool,
        typer.Option("--requantize", help="Also of a file that is quantised: it loses more than from f16."),
    ] = False,
    force: Force = False,
) -> None:
    """Make a GGUF on disk smaller, by llama.cpp's own quantiser.

    What the file says of markers and hand-back stays. Ctrl-C, a full disk or a bad file leave nothing behind.
    Exit codes: 0 written, 1 no room on the disk, 2 wrong usage, 4 a file is missing or unusable.
    """
    from sr_convert.quantize_command import default_target, quantize_file

    out = out or default_target(source, type_)
    with Interrupt(*ENDING) as interrupt, Bar("quantising", interrupt) as bar:
        done = quantize_file(
            source,
            out,
            type_,
            imatrix=imatrix,
            threads=threads,
            requantize=requantize,
            force=force,
            progress=bar.progress,
        )
    _say_written(out, done.notices)


@verify_app.command("verify")
def verify_(
    gguf: Annotated[Path, typer.Argument(metavar="GGUF", help="The converted model.", show_default=False)],
    checkpoint: Annotated[
        Path,
        typer.Option(
            "--against",
            metavar="CHECKPOINT",
            help="The folder that it was made from; it needs 4 bytes of memory a weight.",
            show_default=False,
        ),
    ],
    lora: Annotated[
        Path | None,
        typer.Option("--lora", metavar="FOLDER", help="The LoRA adapter that was merged into it."),
    ] = None,
    positions: Annotated[
        int, typer.Option("--positions", min=1, metavar="N", help="Tokens of text to compare at.")
    ] = 256,
    as_object: AsObject = False,
) -> None:
    """Compare a GGUF with the checkpoint that it was made from.

    Tokens, rendered prompts, logits, greedy text, and the markers' probabilities. For logits it needs the
    extra sr-edge[verify]. Exit codes: 0 all that was checked holds, 1 something differs, 2 wrong usage, 4 a
    file is missing or unusable.
    """
    _print_verdict(_verified(gguf, checkpoint, lora, positions), as_object=as_object)


def _verified(
    gguf: Path, checkpoint: Path, lora: Path | None, positions: int = 256, tau: float | None = None
) -> Verdict:
    from sr_convert.verify import verify

    with Interrupt(*ENDING) as interrupt, Bar("comparing", interrupt, unit="steps") as bar:
        return verify(gguf, checkpoint, adapter=lora, positions=positions, tau=tau, progress=bar.stage)


def _print_verdict(verdict: Verdict, *, as_object: bool) -> None:
    """Raises: typer.Exit: something differs."""
    from sr_convert.verify import HEADING, remarks, render

    if as_object:
        print_json(verdict.as_json())
    else:
        print_table(HEADING, render(verdict))
        for remark in remarks(verdict):
            say(remark)
        say(verdict.summary)
    if verdict.exit_code:
        raise typer.Exit(verdict.exit_code)


def _say_written(out: Path, notices: Iterable[str]) -> None:
    for notice in notices:
        note(notice)
    facts = facts_of(read_header(out))
    path = quote(str(out))
    markers = "no markers" if facts.markers is None else f"markers: {_FORMS[facts.markers.form]}"
    say(f"{out}: {amount(facts.file_size)}, {facts.quantization}, {markers}", keeps_spaces=True)
    say(
        f'to use it: sr-edge ask -m {path} "PROBLEM"; by a name: sr-edge models import {path}',
        keeps_spaces=True,
    )


_FORMS = {"token": "control tokens", "text": "plain text"}
