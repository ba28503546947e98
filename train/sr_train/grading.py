r"""Whether an answer is right: the content of its last `\boxed{…}` against the problem's.

What is compared is decided here, how by math-verify. That runs in a process of its own, since a tower of
powers in a box keeps sympy busy for hours and nothing within the process could stop it; and since
math-verify's own time limit works in the main thread only.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable
from functools import cache
from typing import IO

from sr_edge.errors import EdgeError
from sr_edge.extract import END_THINK, THINK, ReasoningSplitter, is_thinking, last_boxed
from sr_edge.markers import CLOSE_SPELLINGS, OPEN
from sr_edge.transcript import Origin, Transcript

CUT = "\ufffc"
"""Stands where a span was cut out: a box with it inside is not the small model's own."""

_SECONDS = 5.0
_SPAN = re.compile(f"{re.escape(OPEN)}.*?(?:{'|'.join(map(re.escape, CLOSE_SPELLINGS))}|$)", re.DOTALL)
_INTEGER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:,\d{3})+)")


class GradingError(EdgeError):
    """Answers cannot be compared here: the message says what is missing."""


def is_right(gold: str, text: str) -> bool | None:
    """Whether the last box of a text holds the gold answer; None where the gold cannot be read.

    Args:
        text: an answer. What stands before its last `</think>` and within markers does not count; without
            markers all of it does, whoever wrote it. `own_answer` and `answer_text` make it of a transcript.
    """
    boxed = last_boxed(_SPAN.sub(CUT, text).rpartition(END_THINK)[2])
    if boxed is None or CUT in boxed:
        return False
    return is_same(gold, boxed)


def own_answer(transcript: Transcript) -> str:
    """What the small model itself wrote after its reasoning, with `CUT` for what the large one wrote."""
    pieces = _answer_pieces(transcript)
    return "".join(CUT if origin == "remote" else text for text, origin in pieces)


def answer_text(transcript: Transcript) -> str:
    """What stands after the reasoning, whoever wrote it: what a user would read off."""
    return "".join(text for text, _ in _answer_pieces(transcript))


def is_same(gold: str, answer: str) -> bool | None:
    """Whether two expressions are the same in value; None where the gold cannot be read."""
    gold, answer = gold.strip().strip("$").strip(), answer.strip()
    if gold == answer:
        return True
    whole = _integer(gold), _integer(answer)
    if whole[0] is not None and whole[1] is not None:
        return whole[0] == whole[1]
    return _checker(os.getpid()).same(gold, answer)


def is_gradable(gold: str) -> bool:
    """Whether answers can be compared with it at all."""
    gold = gold.strip().strip("$").strip()
    return _integer(gold) is not None or (bool(gold) and _checker(os.getpid()).same(gold, gold) is True)


def _answer_pieces(transcript: Transcript) -> Iterable[tuple[str, Origin]]:
    thinks = is_thinking(transcript.opening) or END_THINK in transcript.text.partition(THINK)[0]
    splitter = ReasoningSplitter[Origin](thinks=thinks)
    for segment in transcript.segments:
        for part, text, origin in splitter.push(segment.text, segment.origin):
            if part == "answer":
                yield text, origin
    for part, text, origin in splitter.flush():
        if part == "answer":
            yield text, origin


def _integer(text: str) -> int | None:
    if len(text) > 4000 or not _INTEGER.fullmatch(text):  # int() refuses longer ones
        return None
    return int(text.replace(",", ""))


# --- the process that compares ------------------------------------------------------------------------------


class _Checker:
    """math-verify in a child process; one question at a time, from any thread."""

    def __init__(self, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._known: dict[tuple[str, str], bool | None] = {}

    def same(self, gold: str, answer: str) -> bool | None:
        with self._lock:
            if (gold, answer) not in self._known:
                if len(self._known) >= 100_000:
                    self._known.clear()
                self._known[gold, answer] = self._ask(gold, answer)
            return self._known[gold, answer]

    def _ask(self, gold: str, answer: str) -> bool | None:
        for _ in range(2):
            child = self._ready()
            assert child.stdin is not None
            assert child.stdout is not None
            ran_out = threading.Event()
            timer = threading.Timer(self._seconds, lambda ran_out=ran_out, child=child: _stop(ran_out, child))
            timer.daemon = True
            timer.start()
            try:
                child.stdin.write(json.dumps([gold, answer]) + "\n")
                child.stdin.flush()
                line = child.stdout.readline()
            except BrokenPipeError:
                line = ""
            finally:
                timer.cancel()
            if line:
                verdict: bool | None = json.loads(line)
                return verdict
            _end(child)
            self._child = None
            if ran_out.is_set():
                break
        return False  # it takes too long, or kills its interpreter: no such answer is a right one

    def _ready(self) -> subprocess.Popen[str]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        child = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the program
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert child.stdout is not None
        if child.stdout.readline().strip() != "ready":
            _end(child)
            raise GradingError("answers cannot be compared: pip install 'sr-edge[train]' brings math-verify")
        weakref.finalize(child, _end_pipes, child.stdin, child.stdout)
        weakref.finalize(self, _end, child)  # and when the program ends
        self._child = child
        return child


@cache
def _checker(process: int) -> _Checker:
    """One a process: a forked one must not read the answers of its parent."""
    return _Checker()


def _stop(ran_out: threading.Event, child: subprocess.Popen[str]) -> None:
    ran_out.set()
    child.kill()


def _end(child: subprocess.Popen[str]) -> None:
    if child.poll() is None:
        child.kill()
    child.wait()
    _end_pipes(child.stdin, child.stdout)


def _end_pipes(*pipes: IO[str] | None) -> None:
    for pipe in pipes:
        if pipe is not None and not pipe.closed:
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # what was to be written has nobody to read it


def _serve(questions: IO[str], verdicts: IO[str]) -> None:
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # of time limits that stand outside
    from math_verify import (  # type: ignore[import-untyped]
        ExprExtractionConfig,
        LatexExtractionConfig,
        parse,
        verify,
    )

    def read(expression: str) -> list[object]:
        found: list[object] = parse(
            f"$\\boxed{{{expression}}}$",
            extraction_config=[LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()],
            parsing_timeout=None,
        )
        return found

    verdicts.write("ready\n")
    verdicts.flush()
    for line in questions:
        gold, answer = json.loads(line)
        if hasattr(signal, "alarm"):
            signal.alarm(60)  # not caught: ends this process if its parent was killed in the middle
        expected = read(gold)
        verdict = None
        if expected:
            verdict = bool(verify(expected, read(answer), timeout_seconds=None))
        if hasattr(signal, "alarm"):
            signal.alarm(0)  # it may wait for the next question as long as it likes
        verdicts.write(json.dumps(verdict) + "\n")
        verdicts.flush()


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
