"""The models that steps are measured with, as the recipe names them: loaded here, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sr_edge.markers import Markers
from sr_edge.roles import Limits, Message
from sr_train.annotate.continuing import Continuing
from sr_train.annotate.measured import Continue, TokenSurprisals
from sr_train.checkpoint import Loaded, load_for_inference
from sr_train.problems import fit_opening
from sr_train.recipe import Recipe
from sr_train.remotes import open_big
from sr_train.rollout.vocabulary import Vocabulary

if TYPE_CHECKING:
    from sr_train.rollout.big import Big

_WINDOW = 4096
"""Tokens that are read at once; each window after the first begins with the half before it."""


@dataclass(frozen=True, slots=True)
class Measuring:
    surprisals: TokenSurprisals
    continue_: Continue


@contextmanager
def measuring(
    recipe: Recipe, cache: Path, *, offline: bool, environ: Mapping[str, str] = os.environ
) -> Iterator[Measuring]:
    """Loads the small model and, if spans are tried out and the recipe names one, the large one.

    Args:
        cache: where built-in models are written; see `resolve_base`.
    Raises:
        UsageError, ModelError: one of them is not here.
    """
    with ExitStack() as held:
        small = load_for_inference(
            recipe.model.base, recipe.model.dtype, cache, attention=recipe.model.attention
        )
        big = (
            held.enter_context(_big(recipe, small, cache, offline, environ))
            if recipe.annotate.continuations
            else None
        )
        rollout = recipe.rollout
        yield Measuring(
            Surprisals(small),
            Continuing(
                small,
                _markers(recipe, small),
                big,
                limits=Limits(rollout.max_tokens, rollout.max_span_tokens, rollout.soft_span_tokens),
                temperature=rollout.temperature,
                max_rows=rollout.max_rows,
            ),
        )


class Surprisals:
    """A `TokenSurprisals`: one pass over prompt and trace, in windows where that is long."""

    def __init__(self, loaded: Loaded, *, window: int = _WINDOW) -> None:
        self._model: Any = loaded.model
        self._tokenizer = loaded.tokenizer
        self._vocabulary = Vocabulary(loaded.tokenizer, [])
        self._window = window

    def __call__(self, question: str, trace: str) -> Sequence[tuple[int, float]]:
        prompt = self._vocabulary.render([Message("user", question)])
        text = fit_opening(trace, prompt.opening)
        shift = len(trace) - len(text)  # at the beginning: a think tag that the template writes, or does not
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, starts = list(encoded["input_ids"]), [start + shift for start, _ in encoded["offset_mapping"]]
        found = zip(starts, self._nats(list(prompt.ids), ids), strict=True)
        return [(start, nats) for start, nats in found if start >= 0]

    @torch.inference_mode()
    def _nats(self, prompt: list[int], ids: list[int]) -> list[float]:
        every, found = prompt + ids, list[float]()
        at = len(prompt)  # the next one to predict
        while at < len(every):
            begin = 0 if len(every) <= self._window else max(0, at - self._window // 2)
            window = every[begin : begin + self._window]
            logits = self._model(input_ids=torch.tensor([window], device=self._model.device)).logits[0]
            first = max(1, at - begin)
            wanted = torch.tensor(window[first:], device=logits.device)
            logprobs = logits[first - 1 : -1].float().log_softmax(-1)
            found += (-logprobs.gather(1, wanted[:, None])[:, 0]).tolist()
            at = begin + len(window)
        return found


def _markers(recipe: Recipe, loaded: Loaded) -> Markers:
    handback = recipe.handback
    return Markers("token", (loaded.open_id,), (loaded.close_id,), handback.tau, handback.min_span)


@contextmanager
def _big(
    recipe: Recipe, small: Loaded, cache: Path, offline: bool, environ: Mapping[str, str]
) -> Iterator[Big | None]:
    """Who helps. None: the trace's own steps do."""
    from sr_train.rollout.big import CheckpointBig, EndpointBig

    big = recipe.big
    if big.model is not None:
        loaded = load_for_inference(big.model, big.dtype, cache)
        yield CheckpointBig(
            loaded.model, loaded.tokenizer, big.temperature, name=big.model, markers=_markers(recipe, loaded)
        )
    elif big.remote is not None:
        render = Vocabulary(small.tokenizer, []).render
        with open_big(big, render, offline=offline, environ=environ) as endpoint:
            yield EndpointBig(
                endpoint, concurrency=big.concurrency, attempts=big.attempts, timeout=big.timeout
            )
    else:
        yield None
