"""The whole program in a process that is metered: what `sr-edge ask` costs until it decodes, and at most.

Both rows are about `ask` as it is started by a shell: all its imports, its settings, its models.
"""

from __future__ import annotations

import resource
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sr_edge.bench.fresh import fresh
from sr_edge.bench.pairs import Rounds, Spread, in_rounds
from sr_edge.bench.report import Found, Goal, Row, Side, failures
from sr_edge.bench.setting import Setting
from sr_edge.bench.writing import PROBLEM, trained_context
from sr_edge.errors import EdgeError
from sr_edge.gguf_header import read_header
from sr_edge.llama import library
from sr_edge.shelf import cache_need

STARTUP = "startup"
MEMORY = "memory"
_LOADING = ("llama_model_load_from_file", "llama_init_from_model")
_DECODE = "llama_decode"
_ALLOWANCE = 64 << 20  # bytes: interpreter, libraries, buffers of the computation
_REPEATS = 32  # of the question: about a thousand tokens, which are read in batches of full size
_MANY_TOKENS = 96  # more than the question has
_MB = 1e6


@dataclass(frozen=True, slots=True)
class Asked:
    to_first: float
    """Seconds of processor time, of all threads, from the start of the process to the first decode."""
    loading: float
    """The part of it that llama.cpp took to load model and context."""
    peak: int
    """Bytes of memory that the process had at once."""


def startup_rows(setting: Setting) -> Iterator[Found]:
    ask = _asking(setting, PROBLEM, max_tokens=1)
    ask()  # what is done once for a model and a machine is not what a start costs
    measured = in_rounds({STARTUP: ask}, setting.pairs, say=setting.say)
    yield from failures(STARTUP, measured.failures)
    for got in measured.values.values():
        yield Row(
            STARTUP,
            "sr-edge ask to its first decode, beyond loading the model, processor time",
            Spread.of([one.to_first - one.loading for one in got]),
            "s",
            Goal("at most", 0.4),
            (Side("loading", Spread.of([one.loading for one in got]), "s"),),
        )


def memory_rows(setting: Setting) -> Iterator[Found]:
    times = (trained_context(setting.model) - setting.tokens) // _MANY_TOKENS  # as far as there is room
    ask = _asking(setting, " ".join([PROBLEM] * max(1, min(_REPEATS, times))), max_tokens=setting.tokens)
    ask()  # see above
    measured: Rounds[Asked] = in_rounds({MEMORY: ask}, setting.pairs, say=setting.say)
    yield from failures(MEMORY, measured.failures)
    weights = setting.model.stat().st_size
    cache = cache_need(read_header(setting.model))
    for got in measured.values.values():
        peaks = [one.peak for one in got]
        yield Row(
            MEMORY,
            "most memory of sr-edge ask / (GGUF + KV cache + 64 MiB)",
            Spread.of([peak / (weights + cache + _ALLOWANCE) for peak in peaks]),
            "x",
            Goal("at most", 1.06),
            (
                Side("most", Spread.of([peak / _MB for peak in peaks]), "MB"),
                Side("GGUF", Spread.of([weights / _MB]), "MB"),
                Side("KV cache", Spread.of([cache / _MB]), "MB"),
            ),
        )


def _asking(setting: Setting, question: str, *, max_tokens: int) -> Callable[[], Asked]:
    arguments = (
        *("-m", str(setting.model), "--policy", "local", "--no-log", "--seed", "1"),
        *("--max-tokens", str(max_tokens), question),
    )
    return lambda: fresh(partial(asked, arguments), setting.own_environ)


def asked(arguments: tuple[str, ...]) -> Asked:
    """Run `sr-edge ask` in this process, which is good for nothing afterwards.

    Raises:
        EdgeError: it did not come to decode anything, or failed.
    """
    api = library().api
    loading = 0.0
    first: list[tuple[float, float]] = []
    decode = getattr(api, _DECODE)

    def loads(function: Callable[..., Any]) -> Callable[..., Any]:
        def loading_of(*given: Any) -> Any:
            nonlocal loading
            began = time.thread_time()  # what other threads do meanwhile is no loading
            result = function(*given)
            loading += time.thread_time() - began
            return result

        return loading_of

    def decodes(*given: Any) -> Any:
        if not first:
            first.append((time.process_time(), loading))
        return decode(*given)

    for name in _LOADING:
        setattr(api, name, loads(getattr(api, name)))
    setattr(api, _DECODE, decodes)
    sys.argv = ["sr-edge", "ask", *arguments]
    code: object = 0
    try:
        runpy.run_module("sr_edge", run_name="__main__")
    except SystemExit as left:
        code = left.code
    if code or not first:
        raise EdgeError(f"`sr-edge ask` left with code {code}, after {'some' if first else 'no'} decoding")
    return Asked(*first[0], most_memory())


def most_memory() -> int:
    """Bytes that this process had at once since it began."""
    try:  # what getrusage says may be of the process that started this one
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
