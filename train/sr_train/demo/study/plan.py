"""What the study runs: for each seed two ways to be taught, and from there ways to learn by asking. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Teacher = Literal["opinion", "measured"]
TEACHERS: tuple[Teacher, ...] = ("opinion", "measured")
"""`opinion`: a judge marked the spans, and 30 % of its verdicts are wrong; `measured`: where it fails."""

JUDGE_ERROR = 0.3

BIASES = (-3.0, -1.5, 1.5, 3.0)
"""Added to the opening marker's logit of a model that was taught only: its curve without further training."""


@dataclass(frozen=True, slots=True)
class Learning:
    """One run of GRPO."""

    name: str
    teacher: Teacher
    settings: tuple[str, ...]
    """Changes to the recipe `demo`."""
    target_share: float | None = None
    about: str = ""
    is_for_all_seeds: bool = True
    """Otherwise for the first one only: a point of a curve, not a comparison."""


LEARNINGS: tuple[Learning, ...] = (
    Learning("true", "opinion", (), about="the large model writes the spans"),
    Learning(
        "true, lam 0.3", "opinion", ("reward.lam=0.3",), about="asking costs less", is_for_all_seeds=False
    ),
    Learning(
        "true, lam 0.95", "opinion", ("reward.lam=0.95",), about="asking costs more", is_for_all_seeds=False
    ),
    Learning(
        "self",
        "opinion",
        ('big.fill="self"',),
        about="the small model writes its spans itself, as in the paper",
    ),
    Learning(
        "true, measured",
        "measured",
        ("grpo.trainer.learning_rate=1e-4",),
        about="begins with spans at measured failures, near the best: smaller steps",
    ),
    Learning(
        "budget 5 %",
        "opinion",
        ("reward.kind=budget", "reward.target_share=0.05"),
        0.05,
        is_for_all_seeds=False,
    ),
    Learning(
        "budget 10 %",
        "opinion",
        ("reward.kind=budget", "reward.target_share=0.10"),
        0.10,
        is_for_all_seeds=False,
    ),
    Learning(
        "budget 20 %",
        "opinion",
        ("reward.kind=budget", "reward.target_share=0.20"),
        0.20,
        is_for_all_seeds=False,
    ),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How large the study is; the defaults are those of the documentation."""

    num_rows: int = 3000
    """Problems that are marked for SFT."""
    sft_steps: int = 200
    grpo_steps: int = 36
    num_evaluated: int = 300


@dataclass(frozen=True, slots=True)
class Task:
    """One model to be made and measured. Those of `learning` None come first: the others begin with them."""

    seed: int
    teacher: Teacher
    learning: Learning | None = None

    @property
    def folder(self) -> str:
        """In the study's."""
        name = self.learning.name if self.learning else f"sft, {self.teacher}"
        plain = "".join(c if c.isalnum() or c == "." else "-" for c in name)
        return f"seed-{self.seed}/{plain}"

    @property
    def name(self) -> str:
        return self.learning.name if self.learning else f"SFT, {self.teacher}"


def taught(seeds: tuple[int, ...]) -> list[Task]:
    return [Task(seed, teacher) for seed in seeds for teacher in TEACHERS]


def learned(seeds: tuple[int, ...], names: tuple[str, ...] = ()) -> list[Task]:
    """What tells most comes first, so that a study that is stopped early has it. `names`: of these only."""
    tasks = [
        Task(seed, learning.teacher, learning)
        for seed in seeds
        for learning in LEARNINGS
        if (not names or learning.name in names) and (learning.is_for_all_seeds or seed == seeds[0])
    ]

    def rank(task: Task) -> int:
        assert task.learning is not None
        if task.learning.is_for_all_seeds and task.seed == seeds[0]:
            return 0
        if task.learning is LEARNINGS[0]:
            return 1
        return 3 if task.learning.is_for_all_seeds else 2

    return sorted(tasks, key=rank)
