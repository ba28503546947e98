"""An answer as blocks: who wrote what, in which part, and why a span ended."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_edge.events import (
    End,
    Event,
    Finished,
    LocalToken,
    SpanClosed,
    SpanDelta,
    SpanOpened,
    Started,
)
from sr_edge.extract import split_reasoning
from sr_edge.terminal import safe
from sr_edge.transcript import fold
from sr_edge.tui.blocks import Blocks, Share

ENDS: list[End] = [
    *("handback", "stop", "boundary", "cap", "budget"),
    *("cancelled", "stalled", "error", "declined", "offline"),
]


def local(text: str) -> LocalToken:
    return LocalToken(id=1, text=text, logprob=-0.1)


def span(
    n: int, *texts: str, end: End = "handback", error: str | None = None, remote: str = "lab"
) -> list[Event]:
    return [
        SpanOpened(span=n, trigger="marker", p_open=0.9, remote=remote, sent_tokens=5, sent_bytes=20),
        *([local("")] if texts else []),
        *(SpanDelta(span=n, text=text) for text in texts),
        SpanClosed(span=n, ids=(), end=end, tokens=len(texts), seconds=0.5, error=error),
    ]


def answer(*events: Event | list[Event], opening: str = "") -> list[Event]:
    flat = [each for event in events for each in (event if isinstance(event, list) else [event])]
    finished = Finished(reason="stop", prompt_tokens=1, local_tokens=1, remote_tokens=1, seconds=1.0)
    return [Started(prompt_ids=(1,), model="small", opening=opening), *flat, finished]


def live(events: list[Event]) -> Blocks:
    blocks = Blocks()
    for event in events:
        blocks.add(event)
    return blocks


def shown(events: list[Event]) -> list[tuple[str, str, int | None, str]]:
    return [(block.voice, block.part, block.span, block.text) for block in live(events)]


def test_each_writer_has_blocks_of_its_own():
    events = answer(local("6*7"), local("="), span(1, "4", "2"), local("."))
    assert shown(events) == [
        ("local", "answer", None, "6*7="),
        ("remote", "answer", 1, "42"),
        ("local", "answer", None, "."),
    ]


def test_think_tags_part_the_text_and_are_not_shown():
    events = answer(local("so"), span(1, " 42</thi", "nk>\n\nIt is"), local(" 42"), opening="<think>\n")
    assert shown(events) == [
        ("local", "reasoning", None, "so"),
        ("remote", "reasoning", 1, " 42"),
        ("remote", "answer", 1, "\n\nIt is"),
        ("local", "answer", None, " 42"),
    ]


def test_an_end_tag_alone_ends_reasoning_that_began_with_the_text():
    events = answer(
        local("so "), span(1, "6*7"), span(2, end="offline"), local(" is 42 </think>"), local("42")
    )
    assert shown(events) == [
        ("local", "reasoning", None, "so "),
        ("remote", "reasoning", 1, "6*7"),
        ("fallback", "reasoning", 2, " is 42 "),
        ("local", "answer", None, "42"),
    ]
    assert live(events).share == Share(4, (("lab", 1),), 2)


def test_a_tag_that_is_written_about_is_text():
    assert shown(answer(local("the tags <think> and </think>"))) == [
        ("local", "answer", None, "the tags <think> and </think>")
    ]


@pytest.mark.parametrize("end", ["stalled", "error", "declined", "offline", "budget"])
def test_where_help_did_not_come_the_small_model_speaks_as_fallback(end):
    events = answer(local("a\n\n"), span(1, end=end), local("b\nc"), local("\n"), local("\nd"))
    assert shown(events) == [
        ("local", "answer", None, "a\n\n"),
        ("fallback", "answer", 1, "b\nc\n"),
        ("local", "answer", None, "\nd"),
    ]


def test_a_fallback_ends_where_the_next_span_begins():
    events = answer(span(1, end="offline"), local("a"), span(2, "b"), local("c"))
    assert [voice for voice, *_ in shown(events)] == ["fallback", "remote", "local"]


def test_what_a_span_wrote_before_it_broke_off_stays_its_own():
    blocks = live(answer(span(1, "4", end="error", error="lab: connection lost"), local("2")))
    assert [(block.voice, block.text, block.note) for block in blocks] == [
        ("remote", "4", "broke off: lab: connection lost"),
        ("local", "2", ""),
    ]


@pytest.mark.parametrize(
    ("end", "error", "note"),
    [
        ("offline", None, "offline; continued locally"),
        ("offline", "offline: nothing is sent", "offline: nothing is sent"),
        ("declined", None, "stayed here: you said no"),
        ("declined", "local: nothing leaves", "stayed here: local: nothing leaves"),
        ("stalled", None, "lab fell silent; continued locally"),
        ("error", "lab unreachable", "lab unreachable; continued locally"),
        ("budget", "the answer's budget is used up.", "the answer's budget is used up"),
        ("cancelled", None, "you stopped it"),
        ("handback", None, "lab wrote nothing"),
    ],
)
def test_a_span_without_text_says_why(end, error, note):
    [block] = live(answer(span(1, end=end, error=error)))
    assert (block.span, block.note) == (1, note)


def test_a_note_cannot_steer_the_terminal():
    [block] = live(answer(span(1, end="error", error="a\x1b]0;title\x07b\nc", remote="\x1b[2Jlab")))
    assert block.note == "ab c; continued locally"


def test_a_span_is_there_as_soon_as_it_is_opened():
    blocks = live(answer(local("a"), span(1, "b"))[:3])
    assert [(block.voice, block.span, block.text) for block in blocks] == [
        ("local", None, "a"),
        ("remote", 1, ""),
    ]


def test_half_a_character_before_a_marker_belongs_to_the_small_model():
    opened, *rest = span(1, "42")
    events = answer(local("so "), opened, local("�"), *rest)
    assert shown(events) == [("local", "answer", None, "so �"), ("remote", "answer", 1, "42")]


def test_a_sequence_that_two_writers_make_is_not_shown():
    assert Blocks.text(live(answer(local("a\x1b["), span(1, "31mb"))), "answer") == "ab"


def test_what_changed_since_a_revision_is_known():
    events = answer(local("a"), span(1, "b"), local("c"), local("d"))
    blocks = Blocks()
    for event in events:
        before, revision = list(blocks), blocks.revision
        blocks.add(event)
        kept = blocks.unchanged_since(revision)
        assert list(blocks)[:kept] == before[:kept]
        assert kept >= len(before) - 1
    assert blocks.unchanged_since(blocks.revision) == len(blocks)


def test_tokens_are_counted_by_writer():
    events = answer(local("a"), span(1, "b", "c"), span(2, "d", remote="attic"), span(3, "e"), local("f"))
    assert live(events).share == Share(5, (("lab", 3), ("attic", 1)), 3)


# --- any answer --------------------------------------------------------------------------------------

PLAIN = ["a", " ", "\n", "\n\n", "b c", "é", "漢", "\t"]
TAGS = ["<", "<think>", "</think>", "</thi", "nk>", "\x1b[", "31m"]


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    is_plain = draw(st.booleans())
    texts = st.lists(st.sampled_from(PLAIN if is_plain else PLAIN + TAGS), max_size=4)
    events: list[Event] = [local("x")] if is_plain else []  # after it nothing is held back
    for n in range(1, draw(st.integers(1, 6))):
        events.extend(local(text) for text in draw(texts))
        said = draw(texts)
        opened, *rest = span(n, *said, end=draw(st.sampled_from(ENDS)))
        if is_plain and said and draw(st.booleans()):
            rest[0] = replace(rest[0], text="�")  # a character that the marker cut
        events.extend([opened, *rest])
    events.extend(local(text) for text in draw(texts))
    return answer(*events, opening=draw(st.sampled_from(["", "<think>\n", "<think>\n</think>"])))


@settings(max_examples=300)
@given(answers(), st.data())
def test_stored_blocks_are_those_that_were_seen(events, data):
    events = events[: data.draw(st.integers(1, len(events)))]
    blocks = live(events)
    if not isinstance(events[-1], Finished):
        blocks.close()
    stored = Blocks.of(fold(events))
    assert list(blocks) == list(stored)
    assert blocks.share == stored.share


@given(answers())
def test_blocks_hold_all_the_text_there_is(events):
    blocks, transcript = live(events), fold(events)
    reasoning, said = split_reasoning(transcript.opening, safe(transcript.text))
    assert (blocks.text("reasoning"), blocks.text("answer")) == (reasoning, said)


@given(answers())
def test_every_span_has_a_block_and_no_other_writer_has_its_text(events):
    blocks = live(events)
    spans = {event.span for event in events if isinstance(event, SpanOpened)}
    assert {block.span for block in blocks if block.span is not None} == spans
    for block in blocks:
        assert (block.voice == "local") == (block.span is None) == (block.record is None)


@given(answers())
def test_what_a_reader_keeps_is_never_changed_behind_its_back(events):
    blocks, kept, revision = Blocks(), [], 0
    for event in events:
        blocks.add(event)
        first = blocks.unchanged_since(revision)
        kept[first:] = [blocks[n] for n in range(first, len(blocks))]
        revision = blocks.revision
        assert kept == list(blocks)
