"""The endpoint against a server that we did not write: llama.cpp's own, over HTTP on loopback.

It serves the same tiny model that `LocalGGUF` runs, so that both must continue alike at temperature 0,
whatever the rung of the ladder: raw completions, a thought continued as such, a plain unfinished message. On
the last rung, a turn that asks for the continuation, a random model can only be seen to answer.
"""

import threading
import time

import pytest
from tests.tiny_gguf import CHATML, CONTROL, write_tiny_gguf

from sr_edge.local import LlamaLocal
from sr_edge.remote import asking
from sr_edge.remote.endpoint import Deadlines, Endpoint
from sr_edge.remote.local_gguf import LocalGGUF
from sr_edge.roles import Message, Outcome

xllamacpp = pytest.importorskip("xllamacpp")

QUESTION = [Message("system", "Be brief."), Message("user", "how?")]
ANSWER = "First, add the two numbers:"
LETTERS = "bcdfghklmnprstvwz"
WORDS = [f"Ġ{a}{vowel}{b}" for a in LETTERS for vowel in "aeiou" for b in LETTERS]
"""So many that a random model writes little else."""
WITHOUT_OPENING = CHATML.replace("<think>\n", "")
WITH_REASONING = CHATML.replace(
    "{{ message.content }}",
    "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ message.content }}",
)
"""Knows thoughts as a field of a message, as the templates of Qwen3 and DeepSeek do."""
CONTEXT = 1024
DEADLINES = Deadlines(connect=10.0, first_byte=20.0, first_content=20.0, idle=20.0)


class Served:
    def __init__(self, path):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = CONTEXT
        params.n_parallel = 1
        params.warmup = False
        params.verbosity = -1
        params.cpuparams.n_threads = 1
        self.path = path
        self._server = xllamacpp.Server(params)
        self.url = self._server.listening_address


@pytest.fixture(scope="module")
def thinking(tmp_path_factory):
    """Its template opens the thought, as those of R1 and its distillations do."""
    path = tmp_path_factory.mktemp("thinking") / "thinking.gguf"
    return Served(write_tiny_gguf(path, control=CONTROL, words=WORDS, seed=5, context_length=CONTEXT))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "plain.gguf"
    return Served(
        write_tiny_gguf(
            path, control=CONTROL, words=WORDS, seed=5, template=WITHOUT_OPENING, context_length=CONTEXT
        )
    )


@pytest.fixture(scope="module")
def reasoning(tmp_path_factory):
    path = tmp_path_factory.mktemp("reasoning") / "reasoning.gguf"
    return Served(
        write_tiny_gguf(
            path, control=CONTROL, words=WORDS, seed=5, template=WITH_REASONING, context_length=CONTEXT
        )
    )


def listen(span):
    pieces = []
    while (piece := span.read(1.0)) is not None:
        pieces.append(piece)
    span.close()
    # The bytes that a random model writes need not be UTF-8, and each side has its way to show what is not.
    return "".join(filter(str.isascii, "".join(pieces))), span.outcome


def by_local_gguf(served, answer, max_tokens):
    with LocalGGUF(served.path) as remote:
        written, outcome = listen(remote.stream(QUESTION, answer, max_tokens))
    assert len(written) > 2 * max_tokens, "enough words to compare"
    return written, outcome


def by_endpoint(served, answers, max_tokens, **options):
    """What is written after each of the answers; the endpoint, for what it has learned."""
    with (
        LlamaLocal.open(served.path, temperature=0.0) as local,
        Endpoint(served.url, prompt=local.render, temperature=0.0, deadlines=DEADLINES, **options) as remote,
    ):
        return [listen(remote.stream(QUESTION, answer, max_tokens)) for answer in answers], remote


def test_completions_continue_an_open_thought_exactly(thinking):
    answers = ["", ANSWER, ANSWER + " bad. So we have 12"]
    spans, remote = by_endpoint(thinking, answers, 16)
    assert spans == [by_local_gguf(thinking, answer, 16) for answer in answers]
    assert remote.capabilities is None, "nothing had to be found out"


def test_chat_continues_an_open_thought_exactly_in_the_field_made_for_it(reasoning):
    answers = [ANSWER, ANSWER + " bad. So we have 12"]
    spans, _ = by_endpoint(reasoning, answers, 16, api="reasoning")
    assert spans == [by_local_gguf(reasoning, answer, 16) for answer in answers]


@pytest.mark.parametrize("api", ["chat", "vllm-plain"])
def test_chat_continues_the_partial_answer_exactly(plain, api):
    answers = [ANSWER, ANSWER + " bad. So we have 12"]
    spans, remote = by_endpoint(plain, answers, 16, api=api)
    assert spans == [by_local_gguf(plain, answer, 16) for answer in answers]
    assert not remote._server.quirks.left_out, "it knows the flags and tells usage"


@pytest.mark.parametrize("name", ["thinking", "reasoning", "plain"])
def test_a_turn_that_asks_for_the_continuation_is_answered(request, name):
    """A random model may end the turn early, or only think at first: then it is given more room."""
    [(_, outcome)], _ = by_endpoint(request.getfixturevalue(name), [ANSWER], 16, api="instruct")
    assert outcome.error is None
    assert outcome.end in ("cap", "stop")
    assert outcome.completion_tokens >= 1


def test_a_survey_ends_with_a_way_to_ask(reasoning):
    with (
        LlamaLocal.open(reasoning.path, temperature=0.0) as local,
        Endpoint(reasoning.url, prompt=local.render, temperature=0.0, deadlines=DEADLINES) as remote,
    ):
        found = remote.survey()
        # A random model can't recite; but what is accepted can be seen.
        assert (found.thought, found.text, found.has_usage) == ("completions", "completions", True)
        assert ("reasoning+think", "refused") not in found.findings
        assert listen(remote.stream(QUESTION, ANSWER, 16)) == by_local_gguf(reasoning, ANSWER, 16)


class NoSeam:
    """Lets everything through."""

    takes_reasoning = False
    dropped = ()

    def __init__(self, answer, **options):
        pass

    def push(self, text):
        return text

    def flush(self):
        return ""


def test_the_echo_that_the_server_can_send_is_dropped(plain, monkeypatch):
    [(expected, _)], _ = by_endpoint(plain, [ANSWER], 8, api="chat")
    request = asking.request
    monkeypatch.setattr(
        asking, "request", lambda *args, **options: {**request(*args, **options), "echo": True}
    )
    assert by_endpoint(plain, [ANSWER], 8, api="chat")[0][0][0] == expected
    monkeypatch.setattr(asking, "Seam", NoSeam)
    assert by_endpoint(plain, [ANSWER], 8, api="chat")[0][0][0] == ANSWER + expected, "it does echo"


def test_the_model_is_the_one_that_the_server_names(thinking):
    _, remote = by_endpoint(thinking, [ANSWER], 1)
    assert remote.name == str(thinking.path)


def test_a_prompt_that_is_too_long_is_the_servers_line(thinking):
    [(written, outcome)], _ = by_endpoint(thinking, [3 * CONTEXT * "x"], 8)
    assert (written, outcome.end) == ("", "error")
    assert "HTTP 400" in outcome.error
    assert f"exceeds the available context size ({CONTEXT} tokens)" in outcome.error


def test_of_an_answer_that_is_too_long_the_newest_half_is_continued(thinking):
    answer = 700 * "x" + ".\n\n" + 100 * "so 12 " + "so"
    half = answer[703:]
    [(written, outcome)], _ = by_endpoint(thinking, [answer], 8)
    assert (written, outcome) == by_local_gguf(thinking, half, 8)


def test_hanging_up_leaves_the_server_well(thinking):
    with (
        LlamaLocal.open(thinking.path, temperature=0.0) as local,
        Endpoint(thinking.url, prompt=local.render, temperature=0.0, deadlines=DEADLINES) as remote,
    ):
        span = remote.stream(QUESTION, ANSWER, 400)
        while not span.read(1.0):
            pass
        began = time.monotonic()
        span.close()
        assert time.monotonic() - began < 0.2
        assert span.outcome == Outcome("stop")
        assert listen(remote.stream(QUESTION, ANSWER, 8)) == by_local_gguf(thinking, ANSWER, 8)
    assert not any(t.name == "sr-edge span" and not t.daemon for t in threading.enumerate())
