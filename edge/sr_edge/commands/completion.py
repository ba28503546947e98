"""Tab in a shell: installing it, and the names that it completes.

The protocol is typer's. What is asked for here runs at every press of the key: it imports little, opens no
model and no socket, and a file of settings that is wrong completes to nothing.
"""

from __future__ import annotations

import io
import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from sr_edge.errors import EdgeError, UsageError
from sr_edge.terminal import safe_line

PROGRAM: Final = "sr-edge"
VARIABLE: Final = "_SR_EDGE_COMPLETE"
SHELLS: Final = ("bash", "zsh", "fish")
INSTALL: Final = "--install-completion"
SHOW: Final = "--show-completion"

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # zsh evaluates what it gets


def model_names(incomplete: str) -> list[str]:
    """Of the models on the shelf."""
    from sr_edge.shelf import models

    try:
        names = [model.name for model in models(os.environ)]
    except EdgeError:
        return []
    return _matching(names, incomplete)


def remote_names(incomplete: str) -> list[str]:
    """Of the remotes that are set up."""
    from sr_edge.config import load_config

    try:
        names = list(load_config(environ=os.environ, may_be_missing=True).remotes)
    except EdgeError:
        return []
    return _matching(names, incomplete)


def _matching(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete) and _PLAIN.fullmatch(name)]


def is_asked_for() -> bool:
    """Whether a shell asks, and nobody wants to run anything."""
    return bool(os.environ.get(VARIABLE))


def prepare() -> None:
    """Let typer know the shells. What goes wrong is not said: it would stand in the line that is typed."""
    _typer().completion_init()
    sys.stderr = io.StringIO()


def shells(incomplete: str) -> list[str]:
    return _matching([*SHELLS], incomplete)


def with_shell(args: list[str]) -> list[str]:
    """The arguments, with the user's own shell where one of our options names none."""
    if len(args) == 1 and args[0] in (INSTALL, SHOW):
        return [args[0], Path(os.environ.get("SHELL", "")).name or "?"]
    return args


def install(shell: str) -> Path:
    """Write the script where the shell finds it. Returns where.

    Raises:
        UsageError: there is no such shell here, or it cannot be written.
    """
    known = _known(shell)
    try:
        path: Path = _typer().install(known, prog_name=PROGRAM, complete_var=VARIABLE)[1]
    except (OSError, UnicodeError) as error:
        where = getattr(error, "filename", None) or "the shell's settings"
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UsageError(
            f"{where} cannot be written: {reason}. `sr-edge {SHOW} {shell}` prints what should stand there"
        ) from None
    return path


def script(shell: str) -> str:
    """Raises: UsageError: there is no such shell here."""
    known = _known(shell)
    return str(_typer().get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=known))


def _typer() -> Any:
    """What it has for shells; only here, for it is slow to import."""
    return import_module("typer.completion")


def _known(shell: str) -> str:
    if shell not in SHELLS:
        named = (
            "your shell is not known"
            if shell == "?"
            else f"{safe_line(shell)[:40]} is not a shell that we know"
        )
        raise UsageError(f"{named}: name one of {', '.join(SHELLS)}")
    return shell
