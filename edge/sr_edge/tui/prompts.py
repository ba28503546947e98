"""The prompts that were sent, in a file that several processes add to. Nothing here is drawn."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from sr_edge.errors import EdgeError
from sr_edge.files import locked, make_private_dir, write_private

MAX_PROMPTS = 1000
MAX_LENGTH = 100_000
"""Characters of a prompt that is kept: a whole book need not be walked through."""

_SPARE = 200  # lines too many before the file is written anew
_PATIENCE = 0.5  # seconds; a prompt is not worth a screen that stands still


class PastPrompts:
    """Those of this and earlier runs, the oldest first. Where the file fails, this run's are still there."""

    def __init__(self, path: Path | None) -> None:
        """Args: path: of the file; None keeps nothing beyond this run."""
        self._path = path
        self._texts: list[str] = _read(path) if path is not None else []

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> str:
        return self._texts[index]

    def add(self, text: str) -> str | None:
        """Keep a prompt, unless it is the last one again. Returns: why it could not be written, if so."""
        if not text.strip() or len(text) > MAX_LENGTH or (self._texts and self._texts[-1] == text):
            return None
        self._texts.append(text)
        del self._texts[:-MAX_PROMPTS]
        if self._path is None:
            return None
        try:
            _append(self._path, text)
        except (OSError, EdgeError) as error:
            return f"this prompt is not kept for later runs: {error}"
        return None


def _append(path: Path, text: str) -> None:
    make_private_dir(path.parent)
    with locked(path, timeout=_PATIENCE):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(descriptor, "wb") as file:
            is_torn = not _ends_with_newline(path)  # by a writer that was killed
            file.write(b"\n" * is_torn + json.dumps(text).encode() + b"\n")
        lines = path.read_bytes().splitlines()
        if len(lines) > MAX_PROMPTS + _SPARE:
            write_private(path, "".join(json.dumps(text) + "\n" for text in _read(path)))


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _read(path: Path) -> list[str]:
    """What can be read: a damaged line is left out, a missing file has none."""
    texts: list[str] = []
    lines: list[bytes] = []
    with suppress(OSError):
        lines = path.read_bytes().splitlines()
    for line in lines:
        with suppress(ValueError, RecursionError):
            text = json.loads(line)
            if isinstance(text, str) and text.strip() and (not texts or texts[-1] != text):
                texts.append(text)
    return texts[-MAX_PROMPTS:]
