"""`kill -9` at any moment. More of it: `python -m tests.store.kill 200`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = 40
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform == "win32", reason="it forks")
def test_a_kill_loses_nothing_that_was_acknowledged() -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.store.kill", str(ROUNDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"rounds={ROUNDS}, " in done.stdout
    assert "lost=[], wrong=[]" in done.stdout
