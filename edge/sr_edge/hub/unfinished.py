"""Beside the shelf: what is on its way there, how long that is kept, and the checkpoints that are."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

STALE_SECONDS = 14 * 86400.0
"""What nobody has gone on with for so long is removed."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a part is a part of: KEY.json."""

    repo: str
    commit: str
    path: str
    size: int
    etag: str | None
    """Of whoever sends the file, to ask for the rest of the same one; None where it gives no strong one."""


def downloads_dir(shelf: Path) -> Path:
    return shelf / ".downloads"


def checkpoint_dir(shelf: Path, name: str) -> Path:
    """Where the checkpoint that a model was converted from is kept, if it is."""
    return shelf / "checkpoints" / name


def read_part(path: Path) -> Part | None:
    """What KEY.json says; None where there is none that can be read."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(data, Mapping):
        return None
    values: dict[str, Any] = {field.name: data.get(field.name) for field in fields(Part)}
    kinds: dict[str, tuple[type, ...]] = {"size": (int,), "etag": (str, type(None))}
    if not all(type(value) in kinds.get(name, (str,)) for name, value in values.items()):
        return None
    return Part(**values)


@dataclass(frozen=True, slots=True)
class Unfinished:
    part: Part
    size: int
    """Bytes that are there."""


def unfinished(shelf: Path) -> list[Unfinished]:
    """Downloads that can be gone on with."""
    found = []
    for path in _paths(shelf):
        part = read_part(path.with_suffix(".json")) if path.suffix == ".part" else None
        if part is not None:
            with suppress(OSError):
                found.append(Unfinished(part, path.stat().st_size))
    return found


def sweep(shelf: Path) -> None:
    """Remove what nobody has gone on with for long."""
    for path in _paths(shelf):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime > STALE_SECONDS:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            _remove(inner)
        path.rmdir()
    else:
        path.unlink()


def _paths(shelf: Path) -> list[Path]:
    try:
        return sorted(downloads_dir(shelf).iterdir())
    except OSError:
        return []
