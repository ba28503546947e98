"""`sr-edge train evaluate`: what it refuses, and that it does not go on with answers of somebody else."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sr_edge.passport import demo_paths
from sr_train.command import app

PAIR = demo_paths()


def evaluate(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", "demo", "-o", str(folder / "run"), *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-m", "demo:small", "--calibrate"), "needs a GGUF"),
        (("-m", "demo:small", "--big", str(PAIR.big)), "goes with a GGUF"),
        (("-m", str(PAIR.small), "--set", "big.model=elsewhere"), "nobody is there to write the spans"),
        ((), "has trained nothing yet"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = evaluate(tmp_path, *arguments)
    assert done.exit_code != 0
    assert said in str(done.exception) + done.stderr


def test_the_client_tells_its_speeds_and_another_large_model_is_another_evaluation(tmp_path: Path) -> None:
    few = ("-m", str(PAIR.small), "--limit", "2", "--arm", "small", "--arm", "split")
    done = evaluate(tmp_path, *few, "--calibrate")
    assert done.exit_code == 0, done.output
    _, _, table = done.stdout.partition("[latency]\n")
    assert {line.split(" = ")[0] for line in table.splitlines()} >= {"rtt", "big_decode", "small_decode"}
    other = evaluate(tmp_path, *few, "--big", str(PAIR.small))
    assert "large model was" in str(other.exception) + other.stderr
