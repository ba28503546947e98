"""The token that a client must show: made once, and kept where only its owner can read it."""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sr_edge.errors import UsageError
from sr_edge.files import locked, state_dir, write_private

_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}\n?")
_OTHERS = 0o077
_MAX_BYTES = 100


def token_path(environ: Mapping[str, str] = os.environ) -> Path:
    return state_dir(environ) / "serve-token"


def serve_token(environ: Mapping[str, str] = os.environ) -> str:
    """Of 256 random bits; the same one at every start.

    Raises:
        UsageError: others can read the file, or it holds something else.
    """
    path = token_path(environ)
    with suppress(FileNotFoundError):
        return _read(path)
    with locked(path):
        with suppress(FileNotFoundError):
            return _read(path)  # another start was faster
        write_private(path, secrets.token_urlsafe(_BYTES) + "\n")
        return _read(path)


def _read(path: Path) -> str:
    """Raises: UsageError. FileNotFoundError: there is none yet."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe must not hold us up
    except FileNotFoundError:
        if path.is_symlink():
            raise _unusable(path, "it is a link that leads nowhere") from None
        raise
    except OSError as error:
        raise _unusable(path, f"it cannot be read: {error.strerror}") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _unusable(path, "it is not a file")
        if sys.platform != "win32":
            if found.st_uid != os.geteuid():
                raise _unusable(path, "it belongs to another user")
            if found.st_mode & _OTHERS:
                raise _unusable(path, f"others may read or write it (mode {stat.S_IMODE(found.st_mode):03o})")
        text = os.read(descriptor, _MAX_BYTES).decode("ascii", "replace")
    finally:
        os.close(descriptor)
    if not _TOKEN.fullmatch(text):
        raise _unusable(path, "it holds something else")
    return text.strip()


def _unusable(path: Path, reason: str) -> UsageError:
    return UsageError(f"{path} should hold the server's token, but {reason}: remove it for a new one")
