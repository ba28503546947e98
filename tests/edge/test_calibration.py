"""Measuring a model once, on a machine that is a table; and keeping what was measured, on a real disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge import llama
from sr_edge.bench.synthetic import write_synthetic
from sr_edge.calibration import (
    BUDGET,
    DEFAULT_BATCH,
    MAX_BATCH,
    Calibration,
    Decode,
    load,
    measure,
    place,
    save,
)
from sr_edge.errors import UsageError
from sr_edge.local import LlamaLocal
from sr_edge.session import Session, SessionSettings

OF = {"model": "0123", "machine": "a laptop"}
SOUND = Calibration({1: 0.15, 2: 0.09}, {1: 0.09, 4: 0.2, 8: 0.3, 16: 0.4, 32: 0.75})


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def model(self, token: float, *, cores: int, gain: float = 0.5) -> Decode:
        """Threads divide the work up to `cores`; each further token of a batch costs `gain` of the first."""

        def decode(num_tokens: int, threads: int) -> float:
            seconds = token / min(threads, cores) * (1 + gain * (num_tokens - 1))
            self.now += seconds
            return seconds

        return decode


def quiet() -> None:
    return None


def test_the_fewest_threads_that_are_as_fast_and_the_smallest_batch_that_is_as_cheap() -> None:
    clock = Clock()
    found = measure(clock.model(0.04, cores=4, gain=0.1), cores=8, others=quiet, clock=clock)
    assert found is not None
    assert sorted(found.seconds) == [1, 4, 7, 8]
    assert found.threads == 4, "the memory is the limit"
    assert sorted(found.batch_seconds) == [1, 4, 8, 16, 32]
    assert found.batch_tokens == 16


@pytest.mark.parametrize(("cores", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (6, [1, 3, 5, 6])])
def test_threads_that_are_tried(cores: int, expected: list[int]) -> None:
    clock = Clock()
    found = measure(clock.model(0.01, cores=cores), cores=cores, others=quiet, clock=clock)
    assert found is not None
    assert sorted(found.seconds) == expected


def test_where_batches_save_nothing_one_token_is_a_batch() -> None:
    clock = Clock()
    found = measure(clock.model(0.01, cores=2, gain=1.0), cores=2, others=quiet, clock=clock)
    assert found is not None
    assert found.batch_tokens == 1


@given(st.floats(0.001, 20), st.integers(1, 16), st.floats(0.02, 1))
def test_a_slow_machine_is_not_measured_for_long(token: float, cores: int, gain: float) -> None:
    clock = Clock()
    longest = token * (1 + gain * (MAX_BATCH - 1))
    found = measure(clock.model(token, cores=cores, gain=gain), cores=cores, others=quiet, clock=clock)
    assert clock.now <= BUDGET + 4 * longest + 1
    assert found is not None
    assert found.threads in found.seconds
    assert found.batch_tokens in (*found.batch_seconds, DEFAULT_BATCH)


def test_nothing_is_learned_beside_other_programs() -> None:
    clock, calls = Clock(), []
    decode = clock.model(0.01, cores=2)

    def counted(num_tokens: int, threads: int) -> float:
        calls.append(num_tokens)
        return decode(num_tokens, threads)

    assert measure(counted, cores=2, others=lambda: 0.9 if len(calls) > 5 else 0.1, clock=clock) is None
    assert len(calls) == 6, "it is given up at once"


# --- kept ---


def test_what_was_measured_is_there_the_next_time(tmp_path: Path) -> None:
    assert load(tmp_path, OF) is None
    save(tmp_path, OF, SOUND)
    assert load(tmp_path, OF) == SOUND
    assert place(tmp_path, OF).stat().st_mode & 0o777 == 0o600
    for other in ({**OF, "model": "0124"}, {**OF, "machine": "another"}):
        assert load(tmp_path, other) is None


def damaged(change: Callable[[dict[str, object]], object]) -> str:
    data: dict[str, object] = {
        "version": 1,
        "of": dict(OF),
        "seconds": {"1": 0.15, "2": 0.09},
        "batch_seconds": {"1": 0.09, "16": 0.4},
    }
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        "\udcff".encode("utf-8", "surrogateescape").decode("latin-1") + "{}",
        damaged(lambda data: data.update(version=2)),
        damaged(lambda data: data.update(of={**OF, "machine": "another"})),  # copied from there
        damaged(lambda data: data.pop("seconds")),
        damaged(lambda data: data.update(seconds={})),
        damaged(lambda data: data.update(seconds={"0": 0.1})),
        damaged(lambda data: data.update(seconds={"-1": 0.1})),
        damaged(lambda data: data.update(seconds={"²": 0.1})),
        damaged(lambda data: data.update(seconds={"1": 0})),
        damaged(lambda data: data.update(seconds={"1": math.nan})),
        damaged(lambda data: data.update(seconds={"1": math.inf})),
        damaged(lambda data: data.update(batch_seconds={"16": True})),
        damaged(lambda data: data.update(batch_seconds={"16": "0.1"})),
        damaged(lambda data: data.update(batch_seconds=[0.1])),
    ],
)
def test_a_file_that_is_damaged_or_of_another_machine_is_none(text: str, tmp_path: Path) -> None:
    save(tmp_path, OF, SOUND)
    place(tmp_path, OF).write_text(text)
    assert load(tmp_path, OF) is None
    save(tmp_path, OF, SOUND)
    assert load(tmp_path, OF) == SOUND


def test_the_damage_of_the_parameters_above_is_what_is_wrong(tmp_path: Path) -> None:
    save(tmp_path, OF, SOUND)
    place(tmp_path, OF).write_text(damaged(lambda data: None))
    assert load(tmp_path, OF) is not None


# --- a real model ---


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_synthetic(path, "tiny")
    return path


@pytest.fixture
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """This model is worth measuring, nobody else is here, and there is time."""
    for limit in ("BUDGET", "_SECONDS"):
        monkeypatch.setattr(f"sr_edge.calibration.{limit}", math.inf)
    monkeypatch.setattr(llama, "_SMALL_MODEL", 1 << 20)
    monkeypatch.setattr(llama, "OtherUse", lambda: quiet)
    monkeypatch.setattr("sr_edge.local.physical_cores", lambda: 2)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is timed: tokens and threads."""
    timed: list[tuple[int, int]] = []

    def time_decode(self: llama.Llama, num_tokens: int, threads: int) -> float:
        timed.append((num_tokens, threads))
        real(self, num_tokens, threads)
        return 0.01 * (1 + 0.5 * (num_tokens - 1)) / threads

    real = llama.Llama.time_decode
    monkeypatch.setattr(llama.Llama, "time_decode", time_decode)
    return timed


def test_a_model_is_measured_once(
    synthetic: Path, tmp_path: Path, worth_it: None, decodes: list[tuple[int, int]]
) -> None:
    lines: list[str] = []
    with LlamaLocal.open(synthetic, n_ctx=64) as local:
        assert local.batch_tokens == DEFAULT_BATCH
        found = local.calibrate(tmp_path, say=lines.append)
        assert found is not None
        assert local.batch_tokens == found.batch_tokens == 4
        assert local._llama._ceiling == found.threads == 2
        assert lines == ["measuring once how fast synthetic tiny runs here"]
        assert local.ids == []
        assert local.room == 64
        local.feed([300, 301])
        local.sample()
    num_timed = len(decodes)
    assert {threads for _, threads in decodes} == {1, 2}
    with LlamaLocal.open(synthetic, n_ctx=64) as local:
        assert local.calibrate(tmp_path, say=lines.append) == found
        assert local.batch_tokens == 4
    assert len(decodes) == num_timed
    assert len(lines) == 1
    next((tmp_path / "calibration").iterdir()).write_text("{")
    with LlamaLocal.open(synthetic, n_ctx=64) as local:
        assert local.calibrate(tmp_path, say=lines.append) == found
    assert len(decodes) == 2 * num_timed == 2 * (1 + 16 + 4 + 16)


def test_the_users_threads_stay(
    synthetic: Path, tmp_path: Path, worth_it: None, decodes: list[tuple[int, int]]
) -> None:
    with LlamaLocal.open(synthetic, n_ctx=64, threads=1) as local:
        assert local.calibrate(tmp_path) is not None
        assert local._llama._ceiling == 1
        local.feed([300, 301])
        assert local._llama._threads == 1


def test_on_a_busy_machine_nothing_is_measured_and_nothing_said(
    synthetic: Path,
    tmp_path: Path,
    worth_it: None,
    decodes: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(llama, "OtherUse", lambda: lambda: 1.0)
    lines: list[str] = []
    with LlamaLocal.open(synthetic, n_ctx=64) as local:
        assert local.calibrate(tmp_path, say=lines.append) is None
        assert local.batch_tokens == DEFAULT_BATCH
    assert decodes == []
    assert lines == []
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_line(
    synthetic: Path, tmp_path: Path, worth_it: None, decodes: list[tuple[int, int]]
) -> None:
    (tmp_path / "calibration").write_text("a file")
    lines: list[str] = []
    with LlamaLocal.open(synthetic, n_ctx=64) as local:
        assert local.calibrate(tmp_path, say=lines.append) is not None
    assert len(lines) == 2
    assert "cannot be written" in lines[1]


def test_measuring_can_be_ended_and_leaves_an_empty_cache(
    synthetic: Path, tmp_path: Path, worth_it: None, decodes: list[tuple[int, int]]
) -> None:
    def check() -> None:
        if len(decodes) == 3:
            raise UsageError("enough")

    with LlamaLocal.open(synthetic, n_ctx=64) as local:
        with pytest.raises(UsageError, match="enough"):
            local.calibrate(tmp_path, check=check)
        assert local._llama.length(0) == 0
        assert local._llama._threads == local._llama._ceiling
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("wanted", [True, False])
def test_a_session_measures_where_it_is_wanted(
    wanted: bool, synthetic: Path, tmp_path: Path, worth_it: None, decodes: list[tuple[int, int]]
) -> None:
    lines: list[str] = []
    environ: Mapping[str, str] = {"SR_EDGE_HOME": str(tmp_path)}
    settings = SessionSettings(model=synthetic, policy="local", calibrate=wanted, threads=1)
    with Session.open(settings, environ=environ, warn=lines.append):
        pass
    assert bool(decodes) == wanted
    assert lines == ["measuring once how fast synthetic tiny runs here"] * wanted


def test_a_small_model_is_not_measured(
    synthetic: Path, tmp_path: Path, decodes: list[tuple[int, int]]
) -> None:
    with LlamaLocal.open(synthetic, n_ctx=64) as local:
        assert local.calibrate(tmp_path) is None
        assert local.batch_tokens == 1
    assert decodes == []
