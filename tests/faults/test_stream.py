"""F29 to F54: what is in the stream, and where it is cut."""

import threading

import pytest
from tests.faults.harness import (
    AFTER,
    PIECES,
    PLACES,
    SHORT,
    WIRES,
    by_name,
    cut_at,
    deadlines,
    prompt,
    run,
    wordless,
)

from sr_edge.roles import Limits, Prompt
from sr_edge.testing.fault_endpoint import (
    CHAT,
    COMPLETIONS,
    DONE,
    FIN,
    HANG,
    RST,
    Await,
    Loop,
    Send,
    Sleep,
    Slice,
    chunk,
    delta,
    head,
    page,
    sse,
    usage,
)
from sr_edge.testing.models import END, OPEN, ScriptedLocal
from sr_edge.testing.oracle import AFTER as TAIL
from sr_edge.testing.oracle import BEFORE, QUESTION, Case, InvariantError, status_of, writer


@pytest.fixture(params=WIRES)
def wire(request):
    return WIRES[request.param]


WHOLE = "".join(PIECES)


def good(wire, *ops):
    """A reply with these operations between its texts."""
    texts = [op for piece in PIECES for op in (wire.text(piece), *ops)]
    return [head(), *ops, *texts, wire.finish(), *ops, DONE, FIN]


# --- F29 to F33: cut anywhere, spelled in any way (all cuts in memory: test_sse_sweep) ------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize(
    "text", ["1 + 1 = 2", "größer 数 🧮 ≠", 'quote " and \\ and \n line', "1\u2028\u0085\x0b\x0c\x1c2"]
)
def test_f29_f31_any_slices(text, size, wire):
    run(Case([Slice(size), *wire.stream(text)], truth="complete", text=text), wire)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [0, 1])
def test_f30_line_ends(end, size, wire):
    data = b"".join(op.data for op in wire.stream(*PIECES)[1:]).replace(b"\n", end.encode())
    run(Case([head(), Slice(size), Send(data)], truth="complete", text=WHOLE), wire)


def test_f30_a_byte_order_mark(wire):
    stream = wire.stream(*PIECES)
    run(Case([stream[0], Send(b"\xef\xbb\xbf"), *stream[1:]], truth="complete", text=WHOLE), wire)


NOTHING = {
    "ping": Send(b": ping\n\n"),
    "openrouter": Send(b": OPENROUTER PROCESSING\n\n"),
    "empty data": Send(b"data:\n\n"),
    "unknown field": Send(b"foo: bar\n\n"),
    "retry": Send(b"retry: 10000\n\n"),
    "id with nul": Send(b"id: \0\n\n"),
    "other event": sse({"choices": []}, type="ping"),
    "no choices": sse({"choices": []}),
    "null choices": sse({"choices": None}),
    "odd choices": sse({"choices": [None, 3, "x", [], {}]}),
    "usage": usage(9, 3),
    "null usage": sse({"choices": [], "usage": None}),
    "endless usage": sse({"choices": [], "usage": {"prompt_tokens": 10**400, "completion_tokens": 10**400}}),
    "odd usage": sse({"choices": [], "usage": {"prompt_tokens": "many", "completion_tokens": -3}}),
    "empty delta": sse({"choices": [{"index": 0, "delta": {}, "finish_reason": None}]}),
    "null delta": sse({"choices": [{"index": 0, "delta": None}]}),
    "null content": delta(role="assistant", content=None),
    "role only": delta(role="assistant"),
    "empty content": delta(content=""),
    "number content": delta(content=3),
    "list content": delta(content=["x"]),
    "odd text": sse({"choices": [{"text": {"a": 1}}]}),
    "another choice": sse({"choices": [CHAT.choice("other", index=1), COMPLETIONS.choice("other", index=2)]}),
    "logprobs": sse({"choices": [{"index": 0, "delta": {"content": ""}, "logprobs": {"content": []}}]}),
    "null error": sse({"error": None, "choices": []}),
    "object only": sse({"object": "chat.completion.chunk", "model": "other", "choices": []}),
    "duplicate keys": Send(b'data: {"choices": [], "choices": []}\n\n'),
    "timings": sse({"choices": [], "timings": {"predicted_per_second": 1e308}}),
}


@pytest.mark.parametrize("name", NOTHING)
def test_f32_f40_what_says_nothing_adds_nothing(name, wire):
    run(Case(good(wire, NOTHING[name]), truth="complete", text=WHOLE), wire)


@pytest.mark.parametrize("name", NOTHING)
def test_f32_nothing_but_that_is_no_answer(name, wire):
    run(wordless([head(), *3 * [NOTHING[name]], FIN]), wire)


@pytest.mark.parametrize("separator", ["", " "])
def test_f33_data_over_several_lines(separator, wire):
    def lines(op):
        text = op.data.decode().removeprefix("data: ").strip()
        return Send(
            "".join(f"data:{separator}{part}\n" for part in text.replace(",", ",\n").split("\n")).encode()
            + b"\n"
        )

    events = [lines(wire.text(piece)) for piece in ("1 + 1", "= 2")]
    run(Case([head(), *events, DONE, FIN], truth="complete", text="1 + 1= 2"), wire)


# --- F34 to F38: the end must be proved -----------------------------------------------------------------


def endings(wire):
    last = wire.text("", "stop").data
    return {
        "finish reason only": ([wire.finish(), FIN], True),
        "done only": ([DONE, FIN], True),
        "both": ([wire.finish(), DONE, FIN], True),
        "both, open": ([wire.finish(), DONE, HANG], True),
        "finish reason, open": ([wire.finish(), HANG], True),
        "done, open": ([DONE, HANG], True),
        "finish reason, reset": ([wire.finish(), Sleep(0.02), RST], True),
        "done, reset": ([DONE, Sleep(0.02), RST], True),
        "done without a blank line": ([Send(b"data: [DONE]\n"), FIN], True),
        "done without a line end": ([Send(b"data: [DONE]"), FIN], True),
        "done without a space": ([Send(b"data:[DONE]\n\n"), FIN], True),
        "finish reason without a blank line": ([Send(last[:-1]), FIN], True),
        "finish reason without a line end": ([Send(last[:-2]), FIN], True),
        "usage after the finish reason": ([wire.finish(), usage(9, 3), FIN], True),
        "usage, then done": ([usage(9, 3), DONE, FIN], True),
        "usage alone": ([usage(9, 3), FIN], False),
        "neither": ([FIN], False),
        "neither, reset": ([RST], False),
        "null finish reason": ([wire.text("", None), FIN], False),
        "finish reason in words of null": ([wire.text("", "null"), FIN], False),
        "empty finish reason": ([wire.text("", ""), FIN], False),
        "done as a comment": ([Send(b": [DONE]\n\n"), FIN], False),
        "done in another field": ([Send(b"event: [DONE]\n\n"), FIN], False),
        "done is cut": ([Send(b"data: [DON"), FIN], False),
        "done in the text": ([wire.text("[DONE]"), FIN], None),
        "finish reason is cut": ([Send(last[: len(last) // 2]), FIN], False),
        "finish reason of another choice": ([wire.text("", "stop", index=1), FIN], False),
    }  # fmt: skip


@pytest.mark.parametrize("name", endings(COMPLETIONS))
@pytest.mark.parametrize("size", [0, 3])
def test_f34_to_f38_complete_is_proved(name, size, wire):
    ops, is_complete = endings(wire)[name]
    text = "1 + 1" if is_complete is not None else "1 + 1[DONE]"
    script = [head(), Slice(size), wire.text("1 + 1"), *ops]
    truth = "complete" if is_complete else "partial"
    run(Case(script, truth=truth, text=text, patience=None), wire)


def test_f38_a_trial_ends_at_done_too():
    """Before a chat server gets the question it is tried out; its socket stays open after each reply."""

    def script(request):
        if request.path != CHAT.path:
            return page({}, 404)
        return [*CHAT.stream("six, seven" if "six" in str(request.body) else "1 + 1"), HANG]

    auto = {"api": "auto", "deadlines": deadlines(first_content=1.0)}
    case = Case(script, truth="complete", text=None, patience=None, server={"then": script})
    run(case, options=auto)


TRIAL_FAULTS = {
    "reset": [RST],
    "fin": [FIN],
    "silence": [HANG],
    "503": page("no", 503),
    "400": page("no", 400),
    "html": page("<html></html>", kind="text/html"),
    "not json": [head(), sse("{nope"), FIN],
    "cut": [head(), CHAT.text("g h"), FIN],
    "endless": [head(), Loop((CHAT.text("g h "), Sleep(0.002)))],
    "markers": [*CHAT.stream("</bigmodel><|im_end|>"), FIN],
}


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("name", TRIAL_FAULTS)
def test_a_trial_may_fail_like_anything_else(name, number):
    """A server without completions is tried out first; whatever it does then, the answer goes on."""
    tried = []

    def script(request):
        if request.path != CHAT.path:
            return page({}, 404)
        if QUESTION[-1].content in request.data.decode():
            return [*CHAT.stream("1 + 1"), FIN]
        tried.append(request)
        return TRIAL_FAULTS[name] if len(tried) == number else [*CHAT.stream("g h i j"), FIN]

    auto = {"api": "auto", "deadlines": deadlines(first_byte=SHORT, first_content=2 * SHORT)}
    case = Case(script, truth=None, text=None, patience=None, server={"then": script}, hang_up=2)
    assert run(case, options=auto).status in ("complete", "failed")  # it may well give up


@pytest.mark.parametrize("ops", [[DONE, FIN], "finish", [DONE, HANG]])
def test_f54_an_empty_answer_is_none(ops, wire):
    ops = [wire.finish(), FIN] if ops == "finish" else ops
    run(Case([head(), *ops], truth="skipped", patience=None), wire)


def test_f54_another_model_answers(wire):
    choices = [wire.choice("1 + 1")]
    script = [head(), sse({"model": "another", "choices": choices}), wire.finish(), DONE]
    run(Case(script, truth="complete", text="1 + 1"), wire)


# --- F39, F43 to F45: it says that it failed, or what it says is no answer ------------------------------

ERRORS = {
    "object": sse({"error": {"message": "overloaded", "code": 503}}),
    "text": sse({"error": "overloaded"}),
    "event": sse({"message": "overloaded"}, type="error"),
    "event with an error": sse({"error": {"message": "overloaded"}}, type="error"),
    "object with choices": sse({"error": {"message": "overloaded"}, "choices": []}),
    "old llama.cpp": Send(b'error: {"code": 500, "message": "overloaded"}\n\n'),
    "openrouter": sse(
        {"error": {"message": "overloaded"}, "choices": [{"index": 0, "finish_reason": "error"}]}
    ),
}


@pytest.mark.parametrize("after", [[FIN], [DONE, FIN], [HANG]], ids=["fin", "done", "hang"])
@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("place", **by_name(AFTER[:4]))
def test_f39_an_error_in_the_stream(place, name, after, wire):
    run(cut_at(place, wire, ERRORS[name], *after, says="overloaded"), wire)


FINISHES = {
    "stop": "complete", "eos": None, "end_turn": None, "length": "partial", "max_tokens": "partial",
    "content_filter": "partial", "insufficient_system_resource": "partial", "error": "partial",
    "tool_calls": "partial", "function_call": "partial", "abort": "partial", "unheard_of": None,
}  # fmt: skip
"""None: a matter of taste."""


@pytest.mark.parametrize("reason", FINISHES)
@pytest.mark.parametrize("last", [[DONE, FIN], [FIN]], ids=["done", "fin"])
def test_f43_finish_reasons(reason, last, wire):
    script = [head(), wire.text("1 + 1"), wire.finish(reason), *last]
    checked = run(Case(script, truth=FINISHES[reason], text="1 + 1"), wire)
    assert checked.status in ("complete", "partial")


UNREADABLE = {
    "not json": sse("{nope"),
    "a word": sse("hello"),
    "nan": sse('{"choices": NaN}'),
    "infinity": sse('{"choices": [{"index": 0, "text": Infinity'),
    "a list": sse("[1]"),
    "a number": sse("3"),
    "null": sse("null"),
    "bottomless": sse(100_000 * "["),
    "bottomless objects": sse(100_000 * '{"a":'),
    "a huge number": sse('{"usage": %s}' % ("9" * 10_000)),
    "html": sse("<html>502 Bad Gateway</html>"),
    "cut": Send(b'data: {"choices": [{"ind\n\n'),
    "binary": Send(b"data: \xff\xfe\x00\x01\n\n"),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("place", **by_name(AFTER[:3]))
def test_f44_what_is_no_json(place, name, wire):
    run(cut_at(place, wire, UNREADABLE[name], FIN), wire)


INVALID = {
    "lone surrogate": (b'"a\\ud800b"', "a\ufffdb"),
    "low surrogate": (b'"a\\udc00b"', "a\ufffdb"),
    "swapped surrogates": (b'"\\udc00\\ud800"', "\ufffd\ufffd"),
    "pair": (b'"\\ud83e\\uddee"', "🧮"),
    "bad utf-8": (b'"a\xffb"', "a\ufffdb"),
    "cut utf-8": (b'"a\xe2\x82b"', "a\ufffdb"),
    "overlong": (b'"a\xc0\xafb"', "a\ufffd\ufffdb"),
    "nul": (b'"a\\u0000b"', "a\0b"),
    "escape": (b'"a\\u001b[31mb"', "a\x1b[31mb"),
    "noncharacter": (b'"a\\uffffb"', "a\uffffb"),
}


@pytest.mark.parametrize("name", INVALID)
def test_f45_text_that_is_none(name, wire):
    literal, expected = INVALID[name]
    event = wire.text("@").data.replace(b'"@"', literal)
    run(Case([head(), Send(event), wire.finish(), DONE, FIN], truth="complete", text=expected), wire)


@pytest.mark.parametrize("text", ["ha ", "1", "1\n\n", "."])
def test_f46_what_is_said_twice_is_said_twice(text, wire):
    twice = [wire.text(text), wire.text(text), wire.text(text)]
    run(Case([head(), *twice, DONE, FIN], truth="complete", text=3 * text), wire)


# --- F41, F42: thinking that is not the span ------------------------------------------------------------


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_f41_reasoning_is_not_the_span(field):
    thoughts = [delta(**{field: "Let me see"}), delta(**{field: "Hm."}, content=None)]
    script = [
        head(),
        *thoughts,
        delta(content="1 + 1"),
        *thoughts,
        delta(content=" = 2"),
        delta("stop"),
        DONE,
        FIN,
    ]
    run(Case(script, truth="complete", text="1 + 1 = 2"), CHAT)


@pytest.mark.parametrize("end", [[RST], [FIN], [HANG], [delta("stop"), DONE, FIN]])
def test_f41_what_comes_after_our_thought_proves_nothing(end):
    """The server has closed the thought that the span continues: nobody said that it was done."""
    thought = [delta(reasoning="1 + "), delta(reasoning="1"), delta(content="The answer is 2.")]
    case = Case([head(), *thought, *end], truth="partial", text="1 + 1", patience=None)
    checked = run(case, CHAT, options={"prompt": open_thought})
    assert checked.span.end == "cap"


def open_thought(messages):
    rendered = prompt(messages)
    return Prompt((), rendered.text + "<think>\n", "<think>\n")


@pytest.mark.parametrize("end", [[delta("stop"), DONE, FIN], [DONE, FIN]])
def test_f42_nothing_but_reasoning_is_no_answer(end):
    run(Case([head(), delta(reasoning="Hm."), delta(reasoning_content="Hm."), *end], truth="skipped"), CHAT)


def test_f42_reasoning_without_end_is_left():
    """Each thought is a sign of life, but the span's own text must begin."""
    thinking = [head(), Loop((delta(reasoning="Hm."), Sleep(0.01)))]
    options = {"deadlines": deadlines(first_content=SHORT)}
    run(Case(thinking, patience=None, seconds=2), CHAT, options=options)


# --- F47 to F51: too large, too slow, cut, endless ------------------------------------------------------


@pytest.mark.parametrize("place", **by_name(AFTER[:3]))
def test_f47_a_line_without_end(place, wire):
    flood = [Send(b"data: "), Loop((Send(65536 * b"x"),))]
    run(cut_at(place, wire, *flood, patience=None, hang_up=4), wire)


@pytest.mark.parametrize(
    "line", [b"data: x\n", b": x\n", b"data\n", b"event: x\n", b"\n", b"id: 3\n", b"data: {}\n\n"]
)
def test_f47_lines_without_end(line, wire):
    flood = [head(), wire.text("1"), Loop((Send(8192 * line),))]
    options = {"deadlines": deadlines(idle=SHORT)}
    # a sender whose window is full asks less and less often whether anybody is there
    case = Case(flood, truth="partial", text="1", patience=None, seconds=2, hang_up=4)
    run(case, wire, options=options)


def test_f47_single_bytes(wire):
    text = 80 * "1 + 1 "
    run(Case([head(), Slice(1), wire.text(text), DONE], truth="complete", text=text, patience=None), wire)


@pytest.mark.parametrize("is_chunked", [False, True], ids=["plain", "chunked"])
@pytest.mark.parametrize("place", **by_name(PLACES))
def test_f48_silence(place, is_chunked, wire):
    options = {
        "deadlines": deadlines(**{("idle" if place.texts else "first_content"): SHORT, "first_byte": SHORT})
    }
    if place.texts == 0:
        options = {"deadlines": deadlines(first_content=SHORT)}
    script = place.script(wire, HANG, is_chunked=is_chunked)
    checked = run(Case(script, truth=place.truth, text=place.text, patience=SHORT), wire, options=options)
    assert checked.span.end == "stalled"


@pytest.mark.parametrize(
    "name", ["ping", "empty data", "no choices", "null usage", "unknown field", "role only"]
)
@pytest.mark.parametrize("place", **by_name([AFTER[0], AFTER[2]]))
def test_f48_noise_is_silence(place, name, wire):
    options = {"deadlines": deadlines(**{("idle" if place.texts else "first_content"): SHORT})}
    script = place.script(wire, Loop((NOTHING[name], Sleep(0.02))))
    checked = run(Case(script, truth=place.truth, text=place.text, patience=None), wire, options=options)
    assert checked.span.end == "stalled"


def test_f49_a_drip_is_cut_by_the_spans_own_deadline(wire):
    options = {"deadlines": deadlines(total=2 * SHORT)}
    script = [head(), Loop((wire.text("1 "), Sleep(0.02)))]
    checked = run(Case(script, truth="partial", text=None, patience=None, seconds=2), wire, options=options)
    assert 3 <= len(checked.span.text) <= 60


CUTS = {
    "reset": [RST],
    "fin": [FIN],
    "half an event": [Send(b'data: {"choices": [{"index": 0, "te'), FIN],
    "half an event, reset": [Send(b'data: {"choices": [{"index": 0, "te'), RST],
    "half a character": [Send(b'data: {"choices": [{"index": 0, "text": "\xe2\x82'), FIN],
    "half a line": [Send(b"dat"), FIN],
    "a comment": [Send(b": ping\n\n"), FIN],
    "a blank line": [Send(b"\n\n\n"), FIN],
}


@pytest.mark.parametrize("is_chunked", [False, True], ids=["plain", "chunked"])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("place", **by_name(AFTER))
def test_f50_cut(place, cut, is_chunked, wire):
    ops = [chunk(op.data) if is_chunked and isinstance(op, Send) else op for op in CUTS[cut]]
    if RST in ops and place.texts:  # what is on its way must arrive before the reset
        ops.insert(len(ops) - 1, Sleep(0.02))
    run(cut_at(place, wire, *ops, is_chunked=is_chunked), wire)


@pytest.mark.parametrize("text", ["ha ", "1 + 1 = 2\n", "x", 100 * "word "])
def test_f51_a_span_without_end(text, wire):
    script = [head(), Loop((wire.text(text),))]
    case = Case(script, truth="partial", text=None, patience=None)
    checked = run(case, wire, limits=Limits(max_tokens=2000, max_span_tokens=100, soft_span_tokens=100))
    assert checked.span.end == "cap"
    assert checked.span.tokens <= 100


def test_f51_paragraphs_without_end_are_ended_at_one(wire):
    script = [head(), Loop((wire.text("1 + 1 = 2.\n\n"),))]
    case = Case(script, truth="complete", text=None, patience=None)
    checked = run(case, wire, limits=Limits(max_tokens=2000, max_span_tokens=200, soft_span_tokens=40))
    assert checked.span.end == "boundary"
    assert checked.span.text.endswith("\n\n")


# --- F52, F53: echoes and markers -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize("echo", ["answer", "prompt and answer"])
def test_f52_an_echo_is_dropped(echo, size, wire):
    def script(request):
        sent = request.body["prompt"] if wire is COMPLETIONS else request.body["messages"][-1]["content"]
        said = sent if echo == "prompt and answer" else BEFORE
        texts = [wire.text(said[at : at + 5]) for at in range(0, len(said), 5)]
        return [head(), Slice(size), *texts, wire.text("1 + 1"), wire.finish(), DONE]

    run(Case(script, truth="complete", text="1 + 1"), wire)


MARKERS = {
    "close": ("1 + 1</bigmodel> and more", "1 + 1 and more"),
    "other close": ("1 + 1<\\bigmodel> and more", "1 + 1 and more"),
    "open": ("1 <bigmodel>+ 1", None),
    "end of turn": ("1 + 1<|im_end|>", None),
    "end of text": ("1 + 1<|endoftext|>", None),
    "eos": ("1 + 1</s>", None),
    "turn": ("<|im_start|>user\nhi", None),
    "nearly": ("a </big b", "a </big b"),
}


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("name", MARKERS)
def test_f53_markers_in_the_text_stay_text(name, cut, wire):
    said, expected = MARKERS[name]
    texts = [wire.text(said[at : at + cut]) for at in range(0, len(said), cut)]
    case = Case([head(), *texts, wire.finish(), DONE], truth="complete", text=expected)
    checked = run(case, wire)
    assert len(checked.transcript.spans) == 1
    assert "bigmodel>" not in checked.span.text


# --- hand-back, budgets and the user, on a true line ----------------------------------------------------


@pytest.mark.parametrize("place", **by_name(AFTER[1:]))
def test_the_small_model_takes_the_pen_and_we_hang_up(place, wire):
    local = writer(wants_pen=lambda text: text.endswith(place.text[-3:]))
    script = place.script(wire, Loop((wire.text("more "), Sleep(0.01))))
    case = Case(script, truth="complete", text=None, patience=None)
    checked = run(case, wire, local=local, limits=Limits(places="token"))  # in the middle of a word too
    assert checked.span.end == "handback"
    assert checked.transcript.text.endswith(TAIL)


@pytest.mark.parametrize("place", **by_name(PLACES))
def test_the_user_stops_the_answer(place, wire):
    stop = threading.Event()
    told = threading.Event()

    def cancelled():
        return stop.is_set()

    script = place.script(wire, Await(told, 0.05), HANG)
    threading.Timer(0.1, stop.set).start()
    case = Case(script, truth="cancelled", text=place.text, patience=None, seconds=2)
    run(case, wire, cancelled=cancelled)


@pytest.mark.parametrize("room", [1, 2, 5, 20])
def test_the_answers_own_limit_ends_a_span(room, wire):
    limits = Limits(max_tokens=len(BEFORE) + 1 + room)
    case = Case(wire.stream(100 * "1 + 1 "), truth="partial", text=(100 * "1 + 1 ")[:room], patience=None)
    with pytest.raises(InvariantError, match="the small model did not go on") as broken:  # no token left
        run(case, wire, limits=limits)
    assert str(broken.value).splitlines()[0].startswith("I1 live")
    assert '"end": "budget"' in str(broken.value)


def test_several_spans_each_with_its_own_fault(wire):
    """What one span came to says nothing about the next."""
    local = ScriptedLocal([[*b"a", OPEN], [*b"b", OPEN], [*b"c", OPEN], [*b"d", OPEN], [*b"e", END]])
    scripts = (
        [head(), wire.text("1"), RST],
        page("no", 400),
        wire.stream("2"),
        [head(), wire.text("3"), FIN],
    )
    first = [head(), wire.text("1"), Sleep(0.02), RST]
    case = Case(first, truth="partial", text="1", then=scripts[1:])
    checked = run(case, wire, local=local)
    assert [status_of(span) for span in checked.transcript.spans] == [
        "partial",
        "failed",
        "complete",
        "partial",
    ]
    assert checked.transcript.text == "a1bc2d3e"
