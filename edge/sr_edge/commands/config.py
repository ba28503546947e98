"""`sr-edge config`: what is set, where it comes from, and changing it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sr_edge.commands import STYLE
from sr_edge.commands.listing import print_json, print_table, say, settings
from sr_edge.commands.output import note
from sr_edge.config import Config, Setting, load_config
from sr_edge.config.edit import Change, change_config, replace_config
from sr_edge.config.load import PROFILE_VARIABLE, check_text, config_of, read_config
from sr_edge.config.schema import Key, as_text, checked, find_key, from_text
from sr_edge.errors import UsageError
from sr_edge.files import config_path, new_private
from sr_edge.keys import origin_of

app = typer.Typer(**STYLE)

Name = Annotated[
    str, typer.Argument(metavar="KEY", help="Section and key, such as offload.policy or remotes.NAME.model.")
]
Profile = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="With this profile. Default: SR_EDGE_PROFILE, or none."),
]

_TEMPLATE = """\
# Settings of sr-edge: `sr-edge config show` lists all there are.
# API keys do not belong here: `sr-edge keys set NAME`.
#
# default_remote = "lab"
#
# [remotes.lab]
# url = "https://api.example.com/v1"
# model = "big-70b"
# price = { input = 0.60, output = 2.40 }  # US dollars per million tokens
"""


@app.callback(invoke_without_command=True)
def config(ctx: typer.Context) -> None:
    """The settings: what holds, and where it comes from.

    An option comes first, then the environment, the profile, the user's file, the default. Each setting has
    a variable: offload.hedge has SR_EDGE_OFFLOAD__HEDGE. SR_EDGE_CONFIG names another file of settings, and
    SR_EDGE_HOME a folder for all of our files. Without a command: `show`.
    """
    if ctx.invoked_subcommand is None:
        show()


@app.command("show")
def show(
    origin: Annotated[bool, typer.Option("--origin", help="Where each value comes from.")] = False,
    as_object: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, with the origins.")
    ] = False,
    profile: Profile = None,
) -> None:
    """All settings as they hold now."""
    known = settings(profile)
    if as_object:
        print_json(
            {
                name: {"value": _masked(name, setting.value), "origin": setting.origin}
                for name, setting in known.settings.items()
            }
        )
        return
    rows = [
        [name, as_text(_masked(name, setting.value)), setting.origin]
        for name, setting in known.settings.items()
    ]
    heading = ["setting", "value", "from"]
    if not origin:
        heading, rows = heading[:2], [row[:2] for row in rows]
    print_table(heading, rows)


@app.command("get")
def get(key: Name, profile: Profile = None) -> None:
    """Print one value, or those of a section."""
    known = settings(profile)
    section = {name: setting for name, setting in known.settings.items() if name.startswith(f"{key}.")}
    if section:
        print_table(["setting", "value"], [[name, as_text(s.value)] for name, s in section.items()])
        return
    value = _setting(known, key).value
    if value is None:
        note(f"{key} is not set")
    else:
        say(as_text(value))


@app.command("set", context_settings={"ignore_unknown_options": True})
def set_(
    key: Name,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="A list with commas, or as in TOML.")],
) -> None:
    """Write one value to the user's file; what else stands there stays as it is."""
    path, known = _find(key)
    try:
        given = from_text(known, value)
        right = checked(known, given)
    except ValueError as error:
        raise UsageError(f"{key} {error}") from None
    if known.kind == "path" and not value.startswith("~"):
        given = os.path.abspath(str(right))
    elif known.kind == "words":
        given = [*right] if isinstance(right, tuple) else right
    file = config_path(os.environ)
    _check_remote(path)
    before: Mapping[str, Any] = {}

    def changes(data: Mapping[str, Any]) -> Iterable[Change]:
        nonlocal before
        before = data
        yield Change(path, given)

    if change_config(file, changes):
        _tell_moved_keys(before, _loaded(read_config(file)))
    _say_if_overridden(key, right, path)


@app.command("unset")
def unset(key: Name) -> None:
    """Take one value out of the user's file: the default holds again."""
    file = config_path(os.environ)
    path = _table_path(key) or _find(key)[0]
    if path[0] == "remotes" and path[2:] == ("url",):
        raise UsageError(f"a remote has a URL; `sr-edge remote rm {path[1]}` takes all of it out")
    if not change_config(file, lambda data: [Change(path, None)]):
        raise UsageError(f"{key} is not set in {file}")
    if path[0] != "profiles" and len(path) > 1:
        setting = load_config(environ=os.environ, may_be_missing=True).settings.get(key)
        if setting is not None and setting.origin.startswith("env "):
            note(f"{setting.origin.removeprefix('env ')} in the environment sets {key} too")


@app.command("edit")
def edit() -> None:
    """Open the user's file in $VISUAL or $EDITOR; it is replaced only by one that is valid."""
    file = config_path(os.environ)
    before = read_config(file)
    copy = new_private(file, before if before is not None else _TEMPLATE)
    keeps = False
    try:
        while True:
            _run_editor(copy)
            keeps = True
            try:
                after = read_config(copy)
                is_changed = after is not None and after != (before if before is not None else _TEMPLATE)
                if is_changed:
                    replace_config(file, before, after or "", shown=copy)
            except UsageError as error:
                if _wants_to_go_on(error):
                    continue
                raise UsageError(f"{file} is as it was, your version is in {copy}: {error}") from None
            keeps = False
            if not is_changed:
                note("nothing was changed")
                return
            say(f"{file} is changed")
            _tell_moved_keys(_loaded(before), _loaded(after))
            return
    finally:
        if not keeps:
            copy.unlink(missing_ok=True)


@app.command("validate")
def validate(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Instead of the user's file.", show_default=False)
    ] = None,
) -> None:
    """Check the file, each of its profiles, and the environment. Asks no server."""
    path = file or config_path(os.environ)
    text = read_config(path)
    if text is None:
        if file is not None:
            raise UsageError(f"{path} is not there")
        note(f"{path} is not there: the defaults hold")
    check_text(text or "", path)
    known = config_of(text or "", path, environ=os.environ)
    from sr_edge.remote.egress import site_of

    for remote in known.remotes.values():
        try:
            site_of(remote.url, plain_http=remote.plain_http, ca_file=remote.ca_file, proxy=remote.proxy)
        except UsageError as error:
            where = known.origin(f"remotes.{remote.name}.url")
            raise UsageError(f"{where}: [remotes.{remote.name}] {error}") from None
    say(f"{path}: valid, with {len(known.remotes)} remote{'' if len(known.remotes) == 1 else 's'}")


@app.command("path")
def path() -> None:
    """Where the user's file is, or would be."""
    print(config_path(os.environ))


# --- one setting -------------------------------------------------------------------------------------


def _find(key: str) -> tuple[tuple[str, ...], Key]:
    try:
        return find_key(key)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _setting(config: Config, key: str) -> Setting:
    path, known = _find(key)
    if path[0] == "profiles":
        raise UsageError(f"`sr-edge config get --profile {path[1]} KEY` shows what holds with a profile")
    if path[0] == "remotes":
        config.remote(path[1])
    return config.settings.get(key) or Setting(known.default, "default")


def _masked(name: str, value: Any) -> Any:
    """A command as it is shown to be pasted elsewhere: what looks like a key in it is left out."""
    if not name.endswith(".api_key_cmd"):
        return value
    from sr_edge.redact import rules

    words = [value] if isinstance(value, str) else value
    hidden = [rules(["key"]).redact(word) for word in words]
    return hidden[0] if isinstance(value, str) else tuple(hidden)


def _table_path(key: str) -> tuple[str, ...] | None:
    """Of a whole price or timeout, which are tables of a few keys; None where a single setting is meant."""
    name, _, table = key.rpartition(".")
    if table in ("price", "timeout") and name.startswith(("remotes.", "profiles.")):
        path, _ = _find(f"{name}.url")
        return (*path[:-1], table)
    return None


def _check_remote(path: tuple[str, ...]) -> None:
    """Raises: UsageError: it is a setting of a remote that does not exist, and not its URL."""
    if path[0] == "remotes" and path[2:] != ("url",):
        file = config_path(os.environ)
        config_of(read_config(file) or "", file, environ={}).remote(path[1])


def _loaded(text: str | None) -> Mapping[str, Any]:
    """Of a file that may have been broken before."""
    try:
        return tomllib.loads(text or "")
    except (ValueError, RecursionError):
        return {}


def _tell_moved_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Say of each remote at a new host that its key goes there: what `keys set` keeps does not, this does.

    Args:
        before, after: the file's data; before, it may have been anything.
    """
    profiles = _table(before, "profiles")
    layers = [(before, after), *((_table(profiles, n), t) for n, t in _table(after, "profiles").items())]
    for old_layer, layer in layers:
        old_remotes = _table(old_layer, "remotes")
        for name, remote in _table(layer, "remotes").items():
            setting = next((leaf for leaf in ("api_key_cmd", "api_key_env") if leaf in remote), None)
            old_url, url = _table(old_remotes, name).get("url"), remote.get("url")
            if setting is None or not isinstance(old_url, str) or url is None:
                continue
            old, new = _origin(old_url), origin_of(url)
            if old != new:
                note(f"the key of {name} (by its {setting}) goes to {new} from now on, and not to {old}")


def _origin(url: str) -> str:
    try:
        return origin_of(url)
    except ValueError:  # nothing was sent there
        return "no host"


def _table(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def _say_if_overridden(key: str, value: object, path: tuple[str, ...]) -> None:
    if path[0] == "profiles":
        return
    try:
        now = settings().settings.get(key)
    except UsageError as error:
        note(f"written; but {error}")
        return
    if now is not None and now.value != value and now.origin.startswith(("env ", "profile ")):
        by = f"{PROFILE_VARIABLE}={now.origin.removeprefix('profile ')}"
        by = now.origin.removeprefix("env ") if now.origin.startswith("env ") else by
        note(f"written; but {by} in the environment comes first: {key} is {as_text(now.value)}")


# --- the editor --------------------------------------------------------------------------------------


def _run_editor(file: Path) -> None:
    """Raises: UsageError: there is none, or it failed."""
    words = _editor(os.environ)
    try:
        code = subprocess.run([*words, str(file)]).returncode
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"{words[0]} can't be run ({reason}): name your editor in EDITOR") from None
    if code:
        raise UsageError(f"{words[0]} ended with {code}: nothing was changed")


def _editor(environ: Mapping[str, str]) -> list[str]:
    named = environ.get("VISUAL") or environ.get("EDITOR")
    if named:
        try:
            words = shlex.split(named, posix=os.name != "nt")
        except ValueError:
            words = []
        if words:
            return words
        raise UsageError("VISUAL or EDITOR holds no command")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("there is no terminal to edit in: name an editor in EDITOR, or use `config set`")
    return ["notepad" if sys.platform == "win32" else "vi"]


def _wants_to_go_on(error: UsageError) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    note(str(error))
    try:
        return typer.confirm("Edit again?", default=True, err=True)
    except typer.Abort:
        return False
