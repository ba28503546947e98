"""How long it takes from Esc until the answer is over, in each state: `python -m tests.engine.stop [N]`."""

from __future__ import annotations

import random
import sys
import time

from tests.engine.situations import STATES, situation

from sr_edge.engine.messages import Answered

MAX_DELAY = 0.05  # seconds from the beginning of a state to the stop, drawn at random


def stopped_in(state: str, delay: float) -> float:
    """Milliseconds from `Engine.stop` to `Answered`."""
    with situation(state) as (engine, ear, number):
        time.sleep(delay)
        began = time.monotonic()
        engine.stop()
        ear.answered(number)
        at = next(n for n, one in enumerate(ear.all) if isinstance(one, Answered) and one.number == number)
        return max(0.0, ear.times[at] - began) * 1000


def main(n: int) -> None:
    rng = random.Random(0)
    print(f"{'state':12}{'p50':>8}{'p95':>8}{'max':>8}   ms from Esc to stopped, {n} times")
    for state in STATES:
        took = sorted(stopped_in(state, rng.uniform(0, MAX_DELAY)) for _ in range(n))
        print(f"{state:12}{took[n // 2]:8.1f}{took[int(n * 0.95)]:8.1f}{took[-1]:8.1f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
