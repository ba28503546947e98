"""The study on paper, and what it refuses before hours of work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sr_edge.errors import UsageError
from sr_train.demo.study import report, running
from sr_train.demo.study.plan import LEARNINGS, TEACHERS, Size, Task
from sr_train.demo.study.report import at_share, share_for, write_study
from sr_train.demo.study.work import FIGURES

CURVE = [(0.0, 0.4), (0.1, 0.6), (0.3, 0.8)]


def test_between_two_points_of_a_curve_is_a_line_and_beyond_its_ends_the_nearest():
    assert at_share(CURVE, 0.2) == pytest.approx(0.7)
    assert [at_share(CURVE, share) for share in (0.0, 0.5)] == [0.4, 0.8]
    assert share_for(CURVE, 0.7) == pytest.approx(0.2)
    assert share_for(CURVE, 0.9) is None
    assert share_for(CURVE, 0.3) == 0.0


def arm(name: str, share: float, accuracy: float) -> dict[str, Any]:
    kind = name.split()[0]
    figures = {"share": share, "pass_at_1": accuracy, "seconds": 1.0}
    return {"arm": name, "kind": kind, **{key: {"value": value} for key, value in figures.items()}}


def leave(
    out: Path, task: Task, share: float, accuracy: float, biased: tuple[tuple[float, float], ...] = ()
) -> None:
    """What a task leaves."""
    arms = [arm("small", 0.0, 0.4), arm("split", share, accuracy), arm("random", share, 0.3)]
    arms += [arm(f"split {n:+}", *point) for n, point in enumerate(biased, 1)]
    found = {"figures": {"arms": arms}}
    path = out / task.folder / FIGURES
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(found))


def test_each_model_stands_beside_the_curve_that_it_began_with(tmp_path):
    by_name = {learning.name: learning for learning in LEARNINGS}
    for teacher in TEACHERS:
        leave(tmp_path, Task(0, teacher), 0.1, 0.6, ((0.3, 0.8),))
    for name, share, accuracy in (
        ("true", 0.1, 0.7),
        ("true, lam 0.3", 0.3, 0.9),
        ("self", 0.0, 0.01),
    ):
        leave(tmp_path, Task(0, "opinion", by_name[name]), share, accuracy)
    paths = write_study(tmp_path, [0], tmp_path / "told")
    assert all(path.stat().st_size for path in paths)
    against = {each["name"]: each for each in json.loads(paths[0].read_text())["against"]}
    assert against["true"]["points"] == pytest.approx(10)
    assert against["true"]["saved"] == pytest.approx(0.5)
    assert against["true"]["over_random"] == pytest.approx(40)
    assert against["self"]["points"] == pytest.approx(-39)
    rows = {
        line.split(" | ")[0].strip("| "): line
        for line in paths[1].read_text().split("Beside")[1].splitlines()
    }
    assert "-50.0 %" in rows["true"]
    assert "never has as many (1 of 1 seeds)" in rows["true, lam 0.3"]
    assert "has as many without any (1 of 1 seeds)" in rows["self"]


def test_each_kind_of_model_is_in_the_plot():
    """Those with a budget are drawn together."""
    drawn = {Task(0, teacher).name for teacher in TEACHERS}
    assert set(report._LOOKS) == drawn | {each.name for each in LEARNINGS if each.target_share is None}


def test_nothing_to_compare_is_said(tmp_path):
    with pytest.raises(UsageError, match="run the study first"):
        write_study(tmp_path, [0], tmp_path)


def test_what_cannot_be_meant_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_run", lambda *_: None)
    with pytest.raises(UsageError, match="no run 'tru': there are 'true'"):
        running.run_study(tmp_path / "s", (0,), Size(), jobs=1, names=("tru",))
    for _ in range(2):
        running.run_study(tmp_path / "s", (0,), Size(num_rows=4), jobs=1)
    with pytest.raises(UsageError, match="another size"):
        running.run_study(tmp_path / "s", (0,), Size(), jobs=1)
