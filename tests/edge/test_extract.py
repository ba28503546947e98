r"""What is reasoning, what is the answer, and what is in the box."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge.extract import ReasoningSplitter, last_boxed, split_reasoning

R1 = "<|Assistant|><think>\n"

CASES = {
    "the template opened the think tag": (R1, "2 + 2.\n</think>\n\nIt is 4.", "2 + 2.\n", "\n\nIt is 4."),
    "cut while thinking": (R1, "2 + 2 is", "2 + 2 is", ""),
    "the model opened it itself": ("", "\n<think>hm</think>4", "hm", "4"),
    "only the end tag came": ("", "hm, so</think>4", "hm, so", "4"),
    "no tags at all": ("", "It is 4.", "", "It is 4."),
    "the template closed an empty think block": ("<think>\n\n</think>\n\n", "It is 4.", "", "It is 4."),
    "two blocks, one after the other": (R1, "a</think>\n<think>b</think>c", "ab", "c"),
    "an answer that speaks of tags": (
        R1,
        "a</think>Use <think> and </think>.",
        "a",
        "Use <think> and </think>.",
    ),
    "an unfinished end tag": (R1, "a</thin", "a</thin", ""),
    "nothing": (R1, "", "", ""),
}


@pytest.mark.parametrize(("opening", "text", "reasoning", "answer"), CASES.values(), ids=CASES.keys())
def test_reasoning_ends_where_the_tag_says(opening: str, text: str, reasoning: str, answer: str) -> None:
    assert split_reasoning(opening, text) == (reasoning, answer)


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "/", "think", "x > 2", "\n", " é"]), max_size=12
)


@given(PIECES, st.booleans(), st.lists(st.integers(1, 5), max_size=60))
def test_a_stream_is_split_alike_however_it_is_cut(words: list[str], thinks: bool, sizes: list[int]) -> None:
    text = "".join(words)

    def split(pieces: list[str]) -> dict[str, str]:
        splitter = ReasoningSplitter[int](thinks=thinks)
        parts = {"reasoning": "", "answer": ""}
        for number, piece in enumerate(pieces):
            for part, shown, origin in splitter.push(piece, number):
                assert origin <= number
                parts[part] += shown
        for part, shown, _ in splitter.flush():
            parts[part] += shown
        return parts

    pieces, rest = [], text
    for size in sizes:
        pieces, rest = [*pieces, rest[:size]], rest[size:]
    assert split([*pieces, rest]) == split([text])


@given(PIECES, st.booleans())
def test_every_piece_keeps_its_origin(words: list[str], thinks: bool) -> None:
    """Who wrote a character is known even when it was held back as a possible tag."""
    splitter = ReasoningSplitter[int](thinks=thinks)
    by_origin = dict.fromkeys(range(len(words)), "")
    for number, word in enumerate(words):
        for _, shown, origin in splitter.push(word, number):
            by_origin[origin] += shown
    for _, shown, origin in splitter.flush():
        by_origin[origin] += shown
    for number, word in enumerate(words):
        assert is_subsequence(by_origin[number], word)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{205}.", "205"),
        (r"\boxed{1} or rather \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{4} and then \boxed{5", "4"),
        (r"\boxed{}", ""),
        (r"boxed{4}", None),
        ("", None),
    ],
)
def test_the_last_complete_box_counts(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


BALANCED = st.recursive(
    st.text("ab +", max_size=3),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=5,
)


@given(st.text("ab{}\\ ", max_size=10), BALANCED, st.text("ab} ", max_size=10))
def test_a_box_holds_what_was_put_in(before: str, content: str, after: str) -> None:
    assert last_boxed(f"{before}\\boxed{{{content}}}{after}") == content


def is_subsequence(part: str, whole: str) -> bool:
    letters = iter(whole)
    return all(letter in letters for letter in part)
