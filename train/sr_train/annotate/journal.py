"""Replies as they came, one JSON line each, so that no question is asked twice, whatever ends the process.

The file only grows. What a kill cut off is no JSON: it is left out when the file is read, and closed with a
line end before the next entry is written. The raw replies stay in it: a better way
to read them needs no new questions.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from sr_edge.errors import UsageError

Entry = Mapping[str, Any]


def key_of(*parts: str) -> str:
    """What makes a question the same as another: each part of it, in order."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Journal:
    """Entries by key. Any thread may add; each entry is synced before `add` returns."""

    def __init__(self, path: Path) -> None:
        """Raises: UsageError: it cannot be read or written."""
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b")  # noqa: SIM115 - it is closed by `close`
            self._entries = dict(_read(self._file))
            self._file.seek(0, os.SEEK_END)
            if self._file.tell():
                self._file.seek(-1, os.SEEK_END)
                if self._file.read(1) != b"\n":
                    self._file.write(b"\n")  # a line that was cut
        except OSError as error:
            raise UsageError(f"{path} cannot be used: {error.strerror or error}") from None

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def add(self, key: str, entry: Entry) -> None:
        """Raises: UsageError: the disk is full, or the like."""
        line = json.dumps({"key": key, **entry}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            try:
                self._file.write(line)
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise UsageError(
                    f"{self.path} cannot be written: {error.strerror or error}. Make room and start again: "
                    "what is in it is not asked twice"
                ) from None
            self._entries[key] = entry

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def _read(lines: Any) -> Iterator[tuple[str, Entry]]:
    lines.seek(0)
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut in the middle
        if isinstance(entry, dict) and isinstance(entry.get("key"), str):
            yield entry["key"], {name: value for name, value in entry.items() if name != "key"}
