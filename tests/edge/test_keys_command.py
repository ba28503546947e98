"""`sr-edge keys`, as a user and as a script meet it."""

import json
import os
import pty
import select
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import keyring
import keyring.backends.fail
import pytest
from tests.command_line import COMMAND, call, environment

CANARY = "sk-canary-0123456789abcdef"
ORIGIN = "https://api.example.com:443"


@pytest.fixture(autouse=True)
def no_store() -> Iterator[None]:
    """This machine's own key store is left alone."""
    before = keyring.get_keyring()
    keyring.set_keyring(keyring.backends.fail.Keyring())
    yield
    keyring.set_keyring(before)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    done = call("remote", "add", "lab", "https://api.example.com/v1", env={"SR_EDGE_HOME": str(tmp_path)})
    assert done.returncode == 0
    return {"SR_EDGE_HOME": str(tmp_path), "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}


def everything_in(folder: Path) -> str:
    return "".join(
        path.read_text() for path in folder.rglob("*") if path.is_file() and path.name != "keys.json"
    )


def test_a_piped_key_is_kept_and_shown_by_its_end_only(env: dict[str, str], tmp_path: Path) -> None:
    done = call("keys", "set", "lab", stdin=f"\ufeff{CANARY}\r\n", env=env)
    path = tmp_path / "keys.json"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"the key of lab (•••cdef) is in {path}, for {ORIGIN} only\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    shown = call("keys", env=env)
    assert shown.stdout.split() == ["remote", "from", "which", "key", "lab", "file", ORIGIN, "•••cdef"]
    told = json.loads(call("keys", "list", "--json", env=env).stdout)
    assert told == [{"remote": "lab", "from": "file", "detail": ORIGIN, "masked": "•••cdef", "problem": None}]
    for arguments in (["remote", "list"], ["remote", "list", "--json"], ["config", "show", "--json"]):
        assert CANARY not in "".join(call(*arguments, env=env).stdout)
    assert CANARY not in everything_in(tmp_path)
    assert call("keys", "rm", "lab", env=env).stdout == "the key of lab is forgotten\n"
    assert CANARY not in path.read_text()


def test_a_typed_key_does_not_show(env: dict[str, str], tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "keys", "set", "lab"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**env),
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    got = b""
    while b"example.com:443: " not in got and select.select([ours], [], [], 30)[0]:
        got += os.read(ours, 1000)
    os.write(ours, f"{CANARY}\n".encode())
    try:
        while select.select([ours], [], [], 30)[0]:
            piece = os.read(ours, 1000)
            if not piece:
                break
            got += piece
    except OSError:
        pass  # how the end of a terminal looks on Linux
    os.close(ours)
    assert process.wait(30) == 0
    assert f"Key of lab for {ORIGIN}: ".encode() in got
    assert CANARY.encode() not in got
    assert CANARY in (tmp_path / "keys.json").read_text()


@pytest.mark.parametrize("words", [[CANARY], [f"--key={CANARY}"], ["--key", CANARY], ["-k", CANARY]])
def test_a_key_on_the_command_line_is_refused_and_not_repeated(words: list[str], env: dict[str, str]) -> None:
    done = call("keys", "set", "lab", *words, stdin="other-key", env=env)
    assert done.returncode == 2
    assert "stays in the shell's history" in done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("stdin", "line"),
    [
        (b"", "no key came"),
        (b" \n", "no key came"),
        (f"{CANARY} {CANARY}".encode(), "the API key holds a space"),
        (b"\xff\xfe\x00", "it is no text"),
        (b"x" * 100_000, "too long"),
    ],
)
def test_what_is_no_key_is_a_line(stdin: bytes, line: str, env: dict[str, str], tmp_path: Path) -> None:
    done = call("keys", "set", "lab", stdin=stdin, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert line in done.stderr
    assert CANARY not in done.stderr
    assert not (tmp_path / "keys.json").exists()


def test_a_key_needs_a_remote(env: dict[str, str]) -> None:
    done = call("keys", "set", "lap", stdin=CANARY, env=env)
    assert (done.returncode, done.stderr) == (2, 'sr-edge: there is no remote "lap"; did you mean "lab"?\n')
    done = call("keys", "rm", "lab", env=env)
    assert (done.returncode, done.stderr) == (
        2, "sr-edge: no key is kept for lab; `sr-edge keys list` shows which are\n",
    )  # fmt: skip


def test_a_setting_that_comes_first_is_named(env: dict[str, str]) -> None:
    call("config", "set", "remotes.lab.api_key_env", "LAB_KEY", env=env)
    done = call("keys", "set", "lab", stdin=CANARY, env=env)
    assert done.returncode == 0
    assert "the api_key_env of lab comes first" in done.stderr
    shown = call("keys", env=env).stdout
    assert "LAB_KEY" in shown
    assert "not set" in shown


def test_a_moved_remote_is_told(env: dict[str, str]) -> None:
    call("keys", "set", "lab", stdin=CANARY, env=env)
    call("config", "set", "remotes.lab.url", "https://elsewhere.example/v1", env=env)
    assert "the remote is now at https://elsewhere.example:443" in call("keys", env=env).stdout


def test_a_file_that_others_can_read_is_a_line(env: dict[str, str], tmp_path: Path) -> None:
    call("keys", "set", "lab", stdin=CANARY, env=env)
    (tmp_path / "keys.json").chmod(0o644)
    for arguments in (["keys"], ["keys", "set", "lab"], ["keys", "rm", "lab"], ["remote"]):
        done = call(*arguments, stdin=CANARY, env=env)
        assert done.returncode == 2
        assert "chmod 600" in done.stderr


def test_offline_says_who_said_so(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(f'{{"keys": {{"lab": {{"origin": "{ORIGIN}"}}}}}}')
    (tmp_path / "keys.json").chmod(0o600)
    for arguments in (["keys", "set", "lab"], ["keys", "rm", "lab"], ["remote", "rm", "lab"]):
        done = call(*arguments, stdin=CANARY, env={**env, "SR_EDGE_OFFLINE": "1"})
        assert done.returncode == 2
        assert done.stderr.startswith(
            "sr-edge: offline (env SR_EDGE_OFFLINE): the key of lab is in the system's"
        )


def test_path(env: dict[str, str], tmp_path: Path) -> None:
    assert call("keys", "path", env=env).stdout == f"{tmp_path / 'keys.json'}\n"


def test_without_remotes_the_list_says_what_to_do(tmp_path: Path) -> None:
    done = call("keys", env={"SR_EDGE_HOME": str(tmp_path)})
    assert (done.returncode, done.stdout) == (0, "")
    assert "`sr-edge remote add NAME URL`" in done.stderr
