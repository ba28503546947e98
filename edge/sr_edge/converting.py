"""Where the client meets the converter, which is an extra: a checkpoint that was fetched becomes a GGUF.

Whoever can convert joins through the entry-point group `sr_edge.converters`; this room knows only how one is
called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sr_edge.errors import UsageError

_GROUP = "sr_edge.converters"


@dataclass(frozen=True, slots=True)
class Conversion:
    checkpoint: Path
    """A folder with config, tokenizer and weights as transformers saves them."""
    out: Path
    """The GGUF to write; there is none yet."""
    type: str
    """Of the weights, as `sr-edge convert --type` has it."""
    source: str | None
    """Where the checkpoint came from, `owner/name@commit`: it is written into the file."""


Progress: TypeAlias = Callable[[str, int, int], None]
"""Gets what is being done, how much of it is done, and all of it."""

Converter: TypeAlias = Callable[[Conversion, Progress], None]
"""Raises: EdgeError: it cannot be converted; there is no file then."""


def converter() -> Converter:
    """Raises: UsageError: the extra is not installed."""
    from importlib.metadata import entry_points

    for entry in entry_points(group=_GROUP):
        try:
            loaded: Converter = entry.load()
        except ModuleNotFoundError:
            break
        return loaded
    raise UsageError(
        "this repository holds a checkpoint, and to convert it needs one more package: "
        "pip install 'sr-edge[convert]'; or pull a repository that holds GGUFs"
    )
