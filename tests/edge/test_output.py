"""The two streams: whatever becomes of stderr, the answer gets to stdout."""

import io
import os
import subprocess
import sys

import pytest
from tests.command_line import COMMAND, call, environment

from sr_edge.events import LocalToken, Started
from sr_edge.report import Look, StreamView
from sr_edge.suites.demo import HARD_KINDS, problems

QUESTION = next(
    p.question for p in problems(seed=11, n=100) if any(step.kind in HARD_KINDS for step in p.steps)
)
ASK = ("ask", QUESTION, "--temp", "0")
FULL = "/dev/full"


def ask(options: str, stderr: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {options} {stderr}', "sh", *COMMAND, *ASK],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(**env),
        timeout=60,
    )


@pytest.fixture(scope="module")
def answer() -> str:
    done = call(*ASK)
    assert done.returncode == 0
    return done.stdout


@pytest.mark.skipif(not os.path.exists(FULL), reason="a device of Linux")
@pytest.mark.parametrize("options", ["", "--spans marks", "--spans color -u", "-u"])
def test_a_full_stderr_does_not_cost_the_answer(options: str, answer: str) -> None:
    done = ask(options, f"2>{FULL}")
    assert done.stdout == answer
    assert done.returncode == (1 if options else 0)  # 0: there was nothing to write


@pytest.mark.skipif(not os.path.exists(FULL), reason="a device of Linux")
def test_a_note_that_nobody_gets_does_not_cost_the_answer() -> None:
    done = ask("--big http://127.0.0.1:9/v1", f"2>{FULL}")
    assert "\\boxed" in done.stdout
    assert done.returncode == 1


def test_a_closed_stderr_does_not_cost_the_answer(answer: str) -> None:
    done = ask("--spans marks -u", "2>&-")
    assert (done.returncode, done.stdout) == (0, answer)


def test_a_reader_of_stderr_that_leaves_does_not_cost_the_answer(answer: str) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [*COMMAND, *ASK, "--spans", "marks", "-u"], stdout=subprocess.PIPE, stderr=theirs, text=True,
        env=environment(), timeout=60,
    )  # fmt: skip
    os.close(theirs)
    assert (done.returncode, done.stdout) == (141, answer)


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        self.write("")


def test_the_stream_goes_on_with_the_answer_where_stderr_fails() -> None:
    answer = io.StringIO()
    view = StreamView(Look(streams=True), Full(), answer)
    view.add(Started((), model="m", big=None, opening="<think>\n"))
    for token in ("so", "</think>", "4"):
        view.add(LocalToken(0, token, None))
    view.close()
    assert "4" in answer.getvalue()
    assert view.failure is not None


def test_an_answer_that_cannot_be_written_is_no_secret() -> None:
    view = StreamView(Look(streams=True), sys.stderr, Full())
    with pytest.raises(OSError, match="No space left"):
        view.add(Started((), model="m", big=None, opening=""))
