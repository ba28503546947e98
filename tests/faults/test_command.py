"""A sample of all faults through `sr-edge ask` itself, with the built-in small model."""

import re

import pytest
from tests.command_line import call, run
from tests.faults.harness import EARLY, TALLY

from sr_edge.commands.replay import recorded
from sr_edge.testing.fault_endpoint import (
    CHAT,
    COMPLETIONS,
    DONE,
    FIN,
    RST,
    FaultEndpoint,
    Loop,
    Send,
    Sleep,
    closed_port,
    failure,
    head,
    page,
    sse,
)
from sr_edge.testing.oracle import CANARY, MAX_POSTS, broken_laws, leaks, status_of
from sr_edge.transcript import fold

QUESTION = EARLY.question
T = COMPLETIONS.text
MODELS = page({"object": "list", "data": [{"id": "big"}]})


def echoed(request):
    key = request.headers["authorization"].removeprefix("Bearer ")
    return failure(401, f"incorrect API key: {key}", X_Key=key)


FAULTS = {
    "nothing": ([*COMPLETIONS.stream(" 12 + 30 = 42"), FIN], "complete", None),
    "F06 reset": ([RST], "failed", "."),
    "F07 portal": (page("<html>Log in</html>", kind="text/html"), "failed", "text/html"),
    "F11 key": (echoed, "failed", "API key"),
    "F12 no such model": (failure(404, "model not found"), "failed", "model"),
    "F14 request": (failure(422, "no"), "failed", "422"),
    "F16 busy": (failure(429, "slow down", Retry_After="3600"), "failed", "busy"),
    "F18 down": (failure(503, "overloaded"), "failed", "503"),
    "F19 empty": (page({}), "failed", "."),
    "F22 redirect": (page("", 307, Location="http://evil.example/v1"), "failed", "redirect"),
    "F23 bomb": ([head(Content_Encoding="gzip"), Send(1000 * b"x"), FIN], "failed", "compressed"),
    "F26 cut": ([head(), T(" 12 + 30"), FIN], "partial", "finish reason"),
    "F39 error": ([head(), T(" 12 + 30"), sse({"error": {"message": "ill"}}), FIN], "partial", "ill"),
    "F44 not json": ([head(), T(" 12 + 30"), sse("{nope"), FIN], "partial", "JSON"),
    "F50 reset": ([head(), T(" 12 + 30"), Sleep(0.02), RST], "partial", "reset"),
    "F51 endless": ([head(), Loop((T(" 12 + 30 ="),))], None, None),
    "F53 markers": ([head(), T(" 12</bigmodel><bigmodel><|im_end|>"), DONE, FIN], "complete", None),
}  # fmt: skip

CHILDREN = ("F11 key", "F18 down", "F26 cut", "F51 endless")
"""Those that are run in a process of their own too."""


def ask(folder, server, by, *options, **env):
    file = folder / "events.jsonl"
    done = by(
        "ask", QUESTION, "--temp", 0, "--big", server.url, "--big-model", "big", "--events", file,
        "--max-span-tokens", 40, *options,
        env={"SR_EDGE_API_KEY": CANARY, "SR_EDGE_HOME": str(folder / "home"), **env},
    )  # fmt: skip
    return done, list(recorded(file))


def artefacts(folder):
    """All files that were written."""
    return [path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()]


def assert_as_told(done, events, server, truth, line, folder):
    transcript = fold(events)
    assert broken_laws(events) == []
    assert (done.returncode, transcript.finish) == (0, "stop")
    assert truth is None or status_of(transcript.spans[0]) == truth
    assert "\\boxed{" in done.stdout
    assert "Traceback" not in done.stderr
    assert line is None or re.search(line, done.stderr)
    assert leaks(CANARY, [done.stdout, done.stderr, *artefacts(folder)], server.requests) == []
    sent = [span for span in transcript.spans if span.sent_bytes]
    assert len(server.posts) <= MAX_POSTS * len(sent)
    assert all(host.headers["host"] == server.where for host in server.requests)


@pytest.mark.parametrize("name", FAULTS)
def test_ask_answers_whatever_the_endpoint_does(name, tmp_path):
    TALLY.cases += 1
    script, truth, line = FAULTS[name]
    with FaultEndpoint(then=script, pages={"/v1/models": MODELS}) as server:
        done, events = ask(tmp_path, server, call)
        assert_as_told(done, events, server, truth, line, tmp_path)


@pytest.mark.parametrize("name", CHILDREN)
def test_ask_in_a_process_of_its_own(name, tmp_path):
    TALLY.cases += 1
    script, truth, line = FAULTS[name]
    with FaultEndpoint(then=script, pages={"/v1/models": MODELS}) as server:
        done, events = ask(tmp_path, server, run, SR_EDGE_TRACEBACK="1")
        assert_as_told(done, events, server, truth, line, tmp_path)


def test_ask_with_nobody_there(tmp_path):
    TALLY.cases += 1
    url = f"http://127.0.0.1:{closed_port()}"
    done = run(
        "ask", QUESTION, "--temp", 0, "--big", url, "--big-model", "big", env={"SR_EDGE_HOME": str(tmp_path)}
    )
    assert done.returncode == 0
    assert "\\boxed{" in done.stdout
    assert "refused" in done.stderr
    assert len(done.stderr.splitlines()) <= 60
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["F11 key", "F18 down", "F26 cut"])
def test_ask_where_the_large_model_alone_may_write(name, tmp_path):
    """There is no fallback then: exit 3, and one line."""
    script, _, line = FAULTS[name]
    with FaultEndpoint(then=script, pages={"/v1/models": MODELS}) as server:
        done, events = ask(tmp_path, server, call, "--policy", "remote")
    assert done.returncode == 3
    assert re.search(line, done.stderr)
    assert leaks(CANARY, [done.stdout, done.stderr, *artefacts(tmp_path)]) == []
    assert broken_laws(events) == []


def test_ask_finds_out_what_a_chat_server_can_do_without_telling_it_the_question(tmp_path):
    """A server without completions that continues what it is given, as vLLM's chat does."""

    def script(request):
        if request.path != CHAT.path:
            return failure(404, "Not Found")
        asked = request.data.decode()
        return [*CHAT.stream(" 12 + 30 = 42" if QUESTION[:20] in asked else "six, seven"), FIN]

    with FaultEndpoint(then=script, pages={"/v1/models": MODELS}) as server:
        done, events = ask(tmp_path, server, call)
        assert (done.returncode, fold(events).finish) == (0, "stop")
        assert "\\boxed{" in done.stdout
        assert leaks(CANARY, [done.stdout, done.stderr, *artefacts(tmp_path)], server.requests) == []
