"""`sr-edge chat`: a conversation on the whole terminal, where one sees who wrote what."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from sr_edge.commands.completion import model_names, remote_names
from sr_edge.config.schema import MAX_SEED
from sr_edge.errors import UsageError
from sr_edge.policy import Dial


def chat(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The first prompt; sent at once.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            metavar="REF",
            autocompletion=model_names,
            help="The small model: a GGUF, or its name in `sr-edge models`. Default: the built-in one.",
        ),
    ] = None,
    lora: Annotated[
        Path | None,
        typer.Option("--lora", metavar="GGUF", help="An adapter for the small model; see `sr-edge convert`."),
    ] = None,
    big: Annotated[
        str | None,
        typer.Option("--big", metavar="GGUF|URL", help="The large model, as in `sr-edge ask`."),
    ] = None,
    big_model: Annotated[
        str | None, typer.Option("--big-model", metavar="NAME", help="The endpoint's name for its model.")
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(
            "-r",
            "--remote",
            metavar="NAME",
            autocompletion=remote_names,
            help="The large model: an endpoint set up by `sr-edge remote add`.",
        ),
    ] = None,
    policy: Annotated[
        Dial | None,
        typer.Option(
            "--policy",
            help="Who writes, at first: Shift+Tab changes it. Default: auto.",
            show_default=False,
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Open no socket; a --big file still works.")
    ] = False,
    hedge: Annotated[
        bool | None,
        typer.Option(
            "--hedge/--no-hedge", help="Go on locally while an endpoint has not begun.", show_default=False
        ),
    ] = None,
    budget: Annotated[
        float | None, typer.Option("--budget", min=0.0, metavar="USD", help="Of each answer.")
    ] = None,
    temp: Annotated[
        float | None, typer.Option("--temp", min=0.0, metavar="T", help="Temperature. Default: 0.6.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=MAX_SEED, metavar="N", help="Make sampling repeatable.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, metavar="N", help="Of an answer. Default: 4096.")
    ] = None,
    continued: Annotated[
        bool, typer.Option("-c", "--continue", help="Open the conversation that was used last.")
    ] = False,
    cid: Annotated[
        str | None,
        typer.Option("--cid", metavar="ID", help="Open this conversation; see `sr-edge logs list`."),
    ] = None,
    log: Annotated[
        bool | None,
        typer.Option("--log/--no-log", help="Keep the conversation, or forget it.", show_default=False),
    ] = None,
    theme: Annotated[str | None, typer.Option("--theme", metavar="NAME", help="Colours.")] = None,
    mouse: Annotated[
        bool | None,
        typer.Option(
            "--mouse/--no-mouse", help="Hear the mouse, or leave it to the terminal.", show_default=False
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", metavar="NAME", help="Settings of this profile go first.")
    ] = None,
    config_path: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings from FILE, not from your own.")
    ] = None,
) -> None:
    """Talk with the models, and see which words came from where."""
    _check_terminal()
    if big is not None and remote is not None:
        raise UsageError("--big and --remote exclude each other: there is one large model")
    if continued and cid is not None:
        raise UsageError("-c and --cid exclude each other: name one conversation")

    gc.disable()  # until the first frame: nothing that is made by then is garbage
    from sr_edge.config import load_config
    from sr_edge.engine.messages import Choices
    from sr_edge.tui.beginning import Beginning, run

    flags = {
        "default_remote": remote,
        "model": model,
        "offline": offline or None,
        "offload.policy": policy,
        "offload.hedge": hedge,
        "budget.usd_per_answer": budget,
        "sampling.temperature": temp,
        "sampling.max_tokens": max_tokens,
        "sampling.seed": seed,
        "ui.theme": theme,
        "ui.mouse": mouse,
        "log.enabled": log,
    }
    config = load_config(environ=os.environ, path=config_path, profile=profile, flags=flags)
    code = run(
        Beginning(
            config=config,
            choices=Choices(
                config=None if config_path is None else str(config_path),
                profile=profile,
                flags={name: value for name, value in flags.items() if value is not None},
                lora=None if lora is None else str(lora.absolute()),
                big=big,
                big_model=big_model,
                hedge=hedge,
            ),
            prompt=prompt,
            conversation=cid,
            goes_on=continued,
        )
    )
    raise typer.Exit(code)


def _check_terminal() -> None:
    """Raises: UsageError: there is no terminal to draw on, or none to type into."""
    for name, stream in (("stdin", sys.__stdin__), ("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        if stream is None or stream.closed or not stream.isatty():
            raise UsageError(f"chat needs a terminal, and {name} is none: use `… | sr-edge ask -`")
    if os.environ.get("TERM") in ("dumb", "unknown"):
        raise UsageError("chat needs a terminal that can move its cursor (TERM is dumb): use `sr-edge ask`")
