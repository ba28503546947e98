"""A cache that was kept on disk, on the true llama.cpp: it is had back whole, or not at all."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.command_line import call
from tests.tiny_gguf import write_tiny_gguf

from sr_edge import states
from sr_edge.events import Started, from_json
from sr_edge.llama import KvType
from sr_edge.local import LlamaLocal
from sr_edge.states import Origin, Reopening, StateError, StateFolder, check_state, fingerprint, new_state

TEXT = "the hello, the 12 hellos "
TOLERANCE = 0.02
"""Between logits that were computed in other batches; they range over some 10."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def opened(path: Path, *, kv_type: KvType = "f16", n_ctx: int | None = None) -> LlamaLocal:
    return LlamaLocal.open(path, temperature=0, kv_type=kv_type, n_ctx=n_ctx)


def next_logits(model: LlamaLocal) -> np.ndarray:
    return model._logits().copy()


def written(model: LlamaLocal, n: int) -> list[int]:
    return [model.sample().id for _ in range(n)]


def expect_as_fresh(model: LlamaLocal, path: Path) -> None:
    with opened(path) as fresh:
        fresh.feed(model.ids)
        assert np.abs(next_logits(fresh) - next_logits(model)).max() < TOLERANCE


# --- a model's cache ---


def test_a_cache_comes_back_without_its_prompt_being_read_again(tiny: Path, tmp_path: Path) -> None:
    with opened(tiny) as model:
        model.feed(model.tokenize(TEXT * 8))
        model.save_state(tmp_path / "one.kv")
        ids, text = list(model.ids), written(model, 12)
    with opened(tiny) as again:
        assert again.load_state(tmp_path / "one.kv") == len(ids)
        assert list(again.ids) == ids
        assert again._llama.decodes == 0
        assert written(again, 12) == text


def test_a_token_that_was_sampled_and_not_decoded_is_not_kept(tiny: Path, tmp_path: Path) -> None:
    with opened(tiny) as model:
        model.feed(model.tokenize(TEXT))
        decoded = list(model.ids)
        model.sample()
        model.save_state(tmp_path / "one.kv")
    with opened(tiny) as again:
        again.load_state(tmp_path / "one.kv")
        assert list(again.ids) == decoded


def test_what_was_held_before_is_gone(tiny: Path, tmp_path: Path) -> None:
    with opened(tiny) as model:
        model.feed(model.tokenize(TEXT))
        model.save_state(tmp_path / "one.kv")
        ids = list(model.ids)
        model.rewind(3)
        model.feed(model.tokenize("er er er " * 20))
        model.load_state(tmp_path / "one.kv")
        assert list(model.ids) == ids
        assert model.room == model._llama.context_size - len(ids)
        expect_as_fresh(model, tiny)


@settings(max_examples=15, deadline=None)
@given(
    parts=st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=4),
    cut=st.floats(0, 1),
)
def test_whatever_was_fed_and_rewound_it_goes_on_as_a_fresh_one(
    parts: list[tuple[int, float]], cut: float, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("states") / "one.kv"
    with opened(tiny) as model:
        model.feed(range(20))  # decoded at once: the state of a few ids that wait is that of none
        for n, kept in parts:
            model.feed([(7 * i + n) % 250 for i in range(n)])
            with model.fork() as branch:
                branch.feed([5, 6])
            model.rewind(max(1, round(len(model.ids) * kept)))
        model.save_state(path)
        model.load_state(path)
        model.rewind(max(1, round(len(model.ids) * cut)))
        model.feed([65, 66, 67])
        expect_as_fresh(model, tiny)


def test_a_state_is_not_loaded_beside_branches(tiny: Path, tmp_path: Path) -> None:
    with opened(tiny) as model:
        model.feed(model.tokenize(TEXT))
        model.save_state(tmp_path / "one.kv")
        with model.fork() as branch, pytest.raises(ValueError, match="branches"):
            model.load_state(tmp_path / "one.kv")
        assert branch is not model


# --- files that cannot be used ---


@pytest.fixture
def kept(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "one.kv"
    with opened(tiny) as model:
        model.feed(model.tokenize(TEXT * 4))
        model.save_state(path)
    return path


def expect_refused(path: Path, model: LlamaLocal, reason: str) -> None:
    """It says why, and the model goes on as it was."""
    model.feed(model.tokenize("hello"))
    before = list(model.ids)
    with pytest.raises(StateError, match=reason):
        model.load_state(path)
    assert list(model.ids) == before
    model.sample()


@pytest.mark.parametrize("where", [0, 40, 0.5, -200, -30, -1])
def test_one_bit_that_turned_is_noticed(where: float, kept: Path, tiny: Path) -> None:
    data = bytearray(kept.read_bytes())
    data[int(where * len(data)) if isinstance(where, float) else where] ^= 1
    kept.write_bytes(data)
    with opened(tiny) as model:
        expect_refused(kept, model, "damaged|not ours|another")


@pytest.mark.parametrize("left", [0, 10, 100, 0.5, 0.99])
def test_a_file_that_was_cut_is_noticed(left: float, kept: Path, tiny: Path) -> None:
    data = kept.read_bytes()
    kept.write_bytes(data[: int(left * len(data)) if isinstance(left, float) else left])
    with opened(tiny) as model:
        expect_refused(kept, model, "cut or not ours")


def test_a_page_of_nonsense_is_refused(kept: Path, tiny: Path) -> None:
    for page in (b"[" * 5000, b"[]", b"\xff\xfe", b"{}", b'{"v": 99}'):
        kept.write_bytes(b"cells" + page + len(page).to_bytes(4, "little") + b"sr-edge state\n")
        with opened(tiny) as model:
            expect_refused(kept, model, "version, or damaged")


def test_another_model_cannot_use_it(kept: Path, tmp_path: Path) -> None:
    other = write_tiny_gguf(tmp_path / "other.gguf", seed=1)
    with opened(other) as model:
        expect_refused(kept, model, "another model")


def test_the_same_bytes_in_a_newer_file_are_another_model(kept: Path, tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny.read_bytes())
    with opened(copy) as model:
        expect_refused(kept, model, "another model")


def test_a_cache_of_another_precision_cannot_use_it(kept: Path, tiny: Path) -> None:
    with opened(tiny, kv_type="f32") as model:
        expect_refused(kept, model, "another model, or were computed in another way")


def test_another_llama_cpp_cannot_use_it(kept: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tiny) as model:
        monkeypatch.setattr("sr_edge.llama.Llama.engine", "llama-cpp-python 9.9.9")
        expect_refused(kept, model, "computed in another way")


def test_a_model_that_was_replaced_since_it_was_loaded_keeps_nothing(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with opened(path) as model:
        model.feed([65, 66])
        path.unlink()
        write_tiny_gguf(path, seed=2)
        with pytest.raises(StateError, match="changed since"):
            model.save_state(tmp_path / "one.kv")
    assert not [*tmp_path.glob("*.kv*"), *tmp_path.glob(".*")]


@pytest.mark.parametrize("damage", [lambda cells: cells[:-50], lambda cells: cells[:200], lambda cells: b""])
def test_after_a_restore_that_failed_inside_llama_cpp_the_cache_is_empty_and_sound(
    damage: Callable[[bytes], bytes], kept: Path, tiny: Path
) -> None:
    """Our page is right about it: what is wrong, llama.cpp finds, in the middle of its work."""
    with opened(tiny) as model:
        data = kept.read_bytes()
        page_length = int.from_bytes(data[-18:-14], "little")
        with new_state(kept, model.origin) as file:
            file.write_bytes(damage(data[: -18 - page_length]))
        model.feed(model.tokenize("hello the hello"))
        with pytest.raises(StateError):
            model.load_state(kept)
        assert list(model.ids) == []
        assert model.room == model._llama.context_size
        model.feed(model.tokenize(TEXT))
        expect_as_fresh(model, tiny)


def test_a_state_longer_than_the_context_is_refused(tiny: Path, tmp_path: Path) -> None:
    with opened(tiny) as large:
        large.feed(large.tokenize(TEXT * 20)[:300])
        large.save_state(tmp_path / "one.kv")
    with opened(tiny, n_ctx=256) as small:
        with pytest.raises(StateError):
            small.load_state(tmp_path / "one.kv")
        small.feed(small.tokenize(TEXT))
        expect_as_fresh(small, tiny)


def test_the_file_is_for_its_owner_alone(kept: Path) -> None:
    if os.name == "posix":
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(kept: Path, tiny: Path) -> None:
    before = kept.read_bytes()
    with (
        opened(tiny) as model,
        pytest.raises(StateError, match="cannot be written"),
        new_state(kept, model.origin),
    ):
        raise OSError(28, "No space left on device")
    assert kept.read_bytes() == before
    assert [one.name for one in kept.parent.iterdir()] == [kept.name]


def test_a_fingerprint_sees_the_weights_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "_HEAD", 1 << 10)
    monkeypatch.setattr(states, "_SAMPLE", 1 << 10)
    path = tmp_path / "model"
    data = bytearray(1 << 16)
    path.write_bytes(data)
    os.utime(path, ns=(5, 5))
    first = fingerprint(path, 5)
    data[40_000] = 1
    path.write_bytes(data)
    os.utime(path, ns=(5, 5))
    assert fingerprint(path, 5) != first


# --- a folder of them, and the conversations that they belong to ---

ORIGIN = Origin("engine", "layout", ("model",))


class Cells:
    """A cache of ids that are their own cells, a kilobyte each."""

    def __init__(self, ids: Sequence[int] = (), origin: Origin = ORIGIN) -> None:
        self.ids = list(ids)
        self.origin = origin
        self.log: list[str] = []

    @property
    def state_bytes(self) -> int:
        return 1024 * len(self.ids)

    def save_state(self, path: Path) -> None:
        with new_state(path, self.origin) as file:
            file.write_bytes(json.dumps(self.ids).ljust(self.state_bytes).encode())
        self.log.append(f"save {self.ids}")

    def load_state(self, path: Path) -> int:
        check_state(path, self.origin)
        self.ids[:] = json.JSONDecoder().raw_decode(path.read_text("latin-1"))[0]
        self.log.append(f"load {self.ids}")
        return len(self.ids)


def reopening(
    cells: Cells, folder: Path, *, max_bytes: int = 1 << 20, told: list[str] | None = None
) -> Reopening:
    return Reopening(
        cells, StateFolder(folder, max_bytes=max_bytes), warn=(told if told is not None else []).append
    )


def test_each_conversation_has_its_own_cache_back(tmp_path: Path) -> None:
    cells = Cells()
    one = reopening(cells, tmp_path)
    one.turn_to("first")
    cells.ids[:] = [1, 2, 3]
    one.turn_to("second")
    cells.ids[:] = [1, 9]
    assert one.turn_to("first") == 3
    assert cells.ids == [1, 2, 3]
    assert one.turn_to("second") == 2
    assert cells.ids == [1, 9]
    later = Cells()
    assert reopening(later, tmp_path).turn_to("first") == 3
    assert later.ids == [1, 2, 3]


def test_what_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    cells = Cells()
    one = reopening(cells, tmp_path)
    one.turn_to("first")
    cells.ids[:] = [1, 2]
    for _ in range(3):
        one.keep()
        one.turn_to("first")
    one.turn_to("second")
    one.turn_to("first")
    one.turn_to(None)
    assert cells.log == ["save [1, 2]", "load [1, 2]"]


def test_without_a_conversation_nothing_is_written(tmp_path: Path) -> None:
    cells = Cells([1, 2, 3])
    one = reopening(cells, tmp_path)
    one.keep()
    one.turn_to(None)
    assert not cells.log


def test_another_model_of_the_same_conversation_has_its_own_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        cells = Cells(origin=Origin("engine", "layout", (name,)))
        one = reopening(cells, tmp_path)
        assert one.turn_to("first") == 0
        cells.ids[:] = [1, 2]
        one.keep()
    assert len([*tmp_path.iterdir()]) == 2


def test_a_damaged_file_is_told_of_once_removed_and_done_without(tmp_path: Path) -> None:
    cells, told = Cells(), list[str]()
    one = reopening(cells, tmp_path, told=told)
    for name in ("first", "second"):
        one.turn_to(name)
        cells.ids[:] = [1, 2]
    one.keep()
    for file in tmp_path.iterdir():
        file.write_bytes(b"nonsense")
    again = reopening(cells, tmp_path, told=told)
    assert again.turn_to("first") == again.turn_to("second") == 0
    assert len(told) == 1
    assert "read again" in told[0]
    cells.ids[:] = []
    again.turn_to(None)
    assert not [*tmp_path.iterdir()]


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cells = Cells()
    one = reopening(cells, tmp_path, max_bytes=10 * 1024)
    for name, used in (("first", 9), ("oldest", 5), ("last", 9)):
        one.turn_to(name)
        cells.ids[:] = [used] * 4
        one.keep()
        for file in tmp_path.glob(f"{name}-*"):
            os.utime(file, (used, used))
    assert [file.name.partition("-")[0] for file in sorted(tmp_path.iterdir())] == ["first", "last"]
    one.turn_to("first")  # used again: the next to go is the other
    one.turn_to("newest")
    cells.ids[:] = [7] * 4
    one.keep()
    assert {file.name.partition("-")[0] for file in tmp_path.iterdir()} == {"first", "newest"}


def test_one_that_is_larger_than_all_may_be_is_not_kept_and_costs_nobody_else(tmp_path: Path) -> None:
    cells = Cells()
    one = reopening(cells, tmp_path, max_bytes=10 * 1024)
    one.turn_to("small")
    cells.ids[:] = [1, 2]
    one.turn_to("large")
    cells.ids[:] = [1] * 20
    one.keep()
    assert [file.name.partition("-")[0] for file in tmp_path.iterdir()] == ["small"]


def test_a_disk_that_is_nearly_full_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "_SPARE_DISK", 1 << 60)
    cells = Cells()
    one = reopening(cells, tmp_path)
    one.turn_to("first")
    cells.ids[:] = [1, 2]
    one.keep()
    assert not cells.log


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    stale, fresh = tmp_path / ".first-00.kv.aaaa", tmp_path / ".first-00.kv.bbbb"
    for file in (stale, fresh):
        file.write_bytes(b"half")
    os.utime(stale, (time.time() - 9999,) * 2)
    cells = Cells()
    one = reopening(cells, tmp_path)
    one.turn_to("second")
    cells.ids[:] = [1]
    one.keep()
    assert not stale.exists()
    assert fresh.exists()


def test_a_conversation_that_is_forgotten_leaves_nothing(tmp_path: Path) -> None:
    cells = Cells()
    one = reopening(cells, tmp_path)
    for name in ("first", "second"):
        one.turn_to(name)
        cells.ids[:] = [1, 2, len(name)]
        one.keep()
    (tmp_path / ".second-00.kv.aaaa").write_bytes(b"half")
    (secret,) = tmp_path.glob("second-*")
    still_there = tmp_path / "link"
    still_there.hardlink_to(secret)
    one.forget("second")
    assert not any(still_there.read_bytes())
    still_there.unlink()
    cells.ids.append(5)
    one.keep()
    one.turn_to("third")
    assert [file.name.partition("-")[0] for file in tmp_path.iterdir()] == ["first"]


@pytest.mark.parametrize("name", ["../first", "", "a/b", "*", "A"])
def test_a_conversation_is_no_path(name: str, tmp_path: Path) -> None:
    folder: Any = StateFolder(tmp_path, max_bytes=1)
    with pytest.raises(ValueError, match="no conversation"):
        folder.path(name, ORIGIN)
    with pytest.raises(ValueError, match="no conversation"):
        folder.forget(name)


# --- what a user has of it ---

QUESTION = "the hello, the 12 hellos; " * 4


def ask(home: Path, model: Path, *options: object, question: str = QUESTION, keeps: str = "true") -> Started:
    """A short answer in a process of its own, as far as the models are concerned: how it began."""
    env = {"SR_EDGE_HOME": str(home), "SR_EDGE_CACHE__CONVERSATIONS": keeps}
    done = call("ask", question, "-m", model, "--jsonl", "--max-tokens", 8, "--temp", 0, *options, env=env)
    assert done.returncode == 0, done.stderr
    started = from_json(done.stdout.splitlines()[0])
    assert isinstance(started, Started)
    return started


def states_in(home: Path) -> list[Path]:
    return [*(home / "cache" / "conversations").glob("*")]


def test_a_conversation_that_is_gone_on_with_is_not_read_again(tiny: Path, tmp_path: Path) -> None:
    assert ask(tmp_path, tiny).reused == 0
    again = ask(tmp_path, tiny, "-c", question="er?")
    assert again.reused > len(QUESTION) / 2
    assert len(again.prompt_ids) - again.reused < 40
    assert len(states_in(tmp_path)) == 1
    another = ask(tmp_path, tiny)
    assert another.reused == 0
    assert len(states_in(tmp_path)) == 2


def test_the_answer_is_the_same_as_without(tiny: Path, tmp_path: Path) -> None:
    prompts = []
    for name, keeps in (("with", "true"), ("without", "false")):
        ask(tmp_path / name, tiny, keeps=keeps)
        prompts.append(ask(tmp_path / name, tiny, "-c", question="er?", keeps=keeps).prompt_ids)
    assert prompts[0] == prompts[1]
    kept, read = (
        json.loads(call("logs", "show", "--json", env={"SR_EDGE_HOME": str(tmp_path / name)}).stdout)[
            "turns"
        ][-1]["text"]
        for name in ("with", "without")
    )
    assert kept == read


@pytest.mark.parametrize("options", [{"keeps": "false"}, {"options": ["--no-log"]}])
def test_nothing_is_kept_unless_it_is_wanted(options: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    ask(tmp_path, tiny, *options.pop("options", []), **options)
    assert not states_in(tmp_path)


def test_a_conversation_that_is_removed_takes_its_cache_along(tiny: Path, tmp_path: Path) -> None:
    ask(tmp_path, tiny)
    ask(tmp_path, tiny)
    home = {"SR_EDGE_HOME": str(tmp_path)}
    kept = {file.name.partition("-")[0] for file in states_in(tmp_path)}
    latest = json.loads(call("logs", "list", "--json", env=home).stdout)[0]["id"]
    assert latest in kept
    assert call("logs", "rm", "-y", latest, env=home).returncode == 0
    assert {file.name.partition("-")[0] for file in states_in(tmp_path)} == kept - {latest}


def test_a_folder_that_cannot_be_written_costs_a_line_and_no_answer(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "conversations").write_text("in the way")
    env = {"SR_EDGE_HOME": str(tmp_path), "SR_EDGE_CACHE__CONVERSATIONS": "true"}
    for options in ([], ["-c"]):
        done = call("ask", "er?", *options, "-m", tiny, "--json", "--max-tokens", 8, env=env)
        assert done.returncode == 0
        assert json.loads(done.stdout)["usage"]["local_tokens"] > 0
        assert done.stderr.count("cannot be written") == 1


def test_a_damaged_cache_costs_a_line_and_no_answer(tiny: Path, tmp_path: Path) -> None:
    ask(tmp_path, tiny)
    file = states_in(tmp_path)[0]
    file.write_bytes(file.read_bytes()[:-1000])
    env = {"SR_EDGE_HOME": str(tmp_path), "SR_EDGE_CACHE__CONVERSATIONS": "true"}
    done = call("ask", "er?", "-c", "-m", tiny, "--json", "--max-tokens", 8, env=env)
    assert done.returncode == 0
    assert "the conversation is read again" in done.stderr
    assert ask(tmp_path, tiny, "-c", question="er?").reused > 0


def test_a_cache_is_of_the_installed_version(tmp_path: Path) -> None:
    with LlamaLocal.open(write_tiny_gguf(tmp_path / "tiny.gguf")) as local:
        assert local.origin.engine == f"llama-cpp-python {version('llama-cpp-python')}"


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names, and links need a privilege")
def test_what_is_no_ordinary_file_is_neither_read_nor_written(tiny: Path, tmp_path: Path) -> None:
    pipe, link, precious = tmp_path / "abc-1.kv", tmp_path / "abc-2.kv", tmp_path / "precious"
    os.mkfifo(pipe)
    precious.write_text("mine")
    link.symlink_to(precious)
    with opened(tiny) as model:
        for path in (pipe, link):
            with pytest.raises(StateError, match="cannot be read"):
                model.load_state(path)
    for path in (pipe, link):
        states._overwrite(path)
    assert precious.read_text() == "mine"
