r"""Copying, by whatever works here. Says by which way, so that nobody is told what is not so.

A program of the system is sure; the terminal's escape sequence is not: some terminals ignore it in silence.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

TIMEOUT = 1.0
"""Seconds for one program: a clipboard that hangs must not take the screen along."""

MAX_BY_TERMINAL = 74_000
"""Bytes: of more, terminals take nothing, or a part."""


@dataclass(frozen=True, slots=True)
class Copied:
    way: str
    """The program's name, `tmux`, `terminal`, or nothing where no way worked."""
    is_sure: bool

    def notice(self, what: str) -> str:
        """What the user is told. Args: what: `the answer`, `3 lines`."""
        if self.is_sure:
            return f"{what} copied"
        if self.way:
            return f"{what} handed to the terminal: most copy it, some don't"
        return f"{what} not copied: install wl-copy, xclip or xsel"


def copy(
    text: str,
    *,
    environ: Mapping[str, str],
    platform: str,
    write: Callable[[str], object] | None,
    find: Callable[[str], str | None] = shutil.which,
) -> Copied:
    """Put the text into the clipboard.

    Args:
        platform: as `sys.platform`.
        write: sends an escape sequence to the terminal; None where there is none.
    """
    for command, encoding in _programs(environ, platform):
        program = find(command[0])
        if program is not None and _ran([program, *command[1:]], text.encode(encoding, "replace"), environ):
            return Copied(command[0], is_sure=True)
    data = text.encode(errors="replace")
    tmux = find("tmux") if environ.get("TMUX") else None
    if tmux is not None and _ran([tmux, "load-buffer", "-w", "-"], data, environ):
        return Copied("tmux", is_sure=False)  # it asks the terminal in its turn
    if write is None or len(data) > MAX_BY_TERMINAL:
        return Copied("", is_sure=False)
    write(sequence(data, in_tmux=bool(environ.get("TMUX"))))
    return Copied("terminal", is_sure=False)


def sequence(data: bytes, *, in_tmux: bool) -> str:
    """OSC 52. tmux hands on what is wrapped for it, with each escape doubled."""
    plain = f"\x1b]52;c;{base64.b64encode(data).decode()}\x07"
    return "\x1bPtmux;" + plain.replace("\x1b", "\x1b\x1b") + "\x1b\\" if in_tmux else plain


def _programs(environ: Mapping[str, str], platform: str) -> list[tuple[list[str], str]]:
    """Commands and the encoding that each expects. Through ssh, this machine's clipboard is not the user's,
    but for a display that ssh forwards.
    """
    display = environ.get("DISPLAY", "")
    of_x = [(["xclip", "-selection", "clipboard"], "utf-8"), (["xsel", "-b", "-i"], "utf-8")]
    if any(environ.get(name) for name in ("SSH_CONNECTION", "SSH_TTY", "SSH_CLIENT")):
        return of_x if display and not display.startswith(":") else []
    if platform == "darwin":
        return [(["pbcopy"], "utf-8")]
    if platform == "win32":
        return [(["clip.exe"], "utf-16")]
    found = []
    if environ.get("WAYLAND_DISPLAY"):
        found.append((["wl-copy"], "utf-8"))
    if display:
        found += of_x
    if environ.get("WSL_DISTRO_NAME"):
        found.append((["clip.exe"], "utf-16"))
    return found


def _ran(command: list[str], data: bytes, environ: Mapping[str, str]) -> bool:
    """Some stay in the background to serve what was copied, so nobody waits for their output to end."""
    try:
        done = subprocess.run(
            command,
            input=data,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT,
            env={**environ, "LC_ALL": "C.UTF-8"} if command[0].endswith("pbcopy") else dict(environ),
            start_new_session=True,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
