"""Our own side: an answer written by the small model alone, through all of the client but its terminal.

What is metered is the processor time of the thread that decodes: inside llama.cpp's two steps
(`llama_decode`, `llama_sampler_sample`), and outside them, which is our own work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from sr_edge.errors import EdgeError
from sr_edge.events import Event, LocalToken
from sr_edge.gguf_header import read_header
from sr_edge.llama import library
from sr_edge.local import LlamaLocal, SamplerSettings
from sr_edge.roles import Limits, Message
from sr_edge.shelf import facts_of
from sr_edge.split import SplitDecoder
from sr_edge.transcript import Fold

STEPS: Final = ("llama_decode", "llama_sampler_sample")
PROBLEM: Final = "Ida fills 28 bags with 4 coins each. Tom gives her 93 more. How many coins has Ida now?"
"""One that the built-in models know all words of."""
QUESTION: Final = (Message("user", PROBLEM),)
_CONTEXT: Final = 2048
_ROOM: Final = 512  # for the question
_ATTEMPTS: Final = 16  # a model may end its answer after a word


@dataclass(frozen=True, slots=True)
class Written:
    tokens: int
    """After the first of each answer, which the prompt's logits gave."""
    seconds: float
    client: float
    """Seconds of processor time outside llama.cpp's steps; of this thread."""

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    @property
    def client_ms(self) -> float:
        """Milliseconds for each token."""
        return self.client / self.tokens * 1e3


class Meter:
    """Processor time of this thread, and calls, inside some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def metered(*arguments: Any) -> Any:
            began = time.thread_time()
            result = function(*arguments)
            self.seconds += time.thread_time() - began
            self.calls += 1
            return result

        return metered


@contextmanager
def metered(api: ModuleType, names: Sequence[str] = STEPS) -> Iterator[Meter]:
    """Meter functions of llama.cpp's bindings, for models that are opened within."""
    meter = Meter()
    before = {name: getattr(api, name) for name in names}
    for name, function in before.items():
        setattr(api, name, meter.around(function))
    try:
        yield meter
    finally:
        for name, function in before.items():
            setattr(api, name, function)


def write(
    model: Path, threads: int, tokens: int, context: int | None = None, seconds: float | None = None
) -> Written:
    """Open the model and let it answer until it has written so many tokens, or for so long.

    Raises:
        EdgeError: the model cannot be used, or ends its answers at once.
    """
    with (
        metered(library().api) as meter,
        open_model(
            model, threads, context or max(_CONTEXT, tokens if seconds is None else 0) + _ROOM
        ) as local,
    ):
        local.feed(local.render(QUESTION).ids[:1])
        for _ in range(3):  # llama-bench warms up too: the first steps touch memory that was not there
            local.sample()
        return go_on(local, meter, tokens, seconds=seconds)


def go_on(
    local: LlamaLocal,
    meter: Meter,
    tokens: int,
    *,
    past: Sequence[Event] = (),
    seconds: float | None = None,
) -> Written:
    """Let it write so many tokens (or for so long, whatever comes first) after `past`; anew where it ends."""
    total = Written(0, 0.0, 0.0)
    for seed in range(_ATTEMPTS):
        local.choose(SamplerSettings(seed=seed))
        left = None if seconds is None else seconds - total.seconds
        one = _answer(local, meter, tokens - total.tokens, past, left)
        total = Written(total.tokens + one.tokens, total.seconds + one.seconds, total.client + one.client)
        if total.tokens >= tokens or (seconds is not None and total.seconds >= seconds):
            return total
    if not total.tokens:
        raise EdgeError(f"{local.name} ends its answers at once: name another model with -m")
    return total


def _answer(
    local: LlamaLocal, meter: Meter, tokens: int, past: Sequence[Event], seconds: float | None
) -> Written:
    folding = Fold()
    # One more than is counted: time begins when the first is there.
    limits = Limits(max_tokens=len(past) + tokens + 1)
    seen, began, ended = -len(past), (0.0, 0.0), (0.0, 0.0)

    def client() -> float:
        return time.thread_time() - meter.seconds

    for event in SplitDecoder(local, limits=limits, policy="local").generate(QUESTION, past=past):
        folding.add(event)
        if not isinstance(event, LocalToken):
            continue
        seen += 1
        if seen == 1:
            began = ended = time.perf_counter(), client()
        elif seen > 1:
            ended = time.perf_counter(), client()
            if seconds is not None and ended[0] - began[0] >= seconds:
                break
    return Written(max(0, seen - 1), ended[0] - began[0], ended[1] - began[1])


def open_model(model: Path, threads: int, context: int) -> LlamaLocal:
    """With so much context, or as much as the model was trained for."""
    return LlamaLocal.open(model, threads=threads, n_ctx=min(context, trained_context(model)), seed=0)


def trained_context(model: Path) -> int:
    return facts_of(read_header(model)).context
