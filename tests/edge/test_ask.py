"""`sr-edge ask` on the built-in pair, as a user and as a script meet it."""

import io
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.command_line import COMMAND, call, environment, run, run_in_terminal, run_interrupted
from tests.raw_server import FIN, HANG, RawServer, head, stream, text
from tests.tiny_gguf import CONTROL, write_tiny_gguf

from sr_edge import commands
from sr_edge.commands.ask import read_question
from sr_edge.commands.replay import recorded
from sr_edge.errors import UsageError
from sr_edge.events import Finished, Started, from_json
from sr_edge.extract import last_boxed, split_reasoning
from sr_edge.passport import demo_paths
from sr_edge.suites.demo import HARD_KINDS, problems
from sr_edge.transcript import Transcript, fold

QUESTION = next(
    p.question for p in problems(seed=11, n=100) if any(step.kind in HARD_KINDS for step in p.steps)
)
GREEDY = ("--temp", 0)


def ask(
    folder: Path, *options: object, by=call, problem: Sequence[str] = (QUESTION,), **more: Any
) -> tuple[subprocess.CompletedProcess[str], Transcript]:
    """A greedy answer, and the transcript that its own events fold to."""
    file = folder / "events.jsonl"
    done = by("ask", *problem, *GREEDY, "--events", file, *options, **more)
    return done, fold(recorded(file))


def answer_of(transcript: Transcript) -> str:
    return split_reasoning(transcript.opening, transcript.text)[1].strip()


def unmarked(text: str) -> str:
    return re.sub(r"⟦\d+ |⟧|\x1b\[[0-9;]*m", "", text)


def shown(transcript: Transcript) -> str:
    """The stream as it looks without marks."""
    reasoning, answer = split_reasoning(transcript.opening, transcript.text)
    return f"{reasoning.strip()}\n\n{answer.strip()}\n"


@pytest.fixture
def nobody() -> str:
    """The URL of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}"


# --- what comes out ----------------------------------------------------------------------------------


def test_stdout_carries_the_answer_and_nothing_else(tmp_path: Path) -> None:
    done, transcript = ask(tmp_path, by=run)
    assert (done.returncode, done.stdout, done.stderr) == (0, answer_of(transcript) + "\n", "")


def test_the_object_tells_the_whole_answer(tmp_path: Path) -> None:
    done, transcript = ask(tmp_path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert (data["text"], data["answer"], data["boxed"]) == (
        transcript.text,
        answer_of(transcript),
        last_boxed(answer_of(transcript)),
    )
    assert (data["finish"], data["degraded"]) == ("stop", False)
    assert len(data["spans"]) == len(transcript.spans) > 0
    usage = data["usage"]
    assert usage["remote_tokens"] == sum(span["tokens"] for span in data["spans"]) > 0
    assert usage["remote_share"] == usage["remote_tokens"] / (usage["local_tokens"] + usage["remote_tokens"])
    for span in data["spans"]:
        assert span["text"] in data["text"]
        assert (span["trigger"], span["error"]) == ("marker", None)
        assert 0 < span["p_open"] <= 1
        assert span["ms"] >= 0 <= span["ttft_ms"]


def test_a_problem_may_come_through_a_pipe(tmp_path: Path) -> None:
    done, transcript = ask(tmp_path, "-x", "boxed", "-u", by=run, problem=(), stdin=QUESTION + "\n")
    assert (done.returncode, done.stdout) == (0, f"{last_boxed(transcript.text)}\n")
    local = r"local \d+ tokens [\d.]+ tok/s"
    remote = r"remote \d+ tokens in \d+ spans? \([\d.]+ %\)"
    assert re.fullmatch(rf"{local} · {remote} · sent [\d.]+ k?B · [\d.]+ s\n", done.stderr)


def test_a_dash_reads_stdin_too(tmp_path: Path) -> None:
    done, transcript = ask(tmp_path, problem=["-"], stdin=QUESTION)
    assert done.stdout == answer_of(transcript) + "\n"


def test_an_answer_without_a_box_is_exit_1() -> None:
    done = call("ask", QUESTION, *GREEDY, "-x", "boxed", "--max-tokens", 3)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "sr-edge: the answer has no \\boxed{}"


def test_the_same_seed_gives_the_same_answer() -> None:
    first, again = (json.loads(call("ask", QUESTION, "--seed", 5, "--json").stdout) for _ in range(2))
    assert first["text"] == again["text"]


def test_events_are_streamed_and_recorded_alike(tmp_path: Path) -> None:
    done, transcript = ask(tmp_path, "--jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    assert [from_json(line) for line in done.stdout.splitlines()] == list(recorded(tmp_path / "events.jsonl"))
    again = call("replay", tmp_path / "events.jsonl")
    assert (again.returncode, again.stdout) == (0, answer_of(transcript) + "\n")


def test_a_replay_shows_what_was_seen(tmp_path: Path) -> None:
    done, _ = ask(tmp_path, "--spans", "marks")
    assert call("replay", tmp_path / "events.jsonl", "--spans", "marks").stderr == done.stderr


def test_spans_are_marked_by_shape(tmp_path: Path) -> None:
    done, transcript = ask(tmp_path, "--spans", "marks")
    for span in transcript.spans:
        assert f"⟦{span.span} {span.text.strip()}⟧" in done.stderr
    assert unmarked(done.stderr) == shown(transcript)
    assert "\x1b" not in done.stderr


def test_and_by_colour(tmp_path: Path) -> None:
    done, transcript = ask(tmp_path, "--spans", "color")
    assert done.stderr.count("\x1b[1;35m⟦") == len(transcript.spans)
    assert unmarked(done.stderr) == shown(transcript)
    done, _ = ask(tmp_path, "--spans", "color", env={"NO_COLOR": "1"})
    assert "⟦1 " in done.stderr
    assert "\x1b" not in done.stderr


def test_an_output_without_unicode_is_no_error(tmp_path: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done, transcript = ask(tmp_path, "--spans", "marks", "-u", by=run, env=ascii_only)
    assert done.returncode == 0
    assert done.stderr.count("[[") == len(transcript.spans)
    assert " | remote " in done.stderr


def test_the_table_has_a_line_for_each_span(tmp_path: Path) -> None:
    done, transcript = ask(tmp_path, "--spans", "table")
    heading, *lines = done.stderr.splitlines()
    assert heading.split()[:3] == ["#", "end", "tok"]
    assert [line.split()[1] for line in lines] == [span.end for span in transcript.spans]


# --- in a terminal -----------------------------------------------------------------------------------


def test_a_terminal_shows_reasoning_and_answer_once(tmp_path: Path) -> None:
    (code, seen), transcript = ask(tmp_path, by=run_in_terminal)
    assert code == 0
    assert "\x1b[1;35m⟦1 " in seen
    assert unmarked(seen) == shown(transcript)


def test_a_terminal_without_colour_shows_marks(tmp_path: Path) -> None:
    (_, seen), _ = ask(tmp_path, by=run_in_terminal, env={"NO_COLOR": "1"})
    assert "⟦1 " in seen
    assert "\x1b" not in seen


def test_a_narrow_terminal_clips_the_table(tmp_path: Path) -> None:
    (_, seen), _ = ask(tmp_path, "--spans", "table", by=run_in_terminal, columns=20)
    table = seen[seen.index("#  end") :]
    assert max(map(len, table.splitlines())) <= 20


# --- who writes --------------------------------------------------------------------------------------


def test_the_small_model_alone(tmp_path: Path) -> None:
    done, transcript = ask(tmp_path, "--policy", "local")
    assert (done.returncode, done.stderr, transcript.spans, transcript.big) == (0, "", (), None)


def test_the_large_model_alone(tmp_path: Path) -> None:
    done, transcript = ask(tmp_path, "--policy", "remote")
    assert (done.returncode, done.stderr, transcript.remote_share) == (0, "", 1.0)
    assert [span.trigger for span in transcript.spans] == ["policy"]


def test_a_model_of_ones_own_without_a_large_one_writes_alone(tmp_path: Path) -> None:
    done, transcript = ask(tmp_path, "-m", demo_paths().small)
    assert (done.returncode, transcript.spans) == (0, ())
    assert done.stderr == (
        "sr-edge: the small model writes alone, for no large one is named: name one with --big, "
        "or set one up with `sr-edge remote add NAME URL`\n"
    )


def test_a_model_without_markers_writes_alone_and_says_so(tmp_path: Path) -> None:
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf", control=CONTROL)
    done = call("ask", "Hello?", "-m", tiny, "--big", tiny, "--max-tokens", 5, "--temp", 0, "--json")
    assert (done.returncode, json.loads(done.stdout)["spans"]) == (0, [])
    assert done.stderr.splitlines()[0] == (
        "sr-edge: tiny has no markers, so it cannot ask for help: it writes alone"
    )


def test_a_full_context_is_exit_1_and_keeps_the_text(tmp_path: Path) -> None:
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf", context_length=64)
    done = call("ask", "Hello?", "-m", tiny, "--temp", 1, "--seed", 1, "--json")
    data = json.loads(done.stdout)
    assert (done.returncode, data["finish"]) == (1, "length")
    assert data["text"]
    assert "stopped at the end of the context" in done.stderr


def test_a_span_is_no_longer_than_allowed(tmp_path: Path) -> None:
    _, transcript = ask(tmp_path, "--max-span-tokens", 2)
    assert ("cap", 2) in [(span.end, span.tokens) for span in transcript.spans]
    assert max(span.tokens for span in transcript.spans) <= 2


def test_an_answer_is_no_longer_than_allowed(tmp_path: Path) -> None:
    done, transcript = ask(tmp_path, "--max-tokens", 3)
    assert (done.returncode, done.stdout, transcript.finish) == (0, "", "length")
    assert done.stderr == "sr-edge: stopped at --max-tokens 3: the reasoning had not reached an answer\n"


# --- the large model fails ---------------------------------------------------------------------------


def test_a_refused_endpoint_costs_a_line_and_no_answer(nobody: str, tmp_path: Path) -> None:
    done, transcript = ask(tmp_path, "--json", "--big", nobody, by=run)
    data = json.loads(done.stdout)
    assert (done.returncode, data["finish"], data["degraded"]) == (0, "stop", True)
    assert transcript.spans[0].end == "error"
    assert data["answer"]
    sending, line = done.stderr.splitlines()
    assert "sending the question" in sending
    assert re.fullmatch(r"sr-edge: remote .* [Tt]he small model went on alone", line)


def test_a_large_model_that_must_write_and_cannot_is_exit_3(nobody: str, tmp_path: Path) -> None:
    done, transcript = ask(tmp_path, "--policy", "remote", "--big", nobody)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 2)
    assert transcript.finish == "error"


def test_an_endpoint_writes_the_spans_and_gets_only_its_own_key(tmp_path: Path) -> None:
    keys = {"SR_EDGE_API_KEY": "mine", "OPENAI_API_KEY": "another's"}
    with RawServer([*stream(" 1 + 1 = 2"), FIN], *[[*stream(" 3"), FIN]] * 20) as server:
        done, transcript = ask(tmp_path, "--big", server.url, "--big-model", "large", env=keys)
    assert (done.returncode, transcript.big) == (0, "large")
    assert re.fullmatch(SENDING.format("large", server.where), done.stderr)
    assert transcript.spans[0].text.startswith(" 1 + 1")
    request = server.requests[0]
    assert request.headers["authorization"] == "Bearer mine"
    assert "another's" not in str(server.requests)
    assert request.body["model"] == "large"


SENDING = r"sr-edge: sending the question and the answer so far \(\d+ B at first\) to {} at {}\n"


SOCKETS_COUNTED = """
import sys
sockets = []
sys.addaudithook(lambda event, args: sockets.append(event) if event.startswith("socket.") else None)
from sr_edge.commands import main
try:
    main()
finally:
    assert not sockets, sockets
"""


def test_offline_means_no_socket_of_any_kind(nobody: str) -> None:
    options = ("--temp", "0", "--json", "--offline", "--big", nobody)
    done = subprocess.run(
        [sys.executable, "-c", SOCKETS_COUNTED, "ask", QUESTION, *options],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert {span["end"] for span in data["spans"]} == {"offline"}
    assert data["usage"]["sent_bytes"] == 0
    assert not data["degraded"]


def test_offline_a_large_model_on_the_same_machine_answers(tmp_path: Path) -> None:
    done, transcript = ask(tmp_path, "--offline")
    assert (done.returncode, done.stderr) == (0, "")
    assert transcript.remote_tokens > 0


# --- interrupted -------------------------------------------------------------------------------------


def test_after_a_kill_every_recorded_line_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with RawServer([head(), text(" 20 *"), text(" 4 = 80,"), HANG]) as server:
        done, transcript = ask(
            tmp_path,
            *("--big", server.url, "--big-model", "slow"),
            by=run_interrupted,
            when=lambda: file.exists() and "span_delta" in file.read_text(),
            number=signal.SIGKILL,
        )
    assert (done.returncode, done.stdout, transcript.finish) == (-signal.SIGKILL, "", None)
    assert file.read_bytes().endswith(b"}\n")
    shown = call("replay", file, "--spans", "marks").stderr
    assert shown.endswith(f"⟧\nsr-edge: {file}: the recording was cut here\n")


def test_ctrl_c_keeps_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with RawServer([head(), text(" 20 *"), text(" 4 = 80,"), HANG]) as server:
        done, transcript = ask(
            tmp_path,
            *("--json", "--big", server.url, "--big-model", "slow"),
            by=run_interrupted,
            when=lambda: file.exists() and "span_delta" in file.read_text(),
        )
    data = json.loads(done.stdout)
    assert (done.returncode, data["finish"]) == (130, "cancelled")
    assert re.fullmatch(SENDING.format("slow", server.where), done.stderr)
    assert data["spans"][-1]["end"] == "cancelled"
    assert (data["text"], transcript.finish) == (transcript.text, "cancelled")


# --- refused -----------------------------------------------------------------------------------------


def test_a_question_of_another_kind_gets_an_honest_line(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    done = call("ask", "What is the capital of France?", "--json", "--events", file)
    assert done.returncode == 4
    data = json.loads(done.stdout)
    assert (data["answer"], data["finish"], data["text"]) == (None, "refused", "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("sr-edge: the built-in demo models only do short word problems")
    assert "capital" in line
    started, finished = recorded(file)
    assert isinstance(started, Started)
    assert started.prompt_ids
    assert isinstance(finished, Finished)
    assert call("ask", "What is the capital of France?").stdout == ""


def test_a_prompt_that_does_not_fit_is_one_line() -> None:
    done = call("ask", "Ida has 5 coins. " * 400)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)


NO_MODELS = {
    "missing": None,
    "empty": b"",
    "not a GGUF": b"hello, I am a model\n" * 100,
    "truncated": 5000,
}


def test_a_model_of_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    file = write_tiny_gguf(tmp_path / "tiny.gguf", architecture="perceptron")
    done = call("ask", QUESTION, "-m", file)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (4, "", 1)
    assert str(file) in done.stderr
    assert "perceptron" in done.stderr


@pytest.mark.parametrize("content", NO_MODELS.values(), ids=NO_MODELS.keys())
@pytest.mark.parametrize("option", ["-m", "--big"])
def test_an_unusable_model_is_refused_by_name(
    tmp_path: Path, content: bytes | int | None, option: str
) -> None:
    file = tmp_path / "model.gguf"
    if isinstance(content, int):
        file.write_bytes(demo_paths().small.read_bytes()[:content])
    elif content is not None:
        file.write_bytes(content)
    done = call("ask", QUESTION, option, file)
    assert (done.returncode, done.stdout) == (4, "")
    (line,) = done.stderr.splitlines()
    assert str(file) in line


NOT_MEANT = {
    "an empty problem": ["  "],
    "no problem": [],
    "no tokens": ["x", "--max-tokens", "0"],
    "fewer than no tokens": ["x", "--max-span-tokens", "-3"],
    "a negative temperature": ["x", "--temp", "-1"],
    "a temperature that is no number": ["x", "--temp", "nan"],
    "two kinds of JSON": ["x", "--json", "--jsonl"],
    "a part of a stream": ["x", "--jsonl", "-x", "boxed"],
    "a name without a URL": ["x", "--big-model", "large"],
    "a URL of another kind": ["x", "--big", "ftp://example.org/model"],
    "an unknown look": ["x", "--spans", "rainbow"],
    "an unknown policy": ["x", "--policy", "maybe"],
    "the large model without one": ["x", "--policy", "remote", "-m", "small.gguf"],
}


@pytest.mark.parametrize("arguments", NOT_MEANT.values(), ids=NOT_MEANT.keys())
def test_what_cannot_be_meant_is_exit_2(arguments: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["sr-edge", "ask", *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(SystemExit) as left:
        commands.main()
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(("sr-edge: ", "Error: "))


def test_events_that_cannot_be_written_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    done = call("ask", QUESTION, "--events", tmp_path / "none" / "events.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sr-edge: --events ")


def test_events_that_fill_the_disk_do_not_cost_the_answer() -> None:
    done = call("ask", QUESTION, *GREEDY, "--events", "/dev/full", "-x", "boxed")
    assert done.returncode == 1
    assert re.fullmatch(r"\d+\n", done.stdout)
    assert done.stderr == "sr-edge: --events /dev/full: No space left on device; the file is incomplete\n"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = " ".join(COMMAND) + ' ask "$QUESTION" --jsonl | head -1'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        env=environment(QUESTION=QUESTION),
    )
    assert (done.returncode, done.stderr) == (141, "")
    assert isinstance(from_json(done.stdout), Started)


# --- the question ------------------------------------------------------------------------------------


def test_a_question_that_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        read_question("caf\udce9")  # as Python hands over bytes that are not UTF-8
    done = run("ask", stdin=b"caf\xe9")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_a_byte_order_mark_is_not_part_of_the_question() -> None:
    assert read_question("\ufeff 2 + 2? \n") == "2 + 2?"
