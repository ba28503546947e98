"""F82: clients that take their time, take too much, or speak no HTTP. Bytes, against the real server."""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import ExitStack

import pytest
from tests.serve.scripted_desk import ENDLESS, ScriptedDesk, slowly
from tests.serve.serving import chat, connect, exchange, read, request, serving, until

from sr_edge.serve.connections import MAX_HEAD_BYTES, Patience
from sr_edge.testing import END, ScriptedLocal

HASTY = Patience(head=0.15, write=0.15, idle=0.15, linger=0.15, connections=8)


@pytest.fixture(scope="module")
def served():
    with serving(ScriptedDesk()) as served:
        yield served


def is_closed(wire: socket.socket) -> bool:
    """Waits for it."""
    try:
        return wire.recv(1) == b""
    except ConnectionResetError:
        return True


def is_cut_off(wire: socket.socket, data: bytes) -> bool:
    """Whether it cannot be sent any more."""
    try:
        wire.sendall(data)
    except OSError:
        return True
    return False


def is_up(port: int) -> bool:
    return exchange(port, request(port, "/health", token=None)).status == 200


# --- what is no HTTP ----------------------------------------------------------------------------------


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"POST / HTTP/1.1", OURS, *lines, b"", body])


OURS = b"Host: 127.0.0.1:{port}"

NO_HTTP = {
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "nothing but an end": b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n" + OURS + b"\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n" + OURS + b"\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\n" + OURS + b"\r\n\r\n",
    "no path": b"GET HTTP/1.1\r\n" + OURS + b"\r\n\r\n",
    "a path that is no ASCII": b"GET /\xc3\xbc HTTP/1.1\r\n" + OURS + b"\r\n\r\n",
    "a NUL": post(b"X: a\x00b"),
    "a NUL in the host": b"GET / HTTP/1.1\r\n" + OURS + b"\x00.evil.com\r\n\r\n",
    "no colon": post(b"X"),
    "a space before the colon": post(b"X : 1"),
    "an empty name": post(b": 1"),
    "a folded line": post(b"X: a", b" b"),
    "a folded line after a bare line feed": post(b"X: a\n\tb"),
    "a folded host": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\t:{port}\r\n\r\n",
    "a fold before any header": b"GET / HTTP/1.1\r\n " + OURS + b"\r\n\r\n",
    "two lengths": post(b"Content-Length: 1", b"Content-Length: 2", body=b"ab"),
    "a length below 0": post(b"Content-Length: -1"),
    "a length in words": post(b"Content-Length: ten"),
    "a length with a sign": post(b"Content-Length: +5"),
    "a length beyond counting": post(b"Content-Length: " + b"9" * 30),
    "a length and chunks": post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunks and a length": post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"),
    "chunks twice": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "another coding": post(b"Transfer-Encoding: gzip, chunked"),
    "almost chunked": post(b"Transfer-Encoding: xchunked"),
}


@pytest.mark.parametrize("data", NO_HTTP.values(), ids=NO_HTTP)
def test_f82_what_is_no_http_is_refused_and_hung_up_on(served, data):
    with connect(served.port) as wire:
        wire.sendall(data.replace(b"{port}", str(served.port).encode()))
        got = read(wire)
        assert (got.status, got.code) == (400, "bad_request")
        assert is_closed(wire)
    assert served.said == []


BAD_CHUNKS = [
    b"xyz\r\n",
    b"-1\r\n",
    b"2\r\nabc\r\n",
    b"fffffffffffffffffffff\r\n",
    b"5 5\r\n",
    b"1;" + b"x" * MAX_HEAD_BYTES * 2,
]


@pytest.mark.parametrize("chunk", BAD_CHUNKS, ids=lambda chunk: str(chunk[:20]))
def test_f82_bad_chunks_end_the_request(served, chunk):
    headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
    data = request(served.port, "/v1/completions", method="POST", headers=headers) + chunk
    got = exchange(served.port, data)
    assert got.status in (400, 431)
    assert served.desk.jobs == []


@pytest.mark.parametrize(
    "head",
    [b"GET /" + b"a" * MAX_HEAD_BYTES * 2, b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES * 2,
     b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * MAX_HEAD_BYTES],
    ids=["path", "header", "headers"],
)  # fmt: skip
def test_f82_a_head_without_end_is_refused(served, head):
    got = exchange(served.port, head)
    assert (got.status, got.code) == (431, "head_too_large")


def test_a_websocket_is_not_opened(served):
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "dGhlIHNhbXBsZQ=="}
    assert exchange(served.port, request(served.port, "/", headers=upgrade)).status == 200


def test_a_client_of_http_1_0_gets_its_stream_too(served):
    """It knows no chunks: the end of the connection is the end of the response."""
    with connect(served.port) as wire:
        wire.sendall(chat(served.port, stream=True).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n"))
        received = b""
        while piece := wire.recv(65536):
            received += piece
    assert b"transfer-encoding" not in received.lower()
    assert received.endswith(b"data: [DONE]\n\n")


def test_several_requests_share_a_connection(served):
    with connect(served.port) as wire:
        for data in (
            request(served.port),
            chat(served.port),
            chat(served.port, stream=True),
            request(served.port),
        ):
            wire.sendall(data)
            assert read(wire).status == 200


def test_requests_that_are_sent_ahead_are_answered_in_order(served):
    with connect(served.port) as wire:
        wire.sendall(
            chat(served.port) + request(served.port, "/nowhere") + request(served.port, host="evil.com")
        )
        # one reader for all, since it reads ahead as well
        received = b""
        while piece := wire.recv(65536):
            received += piece
    assert re.findall(rb"HTTP/1.1 (\d+) ", received) == [b"200", b"404", b"421"]


def test_a_folded_line_is_seen_in_a_request_that_was_sent_ahead(served):
    folded = request(served.port).replace(b"\r\nAuthorization:", b"\r\nAuthorization:\r\n ")
    with connect(served.port) as wire:
        wire.sendall(chat(served.port) + folded)
        received = b""
        while piece := wire.recv(65536):
            received += piece
    assert received.count(b"HTTP/1.1 200") == 1
    assert received.count(b"HTTP/1.1 400") == 1


# --- clients that take their time ---------------------------------------------------------------------


def test_f82_a_head_that_trickles_in_is_cut():
    """Each byte would begin a new wait, if the wait were for bytes."""
    with serving(ScriptedDesk(), patience=HASTY) as served, connect(served.port) as wire:
        for byte in request(served.port):
            try:
                wire.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.01)
        else:
            pytest.fail("it was read to its end")
        until(lambda: served.connections == 0)
        assert is_up(served.port)


def test_f82_a_head_that_stops_is_told_so():
    with serving(ScriptedDesk(), patience=HASTY) as served, connect(served.port) as wire:
        wire.sendall(request(served.port)[:-10])
        got = read(wire)
        assert (got.status, got.code) == (408, "request_timeout")
        assert is_closed(wire)


def test_f82_a_connection_that_says_nothing_is_closed():
    with serving(ScriptedDesk(), patience=HASTY) as served, connect(served.port) as wire:
        assert is_closed(wire)


def test_a_connection_that_is_not_used_again_is_closed():
    with serving(ScriptedDesk(), patience=HASTY) as served, connect(served.port) as wire:
        wire.sendall(request(served.port))
        assert read(wire).status == 200
        assert is_closed(wire)


def test_f82_a_second_head_that_stops_is_cut():
    patience = Patience(head=0.15, idle=60, linger=0.15)
    with serving(ScriptedDesk(), patience=patience) as served, connect(served.port) as wire:
        wire.sendall(request(served.port))
        assert read(wire).status == 200
        wire.sendall(request(served.port)[:-10])
        assert read(wire).status == 408
        assert is_closed(wire)


@pytest.mark.parametrize("has_body", [False, True])
def test_f82_a_body_after_the_answer_does_not_keep_the_connection(has_body):
    """A GET that says it has a body is answered at once; what then trickles in must not hold the place."""
    with serving(ScriptedDesk(), patience=HASTY) as served, connect(served.port) as wire:
        framing = {"Content-Length": "1000000"} if has_body else {"Transfer-Encoding": "chunked"}
        wire.sendall(request(served.port, headers=framing))
        assert read(wire).status == 200
        until(lambda: is_cut_off(wire, b"1\r\nx\r\n"))
        until(lambda: served.connections == 0)


def reading_little(port: int) -> socket.socket:
    """Its side buffers next to nothing."""
    wire = socket.socket()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    wire.settimeout(10)
    wire.connect(("127.0.0.1", port))
    return wire


LARGE = "x" * 20_000
MUCH = ScriptedLocal([], words=[LARGE]).tokenize(LARGE) * 100
"""Ids of texts that no kernel buffers for a connection of ours."""


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
def test_f82_a_reader_that_reads_nothing_is_cut(is_stream):
    """It keeps its connection open and takes no byte: what is written for it has its time, too."""
    desk = ScriptedDesk([[*MUCH, END]], words=[LARGE], gate=slowly(0.001))
    with serving(desk, patience=HASTY) as served, reading_little(served.port) as wire:
        wire.sendall(chat(served.port, stream=is_stream))
        until(lambda: desk.tickets != [])
        if is_stream:
            assert desk.tickets[0].is_cancelled.wait(10)
        until(lambda: served.connections == 0)
        until(lambda: desk.running == [])
        assert is_up(served.port)


def test_a_slow_reader_gets_all_of_it():
    desk = ScriptedDesk([[*MUCH, END]], words=[LARGE])
    with serving(desk) as served, reading_little(served.port) as wire:
        wire.sendall(chat(served.port, stream=True))
        until(lambda: desk.tickets and desk.tickets[0].is_over.is_set())  # all of it is written, but not sent
        got = read(wire)
    assert got.body.endswith(b"data: [DONE]\n\n")
    assert got.body.count(LARGE.encode()) == 100


# --- too many of them ---------------------------------------------------------------------------------


def test_f82_above_the_most_connections_are_told_and_closed():
    with serving(ScriptedDesk(), patience=Patience(linger=0.15, connections=8)) as served:
        wires = [connect(served.port) for _ in range(8)]
        until(lambda: served.connections == 8)
        with connect(served.port) as one_more:
            got = read(one_more)
            assert (got.status, got.code) == (503, "too_many_connections")
            assert got.headers["retry-after"]
        wires[0].sendall(request(served.port))
        assert read(wires[0]).status == 200  # those that are in are served
        for wire in wires:
            wire.close()
        until(lambda: served.connections == 0)
        assert is_up(served.port)


def test_f82_a_thousand_connections_do_no_harm():
    patience = Patience(head=60, linger=0.1, connections=64)
    with serving(ScriptedDesk(), patience=patience) as served, ExitStack() as opened:
        wires = [opened.enter_context(connect(served.port)) for _ in range(1000)]
        until(lambda: served.connections == 64)
        wires[0].sendall(request(served.port))
        assert read(wires[0]).status == 200
        opened.close()
        until(lambda: served.connections == 0)
        assert is_up(served.port)
        assert served.said == []


# --- clients that leave -------------------------------------------------------------------------------

LEAVING = {
    "closing": lambda wire: wire.close(),
    "resetting": lambda wire: (
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0"),
        wire.close(),
    ),
    "hanging up halfway": lambda wire: wire.shutdown(socket.SHUT_WR),
}


@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING)
@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
def test_f82_a_client_that_leaves_stops_its_answer_within_a_step(leave, is_stream):
    desk = ScriptedDesk(ENDLESS, gate=slowly())
    with serving(desk) as served:
        wire = connect(served.port)
        wire.sendall(chat(served.port, stream=is_stream))
        until(lambda: desk.tickets and desk.tickets[0].tokens > 3)
        leave(wire)
        assert desk.tickets[0].is_cancelled.wait(10)
        assert desk.tickets[0].is_over.wait(10)
        assert desk.tickets[0].steps_after_cancel <= 1
        assert desk.tickets[0].tokens < 3900
        wire.close()
        until(lambda: served.connections == 0)
        assert b"sr_edge_hang_ups_total 1.0" in served.metrics.text()
        assert served.said == []


def test_a_client_that_leaves_before_the_first_token_is_seen_too():
    """While it waits, nothing is written that could fail."""
    turn = threading.Event()
    desk = ScriptedDesk(gate=lambda: turn.wait(10))
    with serving(desk) as served:
        wire = connect(served.port)
        wire.sendall(chat(served.port, stream=True))
        until(lambda: desk.tickets)
        wire.close()
        assert desk.tickets[0].is_cancelled.wait(10)
        turn.set()
        assert desk.tickets[0].is_over.wait(10)


def test_a_client_that_sent_more_ahead_is_seen_leaving():
    """uvicorn by itself would not read on, and so not see it."""
    desk = ScriptedDesk(ENDLESS, gate=slowly())
    with serving(desk) as served:
        wire = connect(served.port)
        wire.sendall(chat(served.port))
        until(lambda: desk.tickets and desk.tickets[0].tokens > 3)
        wire.sendall(request(served.port))
        until(lambda: desk.tickets[0].tokens > 20)  # it has come by now
        wire.close()
        assert desk.tickets[0].is_cancelled.wait(10)


def test_f82_requests_ahead_without_end_are_cut():
    desk = ScriptedDesk(ENDLESS, gate=slowly())
    with serving(desk) as served, connect(served.port) as wire:
        wire.sendall(chat(served.port))
        until(lambda: is_cut_off(wire, request(served.port) * 100))
        assert desk.tickets[0].is_cancelled.wait(10)


def test_f82_a_body_that_breaks_off_is_nobodys(served):
    before = len(served.desk.jobs)
    wire = connect(served.port)
    wire.sendall(chat(served.port)[:-5])
    wire.close()
    until(lambda: served.connections == 0)
    assert len(served.desk.jobs) == before


# --- the end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
def test_a_server_that_stops_ends_its_answers(is_stream):
    desk = ScriptedDesk(ENDLESS, gate=slowly())
    with serving(desk) as served, connect(served.port) as wire:
        wire.sendall(chat(served.port, stream=is_stream))
        until(lambda: desk.tickets and desk.tickets[0].tokens > 3)
        served.server.stop()
        got = read(wire)
    if is_stream:
        assert b"data: [DONE]" not in got.body
        assert b'data: {"error"' in got.body
    else:
        assert got.status == 503
    assert desk.running == []


def test_idle_and_half_sent_requests_do_not_hold_up_the_end():
    with serving(ScriptedDesk()) as served:
        wires = [connect(served.port) for _ in range(3)]
        wires[0].sendall(request(served.port)[:20])
        wires[1].sendall(chat(served.port)[:-5])
        wires[2].sendall(b"no HTTP\r\n\r\n")
        until(lambda: served.connections == 3)
    for wire in wires:
        wire.close()
    assert served.said == []
