"""What HTTP costs: an answer through `sr-edge serve`, beside the same one straight from the decoder.

The server is a child, as its clients see it. This process is its one client, and the other side too: `ask`
without its terminal. Both write the same tokens, or nothing is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from typing import Final

from sr_edge.bench.pairs import Spread, in_rounds, ratios
from sr_edge.bench.report import Found, Goal, Row, Side, Skipped, failures
from sr_edge.bench.setting import Setting
from sr_edge.bench.synthetic import words
from sr_edge.bench.writing import PROBLEM
from sr_edge.config import load_config
from sr_edge.errors import EdgeError
from sr_edge.events import LocalToken, SpanDelta
from sr_edge.extract import END_THINK, THINK
from sr_edge.passport import demo_paths
from sr_edge.remote.served import ServedClient, kept_token
from sr_edge.remote.serving import serving
from sr_edge.roles import Message
from sr_edge.session import Session, SessionSettings
from sr_edge.suites.demo import problems
from sr_edge.transcript import Transcript, fold

SUBJECT: Final = "serve"
STRAIGHT: Final = "straight"
THROUGH: Final = "through HTTP"
_PROBLEMS: Final = 8  # for the built-in pair, whose answers take a fraction of a second
_ATTEMPTS: Final = 16  # questions, until one has an answer that is long enough
_WORDS: Final = 40  # of a question
_RATE: Final = Goal("at least", 0.97)
PROMPT: Final = Goal("at most", 1.0)

Texts = Callable[[str], Generator[str]]
"""From a question to the answer's text, as it comes."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The answers to all questions."""

    texts: tuple[str, ...]
    first: float
    """Seconds from asking to the first text; the mean."""
    seconds: float
    """From the first text of each to its last; the sum."""


def rows(setting: Setting) -> Iterator[Found]:
    if load_config(environ=setting.environ).offline:
        reason = "offline: not even this machine's own sockets are opened"
        yield Skipped(SUBJECT, f"{THROUGH} / {STRAIGHT}", reason)
        return
    with ExitStack() as stack:
        pair = _Pair(setting, stack)
        questions, tokens = pair.questions(setting.tokens)
        sides = {
            STRAIGHT: lambda: _heard(pair, pair.straight, questions),
            THROUGH: lambda: _heard(pair, pair.through, questions),
        }
        measured = in_rounds(sides, setting.pairs, say=setting.say)
    yield from failures(SUBJECT, measured.failures)
    if len(measured.values) < 2:
        return
    straight, through = measured.values[STRAIGHT], measured.values[THROUGH]
    if len({one.texts for one in (*straight, *through)}) > 1:
        raise EdgeError("the answers changed from one time to the next: nothing can be compared")
    steps = tokens - len(questions)  # the first token of each is there when the time begins
    rates = {name: [steps / one.seconds for one in got] for name, got in measured.values.items()}
    yield Row(
        SUBJECT,
        f"tokens a second, {THROUGH} / {STRAIGHT}",
        ratios(rates[THROUGH], rates[STRAIGHT]),
        "x",
        _RATE,
        tuple(Side(name, Spread.of(rates[name]), "tok/s") for name in (THROUGH, STRAIGHT)),
        f"{len(questions)} answers of {tokens} tokens in all, greedy; server and client share the cores",
    )
    step = [one.seconds / steps for one in straight]
    yield Row(
        SUBJECT,
        "the first chunk after the first token, in decode steps",
        ratios([b.first - a.first for a, b in zip(straight, through, strict=True)], step),
        "steps",
        PROMPT,
        (
            Side("first chunk", Spread.of([1e3 * one.first for one in through]), "ms"),
            Side("first token", Spread.of([1e3 * one.first for one in straight]), "ms"),
            Side("a step", Spread.of([1e3 * one for one in step]), "ms"),
        ),
        "from asking, with the question in the cache on both sides",
    )


class _Pair:
    """The models, twice: in this process, and behind HTTP."""

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        """Args:
        stack: ends what is started.
        """
        self._is_demo = setting.model == demo_paths().small
        big = setting.big or (demo_paths().big if self._is_demo else None)
        environ = {**setting.own_environ, "SR_EDGE_ENGINE__THREADS": str(setting.threads)}
        options = ["--model", str(setting.model), *([] if big is None else ["--big", str(big)])]
        server = stack.enter_context(serving(options, environ))
        self._client = stack.enter_context(ServedClient(server.url, kept_token(environ)))
        settings = SessionSettings(
            model=setting.model,
            big=None if big is None else str(big),
            policy="local" if big is None else "auto",
            temperature=0.0,
            max_tokens=setting.tokens,
            threads=setting.threads,
            calibrate=True,  # as the server's, which has measured it by now
        )
        self._session = stack.enter_context(Session.open(settings, environ=environ))
        plain = self._client.models()[0]
        self._asked: Mapping[str, object] = {
            "model": f"{plain}:local" if big is None else plain,
            "temperature": 0,
            "max_tokens": setting.tokens,
        }

    def questions(self, tokens: int) -> tuple[tuple[str, ...], int]:
        """What to ask, and the number of tokens of all answers.

        Raises: EdgeError: the answers are not the same on both sides.
        """
        if self._is_demo:
            asked = [problem.question for problem in problems(0, _PROBLEMS)]
        else:
            asked = [self._answered_at_length(tokens)]
        written = 0
        for question in asked:
            self.read(question)
            ours, served = self._answer(question), fold(self._client.events(self._body(question)))
            if (ours.prompt_ids, ours.ids) != (served.prompt_ids, served.ids):
                raise EdgeError(f"{THROUGH} and {STRAIGHT} answer {question[:40]!r} differently")
            written += ours.local_tokens + ours.remote_tokens
        return tuple(asked), written

    def read(self, question: str) -> None:
        """Have it in the caches of both sides, and something after it.

        That decides what follows, too: the last token of the question is then computed alone, and comes out a
        little otherwise than among others. That is enough where two answers are as likely as each other.
        """
        with closing(self.straight(question)) as texts:
            for _ in islice(texts, 2):
                pass
        for _ in self._client.chunks({**self._body(question), "max_tokens": 2}):
            pass

    def straight(self, question: str) -> Generator[str]:
        for event in self._session.answer([Message("user", question)]):
            if isinstance(event, LocalToken | SpanDelta) and event.text:
                yield event.text

    def through(self, question: str) -> Generator[str]:
        """As an ordinary client hears it."""
        with closing(self._client.chunks(self._body(question))) as chunks:
            for chunk in chunks:
                delta = chunk["choices"][0]["delta"]
                if text := delta.get("reasoning_content") or delta.get("content"):
                    yield text

    def _body(self, question: str) -> dict[str, object]:
        return {**self._asked, "messages": [{"role": "user", "content": question}]}

    def _answer(self, question: str) -> Transcript:
        return fold(self._session.answer([Message("user", question)]))

    def _answered_at_length(self, tokens: int) -> str:
        """The first of some questions whose answer is so long, or else the one with the longest."""
        best, most = PROBLEM, 0
        for seed in range(_ATTEMPTS):
            question = " ".join(words(_WORDS, seed=seed - 1)) if seed else PROBLEM
            written = len(self._answer(question).ids)
            if written > most:
                best, most = question, written
            if written >= tokens:
                break
        return best


def _heard(pair: _Pair, side: Texts, questions: tuple[str, ...]) -> Heard:
    texts, first, seconds = [], 0.0, 0.0
    for question in questions:
        pair.read(question)
        arrivals, said = [time.perf_counter()], []
        for text in side(question):
            arrivals.append(time.perf_counter())
            said.append(text)
        if len(said) < 2:
            raise EdgeError("the model ends its answers at once: name another one with -m")
        first += (arrivals[1] - arrivals[0]) / len(questions)
        seconds += arrivals[-1] - arrivals[1]
        texts.append("".join(said).replace(THINK, "").replace(END_THINK, ""))  # which HTTP does not tell
    return Heard(tuple(texts), first, seconds)
