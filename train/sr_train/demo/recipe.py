"""The recipe of the demo pair: every number that decides what the two models become.

What separates them is what each was taught, not their size: the big one learns the workings of
multiplications and divisions from stories and drills; for the small one they have no loss in pre-training.
"""

from dataclasses import dataclass

from sr_train.demo.data import Mix, Syllabus
from sr_train.demo.export import HandBack, Role
from sr_train.demo.loop import Schedule


@dataclass(frozen=True)
class Shape:
    """A model's shape, without the vocabulary, which the tokenizer decides."""

    num_layers: int
    hidden: int
    inner: int


@dataclass(frozen=True)
class Pretraining:
    shape: Shape
    syllabus: Syllabus
    schedule: Schedule
    num_rows: int = 16


@dataclass(frozen=True)
class Sft:
    num_problems: int  # fresh ones, on which the failures are measured and then marked
    schedule: Schedule
    num_rows: int = 24
    local_share: float = 0.1  # of the rows: hard steps left in the text without markers
    closing_weight: float = 1.0


@dataclass(frozen=True)
class Recipe:
    small: Pretraining
    big: Pretraining
    sft: Sft
    hand_back: HandBack
    num_evaluated: int
    evaluation_seed: int

    def pretraining(self, role: Role) -> Pretraining:
        return self.small if role == "small" else self.big


def demo_recipe(steps_scale: float = 1.0) -> Recipe:
    """The recipe of the pair that ships; a scale below 1 makes every stage shorter, for a smoke run."""

    def scaled(count: int) -> int:
        return max(1, round(count * steps_scale))

    # Arithmetic comes first and fast. Following the story is the slow part: reading brought it about.
    small_mixes = (Mix(0, 0.45, 0.0), Mix(scaled(1600), 0.2, 0.3), Mix(scaled(3000), 0.08, 0.42))
    big_mixes = (
        Mix(0, 0.45, 0.0),
        Mix(scaled(1700), 0.25, 0.0),
        Mix(scaled(2000), 0.06, 0.0),
        Mix(scaled(2500), 0.08, 0.45),
        Mix(scaled(4200), 0.06, 0.25),
    )
    sft_schedule = Schedule(
        scaled(300), adam_lr=1.5e-3, muon_lr=5e-3, num_warmup=20, num_between_checkpoints=50
    )
    return Recipe(
        small=Pretraining(
            Shape(num_layers=3, hidden=96, inner=192),
            Syllabus(teaches_hard=False, mixes=small_mixes),
            Schedule(scaled(6800)),
        ),
        big=Pretraining(
            Shape(num_layers=3, hidden=128, inner=384),
            Syllabus(teaches_hard=True, mixes=big_mixes, line_start_weight=4.0),
            Schedule(scaled(6200)),
        ),
        sft=Sft(num_problems=max(48, scaled(6000)), schedule=sft_schedule),
        hand_back=HandBack(tau=0.5, min_span=1),
        num_evaluated=max(24, scaled(500)),
        evaluation_seed=1,
    )
