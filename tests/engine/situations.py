"""The engine with the built-in pair, brought to the moment that a test is about."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from tests.command_line import environment

from sr_edge.engine.host import Engine, Heard
from sr_edge.engine.messages import Answered, Asked, Choices, Loading, Ready, Working
from sr_edge.events import LocalToken, SpanDelta, SpanOpened
from sr_edge.roles import Message
from sr_edge.suites.demo import HARD_KINDS, problems
from sr_edge.testing.fault_endpoint import COMPLETIONS, HANG, FaultEndpoint, Loop, Script, Sleep, head, page

PATIENCE = 60.0  # seconds, after which a test fails
HARD = [p.question for p in problems(seed=2024, n=60) if any(step.kind in HARD_KINDS for step in p.steps)]
QUESTION = [Message("user", HARD[0])]
CONTEXT = 1024  # of the built-in small model

T = TypeVar("T")


class Ear:
    """Takes down what is heard, and when."""

    def __init__(self) -> None:
        self.all: list[Heard] = []
        self.times: list[float] = []
        self.threads: set[threading.Thread] = set()
        self._told = threading.Condition()

    def __call__(self, heard: Heard) -> None:
        with self._told:
            self.all.append(heard)
            self.times.append(time.monotonic())
            self.threads.add(threading.current_thread())
            self._told.notify_all()

    def wait(self, kind: type[T], having: Callable[[T], bool] = lambda heard: True, *, after: int = 0) -> T:
        """The first of this kind; it may have been heard already, but not among the first `after`."""
        with self._told:
            found = self._told.wait_for(lambda: self._find(kind, having, after), PATIENCE)
        assert found, f"no {kind.__name__} came; heard: {[type(one).__name__ for one in self.all]}"
        return found[0]

    def answered(self, number: int) -> Answered:
        return self.wait(Answered, lambda heard: heard.number == number)

    def of(self, kind: type[T]) -> list[T]:
        return [one for one in self.all if isinstance(one, kind)]

    def _find(self, kind: type[T], having: Callable[[T], bool], after: int) -> list[T]:
        return [one for one in self.all[after:] if isinstance(one, kind) and having(one)][:1]


def choices(server: FaultEndpoint | None = None, **flags: Any) -> Choices:
    return Choices(
        flags={"sampling.temperature": 0, "sampling.seed": 1, **flags},
        big=server.url if server else None,
        big_model="big" if server else None,
    )


@contextmanager
def opened(
    chosen: Choices | None = None,
    *,
    command: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[tuple[Engine, Ear]]:
    """An engine that is not started yet."""
    ear = Ear()
    more = {} if command is None else {"command": command}
    engine = Engine(chosen or choices(), ear, environ=environment(**(env or {})), **more)
    try:
        yield engine, ear
    finally:
        engine.close()


def long_prompt(times: int = 1) -> list[Message]:
    """As long as the context nearly allows, or so many times that. One question: the pair hears no other."""
    return [Message("user", " ".join([*HARD[:9], *HARD[-1:] * 11] * times))]


def endpoint(*ops: Any) -> FaultEndpoint:
    """Whatever is asked, these operations follow."""
    then: Script = [head(), *ops]
    return FaultEndpoint(then=then, pages={"/v1/models": page({"data": [{"id": "big"}]})})


ENDLESS = Loop((COMPLETIONS.text(" 4"), Sleep(0.01)))

STATES = ("starting", "loading", "reading", "local", "big model", "silent", "streaming", "asked")


@contextmanager
def situation(state: str) -> Iterator[tuple[Engine, Ear, int]]:
    """An answer that is in this state now: the engine, what it says, the answer's number."""
    reply = {"silent": HANG, "streaming": ENDLESS, "asked": HANG}.get(state)
    server = endpoint(reply) if reply else None
    with server or nullcontext(), opened(choices(server)) as (engine, ear):
        if state == "asked":
            engine.steer(dial="ask", bias=0.0)
        if state not in ("starting", "loading"):
            engine.start()
            ear.wait(Ready)
        number = engine.answer(long_prompt() if state == "reading" else QUESTION)
        match state:
            case "loading":
                ear.wait(Loading)
            case "reading":
                ear.wait(Working)
            case "local":
                ear.wait(LocalToken)
            case "big model" | "silent":
                ear.wait(SpanOpened)
            case "streaming":
                ear.wait(SpanDelta)
            case "asked":
                ear.wait(Asked)
        yield engine, ear, number
