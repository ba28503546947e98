"""Going on with an answer that broke off: first what always holds, cut anywhere, then the stories."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.edge.test_split import (
    LONG,
    PAIRS,
    PIECES,
    QUESTION,
    REPLIES,
    SEGMENTS,
    OneGate,
    assert_lawful,
    run,
)

from sr_edge.errors import ContextFullError, StoppedError
from sr_edge.events import Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started
from sr_edge.past import Past, taken_over
from sr_edge.roles import Limits, Message, Outcome, Steering
from sr_edge.split import SplitDecoder
from sr_edge.testing import CLOSE, END, OPEN, Reply, ScriptedLocal, ScriptedRemote, TextLocal
from sr_edge.transcript import fold

WORDS = st.sets(st.sampled_from(["xy", "yxyxy", "zyé.", "\n\n", " z", "ab"]))


def scripted(segments, **options):
    return ScriptedLocal([[*text.encode(), *([OPEN] if asks else [])] for text, asks in segments], **options)


def ticking():
    ticks = itertools.count()
    return lambda: next(ticks) / 1000


def go_on(local, remote, past, **options):
    events = run_past(local, remote, past, **options)
    return events, assert_goes_on(events, local, past)


def run_past(local, remote, past, *, messages=QUESTION, first=None, cancelled=lambda: False, **options):
    decoder = SplitDecoder(local, remote, clock=options.pop("clock", ticking()), **options)
    return list(decoder.generate(messages, past=past, first=first, cancelled=cancelled))


def assert_goes_on(events, local, past):
    """A lawful stream that begins with all that was there."""
    transcript = assert_lawful(events, local)
    assert tuple(events[1 : 1 + len(past)]) == tuple(past)
    assert transcript.text.startswith(fold(past).text)
    return transcript


def bare(events):
    """What was written, whenever that was."""
    kinds = {LocalToken: ("id", "text"), SpanDelta: ("span", "text"), SpanClosed: ("span", "ids", "end")}
    return [[getattr(e, name) for name in kinds[type(e)]] for e in events if type(e) in kinds]


@settings(max_examples=60)
@given(
    segments=SEGMENTS,
    replies=REPLIES,
    more=REPLIES,
    hand_back_at=st.integers(1, 12),
    refused=st.sets(st.integers(1, 4)),
    max_tokens=st.integers(1, 60),
    stop_after=st.integers(0, 80),
    context=st.integers(60, 160),
    words=WORDS,
    first=st.sampled_from([None, "local", "remote"]),
    policy=st.sampled_from(["auto", "local", "remote"]),
    hedge=st.booleans(),
)
def test_an_answer_that_was_cut_anywhere_goes_on_lawfully(
    segments,
    replies,
    more,
    hand_back_at,
    refused,
    max_tokens,
    stop_after,
    context,
    words,
    first,
    policy,
    hedge,
):
    options = {"wants_pen": lambda text: len(text) >= hand_back_at, "context": context, "words": words}
    whole = run(
        scripted(segments, **options),
        ScriptedRemote(replies),
        gate=OneGate(*refused),
        limits=Limits(max_tokens, 12, 6),
        clock=ticking(),
        policy=policy,
        hedge=hedge,
    )
    for cut in range(len(whole) + 1):
        past = taken_over(whole[:cut])
        local, remote, looks = scripted(segments, **options), ScriptedRemote(more), itertools.count()
        try:
            events = run_past(
                local,
                remote,
                past,
                first=first,
                gate=OneGate(*refused),
                limits=Limits(max_tokens, 12, 6),
                cancelled=lambda: next(looks) > stop_after,  # noqa: B023  used up in this turn of the loop
                hedge=hedge,
            )
        except ContextFullError:
            assert past, "a fresh answer did fit"
            continue
        transcript = assert_goes_on(events, local, past)
        assert all(stream.closed and not stream.read_after_close for stream in remote.streams)
        if first == "remote" and transcript.spans[len(fold(past).spans) :]:
            assert transcript.spans[len(fold(past).spans)].trigger == "user"
        users = [span for span in transcript.spans if span.trigger == "user" and span.text]
        assert [*transcript.ids].count(OPEN) - transcript_markers(transcript) == len(users)


def transcript_markers(transcript):
    return sum(sampled and id == OPEN for id, sampled in zip(transcript.ids, transcript.sampled, strict=True))


@settings(max_examples=60)
@given(segments=SEGMENTS, replies=REPLIES, hand_back_at=st.integers(1, 12), words=WORDS, data=st.data())
def test_cut_between_spans_it_goes_on_as_if_it_had_not_been(segments, replies, hand_back_at, words, data):
    options = {"wants_pen": lambda text: len(text) >= hand_back_at, "words": words}
    local = scripted(segments, **options)
    whole = run(local, ScriptedRemote(replies))
    inside = list(itertools.accumulate(isinstance(e, SpanOpened) - isinstance(e, SpanClosed) for e in whole))
    for cut in [n + 1 for n in range(len(whole)) if not inside[n]]:
        past = taken_over(whole[:cut])
        if past and isinstance(past[-1], SpanClosed) and not past[-1].ids:
            continue  # there the small model was told not to ask at once again; the next test has that
        fresh = scripted(segments, **options)
        events, _ = go_on(fresh, ScriptedRemote(replies[Past.of(past).spans :]), past)
        assert bare(events) == bare(whole)
        assert list(fresh.ids) == list(local.ids)


def test_after_a_span_that_brought_nothing_it_may_be_asked_again():
    local = ScriptedLocal([[*b"a", OPEN], [*b"b"]])
    whole = run(local, ScriptedRemote([Reply((), Outcome("error", "down"))]))
    past = taken_over(whole)[:3]
    assert isinstance(past[-1], SpanClosed)
    _, transcript = go_on(ScriptedLocal([[*b"a", OPEN], [*b"b"]]), ScriptedRemote(["help"]), past)
    assert transcript.text == "ahelpb"


def test_a_character_that_was_cut_in_the_middle_is_whole_in_the_end():
    local = ScriptedLocal([[*"é!".encode()]])
    whole = run(local)
    assert [e.text for e in whole[1:3]] == ["", "é"]
    _, transcript = go_on(ScriptedLocal([[*"é!".encode()]]), None, taken_over(whole[:2]))
    assert transcript.text == "é!"


def test_a_character_that_a_span_cut_off_stays_so():
    """Whether that span is over or was cut itself."""
    script = [[0xC3, OPEN], [*b"b"]]
    whole = run(ScriptedLocal(script), ScriptedRemote(["x", "y"]))
    for end in (SpanDelta, SpanClosed):
        cut = 1 + next(n for n, e in enumerate(whole) if isinstance(e, end))
        _, transcript = go_on(ScriptedLocal(script), ScriptedRemote(), taken_over(whole[:cut]))
        assert transcript.text == fold(whole).text == "\ufffdxb"


def test_an_answer_that_is_whole_stays_so():
    whole = run(ScriptedLocal([[*b"ab"]]))
    local = ScriptedLocal([[*b"ab"]])
    events, transcript = go_on(local, None, taken_over(whole))
    assert (transcript.text, transcript.finish) == ("ab", "stop")
    assert bare(events) == bare(whole)


# --- a span that was cut ---


def cut_in_a_span(trigger="marker", pieces=("one ", "two ")):
    """The events of an answer up to the last text of its span."""
    local = ScriptedLocal([[*b"a", *([OPEN] if trigger == "marker" else [])], [*b"b"]])
    remote = ScriptedRemote([Reply((*pieces, "three"))])
    if trigger == "user":
        past = taken_over(run(ScriptedLocal([[*b"a"], []])))[:1]
        events = run_past(local, remote, past, first="remote")
    elif trigger == "policy":
        events = run(local, remote, policy="remote")
    else:
        events = run(local, remote)
    last = max(n for n, e in enumerate(events) if isinstance(e, SpanDelta))
    return taken_over(events[:last])


@pytest.mark.parametrize("trigger", ["marker", "user"])
def test_the_text_of_a_span_that_was_cut_is_kept_between_its_markers(trigger):
    past = cut_in_a_span(trigger)
    text = Past.of(past).cut_text
    assert text
    local = ScriptedLocal([[*b"a", OPEN], [*b"b"]])
    events, transcript = go_on(local, ScriptedRemote(), past)
    closed = events[1 + len(past)]
    assert transcript.ids == (ord("a"), OPEN, *text.encode(), CLOSE, ord("b"), END)
    assert (closed.end, closed.error, closed.tokens) == ("cancelled", "the program ended here", len(text))
    assert closed.seconds == past[-1].at - next(e.at for e in past if isinstance(e, SpanOpened))
    assert 0 < closed.ttft <= closed.seconds
    assert transcript.text == f"a{text}b"


def test_a_span_that_was_cut_before_its_text_leaves_nothing():
    past = cut_in_a_span()
    past = past[: 1 + next(n for n, e in enumerate(past) if isinstance(e, SpanOpened))]
    _, transcript = go_on(ScriptedLocal([[*b"a", OPEN], [*b"b"]]), ScriptedRemote(), past, first="local")
    assert transcript.ids == (*b"ab", END)


def test_a_marker_without_the_text_that_was_to_follow_is_closed():
    past = cut_in_a_span()
    past = past[: 1 + next(n for n, e in enumerate(past) if isinstance(e, LocalToken) and e.id == OPEN)]
    _, transcript = go_on(ScriptedLocal([[*b"a", OPEN], [*b"b"]]), ScriptedRemote(), past)
    assert transcript.ids == (ord("a"), OPEN, CLOSE, ord("b"), END)
    assert transcript.text == "ab"


def test_what_the_large_model_was_to_write_alone_has_no_markers():
    past = cut_in_a_span("policy")
    text = Past.of(past).cut_text
    local = ScriptedLocal([[*b"never"]])
    _, transcript = go_on(local, ScriptedRemote(["the rest"]), past, policy="remote")
    assert transcript.text == text + "the rest"
    assert not {OPEN, CLOSE} & set(transcript.ids)


def test_a_cut_span_counts_as_time_in_spans():
    past = cut_in_a_span()
    events, _ = go_on(ScriptedLocal([[*b"a", OPEN], [*b"b"]]), ScriptedRemote(), past)
    assert 0 <= events[-1].local_seconds <= events[-1].seconds - events[1 + len(past)].seconds


# --- who goes on ---


def test_where_the_small_model_is_to_write_it_does_not_ask():
    whole = run(ScriptedLocal([[*b"a", OPEN], [*b"bc", OPEN], [*b"d"]]), ScriptedRemote(["1", "2"]))
    past = taken_over(whole, before_span=1)
    local, remote = ScriptedLocal([[*b"a", OPEN], [*b"bc", OPEN], [*b"d"]]), ScriptedRemote(["2"])
    _, transcript = go_on(local, remote, past, first="local")
    assert transcript.text == "abc2d", "later it may"
    assert remote.asked == ["abc"]


def test_the_small_model_writes_where_it_is_told_to_though_the_policy_is_remote():
    local, remote = ScriptedLocal([[*b"mine"]]), ScriptedRemote(["theirs"])
    events = run_past(local, remote, (), first="local", policy="remote")
    assert (fold(events).text, remote.streams) == ("mine", [])


def test_where_the_large_model_is_to_write_a_span_opens_between_markers():
    past = taken_over(run(ScriptedLocal([[*b"ab"]])))[:1]
    local, gate = ScriptedLocal([[*b"a", OPEN], [*b"b"]]), OneGate()
    remote = ScriptedRemote(["help"])
    events, transcript = go_on(local, remote, past, first="remote", gate=gate)
    assert transcript.text == "ahelpb"
    assert (transcript.spans[0].trigger, transcript.spans[0].p_open) == ("user", None)
    closed = next(e for e in events if isinstance(e, SpanClosed))
    assert closed.ids == (OPEN, *b"help", CLOSE)
    assert remote.asked == ["a"]
    assert gate.reports == [("stop", None)]


def test_the_small_model_takes_the_pen_back_from_a_span_that_the_user_asked_for():
    local = ScriptedLocal([[OPEN], [*b"!"]], wants_pen=lambda text: text == "one")
    _, transcript = go_on(local, ScriptedRemote(["one two three"]), (), first="remote")
    assert transcript.text == "one!"
    assert transcript.spans[0].end == "handback"


@pytest.mark.parametrize(
    ("reply", "refused", "end"),
    [
        (Reply((), Outcome("error", "down")), (), "error"),
        (Reply(), (), "stop"),
        (Reply(("never",)), (1,), "declined"),
    ],
)
def test_a_span_that_the_user_asked_for_in_vain_leaves_nothing(reply, refused, end):
    past = taken_over(run(ScriptedLocal([[*b"ab"]])))[:1]
    local = ScriptedLocal([[*b"a", OPEN], [*b"b"]])
    _, transcript = go_on(local, ScriptedRemote([reply]), past, first="remote", gate=OneGate(*refused))
    assert transcript.ids == (*b"ab", END), "nor does the small model ask at once again"
    assert [span.end for span in transcript.spans] == [end]


def test_who_goes_on_is_settled_in_text_too():
    """Where the marker is spelled by tokens that no ban foresees."""
    tokens = ["So", ".<", "big", "model", ">\n", "<", "big", "model", ">", "Then", " <", "big", "model", ">"]
    local, remote = TextLocal(tokens[1:]), ScriptedRemote(["x"])
    past = (LocalToken(id=local._vocabulary["big"], text="So", logprob=-0.1),)
    _, transcript = go_on(local, remote, past, first="local")
    assert transcript.text == "SoThen x"
    assert remote.asked == ["SoThen "]


def test_after_a_stop_nothing_is_asked_again():
    past = taken_over(run(ScriptedLocal([[*b"ab"]])))[:1]
    remote = ScriptedRemote(["never"])
    events, _ = go_on(ScriptedLocal([[*b"ab"]]), remote, past, first="remote", cancelled=looks(1))
    assert remote.asked == []
    assert not fold(events).spans


def looks(n):
    """Stopped after so many looks."""
    count = itertools.count()
    return lambda: next(count) >= n


# --- reading it again ---


@pytest.mark.parametrize("after", range(6))
@pytest.mark.parametrize("trigger", ["marker", "user", "policy"])
def test_a_stop_while_the_past_is_read_again_loses_nothing_of_it(trigger, after):
    long = (LocalToken(id=ord("x"), text="x", logprob=-0.1, at=0.0),) * 600
    past = (*long, *cut_in_a_span(trigger))
    local = ScriptedLocal([[*b"x" * 600, *b"a", OPEN], [*b"b"]])
    messages = [Message("user", "why? " * 80)]
    options = {"policy": "remote" if trigger == "policy" else "auto", "messages": messages}
    events = run_past(local, ScriptedRemote(), past, cancelled=looks(after), **options)
    transcript = fold(events)
    assert transcript.prompt_ids == local.render(messages).ids
    assert tuple(events[1 : 1 + len(past)]) == past
    assert transcript.finish == "cancelled"
    ids = transcript.prompt_ids + transcript.ids
    assert ids[: len(local.ids)] == tuple(local.ids)
    # and from there it can be gone on with, as if nobody had stopped
    again = ScriptedLocal([[*b"x" * 600, *b"a", OPEN], [*b"b"]])
    expected = ScriptedLocal([[*b"x" * 600, *b"a", OPEN], [*b"b"]])
    _, stopped = go_on(again, ScriptedRemote(["r"]), taken_over(events), **options)
    _, straight = go_on(expected, ScriptedRemote(["r"]), past, **options)
    assert stopped.text == straight.text
    assert list(again.ids) == list(expected.ids)


def test_what_does_not_fit_is_refused_before_any_event():
    past = (LocalToken(id=ord("x"), text="x", logprob=-0.1),) * 40
    decoder = SplitDecoder(ScriptedLocal([[]], context=50))
    with pytest.raises(ContextFullError, match="the question and the answer so far are 46 tokens"):
        list(decoder.generate(QUESTION, past=past))


def test_the_text_of_a_cut_span_must_fit_too():
    opened = SpanOpened(span=1, trigger="marker", p_open=1.0, remote="r")
    past = (opened, LocalToken(id=OPEN, text="", logprob=-0.1), SpanDelta(span=1, text="x" * 40))
    decoder = SplitDecoder(ScriptedLocal([[]], context=50))
    with pytest.raises(ContextFullError):
        list(decoder.generate(QUESTION, past=past))


@pytest.mark.parametrize("policy", ["auto", "remote"])
def test_the_length_of_the_answer_counts_what_was_there(policy):
    past = (LocalToken(id=ord("x"), text="x", logprob=-0.1),) * 5
    for more in (0, 3):
        local = ScriptedLocal([[*b"x" * 20]])
        _, transcript = go_on(local, ScriptedRemote(["y" * 20]), past, policy=policy, limits=Limits(5 + more))
        assert (len(transcript.text), transcript.finish) == (5 + more, "length")


@pytest.mark.parametrize(
    "events",
    [
        [Started(prompt_ids=(), model="m")],
        [Finished(reason="stop", prompt_tokens=0, local_tokens=0, remote_tokens=0, seconds=0.0)],
        [SpanOpened(span=2, trigger="marker", p_open=1.0, remote=None)],
        [SpanOpened(span=n, trigger="marker", p_open=1.0, remote=None) for n in (1, 2)],
        [SpanDelta(span=1, text="x")],
        [SpanClosed(span=1, ids=(), end="stop")],
    ],
)
def test_what_is_no_part_of_an_answer_is_refused(events):
    with pytest.raises(ValueError, match=r"open here|not taken over"):
        SplitDecoder(ScriptedLocal([[]])).generate(QUESTION, past=events)


# --- limits and dials ---


def test_the_first_span_that_a_gate_is_asked_for_begins_a_run():
    class Watching(OneGate):
        def admit(self, request):
            self.firsts = [*getattr(self, "firsts", []), (request.span, request.is_first)]
            return super().admit(request)

    script = [[*b"a", OPEN], [*b"b", OPEN], [*b"c", OPEN], [*b"d"]]
    gate = Watching()
    whole = run(ScriptedLocal(script), ScriptedRemote("123"), gate=gate)
    assert gate.firsts == [(1, True), (2, False), (3, False)]
    gate = Watching()
    past = taken_over(whole, before_span=2)
    go_on(ScriptedLocal(script), ScriptedRemote("23"), past, gate=gate)
    assert gate.firsts == [(2, True), (3, False)]


def test_the_gate_sees_the_text_that_would_be_sent():
    class Watching(OneGate):
        def admit(self, request):
            self.answer = request.answer
            return super().admit(request)

    gate, remote = Watching(), ScriptedRemote(["x"])
    run(TextLocal(["So", ".<", "big", "model", ">\n", "end"]), remote, gate=gate)
    assert [gate.answer] == remote.asked == ["So.\n"]


def test_a_stop_while_the_user_is_asked_is_a_stop():
    stopped = []

    class Asking(OneGate):
        def admit(self, request):
            stopped.append(True)
            return super().admit(request)

    for refused in ((), (1,)):
        stopped.clear()
        local, remote = ScriptedLocal([[*b"a", OPEN], [*b"b"]]), ScriptedRemote(["never"])
        events = run(local, remote, gate=Asking(*refused), cancelled=lambda: bool(stopped))
        transcript = assert_lawful(events, local)
        assert [(span.end, span.error) for span in transcript.spans] == [("cancelled", None)]
        assert remote.asked == []


def test_the_dial_is_looked_at_before_each_token():
    script = [[*b"a", OPEN], [*b"b", OPEN], [*b"c", OPEN], [*b"d"]]
    local, remote, written = ScriptedLocal(script), ScriptedRemote(["1", "3"]), []
    decoder = SplitDecoder(local, remote, steer=lambda: Steering(asks="b" not in written or "c" in written))
    for event in decoder.generate(QUESTION):
        written += [event.text] if isinstance(event, LocalToken) else []
    assert remote.asked == ["a", "a1bc"]
    assert "".join(written) == "abcd"


def test_a_span_is_hung_up_on_when_the_dial_is_turned_to_local():
    looks = itertools.count()
    local, remote = (
        ScriptedLocal([[*b"a", OPEN], [*b"b"]]),
        ScriptedRemote([Reply(("one ", *[""] * 50, "two"))]),
    )
    decoder = SplitDecoder(local, remote, steer=lambda: Steering(asks=next(looks) < 5))
    transcript = assert_lawful(list(decoder.generate(QUESTION)), local)
    assert [(span.text, span.end) for span in transcript.spans] == [("one ", "cancelled")]
    assert (transcript.finish, transcript.text) == ("stop", "aone b")
    assert remote.streams[0].closed


def test_the_time_in_which_the_user_is_asked_is_neither_models():
    now = [0.0]

    class Slow(OneGate):
        def admit(self, request):
            now[0] += 100
            return super().admit(request)

    def clock():
        now[0] += 0.001
        return now[0]

    local = ScriptedLocal([[*b"a", OPEN], [*b"b"]])
    events = run(local, ScriptedRemote(["x"]), gate=Slow(), clock=clock)
    closed = next(e for e in events if isinstance(e, SpanClosed))
    assert closed.seconds < 1
    assert closed.ttft < 1
    assert events[-1].local_seconds < 1
    assert events[-1].seconds > 100


# --- a model that is stopped in the middle of a step ---


class Stopping(ScriptedLocal):
    """From the n-th step on every step is refused, and what stops the model stops the answer."""

    def __init__(self, segments, n, **options):
        super().__init__(segments, **options)
        self.left = n

    @property
    def is_stopped(self):
        return self.left <= 0

    def _step(self):
        self.left -= 1
        if self.is_stopped:
            raise StoppedError("stopped")

    def sample(self, banned=(), logit_bias=()):
        self._step()
        return super().sample(banned, logit_bias)

    def feed(self, ids, *, probe=False):
        if probe or len(ids) > 16:  # as `LlamaLocal` has it
            self._step()
        return super().feed(ids, probe=probe)


@settings(max_examples=150)
@given(
    segments=SEGMENTS,
    replies=REPLIES,
    hand_back_at=st.integers(1, 12),
    words=WORDS,
    n=st.integers(0, 40),
    hedge=st.booleans(),
    question=st.integers(1, 40),
)
def test_a_stop_in_the_middle_of_a_step_keeps_what_was_seen(
    segments, replies, hand_back_at, words, n, hedge, question
):
    options = {"wants_pen": lambda text: len(text) >= hand_back_at, "words": words}
    script = [[*text.encode(), *([OPEN] if asks else [])] for text, asks in segments]
    local = Stopping(script, n, **options)
    messages = [Message("user", "q" * question)]
    events = run(
        local, ScriptedRemote(replies), messages=messages, hedge=hedge, cancelled=lambda: local.is_stopped
    )
    transcript = assert_lawful(events, local)
    if local.is_stopped:
        assert transcript.finish == "cancelled"
    assert transcript.error is None
    # all that is seen is read, and no span is left open
    read = b"".join(map(local.piece, transcript.ids)).decode(errors="replace")
    assert read.rstrip("\ufffd") == transcript.text.rstrip("\ufffd")
    assert list(transcript.ids).count(OPEN) == list(transcript.ids).count(CLOSE)


@settings(max_examples=100)
@given(PIECES, st.integers(0, 12))
@example(["zx"] * 8, 4)
def test_a_stop_while_tokens_are_cut_anew_keeps_the_ones_that_were_seen(pieces, n):
    local = Stopping([[OPEN], [*b"ok"]], n, words=PAIRS + LONG)
    events = run(local, ScriptedRemote([Reply(tuple(pieces))]), cancelled=lambda: local.is_stopped)
    transcript = assert_lawful(events, local)
    assert b"".join(map(local.piece, transcript.ids)).decode() == transcript.text
