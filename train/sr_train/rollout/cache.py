"""A key-value cache whose rows have lengths of their own.

Every row's cells begin at 0. A cell is written when its position is decoded; what lies beyond a row's own
length is left over and never attended to, so that to rewind a row means to forget its length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

_BLOCK = 64
"""Cells are added in blocks, so that the memory is seldom moved."""


class RowsCache(Cache):
    """Each layer's keys and values, shape (rows, cells, heads, width)."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[])
        self._num_layers = num_layers
        self._num_rows = 0
        self._num_cells = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._targets = torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return self._num_layers

    def reserve(self, num_rows: int, num_cells: int) -> None:
        """Make room for so many rows of so many cells each; what is there stays."""
        if num_rows <= self._num_rows and num_cells <= self._num_cells:
            return
        if num_rows > self._num_rows:
            self._num_rows = max(num_rows, self._num_rows + self._num_rows // 2)
        if num_cells > self._num_cells:
            wanted = max(num_cells, self._num_cells + self._num_cells // 2)
            self._num_cells = -(-wanted // _BLOCK) * _BLOCK
        self._keys = [self._grown(old) for old in self._keys]
        self._values = [self._grown(old) for old in self._values]

    def aim(self, rows: Tensor, positions: Tensor) -> None:
        """Say where the next pass writes: the row and the position of each token, both of shape (tokens,)."""
        self._targets = rows * self._num_cells + positions

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write states of shape (1, heads, tokens, width); returns the whole cache of the layer."""
        if layer_idx == len(self._keys):
            self._keys.append(self._zeros_like(key_states))
            self._values.append(self._zeros_like(value_states))
        self._write(self._keys[layer_idx], key_states)
        self._write(self._values[layer_idx], value_states)
        return self._keys[layer_idx], self._values[layer_idx]

    def move(self, source: int, target: int) -> None:
        """Copy a row over another one."""
        for cells in (*self._keys, *self._values):
            cells[target] = cells[source]

    def clear(self) -> None:
        """Give the memory back."""
        self._keys, self._values = [], []
        self._num_rows = self._num_cells = 0

    def _write(self, cells: Tensor, states: Tensor) -> None:
        flat = cells.view(-1, *cells.shape[2:])  # (rows * cells, heads, width)
        flat.index_copy_(0, self._targets, states[0].transpose(0, 1).to(cells.dtype))

    def _zeros_like(self, states: Tensor) -> Tensor:
        _, heads, _, width = states.shape
        # zeros: what a masked cell holds is multiplied by 0, and must be a number
        return states.new_zeros(self._num_rows, self._num_cells, heads, width)

    def _grown(self, old: Tensor) -> Tensor:
        new = old.new_zeros(self._num_rows, self._num_cells, *old.shape[2:])
        new[: old.shape[0], : old.shape[1]] = old
        return new
