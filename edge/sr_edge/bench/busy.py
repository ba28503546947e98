"""What another busy program does to the speed: a fair system halves it, waiting threads can do far worse."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Final

from sr_edge.bench.fresh import fresh
from sr_edge.bench.pairs import Spread, in_rounds, ratios
from sr_edge.bench.peers import Decoded, llama_bench
from sr_edge.bench.report import Found, Goal, Row, Side, failures
from sr_edge.bench.setting import Setting
from sr_edge.bench.writing import Written, write

SUBJECT = "busy"
ALONE: Final = "alone"
BESIDE: Final = "beside it"
_FEW = 16  # tokens of a peer, which may write one in three seconds
_MANY = 1 << 20  # tokens: time is what ends these runs


def rows(setting: Setting) -> Iterator[Found]:
    ours = f"{setting.seconds:g} seconds each, from a start at full threads"
    yield from _compared(setting, _sides(setting), "", Goal("at least", 0.5), ours)
    if setting.llama_bench is not None:
        sides = _peer(setting, setting.llama_bench)
        yield from _compared(setting, sides, "llama-bench's ", None, f"{_FEW} tokens each, its threads spin")


def _compared(
    setting: Setting,
    sides: Mapping[str, Callable[[], Written | Decoded]],
    whose: str,
    goal: Goal | None,
    note: str,
) -> Iterator[Found]:
    measured = in_rounds(sides, setting.pairs, say=setting.say)
    yield from failures(SUBJECT, measured.failures)
    rates = {name: [one.rate for one in got] for name, got in measured.values.items()}
    if len(rates) == 2:
        yield Row(
            SUBJECT,
            f"{whose}tokens a second, beside one busy process / alone",
            ratios(rates[BESIDE], rates[ALONE]),
            "x",
            goal,
            tuple(Side(name, Spread.of(rates[name]), "tok/s") for name in (BESIDE, ALONE)),
            note,
        )


def _peer(setting: Setting, program: Path) -> Mapping[str, Callable[[], Decoded]]:
    def decode(*, has_company: bool) -> Decoded:
        with busy_process() if has_company else nullcontext():
            return llama_bench(program, setting.model, setting.threads, _FEW, setting.environ)

    return {ALONE: lambda: decode(has_company=False), BESIDE: lambda: decode(has_company=True)}


def _sides(setting: Setting) -> Mapping[str, Callable[[], Written]]:
    def write_for_a_time(*, has_company: bool) -> Written:
        with busy_process() if has_company else nullcontext():
            return fresh(
                partial(write, setting.model, setting.threads, _MANY, context=None, seconds=setting.seconds),
                setting.own_environ,
            )

    return {
        ALONE: lambda: write_for_a_time(has_company=False),
        BESIDE: lambda: write_for_a_time(has_company=True),
    }


# It ends with whoever started it, however that ended.
_SPIN = """import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000): pass
"""


@contextmanager
def busy_process() -> Iterator[None]:
    """One that wants a whole core, and touches next to no memory."""
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", _SPIN])
    try:
        yield
    finally:
        process.kill()
        process.wait()
