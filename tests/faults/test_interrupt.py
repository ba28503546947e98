"""F62: Ctrl-C in each phase ends the answer, keeps what was written and leaves with 130.

How fast is printed (`python -m tests.faults.measure` measures with more runs); no verdict here depends on
less than 2 seconds, for machines that run tests are slow and shared.
"""

import pytest
from tests.faults.harness import TALLY
from tests.faults.measure import press

from sr_edge.events import from_json
from sr_edge.testing.oracle import broken_laws
from sr_edge.transcript import fold

RUNS = 1


@pytest.mark.parametrize("phase", ["load", "decode", "connect", "waiting", "mid-span"])
def test_f62_ctrl_c_ends_the_answer(phase, tmp_path):
    for _ in range(RUNS):
        TALLY.cases += 1
        pressed = press(phase, tmp_path)
        if not pressed.was_in_time:
            continue
        TALLY.interrupts.append(pressed.seconds)
        assert pressed.code == 130 or (phase == "decode" and pressed.code == 0), pressed
        assert pressed.seconds < 2
        assert "Traceback" not in pressed.errors
        assert_kept(pressed.events, phase)


def assert_kept(said, phase):
    """Whole lines; where the answer had begun, up to its end."""
    events = [from_json(line) for line in said.splitlines()]
    if phase == "load" and (not events or events[-1].kind != "finished"):
        return
    assert broken_laws(events) == []
    transcript = fold(events)
    assert transcript.finish in ("cancelled", "stop")
    if phase in ("connect", "waiting", "mid-span"):
        assert transcript.spans[0].end == "cancelled"
        assert transcript.spans[0].text == (" 12 + 30" if phase == "mid-span" else "")


def test_f62_the_key_itself(tmp_path):
    """In a terminal, where the kernel makes the signal, for all processes in the foreground."""
    TALLY.cases += 1
    pressed = press("mid-span", tmp_path, in_terminal=True)
    assert pressed.code == 130
    TALLY.interrupts.append(pressed.seconds)
    assert pressed.seconds < 2
    assert_kept(pressed.events, "mid-span")
