"""What both would write: the file's greedy text, and where the checkpoint would have gone on otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sr_convert.verify.limits import Limits
from sr_convert.verify.report import Row
from sr_convert.verify.tokens import OwnWords

NUM_TOKENS = 48


def judge_text(
    words: OwnWords, own: NDArray[np.float32], written: Sequence[int], ignored: Sequence[int], limits: Limits
) -> Row:
    """Args:
    own: the checkpoint's logits before each id that the file wrote, shape (written, rows).
    written: the file's greedy text.
    """
    scores = own.copy()
    scores[:, [id for id in ignored if id < scores.shape[1]]] = -np.inf
    n = len(written)
    for i, (row, id) in enumerate(zip(scores, written, strict=True)):
        best = int(row.argmax())
        if best == id:
            continue
        gap = float(row[best] - row[id]) if id < len(row) else float("inf")
        figures = {"tokens": n, "equal_tokens": i, "gap": min(gap, 1e9)}
        where = "at once" if i == 0 else f"after {_end(words, written[:i])!r}"
        detail = (
            f"{where} the checkpoint goes on with {_shown(words, best)}, the file with "
            f"{_shown(words, id)}; the checkpoint prefers its own by {gap:.2g} nats"
        )
        is_near = gap <= limits.gap
        found = f"{i} of {n} tokens, then {gap:.2g} nats apart"
        return Row("text", "close" if is_near else "differs", found, _limit(limits), detail, figures)
    return Row("text", "equal", f"{n} of {n} tokens", _limit(limits), "", {"tokens": n, "equal_tokens": n})


def _limit(limits: Limits) -> str:
    return f"apart by ≤ {limits.gap:g} nats"


def _end(words: OwnWords, ids: Sequence[int]) -> str:
    text: str = words.tokenizer.decode(list(ids[-8:]), skip_special_tokens=False)
    return text


def _shown(words: OwnWords, id: int) -> str:
    text: str = words.tokenizer.decode([id], skip_special_tokens=False)
    return repr(text) if text else f"token {id}"
