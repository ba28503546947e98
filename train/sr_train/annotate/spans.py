"""Which steps are marked, and the annotated text. Pure.

However difficult they are found to be, the marks obey the recipe: the most difficult steps come first, until
they are as large a part of the trace as they may be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sr_edge.markers import CLOSE, OPEN, strip_markers
from sr_train.annotate.steps import Interval, Step
from sr_train.recipe import AnnotatePart


@dataclass(frozen=True, slots=True)
class Rule:
    """What of the recipe is about the marks themselves."""

    target_share: float
    min_span_chars: int
    merge_gap_chars: int

    @classmethod
    def of(cls, part: AnnotatePart) -> Rule:
        return cls(part.target_share, part.min_span_chars, part.merge_gap_chars)


def choose(
    trace: str, steps: Sequence[Step], scores: Mapping[int, float], rule: Rule, salt: str
) -> tuple[Interval, ...]:
    """The spans to mark, in order; neither nested nor touching.

    Args:
        scores: how difficult the candidates are, by index; what is no candidate has none.
        salt: the problem's id. Steps that are as difficult as each other are drawn by it: in their order,
            a trace's beginning would always win.
    """

    def rank(index: int) -> tuple[float, bytes]:
        return -scores[index], hashlib.sha256(f"{salt}\n{index}".encode()).digest()

    room = rule.target_share * len(trace)
    chosen: list[int] = []
    spans: list[Interval] = []
    for index in sorted((i for i in scores if steps[i].is_markable), key=rank):
        wider = merged(trace, steps, [*chosen, index], rule)
        if sum(end - start for start, end in wider) <= room:
            chosen.append(index)
            spans = wider
    return tuple(spans)


def merged(trace: str, steps: Sequence[Step], chosen: Sequence[int], rule: Rule) -> list[Interval]:
    """The chosen steps as spans: neighbours are one, so are those with next to nothing between them."""
    runs: list[tuple[int, int]] = []  # of steps, the last one included
    for index in sorted(chosen):
        if runs and _may_join(steps, runs[-1][1], index, rule.merge_gap_chars):
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    spans = [(steps[first].start, steps[last].end) for first, last in runs]
    return [
        (start, end) for start, end in spans if len(trace[start:end].strip()) >= max(1, rule.min_span_chars)
    ]


def _may_join(steps: Sequence[Step], last: int, index: int, gap: int) -> bool:
    between = steps[last + 1 : index]
    return all(step.is_markable for step in between) and steps[index].start - steps[last].end <= gap


def with_markers(trace: str, spans: Sequence[Interval]) -> str:
    """The trace with its spans marked.

    Raises:
        ValueError: without the markers it would not be the trace, since it holds some already.
    """
    pieces, at = [], 0
    for start, end in spans:
        assert at <= start < end <= len(trace)
        pieces += [trace[at:start], OPEN, trace[start:end], CLOSE]
        at = end
    text = "".join([*pieces, trace[at:]])
    if strip_markers(text) != trace:
        raise ValueError(f"the trace holds {OPEN} or {CLOSE} itself")
    return text


def snapped(steps: Sequence[Step], found: Sequence[Interval]) -> list[int]:
    """The steps that the intervals lie in for the greater part of the step, or of the interval."""
    chosen = []
    for index, step in enumerate(steps):
        for start, end in found:
            shared = min(step.end, end) - max(step.start, start)
            if shared > 0 and 2 * shared >= min(step.end - step.start, end - start):
                chosen.append(index)
                break
    return chosen
