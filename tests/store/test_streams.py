"""Whatever an answer was, and wherever it was cut: what comes out of the history is what went in."""

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.store.streams import scripted, streams

from sr_edge.events import Event, Finished, LocalToken, SpanDelta
from sr_edge.store import Store
from sr_edge.store.parts import packed, unpacked
from sr_edge.transcript import Transcript, fold


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "history.db") as store:
        yield store


def cheap(transcript: Transcript) -> Transcript:
    return replace(transcript, ids=(), sampled=())


def cuts(whole: list[Event]) -> st.SearchStrategy[list[Event]]:
    """The stream as far as it came."""
    return st.integers(1, len(whole)).map(lambda n: whole[:n])


def keep(store: Store, events: list[Event], *, flushes: set[int] = frozenset()) -> str:
    asked = store.say(store.new_conversation("test").id, None, "why?")
    recorder = store.begin(asked.id, policy="auto", seed=None)
    for n, event in enumerate(events):
        recorder.add(event)
        if n in flushes:
            assert recorder.flush()
    assert recorder.close() is None
    return recorder.turn


@settings(max_examples=40)  # each waits for the disk a few times
@given(data=st.data(), events=streams().flatmap(cuts))
def test_stored_events_are_the_given_ones(store: Store, data: st.DataObject, events: list[Event]) -> None:
    turn = keep(store, events, flushes=data.draw(st.sets(st.integers(0, len(events)), max_size=4)))
    assert store.events(turn) == events
    last = store.thread(turn)[-1]
    assert last.transcript == cheap(fold(events))
    deltas = [event.text for event in events if isinstance(event, LocalToken | SpanDelta)]
    assert last.text == "".join(deltas)
    assert (last.status == "cut") == (not isinstance(events[-1], Finished))


@settings(max_examples=40)  # each waits for the disk a few times
@given(data=st.data(), events=streams())
def test_an_answer_that_goes_on_is_whole(store: Store, data: st.DataObject, events: list[Event]) -> None:
    """However much was kept before, and however much of that is taken over."""
    written = data.draw(st.integers(1, len(events)))
    known = data.draw(st.integers(1, written))
    other = data.draw(streams())
    turn = keep(store, events[:written], flushes=data.draw(st.sets(st.integers(0, written), max_size=3)))
    new = [*events[:known], *other[1:]] if known < len(events) else events
    new = [event for n, event in enumerate(new) if n < known or not hasattr(event, "span")]
    recorder = store.resume(turn, known=known)
    for event in new:
        recorder.add(event)
    assert recorder.close() is None
    assert store.events(turn) == new


@given(events=streams(), places=st.sets(st.integers(1, 40)))
def test_rows_may_begin_anywhere(events: list[Event], places: set[int]) -> None:
    borders = [0, *sorted(place for place in places if place < len(events)), len(events)]
    pieces = [events[start:end] for start, end in itertools.pairwise(borders)]
    parts = [part for piece, first in zip(pieces, borders, strict=False) for part in packed(piece, first)]
    spans = {event.span: (event, None) for event in events if event.kind == "span_opened"}
    spans |= {event.span: (spans[event.span][0], event) for event in events if event.kind == "span_closed"}
    assert list(unpacked(parts, spans)) == events
    assert [part.first for part in parts] == [0, *itertools.accumulate(part.count for part in parts)][:-1]


def test_half_characters_become_the_sign_for_them(store: Store) -> None:
    events = scripted(1)
    events[1] = replace(events[1], text="a\ud83d")
    turn = keep(store, events)
    assert store.events(turn)[1].text == "a\ufffd"


def test_counts_that_no_file_can_hold_do_no_harm(store: Store) -> None:
    events = scripted(2)
    at = next(n for n, event in enumerate(events) if event.kind == "span_closed")
    events[at] = replace(events[at], remote_prompt_tokens=10**30)
    turn = keep(store, events)
    assert store.events(turn)[at].remote_prompt_tokens == 2**63 - 1
    assert store.events(turn)[at + 1 :] == events[at + 1 :]
