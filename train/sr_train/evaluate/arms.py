"""The arms of an evaluation: who writes an answer, and what decides when the large model does.

    small           the small model alone
    big             the large model alone
    split           the large model where the small one asks, a bias on its marker or none
    random          chunks at random places, as in SplitReason's own comparison
    periodic        a chunk after every so many tokens
    entropy         a chunk where a line's first token is uncertain
    token-entropy   a chunk where any token is uncertain
    cascade         the whole answer anew by the large model, where the small one was unsure of its own

All but the first three have one setting, which is found so that the large model writes as many tokens as in
`split` (`running` does that); what `split` gains over them is what asking at the right place gains.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args
from zlib import crc32

from sr_edge.errors import UsageError
from sr_edge.roles import Message, Policy, Schedule
from sr_train.problems import Problem
from sr_train.rollout.requests import Cursor, RolloutRequest

Kind = Literal["small", "big", "split", "random", "periodic", "entropy", "token-entropy", "cascade"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Scheduling: TypeAlias = Callable[[Cursor], Schedule]

CHUNK = 10
"""Tokens of a span of a baseline, as in the paper."""
LINE = 32
"""The same for `entropy`, which has a step written and not a few tokens."""

MATCHED: frozenset[Kind] = frozenset({"random", "periodic", "entropy", "token-entropy", "cascade"})
"""Those whose setting is found so that their share is that of `split`."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Who writes. `setting` by kind:

    split: added to the opening marker's logit; random, periodic: the share of tokens that is aimed at;
    entropy, token-entropy: nats, above which the large model writes; cascade: the small model's mean
    log-probability, below which the large one answers. None: 0 for split, not known yet for the others.
    """

    kind: Kind
    setting: float | None = None

    @property
    def name(self) -> str:
        """Its own in an evaluation."""
        if self.kind == "split" and self.setting:
            return f"split {self.setting:+g}"
        return self.kind

    def request(
        self, problem: Problem, sample: int, *, seed: int, temperature: float | None, instruction: str = ""
    ) -> RolloutRequest:
        """What an engine is asked for.

        The random numbers are those of the problem and the sample, whatever the arm: differences between
        arms are due to the arms.
        """
        if self.kind == "cascade":
            raise ValueError("a cascade is put together from the arms small and big")
        if self.kind in MATCHED and self.setting is None:
            raise ValueError(f"the arm {self.kind} has no setting yet")
        key = (seed, crc32(problem.id.encode()), sample)
        return RolloutRequest(
            messages=messages_of(problem, instruction),
            key=key,
            policy=_POLICIES.get(self.kind, "auto"),
            bias=(self.setting or 0.0) if self.kind == "split" else 0.0,
            schedule=self._schedule(key),
            temperature=temperature,
        )

    def _schedule(self, key: tuple[int, ...]) -> Scheduling | None:
        setting = self.setting or 0.0
        match self.kind:
            case "random":
                return random_spans(setting, key)
            case "periodic":
                return periodic_spans(setting)
            case "entropy":
                return uncertain_spans(setting, at_lines=True, chunk=LINE)
            case "token-entropy":
                return uncertain_spans(setting, at_lines=False, chunk=CHUNK)
        return None


_POLICIES: dict[Kind, Policy] = {"small": "local", "big": "remote"}


def arms_of(names: tuple[str, ...], biases: tuple[float, ...] = ()) -> list[Arm]:
    """The arms of a recipe: those named, and `split` once for each bias.

    Raises:
        UsageError: there is no such arm.
    """
    for name in names:
        if name not in KINDS:
            raise UsageError(f"there is no arm {name}: there are {', '.join(KINDS)}")
    arms = [Arm(kind) for kind in KINDS if kind in names]
    arms += [Arm("split", bias) for bias in sorted(set(biases)) if bias]
    if not arms:
        raise UsageError(f"no arm is named: there are {', '.join(KINDS)}")
    return arms


def messages_of(problem: Problem, instruction: str = "") -> tuple[Message, ...]:
    """A problem as it is asked. `instruction` follows it, such as: put the answer into a box."""
    return (Message("user", f"{problem.question}\n\n{instruction}" if instruction else problem.question),)


# --- when the large model writes -------------------------------------------------------------------------


def random_spans(share: float, key: tuple[int, ...], chunk: int = CHUNK) -> Scheduling:
    """Chunks that make up `share` of all tokens, wherever they come to lie."""
    p = share / (share + (1 - share) * chunk) if share else 0.0

    def begin(cursor: Cursor) -> Schedule:
        rng = random.Random(f"sr-edge random spans {key}")
        return lambda num_tokens: chunk if rng.random() < p else None

    return begin


def periodic_spans(share: float, chunk: int = CHUNK) -> Scheduling:
    """A chunk after every so many tokens of the small model that chunks make up `share`."""
    own = chunk * (1 - share) / share if share else float("inf")

    def begin(cursor: Cursor) -> Schedule:
        due = own

        def size(num_tokens: int) -> int | None:
            nonlocal due
            if num_tokens < due:
                return None
            due += own + chunk
            return chunk

        return size

    return begin


def uncertain_spans(nats: float, *, at_lines: bool, chunk: int) -> Scheduling:
    """A chunk where the entropy of the small model's next token is above `nats`.

    Args:
        at_lines: look at the first token of each line only.
    """

    def begin(cursor: Cursor) -> Schedule:
        def size(num_tokens: int) -> int | None:
            if at_lines and num_tokens and not cursor.piece(cursor.ids[-1]).endswith(b"\n"):
                return None
            return chunk if cursor.entropy() > nats else None

        return size

    return begin
