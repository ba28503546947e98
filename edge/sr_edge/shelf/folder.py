"""The folder of models: what lies in it, what a name means, how a file gets in and out."""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sr_edge.errors import EdgeError, ModelError, UsageError
from sr_edge.files import config_dir, keys_path, locked, make_private_dir
from sr_edge.gguf_header import read_header
from sr_edge.shelf.facts import amount
from sr_edge.shelf.passport_file import (
    Passport,
    Progress,
    chunks,
    new_passport,
    no_progress,
    passport_path,
    read_beside,
    sha256_of,
    write_passport,
)

BUILT_IN = "built-in"
NONE = "none"
_ENDING = ".gguf"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PART = ".part"
_STALE_SECONDS = 3600.0  # a copy that nobody has written to for so long is nobody's
_MARGIN = 64 << 20  # bytes left free on the disk

_HOW_TO_GET = (
    "`sr-edge models import FILE.gguf` puts one on the shelf; `sr-edge models list` shows what is there"
)


@dataclass(frozen=True, slots=True)
class Shelved:
    """One model on the shelf."""

    name: str
    path: Path
    size: int
    """Bytes; 0 where a link leads nowhere."""
    passport: Passport | None
    is_there: bool = True


def shelf_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder, which need not exist."""
    return keys_path(environ).parent / "models"


def models(environ: Mapping[str, str] = os.environ) -> list[Shelved]:
    """All, by name. No file is opened but the passports.

    Raises:
        UsageError: the folder cannot be read.
    """
    folder = shelf_dir(environ)
    try:
        paths = [path for path in folder.iterdir() if path.suffix == _ENDING and path.name[0] != "."]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror}") from None
    return [_shelved(path) for path in sorted(paths)]


def _shelved(path: Path) -> Shelved:
    try:
        size, is_there = path.stat().st_size, True
    except OSError:
        size, is_there = 0, False
    return Shelved(path.stem, path, size, read_beside(path), is_there)


def find(ref: str | Path, environ: Mapping[str, str] = os.environ) -> Path:
    """The file that a user means by a path or by the name of a model on the shelf.

    A relative name in a file of settings arrives as a path in that file's folder, and means the same.

    Raises:
        ModelError: there is no such file and no such name; says which is near, and how to get one.
    """
    text = str(ref)
    path = Path(text)
    try:
        if path.is_file():
            return path
        name = path.name if path.parent in (Path(), config_dir(environ)) else ""
        shelved = _on_shelf(name.removesuffix(_ENDING), environ)
        if shelved is not None:
            return shelved
        if path.exists():
            return path  # a folder, a device: `read_header` says what is wrong with it
    except (OSError, ValueError) as error:  # too long, or a NUL in it
        raise ModelError(f"{text[:200]}: {getattr(error, 'strerror', None) or error}") from None
    near = _near(path.name, models(environ))
    if near:
        raise ModelError(f"{text}: there is no such file, and no model of this name; did you mean {near}?")
    if name and name == text:
        raise ModelError(f"{text}: there is no such file, and no model of this name: {_HOW_TO_GET}")
    raise ModelError(f"{text}: there is no such file: check the path. {_HOW_TO_GET}")


def _on_shelf(name: str, environ: Mapping[str, str]) -> Path | None:
    path = shelf_dir(environ) / (name + _ENDING)
    return path if name and os.path.lexists(path) else None


def named(name: str, environ: Mapping[str, str] = os.environ) -> Shelved:
    """The model of this name, and never any other file.

    Raises:
        UsageError: there is none.
    """
    shelf = models(environ)
    for model in shelf:
        if model.name == name.removesuffix(_ENDING):
            return model
    near = _near(name, shelf)
    hint = f"did you mean {near}?" if near else "`sr-edge models list` shows what is there"
    raise UsageError(f"there is no model {name} on the shelf; {hint}")


def _near(name: str, shelf: Iterable[Shelved]) -> str | None:
    names = [model.name for model in shelf]
    return next(iter(difflib.get_close_matches(name.removesuffix(_ENDING), names, n=1)), None)


# --- in and out --------------------------------------------------------------------------------------


def take_in(
    source: Path,
    *,
    name: str | None = None,
    is_link: bool = False,
    force: bool = False,
    environ: Mapping[str, str] = os.environ,
    progress: Progress = no_progress,
) -> Shelved:
    """Put a file on the shelf, under its own name or `name`: a copy, or a link to where it lies.

    Whatever fails or interrupts it, what was there before is there still, and nothing else.

    Raises:
        ModelError: it is no model that can run here.
        UsageError: there is one of this name, or it cannot be written.
        EdgeError: the disk has no room.
    """
    source = source.absolute()
    header = read_header(source)
    path = place(name_for(source.name, name), environ)
    folder = path.parent
    try:
        is_there_already = path.exists() and path.samefile(source)
    except OSError:
        is_there_already = False
    if is_there_already:  # somebody put it there by hand: it gets its passport
        return _give_passport(path, source, is_linked=path.is_symlink(), progress=progress)
    refuse_taken(path, force=force)
    temporary = folder / f".{path.name}.{secrets.token_hex(4)}{_PART}"
    beside = temporary.with_suffix(f".json{_PART}")
    try:
        make_private_dir(folder)
        _sweep(folder)
        try:
            if is_link:
                sha256 = sha256_of(source, progress)
                temporary.symlink_to(source)
            else:
                _check_room(folder, header.file_size)
                sha256 = _copy(source, temporary, header.file_size, progress)
            write_passport(beside, new_passport(sha256, temporary, source, is_linked=is_link))
            _put(temporary, beside, path, force=force)
        except BaseException:
            for left in (temporary, beside):
                with suppress(OSError):
                    left.unlink()
            raise
    except OSError as error:
        _explain(folder, error)
    return _shelved(path)


def put_in(file: Path, path: Path, passport: Passport, *, force: bool) -> Shelved:
    """Move a file that is checked, and lies on the same disk, to its place on the shelf.

    Raises:
        UsageError: there is one of this name, or it cannot be written; the file is where it was.
        EdgeError: the disk has no room.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.json{_PART}")
    try:
        make_private_dir(path.parent)
        try:
            write_passport(beside, passport)
            _put(file, beside, path, force=force)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        _explain(path.parent, error)
    return _shelved(path)


def place(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where a model of this name is, or will be."""
    return shelf_dir(environ) / (name + _ENDING)


def refuse_taken(path: Path, *, force: bool) -> None:
    """Raises: UsageError: there is a model of this name, and it is not to be replaced."""
    if os.path.lexists(path) and not force:
        raise _taken(path)


def name_for(file: str, name: str | None) -> str:
    """What a model is called on the shelf.

    Args:
        file: the name of its file.
        name: the user's own.
    Raises:
        UsageError: it can't be called so.
    """
    if name is None:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.removesuffix(_ENDING)).strip("-.")[:100]
    name = name.removesuffix(_ENDING)
    if name.lower() in (NONE, BUILT_IN):
        raise UsageError(f"{name} means the built-in pair: choose another with --name")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} is no name for a model: letters, digits, . _ - and a letter or digit first; "
            "choose one with --name"
        )
    return name


def _taken(path: Path) -> UsageError:
    return UsageError(
        f"there is a model {path.stem} on the shelf already: --force replaces it, --name OTHER keeps both"
    )


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size + _MARGIN > free:
        raise EdgeError(
            f"no room for it: it takes {amount(size)}, and {amount(free)} is free in {folder}. "
            "--link leaves it where it is; SR_EDGE_HOME=FOLDER puts our files elsewhere"
        )


def _copy(source: Path, temporary: Path, size: int, progress: Progress) -> str:
    """Returns its sha256. Raises: OSError, ModelError."""
    digest = hashlib.sha256()
    copied = 0
    with source.open("rb") as original, temporary.open("xb") as copy:
        for chunk in chunks(original, size, progress):
            digest.update(chunk)
            copy.write(chunk)
            copied += len(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    progress(copied, size)  # that may have taken long
    if copied != size:
        raise ModelError(
            f"{source}: the file was changed while it was copied: import it again when it is done"
        )
    return digest.hexdigest()


def _put(temporary: Path, beside: Path, path: Path, *, force: bool) -> None:
    """The one moment in which the shelf changes, by one process at a time. Takes no room on the disk."""
    with locked(path.parent / "shelf"):
        if os.path.lexists(path) and not force:
            raise _taken(path)
        passport_path(path).unlink(missing_ok=True)  # better none than that of another file
        os.replace(temporary, path)
        os.replace(beside, passport_path(path))


def _give_passport(path: Path, source: Path, *, is_linked: bool, progress: Progress) -> Shelved:
    sha256 = sha256_of(path, progress)
    passport = new_passport(sha256, path, source, is_linked=is_linked)
    write_passport(passport_path(path), passport)
    return _shelved(path)


def _sweep(folder: Path) -> None:
    """Remove what imports left that were killed."""
    for path in _parts(folder):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime > _STALE_SECONDS:
                path.unlink()


def _parts(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.name.startswith(".") and path.suffix == _PART)


def _explain(folder: Path, error: OSError) -> NoReturn:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise EdgeError(
            f"the disk is full ({error.strerror}), so nothing was put on the shelf: free some of it, or use "
            "--link, which leaves the file where it is"
        ) from None
    where = error.filename or folder
    raise UsageError(
        f"{where}: {error.strerror}: nothing was put on the shelf. SR_EDGE_HOME=FOLDER puts our files "
        "elsewhere"
    ) from None


def remove(model: Shelved) -> None:
    """Take a model off the shelf, for good; what a link leads to stays.

    Raises:
        UsageError: it cannot be removed.
    """
    try:
        with locked(model.path.parent / "shelf"):
            model.path.unlink(missing_ok=True)
            passport_path(model.path).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{model.path} cannot be removed: {error.strerror}") from None
