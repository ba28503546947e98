"""Marks on the demo task's solutions: where the small model was measured to fail, or where a judge thinks so.

The judge is one like a reader who goes by how a sentence sounds: about some wordings it is nearly always
wrong, about the others nearly always right, and of all its verdicts a given share is wrong. What a model
learns from it is wrong in the same places, also where it takes the likeliest token.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sr_edge.markers import CLOSE, OPEN
from sr_edge.suites.demo import Problem, problem, training_rng, wording
from sr_train.demo.data import layout
from sr_train.demo.measure import measure
from sr_train.demo.tokenizer import END_THINK, DemoTokenizer

MISJUDGED, JUDGED = 0.85, 0.065
"""How often the judge is wrong about a wording that it misjudges, and about one that it judges well: 30 % in
all where 30 % of the steps have misjudged wordings."""


@dataclass(frozen=True, slots=True)
class MarkedProblem:
    """A problem, and for each of its steps whether it is to be asked for."""

    problem: Problem
    is_marked: tuple[bool, ...]
    is_failed: tuple[bool, ...] = ()
    """Of each step, whether it was measured as beyond the model, marked or not; empty if not known."""

    @property
    def text(self) -> str:
        """What the assistant writes after the template's opening, with markers around the marked workings."""
        given = f"{self.problem.given}\n" if self.problem.given else ""
        lines = [
            f"{step.lead}{OPEN}{step.span}{CLOSE}.\n" if marked else f"{step.lead}{step.span}.\n"
            for step, marked in zip(self.problem.steps, self.is_marked, strict=True)
        ]
        return f"{given}{''.join(lines)}{END_THINK}\n\nThe answer is \\boxed{{{self.problem.answer}}}."

    @property
    def unlearned(self) -> tuple[tuple[int, int], ...]:
        """In `text`, the workings that are beyond the model and not marked.

        As in pre-training they have no loss: the gap between the two models is one of what they were taught,
        and a judge that misses such a step must not close it.
        """
        parts: list[tuple[int, int]] = []
        at = len(f"{self.problem.given}\n") if self.problem.given else 0
        for step, marked, failed in zip(
            self.problem.steps, self.is_marked, self.is_failed or self.is_marked, strict=True
        ):
            start = at + len(step.lead)
            if failed and not marked:
                parts.append((start, start + len(step.span)))
            markers = len(OPEN) + len(CLOSE) if marked else 0
            at = start + len(step.span) + markers + len(".\n")
        return tuple(parts)


def training_problems(seed: int, num: int) -> list[Problem]:
    rng = training_rng(seed, "marking")
    return [problem(rng) for _ in range(num)]


def by_failures(
    logits: Callable[[Tensor], Tensor],
    tokenizer: DemoTokenizer,
    problems: Sequence[Problem],
    report: Callable[[int], None] = lambda _: None,
) -> list[MarkedProblem]:
    """Marks the steps that the model gets wrong: see `measure`."""
    marks = measure(logits, [layout(tokenizer, each) for each in problems], report=report)
    return [
        MarkedProblem(each, tuple(not is_right for is_right in mark.is_right))
        for each, mark in zip(problems, marks, strict=True)
    ]


def by_opinion(measured: Sequence[MarkedProblem], error: float, seed: int) -> list[MarkedProblem]:
    """The same problems as a judge marks them whose verdicts are wrong in `error` of the steps."""
    misjudged = _misjudged(measured, error, random.Random(f"sr-edge demo judge {seed}"))
    rng = random.Random(f"sr-edge demo verdicts {seed}")
    scale = error / 0.3

    def verdict(is_hard: bool, words: str) -> bool:
        wrong = rng.random() < min(1.0, (MISJUDGED if (words, is_hard) in misjudged else JUDGED * scale))
        return is_hard != wrong

    return [
        MarkedProblem(
            each.problem,
            tuple(
                verdict(is_hard, wording(step))
                for step, is_hard in zip(each.problem.steps, each.is_marked, strict=True)
            ),
            is_failed=each.is_marked,
        )
        for each in measured
    ]


def share_wrong(judged: Sequence[MarkedProblem], measured: Sequence[MarkedProblem]) -> float:
    """Of all steps, how many are marked otherwise than measured."""
    pairs = [
        (a, b)
        for one, other in zip(judged, measured, strict=True)
        for a, b in zip(one.is_marked, other.is_marked, strict=True)
    ]
    return sum(a != b for a, b in pairs) / max(1, len(pairs))


def _misjudged(
    measured: Sequence[MarkedProblem], error: float, rng: random.Random
) -> frozenset[tuple[str, bool]]:
    """Wordings, drawn until they are those of `error` of the steps: among the hard ones and the easy ones."""
    chosen: set[tuple[str, bool]] = set()
    for is_hard in (False, True):
        counts: dict[str, int] = {}
        for each in measured:
            for step, hard in zip(each.problem.steps, each.is_marked, strict=True):
                if hard == is_hard:
                    counts[wording(step)] = counts.get(wording(step), 0) + 1
        wordings = sorted(counts)
        rng.shuffle(wordings)
        reached, total = 0, sum(counts.values())
        for words in wordings:
            if reached + counts[words] / 2 > error * total:
                continue
            chosen.add((words, is_hard))
            reached += counts[words]
    return frozenset(chosen)
