"""Where the small model would take the pen back, by one forward pass of its own over all that is before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

Row = tuple[Sequence[int], int]


class ForwardProbe:
    """See `sr_train.rollout.segments.CloseProbe`."""

    def __init__(
        self,
        model: PreTrainedModel,
        close_id: int,
        *,
        max_tokens: int = 16384,
        max_outputs: int = 1024,
    ) -> None:
        """Args:
        max_tokens: of one forward pass, padding included.
        max_outputs: positions whose logits one forward pass computes.
        """
        self._model = model
        self._close_id = close_id
        self._max_tokens = max_tokens
        self._max_outputs = max_outputs

    def log_p_close(self, rows: Sequence[Row]) -> list[list[float]]:
        closes: list[list[float]] = [[] for _ in rows]
        was_training = self._model.training
        self._model.train(False)
        try:
            for batch in self._batches(rows):
                for index, close in zip(batch, self._read([rows[i] for i in batch]), strict=True):
                    closes[index] = close
        finally:
            self._model.train(was_training)
        return closes

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[int]]:
        """Indices of rows of similar length."""
        batch: list[int] = []
        most = 0
        for index in sorted(range(len(rows)), key=lambda i: len(rows[i][0]), reverse=True):
            ids, count = rows[index]
            most_now = max(most, count)
            size = len(batch) + 1
            longest = len(rows[batch[0]][0]) if batch else len(ids)
            if batch and (size * longest > self._max_tokens or size * most_now > self._max_outputs):
                yield batch
                batch, most_now = [], count
            batch.append(index)
            most = most_now
        if batch:
            yield batch

    @torch.no_grad()
    def _read(self, rows: Sequence[Row]) -> list[list[float]]:
        longest = max(len(ids) for ids, _ in rows)
        most = max(count for _, count in rows)
        padding = torch.tensor([longest - len(ids) for ids, _ in rows])
        # on the left, so that what is asked for stands at the end of every row
        input_ids = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids, _ in rows])  # (B, T)
        positions = torch.arange(longest)[None, :] - padding[:, None]
        device = self._model.device
        logits: Tensor = self._model(
            input_ids=input_ids.to(device),
            attention_mask=(positions >= 0).long().to(device),
            position_ids=positions.clamp(min=0).to(device),
            use_cache=False,
            logits_to_keep=most,
        ).logits  # (B, most, V)
        logits = logits.float()
        close = (logits[..., self._close_id] - logits.logsumexp(-1)).tolist()
        return [row[most - count :] for row, (_, count) in zip(close, rows, strict=True)]
