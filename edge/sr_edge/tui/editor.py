"""The user's editor, on a text."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from sr_edge.errors import UsageError


def edited(text: str, environ: Mapping[str, str]) -> str:
    """What the user made of it, without the line end that editors put last. The terminal must be free.

    Raises:
        UsageError: there is no editor, or it failed; nothing is lost.
    """
    command = _editor(environ)
    with tempfile.TemporaryDirectory(prefix="sr-edge-") as folder:  # for its owner alone
        file = Path(folder) / "prompt.md"
        file.write_text(text, encoding="utf-8")
        try:
            code = subprocess.run([*command, str(file)], check=False).returncode
            after = file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(f"{command[0]} can't be used ({reason}): name your editor in EDITOR") from None
    if code:
        raise UsageError(f"{command[0]} ended with {code}: your prompt is as it was")
    return after.removesuffix("\n")


def _editor(environ: Mapping[str, str]) -> list[str]:
    named = environ.get("VISUAL") or environ.get("EDITOR") or ("notepad" if sys.platform == "win32" else "vi")
    try:
        words = shlex.split(named, posix=os.name != "nt")
    except ValueError:
        words = []
    if not words:
        raise UsageError("VISUAL or EDITOR holds no command")
    return words
