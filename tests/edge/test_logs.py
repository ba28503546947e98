"""`sr-edge logs`, and what `ask` keeps for it."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from tests import command_line
from tests.command_line import TIMEOUT, environment
from tests.store.streams import scripted

from sr_edge.commands import BROKEN_PIPE
from sr_edge.passport import demo_paths
from sr_edge.store import HistoryError, Store, history_path, messages, opening

QUESTION = "Ida fills 28 bags with 4 coins each. Tom gives her 93 more. How many coins does Ida have now?"
OTHER = "Sam fills 9 bags with 3 coins each. How many coins does Sam have now?"
SUITE = b"sr_edge.suite\x08\0\0\0\x04\0\0\0\0\0\0\0"  # the key, and that a text of four bytes follows
KIND = (SUITE + b"demo", SUITE + b"any!")


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"SR_EDGE_HOME": str(tmp_path / "home")}


def call(home: Mapping[str, str], *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    return command_line.call(*arguments, env={**home, **more})


@pytest.fixture
def store(home: dict[str, str]) -> Iterator[Store]:
    with Store.open(history_path(home)) as store:
        yield store


def fill(store: Store, prompt: str = "why \x1b[31m?", number: int = 3) -> str:
    """Returns the conversation's id."""
    conversation = store.new_conversation(prompt)
    recorder = store.begin(store.say(conversation.id, None, prompt).id, policy="auto", seed=None)
    for event in scripted(number):
        recorder.add(event)
    assert recorder.close() is None
    return conversation.id


# --- ask ---------------------------------------------------------------------------------------------


def test_ask_keeps_question_and_answer(home: dict[str, str]) -> None:
    asked = call(home, "ask", QUESTION, "--seed", 5, "--json")
    assert (asked.returncode, asked.stderr) == (0, "")
    shown = json.loads(call(home, "logs", "show", "--json").stdout)
    prompt, answer = shown["turns"]
    assert prompt["text"] == QUESTION
    given = json.loads(asked.stdout)
    assert {name: answer[name] for name in given} == given
    assert (answer["status"], answer["policy"], answer["seed"]) == ("done", "auto", 5)


def test_the_kept_events_are_the_ones_of_the_answer(home: dict[str, str]) -> None:
    asked = call(home, "ask", QUESTION, "--jsonl")
    id = json.loads(call(home, "logs", "list", "--json").stdout)[0]["id"]
    assert call(home, "logs", "export", id, "--format", "jsonl").stdout == asked.stdout


def test_a_conversation_goes_on_without_old_reasoning(home: dict[str, str], tmp_path: Path) -> None:
    model = tmp_path / "of-any-kind.gguf"
    model.write_bytes(demo_paths().small.read_bytes().replace(*KIND, 1))
    pair = ("-m", model, "--big", demo_paths().big)
    first = call(home, "ask", QUESTION, "--json", *pair)
    second = call(home, "ask", OTHER, "-c", *pair)
    assert (second.returncode, second.stderr) == (0, "")
    with Store.open(history_path(home)) as store:
        (conversation,) = store.conversations()
        thread = store.thread(conversation.head or "")
    assert [turn.role for turn in thread] == ["user", "assistant"] * 2
    told = messages(thread[:3])
    assert [message.content for message in told] == [QUESTION, json.loads(first.stdout)["answer"], OTHER]
    assert thread[1].transcript
    assert thread[3].transcript
    alone = thread[1].transcript.prompt_tokens
    assert alone < thread[3].transcript.prompt_tokens < alone + thread[1].transcript.local_tokens


def test_the_built_in_pair_answers_the_second_question_as_it_would_the_first(home: dict[str, str]) -> None:
    """It was trained on single problems, and answers wrongly behind another one."""
    alone = json.loads(call(home, "ask", OTHER, "--json", "--no-log", "--temp", 0).stdout)
    call(home, "ask", QUESTION)
    second = json.loads(call(home, "ask", OTHER, "--json", "-c", "--temp", 0).stdout)
    assert second["answer"] == alone["answer"]
    assert second["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]


def test_a_conversation_is_chosen_by_the_beginning_of_its_id(home: dict[str, str]) -> None:
    call(home, "ask", QUESTION)
    call(home, "ask", OTHER)
    newest, oldest = json.loads(call(home, "logs", "list", "--json").stdout)
    assert call(home, "ask", OTHER, "--cid", oldest["id"][:8]).returncode == 0
    again = json.loads(call(home, "logs", "list", "--json").stdout)
    assert [(one["id"], one["turns"]) for one in again] == [(oldest["id"], 4), (newest["id"], 2)]


@pytest.mark.parametrize(
    ("arguments", "environ", "code"),
    [
        (["--no-log"], {}, 0),
        ([], {"SR_EDGE_LOG__ENABLED": "false"}, 0),
        (["--dry-run", "--big", "http://127.0.0.1:9/v1"], {}, 0),
    ],
)
def test_nothing_is_kept_unless_it_is_wanted(
    home: dict[str, str], arguments: list[str], environ: dict[str, str], code: int
) -> None:
    assert call(home, "ask", QUESTION, *arguments, **environ).returncode == code
    assert not history_path(home).exists()


def test_log_goes_before_the_setting(home: dict[str, str]) -> None:
    assert call(home, "ask", QUESTION, "--log", SR_EDGE_LOG__ENABLED="false").returncode == 0
    assert call(home, "logs", "stats").stdout.startswith("conversations 1\n")


def test_a_conversation_can_be_read_and_not_written(home: dict[str, str]) -> None:
    call(home, "ask", QUESTION)
    assert call(home, "ask", OTHER, "-c", "--no-log").returncode == 0
    assert json.loads(call(home, "logs", "list", "--json").stdout)[0]["turns"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-c"], "no conversation to continue is kept yet"),
        (["--cid", "zz"], "no conversation 'zz': none is kept yet"),
        (["-c", "--cid", "zz"], "-c and --cid exclude each other"),
    ],
)
def test_what_cannot_go_on_is_a_wrong_use(home: dict[str, str], arguments: list[str], message: str) -> None:
    done = call(home, "ask", QUESTION, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_refused_question_does_not_stay_in_the_way(home: dict[str, str]) -> None:
    assert call(home, "ask", "Who was Ada Lovelace?").returncode == 4
    assert call(home, "ask", QUESTION, "-c").returncode == 0


# --- a history that fails ----------------------------------------------------------------------------


def newer(path: Path) -> None:
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def test_an_answer_does_without_a_newer_history(home: dict[str, str]) -> None:
    newer(history_path(home))
    done = call(home, "ask", QUESTION)
    assert (done.returncode, done.stdout.startswith("The answer")) == (0, True)
    (line,) = done.stderr.splitlines()
    assert "format 99" in line
    assert "upgrade sr-edge" in line


def test_what_cannot_be_read_cannot_go_on(home: dict[str, str]) -> None:
    newer(history_path(home))
    done = call(home, "ask", QUESTION, "-c")
    assert (done.returncode, done.stdout) == (HistoryError.exit_code, "")


def test_a_damaged_history_is_set_aside_and_told(home: dict[str, str]) -> None:
    history_path(home).parent.mkdir(parents=True)
    history_path(home).write_bytes(b"not a database" * 100)
    done = call(home, "ask", QUESTION)
    assert done.returncode == 0
    assert "corrupt-1" in done.stderr
    assert call(home, "logs", "stats").stdout.startswith("conversations 1\n")


def test_a_history_that_stays_locked_costs_a_warning_and_the_exit_code(
    home: dict[str, str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        done = call(home, "ask", QUESTION)
    assert (done.returncode, done.stdout.startswith("The answer")) == (HistoryError.exit_code, True)
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all("another program keeps it locked" in line for line in lines)


def test_what_a_reader_leaves_early_is_kept_whole(home: dict[str, str]) -> None:
    ask = [*command_line.COMMAND, "ask", QUESTION]
    with subprocess.Popen(ask, stdout=subprocess.PIPE, env=environment(**home)) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(TIMEOUT) == BROKEN_PIPE
    with Store.open(history_path(home)) as store:
        latest = store.latest()
        assert latest is not None
        assert store.thread(latest.head or "")[-1].status == "done"


FULL = """
import resource, sys
from sr_edge.commands import main
from sr_edge.store import Store, history_path
with Store.open(history_path()) as store:
    store.say(store.new_conversation("first").id, None, "why?")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # bytes
sys.argv = ["sr-edge", "ask", sys.argv[1]]
main()
"""


def test_a_full_disk_costs_a_warning_and_the_exit_code(home: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, QUESTION],
        capture_output=True,
        text=True,
        env=environment(**home),
        timeout=TIMEOUT,
    )
    assert "The answer is" in done.stdout
    assert done.returncode == HistoryError.exit_code
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all("the disk is full" in line for line in lines)
    with Store.open(history_path({**os.environ, **home})) as store:
        assert store.check() == []


# --- signals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_was_written_is_kept_when_a_signal_ends_it(
    home: dict[str, str], number: signal.Signals, tmp_path: Path
) -> None:
    recorded = tmp_path / "events"
    long = ["--max-tokens", "100000", "--policy", "local", "--temp", "5", "--events", recorded]
    done = command_line.run_interrupted(
        "ask",
        QUESTION,
        *long,
        when=lambda: recorded.exists() and recorded.read_bytes().count(b"\n") > 3,
        number=number,
        env=home,
    )
    with Store.open(history_path(home)) as store:
        latest = store.latest()
        assert latest is not None
        last = store.thread(latest.head or "")[-1]
        lines = recorded.read_text().splitlines()
        assert len(store.events(last.id)) == len(lines)
    if last.status == "stopped":  # else it was faster than the signal
        assert done.returncode == 128 + number
    assert last.status in ("stopped", "done", "length")


# --- logs --------------------------------------------------------------------------------------------


def test_an_empty_history_is_no_error_and_makes_no_file(home: dict[str, str]) -> None:
    listed = call(home, "logs", "list")
    assert (listed.returncode, listed.stdout) == (0, "")
    assert "no conversation is kept yet" in listed.stderr
    assert json.loads(call(home, "logs", "list", "--json").stdout) == []
    assert call(home, "logs", "show").returncode == 2
    assert call(home, "logs", "search", "x").returncode == 0
    assert not history_path(home).exists()


def test_conversations_are_listed_the_newest_first(home: dict[str, str], store: Store) -> None:
    ids = [fill(store, f"question {n}", n) for n in range(3)]
    lines = call(home, "logs").stdout.splitlines()
    assert lines[0].split() == ["id", "used", "turns", "title", "model"]
    assert [line.split()[0] for line in lines[1:]] == ids[::-1]
    assert len(call(home, "logs", "list", "-n", 1, "--json").stdout) > 10
    titled = json.loads(call(home, "logs", "list", "--title", "QUESTION 1", "--json").stdout)
    assert [one["id"] for one in titled] == [ids[1]]


def test_a_conversation_is_shown_with_who_wrote_what(home: dict[str, str], store: Store) -> None:
    id = fill(store)
    done = call(home, "logs", "show", id[:8])
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "\n> why ?\n" in done.stdout
    assert "⟦1" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("-- local ")
    plain = call(home, "logs", "show", id, "--spans", "none").stdout
    assert "⟦" not in plain
    assert "done" in plain
    assert "handback" in call(home, "logs", "show", id, "--spans", "table").stdout


def test_hits_are_shown_safely(home: dict[str, str], store: Store) -> None:
    fill(store, "find \x1b]0;title\x07the needle here")
    done = call(home, "logs", "search", "need")
    assert "find the needle here" in done.stdout
    assert not {"\x1b", "\x02", "\x03"} & set(done.stdout)
    (hit,) = json.loads(call(home, "logs", "search", "need", "--json").stdout)
    assert (hit["role"], "\x02" in hit["snippet"]) == ("user", False)
    assert "nothing found" in call(home, "logs", "search", "nothing").stderr
    assert call(home, "logs", "search", "--reasoning", "so").stdout


@pytest.mark.parametrize("form", ["md", "json", "jsonl", "html"])
def test_a_conversation_is_exported(home: dict[str, str], store: Store, tmp_path: Path, form: str) -> None:
    id = fill(store)
    done = call(home, "logs", "export", id, "--format", form)
    assert (done.returncode, done.stderr) == (0, "")
    file = tmp_path / "out"
    told = call(home, "logs", "export", id, "--format", form, "-o", file)
    assert told.stdout == f"{file}\n"
    assert file.read_text() == done.stdout
    assert file.stat().st_mode & 0o777 == 0o600


def test_one_answer_of_several_is_exported(home: dict[str, str], store: Store) -> None:
    id = fill(store)
    head = store.conversation(id).head
    recorder = store.begin(store.say(id, head, "more").id, policy="auto", seed=None)
    for event in scripted(4):
        recorder.add(event)
    recorder.close()
    first, last = (
        call(home, "logs", "export", id, "--format", "jsonl", *which).stdout
        for which in (["--answer", 1], [])
    )
    assert '"model 3"' in first
    assert '"model 4"' in last
    assert call(home, "logs", "export", id, "--format", "jsonl", "--answer", 3).returncode == 2
    assert call(home, "logs", "export", id, "--answer", 1).returncode == 2


def test_a_conversation_gets_another_title(home: dict[str, str], store: Store) -> None:
    id = fill(store)
    assert call(home, "logs", "rename", id, "New \x1b[1mtitle").returncode == 0
    assert "New title" in call(home, "logs", "list").stdout
    assert call(home, "logs", "rename", id, " ").returncode == 2


def test_forgetting_needs_a_yes(home: dict[str, str], store: Store) -> None:
    id = fill(store)
    refused = call(home, "logs", "rm", id)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert call(home, "logs", "rm", id, "nonsense", "--yes").returncode == 2
    assert store.conversation(id)
    assert call(home, "logs", "rm", id, "--yes").returncode == 0
    assert store.conversations() == []


def test_totals_are_shown(home: dict[str, str], store: Store) -> None:
    fill(store)
    done = call(home, "logs", "stats")
    assert "spans         6" in done.stdout
    assert done.stdout.splitlines()[-1].split()[:2] == ["lab", "6"]
    assert json.loads(call(home, "logs", "stats", "--json").stdout)["remotes"][0]["remote"] == "lab"


def test_a_backup_and_the_way_to_the_file(home: dict[str, str], store: Store, tmp_path: Path) -> None:
    id = fill(store)
    assert call(home, "logs", "path").stdout == f"{history_path(home)}\n"
    copy = tmp_path / "copy.db"
    assert call(home, "logs", "backup", copy).returncode == 0
    assert call(home, "logs", "backup", copy).returncode == 2
    with Store.open(copy) as copied:
        assert copied.conversation(id).turns == 2


def test_an_answer_that_was_cut_is_marked(home: dict[str, str], store: Store) -> None:
    recorder = store.begin(store.say(store.new_conversation("x").id, None, "x").id, policy="auto", seed=None)
    for event in scripted(3)[:10]:
        recorder.add(event)
    recorder.close()
    assert "cut in the middle" in call(home, "logs", "show").stdout
    assert json.loads(call(home, "logs", "show", "--json").stdout)["turns"][1]["status"] == "cut"


def test_logs_load_neither_models_nor_clients_nor_screens(home: dict[str, str], store: Store) -> None:
    fill(store)
    program = (
        "import sys; from sr_edge.commands import main\n"
        "try: main()\n"
        "finally: print(*{'llama_cpp', 'numpy', 'httpx', 'textual'} & {*sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "logs", "list"],
        capture_output=True,
        text=True,
        env=environment(**home),
        timeout=TIMEOUT,
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")
