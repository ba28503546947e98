"""Which steps a model gets wrong: teacher-forced greedy, step by step.

A step is right if, led up to its working by the true text, the model's greedy choice is the true token at
every position of the working and at its end. Greedy decoding writes exactly the true working then, so one
forward pass tells what decoding would; a working that departs from the true one counts as wrong.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sr_edge.suites.demo import Kind
from sr_train.demo.data import Layout


@dataclass(frozen=True)
class Marks:
    """What one model did on one problem: a flag a step, and whether all the rest was right."""

    is_right: tuple[bool, ...]
    is_plan_right: bool  # quotes, expressions, connectors, the answer: all outside the workings


def measure(
    logits: Callable[[Tensor], Tensor],
    layouts: Sequence[Layout],
    num_rows: int = 32,
    report: Callable[[int], None] = lambda _: None,
) -> list[Marks]:
    """Marks in the order of layouts.

    Args:
        logits: the model: ids (B, T), padded on the right -> (B, T, vocabulary).
        report: gets the number of problems done so far.
    """
    order = sorted(range(len(layouts)), key=lambda index: len(layouts[index].ids))
    marks: dict[int, Marks] = {}
    for start in range(0, len(order), num_rows):
        chosen = order[start : start + num_rows]
        longest = max(len(layouts[index].ids) for index in chosen)
        ids = torch.tensor([layouts[i].ids + [0] * (longest - len(layouts[i].ids)) for i in chosen])
        with torch.no_grad():
            greedy = logits(ids).argmax(-1).tolist()  # (B, T)
        marks.update((index, _marks(layouts[index], row)) for index, row in zip(chosen, greedy, strict=True))
        report(len(marks))
    return [marks[index] for index in range(len(layouts))]


@dataclass(frozen=True)
class Rates:
    """Over many problems: the share of right steps by kind, of right plans, and of wholly right problems."""

    by_kind: dict[Kind, float]
    num_by_kind: dict[Kind, int]
    plan: float
    whole: float


def rates(layouts: Sequence[Layout], marks: Sequence[Marks]) -> Rates:
    num: Counter[Kind] = Counter()
    right: Counter[Kind] = Counter()
    for laid, mark in zip(layouts, marks, strict=True):
        num.update(laid.kinds)
        right.update(kind for kind, is_right in zip(laid.kinds, mark.is_right, strict=True) if is_right)
    return Rates(
        {kind: right[kind] / num[kind] for kind in sorted(num)},
        {kind: num[kind] for kind in sorted(num)},
        sum(mark.is_plan_right for mark in marks) / len(marks),
        sum(mark.is_plan_right and all(mark.is_right) for mark in marks) / len(marks),
    )


def _marks(laid: Layout, greedy: list[int]) -> Marks:
    is_true = [greedy[t - 1] == laid.ids[t] for t in range(1, len(laid.ids))]  # is_true[t - 1]: token t
    outside = [True] * len(laid.ids)
    for start, end in laid.spans:
        outside[start : end + 1] = [False] * (end + 1 - start)  # the full stop tells where the working ended
    return Marks(
        tuple(all(is_true[start - 1 : end]) for start, end in laid.spans),
        all(is_true[t - 1] for t in range(laid.num_prompt, len(laid.ids)) if outside[t]),
    )
