"""The doctor: what it looks at, how it judges, and what it tells a user to do."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.command_line import COMMAND, call, environment, run_in_terminal
from tests.edge.dialect_servers import served
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.budget import Budget
from sr_edge.config import RemoteConfig
from sr_edge.doctor import Check, checks, machine
from sr_edge.doctor.machine import Cores, Device, Gpu, Memory
from sr_edge.gguf_header import read_header
from sr_edge.keys import KnownKey
from sr_edge.passport import demo_paths
from sr_edge.shelf import Facts, facts_of
from sr_edge.testing.egress_trap import EgressTrap

GB = 10**9
LAB = RemoteConfig(name="lab", url="https://lab.example/v1", model="big")
KEY = KnownKey("lab", "file", "https://lab.example:443", "•••9f2c")
NO_BUDGET = Budget()


@pytest.fixture(scope="module")
def facts() -> Facts:
    return facts_of(read_header(demo_paths().small))


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"SR_EDGE_HOME": str(tmp_path / "home"), "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}


# --- judging -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "available", "state"),
    [
        (16 * GB, 8 * GB, "ok"),
        (16 * GB, 1 * GB, "warn"),
        (1 * GB, 1 * GB, "fail"),
        (16 * GB, None, "ok"),
        (None, None, "ok"),
        (None, 1 * GB, "warn"),
    ],
)
def test_memory_is_held_against_what_the_model_needs(
    total: int | None, available: int | None, state: str, facts: Facts
) -> None:
    needs = replace(facts, memory=2 * GB)
    check = checks.check_memory(Memory(total, available), needs)
    assert check.state == state
    assert "the model needs about 2.0 GB" in check.says


def test_memory_without_a_model_is_only_told() -> None:
    assert checks.check_memory(Memory(GB, GB), None) == Check("memory", "ok", "1.0 GB in all, 1.0 GB free")


@pytest.mark.parametrize(
    ("cores", "state"),
    [
        (Cores(8, 0.5), "ok"),
        (Cores(8, None), "ok"),
        (Cores(8, 13.0), "warn"),
        (Cores(1, 0.1), "warn"),
    ],
)
def test_busy_or_single_cores_are_told(cores: Cores, state: str) -> None:
    assert checks.check_cores(cores).state == state


def test_the_devices_of_llama_cpp_are_named() -> None:
    found = Gpu(True, (Device("CUDA0", "NVIDIA H200", 141 * GB, 140 * GB),))
    assert checks.check_gpu(found) == Check("gpu", "ok", "NVIDIA H200 (141.0 GB, 140.0 GB free)")
    assert checks.check_gpu(Gpu(False, ())).state == "ok"
    assert checks.check_gpu(Gpu(True, ())).state == "warn"
    assert checks.check_gpu(Gpu(False, (), "no module")).state == "fail"


def test_a_model_is_judged_by_its_header(facts: Facts) -> None:
    def judged(facts: Facts | None, problem: str | None = None, *, is_built_in: bool = False) -> Check:
        return checks.check_model("x.gguf", facts, problem, is_built_in=is_built_in)

    assert judged(facts).state == "ok"
    assert "the built-in pair" in judged(facts, is_built_in=True).says
    assert judged(replace(facts, markers=None)).state == "warn"
    assert judged(replace(facts, markers=None, marker_problem="wrong ids")).state == "fail"
    missing = judged(None, "x.gguf: there is no such file")
    assert (missing.state, missing.says) == ("fail", "x.gguf: there is no such file")


@pytest.mark.parametrize(
    ("changes", "state", "says"),
    [
        ({}, "ok", "its key is in the file of keys; not asked now, --online does"),
        ({"remote": None, "key": None}, "warn", "none is set up: the small model writes alone"),
        ({"remote": None, "key": None, "has_own_large_model": True}, "ok", "the built-in pair has its own"),
        ({"key": KnownKey("lab", None, "")}, "ok", "no key, none is sent"),
        ({"key": replace(KEY, problem="not set")}, "fail", "its key: not set"),
        ({"offline": "config.toml:1"}, "warn", "offline (config.toml:1), so it is not asked"),
        ({"budget": Budget(usd_per_day=1.0)}, "warn", "its price is not known"),
        ({"answer": "2 models"}, "ok", "it answers: 2 models"),
        ({"failure": "remote lab: no route"}, "fail", "remote lab: no route"),
    ],
)
def test_a_remote_is_judged_by_its_settings(changes: dict[str, object], state: str, says: str) -> None:
    given = {"remote": LAB, "key": KEY, "offline": None, "has_own_large_model": False, "budget": NO_BUDGET}
    check = checks.check_remote(**given | changes)  # type: ignore[arg-type]
    assert check.state == state
    assert says in check.says


@pytest.mark.parametrize(("year", "state"), [(1970, "fail"), (2024, "fail"), (2026, "ok"), (2110, "fail")])
def test_a_clock_that_is_wrong_is_told(year: int, state: str) -> None:
    assert checks.check_clock(year, f"{year}-01-01").state == state


@pytest.mark.parametrize(
    ("changes", "state", "says"),
    [
        ({}, "ok", "80 x 24, 256 colours, UTF-8"),
        ({"environ": {"TERM": "xterm-256color", "NO_COLOR": "1"}}, "ok", "no colours (NO_COLOR)"),
        ({"environ": {"TERM": "xterm-256color", "COLORTERM": "truecolor"}}, "ok", "16 million colours"),
        ({"environ": {"TERM": "dumb"}}, "warn", "TERM says that it can do nothing"),
        ({"is_terminal": False}, "warn", "a pipe or a file"),
        ({"shows_marks": False, "encoding": "ASCII"}, "warn", "cannot show the marks"),
        ({"columns": 59}, "warn", "59 x 24"),
        ({"rows": 19}, "warn", "80 x 19"),
    ],
)
def test_a_terminal_is_judged_by_what_it_can_show(changes: dict[str, object], state: str, says: str) -> None:
    given = {
        "is_terminal": True,
        "columns": 80,
        "rows": 24,
        "encoding": "UTF-8",
        "shows_marks": True,
        "environ": {"TERM": "xterm-256color"},
    }
    check = checks.check_terminal(**given | changes)  # type: ignore[arg-type]
    assert check.state == state
    assert says in check.says


@pytest.mark.parametrize(
    ("version", "state"), [("0.3.35", "fail"), ("0.3.36", "ok"), ("0.3.36+cu124", "ok"), ("0.3.37", "fail")]
)
def test_versions_are_held_against_what_we_need(version: str, state: str) -> None:
    wanted = {"llama-cpp-python": ("0.3.36", "0.3.37")}
    check = checks.check_versions("1.0", {"python": "3.11.7", "llama-cpp-python": version}, wanted)
    assert check.state == state


@pytest.mark.parametrize(
    ("needs", "found"),
    [
        (["llama-cpp-python<0.3.37,>=0.3.36"], {"llama-cpp-python": ("0.3.36", "0.3.37")}),
        (["httpx>=0.28,<1", "rich>=13.9", "numpy>=1.26"], {"httpx": ("0.28", "1")}),
        (["textual>=8.2.6,<9; extra == 'x'"], {}),
        (None, {}),
    ],
)
def test_the_versions_that_we_need_stand_in_our_own_package(
    needs: list[str] | None, found: dict[str, tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "requires", lambda package: needs)
    assert machine.wanted_versions() == found


def test_a_package_that_is_missing_is_named() -> None:
    check = checks.check_versions("1.0", {"python": "3.11.7", "textual": None}, {})
    assert (check.state, check.do) == ("fail", "pip install 'textual'")


@given(st.data())
def test_whatever_is_not_well_says_what_to_do(data: st.DataObject) -> None:
    text = st.sampled_from(["x", "a longer reason"])
    sizes = st.none() | st.integers(0, 10**13)
    facts = facts_of(read_header(demo_paths().small))
    known = st.none() | st.builds(
        replace,
        st.just(facts),
        memory=st.integers(0, 10**12),
        markers=st.sampled_from([None, facts.markers]),
        marker_problem=st.none() | text,
    )
    devices = st.lists(st.builds(Device, text, text, st.integers(0, 9), st.integers(0, 9)), max_size=2).map(
        tuple
    )
    model = data.draw(known)
    made = [
        checks.check_versions(
            "1", data.draw(st.dictionaries(text, st.none() | st.just("1.2"))), {"x": ("1", "1.1")}
        ),
        checks.check_settings("path", data.draw(st.none() | text)),
        checks.check_cores(Cores(data.draw(st.integers(1, 64)), data.draw(st.none() | st.floats(0, 100)))),
        checks.check_memory(Memory(data.draw(sizes), data.draw(sizes)), model),
        checks.check_gpu(Gpu(data.draw(st.booleans()), data.draw(devices), data.draw(st.none() | text))),
        checks.check_model("p", model, None if model else "gone", is_built_in=data.draw(st.booleans())),
        checks.check_remote(
            data.draw(st.sampled_from([None, LAB])),
            data.draw(
                st.sampled_from([None, KEY, replace(KEY, problem="not set"), replace(KEY, place=None)])
            ),
            offline=data.draw(st.none() | text),
            has_own_large_model=data.draw(st.booleans()),
            budget=data.draw(st.sampled_from([NO_BUDGET, Budget(usd_per_answer=0.1)])),
            answer=data.draw(st.none() | text),
            failure=data.draw(st.none() | text),
        ),
        checks.check_clock(data.draw(st.integers(1970, 2200)), "now"),
        checks.check_terminal(
            is_terminal=data.draw(st.booleans()),
            columns=data.draw(st.integers(0, 300)),
            rows=data.draw(st.integers(0, 100)),
            encoding="UTF-8",
            shows_marks=data.draw(st.booleans()),
            environ=data.draw(st.sampled_from([{}, {"TERM": "dumb"}, {"TERM": "xterm"}])),
        ),
        checks.check_disk("/x", data.draw(sizes), data.draw(st.none() | text)),
        checks.check_history("/x", data.draw(sizes), data.draw(st.none() | text)),
    ]
    for check in made:
        assert bool(check.do) == (check.state != "ok"), check
        assert check.says
        assert "\n" not in check.says + check.do
    assert checks.is_well(made) == all(check.state != "fail" for check in made)


# --- looking -----------------------------------------------------------------------------------------

MEMINFO = "MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:    8000000 kB\nBuffers:\n"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"/proc/meminfo": MEMINFO}, Memory(16_384_000_000, 8_192_000_000)),
        (
            {
                "/proc/meminfo": MEMINFO,
                "/sys/fs/cgroup/memory.max": "4000\n",
                "/sys/fs/cgroup/memory.current": "1000",
            },
            Memory(4000, 3000),
        ),
        (
            {
                "/proc/meminfo": MEMINFO,
                "/sys/fs/cgroup/memory.max": "max\n",
                "/sys/fs/cgroup/memory.current": "1000",
            },
            Memory(16_384_000_000, 8_192_000_000),
        ),
    ],
)
def test_memory_is_the_containers_where_that_is_less(files: dict[str, str], found: Memory) -> None:
    assert machine.memory(lambda path: files.get(path, "")) == found


def test_where_the_system_says_little_memory_is_not_guessed() -> None:
    assert machine.memory(lambda path: "").available is None


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("print('noise'); print('{\"offloads\": true, \"devices\": [[\"a\", \"b\", 2, 1]]}')",
         Gpu(True, (Device("a", "b", 2, 1),))),
        ("import os; os.write(2, b'driver is gone\\n'); os.abort()", Gpu(False, (), "driver is gone")),
        ("import module_that_is_not_here",
         Gpu(False, (), "ModuleNotFoundError: No module named 'module_that_is_not_here'")),
        ("print('{}')", Gpu(False, (), "llama.cpp ended with code 0")),
        ("raise SystemExit(3)", Gpu(False, (), "llama.cpp ended with code 3")),
    ],
)  # fmt: skip
def test_whatever_becomes_of_the_child_that_asks_for_gpus_is_told(program: str, found: Gpu) -> None:
    assert machine.gpu(environment(), ask=program) == found


def test_llama_cpp_itself_is_asked() -> None:
    found = machine.gpu(environment())
    assert found.problem is None
    assert found.offloads == bool(found.devices)


def test_free_disk_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    assert machine.free_disk(tmp_path / "a" / "b") == machine.free_disk(tmp_path)


# --- the command -------------------------------------------------------------------------------------


def test_a_fresh_machine_is_well_and_no_socket_is_opened(home: dict[str, str]) -> None:
    with EgressTrap() as trap:
        done = call("doctor", env=home)
    assert (done.returncode, trap.sockets) == (0, 0), done.stdout
    assert "the built-in pair" in done.stdout
    assert not Path(home["SR_EDGE_HOME"]).exists()  # it only looks


def test_json_has_every_check(home: dict[str, str]) -> None:
    said = json.loads(call("doctor", "--json", env=home).stdout)
    assert said["ok"] is True
    assert [check["name"] for check in said["checks"]] == [
        "versions", "settings", "cores", "memory", "gpu", "model", "remote", "clock", "terminal", "disk",
        "history",
    ]  # fmt: skip
    assert {frozenset(check) for check in said["checks"]} == {frozenset({"name", "state", "says", "do"})}


def states(home: dict[str, str], *arguments: str, code: int) -> dict[str, Check]:
    done = call("doctor", "--json", *arguments, env=home)
    assert done.returncode == code, done.stdout + done.stderr
    return {check["name"]: Check(**check) for check in json.loads(done.stdout)["checks"]}


def test_wrong_settings_are_told_and_the_rest_is_looked_at(home: dict[str, str]) -> None:
    Path(home["SR_EDGE_HOME"]).mkdir()
    (Path(home["SR_EDGE_HOME"]) / "config.toml").write_text("polcy = 1\n")
    found = states(home, code=1)
    assert found["settings"].state == "fail"
    assert "config.toml:1" in found["settings"].says
    assert found["model"].state == "ok"


def test_a_model_that_is_gone_fails(home: dict[str, str]) -> None:
    found = states({**home, "SR_EDGE_MODEL": "/gone.gguf"}, code=1)
    assert found["model"].state == "fail"
    assert "/gone.gguf: there is no such file" in found["model"].says
    assert found["remote"].state == "warn"


def test_a_model_of_the_shelf_is_looked_at_by_its_name(tmp_path: Path, home: dict[str, str]) -> None:
    call("models", "import", write_tiny_gguf(tmp_path / "tiny.gguf"), env=home)
    found = states({**home, "SR_EDGE_MODEL": "tiny"}, code=0)
    assert "tiny.gguf: qwen2" in found["model"].says


def test_a_history_that_is_damaged_is_told_and_left_alone(home: dict[str, str]) -> None:
    path = Path(home["SR_EDGE_HOME"]) / "state" / "history.db"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is no database" * 100)
    found = states(home, code=1)
    assert found["history"].state == "fail"
    assert "not a database" in found["history"].says
    assert [each.name for each in path.parent.iterdir()] == ["history.db"]
    assert path.read_bytes() == b"this is no database" * 100


def test_a_history_that_is_well_or_newer_is_told(home: dict[str, str]) -> None:
    path = Path(home["SR_EDGE_HOME"]) / "state" / "history.db"
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE a(b)")
        database.execute("PRAGMA user_version = 1")
    assert states(home, code=0)["history"].state == "ok"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 999")
    assert "a newer sr-edge wrote it" in states(home, code=1)["history"].says


def test_online_asks_the_default_remote_once(home: dict[str, str]) -> None:
    with served("vllm") as url:
        call("remote", "add", "here", url, "--model", "mind", env=home)
        with EgressTrap() as trap:
            assert "not asked now" in states(home, code=0)["remote"].says
        assert trap.attempts == []
        assert "it answers: 1 model" in states(home, "--online", code=0)["remote"].says
        call("config", "set", "remotes.here.model", "other", env=home)
        assert "other is not one of them" in states(home, "--online", code=0)["remote"].says
        call("config", "set", "offline", "true", env=home)
        with EgressTrap() as trap:
            assert states(home, "--online", code=0)["remote"].state == "warn"
        assert trap.attempts == []


def test_online_says_why_a_remote_does_not_answer(home: dict[str, str]) -> None:
    with served("vllm") as url:
        pass  # it is closed now
    call("remote", "add", "here", url, env=home)
    found = states(home, "--online", code=1)["remote"]
    assert found.state == "fail"
    assert found.do == "sr-edge remote test here says more"


def test_a_key_that_is_missing_fails(home: dict[str, str]) -> None:
    call("remote", "add", "lab", "https://lab.example/v1", "--api-key-env", "LAB_KEY_NOT_SET", env=home)
    found = states(home, code=1)["remote"]
    assert (found.says.rpartition("; ")[2], found.do) == ("its key: not set", "sr-edge keys set lab")


def test_no_key_is_ever_shown(home: dict[str, str]) -> None:
    call("remote", "add", "lab", "https://lab.example/v1", "--api-key-env", "LAB_KEY", env=home)
    done = call("doctor", env={**home, "LAB_KEY": "sk-canary-0123456789abcdef"})
    assert "canary" not in done.stdout + done.stderr
    assert "its key is in the variable LAB_KEY" in done.stdout


def test_in_a_terminal_it_says_what_the_terminal_can(home: dict[str, str]) -> None:
    code, shown = run_in_terminal("doctor", columns=100, env={**home, "LINES": "30"})
    assert code == 0, shown
    (line,) = [line for line in shown.splitlines() if line.split()[1:2] == ["terminal"]]
    assert line.split() == ["ok", "terminal", "100", "x", "30,", "256", "colours,", "UTF-8"]


def test_a_folder_that_is_a_file_is_told(tmp_path: Path, home: dict[str, str]) -> None:
    Path(home["SR_EDGE_HOME"]).mkdir()
    (Path(home["SR_EDGE_HOME"]) / "state").write_text("")
    found = states(home, code=1)
    assert found["disk"].state == "fail"


def test_without_llama_cpp_the_doctor_still_works(tmp_path: Path, home: dict[str, str]) -> None:
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text("raise OSError('libllama.so: cannot open')")
    paths = os.pathsep.join(
        [str(tmp_path), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    )
    done = subprocess.run(
        [*COMMAND, "doctor", "--json"],
        capture_output=True, text=True, env=environment(**home, PYTHONPATH=paths),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (gpu,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "gpu"]
    assert "libllama.so: cannot open" in gpu["says"]


def test_nothing_in_the_current_folder_is_run(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    ask = "import json; print(json.dumps({'offloads': False, 'devices': []}))"
    assert machine.gpu(ask=ask) == machine.Gpu(False, ())
