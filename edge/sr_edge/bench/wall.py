"""The whole answer: ours against the paper's loop (`paper`), the same two models, the same slow remote.

The built-in pair answers problems of its own kind. The large model is behind HTTP on this machine and writes
a token every 20 ms, as a large one at a provider does; the paper's small model is behind HTTP too, without
any delay, and computes at once what can be computed at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sr_edge.bench.pairs import Spread, in_rounds, ratios
from sr_edge.bench.paper import PaperClient
from sr_edge.bench.report import Found, Goal, Point, Row, Side, Skipped, Timeline
from sr_edge.bench.setting import Setting
from sr_edge.bench.timeline import timeline_of
from sr_edge.config import load_config
from sr_edge.extract import last_boxed, split_reasoning
from sr_edge.local import LlamaLocal
from sr_edge.passport import Pair, demo_paths
from sr_edge.remote.endpoint import Endpoint
from sr_edge.roles import Limits, Message
from sr_edge.split import SplitDecoder
from sr_edge.suites.demo import Problem, is_correct, problems
from sr_edge.testing.model_endpoint import ModelEndpoint
from sr_edge.transcript import fold

PROBLEMS: Final = 20
MS_PER_TOKEN: Final = 20.0
_SEED: Final = 0
_MAX_TOKENS: Final = 512
_GOAL: Final = Goal("at most", 0.35)
_OURS: Final = "ours"
_THEIRS: Final = "the paper's loop"


@dataclass(frozen=True, slots=True)
class Answered:
    """One problem, answered by one of the sides."""

    seconds: float
    is_correct: bool
    spans: int
    big_tokens: int
    """That the large model wrote, kept or not."""
    timeline: Timeline


@dataclass(frozen=True, slots=True)
class Wall:
    """Problem by problem."""

    ours: tuple[Answered, ...]
    theirs: tuple[Answered, ...]


def rows(setting: Setting) -> Iterator[Found]:
    if load_config(environ=setting.environ).offline:
        yield Skipped(
            "wall", f"{_OURS} / {_THEIRS}", "offline: not even this machine's own sockets are opened"
        )
        return
    wall = measure_wall(problems(_SEED, PROBLEMS), say=setting.say)
    yield from rows_of(wall)


def measure_wall(
    asked: Sequence[Problem],
    *,
    ms_per_token: float = MS_PER_TOKEN,
    pair: Pair | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Wall:
    """Answer each problem on both sides, whose order changes from problem to problem. Opens loopback sockets.

    Args:
        ms_per_token: of the large model, at least.
        pair: None for the built-in one.
    """
    pair = pair or demo_paths()
    with (
        ModelEndpoint(pair.big, ms_per_token=ms_per_token) as big,
        ModelEndpoint(pair.small) as small,
        LlamaLocal.open(pair.small, temperature=0.0) as local,
        Endpoint(big.url, prompt=local.render, model=big.name, api="completions", temperature=0.0) as remote,
        PaperClient(small.url, big.url, max_tokens=_MAX_TOKENS) as paper,
    ):

        def ours(problem: Problem) -> Answered:
            return _answered_by_us(local, remote, big, problem)

        def theirs(problem: Problem) -> Answered:
            return _answered_by_paper(local, paper, problem)

        for side in (ours, theirs):  # connections, and what is touched for the first time
            side(asked[0])
        turns = {_OURS: iter(asked), _THEIRS: iter(asked)}
        sides = {
            _OURS: lambda: ours(next(turns[_OURS])),
            _THEIRS: lambda: theirs(next(turns[_THEIRS])),
        }
        done = in_rounds(sides, len(asked), say=say)
    return Wall(done.values[_OURS], done.values[_THEIRS])


def rows_of(wall: Wall) -> Iterator[Found]:
    sides = {_OURS: wall.ours, _THEIRS: wall.theirs}
    seconds = {name: [one.seconds for one in answers] for name, answers in sides.items()}
    spans = sum(one.spans for one in wall.ours)
    tokens = {name: sum(one.big_tokens for one in answers) for name, answers in sides.items()}
    note = (
        f"{len(wall.ours)} problems, greedy, {MS_PER_TOKEN:g} ms a token at the large model: "
        f"{sum(seconds[_OURS]):.1f} s and {sum(seconds[_THEIRS]):.1f} s in all; {spans} and "
        f"{sum(one.spans for one in wall.theirs)} spans; the large model wrote {tokens[_OURS]} and "
        f"{tokens[_THEIRS]} tokens"
    )
    yield Row(
        "wall",
        f"whole answer, {_OURS} / {_THEIRS}",
        ratios(seconds[_OURS], seconds[_THEIRS]),
        "x",
        _GOAL,
        tuple(Side(name, Spread.of(each), "s") for name, each in seconds.items()),
        note,
    )
    asked = [n for n, one in enumerate(wall.ours) if one.spans and wall.theirs[n].spans]
    if asked:
        yield Row(
            "wall",
            "the same, where the small model asked",
            ratios(*([seconds[name][n] for n in asked] for name in (_OURS, _THEIRS))),
            "x",
            sides=tuple(
                Side(name, Spread.of([each[n] for n in asked]), "s") for name, each in seconds.items()
            ),
        )
    for name, answers in sides.items():
        share = sum(one.is_correct for one in answers) / len(answers)
        yield Row("wall", f"problems solved, {name}", Spread.of([share]), "%")
    longest = max(range(len(wall.ours)), key=lambda n: wall.ours[n].spans)
    yield wall.ours[longest].timeline
    yield wall.theirs[longest].timeline


def _answered_by_us(local: LlamaLocal, remote: Endpoint, big: ModelEndpoint, problem: Problem) -> Answered:
    decoder = SplitDecoder(local, remote, limits=Limits(max_tokens=_MAX_TOKENS))
    served = len(big.served)
    began = time.monotonic()
    events = list(decoder.generate([Message("user", problem.question)]))
    seconds = time.monotonic() - began
    transcript = fold(events)
    _, answer = split_reasoning(transcript.opening, transcript.text)
    return Answered(
        seconds,
        is_correct(problem, last_boxed(answer)),
        len(transcript.spans),
        sum(one.completion_tokens for one in big.served[served:]),
        timeline_of(_OURS, events),
    )


def _answered_by_paper(local: LlamaLocal, paper: PaperClient, problem: Problem) -> Answered:
    prompt = local.render([Message("user", problem.question)])
    written = paper.answer(prompt.text)
    visible = written.visible
    _, answer = split_reasoning(prompt.opening, visible)
    points, tokens = [Point(0.0, 0, "local")], 0
    for grown in written.growth:
        points.append(Point(grown.seconds, tokens, grown.writer))  # a whole reply comes all at once
        tokens = local.token_count(visible[: grown.characters])
        points.append(Point(grown.seconds, tokens, grown.writer))
    return Answered(
        written.seconds,
        is_correct(problem, last_boxed(answer)),
        written.spans,
        written.big_tokens,
        Timeline(_THEIRS, tuple(points)),
    )
