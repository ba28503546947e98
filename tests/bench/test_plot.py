"""An answer's events as a timeline, and the picture of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from sr_edge.bench.plot import check_plotting, plot, stretches
from sr_edge.bench.report import Point, Timeline
from sr_edge.bench.timeline import timeline_of
from sr_edge.errors import UsageError
from sr_edge.events import Event, Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started
from sr_edge.session import Session, SessionSettings

ANSWER: list[Event] = [
    Started(prompt_ids=(1,), model="small", at=0.5),
    LocalToken(2, "a", -1.0, at=1.0),
    LocalToken(3, "b", -1.0, at=1.5),
    SpanOpened(1, "marker", 0.9, "big", at=1.6),
    LocalToken(9, "", -1.0, at=2.0),  # the opening marker
    SpanDelta(1, "xxxx", at=2.5),
    SpanDelta(1, "yyyyyy", at=3.0),
    SpanClosed(1, ids=(4, 5, 6, 7, 8, 10, 11), end="handback", tokens=5, at=3.2),
    LocalToken(12, "c", -1.0, at=4.0),
    Finished("stop", 1, 4, 5, 4.5, at=4.5),
]


def test_a_spans_tokens_are_shared_out_by_what_came_when() -> None:
    timeline = timeline_of("ours", ANSWER)
    assert timeline.name == "ours"
    assert [(point.seconds, point.tokens, point.writer) for point in timeline.points] == [
        (0.5, 0, "local"),
        (1.0, 1, "local"),
        (1.5, 2, "local"),
        (1.6, 3, "local"),  # the opening marker, when it was sampled
        (2.5, 3, "local"),
        (2.5, 5, "remote"),  # 4 of 10 characters, so 2 of 5 tokens
        (3.0, 8, "remote"),
        (4.0, 9, "local"),
        (4.5, 9, "local"),
    ]


def test_a_span_that_brought_nothing_adds_nothing() -> None:
    opened = SpanOpened(1, "marker", 0.9, "big", at=1.0)
    refused = SpanClosed(1, ids=(), end="declined", at=1.1)
    timeline = timeline_of("ours", [ANSWER[0], ANSWER[1], opened, refused, ANSWER[2]])
    assert [point.tokens for point in timeline.points] == [0, 1, 2]
    assert {point.writer for point in timeline.points} == {"local"}


def test_the_line_is_cut_where_the_pen_changes_hands_or_rests_and_has_no_gap() -> None:
    drawn = list(stretches(timeline_of("ours", ANSWER).points))
    assert [writer for writer, _ in drawn] == ["local", None, "remote", "local", None]
    for (_, one), (_, following) in itertools.pairwise(drawn):
        assert one[-1] == following[0]
    assert list(stretches([])) == list(stretches([Point(0.0, 0, "local")])) == []


def test_a_real_answer_is_drawn_the_same_each_time(tmp_path: Path) -> None:
    question = "Ida fills 28 bags with 14 coins each. Tom gives her 93 more. How many coins has Ida now?"
    with Session.open(SessionSettings(temperature=0.0, seed=0)) as session:
        from sr_edge.roles import Message

        events = list(session.answer([Message("user", question)]))
    timelines = [timeline_of("ours", events)]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert timelines[0].points[-1].tokens == finished.local_tokens + finished.remote_tokens
    assert {point.writer for point in timelines[0].points} == {"local", "remote"}
    pictures = []
    for name in ("one", "two"):
        folder = tmp_path / name
        check_plotting(folder)
        png, svg = plot([*timelines, Timeline("another", timelines[0].points)], folder)
        assert png.read_bytes().startswith(b"\x89PNG")
        pictures.append(svg.read_text())
    assert pictures[0] == pictures[1]
    assert "the large model" in pictures[0]


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--plot"):
        check_plotting(tmp_path / "file")
