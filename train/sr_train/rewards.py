r"""What a rollout is worth. Pure functions of the facts of its group: the rollouts of one problem.

`gated`   right * (1 - lam * cost) * (1 - malformed)  for a right answer: above 0, whatever it cost
          - malformed                                   for a wrong one: at most 0
          plus two terms that need the group: `explore` where nobody is right, `never_asked` where only those
          that asked are. Within a group any right answer beats any wrong one.
`budget`  right - price * share - malformed             the price holds the share, see `sr_train.budget`; it
          may make a right answer worth less than a wrong one, else it could not hold every share
`paper`   SplitReason's: right + format + tag counts. For comparison: its best answer has eight spans over
          40 % of the text, whatever the problem
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from sr_edge.extract import END_THINK, THINK, last_boxed
from sr_edge.markers import CLOSE, OPEN, SPELLINGS
from sr_edge.transcript import Transcript
from sr_train.grading import CUT, answer_text, is_gradable, is_right, own_answer
from sr_train.latency import Cost, LatencyModel
from sr_train.recipe import RewardPart


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reward looks at in one rollout."""

    is_right: bool
    """In what the small model itself wrote, outside spans."""
    has_asked: bool
    is_malformed: bool
    local_tokens: int
    remote_tokens: int
    cost: Cost
    big_only: Cost
    """What the large model alone would have cost."""
    text: str = ""
    """With the template's opening and the markers: what `paper` reads."""

    @property
    def tokens(self) -> int:
        return self.local_tokens + self.remote_tokens


def facts_of(gold: str, transcript: Transcript, latency: LatencyModel) -> Facts | None:
    """None where the gold answer cannot be read, so that nothing can be said: whatever the answer, since a
    group without its wrong boxes, but with those who gave none, would mislead.
    """
    if not is_gradable(gold):
        return None
    return Facts(
        is_right=bool(is_right(gold, own_answer(transcript))),
        has_asked=any(span.text for span in transcript.spans),
        is_malformed=is_malformed(transcript),
        local_tokens=transcript.local_tokens,
        remote_tokens=transcript.remote_tokens,
        cost=latency.cost(transcript),
        big_only=latency.big_only(transcript),
        text=marked_text(transcript),
    )


def rewards(part: RewardPart, group: Sequence[Facts], *, price: float = 0.0) -> list[float]:
    """One for each rollout of a group; those that were dropped are not in it.

    Args:
        price: `budget`'s, of all tokens of an answer.
    """
    if part.kind == "paper":
        return [paper_reward(facts) for facts in group]
    shares = cost_shares(group, "share" if part.kind == "budget" else part.unit)
    if part.kind == "budget":
        return [
            facts.is_right - price * share - part.malformed * facts.is_malformed
            for facts, share in zip(group, shares, strict=True)
        ]
    return [
        gated(facts, share, part) + term
        for facts, share, term in zip(group, shares, group_terms(part, group), strict=True)
    ]


def gated(facts: Facts, share: float, part: RewardPart) -> float:
    """Multiplicative, so that no saving makes up for a wrong answer."""
    worth = 1.0 - part.malformed * facts.is_malformed
    return worth * (1.0 - part.lam * share) if facts.is_right else worth - 1.0


def cost_shares(group: Sequence[Facts], unit: Literal["seconds", "dollars", "share"]) -> list[float]:
    """What was spent on asking, as a part of what the large model alone would have cost, in [0, 1].

    The denominator is the group's mean: an answer does not get cheaper by being longer.
    """
    spent, whole = zip(*(_spent(facts, unit) for facts in group), strict=True)
    mean = fmean(whole)
    return [min(each / mean, 1.0) if mean > 0 else 0.0 for each in spent]


def _spent(facts: Facts, unit: Literal["seconds", "dollars", "share"]) -> tuple[float, float]:
    match unit:
        case "seconds":
            return facts.cost.offload_seconds, facts.big_only.seconds
        case "dollars":
            return facts.cost.dollars, facts.big_only.dollars
        case "share":
            return float(facts.remote_tokens), float(facts.tokens)


def group_terms(part: RewardPart, group: Sequence[Facts]) -> list[float]:
    """Against never asking and for trying, where the group shows that it matters; see `RewardPart`."""
    asked = any(facts.is_right for facts in group if facts.has_asked)
    alone = any(facts.is_right for facts in group if not facts.has_asked)
    if not asked and not alone:
        return [part.explore * facts.has_asked for facts in group]
    if asked and not alone:
        return [-part.never_asked * (not facts.has_asked) for facts in group]
    return [0.0] * len(group)


def is_malformed(transcript: Transcript) -> bool:
    """Whether a span came to nothing, a marker was spelled out as text, or the answer is in a span.

    The client closes every span and never opens one within another; what it cannot mend is counted here. A
    span that failed or was not let out is no fault of the small model's.
    """
    empty = any(span.end in ("stop", "handback", "boundary") and not span.text for span in transcript.spans)
    spelled = any(
        spelling in segment.text
        for segment in transcript.segments
        if segment.origin == "local"
        for spelling in SPELLINGS
    )
    return empty or spelled or _boxed_in_span(transcript)


def _boxed_in_span(transcript: Transcript) -> bool:
    if transcript.remote_tokens == 0 or last_boxed(answer_text(transcript)) is None:
        return False
    own = last_boxed(own_answer(transcript))
    return own is None or CUT in own


def marked_text(transcript: Transcript) -> str:
    """The answer after the template's opening, with markers around what the large model wrote."""
    return transcript.opening + "".join(
        segment.text if segment.origin == "local" else f"{OPEN}{segment.text}{CLOSE}"
        for segment in transcript.segments
    )


# --- the paper's ------------------------------------------------------------------------------------------

_SCAFFOLD = re.compile(r"<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>", re.DOTALL)


def paper_reward(facts: Facts) -> float:
    """SplitReason's: accuracy, format and tag counts, each with weight 1. Source: arXiv 2504.16379."""
    return facts.is_right + paper_format(facts.text) + paper_tag_count(facts.text)


def paper_format(text: str) -> float:
    """One for the scaffold of think and answer tags, one for spans that are closed before the next."""
    depth, is_nested = 0, False
    for tag in re.findall(f"{re.escape(OPEN)}|{re.escape(CLOSE)}", text):
        depth += 1 if tag == OPEN else -1
        is_nested = is_nested or depth not in (0, 1)
    return float(_SCAFFOLD.fullmatch(text) is not None) + float(depth == 0 and not is_nested)


def paper_tag_count(text: str) -> float:
    """Up to 2 for the scaffold's tags and a box, 2 for eight spans, 2 for 40 % of the characters in spans."""
    num_open, num_close = text.count(OPEN), text.count(CLOSE)
    scaffold = (
        0.5 * (text.count(f"{THINK}\n") == 1)
        + 0.5 * (text.count(f"\n{END_THINK}\n") == 1)
        + 0.25 * (text.count("\n<answer>\n") == 1)
        + 0.25 * (text.count("\n</answer>") == 1)
        + 0.5 * ("\\boxed{" in text)
    )
    many = 0.5 * num_open if num_open <= 8 else 4.0 - 0.5 * (num_open - 8)
    unbalanced = -2.0 if num_open != num_close else 0.0
    return scaffold + math.floor(many / 2) + 2.0 * _coverage(text) + unbalanced


def _coverage(text: str) -> float:
    inside = sum(map(len, re.findall(f"{re.escape(OPEN)}(.*?){re.escape(CLOSE)}", text, re.DOTALL)))
    share = inside / len(text) if text else 0.0
    return share / 0.4 if share < 0.4 else 1.0 - 2.0 * (share - 0.4) / 0.6
