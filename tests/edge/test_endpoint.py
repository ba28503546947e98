"""A large model over HTTP, against a server that does on bare sockets what servers do."""

import logging
import re
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.raw_server import (
    DONE,
    FIN,
    HANG,
    RST,
    RawServer,
    Send,
    Sleep,
    Wait,
    chunked,
    delta,
    event,
    head,
    page,
    stream,
    text,
    usage,
)

from sr_edge.errors import UsageError
from sr_edge.remote.dialect import Dialect
from sr_edge.remote.endpoint import Deadlines, Endpoint
from sr_edge.remote.line import HungUpError, Line
from sr_edge.remote.reply import EchoFilter, plain_line
from sr_edge.split import Message, Outcome, Prompt

QUESTION = [Message("system", "Be brief."), Message("user", "how?")]
ANSWER = "First, add the two numbers: "
KEY = "sk-canary-0123456789"
SOON = Deadlines(connect=2.0, first_content=2.0, idle=2.0, total=5.0, linger=0.2)
"""Far more than loopback needs, for spans that end by themselves."""
NOW = Deadlines(connect=0.1, first_content=0.2)
"""For servers that never say anything."""


def prompt(messages):
    return Prompt((), "".join(f"<{m.role}>{m.content}" for m in messages) + "<assistant>", "")


def thinking_prompt(messages):
    return Prompt((), prompt(messages).text + "<think>\n", "<think>\n")


def endpoint(server, **options):
    options = {"prompt": prompt, "model": "big", "deadlines": SOON, **options}
    return Endpoint(server.url, **options)


def ask(remote, answer=ANSWER, max_tokens=64):
    """The text of one span and how it ended."""
    return listen(remote.stream(QUESTION, answer, max_tokens))


def listen(span):
    pieces = []
    while (piece := span.read(1.0)) is not None:
        pieces.append(piece)
    span.close()
    return "".join(pieces), span.outcome


def span_of(*script, answer=ANSWER, **options):
    """One span from a server with this script."""
    with RawServer(list(script)) as server, endpoint(server, **options) as remote:
        return ask(remote, answer)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


# --- a span that goes well ------------------------------------------------------------------------------


def test_a_span_is_written_and_counted():
    written, outcome = span_of(head(), text("1 + "), text("2", "stop"), usage(40, 4), DONE, FIN)
    assert written == "1 + 2"
    assert outcome == Outcome("stop", prompt_tokens=40, completion_tokens=4)


def test_completions_get_the_local_rendering_and_the_answer():
    with RawServer(stream("x")) as server, endpoint(server, seed=7) as remote:
        ask(remote, max_tokens=12)
        [request] = server.requests
    assert request.line == "POST /v1/completions HTTP/1.1"
    assert request.body == {
        "model": "big",
        "prompt": "<system>Be brief.<user>how?<assistant>" + ANSWER,
        "max_tokens": 12,
        "temperature": 0.6,
        "top_p": 0.95,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert request.headers["accept-encoding"] == "identity"


def test_chat_gets_the_messages_and_the_partial_answer_as_the_last():
    with (
        RawServer([head(), delta(content="3"), delta("stop"), DONE]) as server,
        endpoint(server, api="chat", prompt=thinking_prompt) as remote,
    ):
        assert ask(remote)[0] == "3"
        [request] = server.requests
    assert request.line == "POST /v1/chat/completions HTTP/1.1"
    assert request.body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "how?"},
        {"role": "assistant", "content": "<think>\n" + ANSWER},
    ]
    assert request.body["continue_final_message"] is True
    assert request.body["add_generation_prompt"] is False


def test_all_that_has_arrived_is_read_at_once():
    with RawServer([head(), text("a"), text("b"), text("c"), HANG]) as server, endpoint(server) as remote:
        span = remote.stream(QUESTION, ANSWER, 64)
        seen = ""
        while len(seen) < 3:
            seen += span.read(1.0)
            time.sleep(0.02)
        assert seen == "abc"
        assert span.read(0) == "", "nothing new, and not the end"
        span.close()


@pytest.mark.parametrize(
    ("script", "end"),
    [
        ([text("x", "stop"), FIN], "stop"),
        ([text("x"), DONE, FIN], "stop"),
        ([text("x", "length"), DONE, FIN], "cap"),
        ([text("x"), Send(b"data: [DONE]"), FIN], "stop"),
        ([text("x"), Send(text("", "stop").data.rstrip()), FIN], "stop"),
        ([text("x"), DONE, HANG], "stop"),
        ([text("x", "stop"), HANG], "stop"),
        ([text("x", "stop"), RST], "stop"),
    ],
    ids=[
        "finish reason only", "done only", "length", "no blank line", "no line end", "open after done",
        "open after finish", "reset after finish",
    ],
)  # fmt: skip
def test_proof_of_completeness_is_a_finish_reason_or_done(script, end):
    assert span_of(head(), *script) == ("x", Outcome(end))


def test_the_name_is_the_servers_first_model_asked_for_just_before_the_first_span():
    models = page({"data": [{"id": "served"}, {"id": "other"}]})
    with RawServer(models, stream("a"), stream("b")) as server, endpoint(server, model=None) as remote:
        assert server.requests == []
        assert remote.name == server.where
        assert [ask(remote)[0], ask(remote)[0]] == ["a", "b"]
        assert remote.name == "served"
        assert [r.line.split()[1] for r in server.requests] == ["/v1/models", *2 * ["/v1/completions"]]
        assert server.requests[1].body["model"] == "served"


def test_a_models_name_is_shown_as_one_harmless_line():
    models = page({"data": [{"id": "big\x1b[31m\n" + 200 * "x"}]})
    with RawServer(models, stream("a")) as server, endpoint(server, model=None) as remote:
        ask(remote)
        assert remote.name.isprintable()
        assert len(remote.name) == 100


def test_a_server_without_a_list_of_models_is_asked_without_a_name():
    with RawServer(page({}, 404), stream("a")) as server, endpoint(server, model=None) as remote:
        assert ask(remote)[0] == "a"
        assert "model" not in server.requests[1].body


def test_the_connection_is_kept_between_spans():
    reply = chunked(text("a", "stop"), DONE)
    with RawServer(reply, reply) as server, endpoint(server) as remote:
        assert ask(remote)[0] == "a"
        wait_until(lambda: remote._server._kept is not None)
        assert ask(remote)[0] == "a"
        assert [request.connection for request in server.requests] == [1, 1]


def wait_until(is_true):
    end = time.monotonic() + 5
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_kept_connection_that_died_is_replaced_once():
    reply = chunked(text("a", "stop"), DONE)
    with RawServer(reply, [RST], reply) as server, endpoint(server) as remote:
        ask(remote)
        wait_until(lambda: remote._server._kept is not None)
        assert ask(remote) == ("a", Outcome("stop"))
        assert [request.connection for request in server.requests] == [1, 1, 2]


# --- dialects -----------------------------------------------------------------------------------------------


CHAT_REPLY = [head(), delta(role="assistant", content=None), delta(content="ok"), delta("stop"), DONE, FIN]


@pytest.mark.parametrize(
    "refusal",
    [
        page({"detail": "Not Found"}, 404),
        page("no", 405),
        page("no", 501),
        page({"error": {"message": "This is a chat model, use v1/chat/completions"}}, 400),
    ],
)
def test_a_server_without_completions_is_asked_by_chat_from_then_on(refusal):
    with RawServer(refusal, CHAT_REPLY, CHAT_REPLY) as server, endpoint(server) as remote:
        assert [ask(remote)[0], ask(remote)[0]] == ["ok", "ok"]
        paths = [request.line.split()[1] for request in server.requests]
    assert paths == ["/v1/completions", "/v1/chat/completions", "/v1/chat/completions"]


def test_an_api_that_the_user_named_is_the_only_one_tried():
    with RawServer(page({}, 404)) as server, endpoint(server, api="completions") as remote:
        _, outcome = ask(remote)
    assert outcome.end == "error"
    assert "/v1/completions" in outcome.error


@pytest.mark.parametrize(
    "refusal",
    [
        "Unrecognized request argument supplied: continue_final_message",
        "body.add_generation_prompt: Extra inputs are not permitted",
        "Unknown parameter",
        "unexpected extra fields in the request",
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_flags_that_a_server_does_not_know_are_left_out_from_then_on(refusal, status):
    with (
        RawServer(page({"error": {"message": refusal}}, status), CHAT_REPLY, CHAT_REPLY) as server,
        endpoint(server, api="chat") as remote,
    ):
        assert [ask(remote)[0], ask(remote)[0]] == ["ok", "ok"]
        flags = ["continue_final_message" in request.body for request in server.requests]
    assert flags == [True, False, False]


def test_a_server_that_cannot_tell_usage_is_not_asked_for_it_again():
    refusal = page({"error": "stream_options is not supported"}, 400)
    with RawServer(refusal, stream("a"), stream("b")) as server, endpoint(server) as remote:
        assert [ask(remote)[0], ask(remote)[0]] == ["a", "b"]
        assert ["stream_options" in request.body for request in server.requests] == [True, False, False]


def test_a_refusal_of_the_request_itself_is_not_asked_again():
    dialect = Dialect("chat", is_settled=True)
    assert dialect.after_refusal(400, "maximum context length is 4096 tokens") is None
    assert dialect.after_refusal(500, "continue_final_message") is None
    assert Dialect("completions", is_settled=False).after_refusal(400, "prompt is too long") is None


def test_a_page_in_the_way_settles_nothing():
    portal = page("<html>Log in</html>", kind="text/html")
    with RawServer(portal, page({}, 404), CHAT_REPLY) as server, endpoint(server) as remote:
        assert ask(remote)[1].end == "error"
        assert ask(remote) == ("ok", Outcome("stop"))


# --- what counts as the span's text ---------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(1, 12))
def test_an_echo_of_the_partial_answer_is_dropped(cut):
    reply = ANSWER + "1 + 2"
    pieces = [reply[n : n + cut] for n in range(0, len(reply), cut)]
    assert span_of(*stream(*pieces)) == ("1 + 2", Outcome("stop"))


def test_an_echo_with_and_without_the_opening_is_dropped():
    for echo in ("<think>\n" + ANSWER, ANSWER):
        assert span_of(*stream(echo, "so"), prompt=thinking_prompt)[0] == "so"


def test_what_only_begins_like_an_echo_is_text():
    assert span_of(*stream("First, ", "subtract"))[0] == "First, subtract"
    assert span_of(*stream("First, "))[0] == "First, ", "the reply ended while it was held back"


def test_a_short_answer_may_be_repeated():
    assert span_of(*stream("ha", " ha"), answer="ha")[0] == "ha ha"


@given(st.lists(st.text("abc", max_size=4)), st.lists(st.text("abc", min_size=8, max_size=12), max_size=3))
def test_an_echo_filter_drops_an_echo_or_nothing(pieces, echoes):
    echo = EchoFilter(echoes)
    reply = "".join(pieces)
    out = "".join([echo.push(piece) for piece in pieces]) + echo.flush()
    longest = max((e for e in echoes if reply.startswith(e)), key=len, default="")
    assert out == reply[len(longest) :]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_continues_an_open_thought(field):
    reply = [head(), delta(**{field: "so "}), delta(**{field: "3"}), delta("stop"), DONE, FIN]
    assert span_of(*reply, api="chat", prompt=thinking_prompt) == ("so 3", Outcome("stop"))


def test_the_end_of_the_thought_ends_the_span():
    reply = [head(), delta(reasoning_content="so 3"), delta(content="The answer is 3."), HANG]
    with RawServer(reply) as server, endpoint(server, api="chat", prompt=thinking_prompt) as remote:
        assert ask(remote) == ("so 3", Outcome("stop"))
        assert server.client_hung_up.wait(2)


def test_content_continues_an_open_thought_where_the_server_tells_no_reasoning_apart():
    reply = [head(), delta(content="so "), delta(content="3"), delta("stop"), DONE, FIN]
    assert span_of(*reply, api="chat", prompt=thinking_prompt)[0] == "so 3"


def test_a_new_thought_is_never_spliced_where_content_is_expected():
    reply = [head(), delta(reasoning_content="Let me see"), delta(content="3"), delta("stop"), DONE, FIN]
    assert span_of(*reply, api="chat")[0] == "3"
    closed = "I think so.</think>The result is "
    assert span_of(*reply, api="chat", prompt=thinking_prompt, answer=closed)[0] == "3"


@pytest.mark.parametrize(
    "odd",
    [
        event({"choices": [], "usage": None}),
        event({"choices": None}),
        event({"choices": [None, 3]}),
        event({"choices": [{"index": 1, "text": "other"}]}),
        event({"choices": [{"delta": {}}]}),
        event({"choices": [{"delta": {"content": None, "reasoning": 3}}]}),
        event({"choices": [{"text": ["x"]}]}),
        event({"object": "ping"}),
        event({"error": None}),
        event(""),
        Send(b": keep-alive\n\n"),
        Send(b"retry: 10\nid: 3\n\n"),
    ],
)
def test_events_without_text_add_none(odd):
    assert span_of(head(), odd, text("a"), odd, text("b"), odd, DONE, FIN) == ("ab", Outcome("stop"))


def test_text_that_no_encoder_takes_is_replaced():
    written, _ = span_of(head(), Send(b'data: {"choices": [{"text": "a\\ud800b"}]}\n\n'), DONE, FIN)
    assert written == "a\ufffdb"


def test_a_whole_reply_in_place_of_a_stream_is_taken():
    choice = {"index": 0, "message": {"content": "1 + 2"}, "finish_reason": "stop"}
    counts = {"prompt_tokens": 9, "completion_tokens": 3}
    assert span_of(*page({"choices": [choice], "usage": counts}), api="chat") == (
        "1 + 2",
        Outcome("stop", prompt_tokens=9, completion_tokens=3),
    )


def test_a_span_without_end_is_ended():
    flood = [text(1000 * "x ") for _ in range(40)]
    with RawServer([head(), *flood, HANG]) as server, endpoint(server) as remote:
        written, outcome = ask(remote)
        assert server.client_hung_up.wait(2)
    assert outcome.end == "cap"
    assert 1 << 16 < len(written) < 1 << 17


# --- failures: one line, and the text that came stays ------------------------------------------------------


def test_a_refused_connection_is_an_outcome():
    port = free_port()
    with Endpoint(f"http://127.0.0.1:{port}", prompt=prompt, model="big") as remote:
        written, outcome = ask(remote)
    assert (written, outcome.end) == ("", "error")
    assert outcome.error == (
        f"remote unreachable: connection refused at 127.0.0.1:{port}; is the server running there?"
    )


def test_a_name_that_is_none_is_an_outcome(monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with Endpoint("http://no.such.host", prompt=prompt, model="big") as remote:
        _, outcome = ask(remote)
    assert outcome.error.startswith("remote unreachable: no address known for no.such.host")


def test_a_name_server_that_hangs_holds_nobody(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: release.wait(5) and [])
    with Endpoint("http://slow.host", prompt=prompt, model="big", deadlines=NOW) as remote:
        began = time.monotonic()
        _, outcome = ask(remote)
        assert time.monotonic() - began < 2
    assert outcome.end == "error"
    assert "no connection to slow.host within" in outcome.error
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "sr-edge span")
    release.set()


def test_tls_with_a_server_that_has_none_sends_nothing():
    with RawServer([HANG]) as server:
        url = server.url.replace("http:", "https:")
        with Endpoint(url, prompt=prompt, model="big", api_key=KEY, deadlines=NOW) as remote:
            assert ask(remote)[1].end in ("error", "stalled")
        assert server.requests == []


FAULTS = {
    "reset before headers": ([RST], "", "connection reset by"),
    "closed before headers": ([FIN], "", "broke off"),
    "no http": ([Send(b"220 mail.example ESMTP\r\n\r\n"), FIN], "", "does not speak HTTP"),
    "reset before content": ([head(), Sleep(0.02), RST], "", "connection reset by"),
    "reset mid-span": ([head(), text("so 3"), Sleep(0.02), RST], "so 3", "4 characters: connection reset"),
    "cut without finish": ([head(), text("so "), FIN], "so ", "cut off after 3 characters"),
    "cut chunk": ([*chunked(text("so "))[:-1], FIN], "so ", "cut off after 3 characters"),
    "cut inside an event": ([head(), text("so "), Send(b'data: {"c'), FIN], "so ", "off after 3 characters"),
    "cut inside an echo": ([head(), text(ANSWER[:12]), FIN], "", "without a finish reason"),
    "comments only, then the end": ([head(), Send(b": ping\n\n"), FIN], "", "without a finish reason"),
    "empty body": ([*page("")], "", "holds no text|not JSON"),
    "empty stream": ([head(), FIN], "", "empty reply"),
    "html": (page("<html>Log in</html>", kind="text/html"), "", "text/html.*OpenAI-compatible"),
    "octets": ([head(kind="application/octet-stream"), text("x"), DONE, FIN], "", "application/octet-stream"),
    "compressed": ([head(Content_Encoding="gzip"), text("x"), DONE, FIN], "", "compressed"),
    "json without text": (page({"ok": True}), "", "holds no text"),
    "json error with 200": (page({"error": {"message": "out of memory"}}), "", "error: out of memory"),
    "bad json": ([head(), text("so "), event("{nope"), text("x"), DONE], "so ", "not JSON: {nope"),
    "json of another kind": ([head(), event("[1]"), DONE], "", "not an object"),
    "bottomless json": ([head(), event(100_000 * "["), DONE], "", "not JSON"),
    "huge number": ([head(), event('{"usage": %s}' % ("9" * 10_000)), DONE], "", "not JSON"),
    "error mid-span": (
        [head(), text("so "), event({"error": {"message": "overloaded", "code": 503}}), DONE],
        "so ",
        "cut off after 3 characters: the remote reported an error: overloaded",
    ),
    "error event": ([head(), Send(b'event: error\ndata: {"message": "busy"}\n\n'), DONE], "", "error: busy"),
    "finish reason error": ([head(), text("so "), text("", "error"), DONE], "so ", "broke off with an error"),
    "content filter": ([head(), text("", "content_filter"), DONE], "", "content filter"),
    "endless line": ([head(), Send(b"data: " + (1 << 20) * b"x"), HANG], "", "longer than 1048576 bytes"),
    "endless comments": ([head(), *9 * [Send(b": " + 1_000_000 * b"x" + b"\n")], HANG], "", "than 8 MiB"),
    "401": (page({"error": {"message": "no such key"}}, 401), "", r"API key \(HTTP 401\): no such key"),
    "404": (page({"error": "model not found"}, 404), "", "'big'.*check.*model not found"),
    "413": (page("too much", 413, kind="text/plain"), "", r"refused the request \(HTTP 413\): too much"),
    "429": (page({"detail": "slow down"}, 429), "", "busy.*slow down"),
    "500": (page({"message": "oops"}, 500), "", r"failed \(HTTP 500\): oops"),
    "502 in html": (page("<html>Bad gateway</html>", 502, kind="text/html"), "", r"failed \(HTTP 502\)$"),
    "204": ([Send(b"HTTP/1.1 204 No Content\r\n\r\n")], "", "HTTP 204"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_and_keeps_the_text(name):
    script, expected, line = FAULTS[name]
    written, outcome = span_of(*script, api="completions")
    assert (written, outcome.end) == (expected, "error")
    assert re.search(line, outcome.error), outcome.error
    assert outcome.error.isprintable()
    assert 0 < len(outcome.error) <= 300


def test_a_redirect_is_not_followed():
    with RawServer() as target:
        elsewhere = page("", 307, Location=target.url + "/v1/completions")
        _, outcome = span_of(*elsewhere, api_key=KEY)
        assert target.connections == 0
        assert outcome.end == "error"
        assert f"redirects to {target.url}" in outcome.error


def test_what_a_server_says_is_made_harmless():
    said = "\x1b[31mred\x1b]52;c;aGk=\x07\r\nnext \u202eline \x9b0m\u2028" + 500 * "x"
    _, outcome = span_of(*page({"error": {"message": said}}, 500))
    assert outcome.error.isprintable()
    assert "[31mred" in outcome.error
    assert len(outcome.error) == 300
    assert plain_line("a\n\n b\tc") == "a b c"


def test_the_environments_proxies_are_ignored(monkeypatch):
    with RawServer() as trap:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, trap.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert span_of(*stream("x"))[0] == "x"
        assert trap.connections == 0


# --- silence ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        [HANG],
        [head(), HANG],
        [head(), *8 * [Sleep(0.03), Send(b": ping\n\n")], HANG],
        [head(), *8 * [Sleep(0.03), event({"choices": []})], HANG],
        [Send(b"HTTP/1.1 200 OK\r\n"), *8 * [Sleep(0.03), Send(b"X-A: b\r\n")], HANG],
    ],
    ids=["no reply", "no body", "comments", "empty events", "drip of headers"],
)
def test_a_silent_endpoint_is_left(script):
    deadlines = Deadlines(connect=5.0, first_content=0.1)
    with RawServer(script) as server, endpoint(server, deadlines=deadlines) as remote:
        assert ask(remote) == ("", Outcome("stalled", f"{server.where} wrote nothing within 0.1 s"))
        assert server.client_hung_up.wait(2)


class Clock:
    """Stands still until it is moved."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def read_some(span):
    """The next text, on a clock that stands still."""
    while (piece := span.read(0.05)) == "":
        pass
    return piece


def test_silence_after_some_text_is_cut_and_comments_do_not_break_it():
    clock, later = Clock(), threading.Event()
    comments = [Send(b": ping\n\n"), event({"choices": []}), event("")]
    with (
        RawServer([head(), text("so "), Wait(later), *comments, HANG]) as server,
        endpoint(server, deadlines=Deadlines(), clock=clock) as remote,
    ):
        span = remote.stream(QUESTION, ANSWER, 64)
        assert read_some(span) == "so "
        clock.now += 6
        later.set()
        time.sleep(0.05)
        assert span.read(0) == ""
        clock.now += 6
        assert span.read(0) is None
        assert span.outcome.end == "stalled"
        assert span.outcome.error == f"{server.where} fell silent for 10 s after 3 characters"
        assert server.client_hung_up.wait(2)


def test_a_drip_is_cut_when_the_span_took_too_long():
    clock, drops = Clock(), [threading.Event() for _ in range(20)]
    script = [head(), *(op for drop in drops for op in (text("x"), Wait(drop)))]
    with (
        RawServer(script) as server,
        endpoint(server, deadlines=Deadlines(), clock=clock) as remote,
    ):
        span = remote.stream(QUESTION, ANSWER, 64)
        written = ""
        for drop in drops:
            piece = read_some(span)
            if piece is None:
                break
            written += piece
            clock.now += 9
            drop.set()
        assert span.outcome == Outcome("stalled", f"{server.where} was not done within 120 s")
        assert 13 <= len(written) <= 14
        [drop.set() for drop in drops]


def test_a_thought_that_is_not_taken_is_a_sign_of_life():
    clock, thoughts = Clock(), [threading.Event() for _ in range(4)]
    thinking = [op for thought in thoughts for op in (delta(reasoning="hm"), Wait(thought))]
    with (
        RawServer([head(), *thinking, delta(content="3"), delta("stop"), DONE]) as server,
        endpoint(server, api="chat", deadlines=Deadlines(), clock=clock) as remote,
    ):
        span = remote.stream(QUESTION, ANSWER, 64)
        for thought in thoughts:
            wait_until(lambda: span.read(0) == "" and span._heard == clock.now)
            clock.now += 9
            thought.set()
        assert listen(span) == ("3", Outcome("stop"))


def test_text_that_came_in_time_is_read_however_late():
    clock = Clock()
    with RawServer(stream("in ", "time")) as server, endpoint(server, clock=clock) as remote:
        span = remote.stream(QUESTION, ANSWER, 64)
        wait_until(lambda: span._asking.arrivals.qsize() >= 3)
        clock.now += 3600
        assert listen(span) == ("in time", Outcome("stop"))


# --- hanging up -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script", [[HANG], [head(), HANG], [head(), text("so "), HANG]], ids=["waiting", "silent", "mid-span"]
)
def test_closing_hangs_up_at_once_and_the_thread_ends(script):
    with RawServer(script) as server, endpoint(server, deadlines=Deadlines()) as remote:
        span = remote.stream(QUESTION, ANSWER, 64)
        wait_until(lambda: server.requests)
        began = time.monotonic()
        span.close()
        span.close()
        assert time.monotonic() - began < 0.2
        assert server.client_hung_up.wait(2)
        wait_until(lambda: not any(t.name == "sr-edge span" for t in threading.enumerate()))
        assert span.outcome == Outcome("stop")
        assert span.read(0.1) is None


FORGETFUL = """
import sys
from sr_edge.remote.endpoint import Endpoint
from sr_edge.split import Prompt
span = Endpoint(sys.argv[1], prompt=lambda messages: Prompt((), "", ""), model="big").stream([], "", 8)
while not span.read(1.0):
    pass
"""


def test_the_end_of_the_process_waits_for_no_span():
    with RawServer([head(), text("so "), HANG]) as server:
        command = [sys.executable, "-c", FORGETFUL, server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert server.client_hung_up.wait(2)


def test_usage_that_came_before_closing_is_kept():
    with RawServer([head(), text("x", "stop"), usage(9, 1), HANG]) as server, endpoint(server) as remote:
        span = remote.stream(QUESTION, ANSWER, 64)
        wait_until(lambda: span._asking.arrivals.qsize() >= 3)
        span.close()
        assert span.outcome.end == "stop"


def test_a_span_closed_before_its_connection_stands_sends_nothing(monkeypatch):
    resolve, closed = socket.getaddrinfo, threading.Event()

    def slow(*args, **kwargs):
        closed.wait(5)
        return resolve(*args, **kwargs)

    with RawServer() as server, endpoint(server) as remote:
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        span = remote.stream(QUESTION, ANSWER, 64)
        span.close()
        closed.set()
        wait_until(lambda: not any(t.name == "sr-edge span" for t in threading.enumerate()))
        assert server.requests == []


def test_nothing_is_looked_up_on_a_line_that_was_hung_up(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("a name was looked up"))
    line = Line(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), connect_timeout=1.0, timeout=1.0)
    line.hang_up()
    with pytest.raises(HungUpError):
        line.send("GET", "http://some.host/", {}, None, lambda: None)
    line.close()


def test_the_next_span_after_a_hang_up_has_a_connection_of_its_own():
    with RawServer([head(), text("a"), HANG], stream("b")) as server, endpoint(server) as remote:
        span = remote.stream(QUESTION, ANSWER, 64)
        while span.read(0.1) == "":
            pass
        span.close()
        assert ask(remote)[0] == "b"
        assert [request.connection for request in server.requests] == [1, 2]


def test_two_spans_at_once_have_a_connection_each():
    with RawServer([head(), HANG], stream("b")) as server, endpoint(server) as remote:
        waiting = remote.stream(QUESTION, ANSWER, 64)
        wait_until(lambda: server.requests)
        assert ask(remote)[0] == "b"
        waiting.close()


# --- keys -------------------------------------------------------------------------------------------------


def test_the_key_goes_into_its_header_and_nowhere_else(caplog):
    caplog.set_level(logging.DEBUG)
    echoed = page({"error": {"message": f"bad key {KEY} " + 200 * "x" + KEY}}, 401, X_Key=KEY)
    with RawServer(echoed) as server, endpoint(server, api_key=KEY) as remote:
        _, outcome = ask(remote)
        [request] = server.requests
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert KEY not in request.data.decode() + request.line
        spoken = " ".join([outcome.error, repr(outcome), repr(remote), str(remote), remote.name])
    assert "bad key ***" in outcome.error
    for piece in (KEY, KEY[:12]):
        assert piece not in spoken
        assert piece not in " ".join(r.getMessage() for r in caplog.records if r.name.startswith("sr_edge"))


def test_an_error_in_the_stream_does_not_tell_the_key():
    _, outcome = span_of(head(), event({"error": {"message": 280 * "x" + KEY}}), DONE, api_key=KEY)
    assert KEY[:8] not in outcome.error


def test_without_a_key_none_is_sent():
    with RawServer(stream("x")) as server, endpoint(server) as remote:
        ask(remote)
        assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize("key", ["two words", "line\nend", "schlüssel", "tab\t"])
def test_a_key_that_no_header_can_carry_is_refused_without_quoting_it(key):
    with pytest.raises(UsageError) as refused:
        Endpoint("http://h", prompt=prompt, api_key=key)
    assert key not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h:8080", "http://h:8080/v1"),
        ("http://h:8080/", "http://h:8080/v1"),
        ("http://h/v1", "http://h/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("https://h/api/v1", "https://h/api/v1"),
        ("http://[::1]:8080", "http://[::1]:8080/v1"),
        (" http://bücher.example ", "http://xn--bcher-kva.example/v1"),
    ],
)
def test_urls_with_and_without_a_path(url, base):
    assert repr(Endpoint(url, prompt=prompt)) == f"Endpoint({base!r}, model=None)"


@pytest.mark.parametrize(
    "url",
    [
        "", "h:8080", "ftp://h", "file:///etc/passwd", "http://", "http:///v1", "http://h:99999", "http://h:x",
        "http://h/v1?key=canary", "http://h#canary", "http://canary@h", "http://u:canary@h/v1", "http://u:canary",
    ],
)  # fmt: skip
def test_urls_that_cannot_be_meant_are_refused(url):
    with pytest.raises(UsageError) as refused:
        Endpoint(url, prompt=prompt)
    assert "canary" not in str(refused.value)


def test_nothing_is_opened_before_the_first_span(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", fail)
    monkeypatch.setattr(socket, "create_connection", fail)
    with Endpoint("http://h", prompt=prompt) as remote:
        assert remote.name == "h"
