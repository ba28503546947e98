"""A large model on this machine: how fast it writes a span alone, and verifying what the small one drafts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from sr_edge.bench.fresh import fresh
from sr_edge.bench.pairs import Spread, in_rounds, ratios
from sr_edge.bench.report import Found, Row, Side, Skipped, failures
from sr_edge.bench.setting import Setting
from sr_edge.bench.writing import QUESTION
from sr_edge.errors import EdgeError
from sr_edge.local import LlamaLocal
from sr_edge.passport import demo_paths
from sr_edge.remote.local_gguf import LocalGGUF
from sr_edge.remote.speculation import Always

SUBJECT: Final = "big"
Way = Literal["alone", "drafted", "as measured"]
_WAYS: Final[tuple[Way, ...]] = ("alone", "drafted", "as measured")
_NOTES: Final[Mapping[Way, str]] = {
    "drafted": "every step is drafted, whatever that costs",
    "as measured": "as the client does it: a trial first, then whichever way was faster",
}


@dataclass(frozen=True, slots=True)
class Speculated:
    """One span. The large model decodes once for each token that it did not accept from a draft."""

    tokens: int
    seconds: float
    drafted: int
    accepted: int

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def rows(setting: Setting) -> Iterator[Found]:
    big = setting.big or demo_paths().big
    sides: dict[str, Callable[[], Speculated]] = {
        way: partial(
            fresh,
            partial(measure_speculation, setting.model, big, setting.threads, setting.tokens, way),
            setting.own_environ,
        )
        for way in _WAYS
    }
    measured = in_rounds(sides, setting.pairs, say=setting.say)
    if len(set(measured.failures.values())) == 1 and "alone" in measured.values:
        yield Skipped(SUBJECT, "drafted / alone", next(iter(measured.failures.values())))
    else:
        yield from failures(SUBJECT, measured.failures)
    if "alone" not in measured.values:
        return
    alone = measured.values["alone"]
    for way in _NOTES:
        if way not in measured.values:
            continue
        spans = measured.values[way]
        ways = {"alone": alone, way: spans}
        yield Row(
            SUBJECT,
            f"tokens a second of a span, {way} / alone",
            ratios([one.rate for one in spans], [one.rate for one in alone]),
            "x",
            None,
            tuple(Side(name, Spread.of([one.rate for one in got]), "tok/s") for name, got in ways.items()),
            _NOTES[way],
        )
    if "drafted" in measured.values and any(one.drafted for one in measured.values["drafted"]):
        spans = measured.values["drafted"]
        yield Row(
            SUBJECT,
            "drafted tokens that the large model would have written itself",
            Spread.of([one.accepted / one.drafted for one in spans if one.drafted]),
            "%",
            None,
            (
                Side("drafted", Spread.of([one.drafted for one in spans]), "tokens"),
                Side("accepted", Spread.of([one.accepted for one in spans]), "tokens"),
                Side("written in all", Spread.of([one.tokens for one in spans]), "tokens"),
            ),
        )


def measure_speculation(small: Path, big: Path, threads: int, tokens: int, way: Way) -> Speculated:
    """Let the large model write one span in this process, its prompt read before.

    Raises:
        EdgeError: a model cannot be used, or the two have different vocabularies and `way` is to draft.
    """
    with LlamaLocal.open(small, temperature=0, threads=threads) as drafter:
        drafter.feed(drafter.render(QUESTION).ids)
        if drafter.markers is not None:
            drafter.feed(drafter.markers.open_ids)
        with LocalGGUF(big, small=None if way == "alone" else drafter, threads=threads) as remote:
            speculation = remote.speculation
            if way != "alone" and speculation is None:
                raise EdgeError(
                    f"{small.name} and {big.name} have different vocabularies: the one can draft nothing for "
                    "the other"
                )
            if way == "drafted" and speculation is not None:
                speculation.contest = Always()
            _write(remote, 1)  # reads the prompt
            began = time.perf_counter()
            written = _write(remote, tokens)
            seconds = time.perf_counter() - began
            if speculation is None:
                return Speculated(written, seconds, 0, 0)
            return Speculated(written, seconds, speculation.drafted, speculation.accepted)


def _write(remote: LocalGGUF, tokens: int) -> int:
    stream = remote.stream(QUESTION, "", tokens)
    while stream.read(1.0) is not None:
        pass
    if stream.outcome.error is not None:
        raise EdgeError(stream.outcome.error)
    written = stream.outcome.completion_tokens
    if not written:
        raise EdgeError(f"{remote.name} ends its answer at once: name another model with --big")
    return written
