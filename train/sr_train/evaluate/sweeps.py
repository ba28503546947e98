"""Curves of accuracy against share, and the setting that gives a wanted share.

What a marker's bias or a threshold does depends on the model, and on its quantisation: each file is
calibrated by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sr_edge.errors import UsageError
from sr_train.evaluate.arms import Arm
from sr_train.problems import Problem
from sr_train.rollout.requests import Rollout, RolloutEngine

MAX_STEPS = 9
MAX_BIAS = 16.0
"""Beyond it a marker is as good as forced, or forbidden."""


@dataclass(frozen=True, slots=True)
class Found:
    """A setting, and the share that it gave."""

    setting: float
    share: float
    tried: tuple[tuple[float, float], ...]
    """All settings that were tried, with their shares, in order of setting."""


def calibrate_bias(
    engine: RolloutEngine,
    problems: Sequence[Problem],
    target_share: float,
    *,
    tolerance: float = 0.005,
    temperature: float | None = None,
    seed: int = 0,
    samples: int = 1,
    instruction: str = "",
) -> Found:
    """The bias on the opening marker at which the large model writes `target_share` of all tokens.

    On other problems the share is another one by chance: with n answers of about equal length, by
    about 1 / sqrt(n) of itself.

    Args:
        tolerance: of the share; no further bias is tried within it.
        temperature: None for the engine's own.
    Raises:
        UsageError: the target is no share.
    """
    if not 0 < target_share < 1:
        raise UsageError(f"a target share of {target_share}: it is between 0 and 1")

    def share(bias: float) -> float:
        arm = Arm("split", bias)
        return share_of(run_arm(engine, arm, problems, temperature, seed, samples, instruction))

    return find_setting(share, target_share, low=-MAX_BIAS, high=MAX_BIAS, first=0.0, tolerance=tolerance)


def tau_sweep(
    with_tau: Callable[[float], RolloutEngine],
    problems: Sequence[Problem],
    taus: Sequence[float],
    *,
    temperature: float | None = None,
    seed: int = 0,
) -> list[tuple[float, list[Rollout]]]:
    """Answers at each hand-back threshold. A low one takes the pen back early.

    Args:
        with_tau: an engine with that threshold; its caller closes it.
    """
    for tau in taus:
        if not 0 < tau < 1:
            raise UsageError(f"a hand-back threshold of {tau}: it is between 0 and 1")
    return [(tau, run_arm(with_tau(tau), Arm("split"), problems, temperature, seed, 1, "")) for tau in taus]


def run_arm(
    engine: RolloutEngine,
    arm: Arm,
    problems: Sequence[Problem],
    temperature: float | None,
    seed: int,
    samples: int,
    instruction: str,
) -> list[Rollout]:
    """One rollout a problem and sample."""
    return engine.run(
        [
            arm.request(problem, sample, seed=seed, temperature=temperature, instruction=instruction)
            for problem in problems
            for sample in range(samples)
        ]
    )


def share_of(rollouts: Sequence[Rollout]) -> float:
    """Of all tokens written, those of the large model; what failed is left out."""
    whole = [rollout.transcript for rollout in rollouts if not rollout.remote_failed]
    remote = sum(transcript.remote_tokens for transcript in whole)
    tokens = remote + sum(transcript.local_tokens for transcript in whole)
    return remote / tokens if tokens else 0.0


def find_setting(
    share: Callable[[float], float],
    target: float,
    *,
    low: float,
    high: float,
    first: float | None = None,
    tolerance: float = 0.005,
    max_steps: int = MAX_STEPS,
) -> Found:
    """The setting whose share is nearest to the target, found by halving.

    Args:
        share: of a setting; it grows from `low` to `high`, but for noise. `low` may be the larger number.
        first: tried first.
    """
    tried: dict[float, float] = {}
    setting = (low + high) / 2 if first is None else first
    for _ in range(max_steps):
        tried[setting] = share(setting)
        if abs(tried[setting] - target) <= tolerance:
            break
        if tried[setting] < target:
            low = setting
        else:
            high = setting
        setting = (low + high) / 2
    best = min(tried, key=lambda each: abs(tried[each] - target))
    return Found(best, tried[best], tuple(sorted(tried.items())))
