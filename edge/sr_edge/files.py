"""Where our files lie, and how they are written: whole or not at all, for their owner alone, one at a time.

SR_EDGE_HOME moves all of them under one folder. Without it they are where the platform puts such files, and
wherever the XDG variables say, on macOS too. What stands in the files is none of this module's business.
"""

from __future__ import annotations

import errno
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from sr_edge.errors import UsageError

HOME_VARIABLE = "SR_EDGE_HOME"
CONFIG_VARIABLE = "SR_EDGE_CONFIG"

LOCK_SECONDS = 10.0
"""How long to wait for another process. Each holds a lock for milliseconds."""

_APP = "sr-edge"
_PRIVATE = 0o600
_PRIVATE_DIR = 0o700


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The user's settings. The file need not exist."""
    named = environ.get(CONFIG_VARIABLE)
    return _named(CONFIG_VARIABLE, named) if named else own_config_path(environ)


def own_config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The same where no variable names another."""
    return config_dir(environ) / "config.toml"


def keys_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Apart from the settings, which people put under version control and share."""
    home = _home(environ)
    folder = home or _xdg(environ, "XDG_DATA_HOME") or platformdirs.user_data_path(_APP, appauthor=False)
    return folder / "keys.json"


def config_dir(environ: Mapping[str, str] = os.environ) -> Path:
    home = _home(environ)
    return home or _xdg(environ, "XDG_CONFIG_HOME") or platformdirs.user_config_path(_APP, appauthor=False)


def state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """For what should outlive a restart and be missed by nobody for long: totals, logs."""
    home = _home(environ)
    if home:
        return home / "state"
    return _xdg(environ, "XDG_STATE_HOME") or platformdirs.user_state_path(_APP, appauthor=False)


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """For what can be found out again."""
    home = _home(environ)
    if home:
        return home / "cache"
    return _xdg(environ, "XDG_CACHE_HOME") or platformdirs.user_cache_path(_APP, appauthor=False)


def _home(environ: Mapping[str, str]) -> Path | None:
    named = environ.get(HOME_VARIABLE)
    return _named(HOME_VARIABLE, named) if named else None


def _named(variable: str, text: str) -> Path:
    """Raises: UsageError: it begins with `~name`, and nobody has this name."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise UsageError(
            f"{variable}: {text} begins with ~ and a name that no user here has: write the path out"
        ) from None


def _xdg(environ: Mapping[str, str], variable: str) -> Path | None:
    folder = environ.get(variable, "")
    if sys.platform == "win32" or not os.path.isabs(folder):
        return None  # the specification: a relative path is to be ignored
    return Path(folder) / _APP


# --- writing -----------------------------------------------------------------------------------------


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text` at once; whatever fails or crashes, the old or the new file is there, whole.

    A link stays a link: the file that it leads to is replaced.

    Raises:
        UsageError: it cannot be written; the old file is as it was.
    """
    try:
        target = _target(path)
        make_private_dir(target.parent)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            _write_new(temporary, text)
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_dir(target.parent)
    except (OSError, RuntimeError) as error:
        raise cannot_write(path, error) from None


def _target(path: Path) -> Path:
    """Where links lead. Raises: OSError: something is there that is no file: a folder, or /dev/null."""
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "it is not a file")
    return target


def new_private(path: Path, text: str) -> Path:
    """A new file beside `path`, with a name like it. Raises: UsageError."""
    try:
        target = _target(path)
        make_private_dir(target.parent)
        copy = target.with_name(f"{target.stem}.{secrets.token_hex(4)}{target.suffix}")
        _write_new(copy, text)
    except (OSError, RuntimeError) as error:
        raise cannot_write(path, error) from None
    return copy


def make_private_dir(folder: Path) -> None:
    """Make what is missing of it for its owner alone; folders that exist are left as they are."""
    if not folder.exists():
        make_private_dir(folder.parent)
        folder.mkdir(_PRIVATE_DIR, exist_ok=True)


def cannot_write(path: Path, error: OSError | RuntimeError) -> UsageError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return UsageError(f"{path} cannot be written: {reason}. {HOME_VARIABLE}=FOLDER puts our files elsewhere")


def _write_new(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), _PRIVATE)
    with open(descriptor, "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _sync_dir(folder: Path) -> None:
    """Make the new name last; where a folder cannot be opened or synced, the system does it by itself."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- one at a time -----------------------------------------------------------------------------------


class BusyError(UsageError):
    """Somebody else keeps the lock."""


@contextmanager
def locked(path: Path, *, timeout: float = LOCK_SECONDS) -> Iterator[None]:
    """Keep other processes and threads that do the same out, between reading `path` and writing it.

    The lock is a file beside it, which stays: to delete it would let two in at once.

    Raises:
        BusyError
        UsageError: the lock cannot be made.
    """
    try:
        target = _target(path)
        make_private_dir(target.parent)
        lock = target.with_name(f".{target.name}.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, _PRIVATE)
    except (OSError, RuntimeError) as error:
        raise cannot_write(path, error) from None
    try:
        deadline = time.monotonic() + timeout
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"{path}: another sr-edge has been writing it for {timeout:g} s: end that one"
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)  # which unlocks


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # a file system without locks is no reason to keep nothing: writes are whole there too
            return error.errno in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)
        return True
