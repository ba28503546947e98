"""Threads that make room for other programs, on a machine and a clock that are a script."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge import llama
from sr_edge.bench.synthetic import write_synthetic
from sr_edge.errors import StoppedError
from sr_edge.gguf_header import read_header
from sr_edge.governor import SLOW, Governor, Pace
from sr_edge.llama import Llama
from sr_edge.local import LlamaLocal
from sr_edge.passport import demo_paths
from sr_edge.processor import OtherUse
from sr_edge.watchdog import Watchdog

WORK = 0.2  # seconds of one thread for a token


class Machine:
    """Cores, other programs, and what a token takes on them: threads that share a core are ruinous."""

    def __init__(self, cores: int = 2, *, tells: bool = True) -> None:
        self.cores = cores
        self.tells = tells
        self.busy = 0
        self.slower = 1.0
        self.now = 0.0
        self.governor = Governor(
            cores=cores, others=lambda: float(self.busy) if tells else None, clock=lambda: self.now
        )
        self.threads: list[int] = []

    def seconds(self, threads: int) -> float:
        alone = WORK / threads * self.slower
        free = self.cores - self.busy
        return alone * 4 * (threads - max(free, 0)) if threads > max(free, 1) else alone

    def token(self, pace: Pace, ceiling: int | None = None, length: int = 0, noise: float = 1.0) -> None:
        """As `Llama.decode` does it."""
        ceiling = ceiling or self.cores
        while True:
            threads = self.governor.threads(ceiling)
            self.threads.append(threads)
            limit = self.governor.limit(pace, ceiling, length)
            seconds = self.seconds(threads) * noise * (1 + length / 16384)
            if limit is None or seconds <= limit:
                break
            self.now += limit
            self.governor.overran(pace, limit)
        self.now += seconds
        self.governor.took(pace, ceiling, length, seconds)

    def run(self, pace: Pace, tokens: int, ceiling: int | None = None) -> float:
        """Tokens a second."""
        before = self.now
        for _ in range(tokens):
            self.token(pace, ceiling)
        return tokens / (self.now - before)


def test_another_program_costs_one_thread_and_its_end_gives_it_back() -> None:
    machine, pace = Machine(), Pace()
    machine.run(pace, 20)
    assert set(machine.threads) == {2}
    machine.busy = 1
    assert machine.run(pace, 50) > 0.9 / WORK
    assert machine.threads[-1] == 1
    machine.busy = 0
    machine.run(pace, 20)
    assert machine.threads[-1] == 2
    assert machine.run(pace, 20) == pytest.approx(2 / WORK)


def test_begun_beside_another_program_it_finds_out_too() -> None:
    machine, pace = Machine(), Pace()
    machine.busy = 1
    machine.run(pace, 20)
    assert machine.threads[-1] == 1


def test_what_was_measured_before_is_the_yardstick_where_nothing_is_told() -> None:
    machine, pace = Machine(tells=False), Pace({1: WORK, 2: WORK / 2})
    machine.busy = 1
    machine.run(pace, 10)
    assert machine.threads[-1] == 1
    machine.threads.clear()
    assert machine.run(pace, 2000) > 0.9 / WORK
    assert machine.threads.count(2) < 30, "more threads are tried ever less often"
    machine.busy = 0
    machine.run(pace, 2000)
    assert machine.threads[-1] == 2


def test_a_machine_that_gets_slower_as_a_whole_keeps_its_threads() -> None:
    """On battery, say: fewer threads are tried once, are no help, and all is measured anew."""
    machine, pace = Machine(4), Pace()
    machine.run(pace, 20)
    for machine.slower in (2.5, 20.0):  # the second is overdue too
        machine.run(pace, 40)
        machine.threads.clear()
        machine.run(pace, 200)
        assert set(machine.threads) == {4}


def test_many_cores_are_given_up_in_steps() -> None:
    machine, pace = Machine(8), Pace()
    machine.run(pace, 20)
    machine.busy = 7
    machine.run(pace, 60)
    assert list(dict.fromkeys(machine.threads)) == [8, 4, 2, 1]
    assert machine.run(pace, 60) > 0.9 / WORK
    machine.busy = 4
    machine.run(pace, 100)
    assert machine.threads[-1] == 4


def test_the_first_tokens_tell_nothing() -> None:
    machine, pace = Machine(), Pace({1: WORK, 2: WORK / 2})
    machine.token(pace, noise=50)  # weights came from the disk
    machine.token(pace, noise=50)
    machine.run(pace, 20)
    assert set(machine.threads) == {2}


def test_two_models_share_one_governor() -> None:
    machine, small, big = Machine(4), Pace(), Pace()
    for _ in range(20):
        machine.token(small, 3)
        machine.token(big, 4)
    machine.busy = 2
    machine.run(small, 20, 3)
    machine.threads.clear()
    machine.token(big, 4)
    assert machine.threads == [2], "the one need not find out what the other one knows"


@given(st.lists(st.floats(1.0, SLOW * 0.9), min_size=10, max_size=200), st.integers(1, 8))
def test_noise_changes_nothing(noise: list[float], cores: int) -> None:
    machine, pace = Machine(cores, tells=False), Pace()
    machine.run(pace, 3)
    for at, factor in enumerate(noise):
        machine.token(pace, length=at * 64, noise=factor)
    assert set(machine.threads) == {cores}


@given(
    st.integers(1, 8),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60)), max_size=12),
    st.integers(1, 8),
)
def test_whatever_others_do_threads_stay_in_bounds_and_return(
    cores: int, tells: bool, script: list[tuple[int, int]], ceiling: int
) -> None:
    ceiling = min(ceiling, cores)
    machine, pace = Machine(cores, tells=tells), Pace()
    machine.run(pace, 5, ceiling)
    for machine.busy, tokens in script:
        for _ in range(tokens):
            machine.token(pace, ceiling)
    assert all(1 <= threads <= ceiling for threads in machine.threads)
    machine.busy = 0
    for _ in range(40):
        machine.now += 20  # its user reads
        machine.run(pace, 8, ceiling)
    assert machine.threads[-1] == ceiling


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 60000), st.floats(0.001, 10)), max_size=60))
def test_what_is_expected_is_never_more_than_what_was_seen(seen: list[tuple[int, int, float]]) -> None:
    pace = Pace()
    for threads, length, seconds in seen:
        pace.note(threads, length, seconds)
        expected = pace.expected(threads, length)
        assert expected is not None
        assert expected <= seconds
    assert pace.expected(5, 0) is None


def test_a_longer_context_is_not_a_slow_machine() -> None:
    pace = Pace({2: 0.1})
    near, far = pace.expected(2, 1500), pace.expected(2, 9000)
    assert near is not None
    assert far is not None
    assert 0.1 < near < far


# --- what other programs use ---


def proc_stat(*cpus: tuple[int, int]) -> str:
    """Busy and idle jiffies of each."""
    lines = [f"cpu{at} {busy} 0 0 {idle} 0 0 0 0 0 0" for at, (busy, idle) in enumerate(cpus)]
    return "\n".join(["cpu 9 9 9 9 9 9 9 9 9 9", *lines, "intr 5"])


def test_what_others_use_is_what_we_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr_edge.processor._allowed", lambda: {0, 1})
    monkeypatch.setattr("sr_edge.processor._PER_SECOND", 100)
    texts = iter([proc_stat((0, 0), (0, 0), (0, 0)), proc_stat((200, 0), (100, 100), (200, 0)), ""])
    times, own = iter([0.0, 2.0, 2.0, 2.1, 4.0, 4.0]), iter([0.0, 1.5])
    use = OtherUse(read=lambda path: next(texts), own=lambda: next(own), clock=lambda: next(times))
    assert use() == pytest.approx((3.0 - 1.5) / 2)  # the third processor is not ours
    assert use() == pytest.approx(0.75), "too soon: as before"
    assert use() is None


def test_here_it_is_told_or_not_and_never_negative() -> None:
    use = OtherUse()
    time.sleep(0.3)
    cores = use()
    assert cores is None or cores >= 0


# --- the watchdog, and llama.cpp ---


def test_the_alarm_is_for_its_own_step_only() -> None:
    before = set(threading.enumerate())
    alarms: list[float] = []
    dog = Watchdog(lambda: alarms.append(0.0))
    for _ in range(200):
        dog.begin(10.0)
        assert not dog.end()
    assert not alarms
    dog.begin(0.0)
    while not alarms:
        time.sleep(0.001)
    assert dog.end()
    dog.begin(10.0)
    assert not dog.end()
    assert len(set(threading.enumerate()) - before) == 1


@pytest.mark.parametrize(
    ("chosen", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "passive"}, None)],
)
def test_threads_spin_for_a_moment_unless_the_user_says_otherwise(
    chosen: dict[str, str], spins: str | None
) -> None:
    code = "import os; from sr_edge.llama import library; library(); print(os.environ.get('GOMP_SPINCOUNT'))"
    own = {key: value for key, value in os.environ.items() if key not in llama._WAITING}
    environment = {**own, "PYTHONPATH": os.pathsep.join(sys.path), **chosen}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == f"{spins}\n", done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_synthetic(path, "tiny")
    tensors = read_header(path).tensors
    return Llama(path, context_size=512, threads=2, gpu_layers=0, kv_type="f32", tensors=tensors)


class Overrun(Governor):
    """Has the next token begun anew, `times` times."""

    def __init__(self, times: int) -> None:
        super().__init__(cores=2, others=lambda: None)
        self.times = times
        self.overruns = 0

    def limit(self, pace: Pace, ceiling: int, length: int) -> float | None:
        return 0.0 if self.overruns < self.times else None

    def overran(self, pace: Pace, seconds: float) -> None:
        self.overruns += 1


def decode_overdue(model: Llama, monkeypatch: pytest.MonkeyPatch, times: int) -> tuple[Overrun, list[int]]:
    """One token, whose decoding waits until the alarm was raised; the governor, and llama.cpp's answers."""
    governor, answers = Overrun(times), []
    real = model._api.llama_decode

    class Api:
        def __getattr__(self, name: str) -> object:
            return getattr(llama.library().api, name)

        def llama_decode(self, context: object, batch: object) -> int:
            while len(answers) < times and model._stop._text[1] != b"1":
                time.sleep(0.001)
            answers.append(real(context, batch))
            return int(answers[-1])

    monkeypatch.setattr(model, "_governor", governor)
    monkeypatch.setattr(model, "_api", Api())
    model.decode([300], sequence=0, position=4, outputs=[0])
    return governor, answers


def test_a_token_that_was_begun_again_has_the_same_logits(
    model: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.keep(0, 0)
    model.decode([40, 41, 42, 43], sequence=0, position=0, outputs=[3])
    with monkeypatch.context() as patch:
        patch.setattr(model, "_governor", None)
        model.decode([300], sequence=0, position=4, outputs=[0])
        expected = model.logits().copy()
    model.keep(0, 4)
    calls = model.decodes
    governor, answers = decode_overdue(model, monkeypatch, 2)
    assert answers == [2, 2, 0]  # 2: aborted
    assert governor.overruns == 2
    assert model.decodes == calls + 1
    assert np.array_equal(model.logits(), expected)
    assert model.length(0) == 5


def test_a_stop_by_the_user_is_none_by_the_watchdog(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    model.keep(0, 0)
    model.decode([40, 41, 42, 43], sequence=0, position=0, outputs=[3])
    model._stop.alarm()
    assert not model.is_stopped
    model._stop.end_alarm()
    model.is_stopped = True
    try:
        with pytest.raises(StoppedError):
            decode_overdue(model, monkeypatch, 1)
        assert model.is_stopped, "the end of the alarm does not undo it"
    finally:
        model.is_stopped = False
    model.decode([300], sequence=0, position=4, outputs=[0])
    assert model.length(0) == 5


def test_fewer_threads_are_set_and_compute_the_same(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    monkeypatch.setattr(model, "_governor", machine.governor)
    model.keep(0, 0)
    set_to: list[int] = []
    rows = []
    for lowered in (0, 1, 0):
        machine.governor._lowered, machine.governor._changed_at = lowered, machine.now
        model.keep(0, 0)
        model.decode([40, 41, 42, 43], sequence=0, position=0, outputs=[3])
        rows.append(model.logits().copy())
        set_to.append(model._api.llama_n_threads(model._handles.open_context()))
    assert set_to == [2, 1, 2]
    assert np.abs(rows[0] - rows[1]).max() < 1e-4


def test_a_small_model_is_not_governed() -> None:
    with LlamaLocal.open(demo_paths().small) as local:
        assert local._llama._governor is None
        assert local._llama._threads == 1
