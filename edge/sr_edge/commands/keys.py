"""`sr-edge keys`: which keys there are, and how one gets in. None ever comes out here."""

from __future__ import annotations

import getpass
import os
import sys
from typing import Annotated

import typer

from sr_edge.commands import STYLE
from sr_edge.commands.completion import remote_names
from sr_edge.commands.listing import offline_origin, print_json, print_table, say, settings
from sr_edge.commands.output import note
from sr_edge.errors import UsageError
from sr_edge.files import keys_path
from sr_edge.keys import Secret, known_keys, origin_of, remove_key, set_key

app = typer.Typer(**STYLE)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The remote.", autocompletion=remote_names)]

_MAX_INPUT = 65536  # characters: somebody may pipe the wrong file


@app.callback(invoke_without_command=True)
def keys(ctx: typer.Context) -> None:
    """The API keys of remotes: which there are, never what they are.

    Without a command: `list`.
    """
    if ctx.invoked_subcommand is None:
        list_keys()


@app.command("list")
def list_keys(
    as_object: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """For each remote where its key comes from, and the end of it if it is long."""
    known = known_keys(settings().remotes.values(), environ=os.environ)
    if as_object:
        print_json(
            [
                {
                    "remote": key.name,
                    "from": key.place,
                    "detail": key.detail or None,
                    "masked": key.masked or None,
                    "problem": key.problem or None,
                }
                for key in known
            ]
        )
        return
    if not known:
        note("no remote is set up: `sr-edge remote add NAME URL` does that")
        return
    rows = [[key.name, key.place or "none", key.detail, key.masked, key.problem] for key in known]
    heading = ["remote", "from", "which", "key", "problem"]
    if not any(key.problem for key in known):
        heading, rows = heading[:-1], [row[:-1] for row in rows]
    print_table(heading, rows)


@app.command("set", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def set_(ctx: typer.Context, name: Name) -> None:
    """Keep the key of a remote: what is piped in, or what you type, unseen.

    It goes to the system's key store if there is a safe one, else to a file that only you can read. It is for
    the host that the remote's URL has now, and sent to no other.
    """
    if ctx.args:  # not quoted: it may be the key
        raise UsageError(
            f"`keys set {name}` takes no more words: a key on the command line is seen by other programs and "
            "stays in the shell's history. If it was one, change it; pipe it in, or type it when asked"
        )
    config = settings()
    remote = config.remote(name)
    secret = _read_secret(f"Key of {name} for {origin_of(remote.url)}: ")
    place = set_key(remote, secret, environ=os.environ, offline=offline_origin(config))
    where = "the system's key store" if place == "keyring" else str(keys_path(os.environ))
    say(f"the key of {name} ({secret.masked}) is in {where}, for {origin_of(remote.url)} only")
    for setting in ("api_key_cmd", "api_key_env"):
        if getattr(remote, setting) is not None:
            note(
                f"the {setting} of {name} comes first: "
                f"`sr-edge config unset remotes.{name}.{setting}` to use this key"
            )


@app.command("rm")
def remove(name: Name) -> None:
    """Forget the key that was kept for a remote."""
    if not remove_key(name, environ=os.environ, offline=offline_origin(settings())):
        raise UsageError(f"no key is kept for {name}; `sr-edge keys list` shows which are")
    say(f"the key of {name} is forgotten")


@app.command("path")
def path() -> None:
    """Where the file of keys is, or would be."""
    print(keys_path(os.environ))


def _read_secret(prompt: str) -> Secret:
    """Raises: UsageError: nothing came, or no key."""
    if sys.stdin is None:
        raise UsageError("there is no stdin to read the key from")
    if sys.stdin.isatty():
        try:
            text = getpass.getpass(prompt, stream=sys.stderr)
        except EOFError:
            text = ""
    else:
        try:
            text = sys.stdin.read(_MAX_INPUT)
        except (UnicodeDecodeError, OSError):
            raise UsageError("the key on stdin can't be read: it is no text") from None
    text = text.strip().removeprefix("\ufeff")
    if not text:
        raise UsageError("no key came: pipe it in, or type it (it does not show)")
    return Secret(text)
