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


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def max_steps(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def folder(max_steps: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds both runs, of one process and of two."""
    folder = tmp_path_factory.mktemp("runs")
    train(["sft", "grpo"], folder, folder / "one", 4, max_steps)
    done = launch(["sft", "grpo"], folder, folder / "two", 2, max_steps, num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_two_processes_are_one_with_twice_the_batch(folder: Path, max_steps: int, stage: Stage) -> None:
    expected, found = steps(folder / "one", stage), steps(folder / "two", stage)
    assert found.keys() == expected.keys() == set(range(1, max_steps + 1))
    for step, line in expected.items():
        for name, value in line.items():
            if name.startswith(SAME):
                assert found[step][name] == value, (step, name)
            elif not isinstance(value, str):
                assert found[step][name] == pytest.approx(value, rel=2e-5, abs=1e-6), (step, name)
    before = load_file(folder / "small/model.safetensors")
    weights = load_file(folder / "one" / stage / "model/model.safetensors")
    others = load_file(folder / "two" / stage / "model/model.safetensors")
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=0, atol=2e-5, msg=name)
    assert max(float((value - before[name]).abs().max()) for name, value in weights.items()) > 3e-4
