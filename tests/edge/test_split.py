"""Split decoding over scripted models: first what always holds, on random scripts, then the stories."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sr_edge.errors import ContextFullError, GenerationError
from sr_edge.events import (
    Finished,
    LocalToken,
    SpanClosed,
    SpanDelta,
    SpanOpened,
    Started,
    from_json,
    to_json,
)
from sr_edge.roles import Grant, Limits, Message, Outcome, Refusal
from sr_edge.split import SplitDecoder
from sr_edge.testing import CLOSE, END, OPEN, Reply, ScriptedLocal, ScriptedRemote, TextLocal
from sr_edge.transcript import fold

QUESTION = [Message("user", "how?")]
ENDLESS = Limits(10**6, 10**6, 10**6)


class OneGate:
    """Refuses the spans whose numbers it was given, and remembers what it was told."""

    def __init__(self, *refused, end="declined"):
        self.refused, self.end, self.asked, self.reports = refused, end, 0, []

    def admit(self, request):
        self.asked += 1
        if self.asked in self.refused:
            return Refusal(self.end, "not today")
        return Grant(request.max_tokens)

    def report(self, request, end, outcome, tokens):
        self.reports.append((end, outcome.error))


def run(local, remote=None, *, messages=QUESTION, cancelled=None, schedule=None, **options):
    decoder = SplitDecoder(local, remote, **options)
    extra = {"cancelled": cancelled} if cancelled else {}
    return list(decoder.generate(messages, schedule=schedule, **extra))


def assert_lawful(events, local):
    """The invariants of the event stream, whatever happened."""
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert sum(isinstance(e, Started | Finished) for e in events) == 2
    open_span, numbers = None, []
    for event in events:
        match event:
            case SpanOpened():
                assert open_span is None
                open_span = event.span
                numbers.append(event.span)
            case SpanDelta():
                assert event.span == open_span
                assert event.text
            case SpanClosed():
                assert event.span == open_span
                open_span = None
    assert open_span is None
    assert numbers == list(range(1, len(numbers) + 1))
    transcript = fold(events)
    assert list(transcript.prompt_ids + transcript.ids) == list(local.ids)
    texts = [e.text for e in events if isinstance(e, LocalToken | SpanDelta)]
    assert "".join(texts) == transcript.text
    finished = events[-1]
    assert (finished.local_tokens, finished.remote_tokens) == (
        transcript.local_tokens,
        transcript.remote_tokens,
    )
    times = [e.at for e in events]
    assert times == sorted(times)
    assert [from_json(to_json(e)) for e in events] == events
    return transcript


LETTERS = st.text("abé \n<", max_size=6)
SEGMENTS = st.lists(st.tuples(LETTERS, st.booleans()), min_size=1, max_size=5)
ENDS = st.sampled_from(["stop", "cap", "stalled", "error"])
REPLIES = st.lists(
    st.builds(
        lambda pieces, end: Reply(
            tuple(pieces), Outcome(end, "it broke" if end in ("error", "stalled") else None)
        ),
        st.lists(st.text("xyé zé.\n</bigmodel>", max_size=8), max_size=6),
        ENDS,
    ),
    max_size=5,
)


@settings(max_examples=200)
@given(
    segments=SEGMENTS,
    replies=REPLIES,
    hand_back_at=st.integers(1, 12),
    refused=st.sets(st.integers(1, 4)),
    max_tokens=st.integers(1, 60),
    max_span=st.integers(1, 20),
    soft=st.integers(1, 20),
    stop_after=st.integers(0, 60),
    context=st.integers(40, 120),
    words=st.sets(st.sampled_from(["xy", "yxyxy", "zyé.", "\n\n", " z", "ab"])),
    min_span=st.integers(0, 3),
    hedge=st.booleans(),
    places=st.sampled_from(["token", "word", "sentence"]),
    batch_tokens=st.integers(1, 8),
)
def test_the_laws_hold_on_random_scripts(
    segments,
    replies,
    hand_back_at,
    refused,
    max_tokens,
    max_span,
    soft,
    stop_after,
    context,
    words,
    min_span,
    hedge,
    places,
    batch_tokens,
):
    script = [[*text.encode(), *([OPEN] if asks else [])] for text, asks in segments]
    local = ScriptedLocal(
        script,
        wants_pen=lambda text: len(text) >= hand_back_at,
        context=context,
        words=words,
        min_span=min_span,
        batch_tokens=batch_tokens,
    )
    remote = ScriptedRemote(replies)
    ticks = itertools.count()
    looks = itertools.count()
    events = run(
        local,
        remote,
        gate=OneGate(*refused),
        limits=Limits(max_tokens, max_span, soft, places),
        hedge=hedge,
        clock=lambda: next(ticks) / 1000,
        cancelled=lambda: next(looks) > stop_after,
    )
    transcript = assert_lawful(events, local)
    assert transcript.local_tokens + transcript.remote_tokens <= max_tokens + 1  # one token may be cut anew
    assert all(stream.closed and not stream.read_after_close for stream in remote.streams)
    for span in transcript.spans:
        assert span.tokens <= max_span + 1
        assert (span.tokens == 0) == (span.text == "")
        assert span.end is not None
        if span.end in ("declined", "offline"):
            assert span.sent_tokens == span.sent_bytes == 0
        assert "bigmodel>" not in span.text or "</bigmodel>" not in span.text
    sampled = [id for id, mask in zip(transcript.ids, transcript.sampled, strict=True) if mask]
    assert CLOSE not in sampled
    assert sampled.count(OPEN) == sum(1 for span in transcript.spans if span.text)


PIECES = st.lists(st.sampled_from(["x", "y", "xy", "zx", "z.", " z", "."]), min_size=1)
PAIRS = ["xy", "yx", " z"]
LONG = ["z.z.z", "xyxyxy", "zxzxzxzx"]  # tokens that become one only after some were read


def ids_of_span(pieces, words, wants_pen):
    local = ScriptedLocal([[OPEN], [*b"ok"]], wants_pen=wants_pen, words=words)
    assert_lawful(run(local, ScriptedRemote([Reply(tuple(pieces))])), local)
    return list(local.ids)


@settings(max_examples=100)
@given(PIECES)
@example(["xy", "x", "yx", "y"])
def test_a_span_is_tokenised_as_a_whole_however_it_arrives(pieces):
    def ids(pieces):
        return ids_of_span(pieces, PAIRS + LONG, lambda text: False)

    assert ids(pieces) == ids(["".join(pieces)])


@settings(max_examples=100)
@given(PIECES, st.integers(1, 40))
def test_the_pen_comes_back_at_the_same_place_however_the_span_arrives(pieces, hand_back_at):
    """Where no token changes after it was read, which holding back the last two nearly always ensures."""

    def ids(pieces):
        return ids_of_span(pieces, PAIRS, lambda text: len(text) >= hand_back_at)

    assert ids(pieces) == ids(["".join(pieces)])


def test_the_loss_mask_is_read_from_the_events():
    local = ScriptedLocal([[*b"a", OPEN], [*b"b"]])
    transcript = assert_lawful(run(local, ScriptedRemote(["xy"])), local)
    assert transcript.ids == (ord("a"), OPEN, ord("x"), ord("y"), CLOSE, ord("b"), END)
    assert transcript.sampled == (True, True, False, False, False, True, True)
    assert transcript.text == "axyb"


def test_the_small_model_takes_the_pen_back_and_the_remote_is_hung_up_on():
    local = ScriptedLocal([[OPEN], [*b"!"]], wants_pen=lambda text: text == "one")
    remote = ScriptedRemote([Reply(("on", "e two", " three", " four", " five"))])
    transcript = assert_lawful(run(local, remote), local)
    assert transcript.text == "one!"
    assert transcript.spans[0].end == "handback"
    assert remote.streams[0].closed
    assert remote.streams[0].unread >= 2


def test_text_is_fed_as_it_arrives():
    """When the remote's last word arrives, all but the held-back tokens are in the cache already."""
    local = ScriptedLocal([[OPEN], []])
    pieces = ["word " * 4] * 10
    run(local, ScriptedRemote([Reply(tuple(pieces))]))
    _, *feeds, last = local.calls
    assert len(feeds) == len(pieces)
    assert last <= 2 + 1, "and the closing marker along with them"


def test_where_single_tokens_are_dear_text_waits_for_more():
    local = ScriptedLocal([[OPEN], []], batch_tokens=16)
    run(local, ScriptedRemote([Reply(("word ",) * 100)]), clock=lambda: 0.0)
    _, *feeds, last = local.calls
    assert sum(feeds) + last == 500 + 1
    assert min(feeds) > 40
    assert last <= 50


def test_text_does_not_wait_long():
    local = ScriptedLocal([[OPEN], []], batch_tokens=16)
    ticks = itertools.count()
    pieces = ("word ", *[""] * 50) * 3
    events = run(local, ScriptedRemote([Reply(pieces)]), clock=lambda: next(ticks) * 0.01)
    shown = [event.at for event in events if isinstance(event, SpanDelta)]
    assert len(shown) == 4, "each word before the next one came, and the tokens that are held back"


PROSE = 'One is 1.5 and x. Two! (Three.) "Four?" *Five:* six\nseven\u3002eight'


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ("token", [PROSE[:n] for n in range(1, len(PROSE) + 1)]),
        (
            "sentence",
            [
                *("One is 1.5 and x.", "One is 1.5 and x. "),
                *("One is 1.5 and x. Two!", "One is 1.5 and x. Two! "),
                *("One is 1.5 and x. Two! (Three.)", "One is 1.5 and x. Two! (Three.) "),
                *(PROSE[: PROSE.index(" *Five")], PROSE[: PROSE.index("*Five")]),
                *(PROSE[: PROSE.index(" six")], PROSE[: PROSE.index("six")]),
                *(
                    PROSE[: PROSE.index("\nseven")],
                    PROSE[: PROSE.index("seven")],
                    PROSE[: PROSE.index("eight")],
                    PROSE,
                ),
            ],
        ),
    ],
)
def test_the_pen_comes_back_at_the_chosen_places(places, expected):
    asked = []
    local = ScriptedLocal([[OPEN], []], wants_pen=lambda text: bool(asked.append(text)))
    run(local, ScriptedRemote([PROSE]), limits=Limits(places=places))
    assert asked == expected


def test_no_word_is_cut_where_the_pen_comes_back_after_words():
    for at in range(1, len(PROSE)):
        local = ScriptedLocal([[OPEN], []], wants_pen=lambda text, at=at: len(text) >= at)
        transcript = assert_lawful(run(local, ScriptedRemote([PROSE]), limits=Limits(places="word")), local)
        text = transcript.spans[0].text
        assert not (text[-1].isalnum() and PROSE[len(text) : len(text) + 1].isalnum())
        assert not any(not (PROSE[n - 1].isalnum() and PROSE[n].isalnum()) for n in range(at, len(text))), (
            "the first place that it could"
        )


def test_cost_is_linear_in_the_length_of_the_span():
    def work(words):
        local = ScriptedLocal([[OPEN], []], words=["or", "d "], context=100_000)
        run(local, ScriptedRemote([Reply(("some words ",) * words)]), limits=ENDLESS)
        return local.tokenized, sum(local.calls)

    tokenized, fed = work(100)
    tokenized_more, fed_more = work(400)
    assert tokenized_more < 4.5 * tokenized
    assert fed_more < 4.5 * fed


def test_cost_is_linear_without_any_word_boundary():
    def work(n):
        local = ScriptedLocal([[OPEN], []], context=100_000)
        run(local, ScriptedRemote([Reply(("1234567890",) * n)]), limits=ENDLESS)
        return local.tokenized

    assert work(400) < 4.5 * work(100)


@pytest.mark.parametrize("end", ["error", "stalled", "stop"])
def test_a_remote_that_brought_nothing_leaves_nothing(end):
    local = ScriptedLocal([[*b"a", OPEN], [*b"b"]])
    gate = OneGate()
    events = run(local, ScriptedRemote([Reply((), Outcome(end, "it broke"))]), gate=gate)
    transcript = assert_lawful(events, local)
    assert transcript.ids == (*b"ab", END)
    assert transcript.spans[0].end == end
    assert gate.reports == [(end, "it broke")]
    assert transcript.finish == "stop"
    assert transcript.degraded == (end != "stop")


def test_text_that_came_before_the_failure_is_kept():
    local = ScriptedLocal([[OPEN], [*b"b"]])
    transcript = assert_lawful(run(local, ScriptedRemote([Reply(("half",), Outcome("error", "cut"))])), local)
    assert transcript.text == "halfb"
    assert transcript.spans[0].end == "error"
    assert transcript.degraded


@pytest.mark.parametrize("end", ["declined", "offline"])
def test_a_refused_span_sends_nothing(end):
    local = ScriptedLocal([[*b"a", OPEN], [*b"b"]])
    remote = ScriptedRemote(["never"])
    transcript = assert_lawful(run(local, remote, gate=OneGate(1, end=end)), local)
    assert remote.asked == []
    assert transcript.text == "ab"
    assert (transcript.spans[0].end, transcript.spans[0].error) == (end, "not today")


def test_the_remote_sees_the_answer_without_markers():
    local = ScriptedLocal([[*b"one ", OPEN], [*b" three ", OPEN], []])
    remote = ScriptedRemote(["two", "four"])
    run(local, remote)
    assert remote.asked == ["one ", "one two three "]


def test_the_policy_local_never_asks():
    local = ScriptedLocal([[*b"a", OPEN], [*b"b"]])
    remote = ScriptedRemote(["never"])
    transcript = assert_lawful(run(local, remote, policy="local"), local)
    assert (transcript.text, transcript.spans, remote.asked) == ("ab", (), [])


def test_the_policy_remote_lets_the_large_model_write_all():
    local = ScriptedLocal([[*b"never"]], wants_pen=lambda text: True)
    transcript = assert_lawful(run(local, ScriptedRemote(["all of it"]), policy="remote"), local)
    assert (transcript.text, transcript.local_tokens, transcript.finish) == ("all of it", 0, "stop")
    assert transcript.remote_share == 1.0


def test_the_policy_remote_ends_in_an_error_where_the_remote_does():
    local = ScriptedLocal([[*b"never"]])
    remote = ScriptedRemote([Reply(("part",), Outcome("error", "it broke"))])
    transcript = assert_lawful(run(local, remote, policy="remote"), local)
    assert (transcript.text, transcript.finish, transcript.error) == ("part", "error", "it broke")


def test_a_schedule_replaces_the_small_models_decision():
    local = ScriptedLocal([[*b"abcd", OPEN], [*b"e"]])
    remote = ScriptedRemote([Reply(("12345",), Outcome("cap"))])
    events = run(local, remote, schedule=lambda n: 3 if n == 2 else None)
    transcript = assert_lawful(events, local)
    assert transcript.text == "ab123cde"
    assert (transcript.spans[0].trigger, transcript.spans[0].end) == ("random", "cap")
    assert CLOSE not in transcript.ids


def test_a_paragraph_past_the_soft_cap_ends_the_span():
    local = ScriptedLocal([[OPEN], [*b"!"]])
    transcript = assert_lawful(
        run(local, ScriptedRemote(["one\n\ntwo two two\n\nthree"]), limits=Limits(100, 50, 8)), local
    )
    assert transcript.text == "one\n\ntwo two two\n\n!"
    assert transcript.spans[0].end == "boundary"


def test_marker_spellings_from_the_remote_are_not_text():
    local = ScriptedLocal([[OPEN], [*b"!"]])
    reply = Reply(("a</big", "model>b<bigmodel>c"))
    transcript = assert_lawful(run(local, ScriptedRemote([reply])), local)
    assert transcript.text == "abc!"


def test_the_next_turn_reads_only_what_is_new():
    local = ScriptedLocal([[*b"a"]])
    run(local)
    fed = sum(local.calls)
    local.rewind(len(local.ids) - 2)  # what the template would not repeat
    events = run(local, messages=[Message("user", "how? and why?")])
    assert events[0].reused > 0
    assert sum(local.calls) - fed == len(events[0].prompt_ids) - events[0].reused


def test_a_question_longer_than_the_context_is_refused_before_any_event():
    with pytest.raises(ContextFullError, match="tokens and the context holds 32"):
        run(ScriptedLocal([[]], context=32), messages=[Message("user", "x" * 40)])


def test_dropping_the_generator_hangs_up():
    remote = ScriptedRemote([Reply(("a b c", "d e f"))])
    events = SplitDecoder(ScriptedLocal([[OPEN], []]), remote).generate(QUESTION)
    while not isinstance(next(events), SpanDelta):
        pass
    events.close()
    assert remote.streams[0].closed


# corner cases, each of which was wrong once


def test_a_span_cut_short_inside_a_character_keeps_the_whole_character():
    local = ScriptedLocal([[OPEN], [*b"!"]])
    remote = ScriptedRemote([Reply(("x😀", "é more", " text"))])
    transcript = assert_lawful(run(local, remote, limits=Limits(100, 3, 3)), local)
    (span,) = transcript.spans
    assert (span.end, span.text) == ("cap", "x😀")
    assert span.tokens == len(span.text.encode())


def test_nothing_leaves_after_the_user_stopped():
    local = ScriptedLocal([[OPEN], [*b"!"]])
    remote = ScriptedRemote(["never"])
    stopped = []
    decoder = SplitDecoder(local, remote)
    events = []
    for event in decoder.generate(QUESTION, cancelled=lambda: bool(stopped)):
        events.append(event)
        if isinstance(event, SpanOpened):
            stopped.append(True)
    assert_lawful(events, local)
    assert remote.asked == []
    assert (events[-2].end, events[-1].reason) == ("cancelled", "cancelled")


def test_a_failure_stays_one_where_the_last_text_reaches_the_cap():
    local = ScriptedLocal([[OPEN], [*b"!"]])
    gate = OneGate()
    reply = Reply(("abcd",), Outcome("error", "reset"))
    transcript = assert_lawful(
        run(local, ScriptedRemote([reply]), gate=gate, limits=Limits(100, 4, 4)), local
    )
    assert transcript.spans[0].end == "error"
    assert transcript.degraded
    assert gate.reports == [("error", "reset")]


def test_an_answer_of_exactly_the_limit_is_whole():
    local = ScriptedLocal([[]])
    transcript = assert_lawful(run(local, ScriptedRemote(["abcd"]), policy="remote", limits=Limits(4)), local)
    assert (transcript.text, transcript.finish) == ("abcd", "stop")


def test_where_the_large_model_may_not_write_the_answer_says_why():
    local = ScriptedLocal([[*b"never"]])
    transcript = assert_lawful(
        run(local, ScriptedRemote(["x"]), policy="remote", gate=OneGate(1, end="budget")), local
    )
    assert (transcript.finish, transcript.error) == ("error", "not today")


class Stingy(OneGate):
    def admit(self, request):
        return Grant(2)


def test_an_answer_that_a_budget_cuts_does_not_blame_the_context():
    local = ScriptedLocal([[*b"never"]])
    transcript = assert_lawful(
        run(local, ScriptedRemote(["a long answer"]), policy="remote", gate=Stingy()), local
    )
    assert (transcript.text, transcript.finish, transcript.error) == (
        "a ",
        "length",
        "the budget allows no more",
    )


def test_a_full_context_says_so():
    local = ScriptedLocal([[*b"abcdefghijklmnopqrstuvwxyz"]], context=30)
    transcript = assert_lawful(run(local), local)
    assert transcript.finish == "length"
    assert "context is full" in transcript.error


class Failing(ScriptedLocal):
    """Cannot read spans."""

    def feed(self, ids, *, probe=False):
        if probe:
            raise GenerationError("llama.cpp failed")
        return super().feed(ids, probe=probe)


def test_a_local_failure_is_not_the_remotes():
    local = Failing([[OPEN], [*b"!"]])
    gate = OneGate()
    transcript = assert_lawful(run(local, ScriptedRemote(["some text"]), gate=gate), local)
    assert (transcript.finish, transcript.error) == ("error", "llama.cpp failed")
    assert not transcript.degraded
    assert gate.reports == [("cancelled", None)]


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from(["a", "<", "big", " <", "model", "> x"]), max_size=8),
    st.integers(0, 8),
    st.booleans(),
)
def test_a_schedule_loses_nothing_that_was_held_back(tokens, at, refused):
    local = TextLocal(tokens)
    gate = OneGate(*(range(1, 50) if refused else ()))
    events = run(local, ScriptedRemote(["XYZ"]), gate=gate, schedule=lambda n: 2 if n == at else None)
    assert_lawful(events, local)
    assert len(fold(events).spans) <= len(tokens) + 1  # it ends


def test_a_schedule_without_a_remote_is_no_schedule():
    local = ScriptedLocal([[*b"ab"]])
    assert assert_lawful(run(local, schedule=lambda n: 3), local).text == "ab"


# hedging: the small model writes on, on a branch, while the large one has not begun

SILENCE = ("",) * 10_000


def hedged(local, *replies, tick=0.01, **options):
    remote = ScriptedRemote([Reply(*reply) if isinstance(reply, tuple) else reply for reply in replies])
    ticks = itertools.count()
    events = run(local, remote, hedge=True, clock=lambda: next(ticks) * tick, **options)
    assert all(stream.closed for stream in remote.streams)
    return assert_lawful(events, local), remote


def test_a_remote_that_begins_in_time_writes_the_span_and_the_draft_is_dropped():
    local = ScriptedLocal([[*b"a", OPEN], [*b"bcd"]])
    transcript, _ = hedged(local, ((*SILENCE[:2], "XY", "Z"),))
    assert transcript.text == "aXYZbcd"
    assert transcript.spans[0].end == "stop"


def test_where_the_remote_never_begins_the_draft_is_the_answer():
    local = ScriptedLocal([[*b"a", OPEN], [*b"b", OPEN], [*b"c"]])
    transcript, remote = hedged(local, (SILENCE,))
    assert transcript.text == "abc"
    assert transcript.finish == "stop"
    assert [span.end for span in transcript.spans] == ["stalled"], "once, not once a span"
    assert len(remote.asked) == 1
    assert transcript.ids == (*b"abc", END)
    assert all(transcript.sampled)


@pytest.mark.parametrize("silent", [0, 1, 3])
def test_where_the_remote_fails_the_draft_goes_on_from_where_it_is(silent):
    local = ScriptedLocal([[*b"a", OPEN], [*b"bcdef", OPEN], [*b"g"]])
    transcript, remote = hedged(local, (SILENCE[:silent], Outcome("error", "reset")), "X")
    assert transcript.text == "abcdefXg"
    assert [span.end for span in transcript.spans] == ["error", "stop"]
    assert remote.asked == ["a", "abcdef"], "it may ask again"


@pytest.mark.parametrize("end", ["error", "stalled"])
def test_a_remote_that_dies_with_its_first_words_costs_nothing(end):
    local = ScriptedLocal([[*b"a", OPEN], [*b"bcd"]])
    transcript, _ = hedged(local, (("XYZW", *SILENCE[:2]), Outcome(end, "reset")), tick=0.001)
    assert transcript.text == "abcd"
    assert (transcript.spans[0].end, transcript.spans[0].text) == (end, "")


@pytest.mark.parametrize("pieces", [("X" * 20,), ("XYZW", *SILENCE[:1000])])
def test_a_remote_that_has_said_something_keeps_its_word(pieces):
    """Enough at once, or something a second ago."""
    local = ScriptedLocal([[*b"a", OPEN], [*b"b" * 900]])
    transcript, _ = hedged(local, (pieces, Outcome("error", "reset")), tick=0.001)
    assert transcript.text.startswith("aX")
    assert transcript.text.endswith("b" * 900)


def test_a_draft_may_be_taken_in_the_middle_of_a_character():
    local = ScriptedLocal([[*b"ab", OPEN], [*"cé!x".encode()]])
    transcript, _ = hedged(local, ((*SILENCE[:2],), Outcome("error", "reset")))
    assert transcript.text == "abcé!x"


def test_a_draft_decodes_nothing_twice():
    local = ScriptedLocal([[*b"a", OPEN], [*b"bcdef"]])
    hedged(local, (SILENCE,))
    assert sum(local.calls) == local._prompt_length


def test_stopping_while_the_remote_is_awaited_drops_the_draft():
    local = ScriptedLocal([[*b"a", OPEN], [*b"bcdef"]])
    looks = itertools.count()
    transcript, _ = hedged(local, (SILENCE,), cancelled=lambda: next(looks) > 6)
    assert transcript.text == "a"
    assert transcript.spans[0].end == transcript.finish == "cancelled"


def test_a_draft_leaves_room_for_the_span():
    local = ScriptedLocal([[OPEN], [*b"b" * 100]], context=80)
    transcript, _ = hedged(local, ((*SILENCE[:40], "X" * 20),), limits=Limits(200, 20, 20))
    assert transcript.spans[0].text == "X" * 20


def test_a_draft_respects_the_length_of_the_answer():
    local = ScriptedLocal([[*b"a", OPEN], [*b"b" * 100]])
    reply = (SILENCE[:300], Outcome("stalled", "silent"))
    transcript, _ = hedged(local, reply, limits=Limits(max_tokens=10))
    assert transcript.local_tokens == 10
    assert transcript.finish == "length"


@pytest.mark.parametrize(("limits", "context"), [(Limits(10), 4096), (Limits(1000, 500, 500), 60)])
def test_a_draft_that_may_not_go_on_does_not_wait_for_the_remote_either(limits, context):
    """Whether it is the answer that may be no longer, or the context that is full."""
    local = ScriptedLocal([[*b"a", OPEN], [*b"b" * 200]], context=context)
    alone = ScriptedLocal([[*b"a", OPEN], [*b"b" * 200]], context=context)
    expected = assert_lawful(run(alone, policy="local", limits=limits), alone)
    transcript, remote = hedged(local, (SILENCE,), limits=limits)
    assert remote.streams[0].unread > len(SILENCE) - 400, "it was left soon"
    assert (transcript.text, transcript.finish) == (expected.text, "length")


def test_whether_a_remote_that_was_left_is_blamed_depends_on_how_long_it_said_nothing():
    def reported(tick):
        gate = Hearing()
        hedged(ScriptedLocal([[OPEN], [*b"bbb"]]), (SILENCE,), gate=gate, tick=tick)
        return [(outcome.end, outcome.fault) for outcome in gate.outcomes]

    assert reported(tick=0.01) == [("stalled", "request")]
    assert reported(tick=2.0) == [("stalled", "unreachable")]


class Hearing(OneGate):
    def __init__(self):
        super().__init__()
        self.outcomes = []

    def report(self, request, end, outcome, tokens):
        self.outcomes.append(outcome)


def test_a_draft_with_text_markers_never_shows_one():
    local = TextLocal(["a", *PUBLISHED[1:5], "own words", *PUBLISHED[6:10], "b"])
    transcript, remote = hedged(local, (SILENCE,))
    assert transcript.text == "aown words" + "b"
    assert len(remote.asked) == 1


# markers as plain text, as in the published checkpoints

PUBLISHED = ["So", ".<", "big", "model", ">\n", "Then", " <", "big", "model", ">", "end"]


def test_text_markers_open_and_close_by_a_confirmed_wish():
    local = TextLocal(PUBLISHED, closes_after=["\nhard"])
    remote = ScriptedRemote([Reply(("hard", " and more of it", " and more")), "x"])
    transcript = assert_lawful(run(local, remote), local)
    assert transcript.text == "So.\nhardThen xend"
    assert [span.end for span in transcript.spans] == ["handback", "stop"]
    assert remote.asked == ["So.\n", "So.\nhardThen "]
    assert transcript.sampled.count(False) == len("hard") + 2 * len("</bigmodel>") + len("x")


def test_text_markers_of_a_failed_span_are_taken_back():
    local = TextLocal(PUBLISHED)
    transcript = assert_lawful(run(local, ScriptedRemote([Reply((), Outcome("error", "x"))] * 2)), local)
    assert transcript.text == "SoThenend"
    assert [span.end for span in transcript.spans] == ["error", "error"]


def test_text_markers_are_not_shown_where_nobody_is_asked():
    local = TextLocal(["a", *PUBLISHED[1:5], "own words", "</", "big", "model", ">", "b"])
    transcript = assert_lawful(run(local, ScriptedRemote(["never"]), policy="local"), local)
    assert (transcript.text, transcript.spans) == ("a.\nown wordsb", ())
