"""Annotated traces as training rows: token ids, and for each of them what is asked of its prediction. Pure.

The pieces of a trace are tokenised apart, `before <bigmodel> span </bigmodel> after`, as the client feeds
them: there the opening marker is sampled, and the span's text is cut into tokens by itself.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from sr_edge.errors import UsageError
from sr_edge.markers import CLOSE, OPEN, SPELLINGS, strip_markers
from sr_edge.roles import Message, Prompt
from sr_train.problems import fit_opening

SpanLoss = Literal["mask", "train", "close"]

IGNORED = -100
"""The label of an id that is read and not learned."""


@dataclass(frozen=True, slots=True)
class AnnotatedRow:
    """One line of an annotated data set."""

    id: str
    question: str
    answer: str
    text: str
    """Reasoning and answer as the assistant writes them, with the markers around what is difficult."""
    unlearned: tuple[tuple[int, int], ...] = ()
    """Parts of `text`, from character to before character, that are read and not learned, such as steps that
    the small model is to go on leaving to others although nobody marked them. Outside of spans."""


@dataclass(frozen=True, slots=True)
class SftRow:
    """`labels[t]` is what is asked of the prediction of `input_ids[t]`: that very id, or nothing (`IGNORED`).

    With `span_loss` = close there is a third kind, at a span's ids: the id of the closing marker. Where the
    id itself is another, it is asked that the marker is not predicted there.
    """

    id: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    num_prompt: int


class Words(Protocol):
    """What is needed of a vocabulary; see `roles.LocalModel`."""

    def render(self, messages: Sequence[Message]) -> Prompt: ...
    def ordinary(self, text: str) -> list[int]: ...
    def piece(self, id: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class RowMaker:
    """Turns annotated traces into rows, always the same ones from the same seed, in whatever order."""

    words: Words
    open_id: int
    close_id: int
    end_id: int
    """Of the token that ends an answer."""
    span_loss: SpanLoss
    local_share: float = 0.0
    """Of the rows: their spans stay in the text without markers and without loss, as after a remote that
    failed."""
    seed: int = 0

    def row(self, annotated: AnnotatedRow) -> SftRow:
        """Raises:
        UsageError: the markers are unclosed, nested, empty, or in the question.
        """
        if any(spelling in annotated.question for spelling in SPELLINGS):
            raise UsageError(f"{annotated.id}: there is a marker in the question")
        prompt = self.words.render((Message("user", annotated.question),))
        text = fit_opening(annotated.text, prompt.opening)
        parts = spans_apart(annotated.id, text)
        shift = len(text) - len(annotated.text)  # what was left out or put in is at the beginning
        unlearned = [(start + shift, end + shift) for start, end in annotated.unlearned]
        is_local = random.Random(f"{self.seed} {annotated.id}").random() < self.local_share
        ids, labels = self._local(parts, unlearned) if is_local else self._marked(parts, unlearned)
        return SftRow(
            annotated.id,
            (*prompt.ids, *ids, self.end_id),
            (*[IGNORED] * len(prompt.ids), *labels, self.end_id),
            len(prompt.ids),
        )

    def _marked(
        self, parts: Sequence[str], unlearned: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        labels: list[int] = []
        for (index, part), start in zip(enumerate(parts), _starts(parts), strict=True):
            piece = self.words.ordinary(part)
            if index % 2 == 0:
                ids += piece
                labels += self._labels(piece, part, _within(part, start, unlearned))
                continue
            within = {
                "mask": [IGNORED] * len(piece),
                "train": piece,
                "close": [self.close_id] * len(piece),
            }[self.span_loss]
            ids += [self.open_id, *piece, self.close_id]
            labels += [self.open_id, *within, self.close_id]
        return ids, labels

    def _local(
        self, parts: Sequence[str], unlearned: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[int]]:
        """Tokenised in one piece, since the small model writes all of it; no loss on what a span touches."""
        text = "".join(parts)
        ids = self.words.ordinary(text)
        left_out: list[bool] = []
        for (index, part), start in zip(enumerate(parts), _starts(parts), strict=True):
            left_out += [True] * len(part) if index % 2 else _within(part, start, unlearned)
        return ids, self._labels(ids, text, left_out)

    def _labels(self, ids: Sequence[int], text: str, left_out: Sequence[bool]) -> list[int]:
        """The ids themselves, but for those that touch a character that is left out."""
        if not any(left_out):
            return list(ids)
        pieces = [self.words.piece(id) for id in ids]
        assert b"".join(pieces) == text.encode("utf-8", "replace")
        of_bytes: list[bool] = []
        for character, is_left_out in zip(text, left_out, strict=True):
            of_bytes += [is_left_out] * len(character.encode("utf-8", "replace"))
        labels: list[int] = []
        at = 0
        for id, piece in zip(ids, pieces, strict=True):
            labels.append(IGNORED if any(of_bytes[at : at + len(piece)]) else id)
            at += len(piece)
        return labels


def _starts(parts: Sequence[str]) -> Iterator[int]:
    """Where the parts of `spans_apart` begin in the text with its markers."""
    at = 0
    for index, part in enumerate(parts):
        yield at
        at += len(part) + len(CLOSE if index % 2 else OPEN)


def _within(part: str, start: int, intervals: Sequence[tuple[int, int]]) -> list[bool]:
    """Of each character of a part that begins at `start`, whether it lies in one of the intervals."""
    return [any(a <= at < b for a, b in intervals) for at in range(start, start + len(part))]


def spans_apart(id: str, text: str) -> list[str]:
    """What is outside and inside of spans, in turn, beginning outside; both may be empty at the ends.

    Raises:
        UsageError: a span is unclosed, nested or empty, or a marker is spelled in another way.
    """
    parts: list[str] = []
    rest = text
    while True:
        before, opened, rest = rest.partition(OPEN)
        parts.append(before)
        if not opened:
            break
        span, closed, rest = rest.partition(CLOSE)
        if not closed:
            raise UsageError(f"{id}: a span has no {CLOSE}")
        if not span:
            raise UsageError(f"{id}: a span is empty")
        parts.append(span)
    for part in parts:
        if strip_markers(part) != part:
            raise UsageError(f"{id}: markers that are nested, unpaired or misspelt in {part[:60]!r}")
    return parts


def cut_row(row: SftRow, max_length: int, open_id: int, close_id: int) -> SftRow | None:
    """The row's beginning: at most `max_length` ids, no part of a span. None if nothing is learned there."""
    if len(row.input_ids) <= max_length:
        return row
    kept = list(row.input_ids[:max_length])
    opened = max((at for at, id in enumerate(kept) if id == open_id), default=-1)
    closed = max((at for at, id in enumerate(kept) if id == close_id), default=-1)
    end = opened if opened > closed else max_length
    if all(label == IGNORED for label in row.labels[:end]):
        return None
    return SftRow(row.id, row.input_ids[:end], row.labels[:end], row.num_prompt)


def read_annotated(path: Path) -> Iterator[AnnotatedRow]:
    """The lines of an annotated data set.

    Raises:
        UsageError: the file cannot be read, or a line is no such row.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _annotated(line, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}: make it with `sr-edge train annotate`") from None


def _annotated(line: str, where: str) -> AnnotatedRow:
    try:
        found: Any = json.loads(line)
    except ValueError:
        raise UsageError(f"{where}: this is no JSON") from None
    names = ("id", "question", "answer", "text")
    if not isinstance(found, Mapping) or not all(isinstance(found.get(name), str) for name in names):
        raise UsageError(f"{where}: a row has the texts {', '.join(names)}")
    unlearned = found.get("unlearned", [])
    is_meant = isinstance(unlearned, list) and all(
        isinstance(each, list) and len(each) == 2 and all(type(at) is int for at in each)
        for each in unlearned
    )
    if not is_meant:
        raise UsageError(f"{where}: unlearned is a list of [start, end], in characters of the text")
    id, question, answer, text = (found[name] for name in names)
    return AnnotatedRow(id, question, answer, text, tuple((a, b) for a, b in unlearned))
