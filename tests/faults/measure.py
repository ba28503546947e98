"""How long Ctrl-C takes in each phase of an answer: until it is over and kept, and until the process is gone.

    python -m tests.faults.measure [N]

prints p50, p95 and the longest of N runs of each phase, in ms.
"""

import contextlib
import fcntl
import os
import pty
import signal
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass
from pathlib import Path

from tests.command_line import COMMAND, environment
from tests.faults.harness import HARD

from sr_edge.testing.fault_endpoint import COMPLETIONS, HANG, FaultEndpoint, black_hole, head

QUESTION = HARD[10].question
LONG = HARD[15].question
LIMIT = 30.0  # seconds for a phase to come


@dataclass(frozen=True)
class Pressed:
    """One run: what became of it, and how long it took."""

    seconds: float
    """To the end of the process."""
    stopped: float | None
    """To the end of the answer, where it had begun."""
    code: int
    errors: str
    events: str
    was_in_time: bool
    """The phase had not passed before the key was pressed."""


def _is_loading(child, events):
    with contextlib.suppress(OSError):
        return "small.gguf" in Path(f"/proc/{child.pid}/maps").read_text()
    return False


def _has(word):
    return lambda child, events: events.exists() and word in events.read_text()


PHASES = {
    "start": (lambda child, events: _uptime(child) > 0.3, "none", QUESTION),
    "load": (_is_loading, "none", QUESTION),
    "decode": (_has('"local_token"'), "local", LONG),
    "connect": (_has('"span_opened"'), "black hole", QUESTION),
    "waiting": (_has('"span_opened"'), "silent", QUESTION),
    "mid-span": (_has('"span_delta"'), "mid-span", QUESTION),
}
"""When a phase has come, who is asked, and what."""


def _uptime(child):
    return time.monotonic() - child.began


@contextlib.contextmanager
def _remote(kind):
    """Options that name the large model."""
    if kind == "none":
        yield []
    elif kind == "local":
        yield ["--policy", "local"]
    elif kind == "black hole":
        with black_hole() as url:
            yield ["--big", url, "--big-model", "big"]
    else:
        texts = [head(), COMPLETIONS.text(" 12 + 30")] if kind == "mid-span" else []
        with FaultEndpoint([*texts, HANG]) as server:
            yield ["--big", server.url, "--big-model", "big"]


def press(phase, folder, *, in_terminal=False):
    """Ctrl-C as soon as the phase has come."""
    has_come, kind, question = PHASES[phase]
    events = Path(folder) / "events.jsonl"
    events.unlink(missing_ok=True)
    with _remote(kind) as options:
        command = [*COMMAND, "ask", question, "--temp", "0", "--events", str(events), *options]
        child, key = (_in_terminal if in_terminal else _in_pipes)(command, folder)
        child.began = time.monotonic()
        while not has_come(child, events) and child.poll() is None and _uptime(child) < LIMIT:
            time.sleep(0.002)
        was_in_time = child.poll() is None
        began = time.monotonic()
        key()
        stopped = None
        while child.poll() is None and time.monotonic() - began < LIMIT:
            if stopped is None and _has('"finished"')(child, events):
                stopped = time.monotonic() - began
            time.sleep(0.002)
        seconds = time.monotonic() - began
        errors = "" if in_terminal else child.communicate(timeout=LIMIT)[1].decode()
    said = events.read_text() if events.exists() else ""
    return Pressed(seconds, stopped, child.returncode, errors, said, was_in_time)


def _in_pipes(command, folder):
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(SR_EDGE_HOME=str(folder)),
    )

    def key():
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGINT)

    return child, key


def _in_terminal(command, folder):
    """With a terminal of its own, whose line discipline makes the signal of the key."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(SR_EDGE_HOME=str(folder)),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    return child, lambda: os.write(ours, b"\x03")


def main(runs=20):
    with tempfile.TemporaryDirectory() as folder:
        for phase in PHASES:
            pressed = [press(phase, folder) for _ in range(runs)]
            pressed = [one for one in pressed if one.was_in_time]
            codes = sorted({one.code for one in pressed})
            gone = _figures([one.seconds for one in pressed])
            over = _figures([one.stopped for one in pressed if one.stopped is not None])
            print(f"{phase:9} over: {over}  gone: {gone}  codes {codes}", flush=True)


def _figures(seconds):
    if len(seconds) < 2:
        return f"n {len(seconds)}" + 23 * " "
    p50, p95 = (1000 * statistics.quantiles(seconds, n=20, method="inclusive")[n] for n in (9, 18))
    return f"p50 {p50:3.0f}  p95 {p95:3.0f}  max {1000 * max(seconds):3.0f}  n {len(seconds)}"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
