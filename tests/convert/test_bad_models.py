"""A model that cannot work is one clear line and an exit code, and the program lives."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import command_line
from tests.convert.bad_models import CHECKPOINTS, GGUFS, Case

CASES = {f"{kind}: {case.name}": case for kind, cases in (("gguf", GGUFS), ("checkpoint", CHECKPOINTS))
         for case in cases}  # fmt: skip


@pytest.fixture(scope="module")
def lines() -> dict[str, str]:
    """What was said of each, with the path left out."""
    return {}


@pytest.mark.parametrize("name", CASES)
def test_it_is_one_clear_line(name: str, tmp_path: Path, lines: dict[str, str]) -> None:
    """Commands run in this process: were llama.cpp to abort one, there would be no report of this test."""
    case: Case = CASES[name]
    made = case.make(tmp_path)
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    arguments = [argument.replace("{}", str(made)) for argument in case.command]
    done = command_line.call(*arguments, env={"SR_EDGE_HOME": str(tmp_path / "home")})
    assert (done.returncode, done.stdout) == (case.code, "")
    assert done.stderr.startswith("sr-edge: ")
    assert done.stderr.count("\n") == 1
    assert case.says in done.stderr
    after = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if "home" not in path.parts}
    assert after == before, "something was left behind"
    lines[name] = done.stderr.replace(str(tmp_path), "")


def test_no_two_say_the_same(lines: dict[str, str]) -> None:
    same = {
        name: other
        for name, line in lines.items()
        for other in lines
        if other < name and lines[other] == line
    }
    assert not same
