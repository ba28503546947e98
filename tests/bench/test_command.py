"""`sr-edge bench` as a user runs it, on the built-in model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.command_line import call, run_interrupted

from sr_edge.passport import demo_paths

QUICK = ("--pairs", "1", "--tokens", "8")


def test_the_table_and_both_files_have_what_was_measured(tmp_path: Path) -> None:
    data, table = tmp_path / "b.json", tmp_path / "b.md"
    done = call("bench", "startup", "growth", *QUICK, "--json", data, "--markdown", table)
    assert done.returncode == 0, done.stderr
    assert "beyond loading the model" in done.stdout
    assert "small.gguf" in done.stdout
    assert "growth, all of it: not measured: the model's context" in done.stderr
    report = json.loads(data.read_text())
    (row,) = report["rows"]
    assert (row["subject"], row["goal"]["relation"], report["pairs"]) == ("startup", "at most", 1)
    assert report["skipped"][0]["subject"] == "growth"
    assert report["command"].startswith("bench startup growth")
    assert "| startup: " in table.read_text()


def test_nothing_measured_is_a_failure_and_says_why() -> None:
    done = call("bench", "growth", *QUICK)
    assert done.returncode == 1
    assert "not measured" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["decode", "-m", str(demo_paths().small), "--synthetic", "tiny"], "exclude each other"),
        (["decode", "--synthetic", "3b"], "there are tiny, 1.5b, 7b"),
        (["decode", "--llama-bench", "/nowhere/llama-bench"], "there is no such file"),
        (["decode", "--json", "/nowhere/b.json"], "its folder does not exist"),
        (["weather"], "weather"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(arguments: list[str], says: str) -> None:
    done = call("bench", *arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_file_that_is_no_model_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    done = call("bench", "decode", "-m", tmp_path / "bad.gguf")
    assert done.returncode == 4
    assert "round" not in done.stderr


def test_what_was_measured_before_ctrl_c_is_printed(program: Callable[[str], Path], tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    slow = program(f"open({str(reached)!r}, 'w').close(); time.sleep(60)")
    done = run_interrupted(
        *("bench", "startup", "decode", "--llama-bench", slow, *QUICK), when=reached.exists
    )
    assert done.returncode == 130
    assert re.search(r"^startup +[\d.]+ s +at most .* sr-edge ask", done.stdout, re.MULTILINE)
    assert "interrupted: these are the figures so far" in done.stderr


def test_a_plot_that_has_nothing_to_show_is_said(tmp_path: Path) -> None:
    done = call("bench", "startup", *QUICK, "--plot", tmp_path / "plots")
    assert done.returncode == 0
    assert "nothing to draw" in done.stderr
