"""The settings: the table, the layers, the complaints, and changes that leave comments alone."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge.budget import Budget, Price
from sr_edge.config import Config, RemoteConfig, load_config
from sr_edge.config.edit import Change, apply, change_config
from sr_edge.config.lines import line_numbers, statements
from sr_edge.config.load import Ui, check_text, config_of
from sr_edge.config.schema import KEYS, REMOTE, SCHEMA, Key, find_key, from_text, split_remote
from sr_edge.errors import UsageError

PATH = Path("/home/ida/config.toml")


def config(text: str = "", environ: Mapping[str, str] | None = None, **more: Any) -> Config:
    return config_of(text, PATH, environ=environ or {}, **more)


def complaint(text: str = "", environ: Mapping[str, str] | None = None, **more: Any) -> str:
    with pytest.raises(UsageError) as caught:
        config(text, environ, **more)
    line = str(caught.value)
    assert "\n" not in line
    return line.removeprefix(f"{PATH.parent}/")


LAB = """\
[remotes.lab]
url = "https://api.example.com/v1"
"""

FULL = """\
default_remote = "lab"
model = "small.gguf"
offline = false

[offload]
policy = "local"
hedge = true
speculate = false
max_span_tokens = 100
max_spans = 7
handback = "sentence"
redact = ["email", "key"]

[budget]
usd_per_answer = 0.02
usd_per_day = 1
tokens_per_answer = 1000
tokens_per_day = 2000
share = 0.4

[sampling]
temperature = 0
max_tokens = 99
seed = 5

[ui]
theme = "nord"
reasoning = "always"
sidebar = "never"
mouse = false
animations = false
keymap.nav.sessions = "f5"

[log]
enabled = false

[chat]
prefill_while_typing = true

[cache]
conversations = true
max_mb = 100

[engine]
threads = 3
calibrate = false

[remotes.lab]
url = "https://api.example.com/v1"
model = "big-70b"
api = "completions"
api_key_env = "LAB_KEY"
api_key_cmd = ["pass", "show", "lab"]
plain_http = false
ca_file = "lab.pem"
proxy = "http://proxy:3128"
price = { input = 0.6, output = 2.4 }
timeout = { connect = 3, first_byte = 4, first_content = 15, idle = 20, total = 200 }
hedge = false
redact = []
"""


# --- what is read ------------------------------------------------------------------------------------


def test_without_a_file_the_defaults_hold() -> None:
    known = config()
    assert (known.default_remote, known.model, known.offline, known.remotes) == (None, None, False, {})
    assert (known.offload.policy, known.offload.hedge, known.offload.max_span_tokens) == ("auto", False, 512)
    assert (known.sampling.temperature, known.sampling.max_tokens) == (0.6, 4096)
    assert known.budget == Budget()
    assert {setting.origin for setting in known.settings.values()} == {"default"}


def test_every_setting_can_stand_in_the_file() -> None:
    known = config(FULL)
    assert known.model == "/home/ida/small.gguf"  # a path is relative to the file it stands in
    assert known.budget == Budget(0.02, 1.0, 1000, 2000, 0.4)
    assert (known.offload.max_spans, known.offload.redact) == (7, ("email", "key"))
    assert known.offload.handback == "sentence"
    assert not known.offload.speculate
    assert known.remote() == RemoteConfig(
        name="lab",
        url="https://api.example.com/v1",
        model="big-70b",
        api="completions",
        api_key_env="LAB_KEY",
        api_key_cmd=("pass", "show", "lab"),
        ca_file=Path("/home/ida/lab.pem"),
        proxy="http://proxy:3128",
        price=Price(0.6, 2.4),
        timeout={"connect": 3.0, "first_byte": 4.0, "first_content": 15.0, "idle": 20.0, "total": 200.0},
        hedge=False,
        redact=(),
    )
    assert known.ui == Ui("nord", "always", "never", False, False, {"nav.sessions": "f5"})
    assert not known.log.enabled
    assert known.chat.prefill_while_typing
    assert (known.cache.conversations, known.cache.max_mb) == (True, 100)
    assert (known.engine.threads, known.engine.calibrate) == (3, False)
    written = {key.name for key in SCHEMA} | {f"remotes.lab.{key.name}" for key in REMOTE}
    assert {name for name in written if not known.origin(name).startswith("config.toml:")} == set()
    assert known.origin("default_remote") == "config.toml:1"
    assert known.origin("remotes.lab.price.output") == "config.toml:57"


VALUES = {  # for each kind a text, and what it means
    "text": ("lab", "lab"),
    "path": ("/a/b", "/a/b"),
    "flag": ("Yes", True),
    "count": ("3", 3),
    "number": ("0.5", 0.5),
    "choice": ("remote", "remote"),
    "words": ("email, path", ("email", "path")),
    "command": ("pass show lab", "pass show lab"),
    "url": ("https://b.example/v1", "https://b.example/v1"),
    "variable": ("OTHER_KEY", "OTHER_KEY"),
    "api": ("instruct", "instruct"),
    "keys": ("f8, alt+k", "f8,alt+k"),
}


@pytest.mark.parametrize("key", [*SCHEMA, *KEYS], ids=lambda key: key.name)
def test_every_setting_can_come_from_its_variables(key: Key) -> None:
    text, value = (key.choices[-1],) * 2 if key.kind == "choice" else VALUES[key.kind]
    for variable in key.variables:
        known = config(LAB, {variable: text})
        assert known.settings[key.name].value == value
        assert known.origin(key.name) == f"env {variable}"


@pytest.mark.parametrize("key", REMOTE, ids=lambda key: key.name)
def test_every_setting_of_a_remote_can_come_from_its_variable(key: Key) -> None:
    text, value = VALUES[key.kind]
    variable = f"SR_EDGE_REMOTES__LAB__{key.name.upper().replace('.', '__')}"
    price = "price = { input = 1, output = 2 }\n"
    known = config(LAB + price, {variable: text})
    assert known.settings[f"remotes.lab.{key.name}"].value == value
    assert known.origin(f"remotes.lab.{key.name}") == f"env {variable}"


def test_the_table_covers_the_deadlines_and_the_kinds() -> None:
    from sr_edge.remote.deadlines import Deadlines

    names = {key.name.removeprefix("timeout.") for key in REMOTE if key.name.startswith("timeout.")}
    assert names <= set(Deadlines.__dataclass_fields__)
    assert {key.kind for key in (*SCHEMA, *KEYS, *REMOTE)} == set(VALUES)


def test_the_environment_alone_makes_a_remote() -> None:
    known = config("", {"SR_EDGE_REMOTES__CI__URL": "https://x/v1", "SR_EDGE_REMOTE": "ci"})
    assert known.remote().url == "https://x/v1"


def test_a_name_with_dots_and_dashes_has_a_variable_too() -> None:
    text = '[remotes."my.box-1"]\nurl = "https://x/v1"\n'
    known = config(text, {"SR_EDGE_REMOTES__MY_BOX_1__MODEL": "m"})
    assert known.remotes["my.box-1"].model == "m"
    both = text + '[remotes.my_box_1]\nurl = "https://x/v1"\n'
    line = complaint(both, {"SR_EDGE_REMOTES__MY_BOX_1__MODEL": "m"})
    assert "may mean my.box-1 or my_box_1" in line


def test_names_that_end_like_settings_are_kept_apart() -> None:
    text = '[remotes.a]\nurl = "https://a/v1"\n[remotes."a.model"]\nurl = "https://b/v1"\nmodel = "m"\n'
    known = config(text)
    assert (known.remotes["a"].model, known.remotes["a.model"].model) == (None, "m")
    assert split_remote("a.model.url", ".") == ("a.model", "url")
    assert split_remote("a.price.input", ".") == ("a", "price.input")


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + LAB.encode(),
        LAB.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + LAB.replace("\n", "\r\n").encode(),
        LAB.rstrip("\n").encode(),
    ],
)
def test_any_editor_may_have_saved_it(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(data)
    known = load_config(environ={}, path=path)
    assert known.remotes["lab"].url == "https://api.example.com/v1"
    assert known.origin("remotes.lab.url") == "config.toml:2"


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n\n", b"# nothing\r\n"])
def test_an_empty_file_is_fine(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(data)
    assert load_config(environ={}, path=path).settings == config().settings


def test_a_missing_file_is_fine_unless_it_was_named(tmp_path: Path) -> None:
    assert load_config(environ={"SR_EDGE_HOME": str(tmp_path)}).remotes == {}
    named = {"SR_EDGE_CONFIG": str(tmp_path / "typo.toml")}
    with pytest.raises(UsageError, match=r"typo\.toml is not there"):
        load_config(environ=named)
    assert load_config(environ=named, may_be_missing=True).remotes == {}


def test_what_cannot_be_read_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        load_config(environ={}, path=tmp_path)
    path = tmp_path / "config.toml"
    path.write_bytes("a = 1\nb = 'é'".encode("latin-1"))
    with pytest.raises(UsageError, match=r"config\.toml:2: not UTF-8"):
        load_config(environ={}, path=path)
    path.write_bytes(LAB.encode("utf-16"))
    with pytest.raises(UsageError, match=r"config\.toml:1: not UTF-8"):
        load_config(environ={}, path=path)
    path.chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(UsageError, match="cannot be read: Permission denied"):
            load_config(environ={}, path=path)


# --- complaints --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            LAB + '# mine\n\napikey_env = "X"\n',
            'config.toml:5: unknown key "apikey_env" in [remotes.lab]; did you mean "api_key_env"?',
        ),
        (LAB + 'base_url = "x"', 'config.toml:3: unknown key "base_url" in [remotes.lab]; did you mean "ur'),
        ("\noflline = true", 'config.toml:2: unknown key "oflline"; did you mean "offline"?'),
        ('policy = "local"', 'config.toml:1: unknown key "policy"; it belongs into [offload]'),
        ('plain_http = true', 'config.toml:1: unknown key "plain_http"; it belongs into [remotes.NAME]'),
        ("[ofload]\nhedge = true", "config.toml:1: unknown section [ofload]; did you mean [offload]?"),
        ("[offload]\nhedge = 1", "config.toml:2: offload.hedge must be true or false, not 1"),
        ('[offload]\nhedge = "yes"', 'config.toml:2: offload.hedge must be true or false, not "yes"'),
        (
            '[offload]\n\npolicy = "Local"',
            'config.toml:3: offload.policy must be one of auto, ask, local, remote, not "Local"; did',
        ),
        (
            "[budget]\nshare = 1.5",
            "config.toml:2: budget.share must be a number from 0 to 1, not 1.5",
        ),
        ("[budget]\nusd_per_day = nan", "config.toml:2: budget.usd_per_day must be a number of 0 or more"),
        (
            "[sampling]\nmax_tokens = 0",
            "config.toml:2: sampling.max_tokens must be a whole number of 1 or more, not 0",
        ),
        (
            "[sampling]\nmax_tokens = 10.0",
            "config.toml:2: sampling.max_tokens must be a whole number of 1 or more, not 10.0",
        ),
        (
            "[sampling]\nmax_tokens = true",
            "config.toml:2: sampling.max_tokens must be a whole number of 1 or more, not true",
        ),
        (
            '[offload]\nredact = [\n  "email",\n  "phone",\n]',
            "config.toml:2: offload.redact must be a list of any of email, path, key, not ['email', 'phone']",
        ),
        (
            LAB + 'timeout = { conect = 3 }',
            'config.toml:3: unknown key "conect" in [remotes.lab.timeout]; did you mean "connect"?',
        ),
        (LAB + "timeout = 3", "config.toml:3: timeout must be a table, such as [remotes.lab.timeout]"),
        (LAB + "timeout = { connect = 0 }", "config.toml:3: remotes.lab.timeout.connect must be a number"),
        (LAB + "price = { input = 1 }", "config.toml:3: [remotes.lab] needs a price for input"),
        (LAB + 'api = "complet"', "config.toml:3: remotes.lab.api can't be this: no API 'complet'"),
        (LAB + 'model = ""', 'config.toml:3: remotes.lab.model must be a text of one line '),
        (LAB + 'model = "a\\nb"', "config.toml:3: remotes.lab.model must be a text of one line"),
        ("[remotes.lab]", "config.toml:1: [remotes.lab] is empty: it needs a url"),
        ('[remotes.lab]\nmodel = "m"', "config.toml:2: [remotes.lab] has no url"),
        ('[remotes.Lab]\nurl = "https://x"', 'config.toml:1: "Lab" is no name for a remote'),
        (LAB + '[remotes."l ab"]\nurl = "https://x"', 'config.toml:3: "l ab" is no name for a remote'),
        ("remotes = 1", "config.toml:1: remotes must be a table, such as [remotes]"),
        ('default_remote = "labb"\n' + LAB, 'config.toml:1: default_remote: there is no remote "labb"'),
        ("[profiles.fast]\npolicy = 1", 'config.toml:2: unknown key "policy" in [profiles.fast]'),
        ("[profiles.fast.offload]\npolcy = 1", 'config.toml:2: unknown key "polcy" in [profiles.fast'),
        ("[profiles.fast.profiles.x]\noffline = true", "config.toml:1: unknown section [profiles.fast"),
        (
            LAB + "price = { input = 1e308, output = 1 }",
            "config.toml:3: remotes.lab.price.input must be a number from 0 to 1000000, not 1e+308",
        ),
        (
            LAB + "price = { input = 1, output = 2, cached = 1 }",
            'config.toml:3: unknown key "cached" in [remotes.lab.price]',
        ),
        (
            f"[budget]\ntokens_per_day = 1{'0' * 400}",
            "config.toml:2: budget.tokens_per_day must be a whole number from 0 to 1e+15, not 1000",
        ),
        (
            f"[budget]\nusd_per_day = 1{'0' * 400}",
            "config.toml:2: budget.usd_per_day must be a number from 0 to 1e+15, not 1000",
        ),
        ("[budget]\nusd_per_day = inf", "config.toml:2: budget.usd_per_day must be a number from 0 to 1e+15"),
        (f"[budget]\nusd_per_day = 1{'0' * 9000}", "config.toml:2: not TOML: "),
        ("a = " + "[" * 100_000, "config.toml: not TOML that can be read"),
        ('model = "~nosuchuser/x"', "config.toml:1: model begins with ~ and a name that no user here has"),
        ('[remotes.lab]\nurl = "https://a..b"', "config.toml:2: remotes.lab.url names a host that cannot be"),
        ('[remotes.lab]\nurl = "https://.b"', "config.toml:2: remotes.lab.url names a host that cannot be"),
        (f'[remotes.lab]\nurl = "https://{"a" * 64}.b"', "config.toml:2: remotes.lab.url names a host"),
        (f'[remotes.lab]\nurl = "https://{"ä" * 64}.b"', "config.toml:2: remotes.lab.url names a host"),
        (f'[remotes.lab]\nurl = "https://{"a." * 130}b"', "config.toml:2: remotes.lab.url names a host that"),
        (LAB + 'proxy = "http://a..b:1"', "config.toml:3: remotes.lab.proxy names a host that cannot be"),
        ("a = 1\nb = [1,\n", "config.toml:2: not TOML: "),
        ("a = 1\nb == 2\n", "config.toml:2: not TOML: "),
        ("offline = true\noffline = false", "config.toml:2: not TOML: "),
        ("a\x00 = 1", "config.toml:1: not TOML: "),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(text: str, line: str) -> None:
    got = complaint(text)
    assert got.startswith(line), difflib.ndiff([got], [line])


@pytest.mark.parametrize(
    "host",
    ["a" * 63 + ".b", "api.example.com.", "[::1]", "127.0.0.1:80", "bücher.example", "my_box", "a" * 63],
)
def test_a_host_that_can_be_is_fine(host: str) -> None:
    assert config(f'[remotes.lab]\nurl = "https://{host}/v1"\n').remotes["lab"].url == f"https://{host}/v1"


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"SR_EDGE_OFFLOAD__POLICY": "all"}, "environment: SR_EDGE_OFFLOAD__POLICY must be one of"),
        ({"SR_EDGE_OFFLINE": "perhaps"}, 'environment: SR_EDGE_OFFLINE must be true or false, not "perhaps"'),
        ({"SR_EDGE_SAMPLING__SEED": "x"}, "environment: SR_EDGE_SAMPLING__SEED must be a whole number"),
        ({"SR_EDGE_OFLOAD__POLICY": "auto"}, "environment: SR_EDGE_OFLOAD__POLICY is no setting"),
        ({"SR_EDGE_REMOTES__LAB__ULR": "x"}, 'environment: SR_EDGE_REMOTES__LAB__ULR: unknown key "ulr"'),
        ({"SR_EDGE_REMOTE": "lap"}, 'env SR_EDGE_REMOTE: default_remote: there is no remote "lap"'),
        ({"SR_EDGE_PROFILE": "fats"}, 'SR_EDGE_PROFILE: there is no profile "fats"; did you mean "fast"?'),
    ],
)  # fmt: skip
def test_a_mistake_in_the_environment_is_named(environ: dict[str, str], line: str) -> None:
    assert complaint(LAB + "[profiles.fast]\noffline = true\n", environ).startswith(line)


def test_a_variable_that_is_near_is_named() -> None:
    line = complaint("", {"SR_EDGE_OFLOAD__POLICY": "auto"})
    assert line.endswith("is no setting; did you mean SR_EDGE_OFFLOAD__POLICY?")


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("SR_EDGE_OFLINE", "SR_EDGE_OFFLINE"),
        ("SR_EDGE_OFF_LINE", "SR_EDGE_OFFLINE"),
        ("SR_EDGE_ONLINE", "SR_EDGE_OFFLINE"),
        ("SR_EDGE_offline", "SR_EDGE_OFFLINE"),
        ("sr_edge_offline", "SR_EDGE_OFFLINE"),
        ("SR_EDGE_POLCY", "SR_EDGE_POLICY"),
        ("SR_EDGE_REMOTES", "SR_EDGE_REMOTE"),
        ("SR_EDGE_PROFIL", "SR_EDGE_PROFILE"),
        ("SR_EDGE_CONFG", "SR_EDGE_CONFIG"),
        ("SR_EDGE_HOMES", "SR_EDGE_HOME"),
        ("SR_EDGE_APIKEY", "SR_EDGE_API_KEY"),
        ("SR_EDGE_TRACE_BACK", "SR_EDGE_TRACEBACK"),
        ("SR_EDGE_MODELL", "SR_EDGE_MODEL"),
        ("SR_EDGE_OFFLOAD_REDACT", "SR_EDGE_OFFLOAD__REDACT"),
    ],
)
def test_a_variable_that_is_nearly_one_of_ours_is_an_error(variable: str, meant: str) -> None:
    line = complaint("", {variable: CANARY})
    assert line == f"environment: {variable} is nothing of ours; did you mean {meant}?"
    config("", {variable: ""})


CANARY = "sk-canary-4f9a81"


@pytest.mark.parametrize(
    "text",
    [
        LAB + f'api_key = "{CANARY}"',
        LAB + f'apikey = "{CANARY}"',
        LAB + f'key = "{CANARY}"',
        LAB + f'token = "{CANARY}"',
        f'api_key = "{CANARY}"',
        f'[offload]\nsecret_key = "{CANARY}"',
        LAB + f'api_key_env = "{CANARY}"',
        LAB + f"api_key_cmd = ['echo', '{CANARY}', 3]",
        f'[remotes.lab]\nurl = "https://user:{CANARY}@x/v1"',
        f'[remotes.lab]\nurl = "https://x/v1?api_key={CANARY}"',
        f'[remotes.lab]\nurl = "{CANARY}"',
        LAB + f'proxy = "http://u:{CANARY}@proxy:1"',
    ],
)
def test_a_key_in_the_file_is_refused_and_not_quoted(text: str) -> None:
    line = complaint(text)
    assert CANARY not in line
    assert line.startswith("config.toml:")


def test_the_refusal_of_a_key_says_where_keys_belong() -> None:
    line = complaint(LAB + f'api_key = "{CANARY}"')
    assert "config.toml:3: remotes.lab.api_key would be a key in the clear" in line
    assert "`sr-edge keys set lab`" in line
    assert "api_key_env" in line
    assert CANARY not in complaint("", {"SR_EDGE_REMOTES__LAB__API_KEY": CANARY})


# --- layers ------------------------------------------------------------------------------------------

LAYERS = ("flag --policy", "env SR_EDGE_POLICY", "profile fast", "config.toml:2", "default")

someone = st.sampled_from(["auto", "local", "remote"])


@given(*[st.none() | someone for _ in range(4)])
def test_the_highest_layer_that_has_a_value_wins(
    flag: str | None, env: str | None, profile: str | None, file: str | None
) -> None:
    text = f'[offload]\npolicy = "{file}"\n' if file else ""
    text += "[profiles.fast.offload]\nhedge = true\n" + (f'policy = "{profile}"\n' if profile else "")
    known = config(
        text,
        {"SR_EDGE_POLICY": env} if env else {},
        profile="fast",
        flags={"offload.policy": flag},
    )
    given_values = [flag, env, profile, file, "auto"]
    first = next(n for n, value in enumerate(given_values) if value)
    assert known.offload.policy == given_values[first]
    assert known.origin("offload.policy") == LAYERS[first]
    assert known.origin("offload.hedge") == "profile fast"


FIELDS = ["model", "api_key_env", "timeout.idle", "price.input", "hedge"]
TEXTS = {
    "model": ["a", "b"],
    "api_key_env": ["A", "B"],
    "timeout.idle": ["1", "2"],
    "price.input": ["0", "3"],
}


@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), st.booleans()), min_size=3, max_size=3))
def test_a_remotes_settings_are_layered_one_by_one(layers: list[dict[str, bool]]) -> None:
    def text_of(field: str, choice: bool) -> str:
        return TEXTS[field][choice] if field in TEXTS else str(choice).lower()

    def lines(layer: Mapping[str, bool]) -> str:
        quote = {"model": '"', "api_key_env": '"'}
        return "".join(
            f"{f} = {quote.get(f, '')}{text_of(f, v)}{quote.get(f, '')}\n" for f, v in layer.items()
        )

    env, profile, file = layers
    text = LAB + "price.output = 2\n" + ("" if "price.input" in file else "price.input = 1\n") + lines(file)
    text += "[profiles.fast.remotes.lab]\napi = 'auto'\n" + lines(profile)
    environ = {f"SR_EDGE_REMOTES__LAB__{f.upper().replace('.', '__')}": text_of(f, v) for f, v in env.items()}
    known = config(text, environ, profile="fast")
    for field in FIELDS:
        name = f"remotes.lab.{field}"
        key = next(key for key in REMOTE if key.name == field)
        for begin, layer in zip(("env ", "profile ", "config.toml:"), layers, strict=True):
            if field in layer:
                assert known.origin(name).startswith(begin)
                wanted = from_text(key, text_of(field, layer[field]))
                assert known.settings[name].value == wanted
                break
        else:
            assert known.origin(name) == ("config.toml:4" if field == "price.input" else "default")


@given(st.booleans(), *[st.none() | st.booleans() for _ in range(3)])
def test_offline_holds_if_anybody_says_so(
    flag: bool, env: bool | None, profile: bool | None, file: bool | None
) -> None:
    def line(value: bool | None) -> str:
        return "" if value is None else f"offline = {str(value).lower()}\n"

    known = config(
        line(file) + "[profiles.fast]\n" + line(profile) + "offload.hedge = true\n",
        {} if env is None else {"SR_EDGE_OFFLINE": "on" if env else "0"},
        profile="fast",
        flags={"offline": flag},
    )
    assert known.offline == any([flag, env, profile, file])
    if known.offline:
        said = [flag, env, profile, file].index(True)
        origins = ["flag --offline", "env SR_EDGE_OFFLINE", "profile fast", "config.toml:1"]
        assert known.origin("offline") == origins[said]


@pytest.mark.parametrize("named", ["flag", "variable", "both"])
@pytest.mark.parametrize("other", ["", "offline = false\n", "offline = true\n"])
def test_another_file_does_not_end_what_the_users_own_says_of_offline(
    named: str, other: str, tmp_path: Path
) -> None:
    own = tmp_path / "config.toml"
    own.write_text('# mine\noffline = true\n[offload]\npolicy = "local"\n')
    path = tmp_path / "other.toml"
    path.write_text(other)
    environ = {"SR_EDGE_HOME": str(tmp_path)}
    if named == "both":
        environ["SR_EDGE_CONFIG"] = str(tmp_path / "third.toml")
        (tmp_path / "third.toml").write_text("offline = false\n")
    elif named == "variable":
        environ["SR_EDGE_CONFIG"] = str(path)
    known = load_config(environ=environ, path=None if named == "variable" else path)
    assert known.offline
    assert known.origin("offline") == ("other.toml:1" if "true" in other else f"{own}:2")
    assert known.offload.policy == "auto"  # all else is of the file that was named


def test_the_file_of_the_variable_keeps_offline_too(tmp_path: Path) -> None:
    path, own = tmp_path / "other.toml", tmp_path / "my.toml"
    path.write_text("")
    own.write_text("offline = true\n")
    known = load_config(environ={"SR_EDGE_HOME": str(tmp_path), "SR_EDGE_CONFIG": str(own)}, path=path)
    assert known.origin("offline") == f"{own}:1"


def test_an_own_file_that_cannot_be_read_is_no_permission(tmp_path: Path) -> None:
    own, path = tmp_path / "config.toml", tmp_path / "other.toml"
    path.write_text("")
    environ = {"SR_EDGE_HOME": str(tmp_path)}
    assert not load_config(environ=environ, path=path).offline
    for text, line in (("offline = tru", "1: not TOML"), ('offline = "yes"', "1: offline must be true or")):
        own.write_text(text)
        with pytest.raises(UsageError, match=rf"config\.toml:{line}"):
            load_config(environ=environ, path=path)
    own.write_text("what_is_this = 1\noffline = false\n")
    assert not load_config(environ=environ, path=path).offline


@pytest.mark.parametrize("word", ["1", "true", "TRUE", "yes", "on", " 1 "])
def test_words_that_say_offline(word: str) -> None:
    assert config("", {"SR_EDGE_OFFLINE": word}).offline


def test_an_empty_variable_is_none() -> None:
    known = config("", {"SR_EDGE_OFFLINE": "", "SR_EDGE_POLICY": "", "SR_EDGE_PROFILE": ""})
    assert (known.offline, known.offload.policy, known.profile) == (False, "auto", None)


def test_the_short_variable_comes_before_the_regular_one() -> None:
    known = config("", {"SR_EDGE_POLICY": "local", "SR_EDGE_OFFLOAD__POLICY": "remote"})
    assert (known.offload.policy, known.origin("offload.policy")) == ("local", "env SR_EDGE_POLICY")


def test_variables_of_ours_that_are_no_settings_are_left_alone() -> None:
    config("", {"SR_EDGE_TRACEBACK": "1", "SR_EDGE_API_KEY": "x", "SR_EDGE_HOME": "/x", "OTHER__X": "1"})
    config("", {"SR_EDGE_": "1", "SR_EDGE_BUILD_NUMBER": "1", "SR_EDGE_PORT": "1", "SR_EDGERS": "1"})


def test_the_flag_of_a_profile_comes_before_its_variable() -> None:
    text = "[profiles.a]\noffload.hedge = true\n[profiles.b]\noffload.max_spans = 3\n"
    known = config(text, {"SR_EDGE_PROFILE": "b"}, profile="a")
    assert (known.profile, known.offload.hedge, known.offload.max_spans) == ("a", True, None)


def test_a_profile_may_bring_a_remote() -> None:
    text = '[profiles.home]\ndefault_remote = "box"\n[profiles.home.remotes.box]\nurl = "http://127.0.0.1:8080"\n'
    assert config(text).remotes == {}
    assert config(text, profile="home").remote().name == "box"


def test_a_value_of_the_command_line_is_checked_too() -> None:
    assert complaint(flags={"sampling.temperature": -1}) == "--temp must be a number of 0 or more, not -1"
    with pytest.raises(KeyError):
        config(flags={"no.such": 1})


def test_an_empty_profile_is_none_that_there_is() -> None:
    assert complaint(profile="") == "--profile names no profile: it is empty"
    for name in ("model", "default_remote"):
        assert "must be a text of one line that is not empty" in complaint(flags={name: ""})


def test_which_remote() -> None:
    two = LAB + '[remotes.desk]\nurl = "http://10.0.0.1/v1"\n'
    with pytest.raises(UsageError, match="no remote is set up: `sr-edge remote add NAME URL`"):
        config().remote()
    with pytest.raises(UsageError, match="There is lab, desk; `sr-edge remote default NAME`"):
        config(two).remote()
    with pytest.raises(UsageError, match='no remote "dest"; did you mean "desk"'):
        config(two).remote("dest")
    assert config(two).remote("desk").url == "http://10.0.0.1/v1"


# --- lines -------------------------------------------------------------------------------------------


def test_lines_of_what_spans_several() -> None:
    text = 'a = [\n  1, # one\n  2,\n]\n\n[t]\n# c\nb = """\n[not.a.header]\nx = 1\n"""\n'
    text += '"c.d".e = { f = 1, g = { h = 2 } }\n[[u]]\n'
    numbers = line_numbers(text)
    assert numbers[("a",)] == 1
    assert numbers[("t",)] == 6
    assert numbers[("t", "b")] == 8
    assert numbers[("t", "c.d", "e", "f")] == 12
    assert numbers[("t", "c.d", "e", "g", "h")] == 12
    assert numbers[("u",)] == 13
    assert ("not",) not in numbers
    assert [(s.first, s.last) for s in statements(text)] == [(1, 4), (6, 6), (8, 11), (12, 12), (13, 13)]


# --- changes -----------------------------------------------------------------------------------------

COMMENTED = """\
# top
default_remote = "lab"   # mine

[remotes.lab]  # the lab
# its address
url = "https://a/v1"
price = { input = 1, output = 2 }  # dear

# the box in the next room
[remotes.desk]
url = "http://192.168.1.2/v1"

[profiles.fast.remotes.lab]
model = "small"

[offload]
policy = "auto" # both
"""


def comments(text: str) -> set[str]:
    return {line[line.index("#") :] for line in text.splitlines() if "#" in line}


PATHS = [
    ("default_remote",),
    ("offline",),
    ("offload", "policy"),
    ("offload", "redact"),
    ("sampling", "seed"),
    ("remotes", "lab", "url"),
    ("remotes", "lab", "price"),
    ("remotes", "lab", "price", "input"),
    ("remotes", "lab", "price", "output"),
    ("remotes", "desk", "timeout", "idle"),
    ("remotes", "desk"),
    ("remotes", "lab"),
    ("remotes", "new.er", "url"),
    ("profiles", "fast", "remotes", "lab"),
    ("profiles", "slow", "offload", "hedge"),
]
changes = st.lists(
    st.builds(Change, st.sampled_from(PATHS), st.none() | st.sampled_from([1, 2.5, "x y", True, ["a", "b"]])),
    max_size=6,
)


@given(changes, st.sampled_from([COMMENTED, "", "[offload]", 'remotes = { lab = { url = "u" } }\n', FULL]))
def test_a_change_means_what_it_says_and_keeps_the_comments(steps: list[Change], text: str) -> None:
    for step in steps:
        data = tomllib.loads(text)
        if not fits(data, step):
            continue
        after = apply(text, [step])
        assert after is not None
        assert found(tomllib.loads(after), step.path) == step.value
        kept = {path: value for path, value in leaves(data) if path[: len(step.path)] != step.path}
        assert kept.items() <= dict(leaves(tomllib.loads(after))).items()
        own_line = {line.strip() for line in text.splitlines() if line.strip().startswith("#")}
        assert own_line <= comments(after)
        if step.value is not None and found(data, step.path) is not None:
            assert comments(text) == comments(after)
        text = after


def fits(data: Any, step: Change) -> bool:
    """Not a key below something that is no table, and no value in place of a table."""
    for name in step.path[:-1]:
        data = data.get(name, {})
        if not isinstance(data, dict):
            return False
    return step.value is None or not isinstance(data.get(step.path[-1]), dict)


def found(data: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        data = data.get(name) if isinstance(data, dict) else None
    return None if data == {} else data


def leaves(data: Any, above: tuple[str, ...] = ()) -> Any:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, name))
        else:
            yield (*above, name), str(value)


def test_a_removed_table_takes_only_its_own_lines_along() -> None:
    after = apply(COMMENTED, [Change(("remotes", "lab"), None)])
    assert after == COMMENTED.replace(
        COMMENTED[COMMENTED.index("[remotes.lab]") : COMMENTED.index("# its")], ""
    ).replace('url = "https://a/v1"\nprice = { input = 1, output = 2 }  # dear\n', "")


def test_a_price_in_a_section_of_its_own_stays_there() -> None:
    text = LAB + "[remotes.lab.price]\n# dear\ninput = 1 # so\noutput = 2\nextra = 1\n\n# next\n[offload]\n"
    after = apply(text, [Change(("remotes", "lab", "price"), {"input": 3, "output": 4})])
    assert after == text.replace("= 1 #", "= 3 #").replace("= 2", "= 4").replace("extra = 1\n", "")


def test_what_is_added_looks_as_people_write_it() -> None:
    after = apply(
        "",
        [
            Change(("remotes", "lab", "url"), "https://a/v1"),
            Change(("remotes", "lab", "price"), {"input": 0.6, "output": 2}),
            Change(("default_remote",), "lab"),
            Change(("remotes", "desk", "url"), "https://b/v1"),
            Change(("offload", "redact"), ["email"]),
        ],
    )
    assert after == (
        'default_remote = "lab"\n\n[remotes.lab]\nurl = "https://a/v1"\nprice = { input = 0.6, '
        'output = 2 }\n\n[remotes.desk]\nurl = "https://b/v1"\n\n[offload]\nredact = ["email"]\n'
    )


def test_a_change_that_would_break_the_file_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(COMMENTED)
    with pytest.raises(UsageError, match=r"nothing was changed, since then: .* default_remote"):
        change_config(path, lambda data: [Change(("default_remote",), "nobody")])
    assert path.read_text() == COMMENTED


def test_a_broken_file_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[offload]\npolcy = 1\n")
    with pytest.raises(UsageError, match=r'config\.toml:2: unknown key "polcy"'):
        change_config(path, lambda data: [Change(("offline",), True)])


def test_line_ends_of_windows_stay(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(COMMENTED.replace("\n", "\r\n").encode())
    assert change_config(path, lambda data: [Change(("offline",), True)])
    data = path.read_bytes()
    assert data.count(b"\n") == data.count(b"\r\n") == COMMENTED.count("\n") + 1


def test_a_byte_order_mark_stays(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf" + COMMENTED.encode())
    assert change_config(path, lambda data: [Change(("offline",), True)])
    assert path.read_bytes().startswith(b"\xef\xbb\xbf# top")
    assert load_config(environ={}, path=path).offline


LIST = """\
[offload]
redact = [
  # people
  "email",
  # files
  "path",  # ours
]
hedge = true
"""


@pytest.mark.parametrize(
    ("items", "after"),
    [
        (["email"], LIST.replace('  "path",  # ours\n', "")),
        (["path"], LIST.replace('  "email",\n', "")),
        (["email", "path", "key"], LIST.replace("# ours\n", '# ours\n  "key"\n')),
        (["path", "key"], LIST.replace('  "email",\n', "").replace("# ours\n", '# ours\n  "key"\n')),
        ([], LIST.replace('  "email",\n', "").replace('  "path",  # ours\n', "")),
    ],
)
def test_comments_in_a_list_stay(items: list[str], after: str) -> None:
    changed = apply(LIST, [Change(("offload", "redact"), items)])
    assert changed is not None
    assert [line for line in after.splitlines() if "#" in line] == [
        line for line in changed.splitlines() if "#" in line
    ]
    assert tomllib.loads(changed)["offload"]["redact"] == items


def test_nothing_to_change_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(COMMENTED)
    before = path.stat().st_mtime_ns
    assert not change_config(path, lambda data: [Change(("offline",), None)])
    assert path.stat().st_mtime_ns == before


def test_keys_are_kept_by_their_ids() -> None:
    known = config(
        '[ui.keymap.chat]\nsend = "ctrl+s , alt+enter"\n[ui.keymap.chat.effort]\nup = ">"\n' + FREED
    )
    assert known.ui.keymap["chat.send"] == "ctrl+s,alt+enter"
    assert known.ui.keymap["chat.effort.up"] == ">"
    assert known.origin("ui.keymap.chat.send") == "config.toml:2"


FREED = '[ui.keymap.branch]\nnext = "n"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('keymap.chat.sned = "f5"', 'unknown key "sned" in [ui.keymap.chat]; did you mean "send"?'),
        ('keymap.chta.send = "f5"', "unknown section [ui.keymap.chta]; did you mean [ui.keymap.chat]?"),
        ('keymap.chat.send = "ctrl+i"', "ui.keymap.chat.send can't be ctrl+i: on a terminal that is Tab"),
        ('keymap.chat.send = "x"', "ui.keymap.chat.send can't be x: nobody could type it any more"),
        ('keymap.chat.send = "control+x"', 'holds no key\'s name: "control+x"; keys are ctrl+t,'),
        ('keymap.chat.send = "f5,"', "must be one key, or several with commas between them"),
        ("keymap.chat.send = 5", "ui.keymap.chat.send must be a text of one line"),
        ('keymap.nav.new = "ctrl+t"', '"ctrl+t" is the key of view.reasoning (thinking) too'),
        ('reasoning = "alway"', 'must be one of auto, always, never, not "alway"; did you mean "always"?'),
    ],
)
def test_keys_and_looks_that_cannot_be_meant(text: str, said: str) -> None:
    line = complaint(f"[ui]\n{text}\n")
    assert line.startswith("config.toml:2: ")
    assert said in line


def test_two_keys_can_be_exchanged() -> None:
    text = '[ui.keymap]\nnav.new = "ctrl+b"\nnav.sidebar = "ctrl+n"\n'
    assert config(text).ui.keymap == {"nav.new": "ctrl+b", "nav.sidebar": "ctrl+n"}


def test_all_profiles_are_checked() -> None:
    with pytest.raises(UsageError, match=r"profile b: .*no remote"):
        check_text(LAB + '[profiles.a]\noffline = true\n[profiles.b]\ndefault_remote = "x"\n', PATH)


@pytest.mark.parametrize("key", [*SCHEMA, *KEYS], ids=lambda key: key.name)
def test_a_setting_is_found_by_its_name(key: Key) -> None:
    assert find_key(key.name) == (tuple(key.name.split(".")), key)
    assert find_key(f"profiles.fast.{key.name}") == (("profiles", "fast", *key.name.split(".")), key)
