"""Pre-training: the loss of a batch of stories and drills, and the run over them."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sr_train.demo.data import Batch, pretraining_batches
from sr_train.demo.loop import Progress, Spent, train
from sr_train.demo.model import Decoder, ModelShape
from sr_train.demo.recipe import Pretraining
from sr_train.demo.tokenizer import DemoTokenizer


def new_model(plan: Pretraining, tokenizer: DemoTokenizer, seed: int) -> Decoder:
    torch.manual_seed(seed)
    shape = plan.shape
    return Decoder(ModelShape(shape.num_layers, shape.hidden, shape.inner, tokenizer.num_tokens))


def pretrain(
    model: Decoder,
    plan: Pretraining,
    tokenizer: DemoTokenizer,
    stream: str,
    seed: int,
    checkpoint_path: Path,
    report: Callable[[Progress], None],
) -> Spent:
    batch_of = pretraining_batches(tokenizer, plan.syllabus, seed, stream, plan.num_rows)

    def loss_of_step(step: int) -> tuple[Tensor, int]:
        batch = batch_of(step)
        return weighted_loss(model, batch), len(batch.ids) * len(batch.ids[0])

    return train(model, loss_of_step, plan.schedule, checkpoint_path, report)


def weighted_loss(model: Decoder, batch: Batch) -> Tensor:
    """Mean cross-entropy over the weighted positions; the others need no logits."""
    ids, weights = torch.tensor(batch.ids), torch.tensor(batch.weights)  # (B, T), (B, T - 1)
    taught = weights > 0
    logits = model.logits(model(ids[:, :-1])[taught])  # (N, V)
    losses = F.cross_entropy(logits, ids[:, 1:][taught], reduction="none")
    return (losses * weights[taught]).sum() / weights.sum()
