"""Where an export goes: a new file for its owner alone, never over another."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from sr_edge.errors import UsageError
from sr_edge.terminal import safe_line

if TYPE_CHECKING:
    from sr_edge.store import Conversation

Format = Literal["markdown", "json", "jsonl", "html"]

ENDINGS: Final[Mapping[Format, str]] = {
    "markdown": ".md",
    "json": ".json",
    "jsonl": ".jsonl",
    "html": ".html",
}

_PRIVATE = 0o600
_MAX_NAME = 60
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)  # on Windows


def file_name(conversation: Conversation, form: Format) -> str:
    """Such as `sums-of-cubes.md`."""
    return stem_of(conversation.title) + ENDINGS[form]


def stem_of(title: str) -> str:
    """A file's name without its ending that every file system takes."""
    words = re.findall(r"[^\W_]+", safe_line(title).lower())
    stem = ""
    for word in words:
        if len(f"{stem}-{word}".encode()) > _MAX_NAME:
            break
        stem = f"{stem}-{word}" if stem else word
    if not stem or _RESERVED.fullmatch(stem):
        stem = "conversation"
    return stem


def write(path: Path, text: str) -> Path:
    """Write a new file; where there is one of this name, `NAME-2`, `NAME-3` and so on. Returns its path.

    Whatever fails, no part of it is left.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path = path.expanduser()
        if path.is_dir():
            raise UsageError(f"{path} is a folder: name a file in it")
        descriptor, path = _new(path)
        try:
            with open(descriptor, "wb") as file:
                file.write(text.encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no folder {path.parent}: make it, or name another file") from None
    except (OSError, RuntimeError, ValueError) as error:  # `~nobody`; a NUL in the name
        raise UsageError(
            f"{path} cannot be written: {getattr(error, 'strerror', None) or error}. Name another file"
        ) from None
    return path


def _new(path: Path) -> tuple[int, Path]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    candidate = path
    for number in count(2):
        with suppress(FileExistsError):
            return os.open(candidate, flags, _PRIVATE), candidate
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    raise AssertionError("numbers do not end")
