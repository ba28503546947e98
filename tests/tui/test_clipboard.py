"""Copying: the first way that works is taken, none hangs, and what is told is so."""

import base64
import shutil
import sys
from pathlib import Path

import pytest

from sr_edge.tui import clipboard
from sr_edge.tui.clipboard import MAX_BY_TERMINAL, Copied, copy, sequence

TEXT = "x² ≤ 2\nzwei\n"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder in which `program` puts some."""
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def program(folder: Path, name: str, body: str = 'cat > "$(dirname "$0")/$(basename "$0").got"') -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o700)


def do(folder: Path, environ: dict[str, str], platform: str = "linux") -> tuple[Copied, list[str]]:
    written: list[str] = []
    path = f"{folder}:/usr/bin:/bin"
    copied = copy(
        TEXT,
        environ={"PATH": path, **environ},
        platform=platform,
        write=written.append,
        find=lambda name: shutil.which(name, path=str(folder)),
    )
    return copied, written


@pytest.mark.parametrize(
    ("name", "environ", "platform", "encoding"),
    [
        ("pbcopy", {}, "darwin", "utf-8"),
        ("wl-copy", {"WAYLAND_DISPLAY": "wayland-0", "DISPLAY": ":0"}, "linux", "utf-8"),
        ("xclip", {"DISPLAY": ":0"}, "linux", "utf-8"),
        ("xsel", {"DISPLAY": ":0"}, "linux", "utf-8"),
        ("clip.exe", {"WSL_DISTRO_NAME": "Debian"}, "linux", "utf-16"),
        ("xclip", {"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "a b"}, "linux", "utf-8"),
    ],
)
def test_the_program_of_the_system_gets_the_text(
    programs: Path, name: str, environ: dict[str, str], platform: str, encoding: str
) -> None:
    program(programs, name)
    copied, written = do(programs, environ, platform)
    assert copied == Copied(name, is_sure=True)
    assert copied.notice("the answer") == "the answer copied"
    assert (programs / f"{name}.got").read_bytes() == TEXT.encode(encoding)
    assert written == []


@pytest.mark.parametrize("environ", [{}, {"SSH_CONNECTION": "a b", "DISPLAY": ":0"}])
def test_without_one_the_terminal_is_asked(programs: Path, environ: dict[str, str]) -> None:
    program(programs, "xclip")  # of a machine that the user does not sit at, or without a display
    copied, written = do(programs, environ)
    assert copied == Copied("terminal", is_sure=False)
    assert "some don't" in copied.notice("the answer")
    assert written == [f"\x1b]52;c;{base64.b64encode(TEXT.encode()).decode()}\x07"]


def test_a_program_that_fails_is_passed_over(programs: Path) -> None:
    program(programs, "wl-copy", "exit 1")
    program(programs, "xclip")
    copied, _ = do(programs, {"WAYLAND_DISPLAY": "w", "DISPLAY": ":0"})
    assert copied == Copied("xclip", is_sure=True)


def test_a_program_that_hangs_is_given_up(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipboard, "TIMEOUT", 0.05)
    program(programs, "xclip", "exec sleep 600")
    copied, written = do(programs, {"DISPLAY": ":0"})
    assert copied.way == "terminal"
    assert written


def test_a_program_that_stays_in_the_background_is_not_waited_for(programs: Path) -> None:
    program(programs, "xclip", "cat > /dev/null; sleep 600 & echo $! > $(dirname $0)/pid")
    copied, _ = do(programs, {"DISPLAY": ":0"})
    assert copied.is_sure
    import os
    import signal

    os.kill(int((programs / "pid").read_text()), signal.SIGKILL)


def test_within_tmux_it_asks_the_terminal(programs: Path) -> None:
    program(programs, "tmux")
    copied, written = do(programs, {"TMUX": "/tmp/tmux-0/default,1,0"})
    assert (copied, written) == (Copied("tmux", is_sure=False), [])
    assert (programs / "tmux.got").read_text() == TEXT


def test_an_old_tmux_hands_the_sequence_on(programs: Path) -> None:
    program(programs, "tmux", "exit 1")
    copied, written = do(programs, {"TMUX": "/tmp/tmux-0/default,1,0"})
    assert copied == Copied("terminal", is_sure=False)
    plain = sequence(TEXT.encode(), in_tmux=False)
    assert written == ["\x1bPtmux;" + plain.replace("\x1b", "\x1b\x1b") + "\x1b\\"]


def test_too_much_for_a_terminal_is_not_said_to_be_copied() -> None:
    written: list[str] = []
    copied = copy("x" * (MAX_BY_TERMINAL + 1), environ={}, platform="linux", write=written.append)
    assert (copied, written) == (Copied("", is_sure=False), [])
    assert copied.notice("all") == "all not copied: install wl-copy, xclip or xsel"


def test_half_characters_do_no_harm() -> None:
    written: list[str] = []
    copied = copy("a\ud800b", environ={}, platform="linux", write=written.append)
    assert copied.way == "terminal"
    assert written == [sequence(b"a?b", in_tmux=False)]


@pytest.mark.skipif(sys.platform != "linux", reason="names of this system's programs")
def test_without_any_way_it_says_so() -> None:
    copied = copy("a", environ={}, platform="linux", write=None)
    assert copied == Copied("", is_sure=False)
