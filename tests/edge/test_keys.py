"""Keys: where they come from, whom they are for, and that nothing shows them."""

import contextlib
import copy
import dataclasses
import json
import logging
import multiprocessing
import os
import pickle
import stat
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keyring
import keyring.backend
import keyring.backends.fail
import keyring.backends.null
import pytest

from sr_edge import keys
from sr_edge.config import RemoteConfig
from sr_edge.config.load import config_of
from sr_edge.errors import UsageError
from sr_edge.files import keys_path
from sr_edge.keys import KnownKey, Secret, find_key, known_keys, origin_of, remove_key, set_key

CANARY = "sk-canary-0123456789abcdef"
URL = "https://api.example.com/v1"


def remote(name: str = "lab", url: str = URL, **more: Any) -> RemoteConfig:
    return RemoteConfig(name, url, **more)


class Store(keyring.backend.KeyringBackend):
    """A key store as systems have them; it may be broken in some way."""

    priority = 5.0

    def __init__(self, broken: str = "") -> None:
        self.kept: dict[tuple[str, str], str] = {}
        self.broken = broken

    def get_password(self, service: str, username: str) -> str | None:
        if self.broken == "get":
            raise RuntimeError(f"locked {CANARY}")
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        if self.broken == "set":
            raise keyring.errors.KeyringError("refused")
        self.kept[service, username] = password[:5] if self.broken == "short" else password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


class PlaintextKeyring(Store):
    __module__ = "keyrings.alt.file"


@pytest.fixture(autouse=True)
def no_store() -> Iterator[None]:
    """This machine's own is left alone."""
    before = keyring.get_keyring()
    keyring.set_keyring(keyring.backends.fail.Keyring())
    yield
    keyring.set_keyring(before)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"SR_EDGE_HOME": str(tmp_path), "PATH": os.environ["PATH"]}


def complaint(remote: RemoteConfig, environ: dict[str, str], **more: Any) -> str:
    with pytest.raises(UsageError) as caught:
        find_key(remote, environ=environ, **more)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert CANARY not in shown
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- a secret ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Holder:
    key: Secret


def test_nothing_but_reveal_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(CANARY)
    logging.getLogger("x").error("%s %r", secret, secret, extra={"key": secret})
    shown = [
        repr(secret),
        str(secret),
        f"{secret}{secret!r}{secret:>30}{[secret]}",
        "{:s} %s".format(secret) % secret,  # noqa: UP032
        repr(Holder(secret)),
        repr(dataclasses.asdict(Holder(secret))["key"].reveal()),
        repr(pickle.dumps(secret)),
        pickle.loads(pickle.dumps(secret)).reveal(),
        copy.copy(secret).reveal(),
        copy.deepcopy(secret).reveal(),
        repr([getattr(secret, name) for name in dir(secret) if name != "masked"]),
        caplog.text,
        repr([record.__dict__ for record in caplog.records]),
    ]
    assert CANARY not in "".join(shown)
    assert "cdef" not in "".join(shown)
    assert shown[:2] == ["***", "***"]
    assert secret.reveal() == CANARY
    with pytest.raises(TypeError):
        vars(secret)
    with pytest.raises(TypeError):
        json.dumps(secret)


def test_secrets_are_equal_if_what_they_hide_is() -> None:
    assert Secret("abc") == Secret("abc")
    assert Secret("abc") != Secret("abd")
    assert Secret("abc") != "abc"
    with pytest.raises(TypeError):
        hash(Secret("abc"))


@pytest.mark.parametrize(
    ("value", "masked"), [("123456789012", "•••"), ("1234567890123", "•••0123"), ("x", "•••")]
)
def test_only_the_end_of_a_long_key_is_told(value: str, masked: str) -> None:
    assert Secret(value).masked == masked


@pytest.mark.parametrize("value", ["", "a b", "a\nb", "a\x00", "schlüssel", "x" * 9000, "a\x1b[2J"])
def test_what_no_key_is_is_refused_unquoted(value: str) -> None:
    with pytest.raises(UsageError) as caught:
        Secret(value)
    assert not value or value not in str(caught.value)


# --- where it comes from -----------------------------------------------------------------------------


def test_no_key_is_no_error(environ: dict[str, str]) -> None:
    assert find_key(remote(), environ=environ) is None


def test_other_programs_variables_are_not_looked_at(environ: dict[str, str]) -> None:
    others = {
        "OPENAI_API_KEY": CANARY,
        "ANTHROPIC_API_KEY": CANARY,
        "SR_EDGE_API_KEY": CANARY,
        "LAB_API_KEY": CANARY,
    }
    assert find_key(remote(), environ=environ | others) is None
    named = remote(api_key_env="OPENAI_API_KEY")
    assert find_key(named, environ=environ | others) == Secret(CANARY)


def test_the_command_comes_first_then_the_variable_then_what_is_kept(environ: dict[str, str]) -> None:
    set_key(remote(), Secret("kept-key"), environ=environ)
    environ["LAB_KEY"] = "variable-key\n"
    command = (sys.executable, "-c", "print('command-key')")
    assert find_key(remote(), environ=environ) == Secret("kept-key")
    assert find_key(remote(api_key_env="LAB_KEY"), environ=environ) == Secret("variable-key")
    both = remote(api_key_env="LAB_KEY", api_key_cmd=command)
    assert find_key(both, environ=environ) == Secret("command-key")


def test_a_variable_that_is_named_and_not_set_is_a_line(environ: dict[str, str]) -> None:
    line = complaint(remote(api_key_env="LAB_KEY"), environ)
    assert line.startswith("the key of lab should be in the variable LAB_KEY, which is not set")
    assert complaint(remote(api_key_env="LAB_KEY"), environ | {"LAB_KEY": " "}) == line


def test_a_variable_that_holds_no_key_is_a_line(environ: dict[str, str]) -> None:
    complaint(remote(api_key_env="LAB_KEY"), environ | {"LAB_KEY": f"{CANARY} {CANARY}"})


# --- a command ---------------------------------------------------------------------------------------


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_command_may_be_one_text(environ: dict[str, str]) -> None:
    command = f"{sys.executable} -c \"print('a-key'); print('not this')\""
    assert find_key(remote(api_key_cmd=command), environ=environ) == Secret("a-key")


def test_no_shell_reads_a_command(environ: dict[str, str], tmp_path: Path) -> None:
    code = "import sys; print('+'.join(sys.argv[1:]))"
    command = f'{sys.executable} -c "{code}" $HOME `id` ;touch {tmp_path}/made'
    found = find_key(remote(api_key_cmd=command), environ=environ)
    assert found == Secret(f"$HOME+`id`+;touch+{tmp_path}/made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (("no-such-program-here", CANARY), "the api_key_cmd of lab (no-such-program-here) is not there"),
        (("/", CANARY), "can't be run: Permission denied"),
        (python(f"print('{CANARY}'); raise SystemExit(3)"), "failed with exit code 3"),
        (python(f"import sys; sys.exit('{CANARY}')"), "failed with exit code 1"),
        (python("pass"), "printed nothing"),
        (python(f"print(); print('{CANARY}')"), "printed nothing"),
        (python(f"print('{CANARY} {CANARY}')"), "printed something on its first line that is no key"),
        (python(f"print('{CANARY}' * 1000)"), "printed something on its first line that is no key"),
        (
            python(r"import os; os.write(1, b'\xff\xfe')"),
            "printed something on its first line that is no key",
        ),
        (f"echo '{CANARY}", "has a quote that nothing closes"),
    ],
)
def test_a_command_that_fails_is_a_line_without_its_output(
    command: str | tuple[str, ...], line: str, environ: dict[str, str]
) -> None:
    assert line in complaint(remote(api_key_cmd=command), environ)


def test_a_command_that_hangs_is_ended(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "COMMAND_SECONDS", 0.3)
    began = time.monotonic()
    line = complaint(
        remote(api_key_cmd=python(f"import time; print('{CANARY}', flush=True); time.sleep(60)")), environ
    )
    assert "was not done within 0.3 s" in line
    assert time.monotonic() - began < 10


def test_a_command_that_prints_without_end_is_not_read_to_it(environ: dict[str, str]) -> None:
    endless = python("while True: print('y' * 100)")
    assert "failed with exit code" in complaint(remote(api_key_cmd=endless), environ)


def test_a_child_that_keeps_the_pipe_open_is_not_waited_for(environ: dict[str, str]) -> None:
    code = "import subprocess, sys; print('a-key', flush=True)\n"
    code += "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'])"
    began = time.monotonic()
    assert find_key(remote(api_key_cmd=python(code)), environ=environ) == Secret("a-key")
    assert time.monotonic() - began < 15


def test_a_command_does_not_read_our_stdin(environ: dict[str, str]) -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"a problem")
    os.close(theirs)
    before = os.dup(0)
    os.dup2(ours, 0)
    try:
        command = python("import sys; print('key' + sys.stdin.read())")
        assert find_key(remote(api_key_cmd=command), environ=environ) == Secret("key")
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(ours)


@pytest.mark.parametrize("end", ["", "; raise SystemExit(1)"])
def test_what_a_command_says_is_passed_on_safe_and_without_the_key(end: str, environ: dict[str, str]) -> None:
    said: list[str] = []
    told = f"\\x1b[2Junlock {CANARY} please\\x07\\n"
    code = f"import sys; print('{CANARY}'); print('{told}', file=sys.stderr){end}"
    with contextlib.suppress(UsageError):
        find_key(remote(api_key_cmd=python(code)), environ=environ, say=said.append)
    assert len(said) == 1
    assert said[0].endswith("unlock *** please")
    assert said[0].isprintable()
    other = "sk-proj-Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MA"
    complaint(remote(api_key_cmd=python(f"import sys; sys.exit('{other}')")), environ, say=said.append)
    assert len(said) == 2
    assert other not in said[1]


def test_a_command_has_the_environment_that_was_given(environ: dict[str, str]) -> None:
    command = python("import os; print(os.environ['MINE'])")
    assert find_key(remote(api_key_cmd=command), environ=environ | {"MINE": "k"}) == Secret("k")


# --- what is kept ------------------------------------------------------------------------------------


def test_a_kept_key_comes_back_and_can_be_forgotten(environ: dict[str, str]) -> None:
    assert set_key(remote(), Secret(CANARY), environ=environ) == "file"
    assert find_key(remote(), environ=environ) == Secret(CANARY)
    assert find_key(remote("desk"), environ=environ) is None
    assert remove_key("lab", environ=environ)
    assert not remove_key("lab", environ=environ)
    assert find_key(remote(), environ=environ) is None
    assert CANARY not in keys_path(environ).read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="permission bits")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_file_that_others_can_read_is_refused(mode: int, environ: dict[str, str]) -> None:
    set_key(remote(), Secret(CANARY), environ=environ)
    path = keys_path(environ)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(mode)
    line = complaint(remote(), environ)
    assert f"can be read by others (mode {mode:o})" in line
    assert f"`chmod 600 {path}`" in line
    path.chmod(0o600)
    assert find_key(remote(), environ=environ) == Secret(CANARY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"keys": []}',
        '{"keys": {"lab": 1}}',
        '{"keys": {"lab": {}}}',
        f'{{"keys": {{"lab": {{"origin": 1, "key": "{CANARY}"}}}}}}',
        f'{{"keys": {{"lab": {{"origin": "https://x:443", "key": "{CANARY} x"}}}}}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_is_a_line(text: str, environ: dict[str, str]) -> None:
    path = keys_path(environ)
    path.touch(0o600)
    path.write_text(text)
    assert f"{path} is damaged" in complaint(remote(), environ)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.org/v1",
        "https://api.example.com:8443/v1",
        "http://api.example.com/v1",
        "http://api.example.com:443/v1",
        "https://api.example.com.evil.org/v1",
    ],
)
def test_a_key_does_not_follow_the_url_to_another_host(url: str, environ: dict[str, str]) -> None:
    set_key(remote(), Secret(CANARY), environ=environ)
    line = complaint(remote(url=url), environ)
    assert "is for https://api.example.com:443" in line
    assert "`sr-edge keys set lab`" in line


@pytest.mark.parametrize(
    "url", ["https://API.example.com/v1", "https://api.example.com:443/v2", "https://api.example.com./", "HTTPS://api.example.com"]
)  # fmt: skip
def test_a_key_stays_where_the_url_only_looks_different(url: str, environ: dict[str, str]) -> None:
    set_key(remote(), Secret(CANARY), environ=environ)
    assert find_key(remote(url=url), environ=environ) == Secret(CANARY)


def test_origins() -> None:
    assert origin_of("http://[::1]:8080/v1") == "http://[::1]:8080"
    assert origin_of("http://localhost/v1") == "http://localhost:80"


def set_many(home: str, name: str, together: Any) -> None:
    together.wait(60)
    for n in range(15):
        set_key(
            remote(f"{name}{n}"),
            Secret(f"key-{n}"),
            environ={"SR_EDGE_HOME": home},
            offline="env SR_EDGE_OFFLINE",
        )


def test_processes_that_set_keys_at_once_lose_none(environ: dict[str, str]) -> None:
    context = multiprocessing.get_context("spawn")
    names = ("a", "b")
    together = context.Barrier(len(names))
    home = environ["SR_EDGE_HOME"]
    processes = [context.Process(target=set_many, args=(home, name, together)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    kept = {key.name for key in known_keys([], environ=environ)}
    assert kept == {f"{name}{n}" for name in names for n in range(15)}


# --- the system's key store --------------------------------------------------------------------------


def test_a_key_goes_to_the_key_store_where_there_is_one(environ: dict[str, str]) -> None:
    store = Store()
    keyring.set_keyring(store)
    assert set_key(remote(), Secret(CANARY), environ=environ) == "keyring"
    assert store.kept == {("sr-edge", "lab"): CANARY}
    assert CANARY not in keys_path(environ).read_text()
    assert find_key(remote(), environ=environ) == Secret(CANARY)
    complaint(remote(url="https://elsewhere.example/v1"), environ)
    assert remove_key("lab", environ=environ)
    assert store.kept == {}


@pytest.mark.parametrize(
    "store",
    [
        keyring.backends.fail.Keyring(),
        keyring.backends.null.Keyring(),
        PlaintextKeyring(),
        Store("set"),
        Store("get"),
        Store("short"),
    ],
    ids=["fail", "null", "plaintext", "refuses", "locked", "forgetful"],
)
def test_a_key_store_that_keeps_nothing_safe_is_passed_over(
    store: keyring.backend.KeyringBackend, environ: dict[str, str]
) -> None:
    keyring.set_keyring(store)
    assert set_key(remote(), Secret(CANARY), environ=environ) == "file"
    assert find_key(remote(), environ=environ) == Secret(CANARY)
    assert remove_key("lab", environ=environ)


def test_without_the_extra_the_file_is_used(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    keyring.set_keyring(Store())
    set_key(remote(), Secret(CANARY), environ=environ)
    monkeypatch.setitem(sys.modules, "keyring", None)
    line = complaint(remote(), environ)
    assert "pip install 'sr-edge[keyring]'" in line
    assert "unlock" not in line
    assert set_key(remote("desk"), Secret("other"), environ=environ) == "file"


@pytest.mark.parametrize("broken", ["get", "gone"])
def test_a_key_store_that_is_locked_is_a_line(broken: str, environ: dict[str, str]) -> None:
    store = Store()
    keyring.set_keyring(store)
    set_key(remote(), Secret(CANARY), environ=environ)
    store.broken = broken
    if broken == "gone":
        store.kept.clear()
    line = complaint(remote(), environ)
    assert "`sr-edge keys set lab` again" in line
    assert ("unlock it" in line) == (broken == "get")


def test_offline_asks_no_key_store(environ: dict[str, str]) -> None:
    store = Store()
    keyring.set_keyring(store)
    assert set_key(remote(), Secret(CANARY), environ=environ, offline="env SR_EDGE_OFFLINE") == "file"
    set_key(remote(), Secret(CANARY), environ=environ)
    with pytest.raises(
        UsageError, match=r"offline \(env SR_EDGE_OFFLINE\): the key of lab is in the system's key store"
    ):
        remove_key("lab", environ=environ, offline="env SR_EDGE_OFFLINE")
    with pytest.raises(
        UsageError, match=r"offline \(env SR_EDGE_OFFLINE\): the key of lab is in the system's key store"
    ):
        set_key(remote(), Secret("other-key"), environ=environ, offline="env SR_EDGE_OFFLINE")
    assert store.kept == {("sr-edge", "lab"): CANARY}


def test_a_new_key_in_the_file_takes_the_old_one_out_of_the_key_store(environ: dict[str, str]) -> None:
    store = Store()
    keyring.set_keyring(store)
    set_key(remote(), Secret("old-key"), environ=environ)
    store.broken = "set"
    assert set_key(remote(), Secret("new-key"), environ=environ) == "file"
    assert store.kept == {}
    assert find_key(remote(), environ=environ) == Secret("new-key")


def test_a_locked_key_store_does_not_keep_a_new_key_out(environ: dict[str, str]) -> None:
    store = Store()
    keyring.set_keyring(store)
    set_key(remote(), Secret("old-key"), environ=environ)
    store.broken = "get"
    assert set_key(remote(), Secret("new-key"), environ=environ) == "file"
    assert find_key(remote(), environ=environ) == Secret("new-key")


# --- a URL from elsewhere ----------------------------------------------------------------------------

KEY_SETTINGS = ['api_key_env = "LAB_KEY"', f'api_key_cmd = "echo {CANARY}"']


def layered(text: str, environ: dict[str, str], profile: str | None = None) -> RemoteConfig:
    environ["LAB_KEY"] = CANARY
    return config_of(text, Path("/home/ida/config.toml"), environ=environ, profile=profile).remote("lab")


@pytest.mark.parametrize("setting", KEY_SETTINGS, ids=["env", "cmd"])
@pytest.mark.parametrize("by", ["profile", "environment"])
def test_a_url_from_elsewhere_does_not_take_the_key_along(
    setting: str, by: str, environ: dict[str, str]
) -> None:
    text = f'[remotes.lab]\nurl = "{URL}"\n{setting}\n[profiles.p.remotes.lab]\n'
    other = "https://elsewhere.example/v1"
    if by == "profile":
        known = layered(text + f'url = "{other}"\n', environ, "p")
    else:
        environ["SR_EDGE_REMOTES__LAB__URL"] = other
        known = layered(text, environ)
    line = complaint(known, environ)
    assert "the key of lab is not sent to https://elsewhere.example:443" in line
    assert ("profile p sets" if by == "profile" else "env SR_EDGE_REMOTES__LAB__URL sets") in line
    assert "(config.toml:3) stands beside https://api.example.com:443" in line
    assert known_keys([known], environ=environ)[0].problem == "not sent to https://elsewhere.example:443"


@pytest.mark.parametrize("setting", KEY_SETTINGS, ids=["env", "cmd"])
@pytest.mark.parametrize(
    ("file", "profile", "variables"),
    [
        (f'url = "{URL}"\nKEY', "", {"URL": "https://API.example.com:443/v2"}),  # the same host
        (f'url = "{URL}"\nKEY', 'url = "https://api.example.com/other"', {}),
        ('url = "https://elsewhere.example"', f'url = "{URL}"\nKEY', {}),  # both from one place
        (f'url = "{URL}"', "KEY", {}),  # the key's setting was put over the URL
        ('url = "https://elsewhere.example"', f'url = "{URL}"', {"API_KEY_ENV": "LAB_KEY"}),
        ("url = 'https://elsewhere.example'\nKEY", "", {"URL": URL, "API_KEY_CMD": f"echo {CANARY}"}),
    ],
)
def test_a_url_that_is_meant_for_the_key_takes_it(
    setting: str, file: str, profile: str, variables: dict[str, str], environ: dict[str, str]
) -> None:
    text = f"[remotes.lab]\n{file}\n[profiles.p.remotes.lab]\n{profile}\n".replace("KEY", setting)
    environ |= {f"SR_EDGE_REMOTES__LAB__{name}": value for name, value in variables.items()}
    found = find_key(layered(text, environ, "p"), environ=environ)
    assert found is not None
    assert found == Secret(CANARY)


def test_a_key_without_a_url_beside_it_goes_nowhere_else(environ: dict[str, str]) -> None:
    text = '[profiles.p.remotes.lab]\napi_key_env = "LAB_KEY"\n'
    environ["SR_EDGE_REMOTES__LAB__URL"] = URL
    assert "(profile p) stands beside no URL" in complaint(layered(text, environ, "p"), environ)


# --- what is told ------------------------------------------------------------------------------------


def test_of_known_keys_the_place_is_told(environ: dict[str, str]) -> None:
    environ["LAB_KEY"] = CANARY
    set_key(remote("kept"), Secret(CANARY), environ=environ)
    set_key(remote("moved"), Secret("short"), environ=environ)
    set_key(remote("gone"), Secret(CANARY), environ=environ)
    keyring.set_keyring(Store())
    set_key(remote("stored"), Secret(CANARY), environ=environ)
    known = known_keys(
        [
            remote("none"),
            remote("named", api_key_env="LAB_KEY"),
            remote("unset", api_key_env="OTHER"),
            remote("command", api_key_cmd=f"/usr/bin/echo {CANARY}"),
            remote("kept"),
            remote("moved", url="https://b.example"),
            remote("stored"),
        ],
        environ=environ,
    )
    origin = "https://api.example.com:443"
    assert known == (
        KnownKey("none", None, ""),
        KnownKey("named", "api_key_env", "LAB_KEY", "•••cdef"),
        KnownKey("unset", "api_key_env", "OTHER", "", "not set"),
        KnownKey("command", "api_key_cmd", "echo"),
        KnownKey("kept", "file", origin, "•••cdef"),
        KnownKey("moved", "file", origin, "•••", "the remote is now at https://b.example:443"),
        KnownKey("stored", "keyring", origin),
        KnownKey("gone", "file", origin, "•••cdef", "no remote of this name"),
    )
    assert CANARY not in repr(known)
