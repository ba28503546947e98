"""A GGUF is written whole or not at all, whatever stops it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray

from sr_convert.fields import string, strings, uint32
from sr_convert.source import Dtype
from sr_convert.tensors import PlannedTensor
from sr_convert.writing import num_bytes, publish, workshop, write_gguf
from sr_edge.errors import EdgeError, ModelError, UsageError

SHAPES = {"a": (1000, 96), "b": (7,), "c": (33, 64), "d": (2048, 512)}
FIELDS = [string("general.name", "tiny"), uint32("n", 7), strings("words", ["a", "b"])]


def nothing(done: int, whole: int) -> None:
    pass


@dataclass(frozen=True)
class Numbers:
    """A source whose values say where they stand. `before` is called with the tensor's name."""

    before: Callable[[str], None] = lambda name: None
    threads: set[int] = field(default_factory=set)

    @property
    def config(self) -> Mapping[str, Any]:
        return {}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return SHAPES

    def dtype_of(self, name: str) -> Dtype:
        return "F32"

    def rows(self, name: str, first: int, last: int) -> NDArray[np.float32]:
        self.before(name)
        self.threads.add(threading.get_ident())
        width = int(np.prod(SHAPES[name][1:]))
        values = np.arange(first * width, last * width, dtype=np.float32)
        return values.reshape(last - first, *SHAPES[name][1:])


TENSORS = [PlannedTensor(name, "F32", shape, name) for name, shape in SHAPES.items()]


def write(path: Path, source: Numbers | None = None, progress: Callable[[int, int], None] = nothing) -> None:
    write_gguf(path, "llama", FIELDS, TENSORS, source or Numbers(), progress)


def make(out: Path, progress: Callable[[int, int], Any] = nothing) -> None:
    with workshop(out, 0) as folder:
        write(folder / "model.gguf", progress=progress)
        publish(folder / "model.gguf", out, force=True)


def test_every_value_is_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path)
    reader = GGUFReader(path)
    assert [tensor.name for tensor in reader.tensors] == list(SHAPES)
    for tensor in reader.tensors:
        np.testing.assert_array_equal(tensor.data.ravel(), np.arange(tensor.n_elements))
    assert reader.fields["general.architecture"].contents() == "llama"
    assert (reader.fields["n"].contents(), reader.fields["words"].contents()) == (7, ["a", "b"])
    assert path.stat().st_size % 32 == 0
    assert path.stat().st_size <= num_bytes(TENSORS)


def test_progress_ends_with_all_of_it(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write(tmp_path / "model.gguf", progress=lambda done, whole: seen.append((done, whole)))
    whole = sum(tensor.num_bytes for tensor in TENSORS)
    assert seen[-1] == (whole, whole)
    assert seen == sorted(seen)


def test_a_source_that_fails_is_heard_and_ends_every_thread(tmp_path: Path) -> None:
    def fail(name: str) -> None:
        if name == "c":
            raise ModelError("c: broken")

    before = threading.active_count()
    with pytest.raises(ModelError, match="c: broken"):
        write(tmp_path / "model.gguf", Numbers(fail))
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ModelError("broken"), MemoryError])
def test_nothing_is_left_of_what_was_stopped(tmp_path: Path, error: Any) -> None:
    out = tmp_path / "model.gguf"
    out.write_bytes(b"GGUF, the old one")

    def stop(done: int, whole: int) -> None:
        raise error

    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        make(out, stop)
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_bytes() == b"GGUF, the old one"


def test_a_file_that_is_whole_takes_the_old_ones_place(tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    old = b"GGUF, the old one"
    out.write_bytes(old)
    make(out, lambda done, whole: out.read_bytes() == old or pytest.fail("it came too early"))
    assert list(tmp_path.iterdir()) == [out]
    assert len(GGUFReader(out).tensors) == len(SHAPES)


def test_what_a_killed_run_left_is_swept_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    out, other = tmp_path / "model[1].gguf", tmp_path / "other.gguf"
    killed = subprocess.run(
        [sys.executable, "-c", "import os, sys; from pathlib import Path\n"
         "from sr_convert.writing import workshop\n"
         "with workshop(Path(sys.argv[1]), 0) as folder:\n"
         "    (folder / 'model.gguf').write_bytes(b'half'); os.kill(os.getpid(), 9)", str(out)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, check=False,
    )  # fmt: skip
    assert killed.returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    with workshop(other, 0):
        assert len(list(tmp_path.iterdir())) == 2  # it is of another file
    with workshop(out, 0) as first:
        assert list(tmp_path.iterdir()) == [first]
        with workshop(out, 0) as second:
            assert sorted(tmp_path.iterdir()) == sorted([first, second])


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match=r"are free, and model\.gguf needs 1000000000\.0 GB"):
        workshop(tmp_path / "model.gguf", 10**18).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_no_traceback(tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(EdgeError, match=f"{tmp_path}: the disk is full") as error:
            make(out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="nothing can be written here"):
        make(tmp_path / "model.gguf")


def test_a_file_that_came_meanwhile_is_not_replaced_without_a_word(tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    with workshop(out, 0) as folder:
        write(folder / "model.gguf")
        out.write_bytes(b"another's")
        with pytest.raises(UsageError, match="replace it with --force"):
            publish(folder / "model.gguf", out, force=False)
    assert out.read_bytes() == b"another's"
    assert list(tmp_path.iterdir()) == [out]
