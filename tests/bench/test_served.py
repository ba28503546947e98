"""What HTTP costs, once and short: the same tokens on both sides, or no figure."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from sr_edge.bench import served
from sr_edge.bench.report import Row, Skipped
from sr_edge.bench.setting import Setting
from sr_edge.bench.writing import PROBLEM
from sr_edge.errors import EdgeError
from sr_edge.passport import demo_paths
from sr_edge.remote.served import ServedClient


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(demo_paths().small, threads=1, pairs=1, environ=os.environ, home=tmp_path, tokens=8)


def test_one_client_is_compared_with_the_decoder_itself(setting: Setting) -> None:
    rate, first = served.rows(setting)
    assert isinstance(rate, Row)
    assert isinstance(first, Row)
    assert [side.name for side in rate.sides] == [served.THROUGH, served.STRAIGHT]
    assert rate.note.startswith("8 answers of 64 tokens")
    assert rate.figure.median > 0
    assert (first.unit, first.goal) == ("steps", served.PROMPT)


@pytest.mark.slow
def test_different_answers_are_not_compared(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    events = ServedClient.events

    def swapped(self, body, **options):
        return events(self, {**body, "messages": [{"role": "user", "content": PROBLEM}]}, **options)

    monkeypatch.setattr(ServedClient, "events", swapped)
    with pytest.raises(EdgeError, match="differently"):
        list(served.rows(setting))


def test_offline_opens_no_socket(setting: Setting) -> None:
    (found,) = served.rows(replace(setting, environ={**os.environ, "SR_EDGE_OFFLINE": "1"}))
    assert isinstance(found, Skipped)
    assert "offline" in found.reason
