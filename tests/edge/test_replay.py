"""A recorded answer is shown as it was, without a model; a bad recording is refused by file and line."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import command_line

from sr_edge import commands
from sr_edge.commands.replay import recorded
from sr_edge.errors import UsageError
from sr_edge.events import Event, Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started, to_json
from sr_edge.report import Look, StreamView, as_json, notes, span_table, usage_line
from sr_edge.transcript import fold

ANSWER: list[Event] = [
    Started((1, 2), "small", "big", opening="<think>\n", at=0.0),
    LocalToken(3, "28 * 4:", -0.1, at=0.1),
    SpanOpened(1, "marker", 0.9, "big", 10, 40, at=0.1),
    LocalToken(4, "", -0.2, at=0.15),
    SpanDelta(1, " 112", at=0.2),
    SpanClosed(1, (5, 6), "handback", tokens=1, ttft=0.05, seconds=0.1, resume=0.01, at=0.2),
    LocalToken(7, ".</think>It is 112.", -0.1, at=0.3),
    Finished("stop", 2, 3, 1, 0.3, 0.2, at=0.3),
]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write(tmp_path / "answer.jsonl", ANSWER)


def write(path: Path, events: list[Event]) -> Path:
    path.write_text("".join(to_json(event) + "\n" for event in events), "utf-8")
    return path


def replay(*arguments: object) -> subprocess.CompletedProcess[str]:
    return command_line.call("replay", *arguments)


def test_what_was_recorded_comes_back(recording: Path) -> None:
    assert list(recorded(recording)) == ANSWER


def test_the_answer_goes_to_stdout_and_nothing_else(recording: Path) -> None:
    done = replay(recording)
    assert (done.returncode, done.stdout, done.stderr) == (0, "It is 112.\n", "")


def test_spans_are_shown_as_in_ask(recording: Path) -> None:
    done = replay(recording, "--spans", "marks")
    assert (done.returncode, done.stdout) == (0, "It is 112.\n")
    assert done.stderr == "28 * 4: ⟦1 112⟧.\n\nIt is 112.\n"
    table = replay(recording, "--spans", "table").stderr
    assert table.splitlines()[1].split() == ["1", "handback", "1", "0.90", "50", "100", "10", "big", "112"]


def test_a_cut_recording_is_shown_as_far_as_it_goes(recording: Path) -> None:
    """As after a kill: the last line may be half a line."""
    data = recording.read_bytes()
    lines = data.splitlines(keepends=True)
    recording.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    done = replay(recording, "--spans", "marks")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"28 * 4: ⟦1 112⟧\nsr-edge: {recording}: the recording was cut here\n"


BAD = {
    "not JSON": ("hello", "not a line of JSON"),
    "not an event": ('{"v": 1}', "not an event"),
    "incomplete": ('{"v": 1, "event": "local_token"}', "incomplete"),
    "of a newer version": ('{"v": 99, "event": "finished"}', "upgrade"),
    "a second answer": (to_json(ANSWER[0]), "only once"),
    "a delta of no span": (to_json(SpanDelta(7, "x")), "span 7 is not open"),
}


@pytest.mark.parametrize(("line", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_refused_by_file_and_line(recording: Path, line: str, reason: str) -> None:
    lines = recording.read_text("utf-8").splitlines()
    recording.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n", "utf-8")
    with pytest.raises(UsageError, match=f"{recording}:3: .*{reason}"):
        list(recorded(recording))


def test_a_bad_recording_is_one_line_on_stderr(recording: Path) -> None:
    recording.write_text("hello\n")
    done = replay(recording)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith(f"sr-edge: {recording}:1: not a line of JSON")


@pytest.mark.parametrize("content", [b"", b"GGUF\x03\x00\x00\x00", b"\xff\xfe\n"])
def test_a_file_that_is_no_recording_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UsageError, match=str(tmp_path)):
        list(recorded(tmp_path / "file"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    done = replay(tmp_path / "none")
    assert (done.returncode, done.stderr) == (2, f"sr-edge: {tmp_path / 'none'}: No such file or directory\n")


def test_speed_keeps_the_rhythm(recording: Path) -> None:
    began = time.monotonic()
    assert replay(recording, "--speed", "0.2").returncode == 0
    assert time.monotonic() - began > 0.3 / 0.2


@pytest.mark.parametrize("options", [["--speed", "0"], ["--speed", "nan"], ["--speed", "1", "--instant"]])
def test_a_speed_that_is_none_is_refused(recording: Path, options: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sr-edge", "replay", str(recording), *options])
    with pytest.raises(SystemExit) as left:
        commands.main()
    assert left.value.code == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@given(st.integers(0, len(ANSWER) - 1), st.data(), JSON)
def test_no_recording_is_a_bug_of_ours(
    tmp_path_factory, number: int, data: st.DataObject, value: object
) -> None:
    """One field of one event replaced by anything: it is read and can be shown, or refused by name."""
    path = tmp_path_factory.mktemp("mutated") / "answer.jsonl"
    lines = [json.loads(to_json(event)) for event in ANSWER]
    lines[number][data.draw(st.sampled_from(sorted(lines[number])))] = value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        events = list(recorded(path))
    except UsageError:
        return
    show(events)


def show(events: list[Event]) -> None:
    view = StreamView(Look(streams=True, colors=True), io.StringIO())
    for event in events:
        view.add(event)
    transcript = fold(events)
    span_table(transcript.spans, width=80)
    usage_line(transcript)
    notes(transcript)
    as_json(transcript)
