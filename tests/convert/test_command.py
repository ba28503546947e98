"""`sr-edge convert` as a user meets it: names that need quotes, options that exclude each other."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from tests import command_line
from tests.convert.adapting import make_adapter
from tests.convert.making import make_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's, about what is its own business


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base") / "my model", layers=1)


def hint(stdout: str) -> str:
    """What it says to type next."""
    (line,) = (line for line in stdout.splitlines() if line.startswith("to use it: "))
    return line.removeprefix("to use it: ")


def test_what_it_says_to_type_can_be_typed(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "the 'best' 100% $model.gguf"
    done = command_line.call("convert", str(checkpoint), "-o", str(out), "--type", "f16")
    assert done.returncode == 0, done.stderr
    asking, importing = hint(done.stdout).split("; by a name: ")
    assert shlex.split(asking) == ["sr-edge", "ask", "-m", str(out), "PROBLEM"]
    assert shlex.split(importing) == ["sr-edge", "models", "import", str(out)]
    adapter = make_adapter(checkpoint, tmp_path / "adapter")
    out = tmp_path / "my adapter.gguf"
    done = command_line.call(
        "convert", str(checkpoint), "--lora", str(adapter), "--as-adapter", "-o", str(out)
    )
    assert done.returncode == 0, done.stderr
    assert str(out) in shlex.split(hint(done.stdout))


@pytest.mark.parametrize(
    "option", ["--add-markers", "--text-markers", "--tau=0.5", "--imatrix=m", "--verify"]
)
def test_an_adapter_alone_takes_no_options_of_a_model(checkpoint: Path, tmp_path: Path, option: str) -> None:
    done = command_line.call("convert", str(checkpoint), "--lora", str(tmp_path), "--as-adapter", option)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{option.partition('=')[0]} is for a whole model" in done.stderr
