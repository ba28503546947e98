"""`sr-edge doctor`: looks at everything that an answer depends on, and says what to do."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sr_edge import __version__
from sr_edge.commands.listing import offline_origin, print_json, say
from sr_edge.commands.output import note
from sr_edge.config import Config, RemoteConfig, load_config
from sr_edge.doctor import Check
from sr_edge.doctor.checks import (
    check_clock,
    check_cores,
    check_disk,
    check_gpu,
    check_history,
    check_memory,
    check_model,
    check_remote,
    check_settings,
    check_terminal,
    check_versions,
    is_well,
)
from sr_edge.doctor.machine import cores, free_disk, gpu, memory, versions, wanted_versions
from sr_edge.errors import EdgeError, UsageError
from sr_edge.files import config_path, state_dir
from sr_edge.gguf_header import read_header
from sr_edge.keys import KnownKey, find_key, known_keys
from sr_edge.passport import demo_paths
from sr_edge.shelf import Facts, facts_of, find
from sr_edge.store.opening import history_path
from sr_edge.store.schema import MIGRATIONS
from sr_edge.terminal import can_show

_MARKS = "│┃◆◇⟦⟧·…"
_WORDS = {"ok": "ok", "warn": "warn", "fail": "FAIL"}


def doctor(
    online: Annotated[
        bool, typer.Option("--online", help="Ask the default remote for its list of models too.")
    ] = False,
    as_object: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look at this machine and the settings, and say what to do.

    No socket is opened without --online. Exit code 0: nothing fails; 1: something does.
    """
    checks = look(online=online)
    if as_object:
        print_json({"ok": is_well(checks), "checks": [asdict(check) for check in checks]})
    else:
        _print(checks)
    raise typer.Exit(0 if is_well(checks) else 1)


def look(*, online: bool) -> list[Check]:
    environ = os.environ
    config, problem = _settings()
    model, facts, model_problem = _model(config)
    is_built_in = config.model is None
    return [
        check_versions(__version__, versions(), wanted_versions()),
        check_settings(str(config_path(environ)), problem),
        check_cores(cores()),
        check_memory(memory(), facts),
        check_gpu(gpu(environ)),
        check_model(model, facts, model_problem, is_built_in=is_built_in),
        _remote(config, online=online, has_own_large_model=is_built_in),
        check_clock(time.gmtime().tm_year, time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
        _terminal(),
        _disk(),
        _history(),
    ]


def _settings() -> tuple[Config, str | None]:
    """With what is wrong with them, and the defaults in their place."""
    from sr_edge.config.load import config_of

    try:
        return load_config(environ=os.environ, may_be_missing=True), None
    except UsageError as error:
        return config_of("", config_path({}), environ={}), str(error)


def _model(config: Config) -> tuple[str, Facts | None, str | None]:
    try:
        path = demo_paths().small if config.model is None else find(config.model, os.environ)
        return str(path), facts_of(read_header(path)), None
    except EdgeError as error:
        return config.model or "", None, str(error)


def _remote(config: Config, *, online: bool, has_own_large_model: bool) -> Check:
    offline = offline_origin(config)
    remote = config.remotes.get(config.default_remote or "")
    key: KnownKey | None = None
    answer = failure = None
    try:
        if remote is not None:
            key = known_keys([remote], environ=os.environ)[0]
            if online and offline is None and not key.problem:
                answer = _ask(remote, config)
    except EdgeError as error:
        failure = str(error)
    return check_remote(
        remote,
        key,
        offline=offline,
        has_own_large_model=has_own_large_model,
        budget=config.budget,
        answer=answer,
        failure=failure,
    )


def _ask(remote: RemoteConfig, config: Config) -> str:
    """Raises: UsageError, RemoteError: it cannot be asked, or does not answer."""
    from sr_edge.remote.egress import Door
    from sr_edge.remote.endpoint import Deadlines, Endpoint
    from sr_edge.roles import Prompt

    key = find_key(remote, environ=os.environ, say=note)
    with Endpoint(
        remote.url,
        prompt=lambda messages: Prompt((), "", ""),  # nothing is continued
        model=remote.model,
        api_key=key.reveal() if key else None,
        deadlines=Deadlines(**remote.timeout),
        plain_http=remote.plain_http,
        ca_file=remote.ca_file,
        proxy=remote.proxy,
        door=Door(offline=config.offline),
        name=remote.name,
    ) as endpoint:
        names = endpoint.models()
    count = f"{len(names)} model{'' if len(names) == 1 else 's'}"
    if remote.model is not None and remote.model not in names:
        return f"{count}, and {remote.model} is not one of them"
    return count


def _terminal() -> Check:
    streams = (sys.stdin, sys.stdout, sys.stderr)
    encoding = sys.stdout.encoding or "ascii"
    columns, rows = shutil.get_terminal_size()
    return check_terminal(
        is_terminal=all(stream is not None and stream.isatty() for stream in streams),
        columns=columns,
        rows=rows,
        encoding=encoding.upper(),
        shows_marks=can_show(_MARKS, encoding),
        environ=os.environ,
    )


def _disk() -> Check:
    folder = state_dir(os.environ)
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    problem = None
    if not there.is_dir():
        problem = f"{there} is a file"
    elif not os.access(there, os.W_OK | os.X_OK):
        problem = "it cannot be written"
    return check_disk(str(folder), free_disk(folder), problem)


def _history() -> Check:
    """Looks, and mends nothing: read-only, and without the store, which would."""
    path = history_path(os.environ)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return check_history(str(path), None, None)
    except OSError as error:
        return check_history(str(path), None, error.strerror or str(error))
    return check_history(str(path), size, _problem_of(path))


def _problem_of(database: Path) -> str | None:
    try:
        with closing(
            sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
        ) as opened:
            said = str(opened.execute("PRAGMA quick_check(1)").fetchone()[0])
            version = int(opened.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error as error:
        return str(error)
    if version > len(MIGRATIONS):
        return "a newer sr-edge wrote it: upgrade this one"
    return None if said == "ok" else said


def _print(checks: list[Check]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        say(f"{_WORDS[check.state]:<5} {check.name:<{width}}  {check.says}", keeps_spaces=True)
        if check.do:
            say(f"{'':<5} {'':<{width}}  -> {check.do}", keeps_spaces=True)
    failed = sum(check.state == "fail" for check in checks)
    warned = sum(check.state == "warn" for check in checks)
    words = [f"{failed} to mend"] * bool(failed) + [f"{warned} to know of"] * bool(warned)
    say(", ".join(words) or "all is well")
