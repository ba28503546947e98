"""How long the second turn of a long conversation takes to begin: only what is new must be read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from sr_edge.bench.fresh import fresh
from sr_edge.bench.pairs import Spread, in_rounds, ratios
from sr_edge.bench.report import Found, Goal, Row, Side, Skipped, failures
from sr_edge.bench.setting import Setting
from sr_edge.bench.synthetic import words
from sr_edge.bench.writing import open_model, trained_context
from sr_edge.errors import EdgeError
from sr_edge.events import Event, LocalToken, Started
from sr_edge.local import LlamaLocal
from sr_edge.roles import Limits, Message
from sr_edge.split import SplitDecoder
from sr_edge.transcript import Fold, Transcript

SUBJECT = "turns"
LONG: Final = 4096
_MARGIN = 512  # tokens: the scaffold of the turns, the second question, and what the decoder keeps free
_ANSWER = 32


@dataclass(frozen=True, slots=True)
class Turns:
    """Of the first turn, of the second."""

    seconds: tuple[float, ...]
    """From the question to the first token of the answer."""
    read: tuple[int, ...]
    """Tokens of the prompt that were not in the cache."""


def rows(setting: Setting) -> Iterator[Found]:
    if trained_context(setting.model) < LONG + 2 * _ANSWER + _MARGIN:
        yield Skipped(SUBJECT, "all of it", f"the model's context has no room for {LONG} tokens")
        return
    measured = in_rounds(
        {SUBJECT: lambda: fresh(partial(converse, setting.model, setting.threads), setting.own_environ)},
        setting.pairs,
        say=setting.say,
    )
    yield from failures(SUBJECT, measured.failures)
    for got in measured.values.values():
        first, second = ([one.seconds[turn] for one in got] for turn in (0, 1))
        reads = [Spread.of([one.read[turn] for one in got]).median for turn in (0, 1)]
        yield Row(
            SUBJECT,
            f"time to the first token in a conversation of {LONG // 1024}k, second turn / first",
            ratios(second, first),
            "x",
            Goal("at most", 0.05),
            (Side("second", Spread.of(second), "s"), Side("first", Spread.of(first), "s")),
            f"prompt tokens that were read: {reads[0]:.0f}, then {reads[1]:.0f}",
        )


def converse(model: Path, threads: int, tokens: int = LONG) -> Turns:
    """A question of so many tokens, a short answer, a short question, a short answer."""
    context = tokens + 2 * _ANSWER + _MARGIN
    with open_model(model, threads, context) as local:
        told = [Message("user", _question(local, tokens))]
        transcript, first = _turn(local, told)
        told += [Message("assistant", transcript.text), Message("user", "And for 9 of them?")]
        _, second = _turn(local, told)
    return Turns(seconds=(first[0], second[0]), read=(first[1], second[1]))


def _turn(local: LlamaLocal, told: Sequence[Message]) -> tuple[Transcript, tuple[float, int]]:
    folding = Fold()
    seconds: float | None = None
    read = 0
    began = time.perf_counter()
    limits = Limits(max_tokens=_ANSWER)
    events: Iterator[Event] = SplitDecoder(local, limits=limits, policy="local").generate(told)
    for event in events:
        folding.add(event)
        if isinstance(event, Started):
            read = len(event.prompt_ids) - event.reused
        elif isinstance(event, LocalToken) and seconds is None:
            seconds = time.perf_counter() - began
    if seconds is None:
        raise EdgeError(f"{local.name} did not answer")
    return folding.transcript, (seconds, read)


def _question(local: LlamaLocal, tokens: int) -> str:
    """Text of about so many tokens, and not more."""
    some = list(words(tokens))
    return " ".join(some[: int(len(some) * tokens / local.token_count(" ".join(some)))])
