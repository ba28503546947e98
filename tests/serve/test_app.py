"""What a client gets for a request that was let in: whole or as it comes, and what when things go wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import threading

import pytest
from tests.serve.scripted_desk import ENDLESS, SPAN, ScriptedDesk, slowly
from tests.serve.serving import chat, connect, exchange, read, request, serving, until

from sr_edge.errors import ContextFullError, GenerationError, UsageError
from sr_edge.serve.app import LONG_BODY_BYTES, Answers, Bounds, Hearing, Order
from sr_edge.serve.jobs import Busy
from sr_edge.serve.metrics import Metrics
from sr_edge.serve.requests import BadRequest
from sr_edge.testing import END

TEXT = f"Hello {SPAN} there."


@pytest.fixture(scope="module")
def served():
    with serving(ScriptedDesk()) as served:
        yield served


def completion(port: int, **more: object) -> bytes:
    body = json.dumps({"model": "scripted-small", **more}).encode()
    return request(port, "/v1/completions", method="POST", body=body)


def chunks(body: bytes) -> list[dict]:
    """Of a stream that came to its end."""
    lines = [line for line in body.decode().split("\n\n") if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def text_of(found: list[dict]) -> str:
    return "".join(choice["delta"].get("content", "") for chunk in found for choice in chunk["choices"])


def test_an_answer_comes_whole(served):
    got = exchange(served.port, chat(served.port))
    assert (got.status, got.headers["content-type"]) == (200, "application/json")
    assert got.json["choices"][0]["message"]["content"] == TEXT
    assert got.json["usage"]["sr_edge"]["spans"] == 1


def test_an_answer_comes_as_it_is_written(served):
    got = exchange(served.port, chat(served.port, stream=True, stream_options={"include_usage": True}))
    assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = chunks(got.body)
    assert text_of(found) == TEXT
    assert found[-1]["usage"]["sr_edge"]["remote_tokens"] == len(SPAN)
    assert {chunk["sr_edge"]["origin"] for chunk in found[:-1]} == {"local", "remote"}


def test_several_prompts_are_several_answers(served):
    got = exchange(served.port, completion(served.port, prompt=["One.", "Two.", "Three."]))
    assert [choice["index"] for choice in got.json["choices"]] == [0, 1, 2]
    assert {choice["text"] for choice in got.json["choices"]} == {TEXT}
    streamed = chunks(
        exchange(served.port, completion(served.port, prompt=["One.", "Two."], stream=True)).body
    )
    for n in (0, 1):
        texts = [c["text"] for chunk in streamed for c in chunk["choices"] if c["index"] == n]
        assert "".join(texts) == TEXT


def test_several_choices_come_whole_or_side_by_side(served):
    got = exchange(served.port, chat(served.port, n=3, seed=5))
    assert [choice["index"] for choice in got.json["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in got.json["choices"]} == {TEXT}
    assert [job.sampling.seed for job in served.desk.jobs[-3:]] == [5, 6, 7]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *streamed, last = chunks(exchange(served.port, chat(served.port, n=3, **options)).body)
    for n in range(3):
        assert text_of([chunk for chunk in streamed if chunk["choices"][0]["index"] == n]) == TEXT
    for usage in (got.json["usage"], last["usage"]):
        alone = exchange(served.port, chat(served.port)).json["usage"]
        assert usage["prompt_tokens"] == alone["prompt_tokens"]
        assert usage["completion_tokens"] == 3 * alone["completion_tokens"]


def test_the_desk_is_told_who_asks_and_for_what(served):
    exchange(served.port, chat(served.port, headers={"User-Agent": "curl/8"}))
    assert served.desk.jobs[-1].client == "curl/8"
    exchange(served.port, chat(served.port, user="ida", model="scripted-small:local", max_tokens=7))
    job = served.desk.jobs[-1]
    assert (job.client, job.policy, job.max_tokens) == ("ida", "local", 7)


def test_a_stop_ends_the_answer_on_the_desk_too():
    turn = threading.Semaphore(0)
    desk = ScriptedDesk(ENDLESS, gate=lambda: turn.acquire(timeout=10))
    with serving(desk) as served, connect(served.port) as wire:
        wire.sendall(chat(served.port, stop="a n"))
        turn.release(5)  # enough for `na na`
        until(lambda: desk.tickets and desk.tickets[0].is_cancelled.is_set())
        turn.release(1)
        got = read(wire)
    assert got.json["choices"][0]["message"]["content"] == "n"
    assert got.json["choices"][0]["finish_reason"] == "stop"
    assert desk.tickets[0].steps_after_cancel <= 1


def received(wire: socket.socket, ending: bytes) -> bytes:
    got = b""
    while ending not in got:
        piece = wire.recv(65536)
        assert piece, got
        got += piece
    return got


def test_each_chunk_leaves_at_once():
    """The next token is not even begun before the last one's chunk has been read by the client."""
    turn = threading.Semaphore(0)
    desk = ScriptedDesk([[*b"abc", END]], gate=lambda: turn.acquire(timeout=10))
    with serving(desk) as served, connect(served.port) as wire:
        wire.sendall(chat(served.port, stream=True))
        for letter in "abc":
            turn.release()
            received(wire, f'"content":"{letter}"'.encode())
        turn.release()
        received(wire, b"[DONE]")


def test_the_head_waits_for_the_first_token():
    """So that whatever goes wrong before has its status."""
    turn = threading.Semaphore(0)
    desk = ScriptedDesk([[*b"a", END]], gate=lambda: turn.acquire(timeout=10))
    with serving(desk) as served, connect(served.port, timeout=0.2) as wire:
        wire.sendall(chat(served.port, stream=True))
        until(lambda: desk.tickets != [])
        with pytest.raises(TimeoutError):
            wire.recv(1)
        turn.release(10)
        wire.settimeout(10)
        assert read(wire).status == 200


def test_a_long_silence_is_broken_by_comments():
    turn = threading.Semaphore(0)
    desk = ScriptedDesk([[*b"ab", END]], gate=lambda: turn.acquire(timeout=10))
    with serving(desk, bounds=Bounds(quiet_seconds=0.03)) as served, connect(served.port) as wire:
        wire.sendall(chat(served.port, stream=True))
        turn.release()
        received(wire, b'"content":"a"')
        received(wire, b"\n: still here\n\n")
        received(wire, b"\n: still here\n\n")
        turn.release(2)
        rest = received(wire, b"[DONE]")
    assert b'"content":"b"' in rest


def test_a_token_that_is_held_back_is_no_silence():
    """Nor is the one without a text that ends an answer: a comment would say that nothing was heard."""
    turn = threading.Semaphore(0)
    desk = ScriptedDesk([[*b"abcd", END]], gate=lambda: turn.acquire(timeout=10))
    with serving(desk) as served, connect(served.port) as wire:
        wire.sendall(chat(served.port, stream=True, stop="bcx"))
        got = b""
        for said in (b'"content":"a"', None, None, b'"content":"bcd"', b"[DONE]"):  # None: for `b` and `c`
            turn.release()
            if said is None:
                tokens = desk.tickets[0].tokens
                until(lambda tokens=tokens: desk.tickets[0].tokens > tokens)
            else:
                got += received(wire, said)
    assert b": still here" not in got


@pytest.mark.parametrize(("size", "is_beside"), [(LONG_BODY_BYTES, False), (LONG_BODY_BYTES + 1, True)])
def test_a_long_body_is_read_beside_the_loop(size, is_beside):
    threads = []

    def order(body: bytes, agent: str) -> Order:
        threads.append(threading.current_thread())
        raise BadRequest("that was all")

    async def ask() -> list[dict]:
        sent = []

        async def receive() -> dict:
            return {"type": "http.request", "body": b"x" * size}

        async def send(message: dict) -> None:
            sent.append(message)

        desk = ScriptedDesk()
        await Answers(desk, order, Metrics(desk.figures), quiet_seconds=60)({"headers": []}, receive, send)
        threads.append(threading.current_thread())
        return sent

    head, body = asyncio.run(ask())
    assert head["status"] == 400
    assert b"that was all" in body["body"]
    assert (threads[0] is not threads[1]) == is_beside


def test_the_loop_looks_at_nothing_twice():
    """A thread may speak while the loop takes what it said before: each word is taken once, in order, and
    the loop is not woken for nothing, which a client would see as a silence."""

    async def listen() -> list[list[int]]:
        hearing = Hearing(asyncio.get_running_loop(), quiet_seconds=60)
        ear = hearing.ear(0)
        speaker = threading.Thread(target=lambda: [ear(n) for n in range(5000)])
        speaker.start()
        batches: list[list[int]] = []
        while sum(map(len, batches)) < 5000:
            batches.append([heard for _, heard in await hearing.next()])
        speaker.join()
        hearing.close()
        return batches

    batches = asyncio.run(listen())
    assert [] not in batches
    assert [heard for batch in batches for heard in batch] == list(range(5000))


# --- what goes wrong ----------------------------------------------------------------------------------

ERRORS = [
    (Busy("too many wait", retry_after=7), 429, "rate_limit_exceeded"),
    (ContextFullError("too long: ask something shorter"), 400, "context_length_exceeded"),
    (UsageError("that cannot be meant"), 400, "invalid_value"),
    (GenerationError("the model broke"), 500, None),
]


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("error", "status", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_answer_that_fails_before_it_begins_has_its_status(error, status, code, is_stream):
    with serving(ScriptedDesk(error=error)) as served:
        got = exchange(served.port, chat(served.port, stream=is_stream))
    assert (got.status, got.code) == (status, code)
    assert got.headers.get("retry-after") == ("7" if status == 429 else None)
    assert got.json["error"]["message"] == str(error)


def test_where_the_desk_is_full_it_says_when_to_come_again():
    turn = threading.Event()
    with serving(ScriptedDesk(gate=turn.wait, most=1)) as served, connect(served.port) as wire:
        wire.sendall(chat(served.port))
        until(lambda: served.desk.tickets != [])
        got = exchange(served.port, chat(served.port))
        assert (got.status, got.headers["retry-after"]) == (429, "7")
        turn.set()
        assert read(wire).status == 200
        until(lambda: served.desk.running == [])
        assert exchange(served.port, chat(served.port)).status == 200


def test_an_answer_that_finds_no_place_waits_for_one_of_its_own_request():
    desk = ScriptedDesk(gate=slowly(), most=1)
    with serving(desk) as served:
        got = exchange(served.port, completion(served.port, prompt=["One.", "Two."], n=2))
    assert [choice["text"] for choice in got.json["choices"]] == [TEXT] * 4
    assert [job.prompt for job in desk.jobs] == ["One.", "One.", "Two.", "Two."]


class OnePlace(ScriptedDesk):
    """It is gone once it was taken."""

    def submit(self, job, hear):
        if self.tickets:
            raise Busy("others were faster", retry_after=7)
        return super().submit(job, hear)


def test_of_several_answers_there_is_none_where_one_finds_no_place_at_all():
    with serving(OnePlace()) as served:
        got = exchange(served.port, chat(served.port, n=2))
    assert (got.status, got.headers["retry-after"]) == (429, "7")
    with serving(OnePlace()) as served:
        body = exchange(served.port, chat(served.port, n=2, stream=True)).body
    error = json.loads(body.rstrip().rpartition(b"data: ")[2])["error"]
    assert error["code"] == "rate_limit_exceeded"
    assert b"[DONE]" not in body


def test_of_many_answers_no_more_are_under_way_than_there_are_lanes():
    """And who leaves has none of the others written."""
    turn = threading.Event()
    desk = ScriptedDesk(ENDLESS, gate=lambda: turn.wait(10))
    with serving(desk) as served, connect(served.port) as wire:
        wire.sendall(chat(served.port, n=16))
        until(lambda: len(desk.tickets) == desk.lanes)
        wire.close()
        until(lambda: all(ticket.is_cancelled.is_set() for ticket in desk.tickets))
        turn.set()
        until(lambda: desk.running == [])
        assert exchange(served.port, request(served.port)).status == 200
    assert len(desk.tickets) == desk.lanes


class Breaking(ScriptedDesk):
    """Its model fails after a few tokens."""

    def __init__(self) -> None:
        self.breaks = threading.Event()
        self._left = 3
        super().__init__([[*b"abcdefgh", END]], gate=self._count)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            assert self.breaks.wait(10)
            raise GenerationError("the model broke")


def test_an_answer_that_fails_halfway_ends_its_stream_with_the_error():
    with serving(Breaking()) as served, connect(served.port) as wire:
        wire.sendall(chat(served.port, stream=True))
        received(wire, b'"content":"c"')
        served.desk.breaks.set()
        end = received(wire, b"0\r\n\r\n").decode()
    assert "[DONE]" not in end
    error = json.loads(end[end.index("data: {") :].splitlines()[0].removeprefix("data: "))["error"]
    assert error == {"message": "the model broke", "type": "server_error", "param": None, "code": None}


def test_an_answer_that_fails_halfway_is_no_answer_where_it_was_to_come_whole():
    with serving(Breaking()) as served:
        served.desk.breaks.set()
        got = exchange(served.port, chat(served.port))
    assert (got.status, got.json["error"]["message"]) == (500, "the model broke")


class Bug(ScriptedDesk):
    def submit(self, job, hear):
        raise RuntimeError("secret path /home/ida")


def test_a_bug_is_one_line_for_us_and_nothing_for_the_client(capfd):
    with serving(Bug()) as served:
        got = exchange(served.port, chat(served.port))
        assert (got.status, got.code) == (500, "server_error")
        assert b"secret" not in got.body
        assert exchange(served.port, request(served.port)).status == 200
    assert len(served.said) == 1
    assert "RuntimeError" in served.said[0]
    assert capfd.readouterr() == ("", "")
