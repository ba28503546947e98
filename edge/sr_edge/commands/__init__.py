"""The command line: what is here parses, calls and prints, and decides the exit code.

`main` is the one place that turns an error into a line and a code. Commands of other packages join through
the entry-point group `sr_edge.commands`; neither theirs nor ours import anything heavy before they run.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from sr_edge import __version__
from sr_edge.commands import completion
from sr_edge.errors import EdgeError, UsageError
from sr_edge.terminal import safe

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

INTERRUPTED = 130
BROKEN_PIPE = 141  # as a shell reports a program that SIGPIPE ended

_OWN = {
    "ask": ("sr_edge.commands.ask:ask", "Answer one problem; the large model writes the hard steps."),
    "chat": (
        "sr_edge.commands.chat:chat",
        "Talk with the models, and see which words came from where.",
    ),
    "serve": (
        "sr_edge.commands.serve:serve",
        "Serve the models to other programs, as OpenAI's API does.",
    ),
    "replay": (
        "sr_edge.commands.replay:replay",
        "Show a recorded answer again, with no model and no network.",
    ),
    "eval": ("sr_edge.commands.eval:evaluate", "Measure what split decoding is worth on known problems."),
    "bench": ("sr_edge.commands.bench:bench", "Measure how fast this machine is, beside named peers."),
    "logs": ("sr_edge.commands.logs:app", "The conversations that were kept on this machine."),
    "models": ("sr_edge.commands.models:app", "The models on this machine, by name."),
    "remote": ("sr_edge.commands.remote:app", "The large models that may be asked, by name."),
    "keys": ("sr_edge.commands.keys:app", "The API keys of remotes: which there are, never what they are."),
    "config": ("sr_edge.commands.config:app", "The settings: what holds, and where it comes from."),
    "doctor": (
        "sr_edge.commands.doctor:doctor",
        "Look at this machine and the settings, and say what to do.",
    ),
}
"""Where each command is, and the first line of its help. One with commands of its own is a typer app."""

_GOES_ON_IMPORTING = ("ask", "chat")
"""They enable the garbage collector themselves, once they have what stays."""

_EXTRAS = {
    "convert": ("Convert a trained checkpoint to GGUF.", "convert"),
    "quantize": ("Make a GGUF on disk smaller.", "convert"),
    "train": ("Train models that ask for help.", "train"),
    "verify": ("Compare a GGUF with its checkpoint.", "verify"),
}
"""Entry points of our own that an extra completes: the first line of their help, and the extra."""

STYLE: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


class Commands(TyperGroup):
    """Commands that are imported only when they run: ours, then those of other packages."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*_OWN, *sorted({entry.name for entry in _entries()} - {*_OWN})]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in _OWN:
            return Promise(cmd_name, _OWN[cmd_name][1])
        for entry in _entries():
            if entry.name == cmd_name:
                package = entry.dist.name if entry.dist else entry.value
                return Promise(cmd_name, _summary(cmd_name) or f"From the package {package}.", entry)
        return None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, completion.with_shell(args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if isinstance(command, Promise):
            command = command.load()
        if name not in _GOES_ON_IMPORTING:
            gc.freeze()
            gc.enable()
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise _explained(error, ctx.invoked_subcommand) from error
        except BrokenPipeError:
            raise typer.Exit(BROKEN_PIPE) from None


class Promise(TyperCommand):
    """Stands for a command in the list of commands."""

    def __init__(self, name: str, summary: str, entry: EntryPoint | None = None) -> None:
        super().__init__(name, help=summary)
        self._entry = entry

    def load(self) -> Any:
        if self._entry is None:
            module, _, function = _OWN[self.name or ""][0].partition(":")
            found = getattr(import_module(module), function)
            if not isinstance(found, typer.Typer):
                app = typer.Typer(**STYLE)
                app.command(self.name)(found)
                found = app
            return typer.main.get_command(found)
        try:
            loaded = self._entry.load()
        except ModuleNotFoundError as error:
            raise _explained(error, self.name) from error
        return typer.main.get_command(loaded) if isinstance(loaded, typer.Typer) else loaded


def _entries() -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return list(entry_points(group="sr_edge.commands"))


def _summary(command: str) -> str | None:
    if command not in _EXTRAS:
        return None
    summary, extra = _EXTRAS[command]
    return f"{summary[:-1]} (needs the extra sr-edge[{extra}])."


def _explained(error: ModuleNotFoundError, command: str | None) -> Exception:
    package = (error.name or "").partition(".")[0]
    if command not in _EXTRAS or package.startswith("sr_"):
        return error
    return UsageError(f"`sr-edge {command}` needs {package}: pip install 'sr-edge[{_EXTRAS[command][1]}]'")


app = typer.Typer(cls=Commands, no_args_is_help=True, **STYLE)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sr-edge {__version__}")
        raise typer.Exit


def _install_completion(ctx: typer.Context, shell: str | None) -> None:
    if shell and not ctx.resilient_parsing:
        typer.echo(f"{completion.install(shell)} is written: open a new {shell}, and Tab completes sr-edge")
        raise typer.Exit


def _show_completion(ctx: typer.Context, shell: str | None) -> None:
    if shell and not ctx.resilient_parsing:
        typer.echo(completion.script(shell))
        raise typer.Exit


_COMPLETION: dict[str, Any] = {
    "metavar": f"[{'|'.join(completion.SHELLS)}]",
    "is_eager": True,
    "autocompletion": completion.shells,
    "show_default": False,
}


@app.callback()
def _sr_edge(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    install_completion: Annotated[
        str | None,
        typer.Option(
            completion.INSTALL,
            callback=_install_completion,
            help="Let Tab complete sr-edge in a shell. Default: yours.",
            **_COMPLETION,
        ),
    ] = None,
    show_completion: Annotated[
        str | None,
        typer.Option(
            completion.SHOW, callback=_show_completion, help="Print what that installs.", **_COMPLETION
        ),
    ] = None,
) -> None:
    """Split decoding: a small model on this machine writes, a large one writes its hard steps.

    stdout carries the answer, stderr everything else. Exit codes: 0 answered (the small model alone
    included), 1 generation failed or the answer could not be kept, 2 wrong usage, 3 the large model failed
    under --policy remote, 4 a model is missing or unusable, 130 interrupted, 143 and 129 ended by a signal.
    """


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    _prepare_streams()
    if completion.is_asked_for():
        completion.prepare()
    try:
        app(prog_name=completion.PROGRAM)
        code: object = 0
    except SystemExit as left:
        code = left.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except EdgeError as error:
        _complain(str(error))
        code = error.exit_code
    except Exception as error:
        if os.environ.get("SR_EDGE_TRACEBACK"):
            raise
        code = _unexpected(error)
    sys.exit(_flush(code if isinstance(code, int) else 1 if code else 0))


def _unexpected(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        _complain(f"cannot write: {error.strerror}")
        return 1
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    _complain(f"{what}. This is a bug; run with SR_EDGE_TRACEBACK=1 to see it")
    return 1


def _complain(message: str) -> None:
    with suppress(OSError):  # where nobody can be told, the exit code still tells
        print(f"sr-edge: {safe(message)}", file=sys.stderr, flush=True)


def _prepare_streams() -> None:
    """Closed streams become empty ones, and no character is ever an encoding error."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  open as long as the program runs
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flush(code: int) -> int:
    """Write what is left in the buffers here, where a failure is not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = code or BROKEN_PIPE
            _discard(stream)
        except OSError as error:
            code = code or 1
            _discard(stream)
            _complain(f"cannot write: {error.strerror}")
    return code


def _discard(stream: TextIO) -> None:
    """Let the interpreter flush into nowhere when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
