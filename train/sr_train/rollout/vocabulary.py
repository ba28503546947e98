"""A checkpoint's tokenizer as split decoding needs it: the same ids as the client has for the model's GGUF.

What is kept from the client: no content ever becomes a control token, text is taken byte by byte as it
comes (no normalisation, so that the ids decode to the same text), and a chat template never sees contents.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from sr_edge import template
from sr_edge.errors import ModelError
from sr_edge.markers import CLOSE, CLOSE_SPELLINGS, OPEN, Markers
from sr_edge.roles import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>")
"""Control tokens that end an answer in llama.cpp, whatever the checkpoint says of them."""

_MAX_PROMPTS = 4096
"""Rendered prompts that are kept: to render one takes longer than to write ten tokens."""


_CLOSE_BEGINNINGS = {spelling[:n] for spelling in CLOSE_SPELLINGS for n in range(2, len(spelling) + 1)}
_BEGINS_CLOSE = re.compile(
    rb"[^0-9A-Za-z\x80-\xff]*(?:%s)" % b"|".join(re.escape(text.encode()) for text in _CLOSE_BEGINNINGS)
)
"""White space and punctuation, then at least two characters of a closing marker."""


class Vocabulary:
    """See `roles.LocalModel` for what the methods mean."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, end_ids: Collection[int] = ()) -> None:
        """Args:
        end_ids: tokens that end an answer, beside the tokenizer's own.
        Raises:
            ModelError: the tokenizer is no byte-level BPE.
        """
        inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        inner.no_truncation()
        inner.no_padding()
        self._bos: int | None = tokenizer.bos_token_id
        self._adds_bos = inner.encode("a", add_special_tokens=True).ids[:1] == [self._bos]
        inner.normalizer = None
        self._inner = inner
        self._template: str | None = _text(tokenizer.chat_template)
        self._bos_token = str(tokenizer.bos_token or "")
        self._eos_token = str(tokenizer.eos_token or "")
        added = inner.get_added_tokens_decoder()
        control = {id: token.content for id, token in added.items() if _is_control(token)}
        plain = {id: token.content for id, token in added.items() if id not in control}
        self._control = _Spellings(control.values())
        self._special = _Spellings([*control.values(), *plain.values()])
        self._pieces = self._read_pieces(control, plain)
        eos: int | None = tokenizer.eos_token_id
        ids = {id for id, spelling in control.items() if spelling in _ENDS}
        self._ends = frozenset(ids | set(end_ids) | (set() if eos is None else {eos}))
        self._prompts: dict[tuple[Message, ...], Prompt] = {}
        self._forms: dict[tuple[str, ...], template.Rendering] = {}

    def render(self, messages: Sequence[Message]) -> Prompt:
        """Raises:
        ModelError: the chat template is broken, or refuses these messages.
        """
        key = tuple(messages)
        if (prompt := self._prompts.get(key)) is None:
            if len(self._prompts) >= _MAX_PROMPTS:
                self._prompts.clear()
            prompt = self._prompts[key] = self._render(key)
        return prompt

    def ordinary(self, text: str) -> list[int]:
        """Ids of text that holds no control token, whatever it looks like; they decode to the same text."""
        return self._tokenize_apart(text, self._control)

    def piece(self, id: int) -> bytes:
        return self._pieces[id] if id < len(self._pieces) else b""

    def close_ids(self, markers: Markers) -> tuple[int, ...]:
        """The closing marker; in text form every token that can begin one, as the client takes them."""
        if markers.form == "token":
            return markers.close_ids
        begins = tuple(id for id, piece in enumerate(self._pieces) if _BEGINS_CLOSE.fullmatch(piece))
        return begins or markers.close_ids[:1]

    def is_end(self, id: int) -> bool:
        return id in self._ends

    def _render(self, messages: tuple[Message, ...]) -> Prompt:
        rendering = self._rendering(messages)
        ids: list[int] = []
        for piece in rendering.pieces:
            if piece.author == "template":  # whose own control tokens are meant
                ids += self._encode(piece.text)
            elif piece.author == "assistant":  # what the model itself wrote may hold think tags
                ids += self.ordinary(piece.text)
            else:
                ids += self._tokenize_apart(piece.text, self._special)
        if self._adds_bos and self._bos is not None and ids[:1] != [self._bos]:
            ids.insert(0, self._bos)
        return Prompt(tuple(ids), rendering.text, rendering.opening)

    def _rendering(self, messages: tuple[Message, ...]) -> template.Rendering:
        """A template never sees contents: where none has white space around it or think tags in it, whatever
        was rendered for the same roles holds for these messages too.
        """
        roles = tuple(message.role for message in messages)
        is_usual = "assistant" not in roles and all(
            message.content and message.content == message.content.strip() for message in messages
        )
        if not is_usual:
            return self._run_template(messages)
        if roles not in self._forms:
            numbered = [Message(role, str(n)) for n, role in enumerate(roles)]
            self._forms[roles] = self._run_template(numbered)
        form = self._forms[roles]
        pieces = [
            piece if piece.author == "template" else replace(piece, text=messages[int(piece.text)].content)
            for piece in form.pieces
        ]
        return template.Rendering(tuple(pieces), form.opening)

    def _run_template(self, messages: Sequence[Message]) -> template.Rendering:
        return template.render(self._template, messages, bos_token=self._bos_token, eos_token=self._eos_token)

    def _tokenize_apart(self, text: str, spellings: _Spellings) -> list[int]:
        ids: list[int] = []
        for part in spellings.apart(text):
            ids += self._encode(part)
        return ids

    def _encode(self, text: str) -> list[int]:
        text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def _read_pieces(self, control: dict[int, str], plain: dict[int, str]) -> list[bytes]:
        spellings = {id: token for token, id in self._inner.get_vocab(with_added_tokens=True).items()}
        byte_of = _byte_of_character()
        pieces = [b""] * (max(spellings) + 1)
        for id, spelling in spellings.items():
            if id in plain:
                pieces[id] = plain[id].encode()
            elif id not in control:
                try:
                    pieces[id] = bytes(byte_of[character] for character in spelling)
                except KeyError:
                    raise ModelError(
                        f"the tokenizer's token {spelling!r} is not spelled in bytes: only byte-level BPE "
                        "can be trained here, as Qwen2, Qwen3 and Llama 3 have it"
                    ) from None
        return pieces


class _Spellings:
    """Texts that must not be found as tokens."""

    def __init__(self, spellings: Collection[str]) -> None:
        self._spellings = tuple(spelling for spelling in spellings if len(spelling) > 1)
        self._firsts = tuple({spelling[0] for spelling in self._spellings})

    def apart(self, text: str) -> list[str]:
        """The parts of `text` that remain when every occurrence of a spelling is cut in two."""
        if not any(first in text for first in self._firsts):
            return [text] if text else []
        cuts = {0, len(text)}
        for spelling in self._spellings:
            at = text.find(spelling)
            while at >= 0:
                cuts.add(at + 1)
                at = text.find(spelling, at + 1)
        return [text[start:end] for start, end in pairwise(sorted(cuts))]


def _is_control(token: Any) -> bool:
    """As the converter writes it into a GGUF."""
    spelling: str = token.content
    return bool(
        token.special
        or spelling in (OPEN, CLOSE, "<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (spelling.startswith("<|") and spelling.endswith("|>"))
        or (spelling.startswith("<｜") and spelling.endswith("｜>"))  # noqa: RUF001  DeepSeek's bars
        or (spelling.startswith("<unused") and spelling.endswith(">"))
    )


def _text(chat_template: object) -> str | None:
    """Of several templates, the usual one."""
    if isinstance(chat_template, dict):
        chat_template = chat_template.get("default")
    return chat_template if isinstance(chat_template, str) else None


def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE: printable Latin-1 stands for itself, the rest is moved beyond it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(moved)}
