"""The client of our own server, against a server that says what a script says."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from sr_edge.errors import EdgeError, UsageError
from sr_edge.events import Event, to_json
from sr_edge.remote.egress import Door, OfflineError
from sr_edge.remote.served import (
    TOKEN_VARIABLE,
    ServedClient,
    ServedError,
    ServedSession,
    find_token,
    token_path,
)
from sr_edge.remote.serving import serving
from sr_edge.roles import Message
from sr_edge.split import SplitDecoder
from sr_edge.testing import END, OPEN, FaultEndpoint, ScriptedLocal, ScriptedRemote
from sr_edge.testing.fault_endpoint import DONE, FIN, HANG, Send, chunked, failure, head, page, sse

TOKEN = "a-token-of-tests"
QUESTION = [Message("user", "What is 1 + 1?")]
BODY = {"model": "m", "messages": [{"role": "user", "content": "What is 1 + 1?"}]}
MODELS = {"/v1/models": page({"object": "list", "data": [{"id": "m"}, {"id": "m:local"}]})}


@pytest.fixture
def answer() -> list[Event]:
    """One with a span."""
    local = ScriptedLocal([[*b"so ", OPEN], [*b".", END]])
    return list(SplitDecoder(local, ScriptedRemote(["1 + 1 = 2"])).generate(QUESTION))


def chunk(events: Sequence[Event]) -> Send:
    """As the server writes it; what ordinary clients read of it is no matter here."""
    ours = {"span": None, "origin": "local", "events": [json.loads(to_json(event)) for event in events]}
    return sse({"object": "chat.completion.chunk", "choices": [], "sr_edge": ours})


def chunks(answer: Sequence[Event]) -> list[Send]:
    """The first brings none, and most of the others two."""
    return [chunk(answer[max(0, at) : at + 2]) for at in range(-2, len(answer), 2)]


def client(server: FaultEndpoint, **options: float) -> ServedClient:
    return ServedClient(server.url, TOKEN, **options)


def test_the_events_of_an_answer_are_those_that_the_decoder_wrote(answer: list[Event]) -> None:
    reply = chunked(*chunks(answer), DONE)
    with FaultEndpoint(reply, reply) as server, client(server) as asked:
        assert list(asked.events(BODY)) == answer
        assert list(asked.events(BODY)) == answer
    assert len(server.connections) == 1, "the connection is kept"
    for request in server.requests:
        assert request.path == "/v1/chat/completions"
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        assert request.body == {**BODY, "sr_edge": {"events": True}, "stream": True}


def test_who_has_heard_enough_hangs_up(answer: list[Event]) -> None:
    with FaultEndpoint([head(), *chunks(answer)[:4], HANG]) as server, client(server) as asked:
        events = asked.events(BODY)
        assert next(events) == answer[0]
        events.close()
        assert server.connections[0].left.wait(5)


def test_a_silent_server_is_left_as_soon_as_it_is_cancelled(answer: list[Event]) -> None:
    wanted = threading.Event()
    with FaultEndpoint([head(), chunk(answer[:3]), HANG]) as server, client(server) as asked:
        heard = []
        for event in asked.events(BODY, cancelled=wanted.is_set):
            heard.append(event)
            if len(heard) == 3:
                wanted.set()
        assert heard == answer[:3]
        assert server.connections[0].left.wait(5)


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ([FIN], "broke the answer off"),
        ([sse({"error": {"message": "the model's file is damaged"}}), FIN], "the model's file is damaged"),
        ([DONE, FIN], "before its last event"),
        ([sse("what?"), FIN], "no chunk"),
        ([sse({"sr_edge": {"events": [{"event": "started"}]}}), FIN], "can't be read"),
    ],
)
def test_an_answer_that_is_cut_is_never_taken_for_a_whole_one(
    answer: list[Event], rest: list[Send], says: str
) -> None:
    cut = [head(), chunk(answer[:3]), *rest]
    with FaultEndpoint(cut) as server, client(server) as asked:
        heard = []
        with pytest.raises(ServedError, match=says) as caught:
            heard.extend(asked.events(BODY))
        assert caught.value.status is None


def test_a_busy_server_is_asked_again_when_it_says_so(answer: list[Event]) -> None:
    busy = failure(429, "16 wait already", Retry_After="0.1")
    with FaultEndpoint(busy, busy, chunked(*chunks(answer), DONE)) as server, client(server) as asked:
        assert list(asked.events(BODY)) == answer
        times = [request.at for request in server.requests]
    assert min(b - a for a, b in pairwise(times)) >= 0.1


def test_a_server_that_stays_busy_is_given_up() -> None:
    error = refusal(failure(429, "16 wait already", Retry_After="3"))
    assert "16 wait already" in str(error)
    assert (error.status, error.retry_after) == (429, 3.0)


def test_whoever_waits_for_a_busy_server_can_be_cancelled() -> None:
    busy = failure(429, "16 wait already", Retry_After="30")
    cancelled = threading.Event()
    threading.Timer(0.2, cancelled.set).start()
    with FaultEndpoint(then=busy) as server, client(server) as asked:
        assert list(asked.events(BODY, cancelled=cancelled.is_set)) == []


def refusal(reply: list[Send]) -> ServedError:
    with (
        FaultEndpoint(reply) as server,
        client(server, patience=1.0) as asked,
        pytest.raises(ServedError) as caught,
    ):
        list(asked.events(BODY))
    return caught.value


def test_a_wrong_token_is_named_and_not_shown() -> None:
    error = refusal(failure(401, f"not {TOKEN}"))
    assert TOKEN_VARIABLE in str(error)
    assert TOKEN not in str(error)


def test_a_refusal_is_told_in_the_servers_words() -> None:
    error = refusal(failure(404, "there is no model 'm', only 'n'"))
    assert str(error).endswith("refused (HTTP 404): there is no model 'm', only 'n'")


def test_another_server_is_not_taken_for_ours() -> None:
    stranger = page("<h1>hello</h1>", kind="text/html")
    with (
        FaultEndpoint(stranger) as server,
        client(server) as asked,
        pytest.raises(ServedError, match="sr-edge serve"),
    ):
        asked.models()


@pytest.mark.parametrize("url", ["http://192.168.1.5:8741", "https://example.com", "http://example.com:8741"])
def test_only_this_machine_is_asked(url: str) -> None:
    with pytest.raises(UsageError, match=r"ssh -L|https"):
        ServedClient(url, TOKEN)


def test_offline_asks_nobody() -> None:
    with (
        FaultEndpoint() as server,
        ServedClient(server.url, TOKEN, door=Door(offline=True)) as asked,
        pytest.raises(OfflineError),
    ):
        asked.models()
    assert not server.connections


def test_the_token_is_the_kept_one_unless_another_is_given(tmp_path: Path) -> None:
    environ = {"SR_EDGE_HOME": str(tmp_path)}
    with pytest.raises(UsageError, match="--print-token"):
        find_token(environ)
    token_path(environ).parent.mkdir()
    token_path(environ).write_text("kept\n")
    assert find_token(environ) == "kept"
    assert find_token({**environ, TOKEN_VARIABLE: "given"}) == "given"


# --- as a session --------------------------------------------------------------------------------------


def session(asked: ServedClient) -> ServedSession:
    return ServedSession(asked, temperature=0.0, seed=3, max_tokens=99)


def test_the_dial_is_the_models_name(answer: list[Event]) -> None:
    reply = chunked(*chunks(answer), DONE)
    with FaultEndpoint(reply, reply, pages=MODELS) as server, client(server) as asked:
        served = session(asked)
        assert list(served.answer(QUESTION)) == answer
        served.dial = "local"
        list(served.answer(QUESTION))
        served.dial = "remote"
        with pytest.raises(UsageError, match="no model 'm:remote', only m, m:local"):
            served.answer(QUESTION)
    assert [request.body["model"] for request in server.posts] == ["m", "m:local"]
    sampling = {"temperature": 0.0, "seed": 3, "max_tokens": 99}
    assert server.posts[0].body.items() >= sampling.items()


def test_chance_opens_no_span_behind_a_server() -> None:
    with (
        FaultEndpoint(pages=MODELS) as server,
        client(server) as asked,
        pytest.raises(UsageError, match="random"),
    ):
        session(asked).answer(QUESTION, schedule=lambda tokens: None)


# --- a server as a child -------------------------------------------------------------------------------


def python(source: str) -> tuple[str, ...]:
    return (sys.executable, "-c", source)


def test_a_child_that_does_not_start_is_told_of_in_its_own_words() -> None:
    dies = python("import sys; print('sr-edge: no such GGUF', file=sys.stderr); sys.exit(4)")
    with (
        pytest.raises(EdgeError, match="ended with code 4: no such GGUF") as caught,
        serving([], {}, command=dies),
    ):
        pass
    assert caught.value.exit_code == 4


def test_a_child_that_is_never_ready_is_not_waited_for() -> None:
    sleeps = python("import time; time.sleep(60)")
    with pytest.raises(EdgeError, match="not ready in time"), serving([], {}, command=sleeps, seconds=0.2):
        pass


def test_a_child_ends_well_whatever_it_was_started_for_came_to(tmp_path: Path) -> None:
    mark = tmp_path / "ended"
    ends = python(
        f"""
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path({str(mark)!r}).write_text(" ".join(sys.argv[1:]))
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("http://127.0.0.1:1", flush=True)
time.sleep(60)
"""
    )

    def fail(url: str) -> None:
        raise KeyError(url)

    with pytest.raises(KeyError, match=":1"), serving(["--big", "x"], {}, command=ends) as server:
        fail(server.url)
    assert mark.read_text() == "serve --port 0 --big x"


def test_a_server_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    """However that ended."""
    starts = f"""
import os, sys, time
from sr_edge.remote.serving import serving
environ = {{**os.environ, "SR_EDGE_HOME": {str(tmp_path)!r}}}
with serving([], environ) as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", starts], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
        parent.wait()
    until = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    """Not ended: one whose parent is gone may stay as a zombie where nobody reaps it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
