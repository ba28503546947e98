"""From problems to rewarded rollouts: what GRPO trains on. TRL is not known here.

One call writes one batch: groups of rollouts, each group of one problem. Every random number comes from
(seed, step, row), the row counted over all processes, so that two processes write what one would with twice
the batch, and a run that goes on writes what it would have written.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import chain
from typing import Any

from sr_edge.errors import RemoteError, UsageError
from sr_edge.roles import Message
from sr_train.budget import DualAscent
from sr_train.latency import LatencyModel, measured
from sr_train.problems import Problem
from sr_train.recipe import GrpoPart, RewardPart, RolloutPart
from sr_train.rewards import Facts, facts_of, rewards
from sr_train.rollout.requests import Rollout, RolloutEngine, RolloutRequest

MAX_LOST = 3
"""Batches in a row in which the large model failed whoever asked it."""

Total = Callable[[Sequence[float]], Sequence[float]]
"""Sums each figure over all processes. A process alone has `list`."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the training a batch is written."""

    step: int
    """Optimiser steps before it."""
    batch: int = 0
    """Batches of this step before it."""
    first_row: int = 0
    """Rows of this batch that earlier processes write."""


@dataclass(frozen=True, slots=True)
class Written:
    """One process's part of a batch; all but `figures` a row each."""

    rollouts: tuple[Rollout, ...]
    completion_ids: tuple[tuple[int, ...], ...]
    """The rollout's; never empty, as TRL needs it: the filling is masked."""
    loss_mask: tuple[tuple[int, ...], ...]
    """1 where the loss lies. All 0 for a row that was dropped."""
    rewards: tuple[float | None, ...]
    """None for a row that was dropped: it counts neither for itself nor for its group."""
    figures: dict[str, float]
    """Of all processes, by name."""


class OffloadRollouts:
    """Writes batches. What it carries from one to the next is in `state`."""

    def __init__(
        self,
        engine: RolloutEngine,
        problems: Mapping[str, Problem],
        *,
        grpo: GrpoPart,
        rollout: RolloutPart,
        reward: RewardPart,
        latency: LatencyModel,
        seed: int,
        open_id: int,
        fill_id: int,
    ) -> None:
        """Args:
        problems: by id.
        open_id: the opening marker.
        fill_id: a token to stand for an answer without any.
        """
        self._engine = engine
        self._problems = problems
        self._grpo = grpo
        self._rollout = rollout
        self._reward = reward
        self._latency = latency
        self._seed = seed
        self._open_id = open_id
        self._fill_id = fill_id
        self._dual: DualAscent | None = None
        if reward.kind == "budget":
            assert reward.target_share is not None  # the recipe is checked when it is read
            self._dual = DualAscent(reward.target_share, reward.dual_rate)
        self._lost = 0
        self.dollars = 0.0
        """Spent by all processes: as it was billed, or by the recipe's prices where no bill came."""

    def write(self, ids: Sequence[str], place: Place, total: Total = list) -> Written:
        """One rollout for each id of a problem; the ids of a group stand together.

        Raises:
            UsageError: a group is cut.
            RemoteError: the large model has been failing for `MAX_LOST` batches.
        """
        groups = self._groups(ids)
        requests = [
            request
            for number, group in enumerate(groups)
            for request in self._requests(group, place, number * self._grpo.num_generations)
        ]
        rollouts = self._engine.run(requests)
        size = self._grpo.num_generations
        facts = [self._facts(id, rollout) for id, rollout in zip(ids, rollouts, strict=True)]
        sums = _Sums(*total(astuple(self._sums(rollouts, facts))))
        self.dollars += sums.dollars_spent
        self._check_reach(rollouts, sums)
        if self._dual is not None:
            self._dual.update(sums.remote_tokens / sums.tokens if sums.tokens else float("nan"))
        worths = [
            self._rewards(rollouts[at : at + size], facts[at : at + size])
            for at in range(0, len(rollouts), size)
        ]
        masks = chain.from_iterable(
            self._masks(rollouts[at : at + size]) for at in range(0, len(rollouts), size)
        )
        is_used = [fact is not None for fact in facts]
        return Written(
            rollouts=tuple(rollouts),
            completion_ids=tuple(rollout.completion_ids or (self._fill_id,) for rollout in rollouts),
            loss_mask=tuple(
                mask if used and mask else (0,) * max(len(mask), 1)
                for mask, used in zip(masks, is_used, strict=True)
            ),
            rewards=tuple(chain.from_iterable(worths)),
            figures=self._figures(sums),
        )

    def state(self) -> dict[str, Any]:
        return {"dollars": self.dollars, "dual": None if self._dual is None else self._dual.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.dollars = float(state["dollars"])
        if self._dual is not None and state["dual"] is not None:
            self._dual.restore(state["dual"])

    def _check_reach(self, rollouts: Sequence[Rollout], sums: _Sums) -> None:
        """Raises: RemoteError: nobody who asked was answered for a while; such steps do not teach to ask."""
        self._lost = self._lost + 1 if sums.failed and not sums.asked else 0
        errors = [span.error for rollout in rollouts for span in rollout.transcript.spans if span.error]
        if self._lost >= MAX_LOST and errors:
            raise RemoteError(
                f"the large model failed whoever asked it in {MAX_LOST} batches: {errors[0]}. Mend that and "
                "run the command again: it goes on from its last checkpoint"
            )

    # --- requests ------------------------------------------------------------------------------------------

    def _groups(self, ids: Sequence[str]) -> list[Sequence[str]]:
        size = self._grpo.num_generations
        groups = [ids[at : at + size] for at in range(0, len(ids), size)]
        if any(len(group) != size or len(set(group)) != 1 for group in groups):
            raise UsageError(
                f"a group of {size} rollouts is cut between processes: set grpo.num_prompts, not the batch "
                "sizes, and keep grpo.trainer.steps_per_generation such that whole groups fit"
            )
        return groups

    def _requests(self, group: Sequence[str], place: Place, row: int) -> list[RolloutRequest]:
        row += place.first_row
        problem = self._problems[group[0]]
        # Whole groups go without the large model, so that each rollout is compared with its like.
        draw = random.Random(f"{self._seed} {place.step} {place.batch} {row} remote dropout").random()
        return [
            RolloutRequest(
                messages=(Message("user", problem.question),),
                key=(self._seed, place.step, place.batch, row + n),
                policy="local" if draw < self._rollout.remote_dropout else "auto",
            )
            for n in range(len(group))
        ]

    # --- rewards -------------------------------------------------------------------------------------------

    def _facts(self, id: str, rollout: Rollout) -> Facts | None:
        """None if the rollout is to be dropped."""
        if rollout.remote_failed and self._rollout.failed == "drop":
            return None
        if not any(rollout.sampled):  # nothing was written by the small model: nothing to learn from
            return None
        return facts_of(self._problems[id].answer, rollout.transcript, self._latency)

    def _rewards(self, rollouts: Sequence[Rollout], facts: Sequence[Facts | None]) -> list[float | None]:
        used = [fact for fact in facts if fact is not None]
        if not used:
            return [None] * len(facts)
        if rollouts[0].request.policy == "local":
            worths = iter([float(fact.is_right) for fact in used])
        else:
            price = 0.0 if self._dual is None else self._dual.price()
            worths = iter(rewards(self._reward, used, price=price))
        return [None if fact is None else next(worths) for fact in facts]

    def _masks(self, group: Sequence[Rollout]) -> list[tuple[int, ...]]:
        if self._grpo.decisions_only:
            return decision_masks(group, self._open_id)
        return [tuple(map(int, rollout.sampled)) for rollout in group]

    # --- figures -------------------------------------------------------------------------------------------

    def _sums(self, rollouts: Sequence[Rollout], facts: Sequence[Facts | None]) -> _Sums:
        sums = _Sums()
        for rollout, fact in zip(rollouts, facts, strict=True):
            transcript = rollout.transcript
            spent, clock = self._latency.cost(transcript), measured(transcript)
            sums.dollars_spent += spent.dollars if transcript.cost is None else transcript.cost
            sums.rows += 1
            sums.failed += rollout.remote_failed
            if fact is None:
                sums.dropped += 1
                continue
            if rollout.request.policy == "local":
                sums.local_rows += 1
                sums.local_right += fact.is_right
                continue
            sums.used += 1
            sums.right += fact.is_right
            sums.asked += fact.has_asked
            sums.malformed += fact.is_malformed
            sums.truncated += transcript.finish != "stop"
            sums.spans += len(transcript.spans)
            sums.tokens += fact.tokens
            sums.remote_tokens += fact.remote_tokens
            sums.sent_tokens += sum(span.sent_tokens for span in transcript.spans)
            sums.seconds += fact.cost.seconds
            sums.offload_seconds += fact.cost.offload_seconds
            sums.measured_seconds += clock.offload_seconds
            sums.dollars += fact.cost.dollars
        return sums

    def _figures(self, sums: _Sums) -> dict[str, float]:
        """What is logged; a mean over nothing is left out."""
        figures = {
            "dropped": sums.dropped / sums.rows,
            "failed": sums.failed / sums.rows,
            "dollars_spent": self.dollars,
        }
        if sums.used:
            figures |= {
                "accuracy": sums.right / sums.used,
                "share": sums.remote_tokens / sums.tokens if sums.tokens else 0.0,
                "asked": sums.asked / sums.used,
                "spans": sums.spans / sums.used,
                "tokens": sums.tokens / sums.used,
                "sent_tokens": sums.sent_tokens / sums.used,
                "seconds": sums.seconds / sums.used,
                "offload_seconds": sums.offload_seconds / sums.used,
                "offload_seconds_measured": sums.measured_seconds / sums.used,
                "dollars": sums.dollars / sums.used,
                "malformed": sums.malformed / sums.used,
                "truncated": sums.truncated / sums.used,
            }
        if sums.local_rows:
            figures["accuracy_alone"] = sums.local_right / sums.local_rows
        if self._dual is not None:
            figures["price"] = self._dual.price()
        return {f"offload/{name}": value for name, value in figures.items()}


@dataclass(slots=True)
class _Sums:
    """Over rows. From `used` on, of those that could ask and were not dropped."""

    rows: float = 0
    failed: float = 0
    """The large model did not answer one of its spans."""
    dropped: float = 0
    dollars_spent: float = 0
    local_rows: float = 0
    local_right: float = 0
    used: float = 0
    right: float = 0
    asked: float = 0
    malformed: float = 0
    truncated: float = 0
    spans: float = 0
    tokens: float = 0
    remote_tokens: float = 0
    sent_tokens: float = 0
    seconds: float = 0
    offload_seconds: float = 0
    measured_seconds: float = 0
    dollars: float = 0


def decision_masks(group: Sequence[Rollout], open_id: int) -> list[tuple[int, ...]]:
    """1 where the small model decided whether to ask: after tokens after which one of the group asked."""
    befores = {
        before for rollout in group for before, id, sampled in _steps(rollout) if sampled and id == open_id
    }
    return [
        tuple(int(sampled and before in befores) for before, _, sampled in _steps(rollout))
        for rollout in group
    ]


def _steps(rollout: Rollout) -> Iterator[tuple[int, int, bool]]:
    """The token before, the token, whether it was sampled."""
    ids = rollout.completion_ids
    return zip((*rollout.prompt_ids[-1:], *ids[:-1]), ids, rollout.sampled, strict=True)
