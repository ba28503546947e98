"""What a checkpoint's markers are, putting them into one that has none, and what a GGUF says of them.

The form is decided by what the checkpoint has: two tokens in its vocabulary; else what `sr_edge.json` beside
the weights says, which is where a training of ours leaves it; else a chat template or a name that gives away
one of the published checkpoints, whose markers are ordinary text. The keys, and how the client reads them,
are in `sr_edge.markers`; where added markers go and how their rows begin, in `sr_edge.marker_rows`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from gguf import TokenType
from numpy.typing import NDArray

from sr_convert.checkpoint import EMBEDDING, HEAD, name_of, read_json
from sr_convert.fields import Field, float32, string, uint32
from sr_convert.source import Dtype, Source
from sr_convert.tokenizer import Words
from sr_edge import __version__
from sr_edge.errors import ModelError, UsageError
from sr_edge.marker_rows import first_row, free_ids
from sr_edge.markers import (
    CLOSE,
    DEFAULT_MIN_SPAN,
    DEFAULT_TAU,
    KEY_BASE_MODEL,
    KEY_CLOSE_ID,
    KEY_FORM,
    KEY_MIN_SPAN,
    KEY_OPEN_ID,
    KEY_TAU,
    KEY_TRAINING_RUN,
    KEY_VERSION,
    OPEN,
    is_text_form_name,
)

NOTE = "sr_edge.json"


@dataclass(frozen=True, slots=True)
class TrainingNote:
    """What `sr_edge.json` says; None and nothing where it does not say it."""

    form: Literal["token", "text"] | None = None
    tau: float | None = None
    min_span: int | None = None
    base_model: str | None = None
    training_run: str | None = None


@dataclass(frozen=True, slots=True)
class Marked:
    source: Source
    words: Words
    fields: Sequence[Field]
    """`sr_edge.*`, for the GGUF."""
    notes: tuple[str, ...]
    """What a user should know of the result."""


def marked(
    source: Source,
    words: Words,
    *,
    folders: Sequence[Path],
    origin: str | None,
    trained_on: str | None,
    add: bool,
    as_text: bool,
    tau: float | None,
) -> Marked:
    """Decide what the markers are, add them where that is wanted, and say so in the metadata.

    Args:
        folders: where a note and a model card may lie, the one that counts most first: an adapter's, then the
            checkpoint's.
        origin: what the checkpoint is called where it came from.
        trained_on: what the adapter was trained on, as its config says.
        add: put the two tokens in, unless they are there.
        as_text: the markers are ordinary text, whatever else is known.
        tau: hand-back threshold to recommend; None for that of the note.
    Raises:
        UsageError: what is asked for contradicts what the checkpoint has.
        ModelError: a note cannot be read, or contradicts the vocabulary.
    """
    if tau is not None and not 0 < tau < 1:
        raise UsageError(f"a hand-back threshold is a probability between 0 and 1, and {tau} is none")
    if add and as_text:
        raise UsageError("markers are added as tokens, or are plain text: choose one of the two options")
    note = read_note(folders)
    notes: tuple[str, ...] = ()
    present = [marker for marker in (OPEN, CLOSE) if marker in words.ids]
    form: Literal["token", "text"] | None
    if len(present) == 2:
        if as_text:
            raise UsageError(f"{OPEN} and {CLOSE} are tokens in this checkpoint: leave --text-markers out")
        if note.form == "text":
            raise ModelError(
                f"{folders[0]}: by {NOTE} the markers are plain text, and the tokenizer has them as tokens: "
                "correct that file, or copy the tokenizer's files of the training"
            )
        form, words = "token", _controlling(words)
        if add:
            notes = (f"the markers are in it already, {_where(words)}: nothing was added",)
    elif as_text:
        form = "text"
    elif note.form == "token":
        raise ModelError(
            f"{folders[0]}: by {NOTE} the markers are tokens, and the tokenizer does not have both: it is "
            "not the one of the training; copy the tokenizer's files from there"
        )
    elif reason := _why_text(note, words, folders, (origin, trained_on, source.config.get("_name_or_path"))):
        if add:
            raise UsageError(
                f"the markers of this checkpoint are plain text ({reason}): convert it without adding others"
            )
        form = "text"
        notes = (f"its markers are plain text ({reason})",)
    elif add:
        form = "token"
        num_rows = len(words.tokens)
        source, words = _with_markers(source, words)
        notes = (f"the markers are {_where(words)}; no training has used them yet",)
        if len(words.tokens) > num_rows:
            notes += (f"all rows were in use: the vocabulary grew from {num_rows} to {len(words.tokens)}",)
    elif present:
        raise ModelError(
            f"the tokenizer has {present[0]} but not the other marker: add it with --add-markers, or copy "
            "the tokenizer's files of the training"
        )
    else:
        form = None
    if tau is not None and form is None:
        raise UsageError(
            "a hand-back threshold is for a model with markers, and this one has none: add them with "
            "--add-markers, or say that they are plain text with --text-markers"
        )
    told = replace(note, tau=tau or note.tau, base_model=note.base_model or _base_model(folders, trained_on))
    return Marked(source, words, tuple(_fields(form, words, told)), notes)


class WithMarkers:
    """A `Source`: another one whose embedding, and head if it has its own, got rows for the markers."""

    def __init__(self, source: Source, spelled: Mapping[int, Sequence[int]]) -> None:
        """spelled: for each added id, the ids that its spelling was cut into."""
        self._source = source
        num_rows = max(source.shapes[EMBEDDING][0], max(spelled) + 1)
        self._old_shapes = {name: source.shapes[name] for name in (EMBEDDING, HEAD) if name in source.shapes}
        grown = {name: (num_rows, *shape[1:]) for name, shape in self._old_shapes.items()}
        self._shapes = MappingProxyType({**source.shapes, **grown})
        self._config = MappingProxyType({**source.config, "vocab_size": num_rows})
        self._rows = {
            name: {
                id: first_row(np.concatenate([source.rows(name, one, one + 1) for one in ids]))
                for id, ids in spelled.items()
            }
            for name in self._old_shapes
        }

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def dtype_of(self, name: str) -> Dtype:
        return self._source.dtype_of(name)

    def rows(self, name: str, first: int, last: int) -> NDArray[np.float32]:
        if name not in self._old_shapes:
            return self._source.rows(name, first, last)
        num_old, width = self._old_shapes[name]
        rows = np.zeros((last - first, width), np.float32)
        if first < num_old:
            old = self._source.rows(name, first, min(last, num_old))
            rows[: len(old)] = old
        for id, row in self._rows[name].items():
            if first <= id < last:
                rows[id - first] = row
        return rows


def _with_markers(source: Source, words: Words) -> tuple[Source, Words]:
    missing = [marker for marker in (OPEN, CLOSE) if marker not in words.ids]
    taken = {id for id, kind in enumerate(words.types) if kind is not TokenType.UNUSED}
    ids = dict(zip(missing, free_ids(taken, len(missing)), strict=True))
    source = WithMarkers(source, {id: words.encode(marker) for marker, id in ids.items()})
    num_new = max(0, source.shapes[EMBEDDING][0] - len(words.tokens))
    tokens = [*words.tokens, *[""] * num_new]
    for marker, id in ids.items():
        tokens[id] = marker
    words = replace(words, tokens=tuple(tokens), types=(*words.types, *[TokenType.CONTROL] * num_new))
    return source, _controlling(words)


def _controlling(words: Words) -> Words:
    """The markers as control tokens: no text of a user can become one."""
    return replace(
        words,
        types=tuple(
            TokenType.CONTROL if token in (OPEN, CLOSE) else kind
            for token, kind in zip(words.tokens, words.types, strict=True)
        ),
    )


def _where(words: Words) -> str:
    return f"tokens {words.ids[OPEN]} and {words.ids[CLOSE]}"


def _fields(form: Literal["token", "text"] | None, words: Words, told: TrainingNote) -> list[Field]:
    fields = [string(KEY_VERSION, __version__)]
    if form is not None:
        fields += [
            string(KEY_FORM, form),
            float32(KEY_TAU, DEFAULT_TAU if told.tau is None else told.tau),
            uint32(KEY_MIN_SPAN, DEFAULT_MIN_SPAN if told.min_span is None else told.min_span),
        ]
    if form == "token":
        fields += [uint32(KEY_OPEN_ID, words.ids[OPEN]), uint32(KEY_CLOSE_ID, words.ids[CLOSE])]
    if told.base_model is not None:
        fields.append(string(KEY_BASE_MODEL, told.base_model))
    if told.training_run is not None:
        fields.append(string(KEY_TRAINING_RUN, told.training_run))
    return fields


# --- what gives the form away --------------------------------------------------------------------------


def _why_text(
    note: TrainingNote, words: Words, folders: Sequence[Path], names: Sequence[object]
) -> str | None:
    """The reason to take the markers for ordinary text, or None."""
    if note.form == "text":
        return f"{NOTE} says so"
    if any(OPEN in template for template in words.templates.values()):
        return "its chat template has them"
    own_names = [name_of(folder) for folder in folders]
    bases = [base for folder in folders for base in _card_bases(folder)]
    for name in (*names, *own_names, *bases):
        if isinstance(name, str) and is_text_form_name(name):
            return f"as those of {name[:100]}"
    return None


def _base_model(folders: Sequence[Path], trained_on: str | None) -> str | None:
    """The repository that an adapter's config names, or a model card; never a path of somebody's disk."""
    names = [trained_on or "", *(base for folder in folders for base in _card_bases(folder))]
    return next((name for name in names if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name)), None)


def _card_bases(folder: Path) -> list[str]:
    """`base_model` of a model card's front matter, one or several; a damaged card has none."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    front = re.match(r"---\n(.*?\n)---", card.replace("\r\n", "\n"), re.DOTALL)
    listed = re.search(r"^base_model:(.*\n(?:[ \t]*- .*\n)*)", front[1], re.MULTILINE) if front else None
    if listed is None:
        return []
    return [name.strip("'\"[],") for name in listed[1].replace("- ", " ").split()]


# --- the note of a training ----------------------------------------------------------------------------


def read_note(folders: Sequence[Path]) -> TrainingNote:
    """The first of these folders' `sr_edge.json`; an empty one if there is none.

    Raises:
        ModelError: it is damaged, or says what this version does not know.
    """
    path = next((folder / NOTE for folder in folders if (folder / NOTE).exists()), None)
    if path is None:
        return TrainingNote()
    told = read_json(path)
    if not isinstance(told, dict):
        raise ModelError(f"{path}: this is no JSON object: write it again, or remove it")
    if told.get("v") != 1:
        raise ModelError(
            f"{path}: it is of version {str(told.get('v'))[:20]}, and 1 is known here: upgrade sr-edge"
        )
    handback = told.get("handback", {})
    if not isinstance(handback, dict):
        raise _bad(path, "handback", handback)
    for key in (*told, *handback):
        if key not in ("v", "markers", "handback", "tau", "min_span", "base_model", "training_run"):
            raise ModelError(f"{path}: there is no setting {str(key)[:40]!r}: correct or remove it")
    form, tau, min_span = told.get("markers"), handback.get("tau"), handback.get("min_span")
    if form not in (None, "token", "text"):
        raise _bad(path, "markers", form)
    if tau is not None and (not isinstance(tau, float) or not 0 < tau < 1):
        raise _bad(path, "tau", tau)
    if min_span is not None and (type(min_span) is not int or not 0 <= min_span < 1 << 31):
        raise _bad(path, "min_span", min_span)
    for key in ("base_model", "training_run"):
        if told.get(key) is not None and not isinstance(told[key], str):
            raise _bad(path, key, told[key])
    return TrainingNote(form, tau, min_span, told.get("base_model"), told.get("training_run"))


def _bad(path: Path, key: str, value: object) -> ModelError:
    return ModelError(f"{path}: {key} cannot be {str(value)[:60]}: correct the file, or remove it")
