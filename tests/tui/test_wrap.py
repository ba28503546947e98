"""Wrapping: nothing is lost, nothing is too wide, and what is written later moves no line but the last."""

import sys

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len, get_character_cell_size

from sr_edge.tui import wrap as room
from sr_edge.tui.wrap import TAB, wrap

PIECES = [
    "a",
    "bc",
    "defgh",
    " ",
    "  ",
    "\n",
    "\t",
    "漢",
    "字",
    "é",
    "e\u0301",
    "👩\u200d🔬",
    "❤",
    "\ufe0f",
    "≡",
    "x" * 30,
]
texts = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
widths = st.integers(2, 24)


def lines(text: str, width: int) -> list[str]:
    return [text[start:end] for start, end in wrap(text, width)]


def test_text_is_wrapped_at_words():
    assert lines("the sum of the squares", 10) == ["the sum of", "the", "squares"]


def test_a_word_that_fits_on_no_line_begins_a_line_and_is_broken():
    assert lines("see abcdefghijkl now", 5) == ["see", "abcde", "fghij", "kl", "now"]


def test_empty_lines_and_indentation_stay():
    assert lines("a\n\n  b\n", 10) == ["a", "", "  b", ""]


def test_wide_characters_are_broken_between_any_two():
    assert lines("ab 漢字漢字", 6) == ["ab 漢", "字漢字"]


@settings(max_examples=400)
@given(texts, widths)
def test_all_but_white_space_is_on_a_line(text, width):
    spans = wrap(text, width)
    at = 0
    for start, end in spans:
        assert at <= start <= end
        assert not text[at:start].strip()
        at = end
    assert not text[at:].strip()


@settings(max_examples=400)
@given(texts, widths)
def test_no_line_is_too_wide(text, width):
    for line in lines(text, width):
        assert cell_len(line.replace("\t", " " * TAB)) <= max(width, TAB)


@given(texts, texts, widths)
def test_a_line_that_another_one_follows_never_changes(text, more, width):
    before = wrap(text, width)
    start = before[-1][0]
    assert wrap(text + more, width) == before[:-1] + wrap(text + more, width, start)


@given(
    st.lists(st.sampled_from([piece for piece in PIECES if piece.isascii() and piece != "\t"])).map("".join),
    widths,
)
def test_the_quick_way_is_the_same_as_measuring(text, width):
    for line in text.split("\n"):
        assert wrap(line, width) == list(room._measured(line, width, 0, len(line)))


def test_characters_taken_for_narrow_are_narrow():
    narrow = [char for char in map(chr, range(32, sys.maxunicode)) if room._NARROW.fullmatch(char)]
    assert len(narrow) > 2000
    assert {get_character_cell_size(char) for char in narrow} == {1}
