"""Who is still writing: each answer's writer keeps a file of its own locked beside the database.

The system drops the lock however the process ends, so that an answer which nobody will end is recognised,
and one that another process is writing is not taken for it.
"""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path

if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        """A file that is open cannot be deleted there, which tells as much."""

    def _is_locked(path: Path) -> bool:
        """Removes it if not."""
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _is_locked(path: Path) -> bool:
        """Removes it if not."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two may look at once
        except OSError:
            return True
        else:
            with suppress(OSError):
                path.unlink()
            return False
        finally:
            os.close(descriptor)


class Sign:
    """Says that its owner lives, from when it is made until `close`."""

    def __init__(self, database: Path) -> None:
        name = f".{database.name}.{secrets.token_hex(6)}.writer"
        self._path = database.with_name(name)
        self._descriptor: int | None = None
        unlocked = self._path.with_suffix(".new")  # who sees the name finds it locked
        try:
            self._descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            _lock(self._descriptor)
            os.rename(unlocked, self._path)
        except OSError:
            self.close()  # a full disk: the answer is kept all the same, and looks cut while it runs
        self.name = name if self._descriptor is not None else None

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            for path in (self._path, self._path.with_suffix(".new")):
                with suppress(OSError):
                    path.unlink()
            os.close(descriptor)


def sweep(database: Path) -> None:
    """Remove what those left who died before anything of theirs was in the database."""
    for path in database.parent.glob(f".{database.name}.*.writer"):
        _is_locked(path)


def is_alive(database: Path, name: str | None) -> bool:
    """Whether the owner of the sign with this name lives. Cleans up after the dead."""
    return bool(name) and os.sep not in (name or "") and _is_locked(database.with_name(name or ""))
