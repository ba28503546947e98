"""The two vocabularies and tokenizers: the checkpoint's, by the library that it was made with, and the
file's, by llama.cpp.

Three things are compared. Each token: its spelling, and whether it is special. Each token's own text, cut by
both, which goes through every merge there is. And a corpus.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sr_convert.verify.corpus import Text
from sr_convert.verify.report import Row
from sr_edge.errors import ModelError
from sr_edge.markers import CLOSE, OPEN, strip_markers
from sr_edge.vocabulary import Vocabulary

_BATCH = 4096
"""Texts that are cut at once: their encodings are large."""


@dataclass(frozen=True)
class OwnWords:
    """A checkpoint's own tokenizer, and what else it says about text."""

    folder: Path
    tokenizer: Tokenizer
    config: dict[str, Any]
    """tokenizer_config.json; empty if there is none."""
    template: str | None

    def encode(self, text: str) -> list[int]:
        """Control tokens in it are meant; none is added in front."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def special(self, name: str) -> str | None:
        """The spelling of `bos_token` and the like."""
        value = self.config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else None

    @cached_property
    def size(self) -> int:
        """One more than the last id; there may be holes."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def bos(self) -> int | None:
        """The id that every prompt begins with; None if the tokenizer puts none in front."""
        bare = self.encode("a")
        whole = list(self.tokenizer.encode("a").ids)
        if whole != bare and whole[1 : 1 + len(bare)] == bare:
            return whole[0]
        spelling = self.special("bos_token")
        # Older tokenizers put it in front by this setting, whatever their tokenizer.json says.
        if self.config.get("add_bos_token") is True and spelling is not None:
            return self.tokenizer.token_to_id(spelling)
        return None


def read_words(folder: Path) -> OwnWords:
    """Raises: ModelError: there is no tokenizer, or it cannot be read."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file: get the checkpoint with a tokenizer of this form")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises this class itself
        raise ModelError(f"{path}: it cannot be read: {error}: get the checkpoint again") from None
    config = _object(folder / "tokenizer_config.json")
    return OwnWords(folder, tokenizer, config, _template(folder, config))


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: it cannot be read: {error}: get the checkpoint again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: it holds no JSON object: get the checkpoint again")
    return value


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    """A file of its own comes before the settings; of several templates, the default."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: it cannot be read: {error}: get the checkpoint again") from None
    value = config.get("chat_template")
    if isinstance(value, list):
        named = [one for one in value if isinstance(one, dict) and one.get("name") == "default"]
        value = named[0].get("template") if named else None
    return value if isinstance(value, str) else None


def added_markers(words: OwnWords, vocabulary: Vocabulary) -> tuple[int, ...]:
    """Ids of markers that the conversion added: the file has them as control tokens, the checkpoint not."""
    ids = [vocabulary.control_id(spelling) for spelling in (OPEN, CLOSE)]
    known = [words.tokenizer.token_to_id(spelling) for spelling in (OPEN, CLOSE)]
    return tuple(id for id, own in zip(ids, known, strict=True) if id is not None and own is None)


def compare_vocabularies(words: OwnWords, vocabulary: Vocabulary, added: Sequence[int]) -> Row:
    found = f"{words.size:,} tokens"
    if vocabulary.size < words.size:
        detail = f"the file has {vocabulary.size:,} tokens, the checkpoint's tokenizer {words.size:,}"
        return Row("vocabulary", "differs", found, "each token equal", detail)
    wrong = list(_unequal_tokens(words, vocabulary, added))
    if not wrong:
        note = " and ".join(f"{vocabulary.spelling(id)} at {id}" for id in added)
        remarks = [f"the conversion added {note}"] if added else []
        if ends := claimed_ends(words, vocabulary):
            remarks.append(f"llama.cpp itself takes {', '.join(ends)} for the end of an answer, in any file")
        detail = "; ".join(remarks)
        return Row("vocabulary", "equal", found, "each token equal", detail, {"tokens": words.size})
    figures = {"tokens": words.size, "different": len(wrong)}
    return Row("vocabulary", "differs", f"{len(wrong):,} of {found}", "each token equal", wrong[0], figures)


def _unequal_tokens(words: OwnWords, vocabulary: Vocabulary, added: Sequence[int]) -> Iterator[str]:
    special = words.tokenizer.get_added_tokens_decoder()
    for id in range(vocabulary.size):
        own, theirs = words.tokenizer.id_to_token(id), vocabulary.spelling(id)
        if own is None:
            if id not in added and vocabulary.scaffold(theirs) == [id]:
                yield f"token {id} is {theirs!r} in the file, and none in the checkpoint"
            continue
        kind = special.get(id)
        # A token that is found before the text is normalised may be written in its normal form.
        if own != theirs and (kind is None or kind.content.encode() != vocabulary.piece(id)):
            yield f"token {id} is {own!r} in the checkpoint, {theirs!r} in the file"
        elif kind is None and vocabulary.is_control(id) and not vocabulary.is_end(id):
            yield f"token {id}, {own!r}, is ordinary text in the checkpoint, a control token in the file"
        elif kind is not None and kind.special and not vocabulary.is_control(id):
            yield f"token {id}, {own!r}, is special in the checkpoint, not a control token in the file"


def claimed_ends(words: OwnWords, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Ordinary words that llama.cpp makes control tokens because of their names, such as Qwen's `</s>`."""
    special = words.tokenizer.get_added_tokens_decoder()
    return tuple(
        vocabulary.spelling(id)
        for id in range(min(words.size, vocabulary.size))
        if vocabulary.is_control(id) and id not in special and vocabulary.is_end(id)
        if words.tokenizer.id_to_token(id) is not None
    )


def compare_tokens(
    words: OwnWords, vocabulary: Vocabulary, texts: Sequence[Text], added: Sequence[int]
) -> Row:
    """Cut the corpus and each token's own text."""
    limit = "every id equal"
    num_texts = num_ids = num_wrong = 0
    first = ""
    ends = claimed_ends(words, vocabulary)
    own = (
        Text(f"token {id}", text)
        for id, text in _own_texts(words, added)
        if not any(end in text for end in ends)
    )
    for text, ids in _encoded(words, (text for group in (texts, own) for text in group)):
        theirs = vocabulary.scaffold(text.text)
        num_texts += 1
        num_ids += len(ids)
        if ids != theirs:
            num_wrong += 1
            first = first or f"{text.kind}: {_first_difference(words, vocabulary, ids, theirs)}"
    if not first:
        first = _prompt_beginning(words, vocabulary)
        num_wrong += bool(first)
    figures = {"texts": num_texts, "ids": num_ids, "different_texts": num_wrong}
    if first:
        return Row("tokens", "differs", f"{num_wrong:,} of {num_texts:,} texts", limit, first, figures)
    return Row("tokens", "equal", f"{num_ids:,} ids of {num_texts:,} texts", limit, "", figures)


def _own_texts(words: OwnWords, added: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Each token that is whole characters, as text; none that llama.cpp would not see in its normal form."""
    decode = words.tokenizer.decode
    for id in range(words.size):
        text = decode([id], skip_special_tokens=False) if words.tokenizer.id_to_token(id) else ""
        if not text or "\ufffd" in text or not unicodedata.is_normalized("NFC", text):
            continue
        if not added or strip_markers(text) == text:
            yield id, text


def _encoded(words: OwnWords, texts: Iterator[Text]) -> Iterator[tuple[Text, list[int]]]:
    while batch := list(islice(texts, _BATCH)):
        encodings = words.tokenizer.encode_batch_fast([one.text for one in batch], add_special_tokens=False)
        yield from zip(batch, (list(one.ids) for one in encodings), strict=True)


def _prompt_beginning(words: OwnWords, vocabulary: Vocabulary) -> str:
    """How the two disagree on the token before a prompt; empty if they do not."""
    if vocabulary.adds_bos == (words.bos is not None):
        return ""
    does, does_not = ("the file", "the checkpoint") if vocabulary.adds_bos else ("the checkpoint", "the file")
    return f"{does} puts a token in front of every prompt, {does_not} does not"


_SHOWN = 4


def _first_difference(
    words: OwnWords, vocabulary: Vocabulary, own: Sequence[int], theirs: Sequence[int]
) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b), min(len(own), len(theirs))
    )

    def shown(ids: Sequence[int], spelling: Any) -> str:
        parts = [f"{id} {spelling(id)!r}" for id in ids[at : at + _SHOWN]]
        return ", ".join(parts) + (", …" if len(ids) > at + _SHOWN else "") if parts else "nothing more"

    before = words.tokenizer.decode(list(own[max(0, at - _SHOWN) : at]), skip_special_tokens=False)
    place = f"after {before!r} " if before else ""
    return (
        f"{place}the checkpoint has {shown(own, words.tokenizer.id_to_token)}; "
        f"the file {shown(theirs, vocabulary.spelling)}"
    )
