"""What becomes of rows: JSON for programs, Markdown for documents."""

from __future__ import annotations

import json

import pytest

from sr_edge.bench.machine import Machine
from sr_edge.bench.pairs import Spread
from sr_edge.bench.report import (
    SCHEMA,
    Goal,
    Point,
    Report,
    Row,
    Side,
    Skipped,
    Timeline,
    as_json,
    as_markdown,
    figure,
    sorted_out,
    within,
)

MACHINE = Machine(
    processor="A processor",
    physical_cores=2,
    usable_cores=4,
    memory=8 << 30,
    system="Linux",
    packages={"python": "3.11", "numpy": None},
    llama="AVX = 1",
    devices=(),
    clock="powersave",
    quota="",
    load=0.5,
    waiting={"OMP_WAIT_POLICY": "active"},
)
FAST = Row(
    "decode",
    "ours / peer|s",
    Spread(0.99, 0.97, 1.01, 5),
    "x",
    Goal("at least", 0.98),
    (Side("ours", Spread(10.7, 10.6, 10.8, 5), "tok/s"), Side("peer", Spread(10.8, 10.7, 10.9, 5), "tok/s")),
    "one sentence",
)
HEAVY = Row("memory", "most memory", Spread(1.2, 1.2, 1.2, 1), "x", Goal("at most", 1.06))
FREE = Row("decode", "ours / another", Spread(1.5, 1.4, 1.6, 5), "x")
REPORT = Report(
    when="2026-01-01T00:00:00Z",
    command="bench all",
    sr_edge="0.1.0",
    machine=MACHINE,
    model="small.gguf, 1.1 GB",
    threads=2,
    pairs=5,
    rows=(FAST, HEAVY, FREE),
    skipped=(Skipped("wall", "all of it", "no pair"),),
    timelines=(Timeline("ours", (Point(0.0, 0, "local"), Point(1.0, 3, "remote"))),),
)


def test_json_has_its_schema_and_every_row_with_its_verdict() -> None:
    data = json.loads(as_json(REPORT))
    assert data["schema"] == SCHEMA
    assert [row["is_met"] for row in data["rows"]] == [True, False, None]
    assert data["rows"][0]["figure"] == {"median": 0.99, "low": 0.97, "high": 1.01, "count": 5}
    assert data["rows"][0]["sides"][1]["measured"]["median"] == 10.8
    assert data["skipped"] == [{"subject": "wall", "name": "all of it", "reason": "no pair"}]
    assert data["machine"]["packages"] == {"python": "3.11", "numpy": None}
    assert data["timelines"][0]["points"][1] == {"seconds": 1.0, "tokens": 3, "writer": "remote"}


def test_markdown_is_a_table_that_hides_nothing() -> None:
    lines = as_markdown(REPORT).splitlines()
    assert lines[2] == (
        r"| decode: ours / peer\|s | **0.990 x** (0.970 x to 1.01 x, n = 5) | at least 0.980 x "
        "| ours 10.7 tok/s, peer 10.8 tok/s |"
    )
    assert lines[3] == "| memory: most memory | **1.20 x** (once) | at most 1.06 x: missed |  |"
    assert lines[4].endswith("|  |  |")
    assert "* decode, ours / peer|s: one sentence" in lines
    assert "* not measured: wall, all of it: no pair" in lines
    text = "\n".join(lines)
    for condition in ("2 threads", "A processor", "8 GiB", "numpy missing", "clock: powersave", "active"):
        assert condition in text
    assert lines[-1] == "`sr-edge bench all`"


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [(0.0498, "x", "0.050 x"), (1.234, "ms", "1.23 ms"), (17.25, "s", "17.2 s"), (1117.4, "MB", "1117 MB"),
     (0.1966, "%", "19.7 %")],
)  # fmt: skip
def test_figures_have_three_digits_that_count(value: float, unit: str, shown: str) -> None:
    assert figure(value, unit) == shown


def test_a_single_measurement_has_no_range() -> None:
    assert within(Spread(1.0, 1.0, 1.0, 1), "x") == "once"


def test_what_a_subject_finds_is_sorted_out() -> None:
    timeline = REPORT.timelines[0]
    skipped = REPORT.skipped[0]
    assert sorted_out([timeline, FAST, skipped, FREE]) == ([FAST, FREE], [skipped], [timeline])


@pytest.mark.parametrize(
    ("goal", "measured", "is_met"),
    [
        (Goal("at least", 0.5), 0.5, True),
        (Goal("at least", 0.5), 0.49, False),
        (Goal("at most", 0.5), 0.5, True),
        (Goal("at most", 0.5), 0.51, False),
    ],
)
def test_a_goal_includes_its_border(goal: Goal, measured: float, is_met: bool) -> None:
    assert goal.is_met(measured) is is_met
