"""`sr-edge verify`: whether a GGUF is the checkpoint that it was made from.

Nothing that the conversion computed is trusted: ids come from the checkpoint's own tokenizer, logits from
transformers, and the file speaks through llama.cpp, as it will when it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from sr_convert.verify.report import (
    HEADING,
    DifferentError,
    Judgement,
    Row,
    Verdict,
    remarks,
    render,
)

__all__ = [
    "HEADING",
    "DifferentError",
    "Judgement",
    "Progress",
    "Row",
    "Verdict",
    "remarks",
    "render",
    "verify",
]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Gets what is being done, how much of it is done, and all of it."""


def verify(
    gguf: Path,
    checkpoint: Path,
    *,
    adapter: Path | None = None,
    positions: int = 256,
    tau: float | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Compare tokens, prompts, metadata, logits, greedy text and the markers' probabilities.

    Logits and what is made of them need torch and transformers, and the checkpoint in memory in 32 bits;
    where that cannot be, those rows say why they were not checked.

    Args:
        adapter: a peft adapter that was merged into the file.
        positions: of plain text, to compare logits on; conversations with marked spans come on top.
        tau: the hand-back threshold that was chosen for the file, where it is not the checkpoint's own.
    Raises:
        ModelError: the file or the checkpoint cannot be read.
        UsageError: no positions.
    """
    from sr_convert.verify.comparing import compare_all

    rows, type = compare_all(gguf, checkpoint, adapter, positions, tau, progress or _nothing)
    return Verdict(gguf, checkpoint, adapter, type, tuple(rows))


def _nothing(what: str, done: int, whole: int) -> None:
    pass
