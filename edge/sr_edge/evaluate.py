"""Measures what split decoding is worth: the same problems, written by one model, the other, and both.

The arm `random` is the SplitReason paper's baseline (arXiv 2504.16379): the large model writes chunks of
ten tokens at random places, as many as the small model asked for. What `split` gains over it is what
asking at the right place gains.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Literal, Protocol

from sr_edge.errors import RemoteError
from sr_edge.events import Event, LocalToken
from sr_edge.extract import last_boxed, split_reasoning
from sr_edge.policy import Dial
from sr_edge.roles import Message, Schedule
from sr_edge.suites.demo import Problem, is_correct
from sr_edge.transcript import Transcript, fold

Arm = Literal["split", "local", "big", "random"]
ARMS: tuple[Arm, ...] = ("split", "local", "big", "random")
"""In the order in which they are run: random needs split's share."""

CHUNK = 10
"""Tokens of a span of the random baseline, as in the paper."""

_POLICIES: dict[Arm, Dial] = {"split": "auto", "local": "local", "big": "remote", "random": "auto"}


class Answering(Protocol):
    """Whoever answers: a `session.Session`, or a server that has one."""

    dial: Dial

    def answer(
        self,
        messages: Sequence[Message],
        *,
        schedule: Schedule | None = None,
        cancelled: Callable[[], bool],
    ) -> Iterator[Event]: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """One problem, answered. `steps` are the seconds between two sampled tokens with no span between."""

    is_correct: bool
    transcript: Transcript
    steps: tuple[float, ...]
    seconds: float


def answers(
    answering: Answering,
    problems: Sequence[Problem],
    arm: Arm,
    *,
    schedule: Schedule | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Answer]:
    """Answer the problems one after the other; an answer that was stopped in the middle does not count.

    Raises:
        RemoteError: the large model failed in an arm that is nothing without it.
    """
    answering.dial = _POLICIES[arm]
    for problem in problems:
        began = time.perf_counter()
        events = list(
            answering.answer([Message("user", problem.question)], schedule=schedule, cancelled=cancelled)
        )
        if cancelled():
            return
        transcript = fold(events)
        if arm == "big" and transcript.finish == "error":
            raise RemoteError(f"the arm big cannot be measured: {transcript.error}")
        _, answer = split_reasoning(transcript.opening, transcript.text)
        yield Answer(
            is_correct(problem, last_boxed(answer)),
            transcript,
            _steps(events),
            time.perf_counter() - began,
        )


def random_schedule(share: float, rng: random.Random) -> Schedule:
    """Opens chunks that make up `share` of all tokens: at each place with p = s / (s + (1 - s) * chunk)."""
    p = share / (share + (1 - share) * CHUNK) if share else 0.0
    return lambda num_tokens: CHUNK if rng.random() < p else None


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """The figures of one arm, as `sr-edge eval --json` prints them."""
    num_correct = sum(answer.is_correct for answer in answers)
    transcripts = [answer.transcript for answer in answers]
    spans = [span for transcript in transcripts for span in transcript.spans]
    local_tokens = sum(transcript.local_tokens for transcript in transcripts)
    remote_tokens = sum(transcript.remote_tokens for transcript in transcripts)
    return {
        "n": len(answers),
        "accuracy": num_correct / len(answers) if answers else 0.0,
        "interval": list(wilson(num_correct, len(answers))),
        "remote_share": remote_share(answers),
        "spans_per_answer": len(spans) / len(answers) if answers else 0.0,
        "ends": dict(Counter(span.end for span in spans).most_common()),
        "local_tokens": local_tokens,
        "remote_tokens": remote_tokens,
        "seconds": sum(answer.seconds for answer in answers),
        "decode_ms_median": _median_ms([step for answer in answers for step in answer.steps]),
        "resume_ms_median": _median_ms([span.resume for span in spans if span.resume is not None]),
    }


def remote_share(answers: Sequence[Answer]) -> float:
    """Part of all tokens that the large model wrote."""
    remote = sum(answer.transcript.remote_tokens for answer in answers)
    tokens = remote + sum(answer.transcript.local_tokens for answer in answers)
    return remote / tokens if tokens else 0.0


def wilson(num_correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion, at 95 % for the default z; (0, 1) without measurements."""
    if n == 0:
        return 0.0, 1.0
    p = num_correct / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # at p = 0 and p = 1 rounding must not leave p itself outside
    return max(0.0, min(p, (middle - half) / scale)), min(1.0, max(p, (middle + half) / scale))


def _steps(events: Sequence[Event]) -> tuple[float, ...]:
    return tuple(
        b.at - a.at for a, b in pairwise(events) if isinstance(a, LocalToken) and isinstance(b, LocalToken)
    )


def _median_ms(seconds: Sequence[float]) -> float | None:
    return round(median(seconds) * 1000, 3) if seconds else None
