"""The training loop that both stages share: two optimisers, one schedule, and checkpoints to resume from.

The hidden matrices are trained by Muon, the embedding, norms and biases by AdamW: on this task Muon needs
about half of the tokens. A batch is a function of its step, and the checkpoint holds both optimisers, so a
resumed run ends with the very weights of an uninterrupted one.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sr_train.demo.model import Decoder


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up to the peak, then a cosine down to a fiftieth of it."""

    num_steps: int
    adam_lr: float = 4e-3
    muon_lr: float = 2e-2
    num_warmup: int = 100
    num_between_checkpoints: int = 100

    def scale(self, step: int) -> float:
        """The factor on both learning rates, in 0..1."""
        warmup = min(1.0, (step + 1) / max(1, self.num_warmup))
        return warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.num_steps)))


@dataclass(frozen=True)
class Progress:
    step: int
    num_steps: int
    loss: float


@dataclass(frozen=True)
class Spent:
    """What a stage took, over all the runs that it needed. Wall seconds are those with the stage running."""

    cpu_seconds: float
    wall_seconds: float
    num_tokens: int


def train(
    model: Decoder,
    loss_of_step: Callable[[int], tuple[Tensor, int]],
    schedule: Schedule,
    checkpoint_path: Path,
    report: Callable[[Progress], None],
) -> Spent:
    """Train model in place, from the checkpoint if there is one.

    Args:
        loss_of_step: the loss of a step's batch, and how many tokens it holds. The same for the same step.
    """
    optimizers = _optimizers(model, schedule)
    first_step, before = _resume(checkpoint_path, model, optimizers)
    cpu, wall, num_tokens = time.process_time(), time.monotonic(), before.num_tokens

    def spent() -> Spent:
        own_cpu, own_wall = time.process_time() - cpu, time.monotonic() - wall
        return Spent(before.cpu_seconds + own_cpu, before.wall_seconds + own_wall, num_tokens)

    for step in range(first_step, schedule.num_steps):
        scale = schedule.scale(step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * scale
        loss, num_batch_tokens = loss_of_step(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        num_tokens += num_batch_tokens
        is_last = step + 1 == schedule.num_steps
        if is_last or (step + 1) % schedule.num_between_checkpoints == 0:
            _save(checkpoint_path, step + 1, model, optimizers, spent())
        if is_last or (step + 1) % 10 == 0:
            report(Progress(step + 1, schedule.num_steps, loss.item()))
    return spent()


def _optimizers(model: Decoder, schedule: Schedule) -> list[torch.optim.Optimizer]:
    named = list(model.named_parameters())
    hidden = [p for name, p in named if p.dim() == 2 and name != "embed.weight"]
    embedding = [p for name, p in named if name == "embed.weight"]
    vectors = [p for _, p in named if p.dim() == 1]
    muon = torch.optim.Muon(hidden, lr=schedule.muon_lr, momentum=0.95, weight_decay=0.02)
    adam = torch.optim.AdamW(
        [{"params": embedding, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=schedule.adam_lr,
        betas=(0.9, 0.99),
        fused=True,
    )
    for optimizer, peak_lr in ((muon, schedule.muon_lr), (adam, schedule.adam_lr)):
        for group in optimizer.param_groups:
            group["peak_lr"] = peak_lr
    return [muon, adam]


def _save(
    path: Path, step: int, model: Decoder, optimizers: list[torch.optim.Optimizer], spent: Spent
) -> None:
    partial_path = path.with_suffix(".partial")
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "spent": (spent.cpu_seconds, spent.wall_seconds, spent.num_tokens),
    }
    torch.save(state, partial_path)
    os.replace(partial_path, path)  # a kill while writing leaves the checkpoint before it


def _resume(path: Path, model: Decoder, optimizers: list[torch.optim.Optimizer]) -> tuple[int, Spent]:
    if not path.exists():
        return 0, Spent(0.0, 0.0, 0)
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"]), Spent(*state["spent"])
