"""Disks that are full, files that are locked, damaged, foreign, newer or read-only, several processes."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.store.streams import scripted

from sr_edge.store import HistoryError, Recorder, Store, opening, writer
from sr_edge.store.opening import connect, journal_mode, opened
from sr_edge.store.schema import MIGRATIONS

ROOT = Path(__file__).parents[2]
EVENTS = scripted(3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as store:
        yield store


def asked(store: Store, text: str = "why?") -> str:
    return store.say(store.new_conversation("test").id, None, text).id


def answered(store: Store) -> str:
    recorder = store.begin(asked(store), policy="auto", seed=None)
    record(recorder)
    assert recorder.close() is None
    return recorder.turn


def record(recorder: Recorder) -> None:
    for event in EVENTS:
        recorder.add(event)


def in_a_child(program: str, *arguments: object) -> str:
    """What it printed."""
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- private -----------------------------------------------------------------------------------------


def test_the_file_is_for_its_owner_alone(path: Path) -> None:
    with Store.open(path) as store:
        recorder = store.begin(asked(store), policy="auto", seed=None)
        record(recorder)
        assert recorder.flush()
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert set(modes.values()) == {0o600}
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        recorder.close()


def test_the_journal_suits_the_version() -> None:
    """Before 3.51.3 two connections at once could damage a file in the faster mode."""
    assert journal_mode((3, 40, 1)) == journal_mode((3, 51, 2)) == "truncate"
    assert journal_mode((3, 51, 3)) == journal_mode((3, 52, 0)) == "wal"


def test_the_file_is_safe_against_loss_of_power(path: Path, store: Store) -> None:
    with closing(connect(path)) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone()[0] >= 2
        assert connection.execute("PRAGMA secure_delete").fetchone()[0] == 1
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    assert mode == journal_mode(sqlite3.sqlite_version_info)


# --- nothing can be written --------------------------------------------------------------------------


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The most pages that a file may have: one number, which a test may change."""
    most = [2**30]

    def connect_there(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute(f"PRAGMA max_page_count = {most[0]}")
        return connection

    monkeypatch.setattr(writer, "connect", connect_there)
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.02)
    return most


def fill(path: Path, most: list[int]) -> None:
    with closing(sqlite3.connect(path)) as connection:
        most[0] = connection.execute("PRAGMA page_count").fetchone()[0]


def test_a_full_disk_costs_no_answer_and_is_told(path: Path, small_disk: list[int]) -> None:
    with Store.open(path) as store:
        before = answered(store)
    fill(path, small_disk)
    warnings: list[str] = []
    with Store.open(path, warn=warnings.append) as store:
        conversation = store.new_conversation("test")
        turn = store.say(conversation.id, None, "x" * 100_000)
        assert turn.text == "x" * 100_000
        recorder = store.begin(turn.id, policy="auto", seed=None)
        record(recorder)
        assert not recorder.flush()
        assert "the disk is full" in (recorder.problem or "")
        assert "the disk is full" in (recorder.close() or "")
        assert len(warnings) == 1
        assert store.events(before) == EVENTS
        assert store.check() == []


def test_what_waited_for_a_full_disk_is_kept_later(path: Path, small_disk: list[int]) -> None:
    with Store.open(path) as store:
        answered(store)
        fill(path, small_disk)
    with Store.open(path) as store:
        turn = store.say(store.new_conversation("test").id, None, "x" * 100_000)
        recorder = store.begin(turn.id, policy="auto", seed=None)
        record(recorder)
        assert not recorder.flush()
        small_disk[0] = 2**30
        assert recorder.close() is None
        assert recorder.problem is None
        assert store.events(recorder.turn) == EVENTS
        assert [turn.status for turn in store.thread(recorder.turn)] == ["done", "done"]


def test_a_limit_on_the_size_of_files_is_a_full_disk(path: Path) -> None:
    said = in_a_child(
        """
import resource, sys
from pathlib import Path
from tests.store.streams import scripted
from sr_edge.store import Store
path = Path(sys.argv[1])
with Store.open(path) as store:
    turn = store.say(store.new_conversation("first").id, None, "why?")
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, resource.RLIM_INFINITY))
with Store.open(path, warn=print) as store:
    turn = store.say(store.latest().id, turn.id, "x" * 100_000)
    recorder = store.begin(turn.id, policy="auto", seed=None)
    for event in scripted(3):
        recorder.add(event)
    print("flushed", recorder.flush())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print("closed", recorder.close(), store.events(recorder.turn) == scripted(3), store.check())
""",
        path,
    )
    warning, flushed, closed = said.splitlines()
    assert "the disk is full" in warning
    assert (flushed, closed) == ("flushed False", "closed None True []")


def test_a_locked_file_delays_no_event(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.02)
    with Store.open(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        recorder = store.begin(asked(store), policy="auto", seed=None)
        other.execute("BEGIN IMMEDIATE")
        record(recorder)
        assert not recorder.flush()
        assert "another program keeps it locked" in (recorder.problem or "")
        other.execute("ROLLBACK")
        assert recorder.close() is None
        assert store.events(recorder.turn) == EVENTS


def test_a_file_that_stays_locked_is_told_at_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "BUSY_SECONDS", 0.05)
    with Store.open(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        recorder = store.begin(asked(store), policy="auto", seed=None)
        other.execute("BEGIN IMMEDIATE")
        record(recorder)
        assert "another program keeps it locked" in (recorder.close() or "")


def test_a_conversation_that_was_removed_ends_no_answer(path: Path) -> None:
    with Store.open(path) as store, Store.open(path) as other:
        recorder = store.begin(asked(store), policy="auto", seed=None)
        recorder.add(EVENTS[0])
        assert recorder.flush()
        other.remove(other.conversations()[0].id)
        record(recorder)
        assert not recorder.flush()
        assert "removed meanwhile" in (recorder.close() or "")
        with pytest.raises(HistoryError, match="removed meanwhile"):
            store.say("gone", None, "why?")
        answered(store)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that other users may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for inner in (folder, *folder.iterdir()):
        inner.chmod(0o700)
    shutil.rmtree(folder)


READS = """
import os, sys
from pathlib import Path
from sr_edge.store import Store
if os.geteuid() == 0:  # who may write everything
    os.setuid(65534)
with Store.open(Path(sys.argv[1]), warn=print) as store:
    print(store.is_read_only, store.thread(store.latest().head)[0].text, store.search("why"))
    turn = store.say(store.latest().id, None, "more")
    print(store.begin(turn.id, policy="auto", seed=None).close())
"""


@pytest.mark.parametrize("protected", ["file", "folder"])
def test_what_may_not_be_written_can_be_read(open_folder: Path, protected: str) -> None:
    path = open_folder / "state" / "history.db"
    path.parent.mkdir(mode=0o755)
    with Store.open(path) as store:
        answered(store)
    path.chmod(0o444 if protected == "file" else 0o666)
    path.parent.chmod(0o777 if protected == "file" else 0o555)
    lines = in_a_child(READS, path).splitlines()
    assert "may only be read" in lines[0]
    assert lines[1].startswith("True why? [Hit(")
    assert "may only be read" in lines[-1] or "cannot be written" in lines[-1]


# --- not the file that it should be ------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.write_bytes(
        {
            "no database": b"Dear diary, " * 1000,
            "truncated": data[: len(data) // 2 + 100],
            "empty": b"",
            "garbled": data[:100] + os.urandom(8000) + data[8100:],
        }[how]
    )


@pytest.mark.parametrize("how", ["no database", "truncated", "empty", "garbled"])
def test_a_damaged_file_is_set_aside(path: Path, how: str) -> None:
    with Store.open(path) as store:
        answered(store)
    damage(path, how)
    left = path.read_bytes()
    warnings: list[str] = []
    with Store.open(path, warn=warnings.append) as store:
        assert store.conversations() == []
        answered(store)
        assert store.check() == []
    aside = path.with_name("history.db.corrupt-1")
    assert aside.read_bytes() == left
    assert len(warnings) == 1
    assert str(aside) in warnings[0]
    damage(path, how)
    Store.open(path).close()
    assert aside.read_bytes() == left
    assert path.with_name("history.db.corrupt-2").exists()


def test_a_newer_file_is_left_alone(path: Path) -> None:
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    left = path.read_bytes()
    with pytest.raises(HistoryError, match=rf"format 99.*up to {len(MIGRATIONS)}: upgrade") as raised:
        Store.open(path)
    assert not raised.value.is_passing
    assert path.read_bytes() == left
    assert sorted(file.name for file in path.parent.iterdir() if "history.db." in file.name) == [
        ".history.db.lock"
    ]


def test_a_database_of_another_program_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs(x)")
    left = path.read_bytes()
    with pytest.raises(HistoryError, match="another program"):
        Store.open(path)
    assert path.read_bytes() == left


def test_something_that_is_no_file_is_an_error(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(HistoryError, match="not a file"):
        Store.open(path)


def test_an_older_file_is_backed_up_and_brought_up(path: Path) -> None:
    with Store.open(path) as store:
        turn = answered(store)
    warnings: list[str] = []
    newer = (*MIGRATIONS, "ALTER TABLE turn ADD COLUMN mood TEXT DEFAULT 'calm';")
    connection, _ = opened(path, warn=warnings.append, migrations=newer)
    with closing(connection):
        assert connection.execute("SELECT DISTINCT mood FROM turn").fetchall() == [("calm",)]
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 2
    copy = path.with_name("history.db.format-1-1")
    assert str(copy) in warnings[0]
    with Store.open(copy) as store:
        assert store.events(turn) == EVENTS


def test_a_step_that_fails_leaves_the_old_file(path: Path) -> None:
    with Store.open(path) as store:
        turn = answered(store)
    newer = (*MIGRATIONS, "ALTER TABLE turn ADD COLUMN mood TEXT;\nSELECT * FROM nowhere;")
    with pytest.raises(HistoryError, match="nowhere"):
        opened(path, warn=print, migrations=newer)
    with Store.open(path) as store:
        assert store.events(turn) == EVENTS


def test_without_a_file_there_is_nothing_to_read(path: Path) -> None:
    with Store.open(path, create=False) as store:
        assert store.is_read_only
        assert (store.conversations(), store.search("why"), store.latest()) == ([], [], None)
        assert store.stats().answers == 0
    assert not path.parent.exists()


# --- several at once ---------------------------------------------------------------------------------

WRITES = """
import sys
from pathlib import Path
from tests.store.streams import scripted
from sr_edge.store import Store
with Store.open(Path(sys.argv[1])) as store:
    conversation = store.new_conversation(sys.argv[2])
    head = None
    for number in range(int(sys.argv[3])):
        head = store.say(conversation.id, head, f"question {number}").id
        recorder = store.begin(head, policy="auto", seed=None)
        for event in scripted(number, spans=1):
            recorder.add(event)
        assert recorder.close() is None
        head = recorder.turn
"""


def test_four_processes_lose_nothing(path: Path) -> None:
    """They make the file at once, too."""
    turns = 50
    children = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", WRITES, path, str(n), str(turns)], cwd=ROOT)
        for n in range(4)
    ]
    assert [child.wait(300) for child in children] == [0] * 4
    with Store.open(path) as store:
        assert store.check() == []
        conversations = store.conversations()
        assert [one.turns for one in conversations] == [2 * turns] * 4
        for one in conversations:
            thread = store.thread(one.head or "")
            assert [turn.text for turn in thread[::2]] == [f"question {n}" for n in range(turns)]
            assert store.events(thread[-1].id) == scripted(turns - 1, spans=1)


def test_order_is_that_of_use_whatever_the_clock_says(path: Path) -> None:
    hours = iter([1e9, 1e9 + 86400, 1e9 - 86400, 1e9, 5.0, 6.0, 7.0, 8.0, 9.0])
    with Store.open(path, clock=lambda: next(hours)) as store:
        first, second, third = (store.new_conversation(name) for name in ("first", "second", "third"))
        assert [one.title for one in store.conversations()] == ["third", "second", "first"]
        asked = store.say(first.id, None, "old")
        later = store.say(first.id, asked.id, "new")
        assert store.latest() == store.conversation(first.id)
        assert [turn.text for turn in store.thread(later.id)] == ["old", "new"]
        assert store.leaf(asked.id) == later.id
        assert third.created < second.created


def test_who_writes_is_not_taken_for_dead(path: Path) -> None:
    with Store.open(path) as store, Store.open(path) as other:
        recorder = store.begin(asked(store), policy="auto", seed=None)
        recorder.add(EVENTS[0])
        assert recorder.flush()
        assert other.thread(recorder.turn)[-1].status == "running"
        assert other.search("nothing") == []
        assert recorder.close("stopped") is None
        assert other.thread(recorder.turn)[-1].status == "stopped"


def test_text_is_on_disk_within_a_moment(path: Path, store: Store) -> None:
    recorder = store.begin(asked(store), policy="auto", seed=None)
    record_until = 4
    for event in EVENTS[:record_until]:
        recorder.add(event)
    deadline = time.monotonic() + 30
    while len(store.events(recorder.turn)) < record_until and time.monotonic() < deadline:
        time.sleep(0.01)
    assert store.events(recorder.turn) == EVENTS[:record_until]
    recorder.close()
