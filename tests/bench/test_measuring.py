"""Every measurement, once and short, on tiny models: what it counts, never how long it took."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from sr_edge.bench import busy, decode, growth, memory, startup, turns
from sr_edge.bench.fresh import fresh
from sr_edge.bench.growth import grow, some_answer
from sr_edge.bench.metered import asked
from sr_edge.bench.reopening import reopen
from sr_edge.bench.report import Found, Row, Skipped
from sr_edge.bench.setting import Setting, threads_for
from sr_edge.bench.turns import converse
from sr_edge.bench.writing import PROBLEM, STEPS, Meter, go_on, metered, open_model, write
from sr_edge.errors import EdgeError
from sr_edge.llama import library
from sr_edge.passport import demo_paths

Maker = Callable[[str], Path]


def setting(model: Path, home: Path, *, pairs: int = 1) -> Setting:
    return Setting(model, threads=1, pairs=pairs, environ=os.environ, home=home, tokens=8, seconds=0.2)


def rows(found: Iterator[Found]) -> list[Row]:
    return [one for one in found if isinstance(one, Row)]


# --- our own side --------------------------------------------------------------------------------------


def test_so_many_tokens_are_written_as_were_asked_for(tiny: Path) -> None:
    assert write(tiny, 1, 12).tokens == 12


def test_a_model_that_ends_its_answers_is_asked_again_until_it_has_written_enough() -> None:
    # The built-in model's answers have some dozens of tokens.
    assert write(demo_paths().small, 1, 200).tokens == 200


def test_what_llama_cpp_does_is_metered_and_the_bindings_are_as_before(tiny: Path) -> None:
    api = library().api
    before = [getattr(api, name) for name in STEPS]
    with metered(api) as meter, open_model(tiny, 1, 256) as local:
        written = go_on(local, meter, 8)
        # For each token a decode and a draw, and one more of both for the first, which is not counted.
        assert meter.calls == 2 * (written.tokens + 1)
        assert 0 < written.client < written.seconds + 1
    assert [getattr(api, name) for name in STEPS] == before


def test_a_long_answer_is_read_once_and_only_its_end_is_written_again(tiny: Path) -> None:
    with metered(library().api, ["llama_decode"]) as meter, open_model(tiny, 1, 1024) as local:
        past = some_answer(local, 300)
        assert len(past) == 300
        go_on(local, meter, 4, past=past[:300])
        read, meter.calls = meter.calls, 0
        go_on(local, meter, 4, past=past[:300])
        assert meter.calls < read
        assert len(local.ids) > 300


def test_a_run_for_a_time_ends_by_itself(tiny: Path) -> None:
    written = write(tiny, 1, 1 << 20, None, 0.05)
    assert 0 < written.tokens < 1 << 20


def test_a_meter_counts_its_calls() -> None:
    meter = Meter()
    double = meter.around(lambda n: 2 * n)
    assert [double(1), double(2)] == [2, 4]
    assert meter.calls == 2


def test_small_models_get_one_thread(tiny: Path, tmp_path: Path) -> None:
    assert threads_for(tiny) == 1
    large = tmp_path / "large.gguf"
    with large.open("wb") as file:
        file.truncate(64 << 20)  # a sparse file
    assert threads_for(large) >= 1


# --- subjects ------------------------------------------------------------------------------------------


def test_decode_has_a_row_for_each_peer_and_one_for_our_own_work(tiny: Path, tmp_path: Path) -> None:
    found = list(decode.rows(setting(tiny, tmp_path)))
    assert [one.name for one in found if isinstance(one, Skipped)] == ["ours / llama-bench"]
    names = [row.name for row in rows(iter(found))]
    assert names == [
        "tokens a second, ours / llama-cpp-python's create_completion",
        "tokens a second, ours / llama-cpp-python's generate",
        "client's work for each token, beyond decode and sample",
    ]


def test_growth_measures_at_each_depth(tiny: Path) -> None:
    grown = grow(tiny, 1, 4, (32, 128))
    assert len(grown.client_ms) == len(grown.token_ms) == 2


def test_growth_is_skipped_where_the_context_is_too_small(tmp_path: Path) -> None:
    (skipped,) = growth.rows(setting(demo_paths().small, tmp_path))
    assert isinstance(skipped, Skipped)
    assert "context" in skipped.reason


def test_the_second_turn_reads_only_what_is_new(tiny: Path) -> None:
    spoken = converse(tiny, 1, tokens=400)
    assert 350 < spoken.read[0] < 450
    assert spoken.read[1] < 100  # the answer of 32 tokens at most, the question, the scaffold


def test_a_conversation_from_disk_costs_one_decode(tiny: Path) -> None:
    with metered(library().api, ["llama_decode"]) as meter:
        opened = reopen(tiny, 1, tokens=400)
    assert opened.tokens == 400
    assert opened.file_bytes > 400
    assert meter.calls == 2  # all of it to read it, and its last token to go on


def test_turns_are_skipped_where_the_context_is_too_small(tmp_path: Path) -> None:
    (skipped,) = turns.rows(setting(demo_paths().small, tmp_path))
    assert isinstance(skipped, Skipped)


def test_busy_compares_with_being_alone(tmp_path: Path) -> None:
    (row,) = rows(busy.rows(setting(demo_paths().small, tmp_path)))
    assert [side.name for side in row.sides] == [busy.BESIDE, busy.ALONE]
    assert row.goal is not None


def test_what_being_busy_does_to_llama_bench_is_shown_beside_ours(tmp_path: Path, program: Maker) -> None:
    counts = tmp_path / "counts"
    log = f"open({str(counts)!r}, 'a').write('x')"
    peer = program(f"{log}\nprint(json.dumps([{{'n_gen': 16, 'avg_ns': 1_000_000_000}}]))")
    one = replace(setting(demo_paths().small, tmp_path, pairs=2), llama_bench=peer)
    ours, theirs = rows(busy.rows(one))
    assert theirs.name == f"llama-bench's {ours.name}"
    assert (theirs.figure.median, theirs.goal) == (1.0, None)
    assert counts.read_text() == "xxxx"


def test_a_busy_process_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    popen = busy.subprocess.Popen

    def start(command: list[str]) -> object:
        started.append(popen(command))
        return started[-1]

    monkeypatch.setattr(busy.subprocess, "Popen", start)
    company = busy.busy_process()
    company.__enter__()
    assert started[0].poll() is None
    failure = EdgeError("meanwhile")
    assert not company.__exit__(EdgeError, failure, None)
    assert started[0].returncode is not None


def test_the_whole_program_is_metered_up_to_its_first_decode(tmp_path: Path) -> None:
    one = setting(demo_paths().small, tmp_path)
    (start,) = rows(startup.rows(one))
    (most,) = rows(memory.rows(one))
    assert start.unit == "s"
    assert most.unit == "x"
    measured = {side.name: side.measured.median for side in most.sides}
    assert measured["most"] > measured["GGUF"] > 0
    assert measured["KV cache"] > 0


def test_nothing_of_the_users_is_touched_by_it(tmp_path: Path) -> None:
    home, used = tmp_path / "home", tmp_path / "used"
    environ = {**os.environ, "SR_EDGE_HOME": str(home), "SR_EDGE_OFFLINE": "nonsense"}
    one = Setting(demo_paths().small, threads=1, pairs=1, environ=environ, home=used, tokens=4)
    assert rows(startup.rows(one))
    assert not home.exists()


def test_a_program_that_fails_is_no_measurement(tmp_path: Path) -> None:
    call = partial(asked, ("-m", str(tmp_path / "missing.gguf"), "--no-log", PROBLEM))
    with pytest.raises(EdgeError, match=r"left with code 4, after no decoding: sr-edge: .*missing\.gguf"):
        fresh(call, {**os.environ, "SR_EDGE_HOME": str(tmp_path)})
