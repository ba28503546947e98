"""From a name to a model on the shelf, and what stands in the way of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.command_line import call, run, run_in_terminal, run_interrupted
from tests.convert.making import make_checkpoint
from tests.hub.fake_hub import COMMIT, FIN, FakeHub, Fault, Repo, answered, cut, flipped, slow, stall, status
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.converting import Conversion, Converter, Progress
from sr_edge.errors import EdgeError, ModelError, UsageError
from sr_edge.hub import pull as pulling
from sr_edge.hub.pull import Pulled, Request, Surroundings, pull
from sr_edge.hub.reference import parse_reference
from sr_edge.hub.unfinished import STALE_SECONDS
from sr_edge.remote.egress import Door
from sr_edge.remote.hub_client import HubClient
from sr_edge.shelf import models, read_beside, verify
from sr_edge.testing.egress_trap import EgressTrap
from sr_edge.trial import TrialEndedError

TOKEN = "hf_canaryCanaryCanary"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"SR_EDGE_HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ""}


@contextmanager
def hub_of(env: dict[str, str], *faults: Fault, token: str | None = None, **repos: Repo) -> Iterator[FakeHub]:
    with FakeHub(*faults, token=token, **repos) as hub:
        env["HF_ENDPOINT"] = hub.url
        yield hub


def shelf(env: dict[str, str]) -> Path:
    return Path(env["SR_EDGE_HOME"]) / "models"


def left(env: dict[str, str]) -> list[str]:
    """All that lies on the shelf and on its way there, locks aside."""
    paths = (path.relative_to(shelf(env)) for path in shelf(env).rglob("*") if path.suffix != ".lock")
    return sorted(str(path) for path in paths if str(path) != ".downloads")


# --- the command -------------------------------------------------------------------------------------


def test_a_model_is_pulled_used_shown_and_not_pulled_again(tiny: bytes, env: dict[str, str]) -> None:
    with hub_of(env, a__b=Repo({"m-Q4_K_M.gguf": tiny, "m-Q8_0.gguf": tiny + b"x"})) as hub:
        done = call("models", "pull", "a/b", "--default", env=env)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"m-Q4_K_M: 445.1 kB, it is at {shelf(env) / 'm-Q4_K_M.gguf'}" in done.stdout
        assert left(env) == ["m-Q4_K_M.gguf", "m-Q4_K_M.json"]
        (model,) = json.loads(call("models", "list", "--json", env=env).stdout)
        assert model["default"]
        passport = model["passport"]
        assert (passport["repo"], passport["revision"], passport["file"]) == ("a/b", COMMIT, "m-Q4_K_M.gguf")
        assert passport["sha256"] == hashlib.sha256(tiny).hexdigest()
        assert call("models", "verify", "m-Q4_K_M", env=env).returncode == 0
        again = call("models", "pull", f"{hub.url}/a/b", env=env)
        assert "it is there already" in again.stdout
        assert len(hub.contents) == 1
        assert call("models", "pull", "a/b:q8_0", env=env).returncode == 0
    done = call("ask", "2 + 2", "--temp", "0", "--max-tokens", "4", env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["a/b:y.gguf"], 4, "did you mean m.gguf?"),
        (["a/zzz"], 4, "has no repository a/zzz: check the spelling"),
        (["a/b", "--revision", "v9"], 4, "has no revision v9"),
        (["a/gated"], 4, "is gated: accept its terms at"),
        (["a/private"], 4, "set HF_TOKEN"),
        (["a/page"], 4, "a web page"),
        (["a/b", "--name", "../x"], 2, "is no name for a model"),
        (["a/b", "--name", "none"], 2, "means the built-in pair"),
        (["../b"], 2, "is no repository"),
        (["a/b", "--type", "q9"], 4, "has no file of type q9"),
    ],
)
def test_what_cannot_be_pulled_is_one_line_and_leaves_nothing(
    arguments: list[str], code: int, says: str, tiny: bytes, env: dict[str, str]
) -> None:
    repos = {
        "a__b": Repo({"m.gguf": tiny}),
        "a__gated": Repo({"m.gguf": tiny}, is_gated=True),
        "a__private": Repo({"m.gguf": tiny}, is_private=True),
        "a__page": Repo({"m.gguf": b"<html>" * 500}),
    }
    with hub_of(env, **repos):
        done = call("models", "pull", *arguments, env=env)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("sr-edge: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert left(env) == []


def test_a_token_opens_what_is_gated_and_is_shown_to_nobody(tiny: bytes, env: dict[str, str]) -> None:
    repo = Repo({"m.gguf": tiny}, is_gated=True, is_private=True)
    with hub_of(env, token=TOKEN, a__b=repo) as hub:
        done = call("models", "pull", "a/b", env=env | {"HF_TOKEN": TOKEN})
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        assert all("authorization" not in request.headers for request in hub.cdn.requests)
        Path(env["HF_HOME"]).mkdir()
        (Path(env["HF_HOME"]) / "token").write_text(f"{TOKEN}\n")
        assert call("models", "pull", "a/b", "--name", "other", env=env).returncode == 0
        hub.api_faults = [status(302, Location=f"http://{TOKEN}/", Content_Length=0)]
        steered = call("models", "pull", "a/b", env=env | {"HF_TOKEN": TOKEN})
        assert "redirects to where nothing is fetched from: http://***" in steered.stderr
        assert TOKEN.lower() not in steered.stderr.lower()
        assert (
            "does not accept your token" in call("models", "pull", "a/b", env=env | {"HF_TOKEN": "no"}).stderr
        )
    assert TOKEN not in "".join(path.read_text() for path in shelf(env).glob("*.json"))


@pytest.mark.parametrize("way", ["--offline", "HF_HUB_OFFLINE", "SR_EDGE_OFFLINE"])
def test_offline_no_socket_is_made_and_the_shelf_answers(way: str, tiny: bytes, env: dict[str, str]) -> None:
    with hub_of(env, a__b=Repo({"m.gguf": tiny})):
        assert call("models", "pull", "a/b", env=env).returncode == 0
    arguments = [way] if way.startswith("--") else []
    env |= {} if arguments else {way: "1"}
    with EgressTrap() as trap:
        there = call("models", "pull", "a/b", *arguments, env=env)
        missing = call("models", "pull", "a/other", *arguments, env=env)
    assert (trap.attempts, trap.sockets) == ([], 0)
    assert (there.returncode, missing.returncode) == (0, 3)
    assert "it is there already" in there.stdout
    assert "offline" in missing.stderr
    assert "which holds m" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["a/b:F16"], None),
        (["a/b", "--type", "q8_0"], None),
        (["a/b:Q4_K"], None),
        (["a/b", "--name", "other"], None),
        (["a/b@fff"], None),
        (["a/b:bf16"], "m-BF16"),
        (["a/b", "--type", "Q4_K_M", "--name", "m-Q4_K_M"], "m-Q4_K_M"),
        (["a/b:m-BF16.gguf", "--revision", COMMIT[:7]], "m-BF16"),
    ],
)
def test_offline_the_shelf_answers_with_what_was_meant(
    arguments: list[str], name: str | None, tiny: bytes, env: dict[str, str]
) -> None:
    with hub_of(env, a__b=Repo({"m-BF16.gguf": tiny, "m-Q4_K_M.gguf": tiny + b"x"})):
        for file in ("bf16", "q4_k_m"):
            assert call("models", "pull", f"a/b:{file}", env=env).returncode == 0
    done = call("models", "pull", *arguments, "--offline", env=env)
    assert done.returncode == (0 if name else 3), done.stderr
    assert done.stdout.startswith(f"{name}: ") or name is None


def test_offline_a_model_that_was_changed_is_said(tiny: bytes, env: dict[str, str]) -> None:
    with hub_of(env, a__b=Repo({"m.gguf": tiny})):
        assert call("models", "pull", "a/b", env=env).returncode == 0
    (shelf(env) / "m.gguf").write_bytes(tiny[:-1])
    done = call("models", "pull", "a/b", "--offline", env=env)
    assert (done.returncode, "not the one that came" in done.stderr) == (4, True)


def test_what_huggingface_hub_makes_of_a_card_is_no_line_of_ours(tiny: bytes, env: dict[str, str]) -> None:
    card = {"id": "a/b", "sha": COMMIT, "siblings": [], "cardData": {"model-index": "x"}}
    body = json.dumps(card).encode()
    with hub_of(env, a__b=Repo({"m.gguf": tiny})) as hub:
        hub.api_faults = [lambda ask: answered(ask, body=body, length=len(body), kind="application/json")]
        done = run("models", "pull", "a/b", env=env)
    assert (
        done.stderr
        == "sr-edge: a/b holds no model that could run here: no GGUF and no safetensors, but nothing\n"
    )


def test_a_warning_of_the_hub_s_steers_no_terminal(tiny: bytes, env: dict[str, str]) -> None:
    with hub_of(env, a__b=Repo({"m.gguf": tiny})) as hub:
        hub.api_faults = [status(404, X_HF_Warning="buy; \x1b[2Jthis", X_Error_Message="\x1b[2Jno")]
        done = run("models", "pull", "a/b", env=env)
    assert "has no repository a/b" in done.stderr or "does not speak HTTP" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "buy" not in done.stderr


@pytest.mark.parametrize("proxy", ["http_proxy", "https_proxy", "ALL_PROXY"])
def test_proxies_of_the_environment_are_not_used(proxy: str, tiny: bytes, env: dict[str, str]) -> None:
    with hub_of(env, a__b=Repo({"m.gguf": tiny})), EgressTrap() as trap:
        assert call("models", "pull", "a/b", env=env | {proxy: "http://127.0.0.1:9"}).returncode == 0
    assert 9 not in {attempt.port for attempt in trap.attempts}


@pytest.mark.parametrize("endpoint", ["http://[", "hub", "ftp://hub", "https://"])
def test_an_endpoint_that_is_no_address_is_said(endpoint: str, env: dict[str, str]) -> None:
    done = call("models", "pull", "a/b", env=env | {"HF_ENDPOINT": endpoint})
    assert (done.returncode, done.stderr.startswith("sr-edge: HF_ENDPOINT: ")) == (2, True)


def test_a_hub_in_plain_http_is_refused(env: dict[str, str]) -> None:
    done = call("models", "pull", "a/b", env=env | {"HF_ENDPOINT": "http://hub.example"})
    assert (done.returncode, "HF_ENDPOINT: http://hub.example is not encrypted" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"id": "a/b"}',
        b'{"id": 1, "sha": 2}',
        b"<html>",
        b'{"id": "a/b", "siblings": 3}',
        b'{"id": "../../b", "sha": "%s", "siblings": []}' % (b"a" * 40),
        b"\xff",
    ],
)
def test_a_hub_that_says_nonsense_is_one_line(body: bytes, tiny: bytes, env: dict[str, str]) -> None:
    with hub_of(env, a__b=Repo({"m.gguf": tiny})) as hub:
        hub.api_faults = [lambda ask: answered(ask, body=body, length=len(body), kind="application/json")]
        done = call("models", "pull", "a/b", env=env)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "a hub of models?" in done.stderr


def test_hostile_names_in_a_repository_lead_nowhere(tiny: bytes, env: dict[str, str]) -> None:
    names = ["../../evil.gguf", "/etc/evil.gguf", "a\\..\\evil.gguf", "\x1b[2Jevil.gguf", "C:evil.gguf"]
    with hub_of(env, a__b=Repo(dict.fromkeys(names, tiny))):
        done = call("models", "pull", "a/b", env=env)
    assert done.returncode == 4
    assert "holds no model" in done.stderr
    assert "\x1b" not in done.stderr


def test_a_terminal_sees_each_file_and_how_far_it_is(tiny: bytes, env: dict[str, str]) -> None:
    data = tiny + b"\0" * 3_000_000
    with hub_of(env, slow(30, 0.05), a__b=Repo({"m-Q4_K_M.gguf": data})):
        code, shown = run_in_terminal("models", "pull", "a/b", columns=70, env=env)
    assert code == 0, shown
    drawn = shown.split("\n")[0].split("\r")
    assert any(
        line.startswith("m-Q4_K_M.gguf ") and "% of 3.4 MB" in line and "/s, " in line for line in drawn
    )
    assert max(map(len, drawn[:-1])) < 70


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_pull_that_is_stopped_goes_on_from_there(
    number: int, code: int, tiny: bytes, env: dict[str, str]
) -> None:
    data = tiny + os.urandom(3_000_000)

    def has_begun() -> bool:
        return any(path.stat().st_size > 500_000 for path in (shelf(env) / ".downloads").glob("*.part"))

    with hub_of(env, stall(2_000_000), a__b=Repo({"m.gguf": data})) as hub:
        done = run_interrupted("models", "pull", "a/b", when=has_begun, number=number, env=env)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        if number != signal.SIGKILL:
            assert "the same command goes on from there" in done.stderr
        listed = call("models", "list", env=env)
        assert "of m.gguf have come: `sr-edge models pull a/b:m.gguf` goes on from there" in listed.stderr
        assert call("models", "pull", "a/b", env=env).returncode == 0
        assert hub.contents[-1].headers["range"].startswith("bytes=")
    assert (shelf(env) / "m.gguf").read_bytes() == data
    assert left(env) == ["m.gguf", "m.json"]


# --- checkpoints -------------------------------------------------------------------------------------

CONFIG = json.dumps({"model_type": "qwen2"}).encode()
WEIGHTS = {"model-00001-of-00002.safetensors": b"1" * 5000, "model-00002-of-00002.safetensors": b"2" * 6000}
INDEX = json.dumps({"weight_map": dict(zip("ab", WEIGHTS, strict=True))}).encode()
CHECKPOINT = {
    "config.json": CONFIG,
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": INDEX,
    "optimizer.pt": b"x" * 9999,
    **WEIGHTS,
}


class Pulls:
    """Pulls with a converter that writes a tiny model, and notes what it was called with."""

    def __init__(self, env: dict[str, str], tiny: bytes) -> None:
        self.env = env
        self.tiny = tiny
        self.conversions: list[tuple[Conversion, list[str]]] = []
        self.notes: list[str] = []
        self.doing: list[str] = []
        self.failure: Exception | None = None

    def convert(self, conversion: Conversion, progress: Progress) -> None:
        names = sorted(path.name for path in conversion.checkpoint.iterdir())
        self.conversions.append((conversion, names))
        progress("converting", 1, 2)
        if self.failure is not None:
            raise self.failure
        conversion.out.write_bytes(self.tiny)

    def find_converter(self) -> Converter:
        return self.convert

    def pull(self, what: str = "a/b", **options: Any) -> Pulled:
        options = {"type": None, "name": None} | options
        with HubClient(Door(), self.env["HF_ENDPOINT"], sleep=lambda seconds: None) as client:
            around = Surroundings(
                self.env,
                None,
                lambda doing, done, whole: self.doing.append(doing),
                self.notes.append,
                find_converter=self.find_converter,
            )
            return pull(client, Request(parse_reference(what), **options), around)


@pytest.fixture
def pulls(env: dict[str, str], tiny: bytes) -> Pulls:
    return Pulls(env, tiny)


def test_a_checkpoint_is_fetched_and_converted(pulls: Pulls) -> None:
    with hub_of(pulls.env, cut(100), a__b=Repo(CHECKPOINT)) as hub:
        pulled = pulls.pull()
        assert not any("optimizer" in request.path for request in hub.hub.requests)
    ((conversion, names),) = pulls.conversions
    assert names == sorted({*CHECKPOINT} - {"optimizer.pt"})
    assert (conversion.type, conversion.source) == ("q4_k_m", f"a/b@{COMMIT}")
    assert pulled.model.name == "b-q4_k_m"
    passport = read_beside(pulled.model.path)
    assert passport is not None
    assert (passport.repo, passport.file, passport.converted) == ("a/b", None, "q4_k_m")
    assert verify(pulled.model.path).problem is None
    assert left(pulls.env) == ["b-q4_k_m.gguf", "b-q4_k_m.json"]
    assert "model-00002-of-00002.safetensors (2 of 2)" in pulls.doing
    with hub_of(pulls.env, a__b=Repo(CHECKPOINT)) as hub:
        assert pulls.pull().was_there
        assert hub.contents == []


def test_a_checkpoint_is_kept_where_it_is_asked_for(pulls: Pulls) -> None:
    with hub_of(pulls.env, a__b=Repo(CHECKPOINT)):
        pulled = pulls.pull(keep_checkpoint=True, type="q8_0")
    assert pulled.checkpoint == shelf(pulls.env) / "checkpoints" / "b-q8_0"
    assert (pulled.checkpoint / "config.json").read_bytes() == CONFIG
    assert [model.name for model in models(pulls.env)] == ["b-q8_0"]
    with hub_of(pulls.env, a__b=Repo(CHECKPOINT)):
        assert pulls.pull(keep_checkpoint=True, type="q8_0").checkpoint == pulled.checkpoint
        shutil.rmtree(pulled.checkpoint)
        assert pulls.pull(keep_checkpoint=True, type="q8_0").checkpoint is None
        assert "was not kept: --force fetches and converts it again" in pulls.notes[-1]
        pulled.checkpoint.symlink_to(pulls.env["SR_EDGE_HOME"])  # moved to a larger disk, say
        assert pulls.pull(keep_checkpoint=True, type="q8_0", force=True).checkpoint == pulled.checkpoint
    assert (pulled.checkpoint / "config.json").read_bytes() == CONFIG
    assert Path(pulls.env["SR_EDGE_HOME"]).is_dir()


def test_a_type_that_nobody_knows_costs_nothing(pulls: Pulls) -> None:
    with hub_of(pulls.env, a__b=Repo(CHECKPOINT)) as hub:
        with pytest.raises(UsageError, match="'q9' is no type of weights: choose one of f32"):
            pulls.pull(type="q9")
        assert hub.contents == []


def test_a_type_in_the_place_of_a_file_is_converted_to(pulls: Pulls) -> None:
    with hub_of(pulls.env, a__b=Repo(CHECKPOINT)):
        assert pulls.pull("a/b:Q6_K").model.name == "b-q6_k"


def test_what_cannot_be_converted_costs_no_weights(pulls: Pulls) -> None:
    repo = Repo(CHECKPOINT | {"config.json": b'{"model_type": "gemma3"}'})
    with hub_of(pulls.env, a__b=repo) as hub:
        with pytest.raises(ModelError, match="of the kind gemma3"):
            pulls.pull()
        assert hub.cdn.requests == []
    assert left(pulls.env) == []


def test_a_conversion_that_fails_is_tried_again_without_fetching(pulls: Pulls) -> None:
    with hub_of(pulls.env, a__b=Repo(CHECKPOINT)) as hub:
        pulls.failure = ModelError("the tokenizer is of a kind that nobody knows")
        with pytest.raises(ModelError, match="nobody knows"):
            pulls.pull()
        assert any("is kept for 14 days" in note for note in pulls.notes)
        fetched = len(hub.contents)
        assert models(pulls.env) == []
        pulls.failure = None
        (folder,) = (path for path in (shelf(pulls.env) / ".downloads").iterdir() if path.is_dir())
        killed = folder / ".b-q4_k_m.gguf.0123.partial"
        killed.mkdir()
        (killed / "model.gguf").write_bytes(b"x")
        pulls.failure = EdgeError("the disk is full")
        with pytest.raises(EdgeError, match="full"):
            pulls.pull()
        assert not killed.exists()
        pulls.failure = None
        pulls.pull()
        assert len(hub.contents) == fetched
    assert left(pulls.env) == ["b-q4_k_m.gguf", "b-q4_k_m.json"]


def test_a_checkpoint_that_somebody_goes_on_with_is_not_swept(pulls: Pulls) -> None:
    with hub_of(pulls.env, a__b=Repo(CHECKPOINT)):
        pulls.failure = ModelError("it cannot be converted")
        with pytest.raises(ModelError):
            pulls.pull()
        (folder,) = (path for path in (shelf(pulls.env) / ".downloads").iterdir() if path.is_dir())
        os.utime(folder, (time.time() - STALE_SECONDS + 60,) * 2)
        with pytest.raises(ModelError):
            pulls.pull()
    assert folder.stat().st_mtime > time.time() - 60


def test_a_stop_while_it_converts_leaves_the_checkpoint_alone(pulls: Pulls) -> None:
    with hub_of(pulls.env, a__b=Repo(CHECKPOINT)):
        pulls.failure = KeyboardInterrupt()  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            pulls.pull()
        assert models(pulls.env) == []
        assert not list(shelf(pulls.env).rglob("*.gguf"))


def test_a_real_checkpoint_becomes_a_model_that_writes(env: dict[str, str], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "q", "qwen2", hidden=256, inner=512, shards=2, markers="token")
    with hub_of(env, cut(100_000), a__b=Repo({path.name: path.read_bytes() for path in folder.iterdir()})):
        done = call("models", "pull", "a/b", "--keep-checkpoint", "--name", "mine", env=env)
        assert done.returncode == 0, done.stderr
    (model,) = json.loads(call("models", "list", "--json", env=env).stdout)
    assert (model["name"], model["quantization"], model["markers"]) == ("mine", "Q4_K_M", "token")
    assert "here, from a checkpoint, to q4_k_m" in call("models", "show", "mine", env=env).stdout
    assert call("ask", "2 + 2", "-m", "mine", "--temp", "0", "--max-tokens", "4", env=env).returncode == 0
    assert call("models", "verify", "mine", env=env).returncode == 0
    assert "its checkpoint is still at" in call("models", "rm", "mine", "-y", env=env).stdout


def test_without_the_extra_nothing_is_fetched(pulls: Pulls) -> None:
    def none() -> Converter:
        raise UsageError("pip install 'sr-edge[convert]'")

    pulls.find_converter = none  # type: ignore[method-assign]
    with hub_of(pulls.env, a__b=Repo(CHECKPOINT)) as hub:
        with pytest.raises(UsageError, match="pip install"):
            pulls.pull()
        assert hub.contents == []


def test_room_is_looked_for_before_anything_comes(pulls: Pulls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=65 << 20))
    gguf = {"m.gguf": b"x" * 2_000_000}
    with hub_of(pulls.env, a__b=Repo(gguf), c__d=Repo(CHECKPOINT)) as hub:
        with pytest.raises(
            EdgeError, match=r"no room for it: it takes 2\.0 MB to fetch, and 68\.2 MB is free"
        ) as failed:
            pulls.pull()
        assert failed.value.exit_code == 1
        assert hub.contents == []
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=(64 << 20) + 20_000))
        with pytest.raises(EdgeError, match=r"to fetch and 15\.1 kB to convert it"):
            pulls.pull("c/d")


def test_room_is_looked_for_once_more_when_the_index_was_read(
    pulls: Pulls, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = json.dumps({"weight_map": {"a": "odd.safetensors"}}).encode()
    files = {"config.json": CONFIG, "tokenizer.json": b"{}", "model.safetensors.index.json": index}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=(64 << 20) + 20_000))
    with hub_of(pulls.env, a__b=Repo(files | {"odd.safetensors": b"x" * 50_000})) as hub:
        with pytest.raises(EdgeError, match="no room for it"):
            pulls.pull()
        assert hub.cdn.requests == []


def test_a_name_that_is_taken_is_said_before_anything_comes(pulls: Pulls) -> None:
    with hub_of(
        pulls.env, a__b=Repo({"m.gguf": pulls.tiny}), c__d=Repo({"m.gguf": pulls.tiny + b"x"})
    ) as hub:
        pulls.pull()
        with pytest.raises(UsageError, match="there is a model m on the shelf already"):
            pulls.pull("c/d")
        assert len(hub.contents) == 1
        assert pulls.pull("c/d", force=True).model.size == len(pulls.tiny) + 1


def test_a_model_that_was_damaged_on_the_shelf_is_said_and_got_again(pulls: Pulls) -> None:
    with hub_of(pulls.env, a__b=Repo({"m.gguf": pulls.tiny})):
        path = pulls.pull().model.path
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(ModelError, match=f"sr-edge models pull a/b:m.gguf --revision {COMMIT} --force"):
            pulls.pull()
        pulls.pull(force=True)
    assert verify(path).problem is None


def test_a_file_that_crashes_the_engine_does_not_come_in(
    pulls: Pulls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(path: Path, poll: object) -> None:
        raise ModelError(f"{path.name}: it crashed")

    monkeypatch.setattr(pulling, "try_opening", crash)
    repo = Repo({"m.gguf": pulls.tiny})
    with hub_of(pulls.env, a__b=repo), pytest.raises(ModelError, match="it crashed"):
        pulls.pull()
    assert left(pulls.env) == []


def test_a_file_that_the_machine_had_no_means_to_try_is_kept(
    pulls: Pulls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(path: Path, poll: object) -> None:
        raise TrialEndedError(f"{path}: the system ended it")

    with hub_of(pulls.env, a__b=Repo({"m.gguf": pulls.tiny})) as hub:
        with monkeypatch.context() as patch:
            patch.setattr(pulling, "try_opening", end)
            with pytest.raises(TrialEndedError, match=r"^a/b: m\.gguf: the system"):
                pulls.pull()
        pulls.pull()
        assert len(hub.contents) == 1
    assert left(pulls.env) == ["m.gguf", "m.json"]


def test_a_file_that_is_thrown_away_is_called_as_the_hub_calls_it(pulls: Pulls) -> None:
    with hub_of(pulls.env, a__b=Repo({"sub/m.gguf": b"GGUF"})), pytest.raises(ModelError) as refused:
        pulls.pull()
    assert str(refused.value).startswith("a/b: sub/m.gguf: ")
    assert ".downloads" not in str(refused.value)


def test_a_moved_branch_is_another_model(pulls: Pulls) -> None:
    repo = Repo({"m.gguf": pulls.tiny})
    with hub_of(pulls.env, a__b=repo):
        pulls.pull()
        repo.commit, repo.files = "f" * 40, {"m.gguf": pulls.tiny + b"new"}
        pulls.pull(force=True)
        passport = read_beside(shelf(pulls.env) / "m.gguf")
        assert passport is not None
        assert passport.revision == "f" * 40


def test_a_busy_hub_is_asked_again(pulls: Pulls) -> None:
    with hub_of(pulls.env, flipped(9), a__b=Repo({"m.gguf": pulls.tiny})) as hub:
        hub.api_faults = [status(429, Retry_After=1), status(503), lambda ask: [FIN]]
        with pytest.raises(ModelError, match="not what the hub announced"):
            pulls.pull()
        assert len(pulls.notes) == 3
        pulls.pull()
