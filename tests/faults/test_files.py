"""F65 and F66, as far as `ask` goes: disks that are full or can't be written, and two processes at once."""

import json
import resource
import subprocess
import sys

import pytest
from tests.command_line import COMMAND, TIMEOUT, call, environment
from tests.faults.harness import TALLY
from tests.faults.test_command import MODELS, QUESTION

from sr_edge.budget import Ledger
from sr_edge.commands.replay import recorded
from sr_edge.testing.fault_endpoint import CHAT, COMPLETIONS, FIN, FaultEndpoint, failure
from sr_edge.testing.oracle import broken_laws
from sr_edge.transcript import fold

ASK = ("ask", QUESTION, "--temp", "0")
GOOD = [*COMPLETIONS.stream(" 12 + 30 = 42"), FIN]


def limited(size):
    """Files can't become larger than this."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def in_a_child(*arguments, home, **more):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(SR_EDGE_HOME=str(home)),
        timeout=TIMEOUT,
        **more,
    )


def test_f65_a_full_disk_does_not_cost_the_answer(tmp_path):
    TALLY.cases += 1
    done = in_a_child(*ASK, "--events", "/dev/full", home=tmp_path)
    assert done.returncode == 1
    assert "\\boxed{" in done.stdout
    assert done.stderr.count("/dev/full") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("size", [0, 700])
def test_f65_a_quota_that_is_used_up_does_not_cost_the_answer(size, tmp_path):
    TALLY.cases += 1
    file = tmp_path / "events.jsonl"
    done = in_a_child(*ASK, "--events", file, home=tmp_path / "home", preexec_fn=limited(size))
    assert done.returncode == 1
    assert "\\boxed{" in done.stdout
    assert "incomplete" in done.stderr
    assert "Traceback" not in done.stderr
    whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    assert file.stat().st_size <= size
    [json.loads(line) for line in whole]


@pytest.mark.parametrize("events", ["/proc/no/such/events.jsonl", "{folder}"])
def test_f66_events_that_cannot_be_written_are_refused_at_once(events, tmp_path):
    TALLY.cases += 1
    done = call(*ASK, "--events", events.format(folder=tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("home", ["/proc/no/such/folder", "/sys/kernel/home"])
def test_f66_a_home_that_cannot_be_written_does_not_cost_the_answer(home):
    TALLY.cases += 1
    with FaultEndpoint(then=GOOD, pages={"/v1/models": MODELS}) as server:
        done = call(*ASK, "--big", server.url, "--big-model", "big", env={"SR_EDGE_HOME": home})
    assert done.returncode == 0
    assert "\\boxed{" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b'{"version": 99}', 1000 * b"["]
)
def test_f66_files_that_hold_nonsense_are_no_obstacle(content, tmp_path):
    TALLY.cases += 1
    with FaultEndpoint(then=GOOD, pages={"/v1/models": MODELS}) as server:
        arguments = (*ASK, "--big", server.url, "--big-model", "big")
        assert call(*arguments, env={"SR_EDGE_HOME": str(tmp_path)}).returncode == 0
        written = [path for path in tmp_path.rglob("*.json*") if path.is_file()]
        for path in written:
            path.write_bytes(content)
        done = call(*arguments, env={"SR_EDGE_HOME": str(tmp_path)})
    assert done.returncode == 0
    assert "\\boxed{" in done.stdout
    assert "Traceback" not in done.stderr


def test_f66_processes_at_once(tmp_path):
    """They learn of one server and spend from one account at the same moment; nobody's file is torn."""
    TALLY.cases += 1

    def script(request):
        if request.path != CHAT.path:
            return failure(404, "Not Found")
        is_asked = QUESTION[:20] in request.data.decode()
        return [*CHAT.stream(" 12 + 30 = 42" if is_asked else "seven"), FIN]

    with FaultEndpoint(then=script, pages={"/v1/models": MODELS}) as server:
        command = [*COMMAND, *ASK, "--big", server.url, "--big-model", "big"]
        children = [
            subprocess.Popen(
                [*command, "--events", str(tmp_path / f"{n}.jsonl")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(SR_EDGE_HOME=str(tmp_path / "home")),
            )
            for n in range(3)
        ]
        for child in children:
            out, err = child.communicate(timeout=TIMEOUT)
            assert child.returncode == 0, err
            assert b"\\boxed{" in out
    for n in range(3):
        events = list(recorded(tmp_path / f"{n}.jsonl"))
        assert broken_laws(events) == []
        assert fold(events).finish == "stop"
    for path in (tmp_path / "home").rglob("*.json"):
        json.loads(path.read_text())


SPEND = """
import sys
from pathlib import Path
from sr_edge.budget import Ledger
ledger = Ledger(Path(sys.argv[1]))
for _ in range(25):
    ledger.add("big", 0.001, 10)
assert ledger.problem is None, ledger.problem
"""


def test_f66_what_processes_spend_at_once_adds_up(tmp_path):
    TALLY.cases += 1
    path = tmp_path / "spent.json"
    children = [subprocess.Popen([sys.executable, "-c", SPEND, str(path)]) for _ in range(4)]
    assert [child.wait(TIMEOUT) for child in children] == [0, 0, 0, 0]
    spent = Ledger(path).spent("big")
    assert spent.tokens == 1000
    assert spent.usd == pytest.approx(0.1)
