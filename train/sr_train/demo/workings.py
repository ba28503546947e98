"""What a step is in the demo task's solutions: the workings, without what leads to them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sr_train.annotate.steps import Step

_WORKING = re.compile(r"^.*?\d [-+*/] \d+(?::| =)(?P<working> [^\n]*)\.$", re.MULTILINE)


def split_workings(trace: str) -> tuple[Step, ...]:
    """The steps of a trace, joined they are the trace; workings are those that may be marked."""
    return tuple(_steps(trace))


def _steps(trace: str) -> Iterator[Step]:
    at = 0
    for found in _WORKING.finditer(trace):
        start, end = found.span("working")
        if at < start:
            yield Step(at, start, is_markable=False)
        yield Step(start, end, is_markable=True)
        at = end
    if at < len(trace):
        yield Step(at, len(trace), is_markable=False)
