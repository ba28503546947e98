"""The parts that the tests of rollouts share: the built-in pair and tiny random models, as checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.convert.making import make_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from sr_edge.markers import CLOSE, OPEN, Markers
from sr_edge.roles import Message
from sr_train.demo.checkpoint import demo_checkpoint
from sr_train.rollout.requests import Rollout, RolloutRequest


@dataclass(frozen=True)
class Checkpoint:
    model: Any
    tokenizer: Any

    @property
    def markers(self) -> Markers:
        ids = self.tokenizer.convert_tokens_to_ids([OPEN, CLOSE])
        return Markers("token", (ids[0],), (ids[1],))


def load(folder: Path) -> Checkpoint:
    torch.set_num_threads(1)
    return Checkpoint(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )


def load_demo(name: Any, folder: Path) -> Checkpoint:
    return load(demo_checkpoint(name, folder / name))


def make_random(folder: Path, architecture: Any = "qwen2", **options: Any) -> Checkpoint:
    """Random weights: it writes noise, and asks and closes at random."""
    options = {"markers": "token", "layers": 2, "hidden": 32, "inner": 48, "context": 320, **options}
    return load(make_checkpoint(folder, architecture, **options))


def ask(question: str, *key: int, **options: Any) -> RolloutRequest:
    return RolloutRequest((Message("user", question),), key or (0,), **options)


def gist(rollout: Rollout) -> tuple[Any, ...]:
    """What must not depend on how a rollout was batched: all but times."""
    return (
        rollout.prompt_ids,
        rollout.completion_ids,
        rollout.sampled,
        [(span.end, span.text, span.tokens) for span in rollout.transcript.spans],
        rollout.transcript.finish,
    )


@torch.no_grad()
def logprobs_from_scratch(model: Any, rollout: Rollout) -> list[float]:
    """Of all completion ids, by one plain forward pass without any cache."""
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    logp = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    start = len(rollout.prompt_ids)
    return logp[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0].tolist()
