"""Every fallible call of one clean run fails once, in each of five ways.

The calls are counted in a clean run, by the port that they go through. Then call number k fails, for every k:
by an OSError, a TimeoutError, a MemoryError, a KeyboardInterrupt, and by the user's stopping the answer just
then. On the thread of the span nothing may get lost: whatever happens is an outcome, and the answer goes on.
What fails on the caller's own thread may go up to the caller, and must leave models, files and sockets as
good as new: the next answer is written by the same ones.
"""

import contextlib
import socket
import threading

import pytest
from tests.faults.harness import TALLY, endpoint

from sr_edge.commands.ask import EventLog
from sr_edge.events import from_json
from sr_edge.roles import Limits
from sr_edge.split import SplitDecoder
from sr_edge.testing.fault_endpoint import COMPLETIONS, DONE, FaultEndpoint, Sleep, chunked, usage
from sr_edge.testing.models import END, OPEN, ScriptedLocal
from sr_edge.testing.oracle import CANARY, QUESTION, broken_laws, clean, leaks, status_of
from sr_edge.transcript import fold

ERRORS = {
    "OSError": lambda: OSError(5, "Input/output error"),
    "TimeoutError": lambda: TimeoutError("timed out"),
    "MemoryError": MemoryError,
    "KeyboardInterrupt": KeyboardInterrupt,
    "cancel": None,
}
NETWORK = ("getaddrinfo", "connect", "dup", "setsockopt", "send", "recv")
LOCAL = ("tokenize", "sample", "feed", "rewind")
BEFORE, AFTER = "so ", "ok."
NUM_READS = 3  # to fail one by one; how many there are depends on what arrives together
_SENDS = chunked(*map(COMPLETIONS.text, ["1 + ", "1 = ", "2"]), COMPLETIONS.finish(), usage(9, 3), DONE)
REPLY = [op for send in _SENDS for op in (send, Sleep(0.002))]


class Ports:
    """Counts calls by port, and fails one of them."""

    def __init__(self, port=None, number=0, error=None, moment="before"):
        self.counts = {}
        self.is_cancelled = False
        self.has_failed = False
        self._planned = (port, number, moment)
        self._error = error

    def disarm(self):
        self._planned = None

    def passed(self, port, moment):
        if moment == "before":
            self.counts[port] = self.counts.get(port, 0) + 1
        if (port, self.counts[port], moment) == self._planned:
            self.has_failed = True
            if self._error is None:
                self.is_cancelled = True
            else:
                raise self._error()

    def wrapped(self, port, call):
        def through(*args, **kwargs):
            if threading.current_thread().name == "fault endpoint":
                return call(*args, **kwargs)
            self.passed(port, "before")
            result = call(*args, **kwargs)
            self.passed(port, "after")
            return result

        return through


def writer(ports):
    local = ScriptedLocal([[*BEFORE.encode(), OPEN], [*AFTER.encode(), END]])
    for name in LOCAL:
        setattr(local, name, ports.wrapped(name, getattr(local, name)))
    return local


@contextlib.contextmanager
def network(ports):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", ports.wrapped("getaddrinfo", socket.getaddrinfo))
        for method in ("connect", "dup", "setsockopt", "sendall", "recv"):
            port = method.removesuffix("all")
            patch.setattr(socket.socket, method, ports.wrapped(port, getattr(socket.socket, method)))
        yield


def answer(local, remote, path, ports, *, messages=QUESTION, limits=None):
    """The events as far as they came, and what went up to the caller."""
    seen = []
    decoder = SplitDecoder(local, remote, limits=limits or Limits())
    try:
        with EventLog(path) as log:
            write = ports.wrapped("write", log.write)
            events = decoder.generate(messages, cancelled=lambda: ports.is_cancelled)
            with contextlib.closing(events):
                for event in events:
                    seen.append(event)
                    write(event)
    except BaseException as error:
        return seen, error
    return seen, None


def run(ports, path):
    """One answer with a fault, then one without, by the same parts."""
    broken = []
    with clean(broken), FaultEndpoint(then=REPLY) as server:
        local = writer(ports)
        with endpoint(server.url) as remote:
            with network(ports):
                seen, error = answer(local, remote, path, ports)
            posts = len(server.posts)
            ports.disarm()
            after, none = answer(local, remote, None, Ports())
            assert none is None
            broken += leaks(CANARY, [repr(remote), repr(error), str(error)], server.requests)
        broken += [] if posts <= 2 else [f"I3 no dup: {posts} requests"]
        for connection in server.connections:
            if not connection.left.wait(1):
                broken.append("I8 clean: a connection is still open")
    broken += broken_laws(after, local)
    transcript = fold(after)
    assert transcript.text == BEFORE + "1 + 1 = 2" + AFTER, "the next answer is not as good as any"
    written = [from_json(line) for line in path.read_text().splitlines()]
    assert written == seen[: len(written)]
    assert len(written) >= len(seen) - 1
    assert not broken
    return seen, error


def counted():
    """Calls of a clean run by port."""
    ports = Ports()
    with FaultEndpoint(then=REPLY) as server, endpoint(server.url) as remote, network(ports):
        seen, error = answer(writer(ports), remote, None, ports)
    assert error is None
    assert status_of(fold(seen).spans[0]) == "complete"
    return ports.counts


COUNTS = {
    "getaddrinfo": 1, "connect": 1, "dup": 1, "setsockopt": 1, "send": 3, "recv": NUM_READS,
    "tokenize": 6, "sample": 8, "feed": 6, "rewind": 1, "write": 16,
}  # fmt: skip
_BY_ARRIVAL = dict.fromkeys(["recv", "feed", "tokenize", "write"])
"""Ports whose calls depend a little on what arrives together."""
POINTS = [
    (port, number, moment)
    for port, count in sorted(COUNTS.items())
    for number in range(1, count + 1)
    for moment in (("before", "after") if port in LOCAL else ("before",))
]


def test_the_calls_of_a_clean_run():
    """If this fails, the calls have become others: count them anew."""
    found = counted()
    assert {**found, **_BY_ARRIVAL} == {**COUNTS, **_BY_ARRIVAL}
    assert all(found[port] >= 1 for port in _BY_ARRIVAL)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("port", "number", "moment"), POINTS, ids=lambda value: str(value))
def test_any_call_may_fail(port, number, moment, error, tmp_path):
    TALLY.cases += 1
    ports = Ports(port, number, ERRORS[error], moment)
    seen, raised = run(ports, tmp_path / "events.jsonl")
    if not ports.has_failed:
        return  # what the system splits in two reads may come in one
    if error == "cancel":
        assert raised is None
        assert fold(seen).finish in ("cancelled", "stop")
    elif port in NETWORK:
        assert raised is None, "a fault of the network went up to the caller"
        transcript = fold(seen)
        assert transcript.finish == "stop"
        assert transcript.text.startswith(BEFORE)
        assert transcript.text.endswith(AFTER)
        assert status_of(transcript.spans[0]) in ("failed", "partial", "complete")
    elif error == "KeyboardInterrupt":
        assert isinstance(raised, KeyboardInterrupt)
    if raised is None:
        assert not broken_laws(seen)
