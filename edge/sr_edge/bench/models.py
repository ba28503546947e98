"""Which file is measured. Synthetic ones are made once and kept in the cache folder, apart from the shelf."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sr_edge.bench.synthetic import SHAPES, write_synthetic
from sr_edge.errors import EdgeError, UsageError
from sr_edge.files import cache_dir

_EDITION = 1
"""Raised when the same name stands for other weights, so that no old file is taken for one."""


def synthetic(
    name: str, environ: Mapping[str, str], progress: Callable[[int, int], None] = lambda done, whole: None
) -> Path:
    """The file, made now if it is not there.

    Raises:
        UsageError: there is no such shape, or `gguf` is not installed.
        EdgeError: it cannot be written.
    """
    if name not in SHAPES:
        raise UsageError(f"--synthetic {name}: there are {', '.join(SHAPES)}")
    folder = cache_dir(environ) / "bench"
    path = folder / f"synthetic-{name}.{_EDITION}.gguf"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgeError(f"{folder}: {error.strerror}") from None
        write_synthetic(path, name, progress)
    return path
