"""Runs `sr-edge` as a user does: another process, its own streams, in a terminal where a test wants one."""

from __future__ import annotations

import atexit
import io
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from unittest import mock

from sr_edge.commands import main

COMMAND = (sys.executable, "-m", "sr_edge")
TIMEOUT = 60.0  # seconds; a command that hangs fails its test, not the run


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would change how things look, or where they go; with settings that are nobody's."""
    unwanted = ("NO_COLOR", "COLUMNS", "PYTHONIOENCODING")
    kept = {n: v for n, v in os.environ.items() if n not in unwanted and not n.startswith("SR_EDGE_")}
    return {**kept, "PYTHONUTF8": "1", "TERM": "xterm-256color", "SR_EDGE_HOME": _home(), **more}


@cache
def _home() -> str:
    """A folder of its own for this run of the tests."""
    folder = tempfile.mkdtemp(prefix="sr-edge-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def run(
    *arguments: object, stdin: str | bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """With pipes for all three streams."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        env=environment(**(env or {})),
        timeout=TIMEOUT,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def call(
    *arguments: object, stdin: str | bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """As `run`, but within this process, which saves its start."""
    streams = [
        io.TextIOWrapper(io.BytesIO(data), "utf-8")
        for data in (stdin.encode() if isinstance(stdin, str) else stdin, b"", b"")
    ]
    replaced = mock.patch.multiple(
        sys, argv=["sr-edge", *map(str, arguments)], stdin=streams[0], stdout=streams[1], stderr=streams[2]
    )
    with replaced, mock.patch.dict(os.environ, environment(**(env or {})), clear=True):
        try:
            main()
        except SystemExit as left:
            code = left.code
    out, err = (stream.buffer.getvalue().decode() for stream in streams[1:])
    return subprocess.CompletedProcess(arguments, code, out, err)


def run_interrupted(
    *arguments: object,
    when: Callable[[], bool],
    number: int = signal.SIGINT,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """As `run`, with a Ctrl-C (or another signal) as soon as `when` says so."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**(env or {})),
    )
    deadline = time.monotonic() + TIMEOUT
    while not when() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT)
    return subprocess.CompletedProcess(process.args, process.returncode, out.decode(), err.decode())


def run_in_terminal(
    *arguments: object,
    columns: int = 80,
    env: Mapping[str, str] | None = None,
    typed: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """All three streams on one terminal. Returns the exit code and what the terminal got.

    Args:
        typed: what the user types each time that this text has come.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(COLUMNS=str(columns), **(env or {})),
    )
    os.close(theirs)
    got = b""
    deadline = time.monotonic() + TIMEOUT
    with suppress(OSError):  # how the end of a terminal looks on Linux
        while time.monotonic() < deadline and select.select([ours], [], [], TIMEOUT)[0]:
            piece = os.read(ours, 65536)
            if not piece:
                break
            for text, answer in (typed or {}).items():
                is_new = (got + piece).count(text.encode()) - got.count(text.encode())
                os.write(ours, answer.encode() * is_new)
            got += piece
    os.close(ours)
    return process.wait(TIMEOUT), got.decode().replace("\r\n", "\n")
