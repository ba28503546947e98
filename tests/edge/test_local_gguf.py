"""A second GGUF as the large model, on a tiny random one."""

import re
import socket

import pytest
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.errors import ModelError
from sr_edge.events import SpanClosed, SpanDelta, SpanOpened
from sr_edge.local import LlamaLocal
from sr_edge.remote.local_gguf import LocalGGUF
from sr_edge.roles import Message, Outcome
from sr_edge.split import SplitDecoder
from sr_edge.testing import OPEN, ScriptedLocal

QUESTION = [Message("user", "how?")]
WORDS = [f"Ġ{a}{b}" for a in "bcdfghklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "in", "or")]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("big") / "big.gguf", seed=3, words=WORDS)


@pytest.fixture
def remote(path):
    with LocalGGUF(path) as remote:
        yield remote


def listen(span, timeout=1.0):
    pieces = []
    while (piece := span.read(timeout)) is not None:
        pieces.append(piece)
    span.close()
    return "".join(pieces), span.outcome


def greedy(path, answer, count):
    """What the model itself writes, token by token, markers banned; and the length of its prompt."""
    with LlamaLocal.open(path, temperature=0.0) as model:
        prompt = [*model.render(QUESTION).ids, *model.tokenize(answer)]
        model.feed(prompt)
        data = b""
        for _ in range(count):
            id = model.sample(model.markers.open_ids + model.markers.close_ids).id
            if model.is_end(id):
                break
            data += model.piece(id)
        return data.decode("utf-8", "replace"), len(prompt)


@pytest.mark.parametrize("batch", [1, 4, 64])
@pytest.mark.parametrize("answer", ["", "First, ", "größer 🧮 </bigmodel> <|im_end|> "])
def test_it_continues_the_answer_in_its_own_template(path, answer, batch):
    expected, prompt_tokens = greedy(path, answer, 24)
    with LocalGGUF(path, batch_tokens=batch) as remote:
        assert remote.name == "tiny"
        written, outcome = listen(remote.stream(QUESTION, answer, 24))
    assert written == expected
    assert outcome == Outcome("cap", prompt_tokens=prompt_tokens, completion_tokens=24)


def test_spans_share_the_cache_and_are_what_a_fresh_model_writes(path, remote):
    answer = ""
    for _ in range(4):
        text, _ = listen(remote.stream(QUESTION, answer, 6))
        assert text == greedy(path, answer, 6)[0]
        answer += text + " So "
    other = [Message("user", "why?")]
    assert listen(remote.stream(other, "", 4))[1].end == "cap"
    assert listen(remote.stream(QUESTION, "", 6))[0] == greedy(path, "", 6)[0]


def test_what_is_in_the_cache_is_not_read_again(remote, monkeypatch):
    fed = []
    feed = LlamaLocal.feed

    def counting(self, ids, **options):
        fed.append(len(ids))
        return feed(self, ids, **options)

    monkeypatch.setattr(LlamaLocal, "feed", counting)
    _, first = listen(remote.stream(QUESTION, "a", 2))
    assert sum(fed) == first.prompt_tokens
    fed.clear()
    listen(remote.stream(QUESTION, "a" + " So it is.", 2))
    assert 0 < sum(fed) <= len(" So it is.") + 1


def test_a_read_writes_a_few_tokens_and_returns(path):
    with LocalGGUF(path, batch_tokens=3) as remote:
        span = remote.stream(QUESTION, "a", 8)
        counts = []
        while span.read(1.0) is not None:
            counts.append(span._tokens)
    assert counts[-3:] == [3, 6, 8]


def test_a_read_returns_when_its_time_is_up(path):
    ticks = iter(range(10_000))
    with LocalGGUF(path, batch_tokens=100, clock=lambda: next(ticks)) as remote:
        span = remote.stream(QUESTION, "a", 8)
        span.read(0)
        span.read(0)
        assert span._tokens == 1, "one step a read: the prompt, then one token"


def test_a_character_is_never_cut(path):
    with LocalGGUF(path, batch_tokens=1) as remote:
        in_pieces, _ = listen(remote.stream(QUESTION, "数", 60))
    with LocalGGUF(path, batch_tokens=60) as remote:
        assert in_pieces == listen(remote.stream(QUESTION, "数", 60))[0]


def test_it_stops_where_the_model_ends(path, remote, monkeypatch):
    with LlamaLocal.open(path, temperature=0.0) as model:
        model.feed(model.render(QUESTION).ids)
        ids = [model.sample().id for _ in range(6)]
    end = next(n for n in range(2, 6) if ids[n] not in ids[:n])
    monkeypatch.setattr(LlamaLocal, "is_end", lambda self, id: id == ids[end])
    written, outcome = listen(remote.stream(QUESTION, "", 400))
    assert written == greedy(path, "", end)[0]
    assert (outcome.end, outcome.completion_tokens) == ("stop", end)


def test_markers_are_never_written(remote, monkeypatch):
    banned = []
    sample = LlamaLocal.sample

    def recording(self, ids=()):
        banned.append(set(ids))
        return sample(self, ids)

    monkeypatch.setattr(LlamaLocal, "sample", recording)
    listen(remote.stream(QUESTION, "", 5))
    markers = remote._model.markers
    assert banned == 5 * [{*markers.open_ids, *markers.close_ids}]


def test_a_full_context_is_a_cap_with_its_reason(tmp_path):
    path = write_tiny_gguf(tmp_path / "short.gguf", context_length=64, words=WORDS)
    with LocalGGUF(path) as remote:
        written, outcome = listen(remote.stream(QUESTION, "", 1000))
    assert written
    assert outcome.end == "cap"
    assert outcome.error == "the context of tiny is full after 64 tokens"


def test_a_prompt_that_does_not_fit_is_an_outcome(tmp_path):
    path = write_tiny_gguf(tmp_path / "short.gguf", context_length=64)
    with LocalGGUF(path) as remote:
        written, outcome = listen(remote.stream([Message("user", 200 * "x")], "", 8))
        assert (written, outcome.end) == ("", "error")
        assert re.fullmatch(r"the conversation is \d+ tokens and the context of tiny holds 64", outcome.error)
        assert listen(remote.stream([Message("user", "x")], "", 8))[1].end == "cap", "the next one is fine"


def test_a_template_that_refuses_is_an_outcome(tmp_path):
    path = write_tiny_gguf(tmp_path / "strict.gguf", template="{{ raise_exception('no questions') }}")
    with LocalGGUF(path) as remote:
        _, outcome = listen(remote.stream(QUESTION, "", 8))
    assert outcome.end == "error"
    assert "no questions" in outcome.error


def test_closing_ends_the_span_and_the_next_goes_on(path, remote):
    span = remote.stream(QUESTION, "", 100)
    while not span.read(1.0):
        pass
    span.close()
    span.close()
    assert span.read(1.0) is None
    assert span.outcome.end == "stop"
    assert span.outcome.completion_tokens < 100
    assert listen(remote.stream(QUESTION, "", 6))[0] == greedy(path, "", 6)[0]


def test_a_new_span_closes_the_one_before(remote):
    before = remote.stream(QUESTION, "", 100)
    before.read(1.0)
    after = remote.stream(QUESTION, "x", 4)
    assert before.read(1.0) is None
    assert listen(after)[1].end == "cap"


def test_it_opens_no_socket(path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", fail)
    with LocalGGUF(path) as remote:
        assert listen(remote.stream(QUESTION, "", 4))[1].end == "cap"


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.gguf"):
        LocalGGUF(tmp_path / "nowhere.gguf")


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_stop_in_the_middle_of_a_step_is_the_users(after, path, remote):
    """Not the remote's fault; and the next span is what a fresh model writes."""
    stopped = []
    local = ScriptedLocal([[OPEN], [*b"!"]])
    decoder = SplitDecoder(local, remote)
    events = []
    for event in decoder.generate(QUESTION, cancelled=lambda: bool(stopped)):
        events.append(event)
        seen = sum(isinstance(e, SpanDelta) for e in events)
        if isinstance(event, SpanOpened | SpanDelta) and seen >= after and not stopped:
            remote.stop()
            stopped.append(True)
    remote.go_on()
    closed = next(e for e in events if isinstance(e, SpanClosed))
    assert (closed.end, closed.error) == ("cancelled", None)
    assert events[-1].reason == "cancelled"
    assert listen(remote.stream(QUESTION, "", 6))[0] == greedy(path, "", 6)[0]
