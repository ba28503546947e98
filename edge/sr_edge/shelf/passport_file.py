"""What is known of a model file since it came, as JSON beside it; and whether the file is still that one."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

from sr_edge.errors import ModelError, UsageError
from sr_edge.files import write_private
from sr_edge.gguf_header import read_header
from sr_edge.passport import read_passport

VERSION = 1
_CHUNK = 4 << 20
_MAX_PASSPORT = 1 << 20

Progress = Callable[[int, int], None]
"""Gets the bytes that are done, and all of them."""


def no_progress(done: int, whole: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Passport:
    sha256: str
    bytes: int
    source: str
    """The path or the page that it came from."""
    added: str
    """`2026-11-22T10:53:14Z`"""
    is_linked: bool = False
    """Whether the file on the shelf is a link to its source."""
    repo: str | None = None
    """`owner/name` on the hub that it was pulled from."""
    revision: str | None = None
    """The commit."""
    file: str | None = None
    """Its path in the repository; None where it was converted."""
    converted: str | None = None
    """The type that it was converted to, here."""
    stamp: str | None = None
    """See `stamp_of`: of the file when its sha256 was last looked at."""


@dataclass(frozen=True, slots=True)
class Verdict:
    path: Path
    sha256: str
    expected: str | None
    """None: no passport says what it should be."""
    problem: str | None


def new_passport(sha256: str, file: Path, source: Path, *, is_linked: bool) -> Passport:
    """Raises: OSError: `file` is not there."""
    return Passport(sha256, file.stat().st_size, str(source), now(), is_linked, stamp=stamp_of(file))


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def stamp_of(file: Path) -> str:
    """What changes when a file does, unless somebody takes pains. Raises: OSError."""
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def passport_path(model: Path) -> Path:
    return model.with_suffix(".json")


def write_passport(path: Path, passport: Passport) -> None:
    """Raises: UsageError: it cannot be written."""
    write_private(path, json.dumps({"v": VERSION, **asdict(passport)}, indent=2) + "\n")


def read_beside(model: Path) -> Passport | None:
    """The passport of a model; None where there is none that can be read."""
    try:
        with passport_path(model).open("rb") as file:
            data = json.loads(file.read(_MAX_PASSPORT))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    values: dict[str, Any] = {}
    for field in fields(Passport):
        value = data.get(field.name)
        kind = {"bytes": int, "is_linked": bool}.get(field.name, str)
        if type(value) is not kind and (value is not None or field.default is not None):
            return None
        values[field.name] = value
    return Passport(**values)


def chunks(file: IO[bytes], whole: int, progress: Progress) -> Iterator[bytes]:
    done = 0
    progress(done, whole)
    while chunk := file.read(_CHUNK):
        yield chunk
        done += len(chunk)
        progress(done, whole)


def sha256_of(path: Path, progress: Progress = no_progress) -> str:
    """Raises: ModelError: it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for chunk in chunks(file, path.stat().st_size, progress):
                digest.update(chunk)
    except OSError as error:
        raise ModelError(f"{path}: the file cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def verify(model: Path, progress: Progress = no_progress) -> Verdict:
    """Whether the file is whole, and the one that its passport is for.

    Raises:
        ModelError: it is no model that can run here, or it cannot be read.
    """
    read_header(model)
    expected = _expected(model)
    found = sha256_of(model, progress)
    problem = None
    if expected is not None and found != expected:
        problem = "the file is not the one that came: its sha256 is another; get it again"
    return Verdict(model, found, expected, problem)


def check_on_load(model: Path, progress: Progress = no_progress) -> None:
    """Refuse a file that is not the one that its passport is for. One without a passport is not looked at.

    All of it is read only where its size or its time of change are others than when that was last done.

    Raises:
        ModelError
    """
    passport = read_beside(model)
    if passport is None:
        return
    try:
        stamp = stamp_of(model)
    except OSError:
        return  # whoever opens it says what is wrong
    if stamp == passport.stamp:
        return
    if not stamp.startswith(f"{passport.bytes} ") or sha256_of(model, progress) != passport.sha256:
        raise ModelError(
            f"{model}: the file is not the one that came: it was changed or damaged since. "
            f"{how_to_get_again(passport)}"
        )
    with suppress(UsageError):  # a shelf that is only read
        write_passport(passport_path(model), replace(passport, stamp=stamp))


def how_to_get_again(passport: Passport) -> str:
    """A sentence."""
    if passport.repo is None:
        link = " --link" if passport.is_linked else ""
        return f"Get it again: `sr-edge models import {shlex.quote(passport.source)}{link} --force`"
    what = shlex.quote(passport.repo + (f":{passport.file}" if passport.file else ""))
    kind = f" --type {passport.converted}" if passport.converted else ""
    return f"Get it again: `sr-edge models pull {what}{kind} --revision {passport.revision} --force`"


def _expected(model: Path) -> str | None:
    passport = read_beside(model)
    if passport is not None:
        return passport.sha256
    try:
        file = read_passport(model).get("file")  # as our trainer writes it
    except ModelError:
        return None
    said = file.get("sha256") if isinstance(file, dict) else None
    return said if isinstance(said, str) else None
