"""The program in a real terminal: what it writes there, how it leaves it, and that nothing outlives it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from tests.command_line import environment
from tests.tui.chatting import QUESTION
from tests.tui.in_pty import PATIENCE, STAGED, Program, is_alive

from sr_edge.store import Store, history_path

NOISE = "llama_model_loader: junk of a native library"
NOISY = f"""
import os, sys, threading, time
def shout():
    while True:
        os.write(1, b"{NOISE}\\n")
        os.write(2, b"{NOISE}\\n")
        time.sleep(0.001)
from sr_edge.engine import child
opened = child.Child.serve
def serve(self):
    threading.Thread(target=shout, daemon=True).start()
    opened(self)
child.Child.serve = serve
child.main()
"""
TALKING = [sys.executable, str(Path(__file__).with_name("talking_child.py")), "500", "200"]


def staged(*command: str) -> dict[str, str]:
    return {"STAGED_CHILD": "\n".join(command)}


def store_of(home: Path) -> Store:
    return Store.open(history_path({"SR_EDGE_HOME": str(home)}))


def until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, f"{pids} outlived the program"
        time.sleep(0.02)


def until_idle(program: Program) -> None:
    """Until the models are there."""
    program.until(lambda screen: "   idle" in screen)


def test_nothing_but_the_screen_is_written_while_native_code_prints(tmp_path: Path) -> None:
    """The real child loads the real pair and answers, and prints on both of its streams all the time."""
    noisy = tmp_path / "noisy.py"
    noisy.write_text(NOISY)
    env = staged(sys.executable, str(noisy))
    with Program("--temp", 0, QUESTION, home=tmp_path / "home", command=STAGED, env=env) as program:
        screen = program.until("✓ complete")
        assert "◆1" in screen
        program.type("\x11")
        assert program.wait() == 0
        assert NOISE.split(":")[0].encode() not in program.output
        assert program.glass is not None
        assert program.glass.strange == []


def test_leaving_gives_the_terminal_back(tmp_path: Path) -> None:
    with Program(home=tmp_path / "home") as program:
        program.until("Ask something")
        assert program.glass is not None
        assert {"1049", "1000", "1006", "2004"} <= program.glass.modes
        assert "25" not in program.glass.modes
        program.type("\x11")
        assert program.wait() == 0
        assert program.glass.modes & {"1049", "1000", "1002", "1003", "1006", "1015", "2004", "25"} == {"25"}
        assert program.terminal_now() == program.terminal_before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals, code: int) -> None:
    home = tmp_path / "home"
    with Program("go", home=home, command=STAGED, env=staged(*TALKING)) as program:
        program.until("◆2")
        children = program.children()
        assert children
        program.send_signal(number)
        assert program.wait() == code
        assert program.glass is not None
        assert "1049" not in program.glass.modes
        assert program.terminal_now() == program.terminal_before
    until_gone(children)
    store = store_of(home)
    conversation = store.latest()
    assert conversation is not None
    assert conversation.head is not None
    asked, answer = store.thread(conversation.head)
    assert asked.text == "go"
    assert answer.status == "stopped"
    assert answer.transcript is not None
    assert len(answer.transcript.spans) >= 2
    store.close()


def test_a_terminal_that_closes_ends_it(tmp_path: Path) -> None:
    """Nobody sends a signal to a program whose own terminal it isn't, but its reads and writes fail."""
    home = tmp_path / "home"
    with Program("go", home=home, command=STAGED, env=staged(*TALKING)) as program:
        program.until("◆2")
        pids = [program.pid, *program.children()]
        program.hang_up()
        until_gone(pids)


def test_the_child_does_not_outlive_a_killed_program(tmp_path: Path) -> None:
    """The real child, once while it loads and once while it has nothing to do."""
    for is_ready in (False, True):
        with Program(home=tmp_path / "home") as program:
            program.until("Ask something")
            if is_ready:
                until_idle(program)
            deadline = time.monotonic() + PATIENCE
            while not (children := program.children()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            program.send_signal(signal.SIGKILL)
            program.wait()
            until_gone(children)


def without_terminal(which: str, path: Path, *, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """The exit code, and what was said on stderr, where one stream of the program is no terminal."""
    master, slave = pty.openpty()
    error = path / "stderr"
    with error.open("wb") as stderr, (path / "stdout").open("wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "sr_edge", "chat"],
            stdin=subprocess.DEVNULL if which == "stdin" else slave,
            stdout=stdout if which == "stdout" else slave,
            stderr=stderr if which in ("stderr", "stdin") else slave,
            env=environment(**(env or {})),
            timeout=PATIENCE,
            check=False,
        )
    os.close(slave)
    said = error.read_bytes()
    with suppress(OSError):
        said += os.read(master, 65536)
    os.close(master)
    return done.returncode, said.decode()


@pytest.mark.parametrize("which", ["stdin", "stdout", "stderr"])
def test_without_a_terminal_it_says_so_in_one_line(tmp_path: Path, which: str) -> None:
    code, said = without_terminal(which, tmp_path)
    assert code == 2
    assert said.strip().count("\n") == 0
    assert f"sr-edge: chat needs a terminal, and {which} is none" in said
    assert "\x1b" not in said


def test_a_terminal_that_cannot_move_its_cursor_is_none(tmp_path: Path) -> None:
    code, said = without_terminal("none", tmp_path, env={"TERM": "dumb"})
    assert code == 2
    assert said.strip().count("\n") == 0
    assert "TERM is dumb" in said
