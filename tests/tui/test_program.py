"""The program as it is installed, in a terminal: from a prompt to a file that shows who wrote what."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.tui.chatting import QUESTION

TRIES = 600


class Terminal:
    """One tmux server of its own, with the program in it."""

    def __init__(self, home: Path) -> None:
        self._socket = ""
        self._home = home

    def tmux(self, *arguments: str) -> str:
        environ = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "TMUX")
        }
        command = ["tmux", "-S", self._socket, "-f", os.devnull, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout

    def start(self, *arguments: str) -> None:
        self._socket = str(self._home / f"tmux{len(list(self._home.glob('tmux*')))}")
        environ = {"SR_EDGE_HOME": str(self._home / "home"), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        settings = [part for name, value in environ.items() for part in ("-e", f"{name}={value}")]
        # tmux does not always learn how its child ended: a shell writes it down.
        shell = ["sh", "-c", '"$@"; echo $? > "$SR_EDGE_HOME/left"', "sh"]
        command = [*shell, sys.executable, "-m", "sr_edge", *arguments]
        self.tmux("new-session", "-d", "-x", "120", "-y", "40", "-c", str(self._home), *settings, *command)
        self.tmux("set-option", "-g", "remain-on-exit", "on")
        self.tmux("resize-window", "-x", "120", "-y", "40")

    def type(self, *keys: str, literal: bool = False) -> None:
        self.tmux("send-keys", *(["-l"] if literal else []), *keys)

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def until(self, holds: Callable[[str], bool]) -> str:
        for _ in range(TRIES):
            screen = self.screen()
            if holds(screen):
                return screen
            time.sleep(0.05)
        raise AssertionError(f"it did not come to be so:\n{screen}")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    (tmp_path / "home").mkdir()
    terminal = Terminal(tmp_path)
    yield terminal
    for socket in tmp_path.glob("tmux*"):
        subprocess.run(["tmux", "-S", str(socket), "kill-server"], capture_output=True, check=False)


def test_from_a_prompt_to_an_exported_page(terminal: Terminal, tmp_path: Path) -> None:
    terminal.start("chat", "--temp", "0")
    terminal.until(lambda screen: "Ask something" in screen)
    terminal.type(QUESTION, literal=True)
    terminal.type("Enter")
    screen = terminal.until(lambda screen: "✓ complete" in screen)
    assert "◆1" in screen
    terminal.type("/export html", literal=True)
    terminal.type("Enter")
    terminal.until(lambda screen: "esc back" in screen)
    terminal.type("Enter")
    pages = []

    def is_written(screen: str) -> bool:
        pages[:] = tmp_path.glob("*.html")
        return bool(pages)

    terminal.until(is_written)
    page = pages[0].read_text()
    assert "Ida fills 28 bags" in page
    assert "sr-edge demo big" in page
    terminal.until(lambda screen: "⏎ done" in screen)
    terminal.type("Enter")
    terminal.until(lambda screen: "⏎ done" not in screen)
    terminal.type("/quit", literal=True)
    terminal.type("Enter")
    left = tmp_path / "home" / "left"
    terminal.until(lambda screen: left.exists() and left.read_text() == "0\n")


def test_the_next_run_opens_what_the_last_one_said(terminal: Terminal) -> None:
    terminal.start("chat", "--temp", "0", QUESTION)
    terminal.until(lambda screen: "✓ complete" in screen)
    terminal.tmux("send-keys", "C-q")
    terminal.start("chat", "--continue")
    screen = terminal.until(lambda screen: "✓ complete" in screen)
    assert "Ida fills 28 bags" in screen
