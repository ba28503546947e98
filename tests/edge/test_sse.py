"""Server-sent events: framing by the standard, and the same events however the bytes are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge.remote.sse import ServerSentEvent, SseDecoder, SseLimitError

VECTORS = {
    "one event": (b"data: a\n\n", ["a"]),
    "crlf": (b"data: a\r\n\r\ndata: b\r\n\r\n", ["a", "b"]),
    "cr only": (b"data: a\r\rdata: b\r\r", ["a", "b"]),
    "mixed line ends": (b"data: a\r\n\ndata: b\r\r\ndata: c\n\r", ["a", "b", "c"]),
    "lines join": (b"data: a\ndata: b\ndata\ndata:\n\n", ["a\nb\n\n"]),
    "one space goes": (b"data:a\n\ndata:  b\n\n", ["a", " b"]),
    "empty data is an event": (b"data\n\n", [""]),
    "no data is none": (b"event: ping\n\n\n\nid: 1\n\n", []),
    "comments": (b": ping\n\n:\ndata: a\n: OPENROUTER PROCESSING\n\n", ["a"]),
    "unknown fields": (b"retry: 5\nid: \0\nfoo: bar\ndatax: y\ndata: a\n\n", ["a"]),
    "bom": (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", ["a"]),
    "other line ends are text": (
        "data: a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\n\n".encode(),
        ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"],
    ),
    "utf-8": ("data: größer 数 🧮\n\n".encode(), ["größer 数 🧮"]),
    "broken utf-8": (b"data: a\xff\xe2\x82b\n\n", ["a\ufffd\ufffdb"]),
    "no last blank line": (b"data: a\n\ndata: [DONE]\n", ["a", "[DONE]"]),
    "no last line end": (b"data: a\n\ndata: [DONE]", ["a", "[DONE]"]),
    "no last line end after cr": (b"data: a\r\n\r\ndata: b\r", ["a", "b"]),
}


def decode(pieces):
    decoder = SseDecoder()
    events = [event for piece in pieces for event in decoder.push(piece)]
    return events + list(decoder.flush())


def in_pieces(data, cuts):
    at = [0, *sorted(cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(at)]


@pytest.mark.parametrize("name", VECTORS)
def test_the_standards_framing(name):
    data, expected = VECTORS[name]
    assert [event.data for event in decode([data])] == expected


@pytest.mark.parametrize("name", VECTORS)
def test_every_cut_gives_the_same_events(name):
    data, _ = VECTORS[name]
    whole = decode([data])
    assert decode([data[n : n + 1] for n in range(len(data))]) == whole
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            assert decode(in_pieces(data, [first, second])) == whole


LINES = st.sampled_from(
    [
        b"data: a",
        b"data:",
        b"data",
        b": x",
        b"",
        b"event: error",
        b"\xef\xbb\xbf",
        "data: 数".encode(),
        b"data: \xff",
    ]
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@given(st.lists(st.tuples(LINES, ENDS)), st.lists(st.integers(0, 200), max_size=8))
def test_any_cut_of_any_stream_gives_the_same_events(lines, cuts):
    data = b"".join(line + end for line, end in lines)
    assert decode(in_pieces(data, [min(cut, len(data)) for cut in cuts])) == decode([data])


def test_the_event_type_is_told():
    events = decode([b"event: error\ndata: a\n\ndata: b\n\n"])
    assert events == [ServerSentEvent("a", "error"), ServerSentEvent("b", "message")]


def test_an_event_comes_with_the_byte_that_ends_it():
    decoder = SseDecoder()
    assert list(decoder.push(b"data: a\r")) == []
    assert [event.data for event in decoder.push(b"\r")] == ["a"], "not one byte later"


@pytest.mark.parametrize("cut", [1, 7, 64])
@pytest.mark.parametrize(
    ("data", "before"),
    [
        (b"data: a\n\ndata: " + 100 * b"x", ["a"]),
        (b"data: a\n\n: " + 100 * b"x" + b"\n\n", ["a"]),
        (b"data: a\n\n" + 40 * b"data: 1234\n" + b"\n", ["a"]),
        (b"data: a\n\n" + 300 * b"data\n" + b"\n", ["a"]),
    ],
    ids=["line", "comment", "event", "empty lines"],
)
def test_what_is_too_large_is_refused_after_what_came_before(data, before, cut):
    decoder = SseDecoder(max_line=90, max_event=180)
    events = []

    def feed():
        for n in range(0, len(data), cut):
            for event in decoder.push(data[n : n + cut]):
                events.append(event.data)  # noqa: PERF401  the list has to survive the error

    with pytest.raises(SseLimitError, match=r"longer than 90 bytes|larger than 180 bytes"):
        feed()
    assert events == before


def test_a_long_line_in_single_bytes_is_one_event():
    decoder = SseDecoder()
    data = b"data: " + 200_000 * b"x" + b"\n\n"
    events = [event for n in range(len(data)) for event in decoder.push(data[n : n + 1])]
    assert [len(event.data) for event in events] == [200_000]
