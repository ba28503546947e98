"""The command line as a whole: help, versions, the commands of others, and how it fails."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.command_line import COMMAND, environment, run, run_in_terminal

from sr_edge import __version__, commands
from sr_edge.errors import ContextFullError, MarkerError, RemoteError, UsageError

LOADED = """
import json, sys
from sr_edge.commands import main
try:
    main()
except SystemExit as left:
    code = left.code
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]), file=sys.stderr)
"""
HEAVY = {
    "gguf",
    "httpx",
    "jinja2",
    "llama_cpp",
    "numpy",
    "rich",
    "sr_train",
    "textual",
    "tokenizers",
    "torch",
}


def loaded_by(*arguments: str, env: dict[str, str]) -> tuple[int, set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, env=environment(**env)
    )
    code, modules = json.loads(done.stderr.splitlines()[-1])
    return code, set(modules)


@pytest.fixture
def others(tmp_path: Path) -> dict[str, str]:
    """An environment in which two more packages are installed: one brings a command, one a broken one."""
    (tmp_path / "guest_command.py").write_text(
        "import typer\napp = typer.Typer()\n@app.command()\ndef main(name: str):\n    print('hello', name)\n"
    )
    (tmp_path / "sr_train_stub.py").write_text("import torch_that_is_not_here\n")
    for package, entry in (("guest", "greet = guest_command:app"), ("trainer", "train = sr_train_stub:app")):
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[sr_edge.commands]\n{entry}\n")
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}


# --- help --------------------------------------------------------------------------------------------


def test_help_lists_the_commands_of_others_without_importing_them(others: dict[str, str]) -> None:
    code, modules = loaded_by("--help", env=others)
    assert code == 0
    assert not modules & (HEAVY | {"guest_command", "sr_train_stub"})
    text = run("-h", env=others).stdout
    assert [name in text for name in ("ask", "replay", "eval", "train", "greet")] == [True] * 5
    assert "From the package guest." in text


@pytest.mark.parametrize("command", ["ask", "replay", "eval"])
def test_the_list_says_of_a_command_what_its_own_help_says(command: str) -> None:
    promise = commands.Promise(command, commands._OWN[command][1])
    assert promise.load().help.splitlines()[0] == promise.help
    assert promise.load().name == command


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"sr-edge {__version__}\n")


# --- the commands of others --------------------------------------------------------------------------


def test_a_command_of_another_package_runs(others: dict[str, str]) -> None:
    done = run("greet", "Ida", env=others)
    assert (done.returncode, done.stdout) == (0, "hello Ida\n")


def test_a_missing_extra_says_what_to_install(others: dict[str, str]) -> None:
    done = run("train", "demo", env=others)
    assert done.returncode == 2
    assert (
        done.stderr == "sr-edge: `sr-edge train` needs torch_that_is_not_here: pip install 'sr-edge[train]'\n"
    )


# --- failing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--nonsense"], ["nonsense"], [], ["ask", "--nonsense"], ["replay"]])
def test_wrong_usage_is_exit_2_and_shows_the_usage(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: sr-edge" in done.stderr
    assert "Traceback" not in done.stderr


def fails_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def app(prog_name: str) -> None:
        raise error

    monkeypatch.setattr(commands, "app", app)
    with pytest.raises(SystemExit) as left:
        commands.main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ContextFullError("the context is full"), 1),
        (UsageError("which file?"), 2),
        (RemoteError("gone"), 3),
        (MarkerError("no marker"), 4),
    ],
)
def test_an_error_is_one_line_and_its_code(error, code, monkeypatch, capsys) -> None:
    assert fails_with(error, monkeypatch) == code
    assert capsys.readouterr().err == f"sr-edge: {error}\n"


def test_an_error_of_ours_is_owned(monkeypatch, capsys) -> None:
    monkeypatch.delenv("SR_EDGE_TRACEBACK", raising=False)
    assert fails_with(ZeroDivisionError("division by zero\x1b[2J"), monkeypatch) == 1
    line = capsys.readouterr().err
    assert line.startswith("sr-edge: ZeroDivisionError: division by zero. This is a bug; run with SR_EDGE_")
    assert len(line.splitlines()) == 1


def test_an_error_of_ours_is_shown_on_request(monkeypatch) -> None:
    monkeypatch.setenv("SR_EDGE_TRACEBACK", "1")
    monkeypatch.setattr(commands, "app", lambda prog_name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        commands.main()


def test_ctrl_c_is_130(monkeypatch) -> None:
    assert fails_with(KeyboardInterrupt(), monkeypatch) == 130


def test_a_second_ctrl_c_does_not_wait() -> None:
    code = """
import os, signal, time
from sr_edge.commands.interrupt import Interrupt
with Interrupt() as interrupt:
    assert not interrupt()
    os.kill(os.getpid(), signal.SIGINT)
    assert interrupt()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), timeout=30)
    assert done.returncode == 130


def test_after_an_answer_ctrl_c_means_what_it_meant() -> None:
    from sr_edge.commands.interrupt import Interrupt

    before = signal.getsignal(signal.SIGINT)
    with Interrupt():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


# --- streams -----------------------------------------------------------------------------------------


def shell(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = script.replace("sr-edge", " ".join(COMMAND))
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=environment(**env)
    )


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = shell("sr-edge eval --print-problems 3000 | head -1")
    assert len(done.stdout.splitlines()) == 1
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_is_one_line() -> None:
    done = shell("sr-edge eval --print-problems 1 > /dev/full")
    assert (done.returncode, done.stderr) == (1, "sr-edge: cannot write: No space left on device\n")


def test_closed_streams_are_no_error() -> None:
    assert shell("sr-edge eval --print-problems 1 >&- 2>&-").returncode == 0


def test_a_terminal_gets_help_without_escape_codes() -> None:
    code, text = run_in_terminal("ask", "--help", columns=60)
    assert code == 0
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 60


def test_a_signal_is_heard_while_native_code_computes():
    """In a process of its own: a call into C that lasts until somebody ends it, as a long prompt does."""
    program = """
import ctypes, os, signal, threading
from sr_edge.commands.interrupt import Interrupt

libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
libc.pthread_mutex_init(mutex, None)
libc.pthread_mutex_lock(mutex)
with Interrupt() as interrupt, interrupt.ending(lambda: libc.pthread_mutex_unlock(mutex)):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    libc.pthread_mutex_lock(mutex)  # until somebody unlocks it
    print(interrupt())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
