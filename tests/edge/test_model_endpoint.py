"""The endpoint that serves a GGUF: the client's own engine is the judge of what it writes."""

import json
import socket
import time
from http.client import HTTPConnection

import pytest
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.errors import UsageError
from sr_edge.local import LlamaLocal
from sr_edge.passport import demo_paths
from sr_edge.remote.endpoint import Endpoint
from sr_edge.roles import Message
from sr_edge.suites.demo import problems
from sr_edge.testing.batch_writer import BatchWriter, Wish
from sr_edge.testing.model_endpoint import ModelEndpoint

QUESTIONS = [problem.question for problem in problems(7, 12)]


@pytest.fixture(scope="module")
def small():
    with BatchWriter(demo_paths().small) as writer:
        yield writer


@pytest.fixture(scope="module")
def local():
    with LlamaLocal.open(demo_paths().small, temperature=0.0) as model:
        yield model


def prompt_of(question):
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n"


def written(writer, prompts, **wish):
    texts, last = [""] * len(prompts), {}
    for step in writer.write(prompts, Wish(**wish)):
        for one in step:
            texts[one.index] += one.text
            last[one.index] = one
    return texts, [last[n] for n in range(len(prompts))]


def greedy(local, question, n):
    """What the client's engine writes, control tokens spelled out."""
    local.rewind(0)
    local.feed(local.render([Message("user", question)]).ids)
    text = b""
    for _ in range(n):
        id = local.sample().id
        if local.is_end(id):
            break
        spelled = {local.markers.open_ids[0]: b"<bigmodel>", local.markers.close_ids[0]: b"</bigmodel>"}
        text += spelled.get(id, local.piece(id))
    return text.decode()


def test_many_texts_at_once_are_written_as_each_alone(small, local):
    prompts = [prompt_of(question) for question in QUESTIONS]
    together, last = written(small, prompts, max_tokens=24, skip_special_tokens=False)
    assert together == [greedy(local, question, 24) for question in QUESTIONS]
    assert {one.tokens for one in last if one.finish == "length"} == {24}


def test_prefixes_of_one_text_are_computed_once(small, local):
    text = prompt_of(QUESTIONS[0]) + greedy(local, QUESTIONS[0], 40)
    ids = small.llama.vocabulary.scaffold(text)
    pieces = [small.llama.vocabulary.piece(id).decode() for id in ids[-32:]]
    start = text[: len(text) - len("".join(pieces))]
    prefixes = [start + "".join(pieces[:n]) for n in range(1, 33)]
    written(small, [prompt_of(QUESTIONS[0])], max_tokens=1)
    computed, batches = small.computed, small.batches
    _, last = written(small, prefixes, max_tokens=8)
    steps = sum(one.tokens for one in last)
    assert small.computed - computed <= 40 + steps, "the trunk, and one token of each text a step"
    assert small.batches - batches <= 1 + 8
    assert small.batches - batches >= 8


def test_a_second_request_reads_only_what_is_new(small):
    question = prompt_of(QUESTIONS[1])
    (first,), _ = written(small, [question], max_tokens=10, skip_special_tokens=False)
    computed = small.computed
    written(small, [question + first], max_tokens=5)
    assert small.computed - computed <= 5 + 2


def test_a_stop_string_ends_the_text_and_half_of_one_is_never_shown(small, local):
    whole = greedy(local, QUESTIONS[2], 60)
    stop = whole[20:28]
    (text,), (last,) = written(small, [prompt_of(QUESTIONS[2])], max_tokens=60, stop=(stop,))
    assert text == whole[: whole.index(stop)]
    assert (last.finish, last.stop_reason) == ("stop", stop)
    wish = {"max_tokens": 60, "stop": (stop,), "include_stop_str_in_output": True}
    (text,), _ = written(small, [prompt_of(QUESTIONS[2])], **wish)
    assert text == whole[: whole.index(stop)] + stop


def test_more_texts_than_the_context_has_room_for_take_turns(small, local):
    prompts = [prompt_of(question) for question in QUESTIONS] * 8
    together, _ = written(small, prompts, max_tokens=12, skip_special_tokens=False)
    assert together == [greedy(local, question, 12) for question in QUESTIONS] * 8


def test_a_prompt_that_does_not_fit_is_refused_and_the_next_one_served(small):
    with pytest.raises(UsageError, match="ask for less"):
        written(small, [prompt_of(QUESTIONS[0])], max_tokens=5000)
    assert written(small, [prompt_of(QUESTIONS[0])], max_tokens=3)[1][0].tokens == 3


def test_temperature_with_a_seed_is_repeatable_and_not_greedy(small, local):
    wish = {"max_tokens": 30, "temperature": 9.0, "seed": 3}
    one, _ = written(small, [prompt_of(QUESTIONS[0])], **wish)
    two, _ = written(small, [prompt_of(QUESTIONS[0])], **wish)
    assert one == two
    assert one != [greedy(local, QUESTIONS[0], 30)]


# --- over HTTP ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    with ModelEndpoint(demo_paths().small) as endpoint:
        yield endpoint


def post(server, path, body):
    client = HTTPConnection(server.url.removeprefix("http://"))
    client.request("POST", path, body if isinstance(body, str) else json.dumps(body))
    response = client.getresponse()
    data = response.read().decode()
    client.close()
    return response.status, data


def test_the_clients_endpoint_gets_what_the_model_writes_and_keeps_its_connection(server, local):
    with Endpoint(server.url, prompt=local.render, temperature=0.0) as remote:
        for question in QUESTIONS[:3]:
            stream = remote.stream([Message("user", question)], "", 20)
            text = ""
            while (piece := stream.read(5.0)) is not None:
                text += piece
            expected = greedy(local, question, 20)
            assert text == expected.replace("<bigmodel>", "").replace("</bigmodel>", "")
            assert stream.outcome.completion_tokens == 20 or stream.outcome.end == "stop"
        assert remote.capabilities is None, "raw completions need no survey"


def test_chat_renders_the_template_and_continues_an_answer(server, local):
    turns = [{"role": "user", "content": QUESTIONS[0]}]
    whole = greedy(local, QUESTIONS[0], 20)
    body = {"messages": turns, "max_tokens": 20, "temperature": 0, "skip_special_tokens": False}
    reply = json.loads(post(server, "/v1/chat/completions", body)[1])
    assert reply["choices"][0]["message"]["content"] == whole
    line, rest = whole.split("\n", 1)
    begun = {"role": "assistant", "content": f"<think>\n{line}\n"}
    reply = json.loads(post(server, "/v1/chat/completions", body | {"messages": [*turns, begun]})[1])
    assert reply["choices"][0]["message"]["content"].startswith(rest)
    assert reply["usage"]["completion_tokens"] == 20


def test_chat_streams_deltas_and_ends_with_done(server, local):
    body = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": 9, "temperature": 0}
    status, data = post(server, "/v1/chat/completions", body | {"stream": True, "skip_special_tokens": False})
    *events, done = [line.removeprefix("data: ") for line in data.split("\n\n") if line]
    choices = [json.loads(event)["choices"][0] for event in events]
    assert (status, done) == (200, "[DONE]")
    assert "".join(choice["delta"]["content"] for choice in choices) == greedy(local, QUESTIONS[0], 9)
    assert [choice["finish_reason"] for choice in choices][-1] == "length"


def test_several_prompts_come_back_in_order_with_their_tokens(server, local):
    prompts = [prompt_of(question) for question in QUESTIONS[:4]]
    body = {"prompt": prompts, "max_tokens": 6, "temperature": 0, "logprobs": 1, "skip_special_tokens": False}
    choices = json.loads(post(server, "/v1/completions", body)[1])["choices"]
    assert [choice["text"] for choice in choices] == [greedy(local, each, 6) for each in QUESTIONS[:4]]
    assert all("".join(choice["logprobs"]["tokens"]) == choice["text"] for choice in choices)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", "{", 400),
        ("/v1/completions", {"prompt": []}, 400),
        ("/v1/completions", {"prompt": "x", "max_tokens": 100000}, 400),
        ("/v1/completions", {"prompt": "x", "temperature": -1}, 400),
        ("/v1/chat/completions", {"messages": [{"role": "cook", "content": "x"}]}, 400),
        ("/v1/embeddings", {"input": "x"}, 404),
    ],
)
def test_what_cannot_be_meant_is_an_error_page(server, path, body, status):
    got, data = post(server, path, body)
    assert got == status
    assert json.loads(data)["error"]["message"]


def test_a_client_that_hangs_up_stops_the_model(tmp_path):
    path = write_tiny_gguf(tmp_path / "tiny.gguf", context_length=4096)
    with ModelEndpoint(path, ms_per_token=5) as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps({"prompt": "how?", "max_tokens": 4000, "stream": True, "temperature": 0})
        with socket.create_connection((host, int(port))) as client:
            head = f"POST /v1/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall((head + body).encode())
            client.recv(100)
        until = time.monotonic() + 20
        while not server.served and time.monotonic() < until:
            time.sleep(0.005)
        (served,) = server.served
        assert served.was_cut
        assert 0 < served.completion_tokens < 4000


def test_each_step_waits_for_its_time(tmp_path):
    now = [0.0]

    def clock():
        now[0] += 0.001
        return now[0]

    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with ModelEndpoint(path, ms_per_token=20, clock=clock) as server:
        post(server, "/v1/completions", {"prompt": ["how?", "so?"], "max_tokens": 10, "temperature": 0})
        (served,) = server.served
        steps = max(1, served.completion_tokens // 2)
    assert now[0] >= 0.02 * steps
