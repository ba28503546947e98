"""What a GGUF says about its markers, and keeping markers out of what a remote wrote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge.errors import MarkerError
from sr_edge.markers import (
    CLOSE,
    KEY_CLOSE_ID,
    KEY_FORM,
    KEY_OPEN_ID,
    KEY_TAU,
    OPEN,
    SPELLINGS,
    MarkerFilter,
    find_markers,
    strip_markers,
)

VOCABULARY = {OPEN: 5, CLOSE: 6}


def find(metadata, vocabulary=VOCABULARY):
    return find_markers(metadata, vocabulary.get, lambda text: list(text.encode()))


def test_control_tokens_in_the_vocabulary_are_enough():
    markers = find({})
    assert markers is not None
    assert (markers.form, markers.open_ids, markers.close_ids) == ("token", (5,), (6,))


def test_the_metadata_sets_the_threshold():
    markers = find({KEY_FORM: "token", KEY_OPEN_ID: "5", KEY_CLOSE_ID: "6", KEY_TAU: "0.25"})
    assert markers is not None
    assert markers.tau == 0.25


@pytest.mark.parametrize(
    "name", ["DeepSeek-R1-Distill-Qwen-1.5B-GRPO-SpeculativeReasoner", "My SplitReason 1.5b"]
)
def test_published_checkpoints_are_known_by_name(name):
    markers = find({"general.name": name}, {})
    assert markers is not None
    assert markers.form == "text"
    assert bytes(markers.open_ids).decode() == OPEN


def test_other_models_have_none():
    assert find({"general.name": "Qwen2.5"}, {}) is None


@pytest.mark.parametrize(
    ("metadata", "vocabulary"),
    [
        ({KEY_FORM: "token"}, {}),
        ({KEY_FORM: "token", KEY_OPEN_ID: "1", KEY_CLOSE_ID: "2"}, VOCABULARY),
        ({KEY_FORM: "smoke"}, {}),
        ({KEY_TAU: "high"}, VOCABULARY),
        ({KEY_TAU: "1.5"}, VOCABULARY),
    ],
)
def test_contradictions_are_refused(metadata, vocabulary):
    with pytest.raises(MarkerError):
        find(metadata, vocabulary)


ANY = st.lists(st.sampled_from([*SPELLINGS, "<", "big", "model>", "/", "\\", "x < y", "é"]), max_size=10).map(
    "".join
)


def test_halves_that_a_removed_marker_parts_do_not_come_together():
    unmark = MarkerFilter()
    pieces = "<", "big<", f"big{OPEN[4:]}", "model> 1 << 2"
    assert "".join([unmark.push(piece) for piece in pieces]) + unmark.flush() == " 1 << 2"


@given(ANY, st.data())
def test_no_cut_of_the_text_lets_a_marker_through(text, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    unmark = MarkerFilter()
    out = "".join([unmark.push(piece) for piece in pieces]) + unmark.flush()
    assert not any(spelling in out for spelling in SPELLINGS)
    assert out == strip_markers(text)
