"""The event stream as JSON lines: what is written is read back, and what is damaged is refused by name."""

import json
from dataclasses import fields
from typing import get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge import events
from sr_edge.events import VERSION, Event, Started, from_json, to_json


def any_value(hint):
    """A strategy for a field's type, so that a new field is covered without touching this test."""
    if hint is int:
        return st.integers(0, 2**40)
    if hint is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    if hint is str:
        return st.text(st.characters(codec="utf-8"))
    if hint == tuple[int, ...]:
        return st.lists(st.integers(0, 2**31), max_size=8).map(tuple)
    if get_origin(hint) is not None and type(None) not in get_args(hint):
        return st.sampled_from(get_args(hint))
    return st.one_of(*(st.none() if part is type(None) else any_value(part) for part in get_args(hint)))


def any_event():
    def build(cls):
        hints = get_type_hints(cls)
        return st.builds(cls, **{f.name: any_value(hints[f.name]) for f in fields(cls)})

    return st.one_of(*(build(cls) for cls in get_args(Event)))


@given(any_event())
def test_what_is_written_is_read_back(event):
    line = to_json(event)
    assert "\n" not in line
    assert from_json(line) == event


def test_every_line_says_its_version_and_kind():
    data = json.loads(to_json(Started(prompt_ids=(1, 2), model="m")))
    assert (data["v"], data["event"], data["prompt_ids"]) == (VERSION, "started", [1, 2])


def test_a_reader_ignores_fields_that_it_does_not_know():
    data = json.loads(to_json(Started(prompt_ids=(1,), model="m"))) | {"mood": "good"}
    assert from_json(json.dumps(data)) == Started(prompt_ids=(1,), model="m")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "JSON"),
        ("[]", "not an event"),
        ("[" * 100_000, "JSON"),
        ('{"v": 1, "event": "party"}', "not an event"),
        ('{"v": 1, "event": []}', "not an event"),
        ('{"v": true, "event": "started", "prompt_ids": [], "model": "m"}', "version True"),
        ('{"v": 1, "event": "span_delta", "span": "1", "text": "x"}', "span"),
        ('{"v": 1, "event": "span_closed", "span": 1, "ids": [], "end": "tired"}', "tired"),
        ('{"v": 99, "event": "started", "prompt_ids": [], "model": "m"}', "version 99"),
        ('{"event": "started", "prompt_ids": [], "model": "m"}', "version None"),
        ('{"v": 1, "event": "started", "prompt_ids": []}', "model"),
        ('{"v": 1, "event": "started", "prompt_ids": "12", "model": "m"}', "prompt_ids"),
    ],
)
def test_a_damaged_line_says_what_is_wrong(line, why):
    with pytest.raises(ValueError, match=why):
        from_json(line)


def test_degraded_ends_are_ends():
    assert set(get_args(events.End)) >= events.DEGRADED_ENDS
