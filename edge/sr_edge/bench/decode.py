"""How fast the small model writes alone: beside its peers, and what of it is our own work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from sr_edge.bench.fresh import fresh
from sr_edge.bench.pairs import Spread, in_rounds, ratios
from sr_edge.bench.peers import Decoded, Loop, llama_bench, llama_cpp_python
from sr_edge.bench.report import Found, Goal, Row, Side, Skipped, failures
from sr_edge.bench.setting import Setting
from sr_edge.bench.writing import Written, write

SUBJECT = "decode"
OURS = "ours"
LLAMA_BENCH = "llama-bench"
_LOOPS: tuple[Loop, ...] = ("create_completion", "generate")


def rows(setting: Setting) -> Iterator[Found]:
    sides: dict[str, Callable[[], Written | Decoded]] = {
        OURS: lambda: fresh(
            partial(write, setting.model, setting.threads, setting.tokens), setting.own_environ
        )
    }
    bench = setting.llama_bench
    if bench is not None:
        sides[LLAMA_BENCH] = lambda: llama_bench(
            bench, setting.model, setting.threads, setting.tokens, setting.environ
        )
    else:
        reason = "llama-bench was not found: name it with --llama-bench, or put it on the PATH"
        yield Skipped(SUBJECT, f"{OURS} / {LLAMA_BENCH}", reason)
    for loop in _LOOPS:
        sides[_name(loop)] = partial(_high_level, setting, loop)
    measured = in_rounds(sides, setting.pairs, say=setting.say)
    yield from failures(SUBJECT, measured.failures)
    if OURS not in measured.values:
        return
    rates = {name: [one.rate for one in got] for name, got in measured.values.items()}
    for name, theirs in rates.items():
        if name == OURS:
            continue
        is_goal = name == LLAMA_BENCH
        yield Row(
            SUBJECT,
            f"tokens a second, {OURS} / {name}{f' tg{setting.tokens}' if is_goal else ''}",
            ratios(rates[OURS], theirs),
            "x",
            Goal("at least", 0.98) if is_goal else None,
            (Side(OURS, Spread.of(rates[OURS]), "tok/s"), Side(name, Spread.of(theirs), "tok/s")),
            "llama-bench decodes and does not sample, ours does both" if is_goal else "",
        )
    ours = [one for one in measured.values[OURS] if isinstance(one, Written)]
    yield Row(
        SUBJECT,
        "client's work for each token, beyond decode and sample",
        Spread.of([one.client_ms for one in ours]),
        "ms",
        Goal("at most", 0.3),
        (Side("a whole token", Spread.of([one.seconds / one.tokens * 1e3 for one in ours]), "ms"),),
        "processor time of the decoding thread",
    )


def _name(loop: Loop) -> str:
    return f"llama-cpp-python's {loop}"


def _high_level(setting: Setting, loop: Loop) -> Decoded:
    return fresh(
        partial(llama_cpp_python, setting.model, setting.threads, setting.tokens, loop), setting.environ
    )
