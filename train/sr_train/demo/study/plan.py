"""What the study runs: for each seed two ways to be taught, and from there ways to learn by asking. Pure."""

from __future__ import annotations

from collections.abc import Iterator
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


LEARNINGS: tuple[Learning, ...] = (
    Learning("true", "opinion", (), about="the large model writes the spans"),
    Learning("true, lam 0.2", "opinion", ("reward.lam=0.2",), about="asking costs less"),
    Learning("true, lam 0.9", "opinion", ("reward.lam=0.9",), about="asking costs more"),
    Learning(
        "self",
        "opinion",
        ('big.fill="self"',),
        about="the small model writes its spans itself, as in the paper",
    ),
    Learning("true, measured", "measured", (), about="begins with spans at measured failures"),
    Learning("budget 5 %", "opinion", ("reward.kind=budget", "reward.target_share=0.05"), 0.05),
    Learning("budget 10 %", "opinion", ("reward.kind=budget", "reward.target_share=0.10"), 0.10),
    Learning("budget 20 %", "opinion", ("reward.kind=budget", "reward.target_share=0.20"), 0.20),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How large the study is; the defaults are those of the documentation."""

    num_rows: int = 4000
    """Problems that are marked for SFT."""
    sft_steps: int = 300
    grpo_steps: int = 60
    num_evaluated: int = 500


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


def learned(seeds: tuple[int, ...], names: tuple[str, ...] = ()) -> Iterator[Task]:
    """Seed after seed, so that an early stop leaves whole seeds. `names`: of these only; empty for all."""
    for seed in seeds:
        for learning in LEARNINGS:
            if not names or learning.name in names:
                yield Task(seed, learning.teacher, learning)
