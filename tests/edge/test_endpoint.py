"""A large model over HTTP, against a server that does on bare sockets what servers do."""

import json
import logging
import queue
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from dataclasses import replace

import pytest
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

from sr_edge.errors import RemoteError, UsageError
from sr_edge.remote.deadlines import SleepWatch
from sr_edge.remote.dialects import Capabilities, Quirks
from sr_edge.remote.endpoint import Deadlines, Endpoint
from sr_edge.remote.overflow import without_oldest_half
from sr_edge.remote.reply import plain_line
from sr_edge.roles import Message, Outcome, Prompt
from sr_edge.testing.fault_endpoint import HALF_CLOSE, Slice

QUESTION = [Message("system", "Be brief."), Message("user", "how?")]
ANSWER = "First, add the two numbers: "
KEY = "sk-canary-0123456789"
SOON = Deadlines(connect=2.0, first_byte=2.0, first_content=2.0, idle=2.0, total=5.0, linger=0.2)
"""Far more than loopback needs, for spans that end by themselves."""
NOW = Deadlines(connect=0.1, first_byte=0.2, first_content=0.2)
"""For servers that never say anything."""


def prompt(messages):
    return Prompt((), "".join(f"<{m.role}>{m.content}" for m in messages) + "<assistant>", "")


def thinking_prompt(messages):
    return Prompt((), prompt(messages).text + "<think>\n", "<think>\n")


def endpoint(server, **options):
    options = {"prompt": prompt, "model": "big", "deadlines": SOON, "jitter": lambda: 0.0, **options}
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
        {"role": "assistant", "content": "<think>\n" + ANSWER.rstrip()},
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


JUNK = Send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n")


def test_a_connection_with_junk_right_after_the_reply_is_not_used_again():
    *reply, last = chunked(text("a", "stop"), DONE)
    scripts = [*reply, Send(last.data + JUNK.data)], chunked(text("b", "stop"), DONE)
    with RawServer(*scripts) as server, endpoint(server) as remote:
        assert ask(remote)[0] == "a"
        assert server.client_hung_up.wait(2), "it was not even kept"
        assert ask(remote) == ("b", Outcome("stop"))


def test_a_kept_connection_on_which_junk_has_come_is_not_used_again():
    later, reply = threading.Event(), chunked(text("a", "stop"), DONE)
    scripts = [*reply, Wait(later), JUNK], chunked(text("b", "stop"), DONE)
    with RawServer(*scripts) as server, endpoint(server) as remote:
        assert ask(remote)[0] == "a"
        wait_until(lambda: remote._server._kept is not None)
        later.set()
        wait_until(lambda: remote._server._kept._wire.has_more())
        assert ask(remote) == ("b", Outcome("stop"))
        assert [request.connection for request in server.requests] == [1, 2]


def test_a_server_that_closes_its_half_is_still_read():
    with RawServer([*stream("x"), HALF_CLOSE, HANG]) as server, endpoint(server) as remote:
        assert ask(remote) == ("x", Outcome("stop"))


# --- dialects -----------------------------------------------------------------------------------------------


CHAT_REPLY = [head(), delta(role="assistant", content=None), delta(content="ok"), delta("stop"), DONE, FIN]


def chat_server(continues=lambda body: body.get("continue_final_message") is True, completions=404):
    """A script for every request: no raw completions, and chat that continues if it is asked rightly."""

    def reply(request):
        if request.path == "/v1/models":
            return page({"data": [{"id": "big"}]})
        if request.path == "/v1/completions":
            return page({"detail": "Not Found"}, completions)
        last = request.body["messages"][-1]
        if last["role"] == "assistant":
            is_trial = last["content"].endswith("a b c d e f")
            goes_on = ("g h i" if is_trial else "so 3") if continues(request.body) else "a b c: of course!"
        else:
            goes_on = "g h i" if "a b c d e f" in last["content"] else "so 3"
        return [*chunked(delta(content=" " + goes_on), delta("stop"), usage(9, 3), DONE)]

    return reply


def says_something_of_the_user(request):
    return any(word.encode() in request.data for word in ("how?", "Be brief", ANSWER.strip()))


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_without_completions_is_surveyed_without_a_word_of_the_user(status):
    learned = []
    with (
        RawServer(then=chat_server(completions=status)) as server,
        endpoint(server, learned=learned.append) as remote,
    ):
        assert ask(remote)[0] == "so 3"
        _, *trials, chat = server.posts
        assert [request.path for request in server.posts] == ["/v1/completions", *(1 + len(trials)) * [CHAT]]
        assert trials
        assert not any(says_something_of_the_user(trial) for trial in trials)
        assert chat.body["continue_final_message"] is True
        assert chat.body["messages"][-1]["content"] == ANSWER.strip()
        assert {request.connection for request in server.posts} == {1}
        *partly, found = learned
        assert all(known.text is None for known in partly), "kept as it comes"
        assert found.dialect(False).flags == (
            ("continue_final_message", True),
            ("add_generation_prompt", False),
        )
        assert remote.capabilities == found
        before = len(server.posts)
        assert ask(remote)[0] == "so 3"
        assert len(server.posts) == before + 1, "what was found out is known"


CHAT = "/v1/chat/completions"


def test_a_server_that_says_chat_only_is_surveyed_too():
    refusal = page({"error": {"message": "This is a chat model, use v1/chat/completions"}}, 400)
    with RawServer(refusal, then=chat_server()) as server, endpoint(server) as remote:
        assert ask(remote)[0] == "so 3"


def test_a_server_that_continues_nothing_is_asked_for_the_continuation():
    with RawServer(then=chat_server(lambda body: False)) as server, endpoint(server) as remote:
        assert ask(remote)[0] == "so 3"
        assert server.posts[-1].body["messages"][-1]["role"] == "user"
        assert remote.capabilities.text == "instruct"


def test_what_is_known_needs_no_survey():
    found = Capabilities(None, "vllm-plain")
    with RawServer(then=chat_server()) as server, endpoint(server, capabilities=found) as remote:
        assert ask(remote)[0] == "so 3"
        assert len(server.posts) == 1


def test_what_is_known_grows_by_what_is_refused():
    found, learned = Capabilities(None, "vllm-plain"), []
    refusal = page({"error": "stream_options is not supported"}, 400)
    with (
        RawServer(refusal, then=chat_server()) as server,
        endpoint(server, capabilities=found, learned=learned.append) as remote,
    ):
        assert ask(remote)[0] == "so 3"
        assert learned == [replace(found, quirks=Quirks(frozenset({"stream_options"})))]


def test_what_was_known_and_is_refused_now_is_found_out_again():
    found, learned = Capabilities(None, "prefix"), []
    refusal = page({"error": {"message": "Expected last role User"}}, 400)
    with (
        RawServer(refusal, then=chat_server()) as server,
        endpoint(server, capabilities=found, learned=learned.append) as remote,
    ):
        assert ask(remote)[0] == "so 3"
        assert learned[0].text != "prefix"


def test_a_server_is_surveyed_once_whatever_it_refuses_afterwards():
    well = chat_server()

    def moderated(request):
        refused = request.path == CHAT and says_something_of_the_user(request)
        return page({"error": "not that"}, 400) if refused else well(request)

    with RawServer(then=moderated) as server, endpoint(server) as remote:
        assert ask(remote)[1].fault == "request"
        surveyed = len(server.posts)
        assert ask(remote)[1].fault == "request"
        assert len(server.posts) == surveyed + 1


def test_a_server_that_refuses_everything_is_not_remembered_for_it():
    learned = []
    nothing = page({"error": {"message": "model not found"}}, 404)
    with RawServer(then=nothing) as server, endpoint(server, learned=learned.append) as remote:
        _, outcome = ask(remote)
        assert (outcome.fault, learned) == ("refused", [])
        assert "'big'" in outcome.error
        assert len(server.posts) == 2


@pytest.mark.parametrize("status", [401, 429, 503])
def test_a_server_that_is_not_well_is_not_surveyed(status):
    scripts = [page({}, 404), page("", status), page("", status)]
    with RawServer(*scripts) as server, endpoint(server) as remote:
        assert ask(remote)[1].end == "error"
        assert remote.capabilities is None
        assert len(server.posts) == 2 + (status in (429, 503))


def test_a_page_in_the_way_settles_nothing():
    portal = page("<html>Log in</html>", kind="text/html")
    with RawServer(portal, then=chat_server()) as server, endpoint(server) as remote:
        assert ask(remote)[1].fault == "refused"
        assert ask(remote) == ("so 3", Outcome("stop", prompt_tokens=9, completion_tokens=3))


def test_a_span_that_gives_up_ends_its_survey():
    deadlines = Deadlines(first_content=0.4)
    with (
        RawServer(page({}, 404), [HANG], [HANG]) as server,
        endpoint(server, deadlines=deadlines) as remote,
    ):
        assert ask(remote)[1].end == "stalled"
        assert server.client_hung_up.wait(2)
        assert [says_something_of_the_user(request) for request in server.posts] == [True, False, True]
        assert remote.capabilities.findings == (("reasoning", "silent"),), "the next run tries another"


def slow_server(seconds, **options):
    """As `chat_server`, each of whose replies takes that long."""
    reply = chat_server(**options)
    return lambda r: [*([Sleep(seconds)] if r.path == CHAT else []), *reply(r)]


SLOW = Deadlines(first_content=2.0)


def asked_for_a_turn(request):
    return request.body["messages"][-1]["role"] == "user"


def test_a_slow_server_that_only_chats_can_be_used_in_the_first_run():
    slow = slow_server(0.2, continues=lambda body: False)
    with RawServer(then=slow) as server, endpoint(server, deadlines=SLOW) as remote:
        assert ask(remote)[0] == "so 3"
        assert remote.capabilities.text == "instruct"
        assert len(server.posts) == 5


def test_a_survey_that_is_too_slow_for_a_span_is_broken_off_and_goes_on_in_the_next_run():
    slow, learned = slow_server(0.4, continues=lambda body: body["messages"][-1].get("partial")), []
    with RawServer(then=slow) as server:
        with endpoint(server, deadlines=SLOW, learned=learned.append) as remote:
            began = time.monotonic()
            assert ask(remote)[0] == "so 3"
            assert time.monotonic() - began < 1.9
            *trials, last = server.posts[1:]
            assert asked_for_a_turn(last)
            assert not any(says_something_of_the_user(trial) for trial in trials)
            assert 1 <= len(trials) <= 2
            known = learned[-1]
            assert known.text is None, "how it was asked is not what was found out"
            assert known.findings[0] == ("reasoning", "restarts")
            assert ask(remote)[0] == "so 3"
            assert asked_for_a_turn(server.posts[-1])
            assert len(server.posts) == 3 + len(trials), "it is not tried again in this run"
        bodies = [trial.body for trial in trials]
        for _ in range(10):
            before = len(server.posts)
            with endpoint(server, deadlines=SLOW, learned=learned.append, capabilities=known) as remote:
                assert ask(remote)[0] == "so 3"
                assert remote.capabilities == learned[-1]
            *trials, _ = server.posts[before:]
            assert {request.path for request in server.posts[before:]} == {CHAT}
            assert not any(trial.body in bodies for trial in trials)
            bodies += [trial.body for trial in trials]
            known = Capabilities.from_json(learned[-1].to_json())
            if known.text is not None:
                break
        assert known.text == "partial"


def test_a_trial_that_never_ends_does_not_take_the_spans_time():
    well = chat_server()

    def script(request):
        flag = request.path == CHAT and request.body.get("continue_final_message")
        return [head(), HANG] if flag == "content" else well(request)

    learned = []
    with RawServer(then=script) as server, endpoint(server, deadlines=SLOW, learned=learned.append) as remote:
        assert ask(remote)[0] == "so 3"
        assert learned[-1].findings == (("reasoning", "silent"),)
    with RawServer(then=script) as server, endpoint(server, capabilities=learned[-1]) as remote:
        assert ask(remote)[0] == "so 3"
        assert remote.capabilities.text == "vllm-think"


def test_a_thought_that_is_known_to_be_continued_waits_for_nothing_else():
    known = Capabilities("vllm-think", None, findings=(("vllm-think+think", "continues"),))
    with (
        RawServer(then=chat_server()) as server,
        endpoint(server, capabilities=known, prompt=thinking_prompt) as remote,
    ):
        assert ask(remote)[0] == "so 3"
        assert len(server.posts) == 1


def test_a_preview_where_a_survey_was_broken_off_tells_that_it_goes_on():
    known = Capabilities(None, None, findings=(("reasoning", "restarts"),))
    with Endpoint("https://h", prompt=prompt, model="m", capabilities=known) as remote:
        preview = remote.preview(QUESTION, ANSWER, 12)
    assert preview.url == "https://h/v1/chat/completions"
    assert "without a word of yours" in preview.note


def test_what_was_found_out_never_outdoes_the_api_that_the_user_named():
    known = Capabilities("instruct", "instruct", findings=(("instruct", "continues"),))
    with (
        RawServer(then=chat_server()) as server,
        endpoint(server, api="vllm-plain", capabilities=known) as remote,
    ):
        assert remote.preview(QUESTION, ANSWER, 12).body["continue_final_message"] is True
        assert ask(remote)[0] == "so 3"
        remote.survey()
        assert ask(remote)[0] == "so 3"
        for post in (server.posts[0], server.posts[-1]):
            assert post.body["messages"][-1] == {"role": "assistant", "content": ANSWER.strip()}


PICKY = ("stream_options", "seed", "temperature", "top_p", "max_tokens")


def test_the_users_words_leave_four_times_for_a_span_at_most():
    """A server that refuses one parameter at a time is asked without the next one, but not for ever."""

    def picky(request):
        for name in PICKY:
            if name in request.body:
                hint = "; use max_completion_tokens" if name == "max_tokens" else ""
                return page(
                    {"error": {"message": f"Unsupported parameter: {name}{hint}", "param": name}}, 400
                )
        return [*chunked(text("so 3", "stop"), DONE)]

    with RawServer(then=picky) as server, endpoint(server, api="completions", seed=7) as remote:
        _, outcome = ask(remote)
        assert (len(server.posts), outcome.end, outcome.fault) == (4, "error", "request")
        assert "top_p" in outcome.error
        assert ask(remote)[0] == "so 3", "what was learned counts for the next span"
        assert len(server.posts) == 6


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
def test_a_way_that_a_server_does_not_know_is_no_way_without_its_flags(refusal, status):
    """Left out, they would make it begin a new turn."""
    with (
        RawServer(page({"error": {"message": refusal}}, status)) as server,
        endpoint(server, api="chat") as remote,
    ):
        written, outcome = ask(remote)
    assert (written, outcome.end, outcome.fault) == ("", "error", "refused")
    assert "api = auto finds one" in outcome.error


def test_a_server_that_cannot_tell_usage_is_not_asked_for_it_again():
    refusal = page({"error": "stream_options is not supported"}, 400)
    with RawServer(refusal, stream("a"), stream("b")) as server, endpoint(server) as remote:
        assert [ask(remote)[0], ask(remote)[0]] == ["a", "b"]
        assert ["stream_options" in request.body for request in server.requests] == [True, False, False]


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


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_continues_an_open_thought(field):
    reply = [head(), delta(**{field: "so "}), delta(**{field: "3"}), delta("stop"), DONE, FIN]
    assert span_of(*reply, api="chat", prompt=thinking_prompt) == ("so 3", Outcome("stop"))


def test_the_end_of_the_thought_ends_the_span_by_our_own_doing():
    reply = [head(), delta(reasoning_content="so 3"), delta(content="The answer is 3."), HANG]
    options = {"api": "chat", "prompt": thinking_prompt, "deadlines": replace(SOON, linger=5.0)}
    with RawServer(reply) as server, endpoint(server, **options) as remote:
        assert ask(remote) == ("so 3", Outcome("cap"))
        assert server.client_hung_up.wait(2), "it costs, and nobody reads it"


def test_the_end_of_the_thought_with_a_finish_reason_is_a_stop():
    choice = {"message": {"reasoning": "so 3", "content": "3."}, "finish_reason": "stop"}
    options = {"api": "chat", "prompt": thinking_prompt}
    assert span_of(*page({"choices": [choice]}), **options) == ("so 3", Outcome("stop"))


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


@pytest.mark.parametrize("cut", [0, 1])
@pytest.mark.parametrize("first", [b"", b": ping\n\n", b"\xef\xbb\xbf", b"\r\n\n", b"event: message\n"])
def test_a_stream_that_is_called_json_is_a_stream(first, cut):
    script = [head(kind="application/json"), Slice(cut), Send(first), text("1 + "), text("2", "stop"), DONE]
    assert span_of(*script) == ("1 + 2", Outcome("stop"))


def test_a_stream_that_is_called_json_and_is_cut_is_cut():
    written, outcome = span_of(head(kind="application/json"), text("1 + "), FIN)
    assert (written, outcome.end) == ("1 + ", "error")


def test_the_word_null_is_no_finish_reason():
    assert span_of(head(), text("1 + ", "null"), text("2", "stop"), FIN) == ("1 + 2", Outcome("stop"))
    assert span_of(head(), text("1 + ", "null"), FIN)[1].end == "error"


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
    with Endpoint("https://no.such.host", prompt=prompt, model="big") as remote:
        _, outcome = ask(remote)
    assert outcome.error.startswith("remote unreachable: no address known for no.such.host")


def test_a_name_server_that_hangs_holds_nobody(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: release.wait(20) and [])
    deadlines = Deadlines(connect=0.1, first_byte=5, first_content=5)
    with Endpoint("https://slow.host", prompt=prompt, model="big", deadlines=deadlines) as remote:
        _, outcome = ask(remote)
    assert not release.is_set()
    assert outcome.end == "error"
    assert "no connection to slow.host within" in outcome.error
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "sr-edge span")
    release.set()


ILL, NO = "unreachable", "refused"
FAULTS = {
    "reset before headers": ([RST], "", "connection reset by", ILL),
    "closed before headers": ([FIN], "", "broke off without an answer", ILL),
    "no http": ([Send(b"220 mail.example ESMTP\r\n\r\n"), FIN], "", "does not speak HTTP", ILL),
    "header bomb": ([Send(b"HTTP/1.1 200 OK\r\nX: " + 100_000 * b"x"), HANG], "", "speak HTTP", ILL),
    "reset before content": ([head(), Sleep(0.02), RST], "", "connection reset by", ILL),
    "reset mid-span": (
        [head(), text("so 3"), Sleep(0.02), RST], "so 3", "4 characters: connection reset", ILL,
    ),
    "cut without finish": ([head(), text("so "), FIN], "so ", "cut off after 3 characters", ILL),
    "cut chunk": ([*chunked(text("so "))[:-1], FIN], "so ", "cut off after 3 characters", ILL),
    "chunk size lies": (
        [head(Transfer_Encoding="chunked"), Send(b"5\r\n" + text("so").data)], "", "broke off", ILL,
    ),
    "short body": ([head(Content_Length=500), text("so "), FIN], "so ", "cut off after 3 char", ILL),
    "cut inside an event": ([head(), text("so "), Send(b'data: {"c'), FIN], "so ", "off after 3", ILL),
    "cut inside an echo": ([head(), text(ANSWER[:12]), FIN], "", "without a finish reason", ILL),
    "comments only, then the end": (
        [head(), Send(b": ping\n\n"), FIN], "", "without a finish reason", ILL,
    ),
    "empty body": ([*page("")], "", "holds no text|not JSON", ILL),
    "empty stream": ([head(), FIN], "", "empty reply", ILL),
    "html": (page("<html>Log in</html>", kind="text/html"), "", "text/html.*OpenAI-compatible", NO),
    "html without a type": (
        [Send(b"HTTP/1.1 200 OK\r\n\r\n<html>Log in</html>"), FIN], "", "a page, not with a stream", NO,
    ),
    "1 MiB of html": (page((1 << 20) * "<p>", kind="text/html"), "", "text/html", NO),
    "octets": (
        [head(kind="application/octet-stream"), text("x"), DONE, FIN], "", "application/octet-stream", NO,
    ),
    "compressed": ([head(Content_Encoding="gzip"), text("x"), DONE, FIN], "", "compressed", NO),
    "json without text": (page({"ok": True}), "", "holds no text", ILL),
    "json error with 200": (page({"error": {"message": "out of memory"}}), "", "out of memory", ILL),
    "bad json": ([head(), text("so "), event("{nope"), text("x"), DONE], "so ", "not JSON: {nope", ILL),
    "json of another kind": ([head(), event("[1]"), DONE], "", "not an object", ILL),
    "bottomless json": ([head(), event(100_000 * "["), DONE], "", "not JSON", ILL),
    "huge number": ([head(), event('{"usage": %s}' % ("9" * 10_000)), DONE], "", "not JSON", ILL),
    "error mid-span": (
        [head(), text("so "), event({"error": {"message": "out of memory", "code": 503}}), DONE],
        "so ",
        "cut off after 3 characters: the remote reported an error: out of memory",
        ILL,
    ),
    "error event": ([head(), Send(b'event: error\ndata: {"message": "too many requests"}\n\n'), DONE], "",
        "error: too many", "busy"),
    "finish reason error": ([head(), text("so "), text("", "error"), DONE], "so ", "broke off", ILL),
    "content filter": ([head(), text("", "content_filter"), DONE], "", "content filter", "request"),
    "other finish": ([head(), text("so "), text("", "tool_calls"), DONE], "so ", "tool_calls", "request"),
    "endless line": ([head(), Send(b"data: " + (1 << 20) * b"x"), HANG], "", "than 1048576 bytes", ILL),
    "endless comments": (
        [head(), *9 * [Send(b": " + 1_000_000 * b"x" + b"\n")], HANG], "", "than 8 MiB", ILL,
    ),
    "400": (page({"error": "no such thing"}, 400), "", r"request \(HTTP 400\): no such", "request"),
    "401": (page({"error": {"message": "no such key"}}, 401), "", r"wants an API key \(HTTP 401\): no", NO),
    "402": (page({"error": {"message": "pay"}}, 402), "", r"credit is used up \(HTTP 402\): pay", "busy"),
    "403": (page("", 403), "", r"wants an API key \(HTTP 403\)$", NO),
    "404": (page({"error": "model not found"}, 404), "", "/v1/completions.*'big'.*not found", NO),
    "413": (page("too much", 413, kind="text/plain"), "", r"request \(HTTP 413\): too much", "request"),
    "422": (page({"detail": "no"}, 422), "", r"refused the request \(HTTP 422\): no", "request"),
    "429": (page({"detail": "slow down"}, 429), "", "busy.*slow down", "busy"),
    "quota": (page({"error": {"code": "insufficient_quota", "message": "pay"}}, 429), "", "used up", "busy"),
    "500": (page({"message": "oops"}, 500), "", r"failed \(HTTP 500\): oops", ILL),
    "502 in html": (page("<html>Bad</html>", 502, kind="text/html"), "", r"failed \(HTTP 502\)$", ILL),
    "204": ([Send(b"HTTP/1.1 204 No Content\r\n\r\n")], "", "HTTP 204", "request"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_and_keeps_the_text(name):
    script, expected, line, fault = FAULTS[name]
    with RawServer(script, script) as server, endpoint(server, api="completions") as remote:
        written, outcome = ask(remote)
    assert (written, outcome.end, outcome.fault) == (expected, "error", fault)
    assert re.search(line, outcome.error), outcome.error
    assert outcome.error.isprintable()
    assert 0 < len(outcome.error) <= 300
    assert outcome.retry_after is None


# --- asking once more -------------------------------------------------------------------------------------


def requests_of(*scripts, **options):
    """How a span ended, and the requests that it took."""
    with RawServer(*scripts) as server, endpoint(server, **{"api": "completions", **options}) as remote:
        return *ask(remote), server.requests


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_asked_once_more(status):
    written, outcome, requests = requests_of(page({"error": "later"}, status), stream("x"))
    assert (written, outcome) == ("x", Outcome("stop"))
    assert requests[0].body == requests[1].body


@pytest.mark.parametrize("script", [[RST], [FIN]], ids=["reset", "closed"])
def test_a_connection_that_ends_before_the_reply_is_made_once_more(script):
    written, outcome, requests = requests_of(script, stream("x"))
    assert (written, outcome) == ("x", Outcome("stop"))
    assert [request.connection for request in requests] == [1, 2]


def test_it_is_asked_once_more_and_not_twice():
    ill = page("", 503)
    _, outcome, requests = requests_of(ill, [RST], stream("x"))
    assert (outcome.end, len(requests)) == ("error", 2)
    assert len(requests_of(ill, ill, stream("x"))[2]) == 2


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 422, 501])
def test_what_stays_so_is_asked_once(status):
    assert len(requests_of(page({"error": "no"}, status))[2]) == 1


def test_a_quota_that_is_used_up_is_asked_once():
    body = {"error": {"message": "You exceeded your current quota", "type": "insufficient_quota"}}
    _, outcome, requests = requests_of(page(body, 429, Retry_After="1"))
    assert (outcome.fault, outcome.retry_after, len(requests)) == ("busy", None, 1)
    assert "quota or credit is used up" in outcome.error


@pytest.mark.parametrize(
    "script",
    [
        [head(), Sleep(0.02), RST],
        [head(), FIN],
        [head(), Send(b": ping\n\n"), delta(role="assistant"), FIN],
        [*chunked(delta(role="assistant"))[:-1], FIN],
        [head(), event("{nope"), HANG],
        [*page("")],
    ],
    ids=["reset", "closed", "no content", "no last chunk", "no json", "empty page"],
)
def test_a_reply_that_breaks_off_before_its_first_content_is_asked_for_once_more(script):
    written, outcome, requests = requests_of(script, stream("x"))
    assert (written, outcome, len(requests)) == ("x", Outcome("stop"), 2)
    assert len(requests_of(script, script, stream("x"))[2]) == 2


@pytest.mark.parametrize("events", range(1, 6))
def test_after_the_first_content_nothing_is_asked_again(events):
    script = [head(), *(text(f"{n} ") for n in range(events)), Sleep(0.02), RST]
    written, outcome, requests = requests_of(script)
    assert written == "".join(f"{n} " for n in range(events))
    assert (outcome.end, len(requests)) == ("error", 1)


@pytest.mark.parametrize("held", [text(ANSWER[:12]), delta(reasoning="hm")], ids=["held back", "a thought"])
def test_content_that_is_not_shown_is_content_too(held):
    _, outcome, requests = requests_of([head(), held, Sleep(0.02), RST])
    assert (outcome.end, len(requests)) == ("error", 1)


def test_a_wait_that_the_server_asks_for_is_kept():
    busy = page("", 429, Retry_After="0.2")
    with RawServer(busy, stream("x")) as server, endpoint(server) as remote:
        began = time.monotonic()
        assert ask(remote)[0] == "x"
        assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize(
    ("status", "value", "wait"), [(429, "60", 60.0), (503, "100000", 120.0), (429, "inf", 120.0)]
)
def test_a_wait_that_does_not_fit_is_told_at_once(status, value, wait):
    began = time.monotonic()
    _, outcome, requests = requests_of(page("", status, Retry_After=value))
    assert time.monotonic() - began < 1.0
    assert (outcome.end, outcome.fault, outcome.retry_after, len(requests)) == ("error", "busy", wait, 1)


def test_a_long_wait_is_not_waited_for_however_much_time_there_is():
    began = time.monotonic()
    busy = page("", 429, Retry_After="12")
    _, outcome, requests = requests_of(busy, stream("x"), deadlines=Deadlines())
    assert time.monotonic() - began < 1.0
    assert (outcome.end, outcome.fault, outcome.retry_after, len(requests)) == ("error", "busy", 12.0, 1)


def test_closing_ends_the_wait_before_the_second_request():
    busy = page("", 429, Retry_After="0.9")
    with RawServer(busy) as server, endpoint(server) as remote:
        span = remote.stream(QUESTION, ANSWER, 64)
        wait_until(lambda: span.read(0) == "" and span._reached.stage == "resting")
        began = time.monotonic()
        span.close()
        wait_until(lambda: not any(t.name == "sr-edge span" for t in threading.enumerate()))
        assert time.monotonic() - began < 0.5
        assert len(server.requests) == 1


# --- a context that is too long ---------------------------------------------------------------------------

LONG = "".join(f"Step {n}: we add {n} and get {n * n}.\n\n" for n in range(40))
OVERFLOWS = {
    "OpenAI": page({"error": {"message": "Too long.", "code": "context_length_exceeded"}}, 400),
    "llama.cpp": page(
        {"error": {"code": 400, "message": "the request exceeds the available context size (512 tokens)",
                   "type": "exceed_context_size_error"}}, 400,
    ),
    "vLLM": page({"object": "error", "message": "This model's maximum context length is 4096 tokens."}, 400),
    "in the stream": [
        head(), event({"error": {"message": "the request exceeds the available context size. try more"}}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("name", OVERFLOWS)
def test_a_context_that_is_too_long_is_sent_once_more_without_the_oldest_of_the_answer(name, api):
    reply = [head(), text("so"), text("", "stop"), DONE]
    with RawServer(OVERFLOWS[name], reply) as server, endpoint(server, api=api) as remote:
        assert ask(remote, LONG) == ("so", Outcome("stop"))
        whole, shorter = (
            request.body["prompt"] if api == "completions" else request.body["messages"][-1]["content"]
            for request in server.requests
        )
        question = "<system>Be brief.<user>how?<assistant>" if api == "completions" else ""
        if api == "chat":
            assert server.requests[0].body["messages"][:-1] == server.requests[1].body["messages"][:-1]
    kept = shorter.removeprefix(question)
    assert whole.endswith(kept)
    assert kept.startswith("Step ")
    assert 0.25 * len(LONG) < len(kept) <= 0.5 * len(LONG)


def test_the_seam_knows_the_end_of_the_answer_then_too():
    echo = [head(), text(LONG[-60:]), text("so"), text("", "stop"), DONE]
    with RawServer(OVERFLOWS["vLLM"], echo) as server, endpoint(server, api="chat") as remote:
        assert ask(remote, LONG)[0] == "so"


def test_an_echo_of_what_was_left_is_dropped_too():
    echo = stream(without_oldest_half(LONG), "so")
    with RawServer(OVERFLOWS["vLLM"], echo) as server, endpoint(server) as remote:
        assert ask(remote, LONG)[0] == "so"


def test_a_context_that_is_too_long_twice_is_left():
    with RawServer(OVERFLOWS["vLLM"], OVERFLOWS["vLLM"]) as server, endpoint(server, api="chat") as remote:
        written, outcome = ask(remote, LONG)
    assert (written, outcome.end, outcome.fault) == ("", "error", "request")
    assert "maximum context length" in outcome.error


def test_after_the_first_text_nothing_is_sent_again():
    script = [head(), text("so "), *OVERFLOWS["in the stream"][1:]]
    with RawServer(script) as server, endpoint(server) as remote:
        written, outcome = ask(remote, LONG)
    assert (written, outcome.end) == ("so ", "error")
    assert "context size" in outcome.error


def test_of_a_short_answer_nothing_is_left_out():
    _, outcome, requests = requests_of(OVERFLOWS["vLLM"])
    assert (outcome.fault, len(requests)) == ("request", 1)


def test_a_thought_that_was_closed_in_what_is_left_out_stays_closed():
    answer = "so\n</think>\n\n" + LONG
    with (
        RawServer(OVERFLOWS["vLLM"], stream("x")) as server,
        endpoint(server, prompt=thinking_prompt) as remote,
    ):
        assert ask(remote, answer)[0] == "x"
        assert "<think>\n</think>\n\nStep " in server.requests[1].body["prompt"]


def test_what_a_server_says_is_made_harmless():
    said = "\x1b[31mred\x1b]52;c;aGk=\x07\r\nnext \u202eline \x9b0m\u2028" + 500 * "x"
    _, outcome = span_of(*page({"error": {"message": said}}, 400))
    assert outcome.error.isprintable()
    assert "[31mred" in outcome.error
    assert len(outcome.error) == 300
    assert plain_line("a\n\n b\tc") == "a b c"


# --- silence ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        [head(), HANG],
        [head(), *8 * [Sleep(0.03), Send(b": ping\n\n")], HANG],
        [head(), *8 * [Sleep(0.03), event({"choices": []})], HANG],
        [head(), *8 * [Sleep(0.03), delta(reasoning="hm")], HANG],
        [Send(b"HTTP/1.1 200 OK\r\n"), *8 * [Sleep(0.03), Send(b"X-A: b\r\n")], HANG],
        [*8 * [Sleep(0.03), Send(b"HTTP/1.1 103 Early Hints\r\n\r\n")], HANG],
    ],
    ids=["no body", "comments", "empty events", "only a thought", "drip of headers", "flood of 1xx"],
)
def test_an_endpoint_that_writes_nothing_is_left(script):
    deadlines = Deadlines(connect=5.0, first_content=0.1)
    with RawServer(script) as server, endpoint(server, deadlines=deadlines) as remote:
        line = f"{server.where} wrote nothing within 0.1 s"
        assert ask(remote) == ("", Outcome("stalled", line, fault="unreachable"))
        assert server.client_hung_up.wait(2)


def test_an_endpoint_that_does_not_even_answer_is_left_sooner():
    with RawServer([HANG]) as server, endpoint(server, deadlines=Deadlines(first_byte=0.1)) as remote:
        line = f"{server.where} did not answer within 0.1 s"
        assert ask(remote) == ("", Outcome("stalled", line, fault="unreachable"))
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
        line = f"{server.where} was not done within 120 s"
        assert span.outcome == Outcome("stalled", line, fault="unreachable")
        assert 13 <= len(written) <= 14
        [drop.set() for drop in drops]


def test_a_thought_that_is_not_taken_is_a_sign_of_life():
    clock, thoughts = Clock(), [threading.Event() for _ in range(3)]
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


def test_a_thought_that_is_not_taken_is_no_content():
    clock, thoughts = Clock(), [threading.Event() for _ in range(4)]
    thinking = [op for thought in thoughts for op in (delta(reasoning="hm"), Wait(thought))]
    with (
        RawServer([head(), *thinking, HANG]) as server,
        endpoint(server, api="chat", deadlines=Deadlines(), clock=clock) as remote,
    ):
        span = remote.stream(QUESTION, ANSWER, 64)
        for thought in thoughts:
            wait_until(lambda: span.read(0) == "" and span._heard == clock.now)
            clock.now += 9
            thought.set()
        assert span.read(0) is None
        assert span.outcome.error == f"{server.where} wrote nothing within 30 s"
        assert server.client_hung_up.wait(2)


def test_a_computer_that_slept_takes_the_connection_for_dead():
    awake, always = Clock(), Clock()
    with (
        RawServer([head(), text("so "), HANG]) as server,
        endpoint(server, sleep_watch=lambda: SleepWatch(awake, always)) as remote,
    ):
        span = remote.stream(QUESTION, ANSWER, 64)
        assert read_some(span) == "so "
        always.now += 4.9
        assert span.read(0) == ""
        always.now += 0.2
        assert span.read(0) is None
        assert (span.outcome.end, span.outcome.fault) == ("error", "unreachable")
        assert "this computer slept" in span.outcome.error
        assert server.client_hung_up.wait(2)


def test_text_that_came_in_time_is_read_however_late():
    clock = Clock()
    with RawServer(stream("in ", "time")) as server, endpoint(server, clock=clock) as remote:
        span = remote.stream(QUESTION, ANSWER, 64)
        wait_until(lambda: all(thread.name != "sr-edge span" for thread in threading.enumerate()))
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
from sr_edge.roles import Prompt
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


# --- without a span ---------------------------------------------------------------------------------------


def test_a_preview_is_what_would_be_sent_but_for_the_key():
    with RawServer(stream("x")) as server, endpoint(server, api_key=KEY, seed=7) as remote:
        preview = remote.preview(QUESTION, ANSWER, 12)
        assert server.connections == 0
        ask(remote, max_tokens=12)
        [request] = server.requests
    assert preview.method == "POST"
    assert preview.url == server.url + "/v1/completions"
    assert preview.body == request.body
    headers = {name.lower(): value for name, value in preview.headers.items()}
    assert headers.pop("authorization") == "Bearer ***"
    assert headers.items() <= request.headers.items()
    assert KEY not in repr(preview)
    assert preview.note == "a server without raw completions is asked in another way"


def test_a_preview_tells_what_else_is_asked():
    note = Endpoint("https://h", prompt=prompt, api="chat").preview(QUESTION, ANSWER, 12).note
    assert note == "GET https://h/v1/models comes first: it asks for the model's name"
    preview = Endpoint("https://api.openai.com", prompt=prompt, model="gpt").preview(QUESTION, ANSWER, 12)
    assert preview.url == "https://api.openai.com/v1/chat/completions"
    assert "without a word of yours" in preview.note


def knocked(remote):
    heard = queue.SimpleQueue()
    remote.knock(heard.put)
    return heard.get(timeout=5)


@pytest.mark.parametrize("status", [200, 401, 404, 429])
def test_a_knock_is_heard_by_whoever_answers_and_says_nothing(status):
    with RawServer(page({}, status)) as server, endpoint(server) as remote:
        assert knocked(remote) is True
        [request] = server.requests
        assert (request.line, request.data) == ("GET /v1/models HTTP/1.1", b"")


@pytest.mark.parametrize(
    "script",
    [page("", 500), page("", 503), [RST], [FIN], [HANG]],
    ids=["500", "503", "reset", "closed", "silent"],
)
def test_a_knock_that_nobody_answers_is_told_too(script):
    deadlines = Deadlines(connect=0.1, first_byte=0.1)
    with RawServer(script) as server, endpoint(server, deadlines=deadlines) as remote:
        assert knocked(remote) is False
    with Endpoint(f"http://127.0.0.1:{free_port()}", prompt=prompt) as remote:
        assert knocked(remote) is False


def test_the_servers_models():
    models = page({"object": "list", "data": [{"id": "a"}, {"id": "b"}, {"name": "c"}, 3]})
    with RawServer(models) as server, endpoint(server) as remote:
        assert remote.models() == ["a", "b"]


def test_a_kept_connection_that_died_is_replaced_for_a_command_too():
    models = page({"data": [{"id": "a"}]})
    with RawServer(models, [RST], models) as server, endpoint(server) as remote:
        assert [remote.models(), remote.models()] == [["a"], ["a"]]
        assert [request.connection for request in server.requests] == [1, 1, 2]


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (page("<html>", kind="text/html"), "/v1/models is no list; is the URL that of an OpenAI-compatible"),
        (page({"error": "bad key " + KEY}, 401), r"does not accept the API key \(HTTP 401\): bad key \*\*\*"),
        ([RST], "connection reset by"),
        ([HANG], "fell silent|said nothing"),
    ],
    ids=["html", "401", "reset", "silent"],
)
def test_models_that_cannot_be_told_are_an_error_in_one_line(script, line):
    deadlines = Deadlines(connect=0.1, first_content=0.1)
    with RawServer(script) as server, endpoint(server, deadlines=deadlines, api_key=KEY) as remote:
        with pytest.raises(RemoteError, match=line) as failed:
            remote.models()
        assert str(failed.value).isprintable()


def test_a_name_server_that_hangs_does_not_hold_a_command(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: release.wait(20) and [])
    deadlines = Deadlines(connect=0.1, first_content=0.1)
    with Endpoint("https://slow.host", prompt=prompt, deadlines=deadlines) as remote:
        began = time.monotonic()
        with pytest.raises(RemoteError, match=r"slow\.host said nothing within 0\.2 s"):
            remote.models()
        assert time.monotonic() - began < 2
    release.set()


def test_a_survey_tells_all_that_it_finds_out():
    found, learned = [], []
    with (
        RawServer(then=chat_server()) as server,
        endpoint(server, model=None, learned=learned.append) as remote,
    ):
        capabilities = remote.survey(lambda dialect, verdict: found.append((dialect, verdict)))
        assert server.requests[0].line.startswith("GET /v1/models")
        assert not any(says_something_of_the_user(request) for request in server.requests)
    assert learned == [capabilities]
    assert tuple(found) == capabilities.findings
    assert ("completions", "refused") in found
    assert ("vllm-plain", "continues") in found
    assert ("trailing-plain", "restarts") in found


@pytest.mark.parametrize(
    "end", [[HANG], [DONE, HANG], [FIN], [RST]], ids=["open", "open after done", "closed", "reset"]
)
def test_a_survey_waits_for_no_reply_that_has_ended(end):
    def script(request):
        whole = chat_server()(request)
        return whole if request.path != CHAT else [head(), delta(content=" g h i"), delta("stop"), *end]

    with (
        RawServer(then=script) as server,
        endpoint(server, deadlines=replace(SOON, linger=0.01), api="auto") as remote,
    ):
        began = time.monotonic()
        assert remote.survey(full=False).text == "reasoning", "the first that works"
        assert time.monotonic() - began < 1.5


def test_a_survey_of_a_server_that_answers_nothing_is_an_error():
    with RawServer(then=page({"error": "no"}, 401)) as server, endpoint(server) as remote:
        with pytest.raises(RemoteError, match="wants an API key"):
            remote.survey()
        assert remote.capabilities is None


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


ODD_KEY = 'sk-"quoted"/and\\+0123456789'
SPELLINGS = {
    "plain": lambda key: key,
    "json": lambda key: json.dumps(key)[1:-1],
    "json twice": lambda key: json.dumps(json.dumps(key)),
    "json, slashes too": lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    "json, all escaped": lambda key: "".join(f"\\u{ord(c):04X}" for c in key),
    "repr": repr,
    "url": lambda key: urllib.parse.quote(key, safe=""),
    "zero width": "\u200b".join,
    "joiners and marks": "\u2060\u0301\xad".join,
    "control characters": "\x00".join,
    "blank letters": "\u3164".join,
    "cut": lambda key: key[:-3],
    "cut, quoted": lambda key: f"'{key[:12]}…'",
}


@pytest.mark.parametrize("key", [KEY, ODD_KEY])
@pytest.mark.parametrize("how", SPELLINGS)
def test_the_key_is_hidden_however_it_is_spelled(how, key):
    spelled = SPELLINGS[how](key)
    script = page(f"bad key {spelled}", 401, kind="text/plain")
    error = span_of(*script, api_key=key, api="completions")[1].error
    assert re.search(r"bad key .{0,3}\*\*\*", error)
    rest = error.partition("***")[2]
    assert len(rest) < 4, rest
    assert "0123" not in re.sub(r"\W", "", error)


def test_what_is_cut_from_a_quotation_is_no_piece_of_the_key():
    for room in range(40, 310):
        _, outcome = span_of(head(), text("x"), text("", room * "x" + KEY), FIN, api_key=KEY)
        assert KEY[:6] not in outcome.error


def test_a_model_that_is_called_like_the_key_is_not_shown():
    odd = KEY[:5] + "\u200b" + KEY[5:]
    models = page({"data": [{"id": KEY}, {"id": odd}, {"id": 95 * "x" + KEY}]})
    with (
        RawServer(models, models, stream("a")) as server,
        endpoint(server, model=None, api_key=KEY) as remote,
    ):
        assert remote.models() == ["***", "***", 95 * "x" + "***"]
        ask(remote)
        assert remote.name == "***"
        assert KEY not in repr(remote)


def test_a_survey_quotes_nothing_of_the_server():
    refusal = page({"error": {"message": f"stream_options and {KEY} are not supported"}}, 400)
    found = []
    well = chat_server()

    def script(request):
        return refusal if "stream_options" in request.body else well(request)

    with RawServer(then=script) as server, endpoint(server, api_key=KEY) as remote:
        known = remote.survey(lambda way, verdict: found.append(way + verdict))
    assert KEY not in json.dumps([found, known.to_json()])


def test_without_a_key_none_is_sent():
    with RawServer(stream("x")) as server, endpoint(server) as remote:
        ask(remote)
        assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize("key", ["two words", "line\nend", "schlüssel", "tab\t"])
def test_a_key_that_no_header_can_carry_is_refused_without_quoting_it(key):
    with pytest.raises(UsageError) as refused:
        Endpoint("https://h", prompt=prompt, api_key=key)
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
    assert repr(Endpoint(url, prompt=prompt, plain_http=True)) == f"Endpoint({base!r}, model=None)"


@pytest.mark.parametrize(
    "url",
    [
        "", "h:8080", "ftp://h", "file:///etc/passwd", "http://", "http:///v1", "http://h:99999", "http://h:x",
        "http://a..b", "http://" + "a" * 64,
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
    with Endpoint("https://h", prompt=prompt) as remote:
        assert remote.name == "h"


def test_a_server_that_thinks_first_is_given_room_for_it_once_that_is_seen():
    thought = [head(), delta(reasoning_content="hm"), delta("length"), DONE, FIN]
    with RawServer(thought, CHAT_REPLY, CHAT_REPLY) as server, endpoint(server, api="instruct") as remote:
        assert ask(remote) == ("ok", Outcome("stop"))
        assert ask(remote)[0] == "ok"
        limits = [request.body["max_tokens"] for request in server.requests]
    assert limits[0] < limits[1] == limits[2]
