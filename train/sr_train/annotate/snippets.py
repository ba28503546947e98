r"""The paper's way to mark: a large model quotes the hardest parts, and they are looked for in the trace.

A quote is found as it stands; else with blanks and LaTeX spelled alike, by a map back to the trace; else by
likeness (rapidfuzz), if it is like enough. What is found grows or shrinks to whole steps, as all marks do.
Source: SplitReason, arXiv 2504.16379, section 3.1, which takes any likeness from a half on, cut anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rapidfuzz import fuzz

from sr_edge.extract import END_THINK
from sr_edge.roles import Message
from sr_train.annotate.judge import UnreadableReplyError
from sr_train.annotate.steps import Interval

VERSION = "snippets-1"
START, END = "-----SNIPPET START-----", "-----SNIPPET END-----"

MIN_SNIPPET = 8
"""Characters, as they are compared: a shorter quote could be found anywhere."""

Way = Literal["exact", "normalised", "fuzzy", "rejected"]


@dataclass(frozen=True, slots=True)
class Found:
    """One quote and where it was found."""

    snippet: str
    way: Way
    score: float
    """Of 100."""
    at: Interval | None
    """None: it was rejected."""


def question(trace: str, target_share: float) -> tuple[Message, ...]:
    """What the large model is asked: the trace alone, as in the paper."""
    target = round(target_share * len(trace))
    instructions = f"""\
You find the hardest parts of a reasoning trace: those where a small language model would most likely \
go wrong.

Quote them word for word, as short snippets of one to a few sentences each. Do not paraphrase, shorten or \
correct anything, and take no snippet from inside a formula or a boxed answer. Together they should have \
about {target} characters (the trace has {len(trace)}), and there should be at least three, even if all \
is easy.
Write each one like this, and nothing else:
{START}
the quoted text
{END}"""
    return Message("system", instructions), Message("user", trace)


def read_reply(text: str) -> list[str]:
    """The snippets in a reply.

    Raises:
        UnreadableReplyError: there is none.
    """
    said = text.rpartition(END_THINK)[2]
    pattern = re.compile(rf"{re.escape(START)}(.*?)(?={re.escape(END)}|{re.escape(START)}|\Z)", re.DOTALL)
    snippets = [snippet.strip() for snippet in pattern.findall(said)]
    snippets = [snippet for snippet in snippets if snippet]
    if not snippets:
        raise UnreadableReplyError(f"the reply holds no {START}")
    return snippets


def align(snippet: str, trace: str, min_score: float) -> Found:
    """Where in the trace a quote is from.

    Args:
        min_score: of 100; a quote that is less like any part of the trace is rejected.
    """
    snippet = snippet.strip()
    plain, origin = normalised(trace)
    wanted, _ = normalised(snippet)
    if len(wanted) < MIN_SNIPPET:
        return Found(snippet, "rejected", 0.0, None)
    at = trace.find(snippet)
    if at >= 0:
        return Found(snippet, "exact", 100.0, (at, at + len(snippet)))
    at = plain.find(wanted)
    if at >= 0:
        return Found(snippet, "normalised", 100.0, _back(origin, at, at + len(wanted)))
    if len(wanted) > len(plain):
        score = fuzz.ratio(wanted, plain)
        whole = (0, len(trace)) if score >= min_score else None
        return Found(snippet, "fuzzy" if whole else "rejected", score, whole)
    best = fuzz.partial_ratio_alignment(wanted, plain)
    assert best is not None, "without a cut-off there is always one"
    if best.score < min_score or best.dest_end <= best.dest_start:
        return Found(snippet, "rejected", best.score, None)
    return Found(snippet, "fuzzy", best.score, _back(origin, best.dest_start, best.dest_end))


def align_all(snippets: Sequence[str], trace: str, min_score: float) -> list[Found]:
    return [align(snippet, trace, min_score) for snippet in snippets]


# --- spelled alike ---------------------------------------------------------------------------------------

_ALIKE = re.compile(
    r"""(?P<drop>\s+ | \\[()\[\],;:!\s] | \$+ | [{}*_`]
        | \\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z]))
      | (?P<frac>\\[dt]frac(?![a-zA-Z]))
      | (?P<times>\\(?:cdot|times)(?![a-zA-Z]) | [\u00b7\u00d7])
      | (?P<minus>[\u2010-\u2015\u2212])
      | (?P<quote>[\u2018\u2019\u201c\u201d\u00b4])""",
    re.VERBOSE,
)
_AS = {"frac": "\\frac", "times": "*", "minus": "-", "quote": "'"}


def normalised(text: str) -> tuple[str, list[int]]:
    """The text in small letters, without blanks and without what LaTeX can do without; and for each of its
    characters, and its end, where that stands in `text`."""
    pieces: list[str] = []
    origin: list[int] = []
    at = 0
    for found in _ALIKE.finditer(text):
        _keep(text, at, found.start(), pieces, origin)
        instead = _AS.get(found.lastgroup or "", "")
        pieces.append(instead)
        origin += [found.start()] * len(instead)
        at = found.end()
    _keep(text, at, len(text), pieces, origin)
    return "".join(pieces), [*origin, len(text)]


def _keep(text: str, start: int, end: int, pieces: list[str], origin: list[int]) -> None:
    for at in range(start, end):
        small = "'" if text[at] == '"' else text[at].lower()
        pieces.append(small)
        origin += [at] * len(small)  # some small letters are two characters


def _back(origin: Sequence[int], start: int, end: int) -> Interval:
    return origin[start], max(origin[end - 1] + 1, origin[start] + 1)
