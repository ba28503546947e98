"""F29 to F33 in memory: every vector, cut at every byte, says the same.

The framing vectors hold the cases of the web platform's own tests for event sources, written anew. Where we
depart from the standard it is said: an event that the end of the stream leaves without its blank line counts.
"""

import itertools
import json

import pytest
from tests.faults.harness import TALLY

from sr_edge.remote.reply import ReplyError, ReplyReader
from sr_edge.remote.sse import SseDecoder, SseLimitError
from sr_edge.testing.fault_endpoint import CHAT, COMPLETIONS, DONE, delta, sse, usage

BOM = b"\xef\xbb\xbf"
LONG = b"x" * 400

# --- framing: what comes out are (type, data) ------------------------------------------------------------

STANDARD = {
    "bom": (BOM + b"data:1\n\n\ndata:2\n\n\ndata:3\n\n", ["1", "2", "3"]),
    "two boms": (BOM + BOM + b"data:1\n\ndata:2\n\n", ["2"]),
    "bom later": (b"data:1\n\n" + BOM + b"data:2\n\ndata:3\n\n", ["1", "3"]),
    "comments": (
        b"data:1\r:\0\n:\r\ndata:2\n:" + LONG + b"\rdata:3\n:data:fail\r:" + LONG + b"\ndata:4\n\n",
        ["1\n2\n3\n4"],
    ),
    "data before the final empty line": (b"retry:1000\ndata:a\n\nid:b\ndata:c", ["a", "c"]),  # ours: c counts
    "data": (b"data:\n\ndata\ndata\n\ndata:test\n\n", ["", "\n", "test"]),
    "empty event": (b"event: \ndata:data\n\n", ["data"]),
    "event": (b"event:test\ndata:x\n\ndata:x\n\n", [("test", "x"), "x"]),
    "event twice": (b"event:a\nevent:b\ndata:x\n\n", [("b", "x")]),
    "event without data": (b"event:test\n\ndata:x\n\n", ["x"]),
    "id": (b"id: 1\ndata:1\n\nid\ndata:2\n\n", ["1", "2"]),
    "id with nul": (b"id: 1\0 2\ndata: hello\n\n", ["hello"]),
    "parsing": (
        b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\n"
        b"data:4\n\n",
        ["\0\n 2\n1\n3\n\n4"],
    ),
    "bogus retry": (b"retry:3000\nretry:1000x\ndata:x\n\n", ["x"]),
    "empty retry": (b"retry\ndata:test\n\n", ["test"]),
    "retry": (b"retry:03000\ndata:x\n\n", ["x"]),
    "unknown fields": (
        b"data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n",
        ["test\n\ntest"],
    ),
    "leading space": (b"data:\ttest\rdata: \ndata:test\n\n", ["\ttest\n\ntest"]),
    "two leading spaces": (b"data:  x\n\n", [" x"]),
    "trailing space": (b"data:x \n\n", ["x "]),
    "space before the colon": (b"data :x\n\n", []),
    "newlines": (b"data:test\r\ndata\ndata:test\r\n\r\n", ["test\n\ntest"]),
    "nul": (b"data:\0\n\n\n\n", ["\0"]),
    "utf-8": ("data:ok…\n\n".encode(), ["ok…"]),
    "colons": (b"data::\n\ndata: a:b\n\n::\n\n", [":", "a:b"]),
    "only comments": (b":\n: x\n\n:\r\n\r\n", []),
    "only blank lines": (b"\n\r\r\n\n\r", []),
    "nothing": (b"", []),
    "a lone bom": (BOM, []),
    "half a bom": (BOM[:2] + b"data: a\n\n", []),
    "upper case": (b"DATA: a\n\nData: b\n\n", []),
    "a quoted field": (b'"data": a\n\n', []),
}

ENDS_OF_STREAM = {
    f"end {name}": (b"data: a\n\n" + tail, expected)
    for name, tail, expected in [
        ("in order", b"data: b\n\n", ["a", "b"]),
        ("without a blank line", b"data: b\n", ["a", "b"]),
        ("without a line end", b"data: b", ["a", "b"]),
        ("after cr", b"data: b\r", ["a", "b"]),
        ("after crlf", b"data: b\r\n", ["a", "b"]),
        ("after crlf cr", b"data: b\r\n\r", ["a", "b"]),
        ("in a field name", b"dat", ["a"]),
        ("after a field name", b"data", ["a", ""]),
        ("after a colon", b"data:", ["a", ""]),
        ("after a space", b"data: ", ["a", ""]),
        ("in a comment", b": pi", ["a"]),
        ("in an event field", b"event: x\nda", ["a"]),
        ("with done", b"data: [DONE]", ["a", "[DONE]"]),
        ("with done and a line end", b"data: [DONE]\n", ["a", "[DONE]"]),
        ("in a character", b"data: \xe2\x82", ["a", "\ufffd"]),
        ("after two lines", b"data: b\ndata: c", ["a", "b\nc"]),
    ]
}

CHARACTERS = {
    f"U+{ord(c[0]):04X} of {len(c)}": (f"data: a{c}b{c}\n\ndata: {c}\n\n".encode(), [f"a{c}b{c}", c])
    for c in [
        "\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f", "\x00", "\x07",
        "\x1b", "\x7f", "\u00a0", "\u200b", "\ufeff", "\u202e", "ß", "é", "数", "\ud7ff", "\ue000",
        "\uffff", "🧮", "👩\u200d🔬", "\U0010ffff", "e\u0301\u0302", "\t", "ﷺ",
    ]
}  # fmt: skip

BROKEN_UTF8 = {
    f"bytes {raw.hex()}": (b"data: a" + raw + b"b\n\n", ["a" + raw.decode("utf-8", "replace") + "b"])
    for raw in [
        b"\xff", b"\xfe\xff", b"\x80", b"\xbf\xbf", b"\xc0\xaf", b"\xc3", b"\xe2\x82", b"\xe2\x28\xa1",
        b"\xed\xa0\x80", b"\xf0\x9f\xa7", b"\xf0\x28\x8c\xbc", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80",
        b"\xc3\xc3\xc3\xa9",
    ]
}  # fmt: skip

LINE_ENDS = {"lf": b"\n", "cr": b"\r", "crlf": b"\r\n"}
BODIES = {
    "one": ("data: a..", ["a"]),
    "several": ("data: a..data: b..data: c..", ["a", "b", "c"]),
    "lines": ("data: a.data: b..data.data..", ["a\nb", "\n"]),
    "comments": (": x.data: a.: y..: z..", ["a"]),
    "types": ("event: e.data: a..data: b..", [("e", "a"), "b"]),
    "blank lines": ("....data: a....", ["a"]),
    "json": ('data: {"a": [1, 2]}..data: [DONE]..', ['{"a": [1, 2]}', "[DONE]"]),
}
ENDINGS = {
    f"{body} with {name}": (text.replace(".", "\0").encode().replace(b"\0", end), expected)
    for body, (text, expected) in BODIES.items()
    for name, end in LINE_ENDS.items()
}
MIXED = {
    "mixed 1": (b"data: a\r\n\ndata: b\r\r\ndata: c\n\r", ["a", "b", "c"]),
    "mixed 2": (b"data: a\n\rdata: b\r\n\r\ndata: c\r\n\n", ["a", "b", "c"]),
    "mixed 3": (b"data: a\rdata: b\ndata: c\r\n\r", ["a\nb\nc"]),
    "mixed 4": (b"\r\n\r\ndata: a\r\n\r\n\r\n", ["a"]),
    "mixed 5": (b"data: a\r\n\r\n\n\r\r\n", ["a"]),
}

FRAMING = STANDARD | ENDS_OF_STREAM | CHARACTERS | BROKEN_UTF8 | ENDINGS | MIXED


# --- whole replies: what comes out is the text, whether it is complete, and what failed --------------------


def joined(*ops):
    return b"".join(op.data for op in ops)


def escaped(text):
    r"""An event whose text is written in `\u` escapes."""
    return sse(json.dumps({"choices": [{"index": 0, "text": text}]}, ensure_ascii=True))


T, F = COMPLETIONS.text, COMPLETIONS.finish()

REPLIES = {
    "plain": (joined(T("a"), T("b"), F, DONE), "ab", True),
    "chat": (joined(delta(role="assistant"), CHAT.text("ab"), CHAT.finish(), DONE), "ab", True),
    "not escaped": (joined(sse('{"choices": [{"text": "数 🧮 ß"}]}'), DONE), "数 🧮 ß", True),
    "escaped": (joined(escaped("数 🧮 ß"), DONE), "数 🧮 ß", True),
    "escaped quotes": (joined(T('"\\"/\b\f\n\r\t'), DONE), '"\\"/\b\f\n\r\t', True),
    "separators": (joined(sse('{"choices": [{"text": "\u2028\x85"}]}'), DONE), "\u2028\x85", True),
    "lone surrogate": (joined(sse('{"choices": [{"text": "a\\ud800b"}]}'), DONE), "a\ufffdb", True),
    "split surrogates": (
        joined(sse('{"choices": [{"text": "\\ud83e"}]}'), sse('{"choices": [{"text": "\\uddee"}]}'), DONE),
        "\ufffd\ufffd",
        True,
    ),
    "crlf": (joined(T("a"), T("b"), DONE).replace(b"\n", b"\r\n"), "ab", True),
    "cr": (joined(T("a"), T("b"), DONE).replace(b"\n", b"\r"), "ab", True),
    "bom": (BOM + joined(T("a"), DONE), "a", True),
    "pings": (b": ping\n\n" + joined(T("a")) + b": OPENROUTER PROCESSING\n\n" + joined(DONE), "a", True),
    "json on lines": (b'data: {"choices":\ndata: [{"text":\ndata: "a"}]}\n\ndata: [DONE]\n\n', "a", True),
    "finish only": (joined(T("a"), F), "a", True),
    "done only": (joined(T("a"), DONE), "a", True),
    "done without a line end": (joined(T("a")) + b"data: [DONE]", "a", True),
    "last event without a line end": (joined(T("a"), T("b", "stop"))[:-2], "ab", True),
    "neither": (joined(T("a"), T("b")), "ab", False),
    "cut json": (joined(T("a")) + b'data: {"choices": [{"te', "a", False),
    "cut name": (joined(T("a")) + b"dat", "a", False),
    "usage": (joined(T("a"), F, usage(9, 3), DONE), "a", True),
    "after done": (joined(T("a"), DONE, T("b"), DONE), "a", True),
    "after the finish reason": (joined(T("a"), F, T("b"), DONE), "a", True),
    "error": (joined(T("a"), sse({"error": {"message": "no"}}), T("b"), DONE), "a", False),
    "error event": (joined(T("a"), sse({"message": "no"}, type="error"), T("b"), DONE), "a", False),
    "not json": (joined(T("a"), sse("{nope"), T("b"), DONE), "a", False),
    "null pieces": (joined(T(None), T("a"), T(None), F), "a", True),
    "choices": (joined(sse({"choices": [CHAT.choice("b", index=1), CHAT.choice("a")]}), DONE), "a", True),
    "two spaces": (joined(T("a")).replace(b"data: ", b"data:  ") + joined(DONE), "a", True),
    "no space": (joined(T("a"), DONE).replace(b"data: ", b"data:"), "a", True),
    "ids": (joined(sse(json.dumps({"choices": [{"text": "a"}]}), id="7"), DONE), "a", True),
}  # fmt: skip


# --- the sweep ----------------------------------------------------------------------------------------------


def events_of(pieces):
    decoder = SseDecoder()
    events = [event for piece in pieces for event in decoder.push(piece)]
    return [(event.type, event.data) for event in [*events, *decoder.flush()]]


def reply_of(pieces):
    decoder, reader = SseDecoder(), ReplyReader(thinking=False)
    texts, error = [], None
    try:
        for event in itertools.chain(
            itertools.chain.from_iterable(decoder.push(piece) for piece in pieces), decoder.flush()
        ):
            texts.append(reader.push(event) or "")
            if reader.done:
                break
    except ReplyError as failed:
        error = str(failed)
    return "".join(texts) + reader.flush(), reader.is_complete, error


def cuts(data):
    """Every way to cut it once; short ones also twice, and all into equal pieces of several sizes."""
    size = len(data)
    for at in range(size + 1):
        yield [data[:at], data[at:]]
    if size <= 64:
        for first, second in itertools.combinations(range(1, size), 2):
            yield [data[:first], data[first:second], data[second:]]
    for step in (1, 2, 3, 5, 7, 13):
        yield [data[at : at + step] for at in range(0, size, step)]
    yield [piece for at in range(size) for piece in (b"", data[at : at + 1])]


def swept(data, read):
    """How many executions it took."""
    whole = read([data])
    executions = 1
    for pieces in cuts(data):
        assert read(pieces) == whole, pieces
        executions += 1
    TALLY.split_executions += executions
    return executions


@pytest.mark.parametrize("name", FRAMING)
def test_framing_is_the_same_for_every_cut(name):
    data, expected = FRAMING[name]
    assert events_of([data]) == [("message", e) if isinstance(e, str) else e for e in expected]
    swept(data, events_of)


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_is_the_same_for_every_cut(name):
    data, text, is_complete = REPLIES[name]
    said, complete, _ = reply_of([data])
    assert (said, complete) == (text, is_complete)
    swept(data, reply_of)


def test_enough_was_swept():
    """Counted without running it again."""
    vectors = [data for data, *_ in [*FRAMING.values(), *REPLIES.values()]]
    assert len(vectors) >= 140
    assert sum(1 + sum(1 for _ in cuts(data)) for data in vectors) >= 20_000


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize(
    "data",
    [
        b"data: " + 300 * b"x",
        b": " + 300 * b"x" + b"\n\n",
        90 * b"data: x\n",
        200 * b"data\n",
        b"event:" + 300 * b"x",
    ],
)
def test_what_is_too_large_is_so_for_every_cut(data, size):
    decoder = SseDecoder(max_line=200, max_event=150)
    pieces = (data[at : at + size] for at in range(0, len(data), size))
    with pytest.raises(SseLimitError):
        list(itertools.chain.from_iterable(map(decoder.push, pieces)))
