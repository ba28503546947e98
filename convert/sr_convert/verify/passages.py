"""What both models read: stretches of the corpus as ids, and where in them a marker is decided on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sr_convert.verify import corpus
from sr_convert.verify.rendering import Renderer
from sr_convert.verify.tokens import OwnWords
from sr_edge.errors import ModelError
from sr_edge.markers import CLOSE, OPEN, Markers
from sr_edge.roles import Message

Marker: TypeAlias = Literal["open", "close"]

WINDOW = 64
"""Ids of a stretch of plain text."""
LONGEST = 384


@dataclass(frozen=True, slots=True)
class Decision:
    """After the id at `position`, the model may write the marker's first token, `id`."""

    position: int
    id: int
    marker: Marker


@dataclass(frozen=True, slots=True)
class Passage:
    ids: tuple[int, ...]
    decisions: tuple[Decision, ...] = ()


def plain_passages(words: OwnWords, positions: int, context: int) -> list[Passage]:
    """Windows spread over the corpus, of `positions` ids together; fewer if it has no more."""
    start = () if words.bos is None else (words.bos,)
    size = min(WINDOW, context) - len(start)
    stream = words.encode("\n\n".join(corpus.passages()))
    num_windows = min(-(-positions // (size + len(start))), len(stream) // size)
    found: list[Passage] = []
    for i in range(num_windows):
        first = i * (len(stream) - size) // max(1, num_windows - 1)
        ids = (*start, *stream[first : first + size])
        left = positions - sum(len(one.ids) for one in found)
        found.append(Passage(ids[:left]))
    return [one for one in found if one.ids]


def marked_passages(words: OwnWords, render: Renderer, markers: Markers, context: int) -> list[Passage]:
    """Conversations whose answers hold marked spans."""
    found = []
    for one in corpus.MARKED:
        prompt = _prompt(words, render, one.question)
        answer = one.answer
        if prompt.rstrip().endswith("<think>"):
            answer = answer.removeprefix("<think>\n")
        found.append(_marked(words, markers, prompt, answer, min(context, LONGEST)))
    return found


def prompt_ids(words: OwnWords, render: Renderer, question: str) -> list[int]:
    ids = words.encode(_prompt(words, render, question))
    return ids if words.bos is None or ids[:1] == [words.bos] else [words.bos, *ids]


def _prompt(words: OwnWords, render: Renderer, question: str) -> str:
    """By the chat template; bare where there is none, or where it refuses a question alone."""
    if words.template is not None:
        try:
            return render([Message("user", question)])
        except ModelError:
            pass
    return question + "\n\n"


def _marked(words: OwnWords, markers: Markers, prompt: str, answer: str, longest: int) -> Passage:
    text = prompt + answer
    encoding = words.tokenizer.encode(text, add_special_tokens=False)
    ids, starts = list(encoding.ids), [first for first, _ in encoding.offsets]
    if words.bos is not None and ids[:1] != [words.bos]:
        ids, starts = [words.bos, *ids], [0, *starts]
    at: dict[int, Marker] = {}
    for place in _places(text, OPEN, len(prompt)):
        at[_token_at(starts, place)] = "open"
    for place in _places(text, CLOSE, len(prompt)):
        at[_token_at(starts, place)] = "close"
    if markers.form == "text":
        decisions = [Decision(i - 1, ids[i], marker) for i, marker in sorted(at.items()) if i]
    else:
        decisions = _everywhere(markers, at, first=_token_at(starts, len(prompt)), end=len(ids))
    kept = tuple(one for one in decisions if one.position < longest)
    return Passage(tuple(ids[:longest]), kept)


def _everywhere(markers: Markers, at: Mapping[int, Marker], *, first: int, end: int) -> list[Decision]:
    """A marker that is one token may come at any place of the answer: the one that is not open already."""
    decisions = []
    is_open = False
    for i in range(max(1, first), end):
        id = markers.close_ids[0] if is_open else markers.open_ids[0]
        decisions.append(Decision(i - 1, id, "close" if is_open else "open"))
        if i in at:
            is_open = at[i] == "open"
    return decisions


def _places(text: str, spelling: str, start: int) -> list[int]:
    places = []
    at = text.find(spelling, start)
    while at >= 0:
        places.append(at)
        at = text.find(spelling, at + 1)
    return places


def _token_at(starts: Sequence[int], place: int) -> int:
    """Index of the token that holds the character at `place`."""
    return bisect_right(starts, place) - 1
