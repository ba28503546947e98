"""A large model's opinion: it is shown a trace in numbered steps and names the difficult ones by number.

Numbers need no alignment and cannot be paraphrased. The reply should be JSON, and is read as far as it can
be where it is not quite. Pure: whoever asks is in `asking`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sr_edge.extract import END_THINK, THINK
from sr_edge.roles import Message
from sr_train.annotate.steps import Step
from sr_train.problems import Problem

VERSION = "steps-1"
"""Of the prompt: a new one asks anew."""

Kind = Literal["insight", "case split", "algebra", "arithmetic", "check", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "steps": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "i": {"type": "integer"},
                    "difficulty": {"type": "integer", "enum": [0, 1, 2, 3]},
                    "kind": {"type": "string", "enum": list(KINDS)},
                },
                "required": ["i", "difficulty", "kind"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["steps"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Rated:
    difficulty: int
    """0 to 3."""
    kind: Kind


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge said of one trace."""

    steps: dict[int, Rated]
    """By index; what it did not name is not difficult."""
    num_strange: int = 0
    """Entries that name no step, or no difficulty."""


class UnreadableReplyError(Exception):
    """There is no judgement in it."""


_INSTRUCTIONS = f"""\
You judge which steps of a worked solution are too hard for a small language model.

You get a problem and its solution, cut into numbered steps. Rate how hard each step is to get right for a \
careful small model (about 1.5 billion parameters) that has understood everything before it:
0 = routine: restating, copying, announcing, simple arithmetic
1 = needs some care
2 = hard: a long calculation, a non-obvious manipulation, a case that is easily missed
3 = the idea that the solution hinges on

Rate a step by what is newly worked out in it, not by how difficult its topic sounds. Most steps are 0 or 1.
Give its kind too: {", ".join(f'"{kind}"' for kind in KINDS)}.

Answer with JSON only, in this form, and leave out all of difficulty 0:
{{"steps": [{{"i": 12, "difficulty": 2, "kind": "algebra"}}, {{"i": 19, "difficulty": 3, "kind": \
"insight"}}]}}"""


def question(problem: Problem, steps: Sequence[Step]) -> tuple[Message, ...]:
    """What the judge is asked. Only steps that may be marked have numbers; the others are shown."""
    lines = []
    for index, step in enumerate(steps):
        text = problem.trace[step.start : step.end].strip()
        if text:
            lines.append(f"[{index}] {text}" if step.is_markable else text)
    asked = f"Problem:\n{problem.question.strip()}\n\nSolution:\n" + "\n".join(lines)
    return Message("system", _INSTRUCTIONS), Message("user", asked)


def read_reply(text: str, steps: Sequence[Step]) -> Judgement:
    """The judgement in a reply, in whatever dress it comes.

    Raises:
        UnreadableReplyError: there is none.
    """
    said = _without_thought(text)
    entries = _entries(said)
    if entries is None:
        raise UnreadableReplyError("the reply names no steps")
    rated: dict[int, Rated] = {}
    strange = 0
    for entry in entries:
        index, difficulty = _whole(entry, "i", "index", "step", "id"), _whole(entry, "difficulty", "rating")
        is_step = index is not None and 0 <= index < len(steps) and steps[index].is_markable
        if index is None or difficulty is None or not is_step:
            strange += 1
        else:
            before = rated[index].difficulty if index in rated else -1
            if difficulty > before:
                rated[index] = Rated(max(0, min(3, difficulty)), _kind(entry.get("kind")))
    return Judgement(rated, strange)


# --- reading what is not quite JSON ----------------------------------------------------------------------

_OBJECT = re.compile(r"\{[^{}]*\}")
_LINE = re.compile(
    r"^\W*(?:step\s*)?\[?(?P<i>\d+)\]?\s*[:=\-\u2013\u2014>|]+\s*(?:difficulty\s*[:=]?\s*)?(?P<difficulty>[0-3])\b"
    r"(?P<kind>[^\n]*)$",
    re.MULTILINE | re.IGNORECASE,
)
_WHOLE = re.compile(r"\s*[\[(#]?\s*(-?\d{1,9})(?:\.0+)?\s*[\])]?\s*")


def _without_thought(text: str) -> str:
    """What follows the reply's own thought: nothing if that was cut, for what it weighs is no judgement."""
    _, end, rest = text.rpartition(END_THINK)
    if end:
        return rest
    return "" if text.lstrip().startswith(THINK) else text


def _entries(said: str) -> list[dict[str, Any]] | None:
    """None: nothing that looks like a judgement."""
    for value in _json_values(said):
        found = _listed(value)
        if found is not None:
            return found
    pieces = [piece for piece in map(_object, _OBJECT.findall(said)) if piece is not None]
    pieces = [piece for piece in pieces if "difficulty" in piece]
    if pieces:  # cut in the middle, or not one list
        return pieces
    lines = [found.groupdict() for found in _LINE.finditer(said)]
    return lines or None


def _json_values(said: str) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), 0
    while 0 <= at < len(said):
        starts = [found for found in (said.find("{", at), said.find("[", at)) if found >= 0]
        if not starts:
            return
        at = min(starts)
        try:
            value, at = decoder.raw_decode(said, at)
        except (ValueError, RecursionError):
            at += 1
        else:
            yield value


def _listed(value: Any) -> list[dict[str, Any]] | None:
    if isinstance(value, dict):
        inner = value.get("steps")
        if isinstance(inner, dict):  # {"12": 2}, or {"12": {"difficulty": 2}}
            return [{"i": i, **(v if isinstance(v, dict) else {"difficulty": v})} for i, v in inner.items()]
        value = inner
    if not isinstance(value, list):
        return None
    entries = [each for each in value if isinstance(each, dict)]
    return entries if len(entries) == len(value) else None


def _object(text: str) -> dict[str, Any] | None:
    for attempt in (text, text.replace("'", '"'), re.sub(r",\s*\}", "}", text)):
        try:
            value = json.loads(attempt)
        except ValueError:
            continue
        return value if isinstance(value, dict) else None
    return None


def _whole(entry: dict[str, Any], *names: str) -> int | None:
    value = next((entry[name] for name in names if entry.get(name) is not None), None)
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and (found := _WHOLE.fullmatch(value)):
        return int(found[1])
    return value if isinstance(value, int) else None


def _kind(value: Any) -> Kind:
    said = str(value or "").strip(" \t()[],.:|-").lower().replace("_", " ").replace("-", " ")
    return next((kind for kind in KINDS if kind in said), "other")
