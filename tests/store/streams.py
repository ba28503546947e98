"""Event streams for tests of the history: any valid one, and one that a number stands for."""

from __future__ import annotations

import random
from typing import get_args

from hypothesis import strategies as st

from sr_edge.events import End, Event, Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started

_ENDS = get_args(End)
_WORDS = ["so ", "7^2", " = ", "49", "\n", "中文", "é", "😀", "", "\x00", "'; DROP", "<b>"]

texts = st.one_of(st.sampled_from([*_WORDS, "</think>"]), st.text(max_size=6))
ids = st.integers(0, 2**31)
times = st.floats(0, 1e6)
counts = st.integers(0, 10**9)
probabilities = st.none() | st.floats(0, 1)


@st.composite
def streams(draw: st.DrawFn) -> list[Event]:
    """A whole one."""
    opening = draw(st.sampled_from(["", "<think>\n"]))
    started = Started(
        tuple(draw(st.lists(ids, max_size=5))), draw(texts), draw(st.none() | texts), 2, opening, draw(times)
    )
    events: list[Event] = [started]
    spans = 0
    for is_span in draw(st.lists(st.booleans(), max_size=12)):
        if not is_span:
            logprob = draw(st.floats(max_value=0, allow_nan=False))
            events.append(LocalToken(draw(ids), draw(texts), logprob, draw(times)))
            continue
        spans += 1
        trigger = draw(st.sampled_from(["marker", "policy", "random", "user"]))
        remote = draw(st.none() | st.sampled_from(["lab", "desk"]))
        events.append(
            SpanOpened(spans, trigger, draw(probabilities), remote, draw(counts), draw(counts), draw(times))
        )
        events += [SpanDelta(spans, text, draw(times)) for text in draw(st.lists(texts, max_size=4))]
        events.append(
            SpanClosed(
                spans,
                tuple(draw(st.lists(ids, max_size=4))),
                draw(st.sampled_from(_ENDS)),
                tokens=draw(counts),
                p_close=draw(probabilities),
                remote_prompt_tokens=draw(st.none() | counts),
                remote_completion_tokens=draw(st.none() | counts),
                cost=draw(st.none() | times),
                ttft=draw(st.none() | times),
                seconds=draw(times),
                resume=draw(st.none() | times),
                error=draw(st.none() | texts),
                at=draw(times),
            )
        )
    reason = draw(st.sampled_from(["stop", "length", "cancelled", "error", "refused"]))
    events.append(Finished(reason, 3, 4, 5, draw(times), draw(times), draw(st.none() | texts), draw(times)))
    return events


def scripted(number: int, *, spans: int = 6, tokens: int = 12) -> list[Event]:
    """The same for the same number, and of about this size."""
    dice = random.Random(number)
    at = 0.0
    events: list[Event] = [Started(tuple(range(20)), f"model {number}", "big", opening="<think>\n", at=at)]
    for span in range(1, spans + 1):
        for _ in range(dice.randint(1, tokens)):
            at += 0.03
            events.append(LocalToken(dice.randrange(50_000), dice.choice(_WORDS), -dice.random(), at))
        events.append(SpanOpened(span, "marker", dice.random(), "lab", 100 + span, 400 + span, at))
        deltas = [dice.choice(_WORDS) for _ in range(dice.randint(0, 4))]
        events += [SpanDelta(span, text, at) for text in deltas]
        end = "handback" if deltas else "error"
        closing = (1, 2, 3) if deltas else ()
        events.append(SpanClosed(span, closing, end, tokens=len(deltas), cost=1e-4, seconds=0.2, at=at))
    events.append(LocalToken(7, "</think>done", -0.1, at))
    events.append(Finished("stop", 20, 50, 12, at, at / 2, at=at))
    return events
