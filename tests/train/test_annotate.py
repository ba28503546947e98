"""The whole of annotation, against a judge on bare sockets; killed and gone on with."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from tests.raw_server import HANG, RST, RawServer, page

from sr_edge.errors import RemoteError, UsageError
from sr_edge.files import BusyError, locked
from sr_edge.markers import OPEN, strip_markers
from sr_edge.remote.egress import OfflineError
from sr_train.annotate import asking, pipeline, snippets
from sr_train.annotate.asking import Question, ask_all
from sr_train.annotate.journal import Journal, key_of
from sr_train.annotate.measured import Trial
from sr_train.annotate.pipeline import DATASET, JOURNAL, annotate
from sr_train.problems import Problem
from sr_train.recipe import load_recipe

COLUMNS = ["id", "question", "answer", "text"]


def trace(number):
    lines = [f"Thought {number}.{n}: this line says something of its own.\n" for n in range(6)]
    return "".join(lines) + f"</think>\n\nThe answer is \\boxed{{{number}}}."


PROBLEMS = [Problem(f"p{n}", f"Question {n}?", str(n), trace(n)) for n in range(12)]


def recipe(server=None, **settings):
    settings = {
        "labeller": '"judge"', "judge_model": '"judge"', "concurrency": 3, "target_share": 0.5,
        **({} if server is None else {"judge": f'"{server.url}"'}), **settings,
    }  # fmt: skip
    return load_recipe("demo", [f"annotate.{name}={value}" for name, value in settings.items()])


@pytest.fixture
def home(tmp_path):
    return {"SR_EDGE_HOME": str(tmp_path / "home")}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(asking, "MAX_PAUSE", 0.01)


def whole(text, finish="stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return page(
        {"choices": [choice], "model": "judge-7", "usage": {"prompt_tokens": 9, "completion_tokens": 3}}
    )


def number_of(request):
    """Of the problem that the judge is asked about."""
    return int(re.search(r"Question (\d+)\?", request.body["messages"][-1]["content"])[1])


def judging(request):
    """Step n % 5 of problem n is the hard one, and the first is of middling difficulty."""
    hard = number_of(request) % 5 + 1
    steps = [{"i": hard, "difficulty": 3, "kind": "insight"}, {"i": 0, "difficulty": 1, "kind": "other"}]
    return whole(json.dumps({"steps": steps}))


def rows_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def num_replies(folder):
    path = folder / JOURNAL
    return path.read_bytes().count(b'"seconds"') if path.exists() else 0


def test_traces_come_back_with_what_the_judge_named_marked(tmp_path, home):
    told = []
    with RawServer(then=judging) as server:
        path = annotate(recipe(server), PROBLEMS, tmp_path / "a", report=told.append, environ=home)
    rows = rows_of(path)
    assert [list(row) for row in rows] == [COLUMNS] * len(PROBLEMS)
    for n, (row, problem) in enumerate(zip(rows, PROBLEMS, strict=True)):
        assert (row["id"], row["question"], row["answer"]) == (problem.id, problem.question, problem.answer)
        assert strip_markers(row["text"]) == problem.trace
        assert f"{OPEN}Thought {n}.{n % 5 + 1}: " in row["text"]
        assert row["text"].count(OPEN) == 1
    figures = json.loads((path.parent / "statistics.json").read_text())
    assert (figures["rows"], figures["spans"], figures["kinds"]) == (12, 12, {"insight": 12})
    card = (path.parent / "README.md").read_text("utf-8")
    assert "judge-7" in card
    assert str(tmp_path) not in card
    assert len(list(path.parent.glob("*.png"))) == 4
    assert told[-1].startswith("12 traces, 12 spans")
    assert sorted(map(number_of, server.requests)) == list(range(12))


def test_a_second_run_asks_nothing_and_writes_the_same(tmp_path, home):
    with RawServer(then=judging) as server:
        first = annotate(recipe(server), PROBLEMS, tmp_path / "a", environ=home).read_bytes()
        settings = recipe(server)
    path = annotate(settings, PROBLEMS, tmp_path / "a", offline=True, environ=home)
    assert path.read_bytes() == first


def test_another_question_is_asked_anew_and_only_that(tmp_path, home):
    with RawServer(then=judging) as server:
        annotate(recipe(server), PROBLEMS, tmp_path / "a", environ=home)
        changed = [*PROBLEMS[:-1], Problem("p11", "Question 11?", "11", trace(11) + " Yes.")]
        annotate(recipe(server), changed, tmp_path / "a", environ=home)
        assert list(map(number_of, server.requests[12:])) == [11]
        annotate(recipe(server), changed, tmp_path / "a", resume=False, environ=home)
    assert len(server.requests) == 25


def test_a_busy_or_failing_server_is_asked_again(tmp_path, home):
    faults = [
        page({"error": {"message": "slow down"}}, 429, Retry_After="0"),
        page({"error": {"message": "ill"}}, 503),
        [RST],
        page("<html>gateway</html>", 502, "text/html"),
    ]
    with RawServer(*faults, then=judging) as server:
        path = annotate(recipe(server), PROBLEMS, tmp_path / "a", environ=home)
    assert len(rows_of(path)) == 12
    assert len(server.requests) == 16


def test_a_server_that_stays_ill_ends_the_run_and_nothing_is_lost(tmp_path, home, monkeypatch):
    monkeypatch.setattr(asking, "ATTEMPTS", 2)
    healthy = [judging] * 4
    with RawServer(*healthy, then=page({"error": {"message": "ill"}}, 503)) as server:
        with pytest.raises(RemoteError, match="8 of 12 questions have no answer"):
            annotate(recipe(server), PROBLEMS, tmp_path / "a", environ=home)
        known = set(map(number_of, server.requests[:4]))
    assert not (tmp_path / "a" / DATASET).exists()
    with RawServer(then=judging) as server:
        path = annotate(recipe(server), PROBLEMS, tmp_path / "a", environ=home)
    assert len(rows_of(path)) == 12
    assert known.isdisjoint(map(number_of, server.requests))


def test_a_key_that_is_not_accepted_ends_the_run_at_once(tmp_path, home):
    refusal = page({"error": {"message": "no"}}, 401)
    with RawServer(then=refusal) as server, pytest.raises(RemoteError, match="API key"):
        annotate(recipe(server, concurrency=1), PROBLEMS, tmp_path / "a", environ=home)
    assert len(server.requests) == 1


def test_what_was_refused_or_cannot_be_read_is_left_out_and_not_asked_again(tmp_path, home):
    def script(request):
        if number_of(request) == 3:
            return page({"error": {"message": "the content filter says no"}}, 413)
        return whole("I would rather not.") if number_of(request) == 5 else judging(request)

    told = []
    with RawServer(then=script) as server:
        settings = recipe(server)
        path = annotate(settings, PROBLEMS, tmp_path / "a", report=told.append, environ=home)
    assert [row["id"] for row in rows_of(path)] == [p.id for n, p in enumerate(PROBLEMS) if n not in (3, 5)]
    assert "2 left out" in told[-1]
    figures = json.loads((path.parent / "statistics.json").read_text())
    assert (figures["refused_by_the_judge"], figures["unreadable_replies"]) == (1, 1)
    annotate(settings, PROBLEMS, tmp_path / "a", offline=True, environ=home)


def test_offline_nothing_is_asked(tmp_path, home):
    with RawServer() as server, pytest.raises(OfflineError):
        annotate(recipe(server), PROBLEMS, tmp_path / "a", offline=True, environ=home)
    assert server.connections == 0


def test_what_cannot_be_meant_is_named(tmp_path, home):
    with pytest.raises(UsageError, match="names no judge"):
        annotate(recipe(), PROBLEMS, tmp_path / "a", environ=home)
    with pytest.raises(UsageError, match="worked solution"):
        annotate(recipe(), [Problem("p", "q", "1")], tmp_path / "a", environ=home)


def test_two_runs_do_not_share_a_journal(tmp_path, home):
    with RawServer() as server, locked(tmp_path / "a" / JOURNAL), pytest.raises(BusyError):
        annotate(recipe(server), PROBLEMS, tmp_path / "a", environ=home)


# --- killed ----------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from tests.train.test_annotate import PROBLEMS, recipe
from types import SimpleNamespace
from sr_train.annotate.pipeline import annotate
url, out, home = sys.argv[1:]
annotate(recipe(SimpleNamespace(url=url)), PROBLEMS, Path(out), environ={"SR_EDGE_HOME": home})
"""


def test_killed_in_the_middle_it_goes_on_where_it_was(tmp_path, home):
    """Twice, with requests on their way; what had come is not asked again, and no row is missing."""
    folder, may_answer = tmp_path / "a", [4]
    answered, lock = [], threading.Lock()

    def script(request):
        with lock:
            if len(answered) >= may_answer[0]:
                return [HANG]
            answered.append(number_of(request))
        return judging(request)

    with RawServer(then=script) as server:
        for num_answers in (4, 9):
            may_answer[0] = num_answers
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, server.url, str(folder), home["SR_EDGE_HOME"]]
            )
            until = time.monotonic() + 60
            while time.monotonic() < until and child.poll() is None:
                if num_replies(folder) == num_answers:
                    break
                time.sleep(0.02)
            child.send_signal(signal.SIGKILL)
            assert child.wait(timeout=30) == -signal.SIGKILL
            with open(folder / JOURNAL, "ab") as file:
                file.write(b'{"key": "cut in the mid')  # as a kill within a write leaves it
        assert len(answered) == 9
        may_answer[0] = 100
        path = annotate(recipe(server), PROBLEMS, folder, environ=home)
    assert sorted(answered) == list(range(12))  # each once
    assert [row["id"] for row in rows_of(path)] == [problem.id for problem in PROBLEMS]
    assert all(row["text"].count(OPEN) == 1 for row in rows_of(path))


def test_a_journal_forgets_only_what_was_cut(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.add("a", {"reply": "\ud800 line\nend \u2028"})
        journal.add("b", {"reply": "2"})
    data = path.read_bytes()
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        with Journal(path) as journal:
            kept = (data[:cut] + b"\n").count(b"}\n")
            assert [key in journal for key in "ab"] == [kept >= 1, kept >= 2]
            journal.add("c", {"reply": "3"})
        with Journal(path) as journal:
            assert [key in journal for key in "abc"] == [kept >= 1, kept >= 2, True]


def test_keys_tell_questions_apart():
    keys = [key_of("a", "b"), key_of("ab", ""), key_of("a", "b", ""), key_of("a,b"), key_of('a", "b')]
    assert len(set(keys)) == len(keys)


# --- asking ----------------------------------------------------------------------------------------------


def test_requests_keep_to_the_rate(tmp_path, monkeypatch):
    now, waits = [100.0], []
    stopped = SimpleNamespace(wait=waits.append)
    monkeypatch.setattr(asking, "time", SimpleNamespace(monotonic=lambda: now[0]))
    pace = asking._Pace(60.0, stopped)
    for _ in range(3):
        pace.wait()
    now[0] += 10.0
    pace.wait()
    pace.hold(5.0)
    pace.wait()
    assert waits == [0.0, 1.0, 2.0, 0.0, 5.0]


def test_a_fault_of_our_own_is_not_swallowed(tmp_path):
    class Broken:
        closed = False

        def complete(self, *args, **kwargs):
            raise ZeroDivisionError

        def close(self):
            self.closed = True

    questions = [Question(str(n), "p", tuple) for n in range(5)]
    chat = Broken()
    with Journal(tmp_path / "j") as journal, pytest.raises(ZeroDivisionError):
        ask_all(questions, chat, journal, part=recipe().annotate, schema=None, done=lambda done, total: None)
    assert chat.closed


# --- quotes ----------------------------------------------------------------------------------------------


def test_the_papers_way(tmp_path, home):
    def script(request):
        quoted = request.body["messages"][-1]["content"].splitlines()[2]
        assert "response_format" not in request.body
        blocks = [quoted.upper(), "something that stands nowhere in this trace at all"]
        return whole("\n".join(f"{snippets.START}\n{each}\n{snippets.END}" for each in blocks))

    with RawServer(then=script) as server:
        path = annotate(recipe(server, labeller='"snippets"'), PROBLEMS, tmp_path / "a", environ=home)
    for n, row in enumerate(rows_of(path)):
        assert f"\n{OPEN}Thought {n}.2: " in row["text"]
        assert strip_markers(row["text"]) == PROBLEMS[n].trace
    figures = json.loads((path.parent / "statistics.json").read_text())
    assert (figures["normalised_snippets"], figures["rejected_snippets"]) == (12, 12)


# --- measurement -----------------------------------------------------------------------------------------


class Bench:
    """Stands in for the models: every problem's lines 2 and 4 surprise, and help is worth something at 4."""

    def __init__(self):
        self.num_read = 0
        self.trials: list[Trial] = []

    @contextmanager
    def __call__(self, settings, out):
        yield SimpleNamespace(surprisals=self.surprisals, continue_=self.continue_)

    def surprisals(self, question, text):
        self.num_read += 1
        lines = [found.start() for found in re.finditer("Thought", text)]
        return [(at, 5.0 if n in (2, 4) else 0.5) for n, at in enumerate(lines)]

    def continue_(self, trials):
        self.trials += trials
        box = "\\boxed{%s}"
        return [
            box % (trial.problem.answer if trial.is_helped and ".4:" in trial.step else "0")
            for trial in trials
        ]


MEASURED = {"labeller": '"measured"', "surprisal_quantile": 0.7, "continuations": 2}


def test_measured_steps_are_marked_where_help_helps(tmp_path, home):
    bench = Bench()
    path = annotate(recipe(**MEASURED), PROBLEMS[1:], tmp_path / "a", measure=bench, environ=home)
    for n, row in enumerate(rows_of(path), start=1):
        assert re.findall(f"{OPEN}Thought (.*?):", row["text"]) == [f"{n}.4"]
    assert (bench.num_read, len(bench.trials)) == (11, 11 * 2 * 2 * 2)
    assert len({trial.key for trial in bench.trials}) == len(bench.trials)
    again = Bench()
    annotate(recipe(**MEASURED), PROBLEMS[1:], tmp_path / "a", measure=again, environ=home)
    assert (again.num_read, again.trials) == (0, [])


def test_without_continuations_surprisal_decides(tmp_path, home):
    bench = Bench()
    settings = recipe(**{**MEASURED, "continuations": 0})
    path = annotate(settings, PROBLEMS[:2], tmp_path / "a", measure=bench, environ=home)
    assert [re.findall(f"{OPEN}Thought (.*?):", row["text"]) for row in rows_of(path)] == [
        [f"{n}.2", f"{n}.4"] for n in range(2)
    ]
    assert not bench.trials


def test_both_marks_what_the_judge_names_and_the_measurement_confirms(tmp_path, home):
    bench = Bench()
    with RawServer(then=judging) as server:
        settings = recipe(server, **{**MEASURED, "labeller": '"both"'})
        path = annotate(settings, PROBLEMS[1:], tmp_path / "a", measure=bench, environ=home)
    marked = {row["id"]: re.findall(f"{OPEN}Thought (.*?):", row["text"]) for row in rows_of(path)}
    assert marked == {f"p{n}": [f"{n}.4"] if n % 5 == 3 else [] for n in range(1, 12)}
    assert {trial.step.split(":")[0] for trial in bench.trials} == {
        f"Thought {n}.{n % 5 + 1}" for n in range(1, 12)
    }


def test_a_large_model_that_fails_is_no_measurement(tmp_path, home):
    class Failing(Bench):
        def continue_(self, trials):
            super().continue_(trials)
            return [None if trial.is_helped else "" for trial in trials]

    with pytest.raises(RemoteError, match="could not be tried out"):
        annotate(recipe(**MEASURED), PROBLEMS, tmp_path / "a", measure=Failing(), environ=home)
    bench = Bench()
    annotate(recipe(**MEASURED), PROBLEMS, tmp_path / "a", measure=bench, environ=home)
    assert bench.num_read == 0  # that was measured
    assert len(bench.trials) == 12 * 2 * 2 * 2


def test_a_batch_of_trials_is_in_the_journal_before_the_next(tmp_path, home, monkeypatch):
    monkeypatch.setattr(pipeline, "_TRIALS", 8)

    class Dying(Bench):
        def continue_(self, trials):
            if len(self.trials) >= 24:
                raise KeyboardInterrupt
            return super().continue_(trials)

    dying, rest = Dying(), Bench()
    with pytest.raises(KeyboardInterrupt):
        annotate(recipe(**MEASURED), PROBLEMS, tmp_path / "a", measure=dying, environ=home)
    annotate(recipe(**MEASURED), PROBLEMS, tmp_path / "a", measure=rest, environ=home)
    tried = [trial.key for trial in dying.trials + rest.trials]
    assert len(tried) == len(set(tried)) == 12 * 2 * 2 * 2
