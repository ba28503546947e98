"""What `kill -9` leaves of the history. `python -m tests.store.kill 200` prints what it found.

A child process writes conversations as fast as it can and says on a pipe what it was told is on disk. It is
killed at a random moment; then the file is opened and held against what was said and what was to be written.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.store.streams import scripted

from sr_edge.store import Store

LONGEST = 0.3  # seconds until the kill


@dataclass
class Tally:
    rounds: int = 0
    acknowledged: int = 0
    """Rows and events that the child was told are on disk."""
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    cut: int = 0
    resumed: int = 0


def cycles(rounds: int, folder: Path, *, seed: int = 0) -> Tally:
    tally = Tally()
    dice = random.Random(seed)
    for number in range(rounds):
        said = _killed(folder / "history.db", 1000 * number, dice.uniform(0, LONGEST))
        tally.rounds += 1
        _check(folder / "history.db", said, tally)
    return tally


def _killed(path: Path, first: int, delay: float) -> list[list[str]]:
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        try:
            _write(path, first, theirs)
        finally:
            os._exit(1)
    os.close(theirs)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(ours, encoding="utf-8") as lines:
        return [line.split() for line in lines if line.endswith("\n")]


def _write(path: Path, first: int, pipe: int) -> None:
    def say(*words: object) -> None:
        os.write(pipe, (" ".join(map(str, words)) + "\n").encode())

    dice = random.Random(first)
    with Store.open(path) as store:
        head = None
        conversation = store.new_conversation("kill")
        for number in range(first, first + 1000):
            asked = store.say(conversation.id, head, f"question {number}")
            say("said", number, asked.id)
            recorder = store.begin(asked.id, policy="auto", seed=number)
            say("begun", number, recorder.turn)
            for n, event in enumerate(scripted(number), start=1):
                recorder.add(event)
                if event.kind == "span_closed" and recorder.flush():
                    say("kept", number, recorder.turn, n)
                if dice.random() < 0.1:
                    time.sleep(0.002)
            if recorder.close() is None:
                say("ended", number, recorder.turn)
            head = recorder.turn


def _check(path: Path, said: list[list[str]], tally: Tally) -> None:
    with Store.open(path, warn=tally.wrong.append) as store:
        tally.wrong += store.check()
        for what, number, turn, *more in said:
            tally.acknowledged += int(more[0]) if more else 1
            try:
                last = store.thread(turn)[-1]
                kept = store.events(turn)
            except Exception as error:
                tally.lost.append(f"{what} {number}: {error}")
                continue
            whole = scripted(int(number))
            if what == "said" and last.text != f"question {number}":
                tally.lost.append(f"{what} {number}")
            if kept != whole[: len(kept)] or len(kept) < int((more or [0])[0]):
                tally.lost.append(f"{what} {number}: {len(kept)} of {more}")
            if what == "ended" and (last.status != "done" or kept != whole):
                tally.lost.append(f"{what} {number}: {last.status}")
        latest = store.latest()
        if latest is None or latest.head is None:
            return
        last = store.thread(latest.head)[-1]
        if last.role == "assistant" and last.status == "running":
            tally.wrong.append("the dead are taken for alive")
        if last.status == "cut":
            tally.cut += 1
            _resume(store, last.id, scripted(last.seed or 0), tally)
    leftovers = [name for name in os.listdir(path.parent) if name.endswith(".writer")]  # the dead
    if leftovers:
        tally.wrong.append(f"left lying: {leftovers}")


def _resume(store: Store, turn: str, whole: list, tally: Tally) -> None:
    recorder = store.resume(turn, known=len(store.events(turn)))
    for event in whole:
        recorder.add(event)
    problem = recorder.close()
    if problem or store.events(turn) != whole or store.thread(turn)[-1].status != "done":
        tally.wrong.append(f"not resumed: {problem}")
    tally.resumed += 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = cycles(int(sys.argv[1]), Path(place))
        print(found)
        with Store.open(Path(place) / "history.db") as after:
            print(after.stats())
            sys.exit(bool(found.lost or found.wrong or after.stats().cut or not found.resumed))
