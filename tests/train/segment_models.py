"""An engine of whole segments on a tiny transformers checkpoint, for tests: what vLLM does, slowly."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sr_train.rollout.batch import Uniforms
from sr_train.rollout.segments import Segment, SegmentRequest, Terms


class CheckpointSegments:
    """Writes each segment token by token, every row in one padded batch, without a cache."""

    def __init__(
        self, model: torch.nn.Module, *, at_most: int | None = None, are_processed: bool = False
    ) -> None:
        """Args:
        at_most: tokens of a segment, whatever was asked for: an engine may return fewer.
        are_processed: log-probabilities are those after temperature, bans and bias.
        """
        self._are_processed = are_processed
        self._model = model
        self._at_most = at_most
        self.calls: list[list[SegmentRequest]] = []

    def any_waits(self, here: bool) -> bool:
        return here

    @torch.no_grad()
    def generate(self, requests: Sequence[SegmentRequest]) -> list[Segment]:
        self.calls.append(list(requests))
        ids = [list(request.prefix) for request in requests]
        written: list[list[tuple[int, float]]] = [[] for _ in requests]
        open_rows = list(range(len(requests)))
        while open_rows:
            longest = max(len(ids[row]) for row in open_rows)
            padding = torch.tensor([longest - len(ids[row]) for row in open_rows])
            positions = torch.arange(longest)[None, :] - padding[:, None]
            logits = self._model(
                input_ids=torch.tensor([[0] * (longest - len(ids[row])) + ids[row] for row in open_rows]),
                attention_mask=(positions >= 0).long(),
                position_ids=positions.clamp(min=0),
                use_cache=False,
            ).logits[:, -1]
            for row, scores in zip(list(open_rows), logits, strict=True):
                request = requests[row]
                processed = _processed(scores, request.terms)
                id = _choose(processed, request, len(written[row]))
                told = processed if self._are_processed else scores
                written[row].append((id, float(told[id] - told.logsumexp(-1))))
                ids[row].append(id)
                limit = min(request.max_tokens, self._at_most or request.max_tokens)
                if id in request.terms.stops or len(written[row]) >= limit:
                    open_rows.remove(row)
        return [
            Segment(tuple(id for id, _ in tokens), tuple(logprob for _, logprob in tokens))
            for tokens in written
        ]


def _processed(logits: torch.Tensor, terms: Terms) -> torch.Tensor:
    logits = logits.clone()
    for id, value in terms.bias:
        logits[id] += value
    logits[list(terms.banned)] = -torch.inf
    return logits / (terms.temperature or 1.0)


def _choose(logits: torch.Tensor, request: SegmentRequest, n: int) -> int:
    """By the n-th of the random numbers that a rollout's tokens are drawn with everywhere."""
    if request.terms.temperature == 0:
        return int(logits.argmax())
    uniforms = Uniforms(request.key, request.writer)
    drawn = [uniforms.draw() for _ in range(request.num_sampled + n + 1)][-1]
    steps = logits.softmax(-1).double().cumsum(-1)
    return int(torch.searchsorted(steps, steps[-1] * drawn, right=True).clamp(max=len(steps) - 1))
