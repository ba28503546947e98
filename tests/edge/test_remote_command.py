"""`sr-edge remote`, as a user and as a script meet it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keyring
import keyring.backends.fail
import pytest
from tests.command_line import call, environment
from tests.edge.dialect_servers import served

from sr_edge.config import load_config
from sr_edge.files import cache_dir
from sr_edge.remote import known
from sr_edge.remote.dialects import Capabilities

URL = "https://api.example.com/v1"
CANARY = "sk-canary-0123456789abcdef"


@pytest.fixture(autouse=True)
def no_store() -> Iterator[None]:
    """This machine's own key store is left alone."""
    before = keyring.get_keyring()
    keyring.set_keyring(keyring.backends.fail.Keyring())
    yield
    keyring.set_keyring(before)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"SR_EDGE_HOME": str(tmp_path), "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}


def remote(*arguments: object, env: dict[str, str], code: int = 0) -> subprocess.CompletedProcess[str]:
    done = call("remote", *arguments, env=env)
    assert done.returncode == code, done.stderr
    return done


def text(env: dict[str, str]) -> str:
    return (Path(env["SR_EDGE_HOME"]) / "config.toml").read_text()


# --- adding ------------------------------------------------------------------------------------------


def test_the_first_remote_is_the_default_and_the_next_step_is_told(env: dict[str, str]) -> None:
    done = remote("add", "lab", "https://api.example.com/", env=env)
    assert done.stdout == (
        f"lab is {URL}, and the default\n"
        "its key, if it needs one: sr-edge keys set lab\n"
        "to see what it can do: sr-edge remote test lab\n"
    )
    assert text(env) == f'default_remote = "lab"\n\n[remotes.lab]\nurl = "{URL}"\n'
    assert remote("add", "desk", "http://127.0.0.1:8080", env=env).stdout.startswith(
        "desk is http://127.0.0.1:8080/v1\n"
    )
    assert remote("default", env=env).stdout == "lab\n"
    remote("add", "third", URL, "--default", env=env)
    assert remote("default", env=env).stdout == "third\n"


def test_everything_can_be_said_at_once(env: dict[str, str], tmp_path: Path) -> None:
    import trustme

    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    remote(
        "add", "lab", URL, "--model", "big-70b", "--api", "completions", "--api-key-env", "LAB_KEY",
        "--api-key-cmd", "pass show lab", "--price-input", 0.6, "--price-output", 2,
        "--ca-file", tmp_path / "ca.pem", "--proxy", "http://proxy.example:3128", env=env,
    )  # fmt: skip
    known = load_config(environ=env).remote("lab")
    assert (known.model, known.api, known.api_key_env) == ("big-70b", "completions", "LAB_KEY")
    assert (known.api_key_cmd, known.ca_file) == ("pass show lab", tmp_path / "ca.pem")
    assert known.price is not None
    assert (known.price.input, known.price.output, known.proxy) == (0.6, 2.0, "http://proxy.example:3128")
    assert "price = { input = 0.6, output = 2 }" in text(env)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["lab", "http://api.example.com/v1"], "is not encrypted"),
        (["lab", "http://8.8.8.8/v1", "--plain-http"], "use https://8.8.8.8"),
        (["box", "http://10.0.0.2:80/v1"], "sr-edge remote add box http://10.0.0.2/v1 --plain-http"),
        (["lab", f"https://user:{CANARY}@api.example.com/v1"], "holds a user name or a password"),
        (["lab", f"https://api.example.com/v1?key={CANARY}"], "takes no ? and no #"),
        (["lab", "api.example.com"], "must begin with http:// or https://"),
        (["lab", "https://a..b"], "URL names a host that cannot be"),
        (["lab", f"https://{'a' * 64}.example"], "URL names a host that cannot be"),
        (["lab", URL, "--ca-file", "~nosuchuser/x"], "--ca-file begins with ~ and a name that no user"),
        (["lab", "ftp://api.example.com"], "must begin with http:// or https://"),
        (["lab", "https://"], "names no host"),
        (["lab", "https://api.example.com:99999"], ""),
        (["Lab", URL], 'then up to 63 more of those or of . _ -; "lab" is'),
        (["-lab", URL], "No such option"),
        (["läb", URL], "is no name for a remote"),
        (["lab", URL, "--api", "complet"], "no API 'complet'"),
        (["lab", URL, "--api-key-env", CANARY], "--api-key-env must be the name of an envi"),
        (["lab", URL, "--price-input", "1"], "a price is one for --price-input and one for --price-output"),
        (["lab", URL, "--price-input", "-1", "--price-output", "1"], "--price-input must be a number"),
        (["lab", URL, "--price-input", "nan", "--price-output", "1"], "--price-input must be a number"),
        (["lab", URL, "--ca-file", "/no/such.pem"], "/no/such.pem can't be used"),
        (["lab", URL, "--model", ""], "--model must be a text of one line"),
        (["lab", URL, "--proxy", "socks5://x:1"], "must begin with http://"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_a_line_and_makes_no_file(
    arguments: list[str], line: str, env: dict[str, str], tmp_path: Path
) -> None:
    done = remote("add", *arguments, env=env, code=2)
    assert line in done.stderr
    assert done.stdout == ""
    assert CANARY not in done.stderr
    assert not (tmp_path / "config.toml").exists()


def test_a_name_is_taken_once(env: dict[str, str]) -> None:
    remote("add", "lab", URL, "--api-key-env", "LAB_KEY", "--model", "m", env=env)
    done = remote("add", "lab", "https://other.example/v1", env=env, code=2)
    assert done.stderr == (
        f"sr-edge: there is a remote lab already, at {URL}: --force replaces it, another name keeps both\n"
    )
    remote("add", "lab", "https://other.example/v1", "--model", "n", "--force", env=env)
    known = load_config(environ=env).remote("lab")
    assert (known.url, known.model) == ("https://other.example/v1", "n")
    assert known.api_key_env is None  # it was for another host


def test_a_key_of_before_is_not_used_for_another_host(env: dict[str, str]) -> None:
    remote("add", "lab", URL, env=env)
    call("keys", "set", "lab", stdin=CANARY, env=env)
    done = remote("add", "lab", "https://other.example/v1", "--force", env=env)
    assert "the remote is now at https://other.example:443" in done.stderr


@pytest.mark.parametrize("content", [b"{", b'{"keys": {"lab": 3}}'])
def test_a_damaged_file_of_keys_is_no_failure_of_adding(
    content: bytes, env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "keys.json").write_bytes(content)
    (tmp_path / "keys.json").chmod(0o600)
    done = remote("add", "lab", URL, env=env)
    assert done.stdout.startswith(f"lab is {URL}, and the default\n")
    assert done.stderr.startswith("sr-edge: written; but ")
    assert "keys.json is damaged" in done.stderr
    assert URL in text(env)


# --- listing -----------------------------------------------------------------------------------------


def test_the_list(env: dict[str, str]) -> None:
    remote("add", "lab", URL, "--model", "big-70b", "--price-input", 0.6, "--price-output", 2, env=env)
    remote("add", "box", "http://10.0.0.2:8000/v1", "--plain-http", "--api-key-env", "BOX", env=env)
    call("keys", "set", "lab", stdin=CANARY, env=env)
    found = Capabilities("completions", "vllm")
    known.save(cache_dir(env) / "endpoints.json", URL, "big-70b", found)
    done = remote(env=env)
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["name", "url", "model", "api", "$/M", "in", "$/M", "out", "key"],
        ["*", "lab", URL, "big-70b", "auto:", "completions/vllm", "0.6", "2", "file"],
        ["box", "http://10.0.0.2:8000/v1", "-", "auto", "-", "-", "api_key_env", "BOX", "(not", "set)"],
    ]
    told = json.loads(remote("list", "--json", env=env).stdout)
    assert told[0] == {
        "name": "lab",
        "url": URL,
        "model": "big-70b",
        "api": "auto",
        "found": {"thought": "completions", "text": "vllm"},
        "price": {"input": 0.6, "output": 2.0},
        "key": {"from": "file", "detail": "https://api.example.com:443", "problem": None},
        "default": True,
    }
    assert CANARY not in done.stdout


def test_no_remotes(env: dict[str, str]) -> None:
    assert remote(env=env).stderr == "sr-edge: no remote is set up: `sr-edge remote add NAME URL` does that\n"
    assert remote("list", "--json", env=env).stdout == "[]\n"
    assert "no remote is set up" in remote("default", env=env, code=2).stderr


# --- forgetting, default, price ----------------------------------------------------------------------


def test_rm_forgets_the_key_and_what_was_found_out_and_nothing_else(
    env: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "config.toml"
    remote("add", "lab", URL, env=env)
    remote("add", "box", "http://127.0.0.1:1/v1", env=env)
    path.write_text(
        path.read_text().replace("[remotes.box]", "# the box\n[remotes.box]")
        + '\n[profiles.home]\ndefault_remote = "lab"  # at home\n[profiles.home.remotes.lab]\nmodel = "x"\n'
        "[profiles.home.offload]\nhedge = true\n"
    )
    call("keys", "set", "lab", stdin=CANARY, env=env)
    call("keys", "set", "box", stdin="other-key", env=env)
    cache = cache_dir(env) / "endpoints.json"
    known.save(cache, URL, None, Capabilities("completions", "completions"))
    known.save(cache, "http://127.0.0.1:1/v1", None, Capabilities("vllm", "vllm"))
    done = remote("rm", "lab", env=env)
    assert done.stdout == "lab is forgotten, and its key\n"
    assert "there is no default remote now" in done.stderr
    assert text(env) == (
        '# the box\n[remotes.box]\nurl = "http://127.0.0.1:1/v1"\n\n[profiles.home]\n'
        "[profiles.home.offload]\nhedge = true\n"
    )
    assert CANARY not in (tmp_path / "keys.json").read_text()
    assert "other-key" in (tmp_path / "keys.json").read_text()
    assert known.load(cache, URL, None) is None
    assert known.load(cache, "http://127.0.0.1:1/v1", None) is not None
    assert 'no remote "lab"' in remote("rm", "lab", env=env, code=2).stderr


def test_default(env: dict[str, str]) -> None:
    remote("add", "lab", URL, env=env)
    remote("add", "box", "http://127.0.0.1:1/v1", env=env)
    assert remote("default", "box", env=env).stdout == "box is the default\n"
    assert remote("default", env=env).stdout == "box\n"
    done = remote("default", "lab", env={**env, "SR_EDGE_REMOTE": "box"})
    assert "but env SR_EDGE_REMOTE comes first, and says box" in done.stderr
    assert 'did you mean "lab"?' in remote("default", "lap", env=env, code=2).stderr


def test_price(env: dict[str, str]) -> None:
    remote("add", "lab", URL, env=env)
    assert remote("price", "lab", env=env).stdout == "the price of lab is not known\n"
    assert (
        "one for --input and one for --output" in remote("price", "lab", "--input", 1, env=env, code=2).stderr
    )
    line = "lab: 0.6 sent, 2.4 written; US dollars per million tokens\n"
    assert remote("price", "lab", "--input", 0.6, "--output", 2.4, env=env).stdout == line
    assert "price = { input = 0.6, output = 2.4 }" in text(env)
    assert "No such option" in remote("price", "lab", "--cached", 0, env=env, code=2).stderr
    done = remote("price", "lab", "--input", 1e308, env=env, code=2)
    assert done.stderr == "sr-edge: --input must be a number from 0 to 1000000, not 1e+308\n"
    remote("price", "lab", "--output", 3, env=env)
    assert json.loads(remote("price", "lab", "--json", env=env).stdout) == {
        "input": 0.6, "output": 3.0,
    }  # fmt: skip
    assert (
        "--clear goes with no price"
        in remote("price", "lab", "--clear", "--input", 1, env=env, code=2).stderr
    )
    remote("price", "lab", "--clear", env=env)
    assert "price" not in text(env)
    assert remote("price", "lab", "--json", env=env).stdout == "null\n"


# --- asking ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("server", "way"), [("vllm", "completions"), ("openai", "instruct")])
def test_test_tells_what_a_server_can_do_and_remembers_it(server: str, way: str, env: dict[str, str]) -> None:
    with served(server) as url:
        remote("add", "lab", url, env=env)
        done = remote("test", env=env)
        told = json.loads(remote("test", "lab", "--json", env=env).stdout)
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line]
    assert lines[0] == ["endpoint", f"{url}/v1"]
    assert lines[2:4] == [["models", "mind"], ["reachable", "yes"]]
    found = told["capabilities"]
    assert found["text"] == way
    assert next(line for line in lines if line[0] == way)[1].endswith("continues")
    assert done.stdout.splitlines()[-3:] == [
        f"goes on, thought     {found['thought']}",
        f"goes on, text        {way}",
        "verdict              usable",
    ]
    assert (told["usable"], told["error"], told["endpoint"], told["models"]) == (
        True,
        None,
        f"{url}/v1",
        "mind",
    )
    listed = json.loads(remote("list", "--json", env=env).stdout)[0]
    assert listed["found"] == {"thought": found["thought"], "text": way}


def test_test_of_a_server_that_is_not_there_is_exit_3(env: dict[str, str]) -> None:
    remote("add", "lab", "http://127.0.0.1:9/v1", env=env)
    done = remote("test", env=env, code=3)
    assert done.stdout.splitlines()[-1].startswith("verdict              not usable: ")
    told = json.loads(remote("test", "--json", env=env, code=3).stdout)
    assert (told["usable"], told["capabilities"]) == (False, None)
    done = remote("models", env=env, code=3)
    assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)


def test_models(env: dict[str, str]) -> None:
    with served("vllm") as url:
        remote("add", "lab", url, "--model", "other", env=env)
        done = remote("models", env=env)
        assert done.stdout == "mind\n"
        assert "lab has no model 'other'" in done.stderr
        assert json.loads(remote("models", "--json", env=env).stdout) == ["mind"]


@pytest.mark.parametrize("command", ["test", "models"])
def test_offline_asks_nobody(command: str, env: dict[str, str]) -> None:
    remote("add", "lab", "http://127.0.0.1:9/v1", env=env)
    done = remote(command, env={**env, "SR_EDGE_OFFLINE": "1"}, code=2)
    assert done.stderr == (
        f"sr-edge: offline (env SR_EDGE_OFFLINE): `remote {command}` asks lab, so it did nothing\n"
    )


# --- sockets and leaks -------------------------------------------------------------------------------

TRAPPED = """
import io, json, sys
from sr_edge.commands import main
sockets = []
sys.addaudithook(lambda event, arguments: sockets.append(event) if event.startswith("socket.") else None)
for arguments, stdin in json.loads(sys.argv[1]):
    sys.argv, sys.stdin, code = ["sr-edge", *arguments], io.StringIO(stdin), None
    try:
        main()
    except SystemExit as left:
        code = left.code
    assert code == 0, (arguments, code)
    assert not sockets, (arguments, sockets)
import socket
socket.socket().close()
assert sockets
"""


def test_what_only_writes_things_down_opens_no_socket(env: dict[str, str], tmp_path: Path) -> None:
    steps: list[tuple[list[str], str]] = [
        (["remote", "add", "lab", URL], ""),
        (["remote", "add", "box", "http://localhost:8080/v1"], ""),
        (["remote", "list"], ""),
        (["remote", "default", "box"], ""),
        (["remote", "price", "lab", "--input", "1", "--output", "2"], ""),
        (["keys", "set", "lab"], CANARY),
        (["keys", "list"], ""),
        (["keys", "rm", "lab"], ""),
        (["keys", "path"], ""),
        (["config", "show", "--origin"], ""),
        (["config", "set", "offline", "true"], ""),
        (["config", "get", "offline"], ""),
        (["config", "unset", "offline"], ""),
        (["config", "validate"], ""),
        (["config", "edit"], ""),
        (["config", "path"], ""),
        (["remote", "rm", "lab"], ""),
    ]
    done = subprocess.run(
        [sys.executable, "-c", TRAPPED, json.dumps(steps)],
        capture_output=True,
        text=True,
        env=environment(**env, VISUAL="true"),
    )
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr


def test_a_key_is_in_no_output_and_in_no_file_but_its_own(env: dict[str, str], tmp_path: Path) -> None:
    """F76: whatever is done, and whatever goes wrong."""
    env = {**env, "SR_EDGE_TRACEBACK": "1", "LAB_KEY": CANARY}
    printing = f"{sys.executable} -c \"import os, sys; print(os.environ['LAB_KEY']); sys.exit(3)\""
    shown = ""
    with served("vllm") as url:
        for options in ([], ["--api-key-env", "LAB_KEY"], ["--api-key-cmd", printing]):
            for arguments in (
                ["remote", "add", "lab", url, "--force", *options],
                ["keys", "set", "lab"],
                ["keys", "list"],
                ["remote", "list", "--json"],
                ["remote", "test"],
                ["remote", "models"],
                ["config", "show", "--origin"],
                ["config", "validate"],
                ["config", "set", "remotes.lab.url", "https://127.0.0.1:9/v1"],
                ["remote", "test"],
                ["keys", "list", "--json"],
            ):
                done = call(*arguments, stdin=CANARY, env=env)
                shown += done.stdout + done.stderr
    assert "Traceback" not in shown
    assert CANARY not in shown
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "keys.json"]
    assert files
    assert all(CANARY not in path.read_text() for path in files)


def test_text_that_would_steer_the_terminal_is_not_printed(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'[remotes.lab]\nurl = "{URL}"\n"\\u001b[2J\\u202e" = 1\n')
    done = call("remote", env=env)
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "\u202e" not in done.stderr


def test_two_that_add_at_once_lose_nothing(env: dict[str, str]) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "sr_edge", "remote", "add", f"box{n}", URL],
            env=environment(**env),
            stdout=subprocess.DEVNULL,
        )
        for n in range(3)
    ]
    assert [process.wait(60) for process in running] == [0] * 3
    assert set(load_config(environ=env).remotes) == {"box0", "box1", "box2"}
