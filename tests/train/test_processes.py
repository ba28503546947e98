"""Two processes under accelerate train as one does with twice the batch.

The rollouts, rewards and figures are the same ones. Losses and weights are the same to rounding, since two
processes add up their gradients in another order.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.launching import Stage, launch, steps, train

SAME = ("reward", "completions/", "num_tokens", "frac_reward", "offload/", "step", "epoch", "learning_rate")
"""Figures that no rounding is in, or in all processes the same."""


@pytest.mark.parametrize("stage", ["grpo", "sft"])
def test_two_processes_are_one_with_twice_the_batch(stage: Stage, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(stage, tmp_path, one, 4, 4)
    done = launch(stage, tmp_path, two, 2, 4, num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, found = steps(one, stage), steps(two, stage)
    assert found.keys() == expected.keys() == {1, 2, 3, 4}
    for step, line in expected.items():
        for name, value in line.items():
            if name.startswith(SAME):
                assert found[step][name] == value, (step, name)
            elif not isinstance(value, str):
                assert found[step][name] == pytest.approx(value, rel=2e-5, abs=1e-6), (step, name)
    before = load_file(tmp_path / "small/model.safetensors")
    weights = load_file(one / stage / "model/model.safetensors")
    others = load_file(two / stage / "model/model.safetensors")
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=0, atol=2e-5, msg=name)
    moved = max(float((value - before[name]).abs().max()) for name, value in weights.items())
    assert moved > 3e-4
