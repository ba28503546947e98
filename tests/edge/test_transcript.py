"""Folding events into text, origins, spans and counts."""

from itertools import pairwise
from typing import get_args

import pytest

from sr_edge.events import End, Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started
from sr_edge.testing.oracle import status_of
from sr_edge.transcript import Fold, Segment, SpanRecord, Status, fold

ANSWER = [
    Started(prompt_ids=(1, 2, 3), model="small", big="big", opening="<think>\n"),
    LocalToken(id=10, text="so ", logprob=-0.1),
    LocalToken(id=11, text="6*7=", logprob=-0.1),
    SpanOpened(span=1, trigger="marker", p_open=0.9, remote="big", sent_tokens=5, sent_bytes=20),
    LocalToken(id=90, text="", logprob=-0.1),
    SpanDelta(span=1, text="4"),
    SpanDelta(span=1, text="2"),
    SpanClosed(span=1, ids=(4, 2, 91), end="handback", tokens=2, ttft=0.1, seconds=0.2, resume=0.01),
    LocalToken(id=12, text=".", logprob=-0.1),
    Finished(reason="stop", prompt_tokens=3, local_tokens=4, remote_tokens=2, seconds=1.0, local_seconds=0.7),
]


def test_an_answer_folds_into_what_everybody_asks_for():
    t = fold(ANSWER)
    assert t.text == "so 6*7=42."
    assert t.segments == (Segment("local", "so 6*7="), Segment("remote", "42", 1), Segment("local", "."))
    assert t.ids == (10, 11, 90, 4, 2, 91, 12)
    assert t.sampled == (True, True, True, False, False, False, True)
    assert (t.prompt_tokens, t.local_tokens, t.remote_tokens) == (3, 4, 2)
    assert t.remote_share == 2 / 6
    assert (t.spans[0].text, t.spans[0].end, t.spans[0].resume) == ("42", "handback", 0.01)
    assert (t.finish, t.degraded, t.opening) == ("stop", False, "<think>\n")


def test_a_stream_that_was_cut_folds_too():
    t = fold(ANSWER[:6])
    assert (t.text, t.finish, t.spans[0].end) == ("so 6*7=4", None, None)
    assert fold([]).remote_share == 0.0


def test_the_transcript_is_there_at_any_moment():
    folding = Fold()
    texts = []
    for event in ANSWER:
        folding.add(event)
        texts.append(folding.transcript.text)
    assert texts[-1] == "so 6*7=42."
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


def test_a_failed_span_makes_the_answer_degraded():
    events = [
        SpanOpened(span=1, trigger="marker", p_open=0.9, remote="big"),
        SpanClosed(span=1, ids=(), end="stalled", error="silent for 15 s"),
    ]
    assert fold(events).degraded


@pytest.mark.parametrize("end", get_args(End))
@pytest.mark.parametrize("text", ["", "some"])
def test_what_came_of_a_span_is_what_the_oracle_says(end, text):
    span = SpanRecord(1, "marker", "big", 0.9, 5, 20, text=text, end=end)
    assert span.status == status_of(span)
    assert span.status in get_args(Status)


def test_the_trail_has_a_place_for_spans_without_text_and_no_other():
    opened = {"trigger": "marker", "p_open": 0.9, "remote": "big"}
    trail = fold(
        [
            LocalToken(id=1, text="a", logprob=-0.1),
            SpanOpened(span=1, **opened),
            SpanClosed(span=1, ids=(), end="error", error="down"),
            LocalToken(id=2, text="b", logprob=-0.1),
            SpanOpened(span=2, **opened),
            LocalToken(id=3, text=".", logprob=-0.1),  # of a marker that is spelled as text
            SpanDelta(span=2, text="c"),
            SpanClosed(span=2, ids=(4,), end="stop"),
            SpanOpened(span=3, **opened),
        ]
    ).trail
    assert trail == (
        Segment("local", "a"),
        Segment("remote", "", 1),
        Segment("local", "b."),
        Segment("remote", "c", 2),
        Segment("remote", "", 3),
    )
