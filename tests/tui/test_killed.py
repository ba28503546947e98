"""`kill -9` while the program answers: what was seen is kept. `tests.tui.killed` does it many times."""

import os
import random
from pathlib import Path

from tests.tui.killed import killed

KILLS = int(os.environ.get("SR_EDGE_TEST_KILLS", "8"))


def test_what_was_seen_is_kept(tmp_path: Path) -> None:
    rng = random.Random()
    outcomes = [killed(tmp_path / "home", rng, is_pair=number % 2 == 0) for number in range(KILLS)]
    assert [problem for outcome in outcomes for problem in outcome.problems] == []
    assert {outcome.status for outcome in outcomes} <= {"cut", "done"}
    assert sum(outcome.shown for outcome in outcomes) > 0
