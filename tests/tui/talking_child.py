"""Plays a child of the engine that writes answers of many spans: `talking_child.py SPANS TOKENS_A_SECOND`.

0 tokens a second are as many as can be written. Each answer is whole, or ends at a stop.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator

from sr_edge.engine.messages import Answered, Answering, Ready, Report, encode
from sr_edge.events import (
    Event,
    Finished,
    FinishReason,
    LocalToken,
    SpanClosed,
    SpanDelta,
    SpanOpened,
    Started,
)

WORDS = (
    "so",
    "the",
    "sum",
    "of",
    "both",
    "is",
    "larger",
    "than",
    "the",
    "first",
    "one",
    "and",
    "we",
    "take",
    "it",
)
LOCAL, REMOTE, PIECES = 24, 40, 8  # tokens of a step and of a span, and in how many pieces a span comes


def story(spans: int) -> Iterator[tuple[Event, int]]:
    """The events of an answer, each with the tokens that it brings."""
    yield Started((1, 2, 3), "small-1.5b", big="lab", opening="<think>\n", at=0.0), 0
    word = 0
    for span in range(1, spans + 1):
        for _ in range(LOCAL):
            word += 1
            yield LocalToken(100, WORDS[word % len(WORDS)] + " ", -0.1, at=float(span)), 1
        yield SpanOpened(span, "marker", 0.8, "lab", sent_tokens=1800, sent_bytes=7200, at=float(span)), 0
        size = REMOTE // PIECES
        for piece in range(PIECES):
            text = "".join(f"{WORDS[(word + piece * size + n) % len(WORDS)]} " for n in range(size))
            yield SpanDelta(span, text, at=float(span)), size
        ids = tuple(range(REMOTE))
        yield SpanClosed(span, ids, "handback", tokens=REMOTE, cost=0.0003, ttft=0.4, seconds=0.9, at=1.0), 0
        yield LocalToken(100, "\n\n", -0.1, at=float(span)), 1
    yield LocalToken(100, "</think>\n\nIt is **97**.", -0.1, at=1.0), 1
    yield finished("stop", spans)


def finished(reason: FinishReason, spans: int) -> tuple[Event, int]:
    return Finished(reason, spans, LOCAL * spans, REMOTE * spans, 1.0, local_seconds=1.0, at=1.0), 0


class Talker:
    def __init__(self, spans: int, rate: float) -> None:
        self._spans, self._rate = spans, rate
        self._stopped = 0

    def serve(self) -> None:
        say(Ready("small-1.5b", 8192, big="lab", leaves=True, where="api.example.com:443", price=(0.6, 2.4)))
        for line in sys.stdin:
            command = json.loads(line)
            if command["say"] == "answer":
                threading.Thread(target=self._answer, args=(command["number"],), daemon=True).start()
            elif command["say"] == "stop":
                self._stopped = command["number"]
        os._exit(0)  # whatever is being said: there is nobody to hear it

    def _answer(self, number: int) -> None:
        say(Answering(number))
        due, closed = time.monotonic(), 0
        for event, tokens in story(self._spans):
            if self._stopped >= number and isinstance(event, LocalToken):
                say(finished("cancelled", closed)[0])
                break
            if self._rate and tokens:
                due += tokens / self._rate
                time.sleep(max(0.0, due - time.monotonic()))
            closed += isinstance(event, SpanClosed)
            say(event)
        say(Answered(number))


def say(message: Report | Event) -> None:
    print(encode(message), flush=True)


if __name__ == "__main__":
    Talker(int(sys.argv[1]), float(sys.argv[2])).serve()
