"""`sr-edge models`: the shelf as a user sees it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.command_line import COMMAND, TIMEOUT, call, environment, run, run_in_terminal, run_interrupted
from tests.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(
        tmp_path_factory.mktemp("gguf") / "tiny.gguf", metadata={"general.license": "apache-2.0"}
    )


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"SR_EDGE_HOME": str(tmp_path / "home")}


def shelf(home: dict[str, str]) -> Path:
    return Path(home["SR_EDGE_HOME"]) / "models"


def files(home: dict[str, str]) -> list[str]:
    return sorted(path.name for path in shelf(home).iterdir() if path.suffix != ".lock")


def test_an_empty_shelf_says_how_to_get_a_model(home: dict[str, str]) -> None:
    done = call("models", env=home)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].split()[:2] == ["*", "built-in"]
    assert "sr-edge models import FILE.gguf" in done.stderr


def test_a_model_is_imported_listed_shown_and_removed(tiny: Path, home: dict[str, str]) -> None:
    done = call("models", "import", tiny, env=home)
    assert (done.returncode, done.stderr) == (0, "")
    assert "to use it: sr-edge ask -m tiny" in done.stdout
    rows = [line.split() for line in call("models", "list", env=home).stdout.splitlines()]
    assert rows[1] == ["tiny", "445.1", "kB", "32.5", "bits", "a", "weight", "qwen2", "512", "yes"]
    shown = dict(line.split(None, 1) for line in call("models", "show", "tiny", env=home).stdout.splitlines())
    assert shown["kind"] == "qwen2"
    assert shown["licence"] == "apache-2.0"
    assert shown["file"] == str(shelf(home) / "tiny.gguf")
    assert shown["markers"].startswith("control tokens")
    assert call("models", "path", "tiny", env=home).stdout == f"{shelf(home) / 'tiny.gguf'}\n"
    assert call("models", "path", env=home).stdout == f"{shelf(home)}\n"
    done = call("models", "rm", "tiny", "--yes", env=home)
    assert (done.returncode, done.stdout) == (0, "tiny is removed\n")
    assert files(home) == []


def test_json_is_what_the_table_is(tiny: Path, home: dict[str, str]) -> None:
    call("models", "import", tiny, "--default", env=home)
    (model,) = json.loads(call("models", "list", "--json", env=home).stdout)
    assert (model["name"], model["default"], model["architecture"]) == ("tiny", True, "qwen2")
    assert model["passport"]["source"] == str(tiny)
    shown = json.loads(call("models", "show", "--json", env=home).stdout)
    assert shown == {name: model[name] for name in shown}


def test_a_damaged_model_is_listed_with_its_problem(tiny: Path, home: dict[str, str]) -> None:
    call("models", "import", tiny, env=home)
    os.truncate(shelf(home) / "tiny.gguf", 1000)
    done = call("models", env=home)
    assert done.returncode == 0
    assert "the file ends inside its own metadata" in done.stdout
    (model,) = json.loads(call("models", "list", "--json", env=home).stdout)
    assert "download is incomplete" in model["problem"]
    assert call("models", "show", "tiny", env=home).returncode == 4


def test_hostile_names_in_a_file_do_nothing_to_the_terminal(tmp_path: Path, home: dict[str, str]) -> None:
    path = write_tiny_gguf(
        tmp_path / "x.gguf",
        metadata={"general.license": "\x1b[2Jfree\n\x07", "general.base_model.0.name": "\x9b1m"},
    )
    call("models", "import", path, env=home)
    done = call("models", "show", "x", env=home)
    assert "licence     free" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert "\x1b" not in call("models", "show", "x", "--json", env=home).stdout


# --- the default -------------------------------------------------------------------------------------


def test_the_default_is_a_setting(tiny: Path, home: dict[str, str]) -> None:
    call("models", "import", tiny, env=home)
    assert call("models", "default", env=home).stdout == "built-in\n"
    assert call("models", "default", "tiny", env=home).stdout == "tiny is the default\n"
    assert call("models", "default", env=home).stdout == "tiny\n"
    assert call("config", "get", "model", env=home).stdout == f"{shelf(home) / 'tiny.gguf'}\n"
    assert [line.split()[0] for line in call("models", env=home).stdout.splitlines()[1:]] == ["*", "built-in"]
    assert call("models", "default", "none", env=home).stdout == "the built-in pair is the default\n"
    assert call("models", "default", env=home).stdout == "built-in\n"


def test_a_file_elsewhere_can_be_the_default(tiny: Path, home: dict[str, str]) -> None:
    assert call("models", "default", tiny, env=home).returncode == 0
    assert call("models", "default", env=home).stdout == f"{tiny}\n"
    assert f"the default is {tiny}, which is not on the shelf" in call("models", env=home).stdout


def test_what_is_no_model_does_not_become_the_default(tmp_path: Path, home: dict[str, str]) -> None:
    (tmp_path / "x.gguf").write_text("404: not found")
    assert call("models", "default", tmp_path / "x.gguf", env=home).returncode == 4
    assert call("models", "default", "nothing", env=home).returncode == 4
    assert call("models", "default", env=home).stdout == "built-in\n"


def test_the_environment_comes_before_the_default(tiny: Path, home: dict[str, str]) -> None:
    done = call("models", "default", tiny, env={**home, "SR_EDGE_MODEL": "/other.gguf"})
    assert "but env SR_EDGE_MODEL comes first, and says /other.gguf" in done.stderr


def test_to_remove_the_default_makes_the_built_in_pair_it(tiny: Path, home: dict[str, str]) -> None:
    call("models", "import", tiny, "--default", env=home)
    done = call("models", "rm", "tiny", "-y", env=home)
    assert done.stdout == "tiny is removed; the built-in pair is the default now\n"
    assert call("models", "default", env=home).stdout == "built-in\n"


def test_a_default_that_is_gone_does_not_stop_the_list(tiny: Path, home: dict[str, str]) -> None:
    call("models", "import", tiny, "--default", env=home)
    (shelf(home) / "tiny.gguf").unlink()
    done = call("models", env=home)
    assert done.returncode == 0
    assert "which is not on the shelf" in done.stdout
    assert call("models", "show", env=home).returncode == 4


# --- verify ------------------------------------------------------------------------------------------


def test_verify_compares_with_the_passport(tiny: Path, home: dict[str, str]) -> None:
    call("models", "import", tiny, env=home)
    done = call("models", "verify", "tiny", env=home)
    assert (done.returncode, done.stdout.splitlines()[1]) == (0, "the file is whole, and the one that came")
    path = shelf(home) / "tiny.gguf"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = call("models", "verify", "tiny", env=home)
    assert done.returncode == 4
    assert "its sha256 is another" in done.stderr
    verdict = json.loads(call("models", "verify", "tiny", "--json", env=home).stdout)
    assert (verdict["ok"], verdict["sha256"] == verdict["expected"]) == (False, False)


def test_verify_says_where_there_is_nothing_to_compare_with(tiny: Path, home: dict[str, str]) -> None:
    done = call("models", "verify", tiny, env=home)
    assert done.returncode == 0
    assert "it has no passport" in done.stdout


def test_the_built_in_pair_is_the_one_that_came(home: dict[str, str]) -> None:
    assert call("models", "verify", env=home).stdout.endswith("and the one that came\n")
    assert "sr-edge demo small" in call("models", "show", "built-in", env=home).stdout


# --- wrong usage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["import", "missing.gguf"], 4),
        (["import", "."], 4),
        (["import", __file__], 4),
        (["import", "/dev/null"], 4),
        (["show", "missing"], 4),
        (["show", "\x1b[31mred"], 4),
        (["verify", "missing"], 4),
        (["path", "missing"], 4),
        (["default", "missing"], 4),
        (["rm", "missing"], 2),
        (["rm", "missing", "--yes"], 2),
    ],
)
def test_what_is_not_there_is_one_line(arguments: list[str], code: int, home: dict[str, str]) -> None:
    done = call("models", *arguments, env=home)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("sr-edge: ")
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr


def test_a_file_of_settings_that_is_wrong_is_one_line(tiny: Path, home: dict[str, str]) -> None:
    Path(home["SR_EDGE_HOME"]).mkdir()
    (Path(home["SR_EDGE_HOME"]) / "config.toml").write_text("modle = 1\n")
    done = call("models", "default", tiny, env=home)
    assert done.returncode == 2
    assert 'config.toml:1: unknown key "modle"; did you mean "model"?' in done.stderr


def test_nothing_is_removed_where_nobody_can_be_asked(tiny: Path, home: dict[str, str]) -> None:
    call("models", "import", tiny, env=home)
    done = call("models", "rm", "tiny", stdin="y\n", env=home)
    assert done.returncode == 2
    assert "sr-edge models rm tiny --yes" in done.stderr
    assert files(home) == ["tiny.gguf", "tiny.json"]


# --- in a terminal -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "left"), [(b"y\n", []), (b"\n", ["tiny.gguf", "tiny.json"])])
def test_to_remove_is_asked_for(typed: bytes, left: list[str], tiny: Path, home: dict[str, str]) -> None:
    call("models", "import", tiny, env=home)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "models", "rm", "tiny"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(**home),
    )
    os.close(theirs)
    os.write(ours, typed)
    assert process.wait(TIMEOUT) == 0
    os.close(ours)
    assert files(home) == left


def long_file(tiny: Path, tmp_path: Path, size: int) -> Path:
    path = tmp_path / "long.gguf"
    path.write_bytes(tiny.read_bytes())
    os.truncate(path, size)  # a file with a hole: large, and takes no room
    return path


def test_a_terminal_sees_how_far_it_is_and_then_the_result_alone(
    tiny: Path, tmp_path: Path, home: dict[str, str]
) -> None:
    path = long_file(tiny, tmp_path, 600 << 20)
    code, shown = run_in_terminal("models", "import", path, "--link", columns=60, env=home)
    assert code == 0
    *drawn, result = shown.split("\n")[0].split("\r")
    assert result.startswith("long: 629.1 MB, a link to it is")
    assert any("% of 629.1 MB" in line for line in drawn)
    assert max(map(len, drawn)) < 60


def test_no_bar_goes_into_a_file(tiny: Path, tmp_path: Path, home: dict[str, str]) -> None:
    done = run("models", "import", long_file(tiny, tmp_path, 200 << 20), "--link", env=home)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\r" not in done.stdout


def test_ctrl_c_leaves_nothing(tiny: Path, tmp_path: Path, home: dict[str, str]) -> None:
    path = long_file(tiny, tmp_path, 1 << 30)

    def is_copying() -> bool:
        return shelf(home).exists() and any(part.suffix == ".part" for part in shelf(home).iterdir())

    done = run_interrupted("models", "import", path, when=is_copying, env=home)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert files(home) == []


def test_what_a_kill_leaves_is_no_model(tiny: Path, tmp_path: Path, home: dict[str, str]) -> None:
    path = long_file(tiny, tmp_path, 1 << 30)

    def is_copying() -> bool:
        return shelf(home).exists() and any(part.suffix == ".part" for part in shelf(home).iterdir())

    run_interrupted("models", "import", path, when=is_copying, number=signal.SIGKILL, env=home)
    assert json.loads(call("models", "list", "--json", env=home).stdout) == []
    for part in shelf(home).iterdir():
        os.utime(part, (time.time() - 7200,) * 2)
    call("models", "import", tiny, env=home)
    assert files(home) == ["tiny.gguf", "tiny.json"]
