"""A model of random weights in a real model's shape, to measure speed with where nothing can be downloaded.

It computes exactly as much as the real one: the same layers, the same types of weights as a Q4_K_M file has,
a vocabulary of the same size. What it writes is nonsense. Its words are of two-letter syllables, so that text
made of them is cut to tokens as an ordinary language is.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sr_edge import markers
from sr_edge.errors import EdgeError, UsageError

Kind: TypeAlias = Literal["F32", "Q4_K", "Q6_K"]

_NUM_ORDINARY: Final = 151643
_CONTROL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_FIRST_MARKER: Final = 151665
_BLOCK: Final = 256  # weights that K-quants pack together
_BLOCK_BYTES: Final[Mapping[Kind, int]] = MappingProxyType({"Q4_K": 144, "Q6_K": 210})
_SPREAD: Final = 0.02  # standard deviation of the weights
_PIECE: Final = 1 << 16  # blocks that are made at once
_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Qwen2 model. `embedding` and `feed_forward` are multiples of 256."""

    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int = 131072

    @property
    def kv_width(self) -> int:
        return self.embedding // self.heads * self.kv_heads


SHAPES: Final[Mapping[str, Shape]] = MappingProxyType(
    {
        "tiny": Shape(2, 256, 512, 4, 2, 151936),  # for tests: all that depends on the vocabulary is real
        "1.5b": Shape(28, 1536, 8960, 12, 2, 151936),  # DeepSeek-R1-Distill-Qwen-1.5B
        "7b": Shape(28, 3584, 18944, 28, 4, 152064),  # DeepSeek-R1-Distill-Qwen-7B
    }
)


def write_synthetic(
    path: Path, name: str, progress: Callable[[int, int], None] = lambda done, whole: None
) -> None:
    """Write the GGUF, in seconds; the same bytes each time.

    Args:
        name: a key of `SHAPES`.
        progress: gets the bytes that are written, and all that will be.
    Raises:
        UsageError: there is no such shape, or `gguf` is not installed.
        EdgeError: the disk is full.
    """
    if name not in SHAPES:
        raise UsageError(f"--synthetic {name}: there are {', '.join(SHAPES)}")
    shape = SHAPES[name]
    tensors = list(_tensors(shape))
    whole = sum(tensor.num_bytes for tensor in tensors)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    generator = np.random.default_rng(0)
    try:
        _write_header(partial, name, shape, tensors)
        with partial.open("ab") as file:
            done = 0
            _pad(file.tell(), file.write)
            for tensor in tensors:
                for piece in tensor.pieces(generator):
                    file.write(piece)
                    done += len(piece)
                    progress(done, whole)
                _pad(file.tell(), file.write)
        partial.replace(path)
    except OSError as error:
        raise EdgeError(f"{path}: the model cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def words(count: int, *, seed: int = 0) -> Iterator[str]:
    """So many words of the synthetic language, one to three syllables each."""
    choose = random.Random(seed)
    syllables = _syllables()
    for _ in range(count):
        yield "".join(choose.choices(syllables, k=choose.choices((1, 2, 3), (3, 4, 2))[0]))


# --- weights -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    kind: Kind
    size: tuple[int, ...]
    """Rows first, as numpy has it."""

    @property
    def num_weights(self) -> int:
        return int(np.prod(self.size))

    @property
    def num_bytes(self) -> int:
        return self.num_weights * 4 if self.kind == "F32" else self._blocks * _BLOCK_BYTES[self.kind]

    @property
    def _blocks(self) -> int:
        return self.num_weights // _BLOCK

    def pieces(self, generator: np.random.Generator) -> Iterator[bytes]:
        if self.kind == "F32":
            ones = np.ones(self.num_weights, np.float32)
            yield (ones if "norm" in self.name else ones * _SPREAD).tobytes()
            return
        pack = _q4_k if self.kind == "Q4_K" else _q6_k
        for start in range(0, self._blocks, _PIECE):
            yield pack(min(_PIECE, self._blocks - start), generator).tobytes()


def _q4_k(count: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Blocks of two half floats, eight scales and minima of 6 bits, and 256 values of 4 bits."""
    scale = 32
    blocks = _random_blocks(count, _BLOCK_BYTES["Q4_K"], generator)
    d = _SPREAD / (scale * 4.61)  # 4.61: the standard deviation of 0 to 15
    blocks[:, :4] = np.array([d, d * 7.5], np.float16).view(np.uint8)
    blocks[:, 4:12] = scale  # the first four scales and minima; the high bits of the others are theirs: 0
    blocks[:, 12:16] = 0
    # The other four lie in nibbles with two high bits above the first: all scales alike.
    blocks[:, 4:12] |= (scale >> 4) << 6
    return blocks


def _q6_k(count: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Blocks of 256 values of 6 bits, sixteen scales of 8 bits, and a half float."""
    scale = 64
    blocks = _random_blocks(count, _BLOCK_BYTES["Q6_K"], generator)
    blocks[:, 192:208] = scale
    blocks[:, 208:] = np.array([_SPREAD / (scale * 18.5)], np.float16).view(np.uint8)  # 18.5: as above
    return blocks


def _random_blocks(count: int, size: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    return np.frombuffer(bytearray(generator.bytes(count * size)), np.uint8).reshape(count, size)


def _tensors(shape: Shape) -> Iterator[_Tensor]:
    """In a file's usual order, with the types that llama.cpp gives a Q4_K_M file."""
    yield _Tensor("token_embd.weight", "Q4_K", (shape.vocabulary, shape.embedding))
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        finer: Kind = "Q6_K" if _has_more_bits(layer, shape.layers) else "Q4_K"
        yield _Tensor(f"{block}attn_norm.weight", "F32", (shape.embedding,))
        yield _Tensor(f"{block}ffn_norm.weight", "F32", (shape.embedding,))
        attention: list[tuple[str, int, Kind]] = [
            ("attn_q", shape.embedding, "Q4_K"),
            ("attn_k", shape.kv_width, "Q4_K"),
            ("attn_v", shape.kv_width, finer),
        ]
        for part, width, kind in attention:
            yield _Tensor(f"{block}{part}.weight", kind, (width, shape.embedding))
            yield _Tensor(f"{block}{part}.bias", "F32", (width,))
        yield _Tensor(f"{block}attn_output.weight", "Q4_K", (shape.embedding, shape.embedding))
        yield _Tensor(f"{block}ffn_gate.weight", "Q4_K", (shape.feed_forward, shape.embedding))
        yield _Tensor(f"{block}ffn_up.weight", "Q4_K", (shape.feed_forward, shape.embedding))
        yield _Tensor(f"{block}ffn_down.weight", finer, (shape.embedding, shape.feed_forward))
    yield _Tensor("output_norm.weight", "F32", (shape.embedding,))
    yield _Tensor("output.weight", "Q6_K", (shape.vocabulary, shape.embedding))


def _has_more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


# --- vocabulary and header -----------------------------------------------------------------------------


def _syllables() -> list[str]:
    return ["".join(pair) for pair in product("bcdfghjklmnpqrstvwxyz", "aeiou")]


def _words_of_syllables(count: int) -> tuple[list[str], list[str]]:
    """Ordinary tokens beyond the bytes, and the merges that lead to them, each from two earlier ones.

    A syllable comes before what is made of it, so every word is merged in one way only.
    """
    syllables = _syllables()
    merges = [f"{one[0]} {one[1]}" for one in syllables] + [f"Ġ {one}" for one in syllables]
    merges += [f"{space}{a} {b}" for space in ("Ġ", "") for a, b in product(syllables, repeat=2)]
    triples = len(syllables) ** 3
    for at in random.Random(0).sample(range(triples), count - len(merges)):
        (rest, c), n = divmod(at, len(syllables)), len(syllables)
        merges.append(f"Ġ{syllables[rest // n]}{syllables[rest % n]} {syllables[c]}")
    return [merge.replace(" ", "") for merge in merges], merges


def _byte_spellings() -> list[str]:
    """How byte-level BPE spells the 256 bytes: those that can be printed stand for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(0x100)]


def _write_header(path: Path, name: str, shape: Shape, tensors: list[_Tensor]) -> None:
    try:
        from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
    except ImportError:
        raise UsageError('--synthetic needs `gguf`: `pip install "sr-edge[bench]"`') from None

    bytes_ = _byte_spellings()
    made, merges = _words_of_syllables(_NUM_ORDINARY - len(bytes_))
    tokens = [*bytes_, *made, *_CONTROL]
    kinds = [TokenType.NORMAL] * _NUM_ORDINARY + [TokenType.CONTROL] * len(_CONTROL)
    while len(tokens) < shape.vocabulary:
        at = len(tokens) - _FIRST_MARKER
        is_marker = at in (0, 1)
        tokens.append((markers.OPEN, markers.CLOSE)[at] if is_marker else f"[PAD{len(tokens)}]")
        kinds.append(TokenType.CONTROL if is_marker else TokenType.UNUSED)

    writer = GGUFWriter(path, "qwen2")
    try:
        writer.add_name(f"synthetic {name}")
        writer.add_file_type(LlamaFileType.MOSTLY_Q4_K_M)
        writer.add_quantization_version(2)
        writer.add_context_length(shape.context)
        writer.add_block_count(shape.layers)
        writer.add_embedding_length(shape.embedding)
        writer.add_feed_forward_length(shape.feed_forward)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_rope_freq_base(10000.0)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_vocab_size(shape.vocabulary)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges(merges)
        writer.add_bos_token_id(_NUM_ORDINARY)
        writer.add_eos_token_id(_NUM_ORDINARY + 2)
        writer.add_add_bos_token(False)
        writer.add_chat_template(_TEMPLATE)
        writer.add_string(markers.KEY_FORM, "token")
        writer.add_uint32(markers.KEY_OPEN_ID, _FIRST_MARKER)
        writer.add_uint32(markers.KEY_CLOSE_ID, _FIRST_MARKER + 1)
        for tensor in tensors:
            writer.add_tensor_info(
                tensor.name,
                tensor.size,
                np.dtype(np.float32),
                tensor.num_bytes,
                GGMLQuantizationType[tensor.kind],
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _pad(size: int, write: Callable[[bytes], int]) -> None:
    write(bytes(-size % 32))
