"""A long list of strings is read in blocks; it ends, and is refused, where one that is walked is."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_edge.gguf_strings import BLOCK, CutShortError, end_of, end_of_spellings

COUNT = 2 * BLOCK + 100
BEFORE = b"\0" * 5  # what comes before the list
BEHIND = bytes(range(256)) + bytes(64)

ODD = st.one_of(
    st.just(b""),
    st.just(b"\0"),
    st.just(bytes(8)),
    st.sampled_from([0, 1, 1, 2048, 4100]).map(lambda n: b"t%d" % n),  # is in the list already
    st.binary(max_size=12),
    st.integers(250, 260).map(lambda n: b"x" * n),
    st.sampled_from([1000, 70_000]).map(lambda n: b"y" * n),
    st.just(b"a\x05" + bytes(7) + b"bcdef"),  # looks like two
)


def listed(texts: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(text)) + text for text in texts)


def plain() -> list[bytes]:
    return [b"t%d" % n for n in range(COUNT)]


def spellings(data: bytes, limit: int | None = None) -> int | None:
    return end_of_spellings(data, len(BEFORE), COUNT, len(data) if limit is None else limit)


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, COUNT - 1), ODD), max_size=6))
def test_whatever_is_in_it_the_list_ends_where_it_ends(changes: list[tuple[int, bytes]]) -> None:
    texts = plain()
    for at, text in changes:
        texts[at] = text
    content = BEFORE + listed(texts)
    assert end_of(content + BEHIND, len(BEFORE), COUNT) == len(content)
    usable = len(set(texts)) == COUNT and not any(b"\0" in text for text in texts)
    assert spellings(content + BEHIND) == (len(content) if usable else None)


@pytest.mark.parametrize(("one", "other"), [(0, 1), (3, COUNT - 1), (BLOCK - 1, BLOCK), (BLOCK, 2 * BLOCK)])
@pytest.mark.parametrize("text", [b"same", b"", b"s" * 254, b"s" * 255, b"s" * 256, b"s" * 3000])
def test_two_equal_strings_are_found_wherever_they_are(one: int, other: int, text: bytes) -> None:
    texts = plain()
    texts[one] = text
    assert spellings(BEFORE + listed(texts)) is not None
    texts[other] = text
    assert spellings(BEFORE + listed(texts)) is None


def test_the_same_letters_in_another_order_are_another_string() -> None:
    texts = plain()
    texts[5], texts[4000] = b"abcdef", b"fedcba"
    assert spellings(BEFORE + listed(texts)) is not None


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(1, 5000), at=st.integers(0, COUNT - 1), lie=st.integers(0, (1 << 64) - 1))
def test_a_list_that_does_not_end_is_cut_short(cut: int, at: int, lie: int) -> None:
    content = BEFORE + listed(plain())
    for ends in (lambda data: end_of(data, len(BEFORE), COUNT), spellings):
        with pytest.raises(CutShortError):
            ends(content[:-cut])
    with pytest.raises(CutShortError):
        spellings(content, len(content) - cut)
    place = len(BEFORE) + len(listed(plain()[:at]))
    lying = content[:place] + struct.pack("<Q", lie | 1 << 40) + content[place + 8 :]
    with pytest.raises(CutShortError):
        end_of(lying, len(BEFORE), COUNT)


def test_short_lists_are_read_too() -> None:
    assert end_of(BEFORE, len(BEFORE), 0) == end_of_spellings(BEFORE, len(BEFORE), 0, 100) == len(BEFORE)
    content = BEFORE + listed([b"a", b"b"])
    assert end_of_spellings(content, len(BEFORE), 2, len(content)) == len(content)
    content = BEFORE + listed([b"a", b"a"])
    assert end_of_spellings(content, len(BEFORE), 2, len(content)) is None
