"""The engine that a recipe asks for: the small model being trained, and whoever writes its spans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sr_edge.errors import UsageError
from sr_edge.markers import Markers
from sr_edge.roles import Limits, Message, Prompt, RemoteModel
from sr_train.checkpoint import Loaded, load_for_inference
from sr_train.recipe import Recipe
from sr_train.rollout.big import Big, CheckpointBig, EndpointBig, SelfBig
from sr_train.rollout.engine import BatchedEngine
from sr_train.rollout.span_cache import SpanCache
from sr_train.rollout.vllm import VllmEngine
from sr_train.rollout.vocabulary import Vocabulary

if TYPE_CHECKING:
    from trl.trainer.grpo_trainer import GRPOTrainer

Reach = Callable[[Callable[[Sequence[Message]], Prompt]], RemoteModel]
"""Opens the recipe's endpoint, given how the small model renders a conversation; its maker closes it."""


def batched_engine(recipe: Recipe, loaded: Loaded, folder: Path, reach: Reach | None) -> BatchedEngine:
    """Through transformers, in this process.

    Args:
        folder: the run's: for built-in models and spans that are kept.
        reach: None where the large model is no endpoint.
    """
    rollout = recipe.rollout
    return BatchedEngine(
        loaded.model,
        loaded.tokenizer,
        own_markers(recipe, loaded),
        big_of(recipe, loaded, folder, reach),
        limits=limits_of(recipe),
        max_spans=rollout.max_spans,
        temperature=rollout.temperature,
        max_rows=rollout.max_rows,
    )


def vllm_engine(
    recipe: Recipe, loaded: Loaded, trainer: GRPOTrainer, folder: Path, reach: Reach | None
) -> VllmEngine:
    """Through the trainer's vLLM; arguments as of `batched_engine`."""
    rollout = recipe.rollout
    return VllmEngine(
        trainer,
        loaded.model,
        loaded.tokenizer,
        own_markers(recipe, loaded),
        "self" if recipe.big.fill == "self" else big_of(recipe, loaded, folder, reach),
        limits=limits_of(recipe),
        max_spans=rollout.max_spans,
        temperature=rollout.temperature,
        max_rows=rollout.max_rows,
    )


def own_markers(recipe: Recipe, loaded: Loaded) -> Markers:
    handback = recipe.handback
    return Markers("token", (loaded.open_id,), (loaded.close_id,), handback.tau, handback.min_span)


def limits_of(recipe: Recipe) -> Limits:
    rollout = recipe.rollout
    return Limits(rollout.max_tokens, rollout.max_span_tokens, rollout.soft_span_tokens)


def big_of(recipe: Recipe, loaded: Loaded, folder: Path, reach: Reach | None) -> Big:
    """Whoever writes the spans.

    Raises:
        UsageError: the recipe names nobody, or an endpoint that cannot be reached from here.
    """
    big = recipe.big
    if big.fill == "self":
        return SelfBig()
    if big.model is not None:
        other = load_for_inference(big.model, big.dtype, folder / "cache", device=str(loaded.model.device))
        banned = Markers("token", (other.open_id,), (other.close_id,))
        return CheckpointBig(other.model, other.tokenizer, big.temperature, markers=banned)
    if big.remote is None:
        raise UsageError(
            "the recipe does not say who writes the spans: set big.model, big.remote, or big.fill = self"
        )
    if reach is None:
        raise UsageError(f"big.remote = {big.remote}: no endpoint was opened for it")
    cache = None
    if big.cache and big.temperature == 0:
        cache = SpanCache(folder / "spans.jsonl", {"remote": big.remote, "model": big.remote_model})
    vocabulary = Vocabulary(loaded.tokenizer)
    return EndpointBig(
        lambda: reach(vocabulary.render),
        concurrency=big.concurrency,
        attempts=big.attempts,
        timeout=big.timeout,
        cache=cache,
    )
