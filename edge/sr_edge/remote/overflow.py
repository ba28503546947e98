"""A context that is too long for the remote: how servers say so, and what is left out then. Pure."""

from __future__ import annotations

import re

from sr_edge.extract import END_THINK

MIN_ANSWER = 400
"""Characters. Of a shorter answer nothing is left out: it is not what makes the context too long."""

_OVERFLOW = re.compile(
    r"""context_length_exceeded | exceed_context_size | maximum\ context\ length | available\ context\ size
    | context\ (window|length|size)\b.{0,40}\bexceed | exceed\w*\b.{0,40}\bcontext\ (window|length|size)
    | (prompt|input)\ is\ too\ long""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_BOUNDARIES = [re.compile(pattern) for pattern in (r"\n\s*\n", r"\n|[.!?]\s+", r"\s+")]


def is_overflow(said: str) -> bool:
    return bool(_OVERFLOW.search(said))


def without_oldest_half(answer: str) -> str | None:
    """The answer from the first boundary past its middle on; None if it is too short for that.

    A boundary is an empty line, else the end of a line or a sentence, else of a word. A thought that ended in
    the part that is left out stays closed.
    """
    if len(answer) <= MIN_ANSWER:
        return None
    middle = len(answer) // 2
    found = (boundary.search(answer, middle, middle + len(answer) // 4) for boundary in _BOUNDARIES)
    cut = next((match.end() for match in found if match), middle)
    left_out, kept = answer[:cut], answer[cut:]
    if END_THINK in left_out and END_THINK not in kept:
        return f"{END_THINK}\n\n{kept}"
    return kept
