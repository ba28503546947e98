"""Where our files lie, and that they are whole, private, and written by one at a time."""

import multiprocessing
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from sr_edge import files
from sr_edge.errors import UsageError
from sr_edge.files import (
    cache_dir,
    config_path,
    keys_path,
    locked,
    new_private,
    state_dir,
    write_private,
)

is_posix = pytest.mark.skipif(sys.platform == "win32", reason="permission bits")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- where -------------------------------------------------------------------------------------------


def test_one_variable_moves_everything() -> None:
    environ = {"SR_EDGE_HOME": "/srv/edge", "XDG_CONFIG_HOME": "/elsewhere"}
    paths = [config_path(environ), keys_path(environ), state_dir(environ), cache_dir(environ)]
    assert [path.as_posix() for path in paths] == [
        "/srv/edge/config.toml",
        "/srv/edge/keys.json",
        "/srv/edge/state",
        "/srv/edge/cache",
    ]


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_xdg_folders_hold_on_macos_too(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.sys, "platform", platform)
    environ = {f"XDG_{kind}_HOME": f"/x/{kind.lower()}" for kind in ("CONFIG", "DATA", "STATE", "CACHE")}
    assert config_path(environ) == Path("/x/config/sr-edge/config.toml")
    assert keys_path(environ) == Path("/x/data/sr-edge/keys.json")
    assert state_dir(environ) == Path("/x/state/sr-edge")
    assert cache_dir(environ) == Path("/x/cache/sr-edge")


def test_a_relative_xdg_folder_is_ignored_as_the_specification_says() -> None:
    assert config_path({"XDG_CONFIG_HOME": "here"}) == config_path({})
    assert config_path({}).is_absolute()


@pytest.mark.parametrize("variable", ["SR_EDGE_HOME", "SR_EDGE_CONFIG"])
def test_the_home_of_nobody_is_a_line(variable: str) -> None:
    with pytest.raises(UsageError, match=f"{variable}: ~nosuchuser/x begins with ~ and a name that no user"):
        config_path({variable: "~nosuchuser/x"})


def test_the_file_of_settings_can_be_named() -> None:
    assert config_path({"SR_EDGE_CONFIG": "/a/b.toml", "SR_EDGE_HOME": "/c"}) == Path("/a/b.toml")
    assert config_path({"SR_EDGE_CONFIG": "", "SR_EDGE_HOME": "/c"}) == Path("/c/config.toml")


def test_keys_do_not_lie_with_the_settings_which_people_share() -> None:
    assert keys_path({}).parent != config_path({}).parent or sys.platform in ("win32", "darwin")


# --- writing -----------------------------------------------------------------------------------------


@is_posix
def test_files_and_new_folders_are_for_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "er" / "file"
    before = os.umask(0)
    try:
        write_private(path, "text")
    finally:
        os.umask(before)
    assert path.read_text() == "text"
    assert [mode(path), mode(path.parent), mode(path.parent.parent)] == [0o600, 0o700, 0o700]


@is_posix
def test_a_file_that_was_open_to_others_is_not_any_more(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o666)
    write_private(path, "new")
    assert (path.read_text(), mode(path)) == ("new", 0o600)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    real, link = tmp_path / "dotfiles" / "config.toml", tmp_path / "config.toml"
    real.write_text("old")
    link.symlink_to(real)
    write_private(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


@pytest.mark.parametrize("failing", ["fsync", "replace", "write"])
def test_what_fails_leaves_the_old_file_and_no_other(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    if failing == "write":
        monkeypatch.setattr(files, "_write_new", fail)
    else:
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(UsageError, match=r"file cannot be written: No space left on device\. SR_EDGE_HOME="):
        write_private(path, "new")
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_no_folder_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "config.toml", tmp_path):
        with pytest.raises(UsageError, match="cannot be written"):
            write_private(path, "")
        with pytest.raises(UsageError, match="cannot be written"), locked(path):
            pass


@is_posix
def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    with pytest.raises(UsageError, match="it is not a file"):
        write_private(link, "x")
    assert not Path("/dev/null").is_file()


def test_a_copy_lies_beside_and_is_private(tmp_path: Path) -> None:
    copy = new_private(tmp_path / "config.toml", "x = 1")
    assert copy.parent == tmp_path
    assert copy.name.startswith("config.")
    assert copy.suffix == ".toml"
    assert copy.read_text() == "x = 1"
    assert sys.platform == "win32" or mode(copy) == 0o600


# --- one at a time -----------------------------------------------------------------------------------


def count_up(path: Path, times: int) -> None:
    for _ in range(times):
        with locked(path):
            write_private(path, str(int(path.read_text()) + 1))


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=count_up, args=(path, 25)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert path.read_text() == "75"


def test_threads_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    threads = [threading.Thread(target=count_up, args=(path, 25)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert path.read_text() == "75"


def test_a_lock_is_not_waited_for_without_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with (
        locked(path),
        pytest.raises(UsageError, match="another sr-edge has been writing it"),
        locked(path, timeout=0.05),
    ):
        pass
    with locked(path, timeout=0.05):
        pass  # it is free again


@is_posix
def test_a_file_system_without_locks_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def flock(*args: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with locked(tmp_path / "file"):
        pass
