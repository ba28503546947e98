"""Replies in OpenAI's shapes: what always holds, on random answers cut anywhere, then the stories."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from sr_edge.errors import ContextFullError, GenerationError, ModelError, UsageError
from sr_edge.events import Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started, from_json
from sr_edge.extract import ReasoningSplitter, is_thinking
from sr_edge.local import SamplerSettings
from sr_edge.roles import Limits, Message, Outcome
from sr_edge.serve.jobs import Busy, Failed, Over
from sr_edge.serve.replies import ChatReply, CompletionReply, StopFinder, error_object, problem_of, sse
from sr_edge.serve.requests import BadRequest, ChatRequest, CompletionRequest, Wanted
from sr_edge.split import SplitDecoder
from sr_edge.testing import OPEN, Reply, ScriptedLocal, ScriptedRemote


def wanted(**changes):
    values = {
        "model": "small",
        "policy": "auto",
        "n": 1,
        "sampling": SamplerSettings(),
        "max_tokens": 100,
        "stops": (),
        "stream": True,
        "include_usage": False,
        "logprobs": False,
        "events": False,
        "user": None,
    }
    return Wanted(**(values | changes))


def chat(*, continues="", **changes):
    return ChatReply(
        ChatRequest(wanted(**changes), (Message("user", "how?"),), continues), id="chatcmpl-1", created=7
    )


def completion(*prompts, echo=False, **changes):
    return CompletionReply(CompletionRequest(wanted(**changes), prompts, echo), id="cmpl-1", created=7)


def started(opening="", **fields):
    return Started(prompt_ids=(1, 2, 3), model="small", big="large", opening=opening, **fields)


def finished(reason="stop", *, local=0, remote=0, error=None):
    return Finished(reason, 3, local, remote, seconds=2.0, error=error)


def tokens(*texts):
    return [LocalToken(n, text, -0.5) for n, text in enumerate(texts)]


def span(number, *texts, end="stop", **fields):
    return [
        SpanOpened(number, "marker", 0.9, "large", sent_tokens=4, sent_bytes=9),
        *(SpanDelta(number, text) for text in texts),
        SpanClosed(number, (5,), end, tokens=len(texts), **fields),
    ]


def pushed(reply, heard, choice=0):
    """All chunks, as a client gets them."""
    return [json.loads(sse(chunk)[6:]) for one in heard for chunk in reply.push(one, choice)]


def said(chunks, field):
    return "".join(chunk["choices"][0]["delta"].get(field) or "" for chunk in chunks if chunk["choices"])


def finish(chunks):
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]]
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    return reasons[-1]


# --- what always holds --------------------------------------------------------------------------------

OPENINGS = ("", "<think>\n")
texts = st.lists(
    st.sampled_from(["a", "b", "ab", " ", "\n\n", "é", "<think>", "</think>", "</thi", "nk>", "<", "\u2028"]),
    max_size=14,
).map("".join)
stop_lists = st.lists(st.text("ab \n", min_size=1, max_size=3), max_size=3).map(tuple)


@st.composite
def answers(draw):
    """The events of an answer: its text cut anywhere, each piece the small model's or a span's."""
    text = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    events, number = [], 0
    for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True):
        if draw(st.booleans()):
            events.append(LocalToken(7, text[a:b], -0.25))
        else:
            number += 1
            middle = draw(st.integers(a, b))
            events += span(number, text[a:middle], text[middle:b])
    return text, events


def by_character(events):
    """Every character of an answer, with the span that it is of."""
    for event in events:
        if isinstance(event, LocalToken | SpanDelta):
            for character in event.text:
                yield character, getattr(event, "span", None)


def cut_at_stop(text, stops):
    """Up to the stop that is complete first, or the longest of those."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


def visible(events, opening, *, stops=(), after=0):
    """What a client is to see: (part, character, span) of each character. Slow, and plain to see.

    Args:
        after: characters of the whole text that it has already.
    """
    splitter = ReasoningSplitter(thinks=is_thinking(opening))
    pieces = []
    for n, (character, span) in enumerate(by_character(events)):
        pieces += splitter.push(character, (n, span))
    pieces += splitter.flush()
    shown = [(part, c, span) for part, text, (n, span) in pieces for c in text if n >= after]
    answer = [one for one in shown if one[0] == "answer"]
    answer = answer[: len(cut_at_stop("".join(one[1] for one in answer), stops))]
    return [one for one in shown if one[0] == "reasoning"] + answer


def streamed(chunks):
    """The same, of what came."""
    shown = []
    for chunk in chunks:
        for choice in chunk["choices"]:
            for part, field in (("reasoning", "reasoning_content"), ("answer", "content")):
                text = choice["delta"].get(field) or ""
                shown += [(part, character, chunk["sr_edge"]["span"]) for character in text]
    return shown


@settings(max_examples=120)
@given(answers(), st.sampled_from(OPENINGS), stop_lists)
@example(("ab</think>ab", [LocalToken(1, "ab</think>a", -1.0), *span(1, "b", "")]), "<think>\n", ("ab",))
def test_a_client_gets_all_of_the_answer_up_to_a_stop_and_who_wrote_it(answer, opening, stops):
    _, events = answer
    chunks = pushed(chat(stops=stops), [started(opening), *events, finished(), Over(False)])
    assert streamed(chunks) == visible(events, opening, stops=stops)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert finish(chunks) == "stop"
    for chunk in chunks:
        origin = "local" if chunk["sr_edge"]["span"] is None else "remote"
        assert chunk["sr_edge"]["origin"] == origin


@settings(max_examples=60)
@given(answers(), st.sampled_from(OPENINGS), stop_lists)
def test_a_whole_reply_says_what_a_stream_says(answer, opening, stops):
    heard = [started(opening), *answer[1], finished(local=3), Over(False)]
    chunks = pushed(chat(stops=stops, include_usage=True), heard)
    reply = chat(stops=stops, stream=False)
    assert pushed(reply, heard) == []
    whole = reply.whole()
    choice = whole["choices"][0]
    assert choice["message"]["content"] == said(chunks, "content")
    assert choice["message"].get("reasoning_content", "") == said(chunks, "reasoning_content")
    assert whole["usage"] == chunks[-1]["usage"]
    segments = choice["sr_edge"]["segments"]
    assert [(s["part"], c, s["span"]) for s in segments for c in s["text"]] == streamed(chunks)
    marks = [c["sr_edge"] for c in chunks[:-1] if c["sr_edge"].keys() & {"opened", "closed"}]
    assert len(choice["sr_edge"]["spans"]) == sum("opened" in mark for mark in marks)


@settings(max_examples=60)
@given(answers(), stop_lists, st.booleans())
def test_events_come_along_once_each_and_in_order(answer, stops, stream):
    heard = [started(), *answer[1], finished()]
    reply = chat(stops=stops, events=True, stream=stream)
    chunks = pushed(reply, [*heard, Over(False)])
    if stream:
        told = [event for chunk in chunks for event in chunk["sr_edge"]["events"]]
    else:
        told = json.loads(json.dumps(reply.whole()["choices"][0]["sr_edge"]["events"]))
    assert [from_json(json.dumps(event)) for event in told] == heard


@settings(max_examples=60)
@given(answers(), st.sampled_from(OPENINGS), stop_lists, st.data())
def test_a_continuation_holds_only_what_is_new(answer, opening, stops, data):
    text, _ = answer
    at = data.draw(st.integers(0, len(text)))
    sizes = data.draw(st.lists(st.integers(1, 4), max_size=4))
    again, rest = [], text[:at]
    for size in sizes:
        again, rest = [*again, rest[:size]], rest[size:]
    new = [LocalToken(9, text[at:], -1.0)]
    heard = [started(opening), *tokens(*again, rest), *new, finished(), Over(False)]
    chunks = pushed(chat(stops=stops, continues=text[:at]), heard)
    whole = [LocalToken(9, text, -1.0)]
    assert streamed(chunks) == visible(whole, opening, stops=stops, after=at)


@settings(max_examples=120)
@given(
    st.text("ab", max_size=20),
    st.lists(st.text("ab", min_size=1, max_size=6), max_size=3),
    st.lists(st.integers(0, 20), max_size=5).map(sorted),
)
@example("aabaa", ["aaa"], [])
@example("bab", ["ab", "b", "a"], [1])
@example("bab", ["bab", "ab"], [])
def test_a_stop_is_found_at_the_same_place_however_the_text_is_cut(text, stops, cuts):
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def through(pieces):
        finder = StopFinder(stops)
        shown = [piece for piece in pieces for piece, _ in finder.push(piece, (1, None))]
        return "".join([*shown, *(piece for piece, _ in finder.flush())]), finder.is_found

    assert through(pieces) == (cut_at_stop(text, stops), any(stop in text for stop in stops))


@settings(max_examples=60)
@given(st.lists(st.text("ab", max_size=2), max_size=8), stop_lists, st.booleans())
@example(["a", "ab"], ("ab",), True)
def test_there_is_a_logprob_for_each_token_of_which_something_is_shown(pieces, stops, stream):
    heard = [started(), *tokens(*pieces), finished(), Over(False)]
    reply = chat(stops=stops, logprobs=True, stream=stream)
    chunks = pushed(reply, heard)
    if stream:
        found = [e for c in chunks for e in ((c["choices"][0].get("logprobs") or {}).get("content") or [])]
        text = said(chunks, "content")
    else:
        choice = reply.whole()["choices"][0]
        found, text = choice["logprobs"]["content"], choice["message"]["content"]
    if reply.is_stopped():
        assert "".join(e["token"] for e in found).startswith(text)
        before = "".join(e["token"] for e in found[:-1])
        assert len(before) < len(text) if found else text == ""
    else:
        assert [e["token"] for e in found] == pieces
    assert all(e["logprob"] == -0.5 and bytes(e["bytes"]).decode() == e["token"] for e in found)


# --- the stories --------------------------------------------------------------------------------------


def test_a_real_decoder_is_heard_as_a_stream_that_openais_own_types_read():
    local = ScriptedLocal([[*b"It is ", OPEN], [*" é.".encode()]])
    remote = ScriptedRemote([Reply(("forty", "-two"))])
    events = SplitDecoder(local, remote, limits=Limits(100, 50)).generate([Message("user", "how?")])
    chunks = pushed(chat(include_usage=True, logprobs=True, events=True), [*events, Over(False)])
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    assert said(chunks, "content") == "It is forty-two é."
    opened, closed = (
        next(c["sr_edge"] for c in chunks if key in c["sr_edge"]) for key in ("opened", "closed")
    )
    assert (opened["span"], opened["origin"], opened["opened"]["remote"]) == (1, "remote", "scripted remote")
    assert opened["opened"]["trigger"] == "marker"
    assert opened["opened"]["sent_tokens"] > 0
    assert (closed["closed"]["end"], closed["closed"]["tokens"]) == ("stop", 9)
    usage = chunks[-1]["usage"]
    assert chunks[-1]["choices"] == []
    assert usage["sr_edge"] | {"seconds": 0} == {
        "local_tokens": 12,  # ten bytes, the opening marker, the end
        "remote_tokens": 9,
        "share": 9 / 21,
        "spans": 1,
        "cost": None,
        "seconds": 0,
    }
    assert usage["completion_tokens"] == 21
    assert usage["total_tokens"] == usage["prompt_tokens"] + 21


def test_a_whole_reply_is_read_by_openais_own_types():
    reply = chat(stream=False, logprobs=True)
    events = [*tokens("so "), *span(1, "yes", cost=0.25, ttft=0.1), *tokens(".")]
    pushed(reply, [started("<think>\n"), *tokens("hm", "</think>"), *events, finished(local=5), Over(False)])
    whole = reply.whole()
    answer = ChatCompletion.model_validate(whole).choices[0]
    assert answer.message.content == "so yes."
    assert answer.message.model_extra["reasoning_content"] == "hm"
    assert answer.finish_reason == "stop"
    assert [entry.token for entry in answer.logprobs.content] == ["hm", "</think>", "so ", "."]
    assert whole["choices"][0]["sr_edge"]["segments"] == [
        {"text": "hm", "part": "reasoning", "span": None, "origin": "local"},
        {"text": "so ", "part": "answer", "span": None, "origin": "local"},
        {"text": "yes", "part": "answer", "span": 1, "origin": "remote"},
        {"text": ".", "part": "answer", "span": None, "origin": "local"},
    ]
    (mark,) = whole["choices"][0]["sr_edge"]["spans"]
    assert (mark["opened"]["sent_bytes"], mark["closed"]["cost"], mark["closed"]["remote"]) == (
        9,
        0.25,
        "large",
    )
    assert whole["usage"]["sr_edge"]["cost"] == 0.25
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


def test_a_stop_that_two_writers_share_is_found():
    reply = chat(stops=("\nQ:",))
    heard = [started(), *tokens("yes", "\n"), SpanOpened(1, "marker", 0.9, "large"), SpanDelta(1, "Q: more")]
    assert said(pushed(reply, heard), "content") == "yes"
    assert reply.is_stopped()
    ends = [SpanClosed(1, (), "cancelled"), *tokens("never"), finished("cancelled"), Over(False)]
    chunks = pushed(reply, ends)
    assert said(chunks, "content") == ""
    assert finish(chunks) == "stop"


def test_a_stop_is_not_looked_for_in_a_thought():
    reply = chat(stops=("\n\n",))
    chunks = pushed(reply, [started("<think>\n"), *tokens("one\n\ntwo", "</think>", "a\n\nb")])
    assert (said(chunks, "reasoning_content"), said(chunks, "content")) == ("one\n\ntwo", "a")
    assert reply.is_stopped()


def test_what_is_held_back_comes_when_the_answer_ends():
    for heard in (finished("stop"), finished("length"), finished("cancelled")):
        chunks = pushed(chat(stops=("###",)), [started(), *tokens("a", "##"), heard, Over(True)])
        assert said(chunks, "content") == "a##"
    chunks = pushed(chat(), [started("<think>\n"), *tokens("a", "</thi"), finished(), Over(False)])
    assert said(chunks, "reasoning_content") == "a</thi"


@pytest.mark.parametrize(
    ("reason", "is_overdue", "expected"),
    [
        ("stop", False, "stop"),
        ("length", False, "length"),
        ("stop", True, "stop"),
        ("cancelled", True, "length"),
    ],
)
def test_how_an_answer_ends(reason, is_overdue, expected):
    chunks = pushed(chat(), [started(), *tokens("a"), finished(reason), Over(is_overdue)])
    assert finish(chunks) == expected


def test_nothing_is_sent_before_it_is_certain_that_there_is_an_answer():
    reply = chat()
    assert pushed(reply, [started()]) == []
    assert pushed(reply, [finished("refused", error="made for other questions"), Over(False)]) == []
    assert reply.problem.status == 400
    assert reply.problem.body == error_object("made for other questions", param="messages", code="refused")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BadRequest("no", param="seed", code="invalid_value"), 400, "invalid_value"),
        (ContextFullError("too long"), 400, "context_length_exceeded"),
        (UsageError("no large model"), 400, "invalid_value"),
        (ModelError("its chat template fails"), 400, "invalid_value"),
        (Busy("too many", retry_after=3), 429, "rate_limit_exceeded"),
        (GenerationError("it broke"), 500, None),
    ],
)
def test_what_fails_before_an_answer_is_a_status(error, status, code):
    reply = chat()
    assert pushed(reply, [Failed(error), Over(False)]) == []
    assert reply.problem == problem_of(error)
    assert (reply.problem.status, reply.problem.body["error"]["code"]) == (status, code)
    assert reply.problem.retry_after == (3 if status == 429 else None)
    assert reply.is_over


def test_an_answer_that_breaks_off_has_no_end():
    for broken in ([Failed(GenerationError("it broke"))], [finished("error", error="it broke")]):
        reply = chat(include_usage=True)
        chunks = pushed(reply, [started(), *tokens("a"), *broken, Over(False)])
        assert finish(chunks) is None
        assert reply.problem.body["error"]["message"] == "it broke"


def test_an_answer_that_was_cancelled_is_no_whole_one():
    for heard in ([Over(False)], [Over(True)], [started(), *tokens("a"), finished("cancelled"), Over(False)]):
        reply = chat(stream=False)
        pushed(reply, heard)
        assert reply.problem.status == 503


def test_what_was_continued_counts_as_prompt():
    reply = chat(continues="It is", include_usage=True, logprobs=True)
    heard = [started(reused=2), *tokens("It", " is", " so", "."), finished(local=4), Over(False)]
    chunks = pushed(reply, heard)
    assert said(chunks, "content") == " so."
    usage = chunks[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 2)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}
    entries = [c["choices"][0]["logprobs"]["content"] for c in chunks[1:3]]
    assert [entry["token"] for found in entries for entry in found] == [" so", "."]


def test_a_chunk_is_one_line_to_every_reader():
    text = "a\u2028b\u2029c\u0085d\ne\r\ud800"
    (line, *rest) = sse({"text": text}).decode().splitlines()
    assert rest == [""]
    assert json.loads(line.removeprefix("data: "))["text"] == text.replace("\ud800", "?")


# --- raw completions ----------------------------------------------------------------------------------


def test_a_raw_completion_splits_no_thought_and_is_read_by_openais_own_types():
    reply = completion("so", stream=False, logprobs=True)
    events = [*tokens("a</think>"), *span(1, "b"), *tokens("c"), finished(local=3, remote=1), Over(False)]
    pushed(reply, [started("<think>\n"), *events])
    whole = Completion.model_validate(reply.whole())
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("a</think>bc", "stop")
    assert whole.choices[0].logprobs.tokens == ["a</think>", "c"]
    assert whole.usage.completion_tokens == 4
    assert whole.usage.completion_tokens_details.reasoning_tokens == 0


def test_several_prompts_are_several_choices_heard_in_any_order():
    for stream in (True, False):
        reply = completion("A", "B", echo=True, stream=stream, include_usage=True, stops=("!",))
        assert pushed(reply, [started()], 0) == []
        chunks = pushed(reply, [started(), *tokens("b1")], 1)
        chunks += pushed(reply, [*tokens("a1!never")], 0)
        assert (reply.is_stopped(0), reply.is_stopped(1)) == (True, False)
        chunks += pushed(reply, [*tokens("b2"), finished(local=2), Over(False)], 1)
        assert not reply.is_over
        chunks += pushed(reply, [finished("cancelled", local=1), Over(False)], 0)
        assert reply.is_over
        whole = chunks[-1] if stream else reply.whole()
        assert whole["usage"]["completion_tokens"] == 3
        assert whole["usage"]["prompt_tokens"] == 6
        if stream:
            found = ["", ""]
            for chunk in chunks[:-1]:
                found[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        else:
            found = [choice["text"] for choice in whole["choices"]]
            assert [choice["index"] for choice in whole["choices"]] == [0, 1]
        assert found == ["Aa1", "Bb1b2"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_counts_once_however_many_choices_it_has(stream):
    """And as its first choice found it: the others find all of it in the cache."""
    chat_reply = chat(n=3, stream=stream, include_usage=True)
    raw_reply = completion("A", "B", n=2, echo=True, stream=stream, include_usage=True)
    for reply, n in ((chat_reply, 3), (raw_reply, 4)):
        chunks = []
        for choice in reversed(range(n)):
            reused = 1 if choice % 2 == 0 else 3
            heard = [started(reused=reused), *tokens(str(choice)), finished(local=1), Over(False)]
            chunks += pushed(reply, heard, choice)
        last = chunks[-1] if stream else reply.whole()
        prompts = 1 if reply is chat_reply else 2
        assert last["usage"]["prompt_tokens"] == 3 * prompts
        assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == prompts
        assert last["usage"]["completion_tokens"] == n
        assert last["usage"]["total_tokens"] == 3 * prompts + n
    if stream:
        return
    assert [choice["text"] for choice in raw_reply.whole()["choices"]] == ["A0", "A1", "B2", "B3"]
    whole = ChatCompletion.model_validate(chat_reply.whole())
    assert [(one.index, one.message.content) for one in whole.choices] == [(0, "0"), (1, "1"), (2, "2")]


def test_a_problem_of_one_choice_is_one_of_the_reply():
    reply = completion("A", "B", stream=False)
    pushed(reply, [started(), *tokens("a"), finished(), Over(False)], 0)
    pushed(reply, [Failed(Busy("pushed out", retry_after=2)), Over(False)], 1)
    assert reply.problem.status == 429


def test_a_remote_that_fails_is_told_with_its_span_and_the_answer_goes_on():
    local = ScriptedLocal([[*b"a", OPEN], [*b"b"]])
    remote = ScriptedRemote([Reply((), Outcome("error", "the remote is ill"))])
    events = SplitDecoder(local, remote, limits=Limits(100, 50)).generate([Message("user", "how?")])
    chunks = pushed(chat(), [*events, Over(False)])
    (closed,) = (c["sr_edge"]["closed"] for c in chunks if "closed" in c["sr_edge"])
    assert (closed["end"], closed["error"]) == ("error", "the remote is ill")
    assert said(chunks, "content") == "ab"
    assert finish(chunks) == "stop"
