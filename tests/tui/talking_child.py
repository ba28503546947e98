"""Plays a child of the engine that writes answers of many spans: `talking_child.py SPANS TOKENS_A_SECOND`.

0 tokens a second are as many as can be written. Each answer is whole, or ends at a stop.
"""

import json
import sys
import threading
import time

from sr_edge.engine.messages import Answered, Answering, Ready, encode
from sr_edge.events import Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started

WORDS = "so the sum of both is larger than the first one and we take it away from what is left of 97 ".split()
LOCAL, REMOTE, PIECES = 24, 40, 8  # tokens of a step and of a span, and in how many pieces a span comes


class Talker:
    def __init__(self, spans: int, rate: float) -> None:
        self._spans, self._rate = spans, rate
        self._stopped = 0
        self._due = 0.0
        self._lock = threading.Lock()

    def serve(self) -> None:
        self._say(Ready("small-1.5b", 8192, big="lab", leaves=True, where="api.example.com:443", price=(0.6, 2.4)))
        for line in sys.stdin:
            command = json.loads(line)
            if command["say"] == "answer":
                threading.Thread(target=self._answer, args=(command["number"],), daemon=True).start()
            elif command["say"] == "stop":
                self._stopped = command["number"]

    def _answer(self, number: int) -> None:
        self._due = time.monotonic()
        began = self._due
        self._say(Answering(number))
        self._say(Started((1, 2, 3), "small-1.5b", big="lab", opening="<think>\n", at=0.0))
        words = 0
        for span in range(1, self._spans + 1):
            for _ in range(LOCAL):
                words += 1
                self._say(LocalToken(100, WORDS[words % len(WORDS)] + " ", -0.1, at=time.monotonic() - began), 1)
            self._say(SpanOpened(span, "marker", 0.8, "lab", sent_tokens=1800, sent_bytes=7200, at=1.0))
            for _ in range(PIECES):
                text = "".join(f"{WORDS[(words + n) % len(WORDS)]} " for n in range(REMOTE // PIECES))
                self._say(SpanDelta(span, text, at=1.0), REMOTE // PIECES)
            ids = tuple(range(REMOTE))
            self._say(SpanClosed(span, ids, "handback", tokens=REMOTE, cost=0.0003, ttft=0.4, seconds=0.9, at=1.0))
            self._say(LocalToken(100, "\n\n", -0.1, at=1.0), 1)
            if self._stopped >= number:
                break
        self._say(LocalToken(100, "</think>\n\nIt is **97**.", -0.1, at=1.0))
        reason = "cancelled" if self._stopped >= number else "stop"
        self._say(Finished(reason, span, words, REMOTE * span, 1.0, local_seconds=1.0, at=1.0))
        self._say(Answered(number))

    def _say(self, message: object, tokens: int = 0) -> None:
        if tokens and self._rate:
            self._due += tokens / self._rate
            time.sleep(max(0.0, self._due - time.monotonic()))
        print(encode(message), flush=True)  # type: ignore[arg-type]


if __name__ == "__main__":
    Talker(int(sys.argv[1]), float(sys.argv[2])).serve()
