"""The shelf of models: a name finds its file, and a file gets in whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.errors import EdgeError, ModelError, UsageError
from sr_edge.gguf_header import read_header
from sr_edge.markers import KEY_FORM
from sr_edge.session import Session, SessionSettings
from sr_edge.shelf import (
    Passport,
    check_on_load,
    facts_of,
    find,
    folder,
    memory_need,
    models,
    named,
    passport_file,
    read_beside,
    remove,
    take_in,
    verify,
)
from sr_edge.shelf.passport_file import how_to_get_again

CHUNK = 4 << 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def large(tiny: Path, tmp_path: Path) -> Path:
    """Some chunks long: what follows the tensors is nobody's business."""
    path = tmp_path / "large.gguf"
    path.write_bytes(tiny.read_bytes())
    os.truncate(path, 3 * CHUNK)
    return path


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"SR_EDGE_HOME": str(tmp_path / "home")}


def everything(home: dict[str, str]) -> list[str]:
    """What lies on the shelf, locks aside."""
    shelf = Path(home["SR_EDGE_HOME"]) / "models"
    return sorted(path.name for path in shelf.iterdir() if path.suffix != ".lock") if shelf.exists() else []


def test_nothing_is_on_a_shelf_that_is_not_there(home: dict[str, str]) -> None:
    assert models(home) == []
    assert everything(home) == []


# --- in ----------------------------------------------------------------------------------------------


def test_a_model_comes_in_whole_with_its_passport(tiny: Path, home: dict[str, str]) -> None:
    seen: list[tuple[int, int]] = []
    model = take_in(tiny, environ=home, progress=lambda done, whole: seen.append((done, whole)))
    assert (model.name, model.size) == ("tiny", tiny.stat().st_size)
    assert model.path.read_bytes() == tiny.read_bytes()
    assert not model.path.is_symlink()
    assert everything(home) == ["tiny.gguf", "tiny.json"]
    assert seen[0] == (0, model.size)
    assert seen[-1] == (model.size, model.size)
    passport = model.passport
    assert passport is not None
    assert passport.sha256 == hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert (passport.bytes, passport.source, passport.is_linked) == (model.size, str(tiny), False)
    assert models(home) == [model]
    assert stat.S_IMODE(model.path.parent.stat().st_mode) == 0o700


def test_a_link_leaves_the_file_where_it_is(tiny: Path, home: dict[str, str]) -> None:
    model = take_in(tiny, name="mine", is_link=True, environ=home)
    assert model.path.is_symlink()
    assert model.path.samefile(tiny)
    assert model.passport is not None
    assert model.passport.is_linked
    remove(model)
    assert tiny.exists()
    assert everything(home) == []


def test_a_link_that_leads_nowhere_is_still_listed(tiny: Path, tmp_path: Path, home: dict[str, str]) -> None:
    source = tmp_path / "gone.gguf"
    source.write_bytes(tiny.read_bytes())
    take_in(source, is_link=True, environ=home)
    source.unlink()
    assert [(model.name, model.is_there) for model in models(home)] == [("gone", False)]
    assert named("gone", home).name == "gone"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("My Model (Q4).gguf", "My-Model-Q4"),
        ("sr-1.5b-q4.gguf", "sr-1.5b-q4"),
        ("..gguf.gguf", "gguf"),
        ("weights.bin", "weights.bin"),
        ("größe.gguf", "gr-e"),
    ],
)
def test_a_model_is_named_after_its_file(
    file: str, name: str, tiny: Path, tmp_path: Path, home: dict[str, str]
) -> None:
    source = tmp_path / file
    source.write_bytes(tiny.read_bytes())
    assert take_in(source, environ=home).name == name
    assert find(name, home).name == f"{name}.gguf"


@pytest.mark.parametrize(
    "name", ["none", "built-in", "../x", "a/b", "", ".hidden", "a b", "-m", "x" * 101, "a\n"]
)
def test_names_that_cannot_be_are_refused(name: str, tiny: Path, home: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="--name"):
        take_in(tiny, name=name, environ=home)
    assert everything(home) == []


def test_a_name_that_exists_is_not_overwritten_without_force(
    tiny: Path, large: Path, home: dict[str, str]
) -> None:
    take_in(tiny, name="one", environ=home)
    with pytest.raises(UsageError, match="--force replaces it"):
        take_in(large, name="one", environ=home)
    assert find("one", home).read_bytes() == tiny.read_bytes()
    model = take_in(large, name="one", force=True, environ=home)
    assert model.size == large.stat().st_size
    assert verify(model.path).problem is None
    assert everything(home) == ["one.gguf", "one.json"]


def test_a_name_that_comes_up_meanwhile_is_not_overwritten(
    tiny: Path, large: Path, home: dict[str, str]
) -> None:
    def somebody_else(done: int, whole: int) -> None:
        if done == whole and not everything(home).count("one.gguf"):
            take_in(tiny, name="one", environ=home)

    with pytest.raises(UsageError, match="there is a model one"):
        take_in(large, name="one", environ=home, progress=somebody_else)
    assert find("one", home).read_bytes() == tiny.read_bytes()
    assert everything(home) == ["one.gguf", "one.json"]


def test_a_file_that_was_put_there_by_hand_gets_its_passport(tiny: Path, home: dict[str, str]) -> None:
    shelf = Path(home["SR_EDGE_HOME"]) / "models"
    shelf.mkdir(parents=True)
    (shelf / "by-hand.gguf").write_bytes(tiny.read_bytes())
    assert [(model.name, model.passport) for model in models(home)] == [("by-hand", None)]
    take_in(shelf / "by-hand.gguf", environ=home)
    assert models(home)[0].passport is not None
    assert verify(shelf / "by-hand.gguf").expected is not None


@pytest.mark.parametrize("chunk", range(5))
def test_an_import_that_is_interrupted_leaves_nothing(chunk: int, large: Path, home: dict[str, str]) -> None:
    calls = 0

    def interrupted(done: int, whole: int) -> None:
        nonlocal calls
        calls += 1
        if calls == chunk + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_in(large, environ=home, progress=interrupted)
    assert everything(home) == []


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, CHUNK - 1, 2 * CHUNK + 5])
def test_a_disk_that_fills_up_leaves_what_was_there(
    size: int, tiny: Path, large: Path, home: dict[str, str]
) -> None:
    take_in(tiny, name="large", environ=home)
    with no_file_beyond(size), pytest.raises(EdgeError, match="the disk is full") as failed:
        take_in(large, force=True, environ=home)
    assert failed.value.exit_code == 1
    assert everything(home) == ["large.gguf", "large.json"]
    assert verify(find("large", home)).problem is None


def test_room_is_looked_for_first(large: Path, home: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    with pytest.raises(EdgeError, match=r"it takes 12\.6 MB, and 5\.2 MB is free in .*--link"):
        take_in(large, environ=home)
    assert everything(home) == []
    assert take_in(large, is_link=True, environ=home).is_there


def test_a_file_that_shrinks_while_it_is_copied_does_not_come_in(large: Path, home: dict[str, str]) -> None:
    def shrink(done: int, whole: int) -> None:
        if done == CHUNK:
            os.truncate(large, 2 * CHUNK)

    with pytest.raises(ModelError, match="changed while it was copied"):
        take_in(large, environ=home, progress=shrink)
    assert everything(home) == []


def test_what_is_no_model_does_not_come_in(tmp_path: Path, home: dict[str, str]) -> None:
    (tmp_path / "page.gguf").write_text("<html>")
    with pytest.raises(ModelError, match="a web page"):
        take_in(tmp_path / "page.gguf", environ=home)
    assert everything(home) == []


def test_what_killed_imports_left_is_swept_but_not_what_others_write(
    tiny: Path, home: dict[str, str]
) -> None:
    shelf = take_in(tiny, environ=home).path.parent
    old, new = shelf / ".a.gguf.0123.part", shelf / ".b.gguf.4567.part"
    for part in (old, new):
        part.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    take_in(tiny, name="other", environ=home)
    assert (old.exists(), new.exists()) == (False, True)
    assert [model.name for model in models(home)] == ["other", "tiny"]


def test_two_imports_of_one_name_at_once_leave_one_whole_model(
    tiny: Path, large: Path, home: dict[str, str]
) -> None:
    failed: list[str] = []

    def come_in(source: Path) -> None:
        try:
            take_in(source, name="one", environ=home)
        except UsageError as error:
            failed.append(str(error))

    threads = [threading.Thread(target=come_in, args=(source,)) for source in (tiny, large) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) == 3
    assert everything(home) == ["one.gguf", "one.json"]
    assert verify(find("one", home)).problem is None


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_shelf_that_cannot_be_written_is_one_line(tiny: Path, home: dict[str, str]) -> None:
    shelf = take_in(tiny, environ=home).path.parent
    shelf.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="Permission denied: nothing was put on the shelf"):
            take_in(tiny, name="other", environ=home)
    finally:
        shelf.chmod(0o700)


def test_a_shelf_that_is_a_file_is_one_line(tiny: Path, home: dict[str, str]) -> None:
    Path(home["SR_EDGE_HOME"]).mkdir()
    (Path(home["SR_EDGE_HOME"]) / "models").write_text("")
    with pytest.raises(UsageError, match="Not a directory"):
        models(home)
    with pytest.raises(UsageError, match="Not a directory"):
        take_in(tiny, environ=home)


# --- names -------------------------------------------------------------------------------------------


def test_a_path_goes_before_a_name(
    tiny: Path, tmp_path: Path, home: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = take_in(tiny, name="one", environ=home)
    monkeypatch.chdir(tmp_path)
    assert find("one", home) == model.path
    assert find("one.gguf", home) == model.path
    (tmp_path / "one").mkdir()
    assert find("one", home) == model.path  # a folder is no model
    (tmp_path / "one").rmdir()
    (tmp_path / "one").write_bytes(tiny.read_bytes())
    assert find("one", home) == Path("one")
    assert find(tiny, home) == tiny


def test_a_name_in_a_file_of_settings_is_found(tiny: Path, home: dict[str, str]) -> None:
    model = take_in(tiny, name="one", environ=home)
    assert find(Path(home["SR_EDGE_HOME"]) / "one", home) == model.path


def test_a_folder_is_left_to_the_header_check(tmp_path: Path, home: dict[str, str]) -> None:
    assert find(tmp_path, home) == tmp_path


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("tinny", "did you mean tiny?"),
        ("tinyy.gguf", "did you mean tiny?"),
        ("qwen", "no model of this name: `sr-edge models import"),
        ("./qwen.gguf", "there is no such file: check the path"),
        ("models/../tiny/x.gguf", "there is no such file: check the path"),
        ("../models/tiny", "did you mean tiny?"),
        ("x" * 5000, "File name too long"),
        ("a\0b", "no model of this name"),
    ],
)
def test_a_name_that_is_not_there_says_what_is_near(
    ref: str, says: str, tiny: Path, home: dict[str, str]
) -> None:
    take_in(tiny, environ=home)
    with pytest.raises(ModelError) as failed:
        find(ref, home)
    assert says in str(failed.value)
    assert len(str(failed.value)) < 500


def test_only_what_is_on_the_shelf_can_be_named(tiny: Path, home: dict[str, str]) -> None:
    take_in(tiny, environ=home)
    for name in (str(tiny), "../models/tiny", "tin"):
        with pytest.raises(UsageError, match="there is no model"):
            named(name, home)


# --- passports ---------------------------------------------------------------------------------------


def test_a_file_that_changed_is_not_the_one_that_came(tiny: Path, home: dict[str, str]) -> None:
    model = take_in(tiny, environ=home)
    data = bytearray(model.path.read_bytes())
    data[-1] ^= 1
    model.path.write_bytes(data)
    verdict = verify(model.path)
    assert verdict.problem is not None
    assert verdict.sha256 != verdict.expected


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"sha256": 5}', "[" * 100_000, "\xff"])
def test_a_passport_that_cannot_be_read_is_none(text: str, tiny: Path, home: dict[str, str]) -> None:
    model = take_in(tiny, environ=home)
    model.path.with_suffix(".json").write_text(text, "latin-1")
    assert read_beside(model.path) is None
    assert verify(model.path).expected is None


def test_a_passport_of_a_newer_version_is_read_as_far_as_it_is_known(
    tiny: Path, home: dict[str, str]
) -> None:
    model = take_in(tiny, environ=home)
    path = model.path.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"v": 2, "mirror": "x"}))
    assert read_beside(model.path) == model.passport


# --- facts -------------------------------------------------------------------------------------------


def test_facts_are_those_of_the_header(tiny: Path) -> None:
    facts = facts_of(read_header(tiny))
    assert (facts.name, facts.architecture, facts.context, facts.vocabulary) == ("tiny", "qwen2", 512, 276)
    assert facts.quantization == "32.5 bits a weight"
    assert facts.markers is not None
    assert facts.markers.form == "token"
    assert facts.licence is None


def test_memory_is_weights_cache_and_workspace(tiny: Path) -> None:
    header = read_header(tiny)
    layers, kv_heads, head, two, f16 = 2, 2, 16, 2, 2
    per_token = layers * kv_heads * head * two * f16
    weights = workspace = header.file_size
    assert memory_need(header) == weights + workspace + 512 * per_token
    assert memory_need(header, 100) == weights + workspace + 100 * per_token


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({"control": ("<|endoftext|>", "<|im_start|>", "<|im_end|>")}, None),
        (
            {"control": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "metadata": {KEY_FORM: "text"}},
            "text",
        ),
        ({"metadata": {KEY_FORM: "token"}}, "token"),
    ],
)
def test_markers_are_known_without_loading(
    options: dict[str, object], form: str | None, tmp_path: Path
) -> None:
    facts = facts_of(read_header(write_tiny_gguf(tmp_path / "x.gguf", **options)))  # type: ignore[arg-type]
    assert (facts.markers and facts.markers.form) == form
    assert facts.marker_problem is None


def test_markers_that_the_vocabulary_lacks_are_a_problem(tmp_path: Path) -> None:
    path = write_tiny_gguf(
        tmp_path / "x.gguf",
        control=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        metadata={KEY_FORM: "token"},
    )
    facts = facts_of(read_header(path))
    assert facts.markers is None
    assert "the vocabulary lacks them" in (facts.marker_problem or "")


# --- checked on load ---------------------------------------------------------------------------------


def test_a_file_is_read_again_only_where_it_looks_changed(
    tiny: Path, home: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = take_in(tiny, environ=home).path
    read: list[Path] = []

    def sha256(path: Path, progress: object) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(passport_file, "sha256_of", sha256)
    check_on_load(path)
    assert read == []
    os.utime(path, (1, 1))  # as a restored backup looks
    check_on_load(path)
    check_on_load(path)
    assert read == [path]


@pytest.mark.parametrize("change", ["flip", "cut", "append"])
def test_a_file_that_is_another_is_not_loaded(change: str, tiny: Path, home: dict[str, str]) -> None:
    path = take_in(tiny, environ=home).path
    data = bytearray(path.read_bytes())
    data[-1] ^= change == "flip"
    path.write_bytes(data[:-1] if change == "cut" else data + b"x" * (change == "append"))
    with pytest.raises(ModelError, match=r"not the one that came: .* `sr-edge models import .* --force`"):
        check_on_load(path)


def test_a_session_does_not_open_a_file_that_is_another(tiny: Path, home: dict[str, str]) -> None:
    path = take_in(tiny, environ=home).path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="not the one that came"):
        Session.open(SessionSettings(model=path), environ=home)
    with pytest.raises(ModelError, match="not the one that came"):
        Session.open(SessionSettings(model=tiny, big=str(path)), environ=home)


def test_the_command_that_gets_a_model_again_can_be_pasted() -> None:
    said = how_to_get_again(Passport("0", 1, "", "", repo="a/b", revision="c", file="My Model.gguf"))
    assert "`sr-edge models pull 'a/b:My Model.gguf' --revision c --force`" in said


def test_a_model_without_a_passport_is_not_looked_at(tiny: Path) -> None:
    check_on_load(tiny)
    check_on_load(tiny.with_name("missing.gguf"))


def test_a_passport_from_before_is_read_and_gets_its_stamp(tiny: Path, home: dict[str, str]) -> None:
    path = take_in(tiny, environ=home).path
    beside = path.with_suffix(".json")
    kept = ("v", "sha256", "bytes", "source", "added", "is_linked")
    old = {name: value for name, value in json.loads(beside.read_text()).items() if name in kept}
    beside.write_text(json.dumps(old))
    passport = read_beside(path)
    assert passport is not None
    assert (passport.sha256, passport.repo, passport.stamp) == (old["sha256"], None, None)
    check_on_load(path)
    again = read_beside(path)
    assert again is not None
    assert again.stamp == f"{path.stat().st_size} {path.stat().st_mtime_ns}"


def test_a_shelf_that_is_only_read_can_be_used(
    tiny: Path, home: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = take_in(tiny, environ=home).path
    os.utime(path, (1, 1))

    def refuse(path: Path, text: str) -> None:
        raise UsageError("read-only")

    monkeypatch.setattr(passport_file, "write_private", refuse)
    check_on_load(path)
