"""`sr-edge config`, as a user and as a script meet it."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.command_line import call

from sr_edge import commands
from sr_edge.config.schema import SCHEMA

TEXT = """\
# mine
default_remote = "lab"  # the dear one

[remotes.lab]
url = "https://api.example.com/v1"  # ask Ida for a key

[offload]
# not too long
max_span_tokens = 256
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "config.toml").write_text(TEXT)
    return {"SR_EDGE_HOME": str(tmp_path)}


def rows(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines()[1:]}


def test_show_says_what_holds_and_where_it_comes_from(env: dict[str, str]) -> None:
    done = call("config", "show", "--origin", env={**env, "SR_EDGE_POLICY": "local"})
    assert (done.returncode, done.stderr) == (0, "")
    shown = rows(done.stdout)
    assert shown["offload.policy"] == ["local", "env", "SR_EDGE_POLICY"]
    assert shown["offload.max_span_tokens"] == ["256", "config.toml:9"]
    assert shown["sampling.seed"] == ["-", "default"]
    assert shown["remotes.lab.url"] == ["https://api.example.com/v1", "config.toml:5"]
    assert set(shown) == {key.name for key in SCHEMA} | {"remotes.lab.url"}
    assert "default" not in rows(call("config", env=env).stdout)["offload.policy"]


def test_show_as_json(env: dict[str, str]) -> None:
    told = json.loads(call("config", "show", "--json", env=env).stdout)
    assert told["offline"] == {"value": False, "origin": "default"}
    assert told["offload.max_span_tokens"] == {"value": 256, "origin": "config.toml:9"}


def test_show_with_a_profile(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(TEXT + "[profiles.home]\noffline = true\n")
    done = call("config", "show", "--origin", "--profile", "home", env=env)
    assert rows(done.stdout)["offline"] == ["true", "profile", "home"]
    assert call("config", "get", "offline", "--profile", "home", env=env).stdout == "true\n"
    assert call("config", "get", "offline", env={**env, "SR_EDGE_PROFILE": "home"}).stdout == "true\n"
    done = call("config", "show", "--profile", "hone", env=env)
    assert (done.returncode, done.stderr) == (
        2, 'sr-edge: --profile: there is no profile "hone"; did you mean "home"?\n',
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("offload.policy", "local", "local"),
        ("offload.redact", "email,key", "email, key"),
        ("offload.redact", '["path"]', "path"),
        ("offline", "yes", "true"),
        ("budget.usd_per_day", "0.5", "0.5"),
        ("sampling.temperature", "0", "0"),
        ("remotes.lab.timeout.idle", "20", "20"),
        ("remotes.lab.api_key_cmd", "pass show lab", "pass show lab"),
        ("profiles.home.remotes.lab.model", "small", None),
        ("model", "/m/a.gguf", "/m/a.gguf"),
    ],
)
def test_a_value_is_set_got_and_taken_out_again(
    key: str, value: str, shown: str | None, env: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "config.toml"
    done = call("config", "set", key, value, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert shown is None or call("config", "get", key, env=env).stdout == f"{shown}\n"
    text = path.read_text()
    assert all(comment in text for comment in ("# mine", "# the dear one", "# ask Ida", "# not too long"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert call("config", "unset", key, env=env).returncode == 0
    assert call("config", "validate", env=env).returncode == 0


def test_a_section_is_shown_together(env: dict[str, str]) -> None:
    shown = rows(call("config", "get", "offload", env=env).stdout)
    assert shown["offload.max_span_tokens"] == ["256"]
    assert all(name.startswith("offload.") for name in shown)


def test_a_negative_number_is_a_value_and_no_option(env: dict[str, str]) -> None:
    done = call("config", "set", "sampling.temperature", "-1", env=env)
    assert (done.returncode, done.stderr) == (
        2, "sr-edge: sampling.temperature must be a number of 0 or more, not -1\n",
    )  # fmt: skip


def test_a_path_of_the_command_line_is_where_one_stands(env: dict[str, str], tmp_path: Path) -> None:
    call("config", "set", "model", "a.gguf", env=env)
    assert call("config", "get", "model", env=env).stdout == f"{Path.cwd() / 'a.gguf'}\n"
    call("config", "set", "model", "~/a.gguf", env=env)
    assert 'model = "~/a.gguf"' in (tmp_path / "config.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["get", "offload.polcy"], 'unknown key "offload.polcy"; did you mean "offload.policy"?'),
        (["get", "policy"], 'unknown key "policy"; did you mean "offload.policy"?'),
        (["get", "remotes.lap.url"], 'there is no remote "lap"; did you mean "lab"?'),
        (["set", "offload.policy", "loca"], 'not "loca"; did you mean "local"?'),
        (["set", "remotes.lap.model", "x"], 'there is no remote "lap"; did you mean "lab"?'),
        (["set", "remotes.lab.ulr", "x"], 'unknown key "ulr" in [remotes.lab]; did you mean "url"?'),
        (["set", "remotes.Lab.url", "https://x"], '"Lab" is no name for a remote'),
        (["set", "default_remote", "lap"], 'there is no remote "lap"; did you mean "lab"?'),
        (["set", "remotes.lab.price.input", "1"], "needs a price for input and one for output"),
        (["unset", "remotes.lab.url"], "`sr-edge remote rm lab` takes all of it out"),
        (["unset", "offload.policy"], "offload.policy is not set in "),
        (["get", "remotes.lap"], "remotes.lap is a section: name one of its keys"),
        (["set", "offload", "x"], "offload is a section: name one of its keys"),
        (["unset", "remotes.lab"], "remotes.lab is a section: name one of its keys"),
        (["get", "profiles.x.offline"], "`sr-edge config get --profile x KEY`"),
        (["validate", "/no/such/file"], "/no/such/file is not there"),
    ],
)  # fmt: skip
def test_mistakes_are_a_line_and_change_nothing(
    arguments: list[str], line: str, env: dict[str, str], tmp_path: Path
) -> None:
    done = call("config", *arguments, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "config.toml").read_text() == TEXT


CANARY = "sk-canary-4f9a81"


@pytest.mark.parametrize(
    "key", ["remotes.lab.api_key", "remotes.lab.token", "api_key", "remotes.lab.api_key_env"]
)
def test_a_key_does_not_get_into_the_file(key: str, env: dict[str, str], tmp_path: Path) -> None:
    done = call("config", "set", key, CANARY, env=env)
    assert done.returncode == 2
    assert CANARY not in done.stdout + done.stderr + (tmp_path / "config.toml").read_text()


def test_a_variable_that_comes_first_is_named(env: dict[str, str]) -> None:
    done = call("config", "set", "offload.policy", "remote", env={**env, "SR_EDGE_POLICY": "local"})
    assert done.returncode == 0
    assert "SR_EDGE_POLICY in the environment comes first: offload.policy is local" in done.stderr


KEYED = """\
[remotes.lab]
url = "https://api.example.com/v1"
KEY
[profiles.p.remotes.lab]
url = "https://other.example/v1"
api_key_env = "OTHER_KEY"
"""


@pytest.mark.parametrize(
    ("key", "url", "told"),
    [
        ("remotes.lab.url", "https://new.example/v1", "https://new.example:443 from now on, and not to https://a"),
        ("remotes.lab.url", "https://api.example.com:8443", "https://api.example.com:8443 from now on"),
        ("remotes.lab.url", "https://API.example.com/v2", ""),
        ("profiles.p.remotes.lab.url", "https://new.example/v1", "goes to https://new.example:443 from no"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("setting", ['api_key_env = "LAB_KEY"', 'api_key_cmd = "pass show lab"', ""])
@pytest.mark.parametrize("by", ["set", "edit"])
def test_a_key_that_goes_to_another_host_is_told(
    key: str, url: str, told: str, setting: str, by: str, env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(KEYED.replace("KEY\n", f"{setting}\n", 1))
    if by == "set":
        done = call("config", "set", key, url, env=env)
    else:
        old = "https://other.example/v1" if "profiles" in key else "https://api.example.com/v1"
        done = call("config", "edit", env=env | editor(tmp_path, f"text = text.replace('{old}', '{url}')"))
    assert done.returncode == 0
    if told and (setting or "profiles" in key):
        its = "api_key_env" if "profiles" in key else setting.partition(" ")[0]
        assert done.stderr.startswith(f"sr-edge: the key of lab (by its {its}) goes to ")
        assert told in done.stderr
        assert len(done.stderr.splitlines()) == 1
    else:
        assert done.stderr == ""


def test_validate(env: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert call("config", "validate", env=env).stdout == f"{path}: valid, with 1 remote\n"
    path.write_text(TEXT.replace("max_span", "max_spam"))
    done = call("config", "validate", env=env)
    assert done.returncode == 2
    assert done.stderr == (
        f'sr-edge: {path}:9: unknown key "max_spam_tokens" in [offload]; did you mean "max_span_tokens"?\n'
    )
    path.write_text(TEXT.replace("https", "http"))
    done = call("config", "validate", env=env)
    assert done.returncode == 2
    assert "config.toml:5: [remotes.lab] http://api.example.com/v1 is not encrypted" in done.stderr
    other = tmp_path / "other.toml"
    other.write_text("")
    assert call("config", "validate", other, env=env).stdout == f"{other}: valid, with 0 remotes\n"


@pytest.mark.parametrize("variable", ["SR_EDGE_HOME", "SR_EDGE_CONFIG"])
@pytest.mark.parametrize("arguments", [["config"], ["config", "path"], ["keys", "path"], ["remote"]])
def test_the_home_of_nobody_is_a_line(variable: str, arguments: list[str]) -> None:
    done = call(*arguments, env={variable: "~nosuchuser/x"})
    if arguments == ["keys", "path"] and variable == "SR_EDGE_CONFIG":
        return  # keys are elsewhere
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"sr-edge: {variable}: ~nosuchuser/x begins with ~")


def test_the_first_value_makes_the_file(tmp_path: Path) -> None:
    env = {"SR_EDGE_CONFIG": str(tmp_path / "new" / "my.toml"), "SR_EDGE_HOME": str(tmp_path)}
    assert call("config", "path", env=env).stdout == f"{env['SR_EDGE_CONFIG']}\n"
    assert call("config", "set", "offline", "true", env=env).returncode == 0
    assert Path(env["SR_EDGE_CONFIG"]).read_text() == "offline = true\n"


def editor(tmp_path: Path, code: str) -> dict[str, str]:
    """One that does `code` to the text in `text`."""
    script = tmp_path / "editor.py"
    script.write_text(
        "import sys, pathlib\npath = pathlib.Path(sys.argv[-1])\ntext = path.read_text()\n"
        f"{code}\npath.write_text(text)\n"
    )
    return {"VISUAL": f"{sys.executable} {script} --wait", "EDITOR": "false"}


def test_edit_replaces_the_file_by_a_valid_one(env: dict[str, str], tmp_path: Path) -> None:
    done = call("config", "edit", env=env | editor(tmp_path, "text = text.replace('256', '99')"))
    path = tmp_path / "config.toml"
    assert (done.returncode, done.stdout) == (0, f"{path} is changed\n")
    assert path.read_text() == TEXT.replace("256", "99")
    assert [*tmp_path.glob("config.*.toml")] == []


def test_edit_keeps_a_version_that_is_not_valid_and_says_where(env: dict[str, str], tmp_path: Path) -> None:
    done = call("config", "edit", env=env | editor(tmp_path, "text = text.replace('256', '\"many\"')"))
    copies = [*tmp_path.glob("config.*.toml")]
    assert done.returncode == 2
    assert len(copies) == 1
    assert (
        f"config.toml is as it was, your version is in {copies[0]}: {copies[0]}:9: offload.max" in done.stderr
    )
    assert (tmp_path / "config.toml").read_text() == TEXT
    assert "many" in copies[0].read_text()
    assert stat.S_IMODE(copies[0].stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("path.unlink(); path.mkdir(); sys.exit()", "is a folder; the file of settings should be there"),
        ("path.write_bytes('# schön'.encode('latin-1')); sys.exit()", "not UTF-8: save the file"),
    ],
)  # fmt: skip
def test_edit_keeps_whatever_the_editor_left(
    code: str, line: str, env: dict[str, str], tmp_path: Path
) -> None:
    done = call("config", "edit", env=env | editor(tmp_path, code))
    (copy,) = tmp_path.glob("config.*.toml")
    assert done.returncode == 2
    assert f"config.toml is as it was, your version is in {copy}: " in done.stderr
    assert line in done.stderr
    assert "bug" not in done.stderr
    assert (tmp_path / "config.toml").read_text() == TEXT


def test_edit_does_not_overwrite_what_changed_meanwhile(env: dict[str, str], tmp_path: Path) -> None:
    other = f"pathlib.Path({str(tmp_path / 'config.toml')!r}).write_text('offline = true\\n')"
    done = call("config", "edit", env=env | editor(tmp_path, f"{other}; text += '#'"))
    assert done.returncode == 2
    assert "was changed by somebody else in the meantime" in done.stderr
    assert (tmp_path / "config.toml").read_text() == "offline = true\n"


@pytest.mark.parametrize(
    ("visual", "code", "line"),
    [
        ("true", 0, "nothing was changed"),
        ("false", 2, "false ended with 1: nothing was changed"),
        ("no-such", 2, "no-such can't be run (No such file or directory): name your editor in EDITOR"),
        ("'", 2, "VISUAL or EDITOR holds no command"),
    ],
)  # fmt: skip
def test_an_editor_that_does_nothing(
    visual: str, code: int, line: str, env: dict[str, str], tmp_path: Path
) -> None:
    done = call("config", "edit", env={**env, "VISUAL": visual})
    assert (done.returncode, done.stderr) == (code, f"sr-edge: {line}\n")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["config.toml"]


def test_edit_without_a_terminal_needs_an_editor_that_is_named(env: dict[str, str]) -> None:
    done = call("config", "edit", env={**env, "VISUAL": "", "EDITOR": ""})
    assert done.returncode == 2
    assert "there is no terminal to edit in: name an editor in EDITOR" in done.stderr


def test_edit_begins_with_a_hint_where_there_is_no_file(tmp_path: Path) -> None:
    env = {"SR_EDGE_HOME": str(tmp_path / "home")} | editor(
        tmp_path, "assert '[remotes.lab]' in text; text = 'offline = true'"
    )
    assert call("config", "edit", env=env).returncode == 0
    assert (tmp_path / "home" / "config.toml").read_text() == "offline = true"


def test_show_can_be_pasted_into_a_report(env: dict[str, str], tmp_path: Path) -> None:
    key = "sk-proj-Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MA"
    for command in (f'"echo {key}"', f'["echo", "{key}"]'):
        (tmp_path / "config.toml").write_text(
            TEXT.replace("[offload]", f"api_key_cmd = {command}\n[offload]")
        )
        for arguments in (["show"], ["show", "--json"]):
            text = call("config", *arguments, env=env).stdout
            assert "echo" in text
            assert key not in text


@pytest.mark.parametrize("option", ["--big", "--big-model", "--remote", "--profile"])
def test_an_option_that_is_empty_is_a_mistake(option: str, env: dict[str, str]) -> None:
    done = call("ask", "1 + 1", option, "", env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"sr-edge: {option} ")
    assert "empty" in done.stderr


@pytest.mark.parametrize("group", ["remote", "keys", "config"])
def test_the_list_says_of_a_group_what_its_own_help_says(group: str) -> None:
    promise = commands.Promise(group, commands._OWN[group][1])
    assert promise.load().help.splitlines()[0] == promise.help


def test_help_of_the_group_names_its_commands() -> None:
    text = call("config", "-h").stdout
    assert [
        name for name in ("show", "get", "set", "unset", "edit", "validate", "path") if name not in text
    ] == []


def test_asking_for_help_imports_no_toml_writer_and_no_network() -> None:
    code = (
        "import sys\nfrom sr_edge.commands import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'httpx', 'llama_cpp', 'tomlkit', 'platformdirs'} & set(sys.modules)), file=sys.stderr)"
    )
    for arguments in (["--help"], ["config", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        loaded = done.stderr.splitlines()[-1]
        assert loaded == ("[]" if arguments == ["--help"] else "['platformdirs']")
