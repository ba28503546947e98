"""The comparison itself: what is opened, in which order, and what is held in memory meanwhile.

The file's logits come first and are kept, then it is closed: a large checkpoint shares the memory with
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sr_convert.checkpoint import open_checkpoint
from sr_convert.lora import Merged, read_adapter
from sr_convert.markers import read_note
from sr_convert.source import Source
from sr_convert.verify import corpus
from sr_convert.verify.continuation import NUM_TOKENS, judge_text
from sr_convert.verify.limits import Limits, file_type, limits_of
from sr_convert.verify.logits import compare, joined, judge_logits, judge_markers
from sr_convert.verify.metadata import compare_metadata, spelling_under
from sr_convert.verify.passages import LONGEST, Passage, marked_passages, plain_passages, prompt_ids
from sr_convert.verify.reference import Reference, bytes_needed, is_installed, why_not
from sr_convert.verify.rendering import (
    Renderer,
    client_renderer,
    compare_templates,
    transformers_renderer,
)
from sr_convert.verify.report import Row
from sr_convert.verify.tokens import (
    OwnWords,
    added_markers,
    compare_tokens,
    compare_vocabularies,
    read_words,
)
from sr_convert.verify.weights import compare_weights
from sr_edge.doctor.machine import memory
from sr_edge.errors import MarkerError, ModelError, UsageError
from sr_edge.gguf_header import Header, read_header
from sr_edge.logits import Scorer
from sr_edge.markers import Markers, find_markers

Progress: TypeAlias = Callable[[str, int, int], None]

_COMPUTED = ("logits", "text", "markers")
"""Rows that need a reference."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is compared, as far as both sides need to know it."""

    checkpoint: Path
    adapter: Path | None
    words: OwnWords
    render: Renderer
    """By the checkpoint's chat template."""
    markers: Markers | None
    added: tuple[int, ...]
    """Ids of the markers that the conversion put in."""
    positions: int


@dataclass(frozen=True, slots=True)
class _Heard:
    """What the file said, before it was closed."""

    passages: tuple[Passage, ...]
    logits: tuple[NDArray[np.float32], ...]
    prompt: tuple[int, ...]
    written: tuple[int, ...]
    """The greedy text after the prompt."""


def compare_all(
    gguf: Path, checkpoint: Path, adapter: Path | None, positions: int, tau: float | None, progress: Progress
) -> tuple[list[Row], str]:
    """Returns the rows, and the type of the file's weights. See `verify`."""
    if positions < 1:
        raise UsageError(f"{positions} positions: there must be at least one; 256 are usual")
    header = read_header(gguf)
    source = open_checkpoint(checkpoint)
    note = read_note([folder for folder in (adapter, checkpoint) if folder is not None])
    words = read_words(_with_tokenizer(checkpoint, adapter))
    type = file_type(header.metadata.get("general.file_type"))

    with Scorer(gguf, context_size=min(_context(header), LONGEST + NUM_TOKENS)) as scorer:
        vocabulary = scorer.vocabulary
        added = added_markers(words, vocabulary)
        progress("tokens", 0, 1)
        texts = corpus.texts(markers=not added)
        rows = [
            compare_vocabularies(words, vocabulary, added),
            compare_tokens(words, vocabulary, texts, added),
        ]
        progress("tokens", 1, 1)
        changed: Source = source if adapter is None else Merged(source, read_adapter(adapter))
        rows.append(
            compare_weights(
                gguf,
                changed,
                source.architecture,
                added,
                lambda done, whole: progress("weights", done, whole),
            )
        )
        bos, eos = (spelling_under(header, f"{name}_token_id", vocabulary) for name in ("bos", "eos"))
        file_template = header.texts().get("tokenizer.chat_template")
        theirs = client_renderer(file_template, bos, eos)
        own = _own_renderer(words)
        rows.append(compare_templates(words, own, file_template, theirs, vocabulary, corpus.CONVERSATIONS))
        may_grow = bool(added) or adapter is not None
        rows.append(compare_metadata(words, note, source.config, header, vocabulary, tau, may_grow=may_grow))

        needed = bytes_needed(source.shapes) + 4 * vocabulary.size * (positions + 2 * LONGEST)
        reason = why_not(needed, memory(), adapter) or _unlike(words, vocabulary.size)
        if reason:
            return [*rows, *(Row(what, "not checked", "", "", reason) for what in _COMPUTED)], type
        try:
            markers = find_markers(header.texts(), vocabulary.control_id, vocabulary.ordinary)
        except MarkerError:
            markers = None  # the row of the metadata says so
        subject = _Subject(checkpoint, adapter, words, own, markers, added, positions)
        heard = _listen(scorer, subject, progress)
    progress(f"reading the checkpoint, {needed / 1e9:.1f} GB in float32", 0, 1)
    return [*rows, *_computed(subject, heard, limits_of(type), progress)], type


def _with_tokenizer(checkpoint: Path, adapter: Path | None) -> Path:
    """An adapter that brings tokens of its own is saved with its tokenizer."""
    return adapter if adapter is not None and (adapter / "tokenizer.json").is_file() else checkpoint


def _context(header: Header) -> int:
    value = header.metadata[f"{header.architecture}.context_length"]
    assert isinstance(value, int)  # `read_header` saw to it
    return value


def _own_renderer(words: OwnWords) -> Renderer:
    """By transformers if it is there, which is what the model was trained with."""
    if is_installed() and words.template is not None:
        return transformers_renderer(words)
    return client_renderer(words.template, words.special("bos_token"), words.special("eos_token"))


def _unlike(words: OwnWords, size: int) -> str:
    """Why ids of the one cannot be given to the other."""
    return "the file has fewer tokens than the checkpoint's tokenizer" if size < words.size else ""


def _listen(scorer: Scorer, subject: _Subject, progress: Progress) -> _Heard:
    words, context = subject.words, scorer.context_size
    passages = plain_passages(words, subject.positions, context)
    if subject.markers is not None and not subject.added:
        passages += marked_passages(words, subject.render, subject.markers, context)
    whole = sum(len(one.ids) for one in passages)
    logits, done = [], 0
    for passage in passages:
        progress("the file's logits", done, whole)
        logits.append(scorer.logits(passage.ids))
        done += len(passage.ids)
    progress("the file's logits", whole, whole)
    prompt = prompt_ids(words, subject.render, corpus.MARKED[0].question)[: context // 2]
    written = scorer.greedy(prompt, min(NUM_TOKENS, context - len(prompt)))
    return _Heard(tuple(passages), tuple(logits), tuple(prompt), tuple(written))


def _computed(subject: _Subject, heard: _Heard, limits: Limits, progress: Progress) -> list[Row]:
    words, added = subject.words, subject.added
    whole = sum(len(one.ids) for one in heard.passages)
    with Reference(subject.checkpoint, subject.adapter) as reference:
        if words.size > reference.num_rows:
            raise ModelError(
                f"{subject.checkpoint}: its tokenizer has {words.size:,} tokens, its model "
                f"{reference.num_rows:,} rows: get the checkpoint and its tokenizer from one place"
            )
        parts, done = [], 0
        for passage, theirs in zip(heard.passages, heard.logits, strict=True):
            progress("the checkpoint's logits", done, whole)
            parts.append(compare(reference.logits(passage.ids), theirs, passage, added))
            done += len(passage.ids)
        progress("the checkpoint's logits", whole, whole)
        after_prompt = reference.logits([*heard.prompt, *heard.written[:-1]])[len(heard.prompt) - 1 :]
    compared = joined(parts)
    rows = [
        judge_logits(compared, limits),
        judge_text(words, after_prompt, heard.written, added, limits),
    ]
    if added:
        reason = "the conversion added them: the checkpoint has none to compare"
        rows.append(Row("markers", "not checked", "", "", reason))
    elif subject.markers is not None:
        decisions = [one for passage in heard.passages for one in passage.decisions]
        rows.append(judge_markers(compared, decisions, subject.markers, limits))
    return rows
