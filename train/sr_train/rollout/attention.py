"""Attention of tokens that lie in one line, though they belong to many rows of a cache.

Everything else in a decoder treats tokens one by one. So a pass has the tokens of all rows one after the
other, without padding, whether a row decodes one or reads a hundred; only here they are told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION = "sr_edge_rows"
"""The name under which transformers knows `attend`."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows whose tokens are attended together: B rows of at most Q tokens each."""

    rows: Tensor | slice
    """Of the cache; a slice begins at 0."""
    num_rows: int
    num_queries: int
    num_cells: int
    """That are seen, from 0 on."""
    start: int
    """Where its tokens begin in the line."""
    stop: int
    gather: Tensor | None
    """Shape (B * Q,): the place in the line of each of them, any where there is none; None: all are there."""
    scatter: Tensor | None
    """Shape (stop - start,): which of the B * Q each token of the line is."""
    mask: Tensor
    """Shape (B, 1, Q, cells): True where it is seen."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    groups: Sequence[Group] = (),
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """In transformers' form of an attention function.

    Args:
        query: shape (1, heads, tokens, width).
        key, value: all of the cache, shape (rows, cells, key heads, width).
    Returns:
        shape (1, tokens, heads, width).
    """
    _, num_heads, _, width = query.shape
    line = query[0].transpose(0, 1)  # (tokens, heads, width)
    num_kv = key.shape[2]
    outputs: list[Tensor] = []
    for group in groups:
        q = line[group.start : group.stop] if group.gather is None else line[group.gather]
        shape = (group.num_rows, group.num_queries, num_kv, num_heads // num_kv, width)
        # heads that share their keys are further queries of those: (B, key heads, sharers * Q, width)
        q = q.reshape(shape).permute(0, 2, 3, 1, 4).flatten(2, 3)
        mixed = F.scaled_dot_product_attention(
            q, _seen(key, group), _seen(value, group), attn_mask=_for_sharers(group, shape[3]), scale=scaling
        )
        mixed = mixed.unflatten(2, (shape[3], group.num_queries)).permute(0, 3, 1, 2, 4)
        mixed = mixed.reshape(-1, num_heads, width)  # (B * Q, heads, width)
        outputs.append(mixed if group.scatter is None else mixed[group.scatter])
    together = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return together[None], None


def _seen(cells: Tensor, group: Group) -> Tensor:
    """Shape (B, key heads, cells, width)."""
    cells = cells[:, : group.num_cells]
    cells = cells[group.rows] if isinstance(group.rows, slice) else cells.index_select(0, group.rows)
    return cells.transpose(1, 2)


def _for_sharers(group: Group, num_sharers: int) -> Tensor:
    if group.num_queries == 1 or num_sharers == 1:
        return group.mask
    return group.mask.repeat(1, 1, num_sharers, 1)
