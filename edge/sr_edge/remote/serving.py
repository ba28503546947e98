"""Starts our own server as a child of ours, on a port of its own, and ends it whatever happens.

It ends when we leave, however we do: its standard input is a pipe of ours, which closes with us.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Final

from sr_edge.errors import EdgeError, ModelError, RemoteError, UsageError

# Its own Ctrl-C handling and exit are those of `python -m sr_edge`.
_TIED: Final = """import os, signal, sys, threading
def end_with_parent():
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end_with_parent, daemon=True).start()
from sr_edge.__main__ import run
run()
"""
COMMAND: Final = (sys.executable, "-P", "-c", _TIED)

_LOOK = 0.05  # seconds between two looks at whether to go on
_STOP_SECONDS = 5.0  # until it is killed
_ERRORS: Final[Mapping[int, type[EdgeError]]] = {2: UsageError, 3: RemoteError, 4: ModelError}
_NOTHING_SAID = "nothing was said"


@dataclass(frozen=True, slots=True)
class Serving:
    url: str
    pid: int


@contextmanager
def serving(
    options: Sequence[str],
    environ: Mapping[str, str],
    *,
    check: Callable[[], None] = lambda: None,
    seconds: float = 600.0,
    command: Sequence[str] = COMMAND,
) -> Iterator[Serving]:
    """`sr-edge serve` with these options while entered, ready to answer.

    Args:
        environ: all of it, for the child.
        check: called while it loads; what it raises ends it.
        seconds: until it must be ready.
        command: what runs in place of `sr-edge`.
    Raises:
        EdgeError: it could not start; of the kind that its exit code stands for, with its own last words.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [*command, "serve", "--port", "0", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # a Ctrl-C is ours: it ends when we end it
        )
        try:
            yield Serving(_ready(process, said, check, time.monotonic() + seconds), process.pid)
        finally:
            _end(process)


def _ready(process: subprocess.Popen[bytes], said: IO[bytes], check: Callable[[], None], until: float) -> str:
    """The URL that it prints once it accepts connections."""
    assert process.stdout is not None
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    stdout = process.stdout

    def listen() -> None:
        for line in stdout:
            lines.put(line)
        lines.put(b"")

    threading.Thread(target=listen, name="sr-edge serve's stdout", daemon=True).start()
    while True:
        check()
        with suppress(queue.Empty):
            line = lines.get(timeout=_LOOK)
            if line.strip():
                return line.decode("utf-8", "replace").strip()
            if not line:
                raise _failure(process, said)
        if time.monotonic() > until:
            raise EdgeError(f"`sr-edge serve` was not ready in time: {_last_words(said)}")


def _failure(process: subprocess.Popen[bytes], said: IO[bytes]) -> EdgeError:
    try:
        code = process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        return EdgeError(f"`sr-edge serve` closed its stdout and went on: {_last_words(said)}")
    return _ERRORS.get(code, EdgeError)(f"`sr-edge serve` ended with code {code}: {_last_words(said)}")


def _last_words(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1].removeprefix("sr-edge: ") if lines else _NOTHING_SAID


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
