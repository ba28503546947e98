"""Reads a GGUF file's header, and refuses a bad file before llama.cpp sees it.

llama.cpp's own checks end in a line of log at best, and for some files in an abort of the whole process.
Here every file that cannot work is refused by name, reason and way out. Nothing in the file is trusted:
each length is checked against the file before it is used, and nothing large is held in memory.

What lives elsewhere: whether the tensors are the ones that the architecture needs (llama.cpp says so when it
loads them), and what the metadata mean (`template`, `markers`, `llama`). Standard library only.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from struct import Struct
from types import MappingProxyType
from typing import TypeAlias

from sr_edge.errors import ModelError
from sr_edge.gguf_strings import CutShortError, end_of, end_of_spellings

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Those whose KV cache can be cut and copied at any position, and that the tests cover."""


@dataclass(frozen=True, slots=True)
class Array:
    """A list in the metadata. Its items stay in the file."""

    kind: str
    count: int


Value: TypeAlias = str | int | float | bool | Array


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    """Width first."""
    kind: int
    """ggml's number of its type: a key of `TENSOR_TYPES`."""
    offset: int
    """From the beginning of the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Header:
    path: Path
    architecture: str
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    file_size: int

    @property
    def num_tensors(self) -> int:
        return len(self.tensors)

    @property
    def num_parameters(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors)

    def texts(self) -> dict[str, str]:
        """The scalar metadata as text, booleans as `true` and `false`."""
        return {
            key: str(value).lower() if isinstance(value, bool) else str(value)
            for key, value in self.metadata.items()
            if not isinstance(value, Array)
        }


def read_header(path: Path, *, vocabulary_only: bool = False) -> Header:
    """Read and check.

    Args:
        vocabulary_only: the rest will not be used: it may be missing, or of another architecture.
    Raises:
        ModelError: the file is missing, not a GGUF, damaged, incomplete, or not of a kind that can run here.
    """
    with _open(path) as reader:
        contents = _read(reader)
        architecture = _check_kind(contents, any_architecture=vocabulary_only)
        _check_vocabulary(path, contents.metadata)
        if not vocabulary_only:
            if not contents.tensors:
                raise ModelError(
                    f"{path}: the file holds a vocabulary but no weights: name the model's own GGUF"
                )
            _check_shape(path, architecture, contents.metadata)
        return Header(path, architecture, contents.metadata, contents.tensors, reader.size)


@dataclass(frozen=True, slots=True)
class Contents:
    """What any GGUF has, whatever it is for."""

    path: Path
    metadata: Mapping[str, Value]
    kinds: Mapping[str, str]
    """The metadata's types, by key."""
    tensors: tuple[Tensor, ...]
    file_size: int


def read_contents(path: Path) -> Contents:
    """Read, and check no more than that it is a whole GGUF. Raises: ModelError"""
    with _open(path) as reader:
        return _read(reader)


_U32 = Struct("<I")
_U64 = Struct("<Q")

_SCALARS = {
    0: ("uint8", Struct("<B")),
    1: ("int8", Struct("<b")),
    2: ("uint16", Struct("<H")),
    3: ("int16", Struct("<h")),
    4: ("uint32", _U32),
    5: ("int32", Struct("<i")),
    6: ("float32", Struct("<f")),
    7: ("bool", Struct("<?")),
    10: ("uint64", _U64),
    11: ("int64", Struct("<q")),
    12: ("float64", Struct("<d")),
}
_STRING, _ARRAY = 8, 9
_TOKENS = "tokenizer.ggml.tokens"

TENSOR_TYPES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18), 42: (64, 18),
}  # fmt: skip
"""ggml's number of a type: its elements and its bytes per block."""

# Real files have some 40 keys, 1,000 tensors, 300,000 strings in a list and 30 kB in one text. The limits
# only keep a hostile header from holding the program up.
_MAX_KEYS = 10_000
_MAX_TENSORS = 100_000
_MAX_STRINGS = 1 << 23
_MAX_TEXT = 64 << 20


class _Reader:
    """A position in the file that never leaves it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = 0
        self.strings_left = _MAX_STRINGS
        self.text_left = _MAX_TEXT

    def number(self, form: Struct) -> int | float | bool:
        self.need(form.size)
        (value,) = form.unpack_from(self.data, self.position)
        self.position += form.size
        assert isinstance(value, int | float)
        return value

    def count(self, form: Struct = _U64) -> int:
        return int(self.number(form))

    def text(self) -> str:
        length = self.count()
        self.need(length)
        self.text_left -= length
        if self.text_left < 0:
            raise self.damaged("the metadata hold an absurd amount of text")
        start, self.position = self.position, self.position + length
        return self.data[start : self.position].decode("utf-8", "replace")

    def skip(self, length: int) -> None:
        self.need(length)
        self.position += length

    def strings(self, count: int, *, distinct: bool = False) -> None:
        """Skip them. With `distinct`, make sure that no two are equal."""
        self.need(count * _U64.size)
        self.strings_left -= count
        if self.strings_left < 0:
            raise self.damaged("the metadata hold an absurd number of strings")
        try:
            if distinct:
                limit = min(self.size, self.position + _MAX_TEXT)
                end = end_of_spellings(self.data, self.position, count, limit)
                if end is None:
                    raise self.damaged("two tokens of its vocabulary have the same spelling")
            else:
                end = end_of(self.data, self.position, count)
        except CutShortError:
            raise self.cut_short() from None
        self.position = end

    def need(self, length: int) -> None:
        if length > self.size - self.position:
            raise self.cut_short()

    def cut_short(self) -> ModelError:
        return ModelError(
            f"{self.path}: the file ends inside its own metadata, after {self.size:,} bytes: the download is "
            "incomplete or damaged; get it again"
        )

    def damaged(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: {what}: the file is damaged; get it again")


@contextmanager
def _open(path: Path) -> Iterator[_Reader]:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(
                f"{path}: this is a directory: name a .gguf file in it, or convert the checkpoint first"
            )
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path}: this is not a regular file: name a .gguf file")
        if status.st_size == 0:
            raise ModelError(f"{path}: the file is empty: get it again")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield _Reader(path, data)
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file: check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        raise ModelError(
            f"{path}: the file cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None


def _read(reader: _Reader) -> Contents:
    path, data = reader.path, reader.data
    if data[:4] != b"GGUF":
        raise ModelError(f"{path}: this is not a GGUF file, but {_looks_like(data)}")
    reader.skip(4)
    _check_version(path, reader.count(_U32))
    num_tensors, num_keys = reader.count(), reader.count()
    if num_tensors > _MAX_TENSORS or num_keys > _MAX_KEYS:
        raise reader.damaged(f"the header counts {num_tensors:,} tensors and {num_keys:,} keys")

    metadata: dict[str, Value] = {}
    kinds: dict[str, str] = {}
    for _ in range(num_keys):
        key = reader.text()
        if not key or key in metadata:
            raise reader.damaged(
                f"the key {key[:80]!r} is in it twice" if key else "one of its keys is empty"
            )
        kinds[key], metadata[key] = _value(reader, key)
    tensors = _tensors(reader, num_tensors, metadata.get("general.alignment", 32))
    return Contents(path, MappingProxyType(metadata), MappingProxyType(kinds), tensors, reader.size)


def _value(reader: _Reader, key: str) -> tuple[str, Value]:
    """Its type, and itself."""
    kind = reader.count(_U32)
    if kind in _SCALARS:
        name, form = _SCALARS[kind]
        return name, reader.number(form)
    if kind == _STRING:
        return "string", reader.text()
    if kind != _ARRAY:
        raise reader.damaged(f"the value of {key[:80]!r} has an unknown type ({kind})")
    kind, count = reader.count(_U32), reader.count()
    if kind in _SCALARS:
        name, form = _SCALARS[kind]
        reader.skip(count * form.size)
        return "array", Array(name, count)
    if kind != _STRING:
        raise reader.damaged(f"the value of {key[:80]!r} is a list of an unknown type ({kind})")
    reader.strings(count, distinct=key == _TOKENS)  # llama.cpp aborts the process where two tokens are equal
    return "array", Array("string", count)


def _check_version(path: Path, version: int) -> None:
    if version & 0xFFFF == 0 and version:
        raise ModelError(
            f"{path}: a big-endian GGUF, for another kind of machine: get the little-endian file"
        )
    if version < 2:
        raise ModelError(
            f"{path}: GGUF version {version}, from before September 2023: get a newer file of the model"
        )
    if version > 3:
        raise ModelError(f"{path}: GGUF version {version}; this program reads 2 and 3: upgrade sr-edge")


def _check_kind(contents: Contents, *, any_architecture: bool) -> str:
    path, metadata = contents.path, contents.metadata
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelError(
            f"{path}: the file does not say its model's architecture: it is damaged; get it again"
        )
    if architecture not in ARCHITECTURES and not any_architecture:
        raise ModelError(
            f"{path}: the model's architecture is {architecture[:80]!r}; this program runs "
            f"{', '.join(ARCHITECTURES)}: choose such a model"
        )
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise ModelError(f"{path}: the file holds no model but {str(kind)[:80]!r}: name the model's own GGUF")
    parts = metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise ModelError(
            f"{path}: one of {parts} parts of a model: join them with `llama-gguf-split --merge` first"
        )
    return architecture


def _check_vocabulary(path: Path, metadata: Mapping[str, Value]) -> None:
    kind, tokens = metadata.get("tokenizer.ggml.model"), metadata.get(_TOKENS)
    if kind is None or tokens is None:
        raise ModelError(f"{path}: the file has no vocabulary: get a complete file of the model")
    if kind != "gpt2":
        raise ModelError(
            f"{path}: the tokenizer is {str(kind)[:80]!r}; this program needs a byte-level one ('gpt2', as "
            "in Qwen 2, Qwen 3, Llama 3 and their descendants): choose such a model"
        )
    if not isinstance(tokens, Array) or tokens.kind != "string" or tokens.count == 0:
        raise ModelError(f"{path}: the vocabulary is not a list of tokens: the file is damaged; get it again")


def _check_shape(path: Path, architecture: str, metadata: Mapping[str, Value]) -> None:
    """The numbers that llama.cpp asserts, each with an abort of the process."""

    def number(key: str, otherwise: int | None = None, most: int = 1 << 30) -> int:
        value = metadata.get(f"{architecture}.{key}", otherwise)
        if isinstance(value, int) and 0 < value <= most:
            return value
        said = f"no {key!r}" if value is None else f"an impossible {key!r}, {str(value)[:40]}"
        raise ModelError(f"{path}: the metadata give {said}: the file is damaged; get it again")

    number("block_count", most=512)
    number("context_length")
    # Widths are 32-bit products over there: limits far above any model keep them from wrapping round.
    width, heads = number("embedding_length", most=1 << 20), number("attention.head_count", most=1 << 12)
    kv_heads = number("attention.head_count_kv", heads, most=heads)
    head = number("attention.key_length", width // heads, most=1 << 16)
    epsilon = metadata.get(f"{architecture}.attention.layer_norm_rms_epsilon")
    if not isinstance(epsilon, float) or not 0 <= epsilon < 1:
        raise ModelError(
            f"{path}: the metadata give no possible 'layer_norm_rms_epsilon': the file is damaged; get it "
            "again"
        )
    if heads % kv_heads:
        raise ModelError(
            f"{path}: {heads} heads cannot share {kv_heads} of the cache: the file is damaged; get it again"
        )
    same = number("attention.value_length", head) == head == number("rope.dimension_count", head)
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    causal = metadata.get(f"{architecture}.attention.causal", True)
    if not same or causal is not True or scaling not in ("none", "linear", "yarn", "longrope"):
        raise ModelError(
            f"{path}: the model's attention or its position encoding is of a kind that is not run here: "
            "choose another model"
        )


def _tensors(reader: _Reader, num_tensors: int, alignment: Value) -> tuple[Tensor, ...]:
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise reader.damaged(f"its alignment is {str(alignment)[:80]}, which is no power of two")
    tensors: dict[str, Tensor] = {}
    end = 0
    for _ in range(num_tensors):
        name = reader.text()
        num_dimensions = reader.count(_U32)
        if name in tensors or len(name.encode()) > 63 or num_dimensions > 4:
            raise reader.damaged(f"the tensor {name[:80]!r} is in it twice, or has a bad name or shape")
        shape = tuple(reader.count() for _ in range(num_dimensions))
        kind, offset = reader.count(_U32), reader.count()
        if kind not in TENSOR_TYPES:
            raise ModelError(
                f"{reader.path}: the tensor {name!r} has type {kind}, unknown to this version of llama.cpp: "
                "get another quantisation of the model, or upgrade sr-edge"
            )
        elements, size = TENSOR_TYPES[kind]
        if not all(shape) or prod(shape) >= 1 << 48 or (shape[0] if shape else 1) % elements:
            raise reader.damaged(f"the tensor {name!r} has an impossible shape")
        if offset != -(-end // alignment) * alignment:
            raise reader.damaged(f"the tensor {name!r} is not where it should be")
        size *= prod(shape) // elements
        end = offset + size
        tensors[name] = Tensor(name, shape, kind, offset, size)
    start = -(-reader.position // alignment) * alignment
    if tensors and start + end > reader.size:
        raise ModelError(
            f"{reader.path}: the file is cut short: its tensors end at byte {start + end:,}, the file at "
            f"{reader.size:,}: the download is incomplete; get it again"
        )
    return tuple(replace(tensor, offset=start + tensor.offset) for tensor in tensors.values())


_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive or a PyTorch checkpoint: unpack it, or convert the checkpoint to GGUF"),
    (b"\x80", "a Python pickle, perhaps a PyTorch checkpoint: convert the checkpoint to GGUF"),
    (b"lmgg", "a GGML file, from before GGUF: get the model as GGUF"),
    (b"fmgg", "a GGML file, from before GGUF: get the model as GGUF"),
    (b"tjgg", "a GGML file, from before GGUF: get the model as GGUF"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"\xfd7zXZ", "compressed with xz: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"<", "a web page: the address was that of a page, not of the file; get it again"),
    (b"{", "JSON text: name the .gguf file, or convert the checkpoint to GGUF"),
)


def _looks_like(data: mmap.mmap) -> str:
    start = data[:64]
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 30:
        return "safetensors: convert the checkpoint to GGUF"
    if data[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    for beginning, what in _BEGINNINGS:
        if start.lstrip(b"\xef\xbb\xbf\r\n\t ").startswith(beginning):
            return what
    if not any(start):
        return "zeros: the download is incomplete; get it again"
    if all(byte in b"\t\r\n" or 0x20 <= byte < 0x7F for byte in start):
        return f"text, {start[:32].decode()!r}: name the .gguf file"
    return f"something that begins with {start[:8].hex(' ')}: name the .gguf file"
