"""Teaches the small model to ask where it was measured to fail, and to take the pen back.

The loss of a row:
* next-token cross-entropy on all that the small model writes itself, the opening marker included;
* within a span no next-token loss, since the small model is not to learn the workings here, but at each of
  its positions the binary one of the closing marker: -log(1 - p_close), and -log p_close at the last.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sr_train.demo.data import Layout
from sr_train.demo.loop import Progress, Spent, train
from sr_train.demo.model import Decoder
from sr_train.demo.recipe import Sft

IGNORED, WRITTEN, STAY, CLOSES = 0, 1, 2, 3


@dataclass(frozen=True)
class MarkedRow:
    """labels[t] says what is asked of the prediction at position t, of ids[t + 1]."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class SpanLoss:
    """Sums over positions and how many there were, so that batches can be weighed as wished."""

    written: Tensor
    closing: Tensor
    num_written: int
    num_closing: int

    def total(self, closing_weight: float = 1.0) -> Tensor:
        written = self.written / max(1, self.num_written)
        return written + closing_weight * self.closing / max(1, self.num_closing)


def marked_row(
    laid: Layout, is_marked: Sequence[bool], open_id: int, close_id: int, is_local: bool = False
) -> MarkedRow:
    """Put the markers around the marked steps.

    Args:
        is_local: the marked workings stay in the text without markers and without any loss, as after a
            remote that failed; what follows them is trained as ever.
    """
    ids = laid.ids[:1]
    labels: list[int] = []

    def add(tokens: Sequence[int], label: int) -> None:
        ids.extend(tokens)
        labels.extend([label] * len(tokens))

    add(laid.ids[1 : laid.num_prompt], IGNORED)
    position = laid.num_prompt
    for (start, end), marked in zip(laid.spans, is_marked, strict=True):
        if not marked:
            continue
        add(laid.ids[position:start], WRITTEN)
        if is_local:
            add(laid.ids[start:end], IGNORED)
        else:
            add([open_id], WRITTEN)
            add(laid.ids[start:end], STAY)
            add([close_id], CLOSES)
        position = end
    add(laid.ids[position:], WRITTEN)
    return MarkedRow(ids, labels)


def span_loss(logits: Tensor, targets: Tensor, labels: Tensor, close_id: int) -> SpanLoss:
    """logits: (N, V); targets, labels: (N,), positions flattened."""
    logprobs = F.log_softmax(logits.float(), dim=-1)
    is_written, stays, closes = labels == WRITTEN, labels == STAY, labels == CLOSES
    written = F.nll_loss(logprobs[is_written], targets[is_written], reduction="sum")
    log_close = logprobs[:, close_id]
    # log(1 - p) from log p; the clamp keeps the gradient finite where p rounds to 1
    log_stay = torch.log1p(-log_close[stays].exp().clamp(max=1 - 1e-6))
    closing = -log_close[closes].sum() - log_stay.sum()
    return SpanLoss(written, closing, int(is_written.sum()), int((stays | closes).sum()))


def sft_rows(
    layouts: Sequence[Layout],
    is_marked: Sequence[Sequence[bool]],
    open_id: int,
    close_id: int,
    local_share: float,
    rng: random.Random,
) -> list[MarkedRow]:
    return [
        marked_row(laid, marked, open_id, close_id, is_local=rng.random() < local_share)
        for laid, marked in zip(layouts, is_marked, strict=True)
    ]


def fine_tune(
    model: Decoder,
    plan: Sft,
    rows: Sequence[MarkedRow],
    close_id: int,
    pad_id: int,
    rng: random.Random,
    checkpoint_path: Path,
    report: Callable[[Progress], None],
) -> Spent:
    """Train model in place on rows, grouped by length; the groups come in a drawn order, again and again."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    groups = [order[start : start + plan.num_rows] for start in range(0, len(order), plan.num_rows)]
    rng.shuffle(groups)

    def loss_of_step(step: int) -> tuple[Tensor, int]:
        ids, labels = padded([rows[index] for index in groups[step % len(groups)]], pad_id)
        asked = labels != IGNORED
        logits = model.logits(model(ids[:, :-1])[asked])  # (N, V)
        loss = span_loss(logits, ids[:, 1:][asked], labels[asked], close_id)
        return loss.total(plan.closing_weight), ids.numel()

    return train(model, loss_of_step, plan.schedule, checkpoint_path, report)


def padded(rows: Sequence[MarkedRow], pad_id: int) -> tuple[Tensor, Tensor]:
    """ids (B, T) and labels (B, T - 1), padded on the right."""
    longest = max(len(row.ids) for row in rows)
    ids = [row.ids + [pad_id] * (longest - len(row.ids)) for row in rows]
    labels = [row.labels + [IGNORED] * (longest - 1 - len(row.labels)) for row in rows]
    return torch.tensor(ids), torch.tensor(labels)
