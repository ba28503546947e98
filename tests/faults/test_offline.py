"""F77 and F78: offline there is no socket, loopback included; and what is on its way stops."""

import os
import re
import shutil
import subprocess
import sys
import threading

import pytest
from tests.command_line import call, environment
from tests.faults.harness import EARLY, PIECES, TALLY, WIRES, endpoint

from sr_edge.remote.egress import Door
from sr_edge.roles import Message
from sr_edge.split import SplitDecoder
from sr_edge.testing.egress_trap import EgressTrap
from sr_edge.testing.fault_endpoint import HANG, Await, FaultEndpoint, Loop, Sleep, closed_port, head
from sr_edge.testing.oracle import AFTER, BEFORE, CANARY, broken_laws, status_of, writer
from sr_edge.transcript import fold

QUESTION = EARLY.question
URL = "https://far.example/v1"

COMMANDS = [
    ("--help",),
    ("--version",),
    ("ask", "--help"),
    ("ask", QUESTION, "--temp", "0", "--events", "{home}/events.jsonl"),
    ("ask", QUESTION, "--offline", "--temp", "0", "--big", URL, "--big-model", "big"),
    ("ask", QUESTION, "--offline", "--temp", "0", "--remote", "far"),
    ("ask", QUESTION, "--offline", "--policy", "remote", "--big", URL),
    ("ask", QUESTION, "--dry-run", "--temp", "0", "--remote", "far"),
    ("replay", "{home}/events.jsonl"),
    ("chat", "--help"),
    ("serve", "--help"),
    ("serve", "--print-token"),
    ("logs",),
    ("logs", "show"),
    ("logs", "search", "coins"),
    ("logs", "stats"),
    ("models",),
    ("models", "pull", "a/b"),
    ("doctor",),
    ("eval", "--n", "2", "--offline", "--big", URL, "--arm", "split"),
    ("eval", "--print-problems", "2"),
    ("remote", "list"),
    ("remote", "add", "other", "https://other.example/v1", "--model", "m"),
    ("remote", "default", "far"),
    ("remote", "price", "far", "--input", "1", "--output", "2"),
    ("remote", "test", "far"),
    ("remote", "models", "far"),
    ("remote", "rm", "other"),
    ("keys", "list"),
    ("keys", "set", "far"),
    ("keys", "path"),
    ("keys", "rm", "far"),
    ("config", "show", "--origin"),
    ("config", "get", "offline"),
    ("config", "set", "offload.max_spans", "3"),
    ("config", "unset", "offload.max_spans"),
    ("config", "validate"),
    ("config", "path"),
]
"""Every subcommand, in an order in which each finds what it needs."""

ADD = ("remote", "add", "far", URL, "--model", "big")


@pytest.fixture(params=WIRES)
def wire(request):
    return WIRES[request.param]


def filled(arguments, home):
    return [part.format(home=home) for part in arguments]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    assert call(*ADD, env={"SR_EDGE_HOME": str(home)}).returncode == 0
    return home


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments)[:60])
def test_f77_offline_no_command_opens_a_socket(arguments, home):
    TALLY.cases += 1
    env = {"SR_EDGE_HOME": str(home), "SR_EDGE_OFFLINE": "1", "SR_EDGE_API_KEY": CANARY}
    with EgressTrap() as trap:
        done = call(*filled(arguments, home), stdin=f"{CANARY}\n", env=env)
    assert (trap.attempts, trap.sockets) == ([], 0)
    assert "Traceback" not in done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert done.returncode in (0, 2, 3), done.stderr


@pytest.mark.parametrize("way", ["flag", "environment", "settings", "profile"])
def test_f77_any_one_way_to_be_offline_is_enough(way, tmp_path):
    """Loopback too: what listens there may be the end of a tunnel."""
    TALLY.cases += 1
    env = {"SR_EDGE_HOME": str(tmp_path)}
    arguments = [
        "ask",
        QUESTION,
        "--temp",
        "0",
        "--big",
        f"http://127.0.0.1:{closed_port()}",
        "--big-model",
        "m",
    ]
    match way:
        case "flag":
            arguments.append("--offline")
        case "environment":
            env["SR_EDGE_OFFLINE"] = "true"
        case "settings":
            assert call("config", "set", "offline", "true", env=env).returncode == 0
        case "profile":
            assert call("config", "set", "profiles.train.offline", "true", env=env).returncode == 0
            arguments += ["--profile", "train"]
    with EgressTrap() as trap:
        done = call(*arguments, env=env)
    assert (trap.attempts, trap.sockets) == ([], 0)
    assert done.returncode == 0
    assert "\\boxed{" in done.stdout
    assert "offline" in done.stderr


ALL_OF_THEM = """
import sys
from tests.command_line import call
from tests.faults.test_offline import ADD, COMMANDS, filled
home = sys.argv[1]
env = {"SR_EDGE_HOME": home}
assert call(*ADD, env=env).returncode == 0
env["SR_EDGE_OFFLINE"] = "1"
for arguments in COMMANDS:
    done = call(*filled(arguments, home), stdin="sk-x", env=env)
    print(done.returncode, *arguments[:2], flush=True)
    assert done.returncode in (0, 2, 3), (arguments, done.stderr)
"""


def watched(prefix, home):
    return subprocess.run(
        [*prefix, sys.executable, "-c", ALL_OF_THEM, str(home)],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
        timeout=120,
    )


def test_f77_under_strace(tmp_path):
    """All of them once more, seen from outside: what native code does is seen too."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    TALLY.cases += 1
    trace = tmp_path / "trace"
    done = watched(["strace", "-f", "-qq", "-e", "trace=network", "-o", str(trace)], tmp_path / "home")
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(COMMANDS)
    calls = trace.read_text().splitlines()
    assert [line for line in calls if re.search(r"AF_INET|AF_PACKET|AF_NETLINK", line)] == []
    assert [line for line in calls if re.search(r"\b(connect|sendto|sendmsg)\(", line)] == []


def test_f77_without_any_network(tmp_path):
    """In a network namespace with nothing in it, not even loopback."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True).returncode:
        pytest.skip("no new network namespace may be made here")
    TALLY.cases += 1
    done = watched([unshare, "-rn"], tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(COMMANDS)


# --- F78: offline from now on -----------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [0, 1, 3])
def test_f78_going_offline_in_the_middle_of_a_span(texts, wire):
    """The request is hung up at once, not a byte more is taken, and no other leaves."""
    TALLY.cases += 1
    gone = threading.Event()
    more = Loop((wire.text("late "), Sleep(0.005)))
    script = [head(), *map(wire.text, PIECES[:texts]), Await(gone), more]
    door, local = Door(), writer()
    with FaultEndpoint(script) as server, endpoint(server.url, wire, door=door) as remote:

        def leave():
            door.go_offline()
            gone.set()

        timer = threading.Timer(0.1, leave)
        timer.start()
        events = list(SplitDecoder(local, remote).generate([Message("user", "?")]))
        assert server.connections[0].left.wait(1)
        timer.join()
        with EgressTrap() as trap:
            again = list(SplitDecoder(local, remote).generate([Message("user", "?")]))
        assert (trap.attempts, trap.sockets) == ([], 0)
    transcript = fold(events)
    assert broken_laws(events) == []
    assert transcript.spans[0].text == "".join(PIECES[:texts])
    assert status_of(transcript.spans[0]) == ("partial" if texts else "failed")
    assert transcript.text.endswith(AFTER)
    assert fold(again).text == BEFORE + AFTER


def test_f78_going_offline_before_a_connection_stands(wire):
    TALLY.cases += 1
    door = Door()
    with FaultEndpoint([HANG]) as server, endpoint(server.url, wire, door=door) as remote:
        timer = threading.Timer(0.1, door.go_offline)
        timer.start()
        events = list(SplitDecoder(writer(), remote).generate([Message("user", "?")]))
        timer.join()
    assert status_of(fold(events).spans[0]) == "failed"
    assert "offline" in fold(events).spans[0].error
