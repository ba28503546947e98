"""Runs that are killed with SIGKILL, anywhere, and go on: to the same figures and the same weights."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.launching import Blow, Stage, launch, steps, train


@pytest.mark.parametrize(
    ("stage", "blows"),
    [
        ("grpo", [("mid-rollout", 4)]),
        # first in step 4, then when step 4 is saved
        pytest.param("grpo", [("mid-rollout", 4), ("mid-save", 4)], marks=pytest.mark.slow),
        # a shorter one: test_sft_training
        pytest.param("sft", [("mid-save", 4)], marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_and_goes_on_ends_where_it_would_have(
    stage: Stage, blows: list[tuple[Blow, int]], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train([stage], tmp_path, whole, 2, 5)
    for blow, at in blows:
        died = launch([stage], tmp_path, killed, 2, 5, blow=blow, at=at)
        assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
        assert not (killed / stage / "done.json").exists()
        assert (killed / stage / "checkpoint-2").is_dir()
        assert max(steps(killed, stage)) >= 3
    half = killed / stage / "checkpoint-4" / "trainer_state.json"
    if blows[-1][0] == "mid-save":
        assert half.read_text() == '{"global_st'
    else:
        assert not half.exists()
    train([stage], tmp_path, killed, 2, 5)
    expected, found = steps(whole, stage), steps(killed, stage)
    assert expected.keys() == {1, 2, 3, 4, 5}
    assert found == expected
    done, other = (json.loads((run / stage / "done.json").read_text()) for run in (whole, killed))
    assert other == done
    weights = load_file(whole / stage / "model/model.safetensors")
    others = load_file(killed / stage / "model/model.safetensors")
    assert others.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(others[name], value), name
