"""A plain question to a chat model, against a server that does on bare sockets what servers do."""

import threading

import pytest
from tests.raw_server import DONE, FIN, HANG, RST, RawServer, chunked, delta, head, page, usage

from sr_edge.errors import UsageError
from sr_edge.remote.chatting import ChatEndpoint, CompletionError
from sr_edge.remote.egress import Door, OfflineError
from sr_edge.roles import Message
from sr_edge.testing.fault_endpoint import closed_port

QUESTION = [Message("system", "Judge."), Message("user", "how hard?")]
SCHEMA = {"type": "object", "properties": {"steps": {"type": "array"}}, "required": ["steps"]}
KEY = "sk-canary-0123456789"


def chat(server, **options):
    return ChatEndpoint(server.url, **{"model": "judge", "timeout": 5.0, "connect_timeout": 2.0, **options})


def ask(endpoint, **options):
    options = {"max_tokens": 4096, "temperature": 0.0, "schema": SCHEMA, **options}
    return endpoint.complete(QUESTION, **options)


def streamed(*pieces, finish="stop"):
    return chunked(*(delta(content=piece) for piece in pieces), delta(finish=finish), usage(11, 7), DONE)


def whole(text, finish="stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    counts = {"prompt_tokens": 3, "completion_tokens": 2}
    return page({"choices": [choice], "usage": counts, "model": "judge-2"})


def refused(message, status=400):
    return page({"error": {"message": message}}, status)


def test_a_stream_and_a_whole_reply_are_read_alike():
    with RawServer(streamed("[1, ", "2]"), whole("[1, 2]")) as server, chat(server, api_key=KEY) as endpoint:
        first, second = ask(endpoint), ask(endpoint)
    assert (first.text, first.prompt_tokens, first.completion_tokens, first.is_cut) == (
        "[1, 2]",
        11,
        7,
        False,
    )
    assert (second.text, second.prompt_tokens, second.model) == ("[1, 2]", 3, "judge-2")
    body = server.requests[0].body
    assert server.requests[0].path == "/v1/chat/completions"
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge", 0.0, 4096)
    assert body["messages"] == [{"role": m.role, "content": m.content} for m in QUESTION]
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA


def test_connections_are_kept_one_for_each_thread():
    with RawServer(then=streamed("ok")) as server, chat(server) as endpoint:
        for _ in range(3):
            ask(endpoint)
        assert server.connections == 1
        threads = [threading.Thread(target=ask, args=(endpoint,), name="sr-edge t") for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.requests) == 7


def test_the_first_model_is_asked_where_none_is_named():
    pages = {"/v1/models": page({"data": [{"id": "first"}, {"id": "second"}]})}
    with RawServer(then=streamed("ok"), pages=pages) as server, chat(server, model=None) as endpoint:
        ask(endpoint)
        ask(endpoint)
    assert [request.method for request in server.requests] == ["GET", "POST", "POST"]
    assert server.requests[-1].body["model"] == "first"


def test_a_server_without_schemas_is_asked_for_json_then_for_nothing_and_that_is_remembered():
    no_schema = refused("This response_format type is unavailable now")
    no_json = refused("response_format.type: unsupported")
    scripts = [no_schema, no_json, streamed("[]"), streamed("[]")]
    with RawServer(*scripts) as server, chat(server) as endpoint:
        ask(endpoint)
        ask(endpoint)
    formats = [request.body.get("response_format", {}).get("type") for request in server.requests]
    assert formats == ["json_schema", "json_object", None, None]


def test_what_was_refused_for_another_reason_costs_no_schema_later():
    scripts = [refused("bad"), refused("bad"), refused("bad"), streamed("[]")]
    with RawServer(*scripts) as server, chat(server) as endpoint:
        with pytest.raises(CompletionError, match="bad") as caught:
            ask(endpoint)
        ask(endpoint)
    assert not caught.value.is_passing
    assert server.requests[-1].body["response_format"]["type"] == "json_schema"


def test_a_new_name_of_the_limit_and_a_refused_temperature_are_learned():
    renamed = refused("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    fixed = {"error": {"message": "Unsupported value: 'temperature'", "param": "temperature"}}
    with (
        RawServer(renamed, page(fixed, 400), streamed("a"), streamed("b")) as server,
        chat(server) as endpoint,
    ):
        assert (ask(endpoint).text, ask(endpoint).text) == ("a", "b")
    last = server.requests[-1].body
    assert "max_tokens" not in last
    assert "temperature" not in last
    assert last["max_completion_tokens"] > 4096  # its thoughts count too
    assert last["response_format"]["type"] == "json_schema"


def test_a_reply_may_be_shorter_where_the_context_is_small():
    too_long = refused("This model's maximum context length is 4096 tokens")
    with RawServer(too_long, too_long, streamed("a")) as server, chat(server) as endpoint:
        ask(endpoint)
    assert [request.body["max_tokens"] for request in server.requests] == [4096, 2048, 1024]


@pytest.mark.parametrize(
    ("script", "is_passing", "retry_after"),
    [
        (page({"error": {"message": "slow down"}}, 429, Retry_After=3), True, 3.0),
        (page({"error": {"message": "insufficient_quota"}}, 429), False, None),
        (page({"error": {"message": "oops"}}, 503), True, None),
        (page({"error": {"message": "no such key"}}, 401), False, None),
        (page("<html>", 404, "text/html"), False, None),
        ([RST], True, None),
        ([head(), delta(content="[1"), FIN], True, None),
        ([*chunked(delta(content="[1"), DONE)[:-1], FIN], None, None),
        ([head(kind="text/html"), FIN], True, None),
    ],
)
def test_a_failure_says_whether_to_ask_again(script, is_passing, retry_after):
    with RawServer(script) as server, chat(server, api_key=KEY) as endpoint:
        if is_passing is None:  # all was said, and only then it was cut
            assert ask(endpoint).text == "[1"
            return
        with pytest.raises(CompletionError) as caught:
            ask(endpoint)
    assert (caught.value.is_passing, caught.value.retry_after) == (is_passing, retry_after)
    assert KEY not in str(caught.value)


def test_a_server_that_is_not_there_may_come_back():
    endpoint = ChatEndpoint(f"http://127.0.0.1:{closed_port()}", model="judge")
    with endpoint, pytest.raises(CompletionError, match="connection refused") as caught:
        ask(endpoint)
    assert caught.value.is_passing


def test_a_silent_server_is_given_up():
    with (
        RawServer([HANG]) as server,
        chat(server, timeout=0.2) as endpoint,
        pytest.raises(CompletionError, match="fell silent") as caught,
    ):
        ask(endpoint)
    assert caught.value.is_passing


def test_a_reply_without_room_is_cut():
    with RawServer(streamed("[1, 2", finish="length")) as server, chat(server) as endpoint:
        assert ask(endpoint).is_cut


def test_reasoning_in_a_field_of_its_own_is_no_reply():
    thought = chunked(delta(reasoning_content="hm, [9]"), delta(content="[1]"), delta(finish="stop"), DONE)
    with RawServer(thought) as server, chat(server) as endpoint:
        assert ask(endpoint).text == "[1]"


def test_offline_nothing_is_sent():
    with (
        RawServer() as server,
        chat(server, door=Door(offline=True)) as endpoint,
        pytest.raises(OfflineError),
    ):
        ask(endpoint)
    assert server.connections == 0


def test_closing_ends_what_is_being_asked():
    with RawServer([HANG]) as server:
        endpoint = chat(server, timeout=60.0)
        caught = []

        def run():
            try:
                ask(endpoint)
            except CompletionError as error:
                caught.append(error)

        thread = threading.Thread(target=run, name="sr-edge t")
        thread.start()
        while not server.requests:
            threading.Event().wait(0.005)
        endpoint.close()
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert "broken off" in str(caught[0])
    assert not caught[0].is_passing


def test_plain_http_does_not_leave_this_machine():
    with pytest.raises(UsageError, match="https"):
        ChatEndpoint("http://203.0.113.5/v1")
