"""F11 to F28: refusals, redirects, sizes and framing."""

import json
import tracemalloc
import zlib

import pytest
from tests.faults.harness import (
    AFTER,
    PIECES,
    SHORT,
    WIRES,
    by_name,
    cut_at,
    deadlines,
    run,
    wordless,
)

from sr_edge.testing.fault_endpoint import (
    AT_ONCE,
    DONE,
    FIN,
    HALF_CLOSE,
    HANG,
    READ,
    FaultEndpoint,
    Loop,
    Send,
    Sleep,
    Slice,
    chunk,
    chunked,
    failure,
    head,
    page,
)
from sr_edge.testing.models import END, OPEN, ScriptedLocal
from sr_edge.testing.oracle import CANARY, Case


@pytest.fixture(params=WIRES)
def wire(request):
    return WIRES[request.param]


# --- F11 to F18: refusals -------------------------------------------------------------------------------

FINAL = (400, 401, 402, 403, 404, 405, 406, 410, 411, 413, 414, 415, 422, 431, 451)
PASSING = (408, 409, 500, 502, 503, 504, 520, 529)
"""What may be well a moment later."""

BODIES = {
    "openai": lambda status: failure(status, "it said so"),
    "fastapi": lambda status: page({"detail": "it said so"}, status),
    "text": lambda status: page("it said so", status, kind="text/plain"),
    "html": lambda status: page("<html>it said so</html>", status, kind="text/html"),
    "empty": lambda status: page("", status),
    "cut": lambda status: [head(status, "application/json", Content_Length=400), Send(b'{"error": '), FIN],
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("status", FINAL)
def test_f11_f12_f14_refusals_are_final(status, body, wire):
    run(Case(BODIES[body](status), says=f"{status}"), wire)


@pytest.mark.parametrize("status", PASSING)
def test_f13_f18_what_may_pass_is_asked_once_more(status, wire):
    run(Case(failure(status), truth="complete", text="1 + 1", then=(wire.stream("1 + 1"),)), wire)


@pytest.mark.parametrize("body", ["openai", "html", "cut"])
@pytest.mark.parametrize("status", PASSING)
def test_f13_f18_twice_is_enough(status, body, wire):
    again = BODIES[body](status)
    run(Case(again, says=f"{status}", then=(again,)), wire)


def test_f13_f18_the_second_time_anything_may_happen(wire):
    for place in AFTER:
        cut = place.script(wire, FIN)
        run(Case(failure(503), truth=place.truth, text=place.text, then=(cut,)), wire)


@pytest.mark.parametrize("where", ["body", "header", "event", "page"])
@pytest.mark.parametrize("status", [200, 400, 401, 403, 429])
def test_f11_a_key_that_is_echoed_is_not_shown(status, where, wire):
    def script(request):
        key = request.headers["authorization"].removeprefix("Bearer ")
        assert key == CANARY
        match where:
            case "body":
                return failure(status, f"incorrect API key provided: {key} {key}")
            case "header":
                return failure(status, "no", WWW_Authenticate=f"Bearer {key}", X_Key=key)
            case "page":
                return page(f"<html>{key}</html>", status, kind="text/html")
            case "event":
                event = {"error": {"message": 280 * "x" + key}}
                return [head(status), Send(f"data: {json.dumps(event)}\n\n".encode()), FIN]

    again = (script,) if status == 429 else ()
    run(Case(script, then=again), wire)


OVERFLOWS = {
    "openai": failure(
        400,
        "This model's maximum context length is 4096 tokens.",
        code="context_length_exceeded",
    ),
    "llama.cpp": page(
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 5000,
                "n_ctx": 4096,
            }
        },
        400,
    ),
    "vllm": page(
        {"object": "error", "message": "This model's maximum context length is 4096 tokens.", "code": 400},
        400,
    ),
    "in the stream": [
        head(),
        Send(b'data: {"error": {"code": 400, "message": "context size exceeded", "type": "exceed"}}\n\n'),
        FIN,
    ],
    "413": failure(413, "Request too large", code="context_length_exceeded"),
}


@pytest.mark.parametrize("dialect", OVERFLOWS)
def test_f15_a_context_that_is_too_small_is_said_so(dialect, wire):
    run(Case(OVERFLOWS[dialect], says="context" if dialect != "413" else "413"), wire)


ASKED_TO_WAIT = {
    "0": True, "0.05": True, "1e-3": True, "": True, "junk": True, "-10": True, "-1": True, "nan": True,
    "2.5": False, "12": False, "999": False, "120": False, "1e35": False, "inf": False, "Infinity": False,
    "99999999999999999999": False,
    "Wed, 21 Oct 2015 07:28:00 GMT": True, "Fri, 31 Dec 9999 23:59:59 GMT": False,
    "Sun, 06 Nov 100000 08:49:37 GMT": False, "Wednesday": True, "12, 13": True, "0x10": True, "+0": True,
    " 0 ": True,
}  # fmt: skip
"""What `Retry-After` says, and whether a second request is in order: unless it asks for a wait too long."""


@pytest.mark.parametrize("asked", ASKED_TO_WAIT)
@pytest.mark.parametrize("status", [429, 503])
def test_f16_a_wait_that_fits_is_kept_and_a_long_one_is_not_waited_for(status, asked, wire):
    refusal = failure(status, "slow down", Retry_After=asked)
    if ASKED_TO_WAIT[asked]:
        run(Case(refusal, truth="complete", text="1", then=(wire.stream("1"),)), wire)
    else:
        run(Case(refusal), wire)


@pytest.mark.parametrize("asked", ["0", "50", "999999", "junk", "-5"])
def test_f16_milliseconds_have_a_header_of_their_own(asked, wire):
    refusal = failure(429, "slow down", retry_after_ms=asked)
    if asked != "999999":
        run(Case(refusal, truth="complete", text="1", then=(wire.stream("1"),), patience=None), wire)
    else:
        run(Case(refusal), wire)


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached"])
def test_f17_a_quota_that_is_used_up_is_not_asked_again(code, wire):
    run(Case(failure(429, "You exceeded your current quota.", code=code), says="quota"), wire)


# --- F19 to F22: 200, but not an answer ------------------------------------------------------------------


EMPTY = {
    "json error": page({"error": {"message": "out of memory"}}),
    "json string error": page({"error": "out of memory"}),
    "json nothing": page({}),
    "json list": page([1, 2]),
    "json null": page("null"),
    "json cut": page('{"choices": ['),
    "empty json": page(""),
    "no choices": page({"choices": []}),
    "no content": [Send(b"HTTP/1.1 204 No Content\r\n\r\n")],
    "empty stream": [head(), FIN],
    "empty chunked stream": [head(Transfer_Encoding="chunked"), chunk(b"")],
    "empty stream of known length": [head(Content_Length=0)],
    "blank lines": [head(), Send(100 * b"\n"), FIN],
    "comments": [head(), Send(10 * b": ping\n\n"), FIN],
}


@pytest.mark.parametrize("name", EMPTY)
def test_f19_200_without_an_answer(name, wire):
    run(wordless(EMPTY[name]), wire)


KINDS = ["text/html", "text/html; charset=utf-8", "text/plain", "application/octet-stream", "image/png",
         "application/xml", "multipart/mixed", "text/event-stream2", "audio/mpeg"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_f20_f21_another_type_is_not_read(kind, wire):
    stream = wire.stream("1 + 1")
    run(Case([head(kind=kind), *stream[1:], FIN]), wire)


def test_f20_a_large_page_is_not_shown(wire):
    checked = run(Case(page("<html>" + (1 << 20) * "x", kind="text/html")), wire)
    assert len(checked.span.error) <= 300


@pytest.mark.parametrize(
    "kind", ["text/event-stream; charset=utf-8", "Text/Event-Stream", "text/event-stream;"]
)
def test_f21_the_right_type_is_recognised(kind, wire):
    stream = wire.stream("1 + 1")
    run(Case([head(kind=kind), *stream[1:], FIN], truth="complete", text="1 + 1"), wire)


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
def test_f21_a_whole_reply_is_taken_once(kind, wire):
    run(Case(page(wire.whole("1 + 1"), kind=kind), truth="complete", text="1 + 1"), wire)


@pytest.mark.parametrize("size", [0, 1, 5])
def test_f21_a_stream_by_the_name_of_json_is_read_as_one(size, wire):
    stream = wire.stream("1 + 1")
    script = [head(kind="application/json"), Slice(size), *stream[1:], FIN]
    run(Case(script, truth="complete", text="1 + 1", patience=None), wire)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308])
@pytest.mark.parametrize("target", ["port", "host", "file", "scheme", "self", "none", "userinfo"])
def test_f22_no_redirect_is_followed(status, target, wire):
    with FaultEndpoint(then=page("trapped")) as trap:
        location = {
            "port": f"{trap.url}/v1/completions",
            "host": "http://evil.example/v1",
            "file": "file:///etc/passwd",
            "scheme": "//evil.example/v1",
            "self": "/v1/completions",
            "none": None,
            "userinfo": f"http://a:b@{trap.where}/",
        }[target]
        headers = {} if location is None else {"Location": location}
        run(Case(page("", status, **headers), says="redirect" if location and status != 304 else ""), wire)
        assert trap.connections == []


# --- F23 to F28: sizes and framing -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def bomb():
    return zlib.compress((32 << 20) * b"x", wbits=31)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x-gzip", "gzip, gzip", "compress"])
def test_f23_a_compressed_reply_is_not_unpacked(encoding, wire, bomb):
    reply = [head(Content_Encoding=encoding, Content_Length=len(bomb)), Send(bomb)]
    tracemalloc.start()
    try:
        checked = run(Case(reply, says="compressed"), wire)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert checked.requests[0].headers["accept-encoding"] == "identity"


PATIENT_ONCE = {"deadlines": deadlines(first_byte=SHORT, first_content=SHORT)}

DRIPS = {
    "1xx flood": [Loop((Send(b"HTTP/1.1 100 Continue\r\n\r\n"), Sleep(0.005)))],
    "102 flood": [Loop((Send(b"HTTP/1.1 102 Processing\r\n\r\n"), Sleep(0.005)))],
    "dripped headers": [Send(b"HTTP/1.1 200 OK\r\n"), Loop((Send(b"X-A: b\r\n"), Sleep(0.005)))],
    "dripped header": [Send(b"HTTP/1.1 200 OK\r\nX-A: "), Loop((Send(b"b"), Sleep(0.005)))],
    "dripped status": [Slice(1, 0.02), Send(b"HTTP/1.1 200 OK\r\n\r\n"), HANG],
}


@pytest.mark.parametrize("drip", DRIPS)
def test_f24_a_head_that_does_not_end(drip, wire):
    run(Case(DRIPS[drip], patience=None, seconds=3), wire, options=PATIENT_ONCE)


@pytest.mark.parametrize("bomb", [b"X-A: " + (1 << 20) * b"x", 50_000 * b"X-A: b\r\n", (1 << 20) * b"x"])
def test_f24_a_header_bomb(bomb, wire):
    run(Case([Send(b"HTTP/1.1 200 OK\r\n" + bomb), HANG], patience=None), wire, options=PATIENT_ONCE)


@pytest.mark.parametrize("place", **by_name(AFTER))
def test_f25_a_length_that_is_not_kept(place, wire):
    texts = b"".join(wire.text(piece).data for piece in PIECES[: place.texts])
    short = [head(Content_Length=len(texts) + 100), Send(texts), FIN]
    case = Case(short, truth=place.truth, text=place.text) if place.texts else wordless(short)
    run(case, wire)


ENDS = {
    "no last chunk": [FIN],
    "chunk is cut": [Send(b"40\r\ndata: "), FIN],
    "size is no number": [Send(b"zz\r\ndata: x\r\n"), FIN],
    "size is negative": [Send(b"-5\r\ndata: x\r\n"), FIN],
    "size is huge": [Send(b"ffffffffffffffffff\r\ndata: "), FIN],
    "size is dripped": [Send(b"4"), FIN],
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("place", **by_name(AFTER))
def test_f25_chunks_that_break_off(end, place, wire):
    run(cut_at(place, wire, *ENDS[end], is_chunked=True), wire)


@pytest.mark.parametrize("place", **by_name(AFTER))
def test_f26_a_body_without_length_is_cut(place, wire):
    """The headline case: no library calls this an error."""
    checked = run(cut_at(place, wire, FIN), wire)
    assert "finish reason" in checked.span.error or not place.texts


@pytest.mark.parametrize("place", **by_name(AFTER))
def test_f26_a_chunked_stream_ends_in_order_but_too_early(place, wire):
    run(cut_at(place, wire, chunk(b""), is_chunked=True), wire)


def test_f27_a_server_that_answers_before_it_has_read(wire):
    early = [AT_ONCE, *wire.stream("1 + 1"), READ, FIN]
    run(Case(early, truth="complete", text="1 + 1"), wire)


@pytest.mark.parametrize("rest", [[], [Sleep(0.02)], [HANG]])
def test_f27_a_server_that_half_closes(rest, wire):
    run(Case([*wire.stream("1 + 1"), HALF_CLOSE, *rest], truth="complete", text="1 + 1"), wire)


JUNK = [b"junk", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"\r\n\r\n", 100 * b"\x00"]


@pytest.mark.parametrize("junk", JUNK, ids=["words", "second reply", "line ends", "zeros"])
def test_f28_junk_after_the_body_is_never_the_next_answer(junk, wire):
    """Two spans: what follows the first reply is not taken for the second."""
    local = ScriptedLocal([[*b"a", OPEN], [*b"b", OPEN], [*b"c", END]])
    first = chunked(wire.text("1"), wire.finish(), DONE)
    first[-1] = Send(first[-1].data + junk)
    second = chunked(wire.text("2"), wire.finish(), DONE)
    case = Case(first, truth="complete", text="1", server={"then": second})
    assert run(case, wire, local=local).transcript.text == "a1b2c"


STRANGE = {
    "no http": [Send(b"220 mail.example ESMTP\r\n\r\n"), FIN],
    "binary": [Send(bytes(range(256)) * 20), FIN],
    "tls alert": [Send(b"\x15\x03\x01\x00\x02\x02\x28"), FIN],
    "no status": [Send(b"HTTP/1.1\r\n\r\n"), FIN],
    "status 0": [Send(b"HTTP/1.1 000 Zero\r\n\r\n"), FIN],
    "status 99999": [Send(b"HTTP/1.1 99999 Many\r\n\r\n"), FIN],
    "http 2 preface": [Send(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00"), FIN],
    "http 9": [Send(b"HTTP/9.9 200 OK\r\n\r\n"), FIN],
    "folded header": [Send(b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\n\r\n"), FIN],
    "header without colon": [Send(b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"), FIN],
    "two lengths": [Send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 9\r\n\r\nabc"), FIN],
    "length is no number": [Send(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc"), FIN],
    "switching protocols": [Send(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n"), FIN],
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_f25_what_is_no_http(name, wire):
    """Nothing of it is shown. Whether it is asked again is a matter of taste, twice at most."""
    run(wordless(STRANGE[name]), wire)
