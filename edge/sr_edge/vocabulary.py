"""One model's vocabulary: text to ids, ids to bytes, and which tokens are special.

The rule that keeps prompts safe lives here: text becomes a control token only where a template's own words
are tokenised (`scaffold`), never where anybody's contents are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from itertools import pairwise, repeat
from types import ModuleType
from typing import Any


class Vocabulary:
    """Belongs to a model in memory, and is of no use once that is closed."""

    def __init__(self, api: ModuleType, pointer: Callable[[], Any]) -> None:
        """Args:
        api: llama_cpp's low-level bindings.
        pointer: to llama.cpp's vocabulary; raises if the model is closed.
        """
        self._api = api
        self._pointer = pointer
        self.size: int = api.llama_vocab_n_tokens(pointer())
        self.adds_bos: bool = api.llama_vocab_get_add_bos(pointer())
        """Whether a prompt should begin with the token for that."""
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self._control: int = api.LLAMA_TOKEN_ATTR_CONTROL | api.LLAMA_TOKEN_ATTR_UNKNOWN
        self._attributes: dict[int, int] = {}
        self._specials: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    def check(self, id: int) -> int:
        if not 0 <= id < self.size:
            raise ValueError(f"token {id} is not in the vocabulary of {self.size}")
        return id

    def spelling(self, id: int) -> str:
        """As the GGUF has it: for ordinary tokens, in the alphabet of byte-level BPE."""
        return str(self._api.llama_vocab_get_text(self._pointer(), self.check(id)).decode("utf-8", "replace"))

    def piece(self, id: int) -> bytes:
        """The bytes that a token stands for; none for a control token."""
        if (piece := self._pieces.get(id)) is None:
            piece = self._pieces[id] = self._read_piece(id)
        return piece

    def find(self, part: bytes) -> list[int]:
        """Tokens whose spelling holds `part`, which is printable ASCII. Walks the vocabulary."""
        spellings = map(self._api.llama_vocab_get_text, repeat(self._pointer()), range(self.size))
        return [id for id, spelling in enumerate(spellings) if part in spelling]

    def is_end(self, id: int) -> bool:
        if (is_end := self._ends.get(id)) is None:
            is_end = self._ends[id] = bool(self._api.llama_vocab_is_eog(self._pointer(), self.check(id)))
        return is_end

    def is_control(self, id: int) -> bool:
        return bool(self._attribute(self.check(id)) & self._api.LLAMA_TOKEN_ATTR_CONTROL)

    def control_id(self, spelling: str) -> int | None:
        """Id of the control token spelled so."""
        ids = self.scaffold(spelling)
        return (
            ids[0]
            if len(ids) == 1 and self.is_control(ids[0]) and self.spelling(ids[0]) == spelling
            else None
        )

    def scaffold(self, text: str) -> list[int]:
        """Ids of text whose control tokens are meant."""
        return self._tokenize(text, special=True)

    def ordinary(self, text: str) -> list[int]:
        """Ids of text that holds no control token, whatever it looks like. The ids decode to the same text.

        Tokens that are special to the tokenizer only, such as think tags in some vocabularies, are found.
        """
        ids = self._plain(text, self._control)
        return self._tokenize_apart(text, self._special_spellings()[0]) if ids is None else ids

    def typed(self, text: str) -> list[int]:
        """As `ordinary`, and without any special token at all."""
        ids = self._plain(text, self._control | self._api.LLAMA_TOKEN_ATTR_USER_DEFINED)
        return self._tokenize_apart(text, self._special_spellings()[1]) if ids is None else ids

    def _plain(self, text: str, special: int) -> list[int] | None:
        """Ids of text in which llama.cpp, asked to find all special tokens, finds none with such attributes.

        What it doesn't find need not be kept from it: the list of all special spellings, for which 150,000
        tokens are looked at, is needed by those texts alone that hold one.
        """
        ids = self._tokenize(text, special=True)
        return None if any(self._attribute(id) & special for id in set(ids)) else ids

    def _attribute(self, id: int) -> int:
        if (attribute := self._attributes.get(id)) is None:
            attribute = self._attributes[id] = self._api.llama_vocab_get_attr(self._pointer(), id)
        return attribute

    def _tokenize_apart(self, text: str, spellings: Sequence[str]) -> list[int]:
        """Tokenise the parts of `text` that remain when every occurrence of a spelling is cut in two.

        The tokenizer can put together whatever stands in one part, and llama.cpp finds tokens of the kind
        "user defined" in any text, with or without leave to parse special ones.
        """
        cuts = {0, len(text)}
        for spelling in spellings:
            at = text.find(spelling)
            while at >= 0:
                cuts.add(at + 1)
                at = text.find(spelling, at + 1)
        ids: list[int] = []
        bounds = sorted(cuts)
        for start, end in pairwise(bounds):
            ids += self._tokenize(text[start:end], special=False)
        return ids

    def _tokenize(self, text: str, *, special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")  # an argument of the command line may hold lone surrogates
        room = len(data) + 1
        while True:
            ids = (ctypes.c_int32 * room)()
            count: int = self._api.llama_tokenize(self._pointer(), data, len(data), ids, room, False, special)
            if count >= 0:
                return ids[:count]
            room = -count

    def _special_spellings(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Spellings of the control tokens; of those and the user-defined ones. Walks the vocabulary once."""
        if self._specials is None:
            api, pointer = self._api, self._pointer()
            control = api.LLAMA_TOKEN_ATTR_CONTROL
            wanted = control | api.LLAMA_TOKEN_ATTR_USER_DEFINED
            attributes = map(api.llama_vocab_get_attr, repeat(pointer), range(self.size))
            special = {
                self.spelling(id): bool(attribute & control)
                for id, attribute in enumerate(attributes)
                if attribute & wanted
            }
            # A token of one character cannot be cut.
            everything = tuple(spelling for spelling in special if len(spelling) > 1)
            self._specials = tuple(s for s in everything if special[s]), everything
        return self._specials

    def _read_piece(self, id: int) -> bytes:
        length = 64  # some tokens are 128 spaces
        while True:
            buffer = ctypes.create_string_buffer(length)
            written: int = self._api.llama_token_to_piece(
                self._pointer(), self.check(id), buffer, length, 0, False
            )
            if written >= 0:
                return buffer.raw[:written]
            length = -written
