"""Tab in a shell: the real protocol, in another process, and a real bash where there is one."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.command_line import COMMAND, call, environment, run
from tests.tiny_gguf import write_tiny_gguf

HEAVY = {"httpcore", "httpx", "jinja2", "llama_cpp", "numpy", "rich", "textual", "torch"}
URL = "https://lab.example/v1"


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"SR_EDGE_HOME": str(tmp_path / "home")}


@pytest.fixture
def stocked(tmp_path: Path, home: dict[str, str]) -> dict[str, str]:
    """Two models on the shelf, two remotes set up."""
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf")
    for name in ("small-q4", "small-q8"):
        call("models", "import", tiny, "--link", "--name", name, env=home)
    for name in ("lab", "lamp"):
        call("remote", "add", name, URL, env=home)
    return home


def pressed(line: str, shell: str = "bash") -> dict[str, str]:
    """What a shell tells the program when Tab is pressed at the end of the line."""
    said = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    return {**said, "_SR_EDGE_COMPLETE": f"complete_{shell}"}


def asked(line: str, env: dict[str, str], shell: str) -> str:
    done = run(env={**env, **pressed(line, shell)})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def completed(line: str, env: dict[str, str]) -> list[str]:
    """As bash gets it, within this process."""
    done = call(env={**env, **pressed(line)})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines() if done.stdout.strip() else []


def test_commands_are_completed(home: dict[str, str]) -> None:
    assert asked("sr-edge mo", home, "bash") == "models\n"
    assert completed("sr-edge mo", home) == ["models"]
    assert {"ask", "replay", "models", "remote", "keys", "config", "doctor"} <= {*completed("sr-edge ", home)}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("sr-edge models ", ["list", "show", "path", "default", "import", "pull", "verify", "rm"]),
        ("sr-edge remote te", ["test"]),
        ("sr-edge ask --poli", ["--policy"]),
        ("sr-edge ask --policy l", ["local"]),
        ("sr-edge ask --spans m", ["marks"]),
        ("sr-edge models import --li", ["--link"]),
        ("sr-edge doctor --on", ["--online"]),
        ("sr-edge --install-completion ", ["bash", "zsh", "fish"]),
        ("sr-edge ask 'unclosed", []),
        ("sr-edge ask --events ", []),  # the shell's own: files
    ],
)
def test_what_is_loaded_late_is_completed_too(line: str, found: list[str], home: dict[str, str]) -> None:
    assert completed(line, home) == found


@pytest.mark.parametrize(
    "line",
    [
        "sr-edge models show ",
        "sr-edge models default ",
        "sr-edge models rm sm",
        "sr-edge ask -m ",
        "sr-edge ask --model s",
    ],
)
def test_names_of_models_are_completed(line: str, stocked: dict[str, str]) -> None:
    assert completed(line, stocked) == ["small-q4", "small-q8"]


@pytest.mark.parametrize(
    "line", ["sr-edge ask -r la", "sr-edge remote test ", "sr-edge remote rm l", "sr-edge keys set la"]
)
def test_names_of_remotes_are_completed(line: str, stocked: dict[str, str]) -> None:
    assert completed(line, stocked) == ["lab", "lamp"]


def test_zsh_and_fish_are_told_the_same(stocked: dict[str, str]) -> None:
    assert re.findall(r'"([^"]+)"', asked("sr-edge models show sm", stocked, "zsh")) == [
        "small-q4",
        "small-q8",
    ]
    assert asked("sr-edge models show sm", stocked, "fish").split() == ["small-q4", "small-q8"]
    assert "models\tThe models on this machine" in asked("sr-edge mod", stocked, "fish")


def test_a_file_with_a_name_that_a_shell_could_run_is_not_offered(stocked: dict[str, str]) -> None:
    shelf = Path(stocked["SR_EDGE_HOME"]) / "models"
    for name in ("$(touch owned)", "`touch owned`", "a;b", "a b", "-rf", "a'b", 'a"b', "\x1b[2J", "a\nb"):
        (shelf / f"{name}.gguf").write_bytes(b"")
    assert completed("sr-edge models show ", stocked) == ["small-q4", "small-q8"]
    for shell in ("zsh", "fish"):
        said = asked("sr-edge models show ", stocked, shell)
        assert re.findall(r"[\w-]+", said.replace("_arguments", "")) == ["small-q4", "small-q8"]


def test_wrong_settings_complete_to_nothing(stocked: dict[str, str]) -> None:
    (Path(stocked["SR_EDGE_HOME"]) / "config.toml").write_text("this is [no TOML")
    assert completed("sr-edge ask -r ", stocked) == []
    assert completed("sr-edge models show ", stocked) == ["small-q4", "small-q8"]


# --- what it loads -----------------------------------------------------------------------------------


def loaded(*arguments: str, env: dict[str, str]) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], *arguments],
        capture_output=True,
        text=True,
        env=environment(**env),
    )
    assert done.returncode == 0
    return packages(done.stderr)


def packages(report: str) -> set[str]:
    """Of a report of `-X importtime`, the top-level names."""
    lines = [
        line.rpartition("|")[2].strip() for line in report.splitlines() if line.startswith("import time:")
    ]
    return {line.partition(".")[0] for line in lines}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["--show-completion", "bash"], ["models", "path"]]
)
def test_a_start_loads_nothing_heavy(arguments: list[str], stocked: dict[str, str]) -> None:
    found = loaded(*arguments, env=stocked)
    assert "typer" in found
    assert not found & (HEAVY - {"rich"})


@pytest.mark.parametrize(
    "line",
    ["sr-edge ", "sr-edge models show ", "sr-edge ask --policy ", "sr-edge ask -m ", "sr-edge remote test "],
)
def test_a_press_of_tab_loads_nothing_heavy(line: str, stocked: dict[str, str]) -> None:
    found = loaded(env={**stocked, **pressed(line)})
    assert not found & HEAVY


# --- installing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shell", "file", "settings"),
    [
        ("bash", ".bash_completions/sr-edge.sh", ".bashrc"),
        ("zsh", ".zfunc/_sr-edge", ".zshrc"),
        ("fish", ".config/fish/completions/sr-edge.fish", None),
    ],
)
def test_it_is_installed_for_each_shell(
    shell: str, file: str, settings: str | None, tmp_path: Path, home: dict[str, str]
) -> None:
    if settings:
        (tmp_path / settings).write_text("export MINE=1\n")
    env = {**home, "HOME": str(tmp_path)}
    done = call("--install-completion", shell, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{tmp_path / file} is written" in done.stdout
    assert call("--show-completion", shell, env=env).stdout.strip() == (tmp_path / file).read_text().strip()
    assert "_SR_EDGE_COMPLETE" in (tmp_path / file).read_text()
    if settings:
        assert (tmp_path / settings).read_text().startswith("export MINE=1\n")


def test_without_a_name_it_is_the_users_own_shell(tmp_path: Path, home: dict[str, str]) -> None:
    own = call("--show-completion", env={**home, "SHELL": "/usr/local/bin/fish"}).stdout
    assert own == call("--show-completion", "fish", env=home).stdout


@pytest.mark.parametrize(
    ("arguments", "shell"), [(["tcsh"], "/bin/bash"), ([], "/bin/tcsh"), ([], ""), (["\x1b[2J"], "")]
)
def test_a_shell_that_is_not_known_is_one_line(
    arguments: list[str], shell: str, home: dict[str, str]
) -> None:
    done = call("--install-completion", *arguments, env={**home, "SHELL": shell})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sr-edge: ")
    assert done.stderr.endswith("name one of bash, zsh, fish\n")
    assert "\x1b" not in done.stderr


def test_settings_of_a_shell_that_cannot_be_written_are_one_line(
    tmp_path: Path, home: dict[str, str]
) -> None:
    (tmp_path / ".bash_completions").write_text("")
    done = call("--install-completion", "bash", env={**home, "HOME": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr.startswith(f"sr-edge: {tmp_path}/.bash_completions")
    assert "--show-completion bash" in done.stderr


def test_to_complete_after_the_option_installs_nothing(tmp_path: Path, home: dict[str, str]) -> None:
    completed("sr-edge --install-completion bash ", {**home, "HOME": str(tmp_path)})
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_real_bash_completes(tmp_path: Path, stocked: dict[str, str]) -> None:
    program = tmp_path / "bin" / "sr-edge"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    env = environment(**stocked, HOME=str(tmp_path))
    env["PATH"] = f"{program.parent}:{env['PATH']}"
    call("--install-completion", "bash", env={**stocked, "HOME": str(tmp_path)})
    script = (
        f"source {tmp_path}/.bashrc; "
        "COMP_WORDS=(sr-edge models show sm); COMP_CWORD=3; "
        '_sr_edge_completion sr-edge; echo "${COMPREPLY[@]}"; complete -p sr-edge'
    )
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, env=env)
    assert done.stdout.splitlines() == [
        "small-q4 small-q8",
        "complete -o default -F _sr_edge_completion sr-edge",
    ], done.stderr
