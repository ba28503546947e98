"""What a large model wrote at temperature 0, kept in a file: the same question is paid for once.

A file of JSON lines that is only ever appended to, a line in one write, so that killed runs and several
processes leave it whole; a line that is cut is passed over. Later lines of one key replace earlier ones.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sr_edge.roles import Message

End = Literal["stop", "cap"]


@dataclass(frozen=True, slots=True)
class Written:
    """A span, or the beginning of one."""

    text: str = ""
    end: End | None = None
    """None: it was hung up on; there may be more."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class SpanCache:
    """Safe to use from several threads."""

    def __init__(self, path: Path, settings: Mapping[str, object] | None = None) -> None:
        """Args:
        settings: what else the text depends on, such as sampling parameters.
        """
        self._path = path
        self._settings = dict(settings or {})
        self._lock = threading.Lock()
        self._written: dict[str, Written] = {}
        self._needs_line_end = False
        if path.exists():
            self._read(path.read_bytes())

    def __len__(self) -> int:
        return len(self._written)

    def key(self, model: str, messages: Sequence[Message], answer: str, max_tokens: int) -> str:
        asked = [model, [asdict(message) for message in messages], answer, max_tokens, self._settings]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> Written | None:
        with self._lock:
            return self._written.get(key)

    def put(self, key: str, written: Written) -> None:
        line = json.dumps({"key": key, **asdict(written)}) + "\n"
        with self._lock:
            self._written[key] = written
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                file.write((b"\n" if self._needs_line_end else b"") + line.encode())
            self._needs_line_end = False

    def _read(self, data: bytes) -> None:
        self._needs_line_end = not data.endswith(b"\n") and bool(data)
        for line in data.splitlines():
            try:
                entry = json.loads(line)
                key = entry.pop("key")
                self._written[key] = Written(**entry)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # cut by a kill: it is asked again
