"""A download that is cut, stalled, lied to or killed: the file comes byte for byte, or there is none."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.command_line import environment
from tests.hub.fake_hub import (
    COMMIT,
    FIN,
    RST,
    Ask,
    FakeHub,
    Fault,
    Repo,
    answered,
    cut,
    flipped,
    range_ignored,
    slow,
    stall,
    status,
    whole,
)

from sr_edge.errors import EdgeError, ModelError, UsageError
from sr_edge.hub.download import download
from sr_edge.hub.failing import MAX_TRIES, HubError
from sr_edge.hub.reference import parse_reference
from sr_edge.hub.repository import HubFile, look_up
from sr_edge.hub.unfinished import STALE_SECONDS, sweep, unfinished
from sr_edge.remote.egress import Door
from sr_edge.remote.hub_client import HubClient

SIZE = 300_000
DATA = random.Random(1).randbytes(SIZE)
SMALL = b'{"model_type": "qwen2"}'


class Downloads:
    """One folder, and the hub that things come from."""

    def __init__(self, folder: Path, *faults: Fault, **repo: object) -> None:
        self.shelf = folder
        self.folder = folder / ".downloads"
        self.target = folder / "x.gguf"
        self.repo = Repo({"x.gguf": DATA, "config.json": SMALL}, **repo)
        self.hub = FakeHub(*faults, a__b=self.repo)
        self.notes: list[str] = []
        self.waits: list[float] = []
        self.seen: list[tuple[int, int]] = []
        self.report: Callable[[int, int], None] = lambda done, whole: self.seen.append((done, whole))

    @contextmanager
    def client(self) -> Iterator[HubClient]:
        with HubClient(Door(), self.hub.url, stall=0.5, sleep=self.waits.append) as client:
            yield client

    def file(self, name: str = "x.gguf") -> HubFile:
        with self.client() as client:
            file = look_up(client, parse_reference("a/b"), self.notes.append).file(name)
        assert file is not None
        return file

    def run(self, name: str = "x.gguf") -> None:
        file = self.file(name)
        with self.client() as client:
            download(client, file, self.target, self.folder, report=self.report, note=self.notes.append)

    def parts(self) -> dict[str, int]:
        if not self.folder.exists():
            return {}
        return {path.suffix: path.stat().st_size for path in self.folder.iterdir() if path.name[0] != "."}

    def starts(self) -> list[int]:
        """Where each request for the content began."""
        ranges = [request.headers.get("range") for request in self.hub.cdn.requests]
        return [int(each.removeprefix("bytes=").removesuffix("-")) if each else 0 for each in ranges]

    def __enter__(self) -> Downloads:
        self.hub.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self.hub.__exit__(*args)


def test_a_file_comes_and_nothing_else_is_left(tmp_path: Path) -> None:
    with Downloads(tmp_path) as down:
        down.run()
        assert down.target.read_bytes() == DATA
        assert down.parts() == {}
        assert down.seen[-1] == (SIZE, SIZE)
        assert [done for done, _ in down.seen] == sorted(done for done, _ in down.seen)
        down.run()
        assert len(down.hub.contents) == 1  # it is there already


def test_a_small_file_is_compared_with_git_s_hash(tmp_path: Path) -> None:
    with Downloads(tmp_path) as down:
        assert down.file("config.json").sha256 is None
        down.run("config.json")
        assert down.target.read_bytes() == SMALL
        down.target.unlink()
        down.hub.faults = [flipped(3)]
        with pytest.raises(ModelError, match="its git hash is"):
            down.run("config.json")
        assert not down.target.exists()


# --- cuts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [FIN, RST])
def test_a_cut_costs_what_was_not_there_yet(end: object, tmp_path: Path) -> None:
    with Downloads(tmp_path, cut(100_000, end), cut(50_000, end)) as down:
        down.run()
        assert down.target.read_bytes() == DATA
        assert down.starts()[0] == 0
        if end is FIN:  # a reset may lose what was on its way
            assert down.starts() == [0, 100_000, 150_000]
            assert down.hub.cdn.requests[1].headers["if-range"] == down.hub.etag(DATA)
        assert len(down.notes) == 2
        assert "broke off; again in" in down.notes[0] or "reset" in down.notes[0]


def test_a_stall_is_given_up_and_gone_on_with(tmp_path: Path) -> None:
    with Downloads(tmp_path, stall(100_000)) as down:
        down.run()
        assert down.target.read_bytes() == DATA
        assert down.starts() == [0, 100_000]


def test_what_fails_again_and_again_is_given_up_and_kept(tmp_path: Path) -> None:
    with Downloads(tmp_path, *[cut(1000)] * MAX_TRIES) as down:
        with pytest.raises(
            HubError, match=r"6\.0 kB of the 300\.0 kB of x.gguf have come and are kept"
        ) as failed:
            down.run()
        assert failed.value.exit_code == 3
        assert down.parts()[".part"] == 1000 * MAX_TRIES
        down.run()
        assert down.target.read_bytes() == DATA
        assert down.starts()[-1] == 1000 * MAX_TRIES


def test_a_hub_that_asks_to_wait_is_waited_for(tmp_path: Path) -> None:
    with Downloads(tmp_path, status(429, Retry_After=7), status(503), status(500)) as down:
        down.run()
        assert down.target.read_bytes() == DATA
        assert 6.9 < sum(down.waits) < 12
        assert "asks us to wait (HTTP 429); again in 7 s" in down.notes[0]


def test_a_hub_that_goes_away_is_tried_again(tmp_path: Path) -> None:
    with Downloads(tmp_path) as down:
        file = down.file()
        down.hub.hub.__exit__(None)
        with down.client() as client, pytest.raises(HubError, match="connection refused"):
            download(client, file, down.target, down.folder, report=down.report, note=down.notes.append)
        assert len(down.notes) == MAX_TRIES - 1


# --- going on at another time ------------------------------------------------------------------------


def interrupted(down: Downloads, at: int) -> None:
    def report(done: int, whole: int) -> None:
        if done >= at:
            raise KeyboardInterrupt

    before, down.report = down.report, report
    with pytest.raises(KeyboardInterrupt):
        down.run()
    down.report = before


@pytest.mark.parametrize("at", [1, 100_000, SIZE])
def test_what_was_stopped_goes_on(at: int, tmp_path: Path) -> None:
    with Downloads(tmp_path) as down:
        interrupted(down, at)
        assert not down.target.exists()
        have = down.parts()[".part"]
        assert 0 < have <= SIZE
        (cut,) = unfinished(down.shelf)
        assert (cut.part.repo, cut.part.path, cut.size) == ("a/b", "x.gguf", have)
        down.run()
        assert down.target.read_bytes() == DATA
        assert down.starts() == ([0, have] if have < SIZE else [0])
        assert down.parts() == {}


def test_a_part_that_was_damaged_here_is_not_gone_on_with(tmp_path: Path) -> None:
    with Downloads(tmp_path) as down:
        interrupted(down, 100_000)
        (part,) = down.folder.glob("*.part")
        data = bytearray(part.read_bytes())
        data[5] ^= 1
        part.write_bytes(data)
        down.run()
        assert down.target.read_bytes() == DATA
        assert any("do not fit together; it is fetched from the beginning" in note for note in down.notes)


@pytest.mark.parametrize("sidecar", ["", "{}", "[]", "null", '{"size": "x"}', "\0", '{"size": 3}', None])
def test_a_part_of_nobody_knows_what_is_not_gone_on_with(sidecar: str | None, tmp_path: Path) -> None:
    with Downloads(tmp_path) as down:
        interrupted(down, 100_000)
        (path,) = down.folder.glob("*.json")
        path.unlink() if sidecar is None else path.write_text(sidecar)
        assert unfinished(down.shelf) == []
        down.run()
        assert down.target.read_bytes() == DATA
        assert down.starts() == [0, 0]


def test_a_part_that_is_too_long_is_not_gone_on_with(tmp_path: Path) -> None:
    with Downloads(tmp_path) as down:
        interrupted(down, 100_000)
        (part,) = down.folder.glob("*.part")
        part.write_bytes(DATA + b"x")
        down.run()
        assert down.target.read_bytes() == DATA


def test_an_etag_that_changed_means_from_the_beginning(tmp_path: Path) -> None:
    with Downloads(tmp_path) as down:
        interrupted(down, 100_000)
        down.hub.etag = lambda data: '"another"'
        down.run()
        assert down.target.read_bytes() == DATA
        assert "x.gguf: the file was changed on the way; it is fetched from the beginning" in down.notes


def test_a_server_that_sends_a_range_of_another_file_is_not_believed(tmp_path: Path) -> None:
    def another(ask: Ask) -> object:
        return answered(ask, etag='"another"')

    with Downloads(tmp_path, cut(100_000), another) as down:
        down.run()
        assert down.target.read_bytes() == DATA
        assert down.starts() == [0, 100_000, 0]


@pytest.mark.parametrize(
    ("fault", "note"),
    [
        (range_ignored, "the rest of it cannot be had alone"),
        (status(416), "does not know the part that is here"),
        (
            lambda ask: answered(ask, range_=f"bytes 5-{SIZE - 1}/{SIZE}"),
            "sends another part than was asked for",
        ),
        (lambda ask: answered(ask, range_=f"bytes {ask.start}-{SIZE}/{SIZE + 1}"), "has it as 300,001 bytes"),
        (lambda ask: answered(ask, range_="nonsense"), "sends another part than was asked for"),
        (lambda ask: answered(ask, etag='W/"weak"'), None),
        (lambda ask: answered(ask, etag=""), None),
    ],
)
def test_ranges_that_are_not_what_was_asked_for(fault: Fault, note: str | None, tmp_path: Path) -> None:
    with Downloads(tmp_path, cut(100_000), fault) as down:
        down.run()
        assert down.target.read_bytes() == DATA
        assert note is None or (note in down.notes[1] and down.notes[1].endswith("from the beginning"))


def test_what_nobody_goes_on_with_is_swept(tmp_path: Path) -> None:
    with Downloads(tmp_path) as down:
        interrupted(down, 100_000)
        sweep(down.shelf)
        assert len(down.parts()) == 2
        for path in down.folder.iterdir():
            os.utime(path, (time.time() - STALE_SECONDS - 60,) * 2)
        sweep(down.shelf)
        assert down.parts() == {}


def test_what_somebody_goes_on_with_is_not_swept(tmp_path: Path) -> None:
    with Downloads(tmp_path) as down:
        interrupted(down, 100_000)
        for path in down.folder.iterdir():
            os.utime(path, (time.time() - STALE_SECONDS + 60,) * 2)
        interrupted(down, 100_000)
        assert all(path.stat().st_mtime > time.time() - 60 for path in down.folder.glob("*.json"))


def test_a_file_that_was_damaged_since_it_came_is_fetched_again(tmp_path: Path) -> None:
    with Downloads(tmp_path) as down:
        down.run()
        down.run()
        assert len(down.hub.contents) == 1
        down.target.write_bytes(b"x" + DATA[1:])
        down.run()
        assert down.target.read_bytes() == DATA


# --- lies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (flipped(5), "all of it came, and it is not what the hub announced: its sha256 is"),
        (flipped(SIZE - 1), "it is not what the hub announced"),
        (
            lambda ask: answered(ask, body=DATA + b"x", length=SIZE + 1),
            "sends 300,001 bytes, and the hub announced",
        ),
        (lambda ask: answered(ask, body=DATA[:-1], length=SIZE - 1), "sends 299,999 bytes"),
        (
            lambda ask: answered(ask, body=b"<html>", length=6, kind="text/html; charset=utf-8"),
            "want a login first",
        ),
        (status(403), "refuses x.gguf"),
        (status(404), "a/b has no x.gguf at revision"),
        (status(418), "HTTP 418"),
    ],
)
def test_what_is_not_the_file_is_refused_by_name(fault: Fault, says: str, tmp_path: Path) -> None:
    with Downloads(tmp_path, fault) as down:
        with pytest.raises(EdgeError, match=says):
            down.run()
        assert not down.target.exists()
        assert ".part" not in down.parts()
        down.run()
        assert down.target.read_bytes() == DATA


def test_a_body_without_a_length_that_goes_on_and_on_is_cut_off(tmp_path: Path) -> None:
    def endless(ask: Ask) -> object:
        top, body = answered(ask, body=DATA * 3)
        return [type(top)(top.data.replace(b"Content-Length", b"X-Length")), body, FIN]

    with Downloads(tmp_path, endless) as down:
        with pytest.raises(ModelError, match="sends more than the 300,000 bytes"):
            down.run()
        assert down.parts() == {}


def test_a_hub_that_announces_a_wrong_hash_is_caught(tmp_path: Path) -> None:
    with Downloads(tmp_path, announced={"x.gguf": {"sha256": "0" * 64}}) as down:
        with pytest.raises(ModelError, match=hashlib.sha256(DATA).hexdigest()):
            down.run()
        assert not down.target.exists()


FAULTS = st.one_of(
    st.builds(cut, st.integers(0, SIZE), st.sampled_from([FIN, RST])),
    st.builds(flipped, st.integers(0, SIZE - 1)),
    st.builds(status, st.sampled_from([416, 429, 500, 503, 403, 404])),
    st.just(range_ignored),
    st.just(whole),
    st.builds(
        lambda etag: lambda ask: answered(ask, etag=etag),
        st.sampled_from(["", '"x"', 'W/"x"', "\x7f", '"' + "x" * 300]),
    ),
    st.builds(
        lambda by: lambda ask: answered(ask, length=max(0, SIZE + by), then=[FIN]), st.integers(-SIZE, 5)
    ),
    st.builds(
        lambda first, size: lambda ask: answered(ask, range_=f"bytes {first}-{size}/{size}"),
        st.integers(0, SIZE),
        st.integers(0, SIZE + 5),
    ),
)


@settings(max_examples=60)
@given(faults=st.lists(FAULTS, max_size=6), stops=st.lists(st.integers(0, SIZE), max_size=3))
def test_whatever_goes_wrong_the_file_is_right_or_is_not_there(faults: list[Fault], stops: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder, Downloads(Path(folder), *faults) as down:
        stops = list(stops)

        def report(done: int, whole: int) -> None:
            assert whole == SIZE
            if stops and done >= stops[0]:
                stops.pop(0)
                raise KeyboardInterrupt

        down.report = report
        for _ in range(12):
            try:
                down.run()
            except (EdgeError, KeyboardInterrupt):
                assert not down.target.exists()
            else:
                break
        assert down.target.read_bytes() == DATA
        assert down.parts() == {}


# --- the machine -------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_keeps_what_came(tmp_path: Path) -> None:
    with Downloads(tmp_path) as down:
        file = down.file()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (123_456, before[1]))
        try:
            with down.client() as client, pytest.raises(EdgeError, match="the disk is full") as failed:
                download(client, file, down.target, down.folder, report=down.report, note=down.notes.append)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert failed.value.exit_code == 1
        assert "123.5 kB of the 300.0 kB of x.gguf are kept" in str(failed.value)
        down.run()
        assert down.starts() == [0, 123_456]
        assert down.target.read_bytes() == DATA


def test_two_at_once_do_not_write_one_part(tmp_path: Path) -> None:
    with Downloads(tmp_path, slow(20, 0.02)) as down:
        is_running, refused = threading.Event(), []

        def report(done: int, whole: int) -> None:
            is_running.set()

        down.report = report
        first = threading.Thread(target=down.run)
        first.start()
        assert is_running.wait(30)
        try:
            down.run()
        except UsageError as error:
            refused.append(str(error))
        first.join()
        assert down.target.read_bytes() == DATA
        assert refused == [] or "another sr-edge is fetching x.gguf just now" in refused[0]


CHILD = f"""
import sys
from pathlib import Path
from sr_edge.hub.download import download
from sr_edge.hub.repository import HubFile
from sr_edge.remote.egress import Door
from sr_edge.remote.hub_client import HubClient
url, shelf, sha, size = sys.argv[1:]
file = HubFile("a/b", "{COMMIT}", "x.gguf", int(size), sha, None)
def report(done, whole):
    print(done, flush=True)
with HubClient(Door(), url) as client:
    download(client, file, Path(shelf) / "x.gguf", Path(shelf) / ".downloads", report=report, note=print)
"""


def test_kill_9_at_any_byte_and_again_gives_the_file(tmp_path: Path) -> None:
    """Some processes are killed on the way; the last one is let through."""
    chance = random.Random(7)
    with Downloads(tmp_path, *[slow(30, 0.005)] * 6) as down:
        digest = hashlib.sha256(DATA).hexdigest()
        begun = [0]
        for number in range(7):
            process = subprocess.Popen(
                [sys.executable, "-c", CHILD, down.hub.url, str(tmp_path), digest, str(SIZE)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
            )
            assert process.stdout is not None
            stop = chance.randrange(begun[-1] + 1, SIZE) if number < 6 and begun[-1] < SIZE - 1 else None
            for line in process.stdout:
                if stop is not None and line.strip().isdigit() and int(line) >= stop:
                    process.send_signal(signal.SIGKILL)
                    break
            _, problem = process.communicate(timeout=60)
            assert (process.returncode, problem) in ((0, ""), (-signal.SIGKILL, ""))
            if process.returncode == 0:
                break
            assert not down.target.exists() or down.target.read_bytes() == DATA
            begun.append(down.parts().get(".part", 0))
            json.loads(next(down.folder.glob("*.json")).read_text())
        assert down.target.read_bytes() == DATA
        assert down.parts() == {}
        assert len(begun) > 2
