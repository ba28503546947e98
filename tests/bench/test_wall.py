"""Two problems through both sides: the same models, the same questions, the same right answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from sr_edge.bench.paper import CHUNK
from sr_edge.bench.report import Row, Skipped, Timeline
from sr_edge.bench.setting import Setting
from sr_edge.bench.wall import Answered, Wall, measure_wall, rows, rows_of
from sr_edge.passport import demo_paths
from sr_edge.suites.demo import problems


@pytest.fixture(scope="module")
def wall() -> Wall:
    return measure_wall(problems(0, 3), ms_per_token=0.0)


def test_both_sides_answer_every_problem(wall: Wall) -> None:
    assert [one.is_correct for one in wall.ours] == [True] * 3
    assert [one.spans for one in wall.ours] == [one.spans for one in wall.theirs] == [0, 1, 1]


def test_we_hang_up_where_the_paper_has_its_chunk_written(wall: Wall) -> None:
    for ours, theirs in zip(wall.ours[1:], wall.theirs[1:], strict=True):
        assert theirs.big_tokens == CHUNK
        assert 0 < ours.big_tokens <= CHUNK


def test_timelines_say_who_wrote_when(wall: Wall) -> None:
    for answered in (wall.ours[1], wall.theirs[1]):
        points = answered.timeline.points
        assert {point.writer for point in points} == {"local", "remote"}
        assert [point.tokens for point in points] == sorted(point.tokens for point in points)
        assert [point.seconds for point in points] == sorted(point.seconds for point in points)
    (arrived,) = {point.seconds for point in wall.theirs[1].timeline.points if point.writer == "remote"}
    grown = [point.tokens for point in wall.theirs[1].timeline.points if point.seconds == arrived]
    assert grown[0] < grown[-1], "a whole reply comes at once"
    assert {point.writer for point in wall.ours[0].timeline.points} == {"local"}


def answered(name: str, seconds: float, spans: int, *, is_correct: bool = True) -> Answered:
    return Answered(seconds, is_correct, spans, 30 * spans, Timeline(f"{name} {seconds}", ()))


def test_rows_compare_problem_by_problem_and_apart_where_it_asked() -> None:
    ours = answered("ours", 1.0, 0), answered("ours", 2.0, 1), answered("ours", 3.0, 2)
    theirs = answered("paper", 1.0, 0), answered("paper", 8.0, 1, is_correct=False), answered("paper", 9.0, 2)
    found = list(rows_of(Wall(ours, theirs)))
    figures = [row.figure.median for row in found if isinstance(row, Row)]
    assert figures == pytest.approx([1 / 3, (0.25 + 1 / 3) / 2, 1.0, 2 / 3])
    assert [one.name for one in found if isinstance(one, Timeline)] == ["ours 3.0", "paper 9.0"]


def test_offline_opens_no_socket(tmp_path: Path) -> None:
    environ = {"SR_EDGE_OFFLINE": "1", "SR_EDGE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    setting = Setting(demo_paths().small, threads=1, pairs=1, environ=environ, home=tmp_path)
    (found,) = rows(setting)
    assert isinstance(found, Skipped)
    assert "offline" in found.reason
