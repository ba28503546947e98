"""What is shown of an answer: who wrote what, by shape and by colour, and the figures after it."""

import io
import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from sr_edge.events import Event, Finished, LocalToken, SpanDelta, Started
from sr_edge.report import (
    Look,
    StreamView,
    as_json,
    choose_look,
    is_full,
    notes,
    span_table,
    usage_line,
)
from sr_edge.roles import Limits, Message, Outcome
from sr_edge.split import SplitDecoder
from sr_edge.terminal import safe
from sr_edge.testing import END, OPEN, Reply, ScriptedLocal, ScriptedRemote
from sr_edge.transcript import fold

MARKS = Look(streams=True)
COLORS = Look(streams=True, colors=True)
BROKEN = Reply(("20 * 4",), Outcome("error", "remote unreachable: the connection was reset"))


def asked(*segments: str, replies: list[Reply | str], max_tokens: int = 4096) -> list[Event]:
    """An answer whose small model asks for help between its segments."""
    script = [[*segment.encode(), OPEN] for segment in segments[:-1]] + [[*segments[-1].encode(), END]]
    decoder = SplitDecoder(ScriptedLocal(script), ScriptedRemote(replies), limits=Limits(max_tokens))
    return list(decoder.generate([Message("user", "how?")]))


def shown(events: list[Event], look: Look = MARKS) -> str:
    err = io.StringIO()
    view = StreamView(look, err)
    for event in events:
        view.add(event)
    return err.getvalue()


def thinking(*pieces: tuple[str, int | None]) -> list[Event]:
    """A stream that begins inside an open think tag; each piece with its span."""
    events: list[Event] = [Started(prompt_ids=(), model="m", opening="<think>\n")]
    for text, span in pieces:
        events.append(LocalToken(1, text, 0.0) if span is None else SpanDelta(span, text))
    return [*events, Finished("stop", 0, 0, 0, 0.0)]


# --- the stream --------------------------------------------------------------------------------------


def test_the_large_models_text_stands_in_numbered_marks() -> None:
    events = asked("28 * 4:", ", so 3 * 5:", ".", replies=[" 20 * 4 = 80", " 15"])
    assert shown(events) == "28 * 4: ⟦1 20 * 4 = 80⟧, so 3 * 5: ⟦2 15⟧.\n"


def test_colour_adds_to_the_marks_and_takes_nothing_away() -> None:
    events = asked("28 * 4:", ".", replies=[" 112\n 5"])
    colored = shown(events, COLORS)
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == shown(events)
    assert "\x1b[1;35m⟦1 112\x1b[0m\n\x1b[1;35m 5⟧\x1b[0m." in colored  # each line by itself


def test_marks_fall_back_to_ascii() -> None:
    look = choose_look("marks", is_terminal=True, encoding="ascii", environ={})
    events = asked("28 * 4:", ".", replies=[" 112"])
    assert shown(events, look) == "28 * 4: [[1 112]].\n"


def test_a_span_that_broke_off_says_so() -> None:
    assert shown(asked("28 * 4: ", " 112.", replies=[BROKEN])) == "28 * 4: ⟦1 20 * 4 !error⟧ 112.\n"


def test_a_span_without_text_leaves_a_mark_of_its_own() -> None:
    nothing = Reply((), Outcome("stalled", "remote silent"))
    assert shown(asked("28 * 4:", " 112.", replies=[nothing])) == "28 * 4:⟦1!stalled⟧ 112.\n"


def test_what_is_in_the_stream_is_safe() -> None:
    events = asked("a", "b", replies=["\x1b]0;owned\x07\x1b[2Jx[bold]y"])
    assert shown(events) == "a⟦1 x[bold]y⟧b\n"


def test_two_writers_cannot_make_one_escape_sequence() -> None:
    events = asked("a\x1b]52;c;", "b\x1b[2", "mc", replies=["ZXZpbA==\x07x", "Jy\x1b["])
    assert shown(events) == "a⟦1 x⟧b⟦2 y⟧c\n"


def test_what_only_looked_like_a_sequence_is_shown_at_the_end() -> None:
    assert shown(asked("a", "b\x1b]0;title", replies=["x"])) == "a⟦1 x⟧b]0;title\n"


def test_reasoning_and_answer_stand_apart() -> None:
    events = thinking(("2 + 2 is 4.\n", None), ("</thi", None), ("nk>\n\n", None), ("It is 4.", None))
    assert shown(events) == "2 + 2 is 4.\n\nIt is 4.\n"


def test_on_one_terminal_the_answer_goes_to_stdout_and_its_marks_do_not() -> None:
    err, out = io.StringIO(), io.StringIO()
    view = StreamView(COLORS, err, out)
    for event in thinking(("so</think>\n\nIt is ", None), ("four", 1), (".", None)):
        view.add(event)
    assert out.getvalue() == "It is four.\n"
    assert err.getvalue() == "so\n\n\x1b[1;35m⟦1 ⟧\x1b[0m"


def test_without_reasoning_only_the_answer_is_shown() -> None:
    err, out = io.StringIO(), io.StringIO()
    view = StreamView(Look(streams=False), err, out)
    for event in thinking(("so", 1), ("</think>\n\nIt is ", None), ("four", 2), (".\n", None)):
        view.add(event)
    assert (out.getvalue(), err.getvalue()) == ("It is four.\n", "")


def test_a_stream_that_is_left_early_ends_its_line_and_its_colour() -> None:
    err = io.StringIO()
    view = StreamView(COLORS, err)
    for event in thinking(("a ", None), ("b", 1))[:-1]:
        view.add(event)
    view.close()
    view.close()
    assert err.getvalue() == "a \x1b[1;35m⟦1 b⟧\x1b[0m\n"


WORDS = st.text("ab <>/\n.é5", max_size=6)


@given(st.lists(st.tuples(WORDS, st.sampled_from([None, 1, 2, 3])), max_size=10), st.booleans())
def test_marks_can_be_taken_out_again(pieces: list[tuple[str, int | None]], is_colored: bool) -> None:
    text = shown([Started((), "m"), *thinking(*pieces)[1:]], COLORS if is_colored else MARKS)
    plain = re.sub(r"⟦\d |⟧|\x1b\[[0-9;]*m", "", text)
    assert plain.strip() == "".join(text for text, _ in pieces).strip()
    assert text.count("⟦") == text.count("⟧")


# --- which look --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spans", "is_terminal", "environ", "look"),
    [
        (None, True, {}, Look(streams=True, colors=True)),
        (None, False, {}, Look(streams=False)),
        (None, True, {"NO_COLOR": "1"}, Look(streams=True)),
        (None, True, {"NO_COLOR": ""}, Look(streams=True, colors=True)),  # as no-color.org says
        (None, True, {"TERM": "dumb"}, Look(streams=True)),
        ("none", True, {}, Look(streams=False)),
        ("marks", False, {}, Look(streams=True)),
        ("color", False, {}, Look(streams=True, colors=True)),
        ("color", True, {"NO_COLOR": "1"}, Look(streams=True)),
        ("table", True, {}, Look(streams=True, colors=True, table=True)),
        ("table", False, {}, Look(streams=False, table=True)),
    ],
)
def test_the_look_suits_the_output(spans, is_terminal, environ, look) -> None:
    assert choose_look(spans, is_terminal=is_terminal, encoding="utf-8", environ=environ) == look


# --- figures -----------------------------------------------------------------------------------------


def test_usage_is_one_line() -> None:
    events = asked("ab", "c", replies=["x"])
    transcript = fold([*events[:-1], Finished("stop", 9, 5, 1, 41.2, 2.0)])
    assert usage_line(transcript) == (
        "local 5 tokens 2.5 tok/s · remote 1 tokens in 1 span (16.7 %) · sent 24 B · 41 s"
    )


def test_the_table_has_a_line_for_each_span() -> None:
    lines = span_table(fold(asked("a", "b", "c", replies=[" x\ny", BROKEN])).spans, width=200)
    assert " ".join(lines[0].split()) == "# end tok p(open) ttft ms resume remote text"
    assert re.fullmatch(r"1  stop +4  +0.99 .*scripted remote  x y", lines[1])
    assert re.fullmatch(r"2  error +6  +0.99 .*scripted remote  20 \* 4", lines[2])


@given(st.integers(1, 120), st.lists(st.text(max_size=30), min_size=1, max_size=3))
def test_a_table_never_wraps(width: int, texts: list[str]) -> None:
    events = asked(*["a"] * (len(texts) + 1), replies=list(texts))
    for line in span_table(fold(events).spans, width=width):
        assert cell_len(line) <= max(width, 1)
        assert safe(line) == line


def test_the_object_has_the_documented_keys() -> None:
    data = json.loads(json.dumps(as_json(fold(asked("a", r"\boxed{7}", replies=["x"])))))
    assert data["answer"] == data["text"] == r"ax\boxed{7}"
    assert (data["boxed"], data["finish"], data["degraded"], data["big"]) == (
        "7",
        "stop",
        False,
        "scripted remote",
    )
    (span,) = data["spans"]
    assert set(span) == {
        *("text", "trigger", "end", "tokens", "p_open"),
        *("status", "sent_bytes", "cost", "ttft_ms", "ms", "resume_ms", "remote", "error"),
    }
    assert set(data["usage"]) == {
        *("local_tokens", "remote_tokens", "remote_share", "prompt_tokens"),
        *("sent_tokens", "sent_bytes", "cost", "tok_s"),
    }


def test_a_failed_remote_is_told_in_one_line() -> None:
    transcript = fold(asked("a", "b", "c", replies=[BROKEN, BROKEN]))
    assert notes(transcript) == [
        "remote unreachable: the connection was reset; the small model went on alone"
    ]
    assert as_json(transcript)["degraded"]


def test_a_cut_answer_is_told_in_one_line() -> None:
    cut = fold(asked("abcdef", replies=[], max_tokens=3))
    assert notes(cut, max_tokens=3) == ["stopped at --max-tokens 3: the answer is cut"]
    assert not is_full(cut)
    full = replace(cut, error="the context is full")
    assert notes(full, max_tokens=4) == ["stopped at the end of the context: the answer is cut"]
    assert is_full(full)
    (line,) = notes(fold([*thinking(("hm", None))[:-1], Finished("length", 0, 1, 0, 0.0)]))
    assert line == "stopped at its limit: the reasoning had not reached an answer"


def test_nothing_is_told_of_an_answer_that_went_well() -> None:
    assert notes(fold(asked("a", "b", replies=["x"])), max_tokens=100) == []
