"""What a long answer does to the speed: our own work for a token must not grow with it."""

from __future__ import annotations

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
from sr_edge.bench.writing import go_on, metered, open_model, trained_context
from sr_edge.events import LocalToken
from sr_edge.llama import library
from sr_edge.local import LlamaLocal

SUBJECT = "growth"
DEPTHS: Final = (1024, 4096, 16384)
_MARGIN = 512  # tokens: the question, and what the decoder keeps free


@dataclass(frozen=True, slots=True)
class Grown:
    """At each depth, in the order asked for."""

    client_ms: tuple[float, ...]
    """For each token, as in `writing.Written`."""
    token_ms: tuple[float, ...]


def rows(setting: Setting) -> Iterator[Found]:
    room = trained_context(setting.model) - setting.tokens - _MARGIN
    depths = tuple(depth for depth in DEPTHS if depth <= room)
    if len(depths) < 2:
        yield Skipped(SUBJECT, "all of it", f"the model's context has no room for {DEPTHS[1]} tokens")
        return
    measured = in_rounds(
        {
            SUBJECT: lambda: fresh(
                partial(grow, setting.model, setting.threads, setting.tokens, depths), setting.own_environ
            )
        },
        setting.pairs,
        say=setting.say,
    )
    yield from failures(SUBJECT, measured.failures)
    for rounds in measured.values.values():
        yield _row("client's work for each token", depths, [one.client_ms for one in rounds], 1.1)
        yield _row("a whole token", depths, [one.token_ms for one in rounds], None)


def _row(name: str, depths: Sequence[int], rounds: Sequence[Sequence[float]], most: float | None) -> Row:
    by_depth = list(zip(*rounds, strict=True))
    return Row(
        SUBJECT,
        f"{name}, {_thousands(depths[-1])} / {_thousands(depths[0])} of context",
        ratios(by_depth[-1], by_depth[0]),
        "x",
        None if most is None else Goal("at most", most),
        tuple(
            Side(f"at {_thousands(depth)}", Spread.of(values), "ms")
            for depth, values in zip(depths, by_depth, strict=True)
        ),
    )


def grow(model: Path, threads: int, tokens: int, depths: tuple[int, ...]) -> Grown:
    """Write so many tokens each time that the answer has become so long; what is in between is only read."""
    context = max(depths) + tokens + _MARGIN
    client, whole = [], []
    with metered(library().api) as meter, open_model(model, threads, context) as local:
        past = some_answer(local, max(depths))
        for depth in depths:
            written = go_on(local, meter, tokens, past=past[:depth])
            client.append(written.client_ms)
            whole.append(written.seconds / written.tokens * 1e3)
    return Grown(tuple(client), tuple(whole))


def some_answer(local: LlamaLocal, tokens: int) -> list[LocalToken]:
    """So many events, as if the model had written them."""
    ids = local.tokenize(" " + " ".join(words(tokens)))[:tokens]  # a word has one token at least
    return [LocalToken(id, local.piece(id).decode("utf-8", "replace"), logprob=-1.0) for id in ids]


def _thousands(tokens: int) -> str:
    return f"{tokens // 1024}k"
