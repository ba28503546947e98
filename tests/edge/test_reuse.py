"""What of an earlier conversation is read again: nothing that the cache holds, and no answer of another text.

The real small model of the built-in pair talks; what it decodes is counted at llama.cpp's door.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge.events import Event, Finished, LocalToken, SpanClosed, Started
from sr_edge.local import LlamaLocal
from sr_edge.markers import Markers
from sr_edge.passport import demo_paths
from sr_edge.past import taken_over
from sr_edge.reuse import Part, as_written
from sr_edge.roles import Limits, Message
from sr_edge.split import SplitDecoder
from sr_edge.suites.demo import problems
from sr_edge.testing import ScriptedRemote
from sr_edge.transcript import fold

OPEN, CLOSE, END, TURN, OTHER = 256, 257, 258, 259, 260
"""Control tokens; the first 256 are the bytes."""
LONG = {1000: b"ab", 1001: b"  ", 1002: b"\n\n", 1003: b"<big", 1004: b"model>", 1005: b".</"}
TOKEN = Markers("token", (OPEN,), (CLOSE,))
TEXT = Markers("text", (1003, 1004), (1005, *b"bigmodel>"))


class Bytes:
    def piece(self, id: int) -> bytes:
        return LONG[id] if id in LONG else bytes([id]) if id < 256 else b""

    def is_control(self, id: int) -> bool:
        return 256 <= id < 1000


def turn(author: str, *ids: int) -> list[Part]:
    return [Part("template", [TURN, *author.encode()[:1]]), Part(author, ids), Part("template", [END])]  # type: ignore[arg-type]


def conversation(answer: bytes) -> list[Part]:
    return [*turn("user", *b"q"), *turn("assistant", *answer), *turn("user", *b"and?")]


BEFORE = [TURN, *b"u", *b"q", END, TURN, *b"a"]
AFTER = [END, TURN, *b"u", *b"and?", END]


@pytest.mark.parametrize(
    ("said", "written", "kept"),
    [
        (b"xab", [*b"x", 1000], [*b"x", 1000]),  # in other tokens
        (b"x y", [*b"x ", OPEN, *b"y\n", CLOSE], [*b"x y"]),  # no span is left open
        (b"xab", [*b"x", OPEN, *b"a", *b"b", CLOSE], [*b"x", OPEN, *b"a", *b"b", CLOSE]),
        (b"xab", [*b"xab", *b" ", 1001], [*b"xab"]),  # white space at its end, which was cut off
        (b"xab", [*b"xa"], None),  # it was stopped before
        (b"xab", [*b"xabc"], None),
        (b"xab", [*b"x", OTHER, 1000], None),  # no other control token goes into a prompt
        (b"", [OPEN, CLOSE], [OPEN, CLOSE]),
    ],
)
def test_an_earlier_answer_is_taken_as_it_was_written_where_it_says_the_same(
    said: bytes, written: list[int], kept: list[int] | None
) -> None:
    cache = [*BEFORE, *written, END]
    ids = as_written(conversation(said), cache, Bytes(), TOKEN)
    assert ids == [*BEFORE, *(list(said) if kept is None else kept), *AFTER]


def test_the_templates_white_space_may_be_one_token_with_the_answers() -> None:
    parts = [Part("template", [TURN, *b"a", 1002]), Part("assistant", list(b"x")), Part("template", [END])]
    assert as_written(parts, [TURN, *b"a", *b"\n", *b"\n", *b"x"], Bytes(), TOKEN) == [TURN, *b"a\n\nx", END]


def test_markers_of_several_tokens_are_no_visible_text_either() -> None:
    written = [*b"x", 1003, 1004, 1000, *b"<", *b"/bigmodel>", *b"y"]
    assert as_written(conversation(b"xaby"), [*BEFORE, *written], Bytes(), TEXT) == [
        *BEFORE,
        *written,
        *AFTER,
    ]


def test_a_model_without_a_template_takes_its_answer_over_too() -> None:
    parts = [
        Part("user", list(b"q")),
        Part("template", [1002]),
        Part("assistant", list(b"ab")),
        Part("template", [1002]),
    ]
    assert as_written(parts, [*b"q", 1002, 1000, END], Bytes(), None) == [*b"q", 1002, 1000, 1002]


def test_what_others_wrote_does_not_depend_on_the_cache() -> None:
    ids = as_written(turn("user", *b"ab"), [TURN, *b"u", 1000, END], Bytes(), TOKEN)
    assert ids == [TURN, *b"u", *b"ab", END]


letters = st.lists(st.sampled_from([*b"ab \n", *LONG]), max_size=5)
turns = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), letters), max_size=5)
written_ids = st.lists(st.sampled_from([*b"uas ab \n", *LONG, OPEN, CLOSE, END, TURN]), max_size=30)


def seen(ids: Sequence[int]) -> bytes:
    """All that a reader of the ids sees but markers; other control tokens too."""
    names = {END: b"[end]", TURN: b"[turn]", OTHER: b"[other]"}
    return b"".join(names.get(id, Bytes().piece(id)) for id in ids)


@given(said=turns, noise=written_ids, cut=st.integers(0, 40), rng=st.randoms(use_true_random=False))
def test_whatever_the_cache_holds_the_conversation_says_the_same(
    said: list[tuple[str, list[int]]], noise: list[int], cut: int, rng: random.Random
) -> None:
    parts = [part for author, ids in said for part in turn(author, *ids)]
    plain = [id for part in parts for id in part.ids]
    cache: list[int] = []
    for part in parts:  # as if the answers had been written in single bytes, with markers
        rewritten = [b for id in part.ids for b in Bytes().piece(id)]
        if part.author == "assistant" and rng.random() < 0.8:
            cache += rewritten if rng.random() < 0.5 else [OPEN, *rewritten, CLOSE]
        else:
            cache += part.ids
    cache = [*cache[:cut], *noise] if rng.random() < 0.5 else cache
    ids = as_written(parts, cache, Bytes(), TOKEN)
    assert seen(ids) == seen(plain)
    assert as_written(parts, [], Bytes(), TOKEN) == plain
    assert as_written(parts, ids, Bytes(), TOKEN) == ids  # asked again, nothing changes


# --- the real model ----------------------------------------------------------------------------------


@dataclass
class Reading:
    decoded: int = 0
    """Tokens that llama.cpp computed."""
    tokenized: int = 0
    """Bytes that it was given to tokenise."""


@contextmanager
def read_by(model: LlamaLocal) -> Iterator[Reading]:
    reading = Reading()
    llama, vocabulary = model._llama, model._model.vocabulary
    decode, tokenize = llama.decode, vocabulary._tokenize

    def counted(ids: Sequence[int], **where: int) -> None:
        reading.decoded += len(ids)
        decode(ids, **where)

    def counted_too(text: str, *, special: bool) -> list[int]:
        reading.tokenized += len(text.encode())
        return tokenize(text, special=special)

    llama.decode, vocabulary._tokenize = counted, counted_too  # type: ignore[method-assign,assignment]
    try:
        yield reading
    finally:
        llama.decode, vocabulary._tokenize = decode, tokenize  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def small() -> Iterator[LlamaLocal]:
    with LlamaLocal.open(demo_paths().small, seed=3) as model:
        yield model


QUESTIONS = [problem.question for problem in problems(seed=7, n=12)]


class Chat:
    """One branch of a conversation, as the chat keeps it: whole answers, and the events of the last one."""

    def __init__(self, model: LlamaLocal) -> None:
        self.model = model
        self.messages: list[Message] = []
        self.events: list[Event] = []

    def ask(self, messages: Sequence[Message], **options: object) -> Reading:
        """What is computed until the answer's first token."""
        remote = ScriptedRemote([" so 4 more\n", " we see\n", " 5 in all\n"])
        decoder = SplitDecoder(self.model, remote, limits=Limits(max_tokens=30, max_span_tokens=8))
        with read_by(self.model) as reading:
            stream = decoder.generate(messages, **options)  # type: ignore[arg-type]
            first = next(stream)
            at_start = Reading(reading.decoded, reading.tokenized)
            self.events = [first, *stream]
        transcript = fold(self.events)
        self.messages = [*messages, Message("assistant", transcript.opening + transcript.text)]
        return at_start


def told(events: Sequence[Event]) -> tuple[Started, list[int]]:
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    ids: list[int] = list(started.prompt_ids)
    for event in events:
        if isinstance(event, LocalToken):
            ids.append(event.id)
        elif isinstance(event, SpanClosed):
            ids += event.ids
    return started, ids


@pytest.mark.parametrize("seed", range(12))
def test_a_conversation_is_read_once_whatever_the_user_does_next(seed: int, small: LlamaLocal) -> None:
    rng = random.Random(seed)
    small.rewind(0)
    chat = Chat(small)
    chat.ask([Message("user", rng.choice(QUESTIONS))])
    for _ in range(5):
        held = list(small.ids)
        before = chat.messages
        deed = rng.choice(["say", "say", "edit", "regenerate", "go on", "rerun"])
        options: dict[str, object] = {}
        if deed == "say":
            asked = [*before, Message("user", rng.choice(QUESTIONS))]
            # The scaffold around what is new is new too.
            allowed = len(small.tokenize(asked[-1].content)) + 16
        elif deed == "edit":
            asked = [*before[:-2], Message("user", before[-2].content + " Why?")]
            allowed = 24
        else:
            asked = before[:-1]
            allowed = 1
            if deed == "go on":
                options["past"] = taken_over(chat.events)
            elif deed == "rerun" and any(isinstance(event, SpanClosed) for event in chat.events):
                options |= {"past": taken_over(chat.events, before_span=1), "first": "remote"}
        reading = chat.ask(asked, **options)
        assert reading.decoded <= allowed, (deed, len(held))
        text = sum(len(message.content.encode()) + 60 for message in asked)
        past = 0 if "past" not in options else 400
        assert reading.tokenized <= text + past, deed
        assert told(chat.events)[1] == list(small.ids)


def test_an_answer_with_spans_is_not_read_again_on_the_next_turn(small: LlamaLocal) -> None:
    assert small.markers is not None
    small.rewind(0)
    chat = Chat(small)
    chat.ask([Message("user", QUESTIONS[0])], first="remote")
    held = list(small.ids)
    assert small.markers.open_ids[0] in held
    reading = chat.ask([*chat.messages, Message("user", "Why?")])
    assert reading.decoded < 20 < len(held)
    assert chat.events[0].prompt_ids[: len(held) - 1] == tuple(held[:-1])  # type: ignore[union-attr]


def test_an_answer_that_was_changed_is_read_as_it_now_stands(small: LlamaLocal) -> None:
    small.rewind(0)
    chat = Chat(small)
    chat.ask([Message("user", QUESTIONS[0])])
    changed = Message("assistant", chat.messages[-1].content + "!")
    prompt = small.render([chat.messages[0], changed, Message("user", "Why?")])
    assert b"".join(map(small.piece, prompt.ids)).decode().count("!") == 1
    small.rewind(0)
    assert small.render([chat.messages[0], changed, Message("user", "Why?")]) == prompt
