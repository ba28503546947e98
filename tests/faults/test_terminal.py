"""F69, F72 and F73: what reaches a terminal, and what becomes of us when nobody reads."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from unittest import mock

import pytest
from tests.command_line import COMMAND, TIMEOUT, environment, run_in_terminal
from tests.faults.harness import TALLY
from tests.faults.test_command import MODELS, QUESTION

from sr_edge.commands import main
from sr_edge.testing.fault_endpoint import COMPLETIONS, DONE, FIN, FaultEndpoint, failure, head
from sr_edge.testing.oracle import CANARY

ASK = ("ask", QUESTION, "--temp", "0", "--max-span-tokens", "60")

FOREIGN = [head(), COMPLETIONS.text(" 数 🧮 é ⟦ 42"), DONE, FIN]

OURS = re.compile(r"\x1b\[[0-9;]*m")
"""The only sequences that we write ourselves: colours."""

HOSTILE = {
    "csi": "\x1b[5m\x1b[2J\x1b[H",
    "osc 52": "\x1b]52;c;aGVsbG8=\x07",
    "osc 8": "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "title": "\x1b]0;owned\x07",
    "dcs": "\x1bP+q544e\x1b\\",
    "c1": "\x9b5m\x9d52;c;x\x9c",
    "bell": "\x07\x07",
    "overwrite": "safe\rEVIL",
    "backspace": "safe\x08\x08EVIL",
    "bidi": "\u202eevil\u202c \u2066x\u2069 \u200f",
    "tags": "a\U000e0041\U000e0042b",
    "zero width": "a\u200bb\u200cc\u200dd\ufeff",
    "combining": "e" + 40 * "\u0301",
    "nul": "a\x00b\x01c\x1fd\x7fe",
    "separators": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "markup": "[/bold][bold][link=http://evil.example]x[/link][/path][red on blue]",
    "cut": "\x1b",
    "half": "\x1b[",
}

FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\U000e0000-\U000e007f]"
)


def call_in_terminal(*arguments, env):
    """As `run_in_terminal`, within this process, which saves its start."""
    ours, theirs = pty.openpty()
    shown = []

    def read():
        with contextlib.suppress(OSError):  # how the end of a terminal looks on Linux
            while piece := os.read(ours, 65536):
                shown.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    streams = [os.fdopen(os.dup(theirs), mode, encoding="utf-8") for mode in ("r", "w", "w")]
    os.close(theirs)
    replaced = mock.patch.multiple(
        sys, argv=["sr-edge", *map(str, arguments)], stdin=streams[0], stdout=streams[1], stderr=streams[2]
    )
    with replaced, mock.patch.dict(os.environ, environment(**{"COLUMNS": "80", **env}), clear=True):
        try:
            main()
        except SystemExit as left:
            code = left.code
    for stream in streams:
        stream.close()
    reader.join()
    os.close(ours)
    return code, b"".join(shown).decode()


def assert_harmless(shown):
    left = OURS.sub("", shown).replace("\r", "")
    assert not FORBIDDEN.search(left), repr(FORBIDDEN.search(left))
    assert "\x1b[5m" not in shown, "a sequence of the remote's"
    assert "Traceback" not in shown
    assert CANARY not in shown


@pytest.mark.parametrize("name", HOSTILE)
def test_f72_f73_text_of_a_remote(name, tmp_path):
    """Sent as it is and cut at every character."""
    TALLY.cases += 1
    text = f" 12 {HOSTILE[name]} 42"
    spans = [[head(), *map(COMPLETIONS.text, pieces), DONE, FIN] for pieces in ([text], list(text))]
    with FaultEndpoint(spans[0], then=spans[1], pages={"/v1/models": MODELS}) as server:
        code, shown = call_in_terminal(
            *ASK, "--big", server.url, "--big-model", "big", env={"SR_EDGE_HOME": str(tmp_path)}
        )
    assert code == 0, shown
    assert_harmless(shown)
    if name == "markup":
        assert "[/bold]" in OURS.sub("", shown), "markup is text like any other"


@pytest.mark.parametrize("name", ["csi", "osc 52", "c1", "bidi", "markup", "overwrite"])
def test_f72_f73_errors_and_names_of_a_remote(name, tmp_path):
    TALLY.cases += 1
    evil = HOSTILE[name]
    refusal = failure(400, f"no {evil}", X_Reason="x")
    with FaultEndpoint(then=refusal, pages={"/v1/models": MODELS}) as server:
        code, shown = call_in_terminal(
            *ASK, "--big", server.url, "--big-model", f"big {evil}".replace("\0", ""), "--spans", "table",
            env={"SR_EDGE_HOME": str(tmp_path)},
        )  # fmt: skip
    assert code == 0, shown
    assert_harmless(shown)


@pytest.mark.parametrize("name", ["csi", "bidi", "markup"])
def test_f73_names_of_files(name, tmp_path):
    TALLY.cases += 1
    evil = HOSTILE[name].replace("/", "_")
    path = tmp_path / evil
    path.write_bytes(b"GGUF but not really")
    code, shown = call_in_terminal("ask", "hi", "-m", path, env={"SR_EDGE_HOME": str(tmp_path)})
    assert code in (2, 4), shown
    assert_harmless(shown)


@pytest.mark.parametrize(
    "env",
    [{"TERM": "dumb"}, {"NO_COLOR": "1"}, {"COLUMNS": "1"}, {"TERM": ""}],
    ids=["dumb", "no colour", "one column", "no type"],
)
def test_f69_poor_terminals(env, tmp_path):
    TALLY.cases += 1
    with FaultEndpoint(then=FOREIGN, pages={"/v1/models": MODELS}) as server:
        arguments = (*ASK, "--big", server.url, "--big-model", "big", "--spans", "table")
        code, shown = call_in_terminal(*arguments, env={"SR_EDGE_HOME": str(tmp_path), **env})
    assert code == 0, shown
    assert_harmless(shown)


def test_f69_a_terminal_without_unicode(tmp_path):
    TALLY.cases += 1
    with FaultEndpoint(then=FOREIGN, pages={"/v1/models": MODELS}) as server:
        arguments = (*ASK, "--big", server.url, "--big-model", "big", "--spans", "table")
        env = {"SR_EDGE_HOME": str(tmp_path), "PYTHONUTF8": "0", "LC_ALL": "C"}
        code, shown = run_in_terminal(*arguments, env=env)
    assert code == 0, shown
    assert_harmless(shown)


def shell(line, tmp_path, **more):
    """`sr-edge` with redirections, as a user types them."""
    command = " ".join(f"'{part}'" for part in COMMAND)
    quoted = " ".join("'" + part.replace("'", "'\\''") + "'" for part in ASK)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.format(ask=f"{command} {quoted}")],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment(SR_EDGE_HOME=str(tmp_path), **more),
        timeout=TIMEOUT,
    )


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        ("{ask} --jsonl | head -c 10", {141}),
        ("{ask} > /dev/full", {1}),
        ("{ask} --jsonl > /dev/full", {1}),
        ("{ask} >&-", {0}),
        ("{ask} 2> /dev/full", {0, 1}),
        ("{ask} >&- 2>&-", {0}),
        ("{ask} < /dev/null", {0}),
        ("{ask} <&-", {0}),
    ],
)
def test_f69_streams_that_nobody_reads(line, codes, tmp_path):
    """Never a traceback; a disk that is full is said and counts, a reader that left is no error."""
    TALLY.cases += 1
    done = shell(line, tmp_path)
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if "/dev/full" in line and "2>" not in line:
        assert len(done.stderr.splitlines()[-1]) < 200
        assert "No space left" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_f69_streams_without_unicode(encoding, tmp_path):
    TALLY.cases += 1
    with FaultEndpoint(then=FOREIGN, pages={"/v1/models": MODELS}) as server:
        done = shell(
            f"{{ask}} --big {server.url} --big-model big --jsonl",
            tmp_path,
            PYTHONUTF8="0",
            PYTHONIOENCODING=encoding,
        )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_f69_a_terminal_that_changes_its_size(tmp_path):
    """Between one token and the next."""
    TALLY.cases += 1
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [*COMMAND, *ASK, "--spans", "table"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={
            name: value
            for name, value in environment(SR_EDGE_HOME=str(tmp_path)).items()
            if name != "COLUMNS"
        },
    )
    os.close(theirs)
    shown, columns = b"", 1
    try:
        while piece := os.read(ours, 4096):
            shown += piece
            columns = columns * 3 % 200 + 1
            fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 1 + columns % 50, columns, 0, 0))
    except OSError:
        pass  # how the end of a terminal looks on Linux
    os.close(ours)
    assert child.wait(TIMEOUT) == 0
    assert_harmless(shown.decode())
