"""The large model with and without drafts, measured on tiny pairs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.bench.report import Row, Skipped
from sr_edge.bench.setting import Setting
from sr_edge.bench.speculation import measure_speculation, rows
from sr_edge.errors import EdgeError
from sr_edge.passport import demo_paths


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return (  # tied: what they write, they are sure of
        write_tiny_gguf(tmp_path / "small.gguf", seed=3, tied=True),
        write_tiny_gguf(tmp_path / "big.gguf", seed=3, tied=True),
    )


def test_every_way_writes_as_many_tokens(pair: tuple[Path, Path]) -> None:
    alone, drafted, measured = (
        measure_speculation(*pair, 1, 200, way) for way in ("alone", "drafted", "as measured")
    )
    assert alone.tokens == drafted.tokens == measured.tokens == 200
    assert (alone.drafted, alone.accepted) == (0, 0)
    assert 0 < drafted.accepted <= drafted.drafted
    assert measured.drafted < drafted.drafted, "the trial writes some without a draft"


def test_the_built_in_pair_cannot_draft_and_says_so() -> None:
    small, big = demo_paths().small, demo_paths().big
    assert measure_speculation(small, big, 1, 8, "alone").tokens == 8
    with pytest.raises(EdgeError, match="different vocabularies"):
        measure_speculation(small, big, 1, 8, "drafted")


def test_the_rows_compare_both_ways_with_none(pair: tuple[Path, Path], tmp_path: Path) -> None:
    small, big = pair
    setting = Setting(small, 1, 1, dict(os.environ), tmp_path, big=big, tokens=100)
    found = [one for one in rows(setting) if isinstance(one, Row)]
    assert [row.name.partition(",")[2] for row in found[:2]] == [" drafted / alone", " as measured / alone"]
    assert [side.name for side in found[0].sides] == ["alone", "drafted"]
    assert 0 < found[2].figure.median <= 1


def test_a_pair_that_cannot_draft_is_one_row_with_its_reason(tmp_path: Path) -> None:
    setting = Setting(demo_paths().small, 1, 1, dict(os.environ), tmp_path, tokens=8)
    (skipped,) = rows(setting)
    assert isinstance(skipped, Skipped)
    assert "different vocabularies" in skipped.reason
