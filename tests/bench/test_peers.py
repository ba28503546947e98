"""Other programs and other processes: what they are asked, and how their failures arrive."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from sr_edge.bench import decode
from sr_edge.bench.fresh import fresh
from sr_edge.bench.machine import compiled, describe, processor_name
from sr_edge.bench.models import synthetic
from sr_edge.bench.peers import llama_bench, llama_cpp_python
from sr_edge.bench.report import Row, Skipped
from sr_edge.bench.setting import Setting
from sr_edge.errors import EdgeError, UsageError
from sr_edge.passport import demo_paths

Maker = Callable[[str], Path]

ANSWERS = """
given = sys.argv[1:]
assert given[given.index("-p") + 1] == "0" and given[given.index("-r") + 1] == "1", given
print(json.dumps([{"n_gen": int(given[given.index("-n") + 1]), "avg_ns": 2_000_000_000}]))
"""


def test_llama_bench_decodes_as_many_tokens_with_as_many_threads(program: Maker, tmp_path: Path) -> None:
    log = tmp_path / "log"
    bench = program(f"open({str(log)!r}, 'w').write(json.dumps(sys.argv[1:]))\n{ANSWERS}")
    decoded = llama_bench(bench, Path("a.gguf"), 3, 128, os.environ)
    assert (decoded.tokens, decoded.rate) == (128, 64.0)
    given = json.loads(log.read_text())
    assert [given[given.index(option) + 1] for option in ("-m", "-t", "-n")] == ["a.gguf", "3", "128"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("print('no model', file=sys.stderr); sys.exit(1)", "ended with code 1: no model"),
        ("os.abort()", "was ended by SIGABRT"),
        ("print('| table |')", "JSON is not understood"),
        ("print('[]')", "JSON is not understood"),
    ],
)
def test_a_llama_bench_that_fails_says_how(program: Maker, source: str, says: str) -> None:
    with pytest.raises(EdgeError, match=says):
        llama_bench(program(source), Path("a.gguf"), 1, 8, os.environ)


def test_a_peer_that_fails_costs_its_own_row_only(program: Maker, tmp_path: Path) -> None:
    model = demo_paths().small
    one = Setting(model, 1, 2, os.environ, tmp_path, llama_bench=program("sys.exit(3)"), tokens=4)
    found = list(decode.rows(one))
    assert [
        (skipped.name, "code 3" in skipped.reason) for skipped in found if isinstance(skipped, Skipped)
    ] == [("llama-bench", True)]
    assert sum(isinstance(row, Row) for row in found) == 3


def test_ours_is_compared_with_llama_bench_round_by_round(program: Maker, tmp_path: Path) -> None:
    one = Setting(demo_paths().small, 1, 2, os.environ, tmp_path, llama_bench=program(ANSWERS), tokens=4)
    row = next(row for row in decode.rows(one) if isinstance(row, Row))
    assert row.name == "tokens a second, ours / llama-bench tg4"
    ours, theirs = row.sides
    assert theirs.measured.median == 2.0  # tokens a second, as the program says
    assert row.figure.count == ours.measured.count == 2
    assert row.figure.high == pytest.approx(ours.measured.high / 2.0)


@pytest.mark.parametrize("loop", ["create_completion", "generate"])
def test_llama_cpp_python_writes_as_much(loop: str) -> None:
    model = demo_paths().small
    decoded = fresh(partial(llama_cpp_python, model, 1, 30, loop), os.environ)  # type: ignore[arg-type]
    assert decoded.tokens == 30


# --- processes of their own ----------------------------------------------------------------------------


def test_a_result_and_an_error_come_back_from_another_process(tmp_path: Path) -> None:
    assert fresh(partial(compiled), os.environ).info
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(EdgeError, match=r"bad\.gguf"):
        fresh(partial(llama_cpp_python, tmp_path / "bad.gguf", 1, 4, "generate"), os.environ)


def test_a_process_that_dies_is_told_apart_from_a_result() -> None:
    with pytest.raises(EdgeError, match="measured abort was ended by SIGABRT"):
        fresh(partial(os.abort), os.environ)


# --- the machine, the models ---------------------------------------------------------------------------


def test_the_machine_says_what_speed_depends_on() -> None:
    machine = describe({**os.environ, "GOMP_SPINCOUNT": "7"})
    assert machine.physical_cores >= 1
    assert machine.packages["llama-cpp-python"]
    assert "GOMP_SPINCOUNT=7" in machine.lines()[-1]


def test_the_processor_is_named_as_linux_names_it() -> None:
    text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n"
    assert processor_name(lambda path: text) == "Some CPU @ 2 GHz"


def test_a_synthetic_model_is_made_once(tmp_path: Path) -> None:
    environ = {"SR_EDGE_HOME": str(tmp_path)}
    seen: list[int] = []
    path = synthetic("tiny", environ, lambda done, whole: seen.append(done))
    assert seen[-1] > 50e6
    assert path.stat().st_size > seen[-1]
    seen.clear()
    assert synthetic("tiny", environ, lambda done, whole: seen.append(done)) == path
    assert not seen
    with pytest.raises(UsageError, match=r"there are tiny, 1.5b, 7b"):
        synthetic("3b", environ)
