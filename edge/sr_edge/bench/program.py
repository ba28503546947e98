"""The whole program in a process that is metered: what `sr-edge ask` costs until it decodes, and at most.

Both rows are about `ask` as it is started by a shell: all its imports, its settings, its models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from sr_edge.bench.fresh import fresh
from sr_edge.bench.metered import Asked, asked
from sr_edge.bench.pairs import Rounds, Spread, in_rounds
from sr_edge.bench.report import Found, Goal, Row, Side, failures
from sr_edge.bench.setting import Setting
from sr_edge.bench.writing import PROBLEM, trained_context
from sr_edge.gguf_header import read_header
from sr_edge.shelf import cache_need

STARTUP = "startup"
MEMORY = "memory"
_ALLOWANCE = 64 << 20  # bytes: interpreter, libraries, buffers of the computation
_REPEATS = 16  # of the question: some hundreds of tokens, which are read in batches of full size
_MANY_TOKENS = 96  # more than the question has
_MB = 1e6


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
