"""The lists of strings in a GGUF: where one ends, and whether all in it are different.

Each string follows its length, so that a list is walked from string to string: 0.1 s for a vocabulary of
150,000, and another 0.1 s to compare them. A long list is therefore read in blocks, by NumPy, which takes a
tenth of that: where a byte has seven zeros behind it, a short string may follow; if each begins where the one
before it ends, these are the places that a walk would come to. A block that does not come out is walked.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from itertools import repeat
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK = 2048
"""Strings that are read together. In lists that are shorter each is read by itself."""

_LENGTH = Struct("<Q")
_SHORT = 32  # bytes, with its length: blocks of strings that are longer on average are walked
_LONG = 256  # bytes: such a string has a length of more than one byte


class CutShortError(ValueError):
    """The list goes on beyond its limit."""


def end_of(data: mmap.mmap | bytes, start: int, count: int) -> int:
    """Where the list ends.

    Raises:
        CutShortError: beyond the data.
    """
    if count < BLOCK:
        return _walk(data, start, count, len(data))[-1]
    position = start
    for num in _blocks(count):
        block = _short_strings(data, position, num, len(data))
        position = block.end if block else _walk(data, position, num, len(data))[-1]
    return position


def end_of_spellings(data: mmap.mmap | bytes, start: int, count: int, limit: int) -> int | None:
    """Where the list ends; None if two of its strings are equal, or one has a zero byte, which would end it.

    Raises:
        CutShortError: beyond `limit`.
    """
    if count < BLOCK:
        return _compared(data, start, count, limit)
    import numpy as np

    weights = np.frombuffer(os.urandom((8 + _LONG) * 8), np.uint64)  # nobody can prepare equal sums
    hashes: list[NDArray[np.uint64]] = []
    others: list[bytes] = []  # long and empty ones
    position = start
    for num in _blocks(count):
        block = _short_strings(data, position, num, limit)
        if block is None:
            ends = _walk(data, position, num, limit)
            texts = [data[a + 8 : b] for a, b in zip([position, *ends], ends, strict=False)]
            position = ends[-1]
            others += [text for text in texts if not 0 < len(text) < _LONG]
            short = [text for text in texts if 0 < len(text) < _LONG]
            if not short:
                continue
            block = _Block.of(short)
        else:
            position = block.end
        if block.has_zero_byte():
            return None
        hashes.append(block.hashes(weights))
    sums = np.sort(np.concatenate(hashes or [weights[:0]]))
    if (sums[1:] == sums[:-1]).any():  # almost certainly two equal strings
        return _compared(data, start, count, limit)
    if len(set(others)) < len(others) or any(b"\0" in text for text in others):
        return None
    return position


def _blocks(count: int) -> Iterator[int]:
    yield from repeat(BLOCK, count // BLOCK)
    if count % BLOCK:
        yield count % BLOCK


def _walk(data: mmap.mmap | bytes, start: int, count: int, limit: int) -> list[int]:
    """The end of each string, or the start where there is none."""
    unpack, position, ends = _LENGTH.unpack_from, start, []
    try:
        for _ in repeat(None, count):
            position += 8 + unpack(data, position)[0]
            if position > limit:
                raise CutShortError
            ends.append(position)
    except (StructError, OverflowError):
        raise CutShortError from None
    return ends or [start]


def _compared(data: mmap.mmap | bytes, start: int, count: int, limit: int) -> int | None:
    ends = _walk(data, start, count, limit)
    seen = {data[a + 8 : b] for a, b in zip([start, *ends], ends, strict=False)} if count else set()
    return None if len(seen) < count or b"\0" in b"".join(seen) else ends[-1]


class _Block:
    """Short strings one after another, each behind its length."""

    def __init__(
        self, data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        self._data = data
        self._starts = starts
        self._lengths = lengths
        self.end = 0
        """In the file."""

    @classmethod
    def of(cls, texts: list[bytes]) -> _Block:
        import numpy as np

        data = b"".join(_LENGTH.pack(len(text)) + text for text in texts)
        lengths = np.array([len(text) for text in texts])
        return cls(np.frombuffer(data, np.uint8), np.cumsum(lengths + 8) - (lengths + 8), lengths)

    def has_zero_byte(self) -> bool:
        import numpy as np

        return bool(np.count_nonzero(self._data) != len(self._data) - 7 * len(self._starts))

    def hashes(self, weights: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Of each string: the sum of its bytes, each times the weight of its place."""
        import numpy as np

        places = np.arange(len(self._data)) - np.repeat(self._starts, self._lengths + 8)
        return np.add.reduceat(self._data * weights[places], self._starts)


def _short_strings(data: mmap.mmap | bytes, start: int, num: int, limit: int) -> _Block | None:
    """None: some are empty or long, or the data end."""
    import numpy as np

    window = data[start : min(limit, start + num * _SHORT)]
    if len(window) < 8:
        return None
    read = np.frombuffer(window, np.uint8)
    zero = read == 0
    two = zero[1:] & zero[:-1]
    four = two[2:] & two[:-2]
    seven = four[3:] & four[:-3]  # that many zeros begin here
    starts = np.flatnonzero(seven[1:] > zero[: len(seven) - 1])[:num]
    if len(starts) < num:
        return None
    lengths = read[starts].astype(np.int64)
    ends = starts + 8 + lengths
    if starts[0] != 0 or (starts[1:] != ends[:-1]).any() or ends[-1] > len(window):
        return None
    end = int(ends[-1])
    block = _Block(read[:end], starts, lengths)
    block.end = start + end
    return block
