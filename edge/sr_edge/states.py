"""A conversation's KV cache on disk, so that it opens again without being read again.

What llama.cpp writes it also trusts when it reads: a damaged file leaves cells in disorder, or aborts the
process. So each file has a page of ours at its end, and nothing of it reaches llama.cpp before that page
agrees: our format, what the cells were computed with, and the SHA-256 of all that stands before. A file that
does not fit is removed, and the conversation is read as if it had never been there. How cells come into the
file and out of it is `local`'s and `llama`'s business.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from sr_edge.errors import EdgeError
from sr_edge.files import cache_dir, make_private_dir

FORMAT: Final = 1

_MAGIC = b"sr-edge state\n"
_LENGTH = 4  # bytes in which the page's length is written
_MAX_PAGE = 1 << 16
_CHUNK = 1 << 20
_HEAD = 8 << 20
"""Bytes of a model that are looked at whole: its metadata and vocabulary, and the first of its weights."""
_SAMPLES, _SAMPLE = 64, 4096
_SPARE_DISK = 512 << 20
"""Bytes that a cache leaves to others."""
_STALE_SECONDS = 3600.0
_SUFFIX = ".kv"
_NAME = re.compile(r"[0-9a-z]{1,64}")


class StateError(EdgeError):
    """A cache cannot be kept on disk, or had back from there; the conversation is read again instead."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What the cells were computed with. They mean nothing to anything else, and nobody would notice."""

    engine: str
    """Which llama.cpp."""
    layout: str
    """How the cells lie in memory."""
    models: tuple[str, ...]
    """Fingerprints of the model, and of its adapter if there is one."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


def fingerprint(path: Path, changed: int) -> str:
    """Of a model's file, in milliseconds: its size, its time of change, its head and places in its weights.

    Args:
        changed: when it was changed, in nanoseconds, as it was when it was loaded.
    Raises:
        StateError: it is another file now, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_mtime_ns != changed:
                raise StateError(f"{path} was changed since it was loaded")
            digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
            digest.update(file.read(_HEAD))
            for n in range(_SAMPLES if status.st_size > _HEAD else 0):
                file.seek(_HEAD + (status.st_size - _HEAD) * n // _SAMPLES)
                digest.update(file.read(_SAMPLE))
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


# --- one file ----------------------------------------------------------------------------------------


@contextmanager
def new_state(path: Path, origin: Origin) -> Iterator[Path]:
    """A file for its owner alone, to write cells into. At the end it is sealed and is `path`, or it is gone.

    Raises: StateError: it cannot be written; what was at `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        make_private_dir(path.parent)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            yield temporary
            _seal(temporary, origin)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise StateError(f"{path} cannot be written: {error.strerror or error}") from None


def check_state(path: Path, origin: Origin) -> int:
    """That this is a whole file of ours, of cells that can be used here. Returns how many bytes are theirs.

    Raises: StateError
    """
    try:
        with _opened(path, "r") as file:
            end = file.seek(0, os.SEEK_END)
            fixed = _LENGTH + len(_MAGIC)
            file.seek(max(0, end - fixed))
            tail = file.read(fixed)
            length = int.from_bytes(tail[:_LENGTH], "little")
            if tail[_LENGTH:] != _MAGIC or not 0 < length <= min(_MAX_PAGE, end - fixed):
                raise StateError(f"{path}: the file is cut or not ours")
            size = end - fixed - length
            file.seek(size)
            page = _page_of(file.read(length))
            if page is None or page.get("v") != FORMAT:
                raise StateError(f"{path}: the file is of another version, or damaged")
            if page.get("origin") != _plain(origin):
                raise StateError(f"{path}: the cells are of another model, or were computed in another way")
            if page.get("sha256") != _sha256_of(path, size):
                raise StateError(f"{path}: the file is damaged")
            return size
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror or error}") from None


def _seal(path: Path, origin: Origin) -> None:
    page = {"v": FORMAT, "origin": _plain(origin), "sha256": _sha256_of(path, path.stat().st_size)}
    data = json.dumps(page).encode()
    with path.open("ab") as file:
        file.write(data + len(data).to_bytes(_LENGTH, "little") + _MAGIC)


def _plain(origin: Origin) -> dict[str, Any]:
    return {**asdict(origin), "models": list(origin.models)}


def _page_of(data: bytes) -> dict[str, Any] | None:
    try:
        page = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return page if isinstance(page, dict) else None


def _sha256_of(path: Path, size: int) -> str:
    """Of the first `size` bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(size, _CHUNK))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()


# --- many of them ------------------------------------------------------------------------------------


def states_dir(environ: Mapping[str, str] = os.environ) -> Path:
    return cache_dir(environ) / "conversations"


def forget_states(conversation: str, environ: Mapping[str, str] = os.environ) -> None:
    """The conversation was removed: so is what was read of it, whoever kept that."""
    StateFolder(states_dir(environ), max_bytes=0).forget(conversation)


class StateFolder:
    """Files by conversation and origin. When they become too many, those used longest ago go."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def path(self, conversation: str, origin: Origin) -> Path:
        """Raises: ValueError: it cannot be the name of a file."""
        return self._folder / f"{_checked(conversation)}-{origin.digest}{_SUFFIX}"

    def has_room(self, path: Path, size: int) -> bool:
        """Whether `size` bytes may become `path`. Removes others for it, those used longest ago first."""
        self._sweep()
        others = [(one, status) for one, status in self._files() if one != path]
        used = sum(status.st_size for _, status in others)
        try:
            make_private_dir(self._folder)
            free = shutil.disk_usage(self._folder).free
        except OSError:
            return False
        if size > self._max_bytes or free - size < _SPARE_DISK:
            return False
        for one, status in sorted(others, key=lambda each: each[1].st_mtime_ns):
            if used + size <= self._max_bytes:
                break
            _remove(one)
            used -= status.st_size
        return True

    def touch(self, path: Path) -> None:
        """It was used."""
        with suppress(OSError):
            os.utime(path)

    def forget(self, conversation: str) -> None:
        """All there is of it; what the cells say is overwritten."""
        for start in ("", "."):  # whole, and half written
            for one in self._folder.glob(f"{start}{_checked(conversation)}-*{_SUFFIX}*"):
                _overwrite(one)
                _remove(one)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for one in self._folder.glob(f"[!.]*{_SUFFIX}"):
            with suppress(OSError):
                found.append((one, one.stat()))
        return found

    def _sweep(self) -> None:
        """What a process that was killed left half written."""
        for one in self._folder.glob(f".*{_SUFFIX}.*"):
            with suppress(OSError):
                if time.time() - one.stat().st_mtime > _STALE_SECONDS:
                    _remove(one)


def _checked(conversation: str) -> str:
    if not _NAME.fullmatch(conversation):
        raise ValueError(f"{conversation!r} is no conversation's id")
    return conversation


def _opened(path: Path, mode: Literal["r", "r+"]) -> FileIO:
    """An ordinary file, and no other under its name.

    Raises: OSError: it cannot be opened, or is something else.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))

    file = FileIO(str(path), mode, opener=opener)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path} is no file")
    return file


def _overwrite(path: Path) -> None:
    with suppress(OSError), _opened(path, "r+") as file:
        zeros = bytes(_CHUNK)
        for at in range(0, path.stat().st_size, _CHUNK):
            file.seek(at)
            file.write(zeros[: path.stat().st_size - at])
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


# --- a model's cache, and the conversation that it holds ---------------------------------------------


class Cache(Protocol):
    """See `local.LlamaLocal`."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def origin(self) -> Origin: ...
    @property
    def state_bytes(self) -> int: ...
    def save_state(self, path: Path) -> None: ...
    def load_state(self, path: Path) -> int: ...


class Reopening:
    """Knows which conversation the cache holds, keeps it on disk, and has another one back from there.

    Whatever fails here costs the time to read a conversation again, never an answer: it is a line for the
    user, once.
    """

    def __init__(self, cache: Cache, folder: StateFolder, *, warn: Callable[[str], None]) -> None:
        self._cache = cache
        self._folder = folder
        self._warn = warn
        self._has_warned = False
        self._conversation: str | None = None
        self._kept: list[int] = []  # the ids that are on disk, or not worth it

    def will_load(self, conversation: str | None) -> bool:
        """Whether `turn_to` would replace what the cache holds."""
        if conversation is None or conversation == self._conversation:
            return False
        try:
            return os.path.exists(self._folder.path(conversation, self._cache.origin))
        except StateError:
            return False

    def turn_to(self, conversation: str | None) -> int:
        """What is decoded from here on belongs to this one; None: to none that is kept.

        Returns how many ids came from disk.
        """
        if conversation == self._conversation:
            return 0
        self.keep()
        self._conversation = conversation
        self._kept = list(self._cache.ids)  # of another one, until something is decoded
        if conversation is None:
            return 0
        try:
            path = self._folder.path(conversation, self._cache.origin)
            if not os.path.exists(path):  # False too where it may not be looked at
                return 0
            try:
                n = self._cache.load_state(path)
            except StateError:
                _remove(path)
                raise
        except StateError as error:
            self._tell(error)
            return 0
        self._folder.touch(path)
        self._kept = list(self._cache.ids)
        return n

    def keep(self) -> None:
        """Write the conversation's cache, unless it is as it was."""
        ids = list(self._cache.ids)
        if self._conversation is None or not ids or ids == self._kept:
            return
        self._kept = ids
        try:
            path = self._folder.path(self._conversation, self._cache.origin)
            if self._folder.has_room(path, self._cache.state_bytes):
                self._cache.save_state(path)
        except StateError as error:
            self._tell(error)

    def forget(self, conversation: str) -> None:
        """The user removed it."""
        self._folder.forget(conversation)
        if conversation == self._conversation:
            self._conversation, self._kept = None, []

    def _tell(self, error: StateError) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._warn(f"{error}: the conversation is read again")
