"""`kill -9` of the whole program while it answers, at a random moment: `python -m tests.tui.killed [N]`.

What was on the screen as closed must be in the history, which must open, be sound and go on from there.
"""

from __future__ import annotations

import random
import re
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

from tests.tui.chatting import QUESTION
from tests.tui.glass import Glass
from tests.tui.in_pty import STAGED, Program

from sr_edge.dialogue import CAN_GO_ON
from sr_edge.past import taken_over
from sr_edge.store import Store, Turn, history_path

SPANS, RATE = 500, 400  # of the child: tokens a second
MAX_SECONDS = 1.5  # from the first closed span to the kill
TALKING_CHILD = Path(__file__).with_name("talking_child.py")

_BADGE = re.compile(r"┃ ◆(\d+) ")
_LABEL = re.compile(r" (\d+) tok \d+\.?\d* s( \$[\d.]+)?$")


@dataclass
class Shown:
    """Which spans were seen as closed, with how many tokens, at any moment."""

    spans: dict[int, int] = field(default_factory=dict)

    def look(self, glass: Glass) -> None:
        span: int | None = None
        for line in glass.screen().splitlines():
            badge = _BADGE.search(line)
            if badge:
                span = int(badge[1])
            elif "┃" not in line:
                span = None
            label = _LABEL.search(line.rstrip("▁▂▃▄▅▆▇█▎▌▊▐▕ "))
            if span is not None and label and "┃" in line:
                self.spans[span] = int(label[1])


@dataclass(frozen=True)
class Outcome:
    shown: int
    stored: int
    status: str
    problems: tuple[str, ...]


def killed(home: Path, rng: random.Random, *, is_pair: bool) -> Outcome:
    """One run: begin an answer, kill the program, and look at what is there.

    Args:
        is_pair: the built-in pair answers, else a child that writes spans without end.
    """
    shown = Shown()
    if is_pair:
        with Program(QUESTION, home=home) as program:
            kill(program, shown, "❯", rng.uniform(0, MAX_SECONDS))
        return looked_at(home, shown, QUESTION)
    env = {"STAGED_CHILD": "\n".join([sys.executable, str(TALKING_CHILD), str(SPANS), str(RATE)])}
    with Program("go on", home=home, command=STAGED, env=env) as program:
        kill(program, shown, "◆1 ", rng.uniform(0, MAX_SECONDS))
    return looked_at(home, shown, "go on")


def kill(program: Program, shown: Shown, begun: str, seconds: float) -> None:
    program.on_screen = shown.look
    program.until(begun)
    time.sleep(seconds)
    program.send_signal(SIGKILL)
    program.wait()


def looked_at(home: Path, shown: Shown, prompt: str) -> Outcome:
    warnings: list[str] = []
    path = history_path({"SR_EDGE_HOME": str(home)})
    store = Store.open(path, warn=warnings.append)
    problems = [*warnings, *store.check()]
    answer: Turn | None = None
    try:
        latest = store.latest()
        if latest is None or latest.head is None:
            return Outcome(len(shown.spans), 0, "none", (*problems, "the prompt is not there"))
        turns = store.thread(latest.head)
        if turns[0].text != prompt:
            problems.append(f"the prompt is {turns[0].text!r}")
        answer = turns[-1]
        if answer.role != "assistant" or answer.transcript is None:
            return Outcome(len(shown.spans), 0, "none", (*problems, "the answer is not there"))
        stored = {one.span: one for one in answer.transcript.spans if one.end is not None}
        for span, tokens in shown.spans.items():
            if span not in stored:
                problems.append(f"span {span} was shown and is not there")
            elif stored[span].tokens != tokens:
                problems.append(f"span {span} was shown with {tokens} tokens and has {stored[span].tokens}")
        if answer.status == "done":
            return Outcome(len(shown.spans), len(stored), answer.status, tuple(problems))
        if answer.status != "cut" or answer.status not in CAN_GO_ON:
            problems.append(f"the answer is marked as {answer.status}")
        events = store.events(answer.id)
        known = 1 + len(taken_over(events)) if events else 0
        store.resume(answer.id, known=known).close("stopped")
        if store.thread(answer.id)[-1].status != "stopped":
            problems.append("it cannot go on")
        return Outcome(len(shown.spans), len(stored), answer.status, tuple(problems))
    finally:
        store.close()
        with sqlite3.connect(path) as connection:
            sound = connection.execute("pragma integrity_check").fetchone()[0]
        connection.close()
        assert sound == "ok", sound


def main(n: int) -> None:
    rng = random.Random()
    shown = stored = 0
    statuses: Counter[str] = Counter()
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="sr-edge-killed-", ignore_cleanup_errors=True) as folder:
        for number in range(1, n + 1):
            # all in one history, which must stand them all
            outcome = killed(Path(folder), rng, is_pair=number % 2 == 0)
            shown, stored = shown + outcome.shown, stored + outcome.stored
            statuses[outcome.status] += 1
            problems += outcome.problems
            print(f"\r{number}/{n}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"{n} kills: {shown} spans seen as closed, {stored} in the history; marked {dict(statuses)}")
    print(f"{len(problems)} problems", *problems, sep="\n  ")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
