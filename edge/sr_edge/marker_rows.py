"""Where the two markers are put in a model that lacks them, and how their rows begin.

Shared by all who add them: a model that the converter prepares is the one that a trainer begins with.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray


def free_ids(taken: Collection[int], num_ids: int) -> tuple[int, ...]:
    """The lowest ids that no token has: `num_ids` of them.

    They may lie beyond the last row of the embedding, which is then to be lengthened. In a tokenizer without
    holes they are the ids that adding the tokens to it gives.
    """
    found: list[int] = []
    candidate = 0
    while len(found) < num_ids:
        if candidate not in taken:
            found.append(candidate)
        candidate += 1
    return tuple(found)


def first_row(spelled: NDArray[np.float32]) -> NDArray[np.float32]:
    """A marker's row before any training, in the embedding and in an untied head alike.

    The mean of the rows of the tokens that its own spelling is cut into. Unlike a row of noise, or one that
    no training has ever touched, it is of the size of its neighbours: its logit is neither certain nor
    impossible, and the model reads the marker much as it reads the spelling.

    Args:
        spelled: shape (N, width), N >= 1, of that embedding or head.
    Returns:
        shape (width,); the same on every machine, since it is summed in float64.
    """
    assert spelled.ndim == 2
    assert len(spelled)
    mean: NDArray[np.float64] = spelled.mean(axis=0, dtype=np.float64)
    return mean.astype(np.float32)
