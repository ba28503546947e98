"""What the file's metadata say, against the checkpoint's own files: shape, positions, special ids, markers.

Read here anew, the training's note apart, and not by what the conversion read it with: a mistake there should
be seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sr_convert.markers import TrainingNote
from sr_convert.verify.report import Row
from sr_convert.verify.tokens import OwnWords
from sr_edge.errors import MarkerError
from sr_edge.gguf_header import Header
from sr_edge.markers import CLOSE, OPEN, Markers, find_markers
from sr_edge.vocabulary import Vocabulary

_NUMBERS = (
    ("num_hidden_layers", "block_count"),
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("max_position_embeddings", "context_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
)
_FILE_DEFAULTS = {"rope.freq_base": 10000.0, "rope.scaling.type": "none"}
"""What llama.cpp takes where the file says nothing."""


@dataclass(frozen=True, slots=True)
class _Pair:
    what: str
    own: object
    theirs: object

    @property
    def is_equal(self) -> bool:
        if isinstance(self.own, float) and isinstance(self.theirs, int | float):
            return math.isclose(self.own, self.theirs, rel_tol=1e-6)  # the file's are of 32 bits
        return self.own == self.theirs


def compare_metadata(
    words: OwnWords,
    note: TrainingNote,
    config: Mapping[str, Any],
    header: Header,
    vocabulary: Vocabulary,
    tau: float | None,
    *,
    may_grow: bool,
) -> Row:
    """Args:
    tau: the hand-back threshold that was chosen for the file; None for the checkpoint's own, if it has one.
    may_grow: the file may have more tokens than the checkpoint's config says.
    """
    limit = "each value equal"
    pairs = [*_shape(config, header), *_ids(words, config, header)]
    num_rows = config.get("vocab_size", vocabulary.size)
    if not may_grow or vocabulary.size < num_rows:
        pairs.append(_Pair("vocab_size", num_rows, vocabulary.size))
    try:
        markers = find_markers(header.texts(), vocabulary.control_id, vocabulary.ordinary)
    except MarkerError as error:
        return Row("metadata", "differs", "the markers", limit, str(error))
    pairs += _markers(words, note, markers, tau)
    wrong = [pair for pair in pairs if not pair.is_equal]
    figures = {"values": len(pairs), "different": len(wrong)}
    if not wrong:
        return Row("metadata", "equal", f"{len(pairs)} values", limit, _said(markers), figures)
    detail = "; ".join(f"{p.what} is {p.own} in the checkpoint, {p.theirs} in the file" for p in wrong[:3])
    return Row("metadata", "differs", f"{len(wrong)} of {len(pairs)} values", limit, detail, figures)


def _said(markers: Markers | None) -> str:
    if markers is None:
        return "the file names no markers: it will never ask for help by itself"
    where = f" at {markers.open_ids[0]} and {markers.close_ids[0]}" if markers.form == "token" else ""
    return f"the markers are {markers.form}{where}, tau is {markers.tau:.4g}, min_span {markers.min_span}"


def _shape(config: Mapping[str, Any], header: Header) -> Iterator[_Pair]:
    architecture = header.architecture

    def theirs(key: str) -> object:
        return header.metadata.get(f"{architecture}.{key}", _FILE_DEFAULTS.get(key))

    yield _Pair("the architecture", config.get("model_type"), architecture)
    for name, key in _NUMBERS:
        if config.get(name) is not None:
            yield _Pair(name, config[name], theirs(key))
    rope = _rope(config)
    base = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    yield _Pair("rope_theta", float(base), theirs("rope.freq_base"))
    kind = rope.get("rope_type", rope.get("type")) or "default"
    if kind in ("linear", "yarn"):
        yield _Pair("the kind of rope scaling", kind, theirs("rope.scaling.type"))
        yield _Pair("the factor of rope scaling", float(rope.get("factor", 1)), theirs("rope.scaling.factor"))
    elif theirs("rope.scaling.type") != "none":
        yield _Pair("the kind of rope scaling", "none", theirs("rope.scaling.type"))


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Under the name of transformers 5, or the older one."""
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(config.get(name), dict):
            found: dict[str, Any] = config[name]
            return found
    return {}


def _ids(words: OwnWords, config: Mapping[str, Any], header: Header) -> Iterator[_Pair]:
    """The end of an answer, and what stands before a prompt."""
    ends = list(_ends(words, config))
    if ends:
        eos = header.metadata.get("tokenizer.ggml.eos_token_id")
        yield _Pair("the token that ends an answer", ends[0], eos if eos not in ends else ends[0])
    if words.bos is not None:
        yield _Pair("bos_token", words.bos, header.metadata.get("tokenizer.ggml.bos_token_id"))


def _ends(words: OwnWords, config: Mapping[str, Any]) -> Iterator[int]:
    spelling = words.special("eos_token")
    id = None if spelling is None else words.tokenizer.token_to_id(spelling)
    if id is not None:
        yield id
    named = config.get("eos_token_id")
    for one in named if isinstance(named, list) else [named]:
        if isinstance(one, int) and not isinstance(one, bool):
            yield one


def _markers(
    words: OwnWords, note: TrainingNote, markers: Markers | None, tau: float | None
) -> Iterator[_Pair]:
    ids = [words.tokenizer.token_to_id(spelling) for spelling in (OPEN, CLOSE)]
    form = None if markers is None else markers.form
    if None not in ids:
        found = None if markers is None else [*markers.open_ids, *markers.close_ids]
        yield _Pair("the form of the markers", "token", form)
        yield _Pair("the ids of the markers", ids, found)
    elif note.form is not None:
        yield _Pair("the form of the markers", note.form, form)
    wanted = note.tau if tau is None else tau
    if wanted is not None:
        yield _Pair("tau", wanted, None if markers is None else markers.tau)
    if note.min_span is not None:
        yield _Pair("min_span", note.min_span, None if markers is None else markers.min_span)


def spelling_under(header: Header, key: str, vocabulary: Vocabulary) -> str | None:
    """Of the token whose id the file has under `tokenizer.ggml.<key>`."""
    id = header.metadata.get(f"tokenizer.ggml.{key}")
    return vocabulary.spelling(id) if isinstance(id, int) and 0 <= id < vocabulary.size else None
