"""Writes a GGUF: the header by gguf's own writer, then the tensors, piece by piece and several at a time.

A file appears under its name when it is whole and on the disk, never before. Until then everything lies in a
hidden folder beside it, which goes whatever happens; what a killed run left is swept by the next one.

What is in the file is decided elsewhere: `tensors` and `describing`.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from sr_convert.fields import Field
from sr_convert.source import Source
from sr_convert.tensors import PlannedTensor, pack
from sr_edge.errors import EdgeError, UsageError

Progress: TypeAlias = Callable[[int, int], None]
"""Gets the bytes that are written, and all that will be."""

_ANY_DTYPE = np.dtype(np.float32)  # the writer asks for one, and takes the type's
_ALIGNMENT = 32  # the format's own, where a file names no other
_HEADER_ROOM = 64 << 20  # a vocabulary takes ten MB or so
_MAX_WORKERS = 4  # more wait for the disk, and each holds a few MB
_REPORT_SECONDS = 0.1


def num_bytes(tensors: Sequence[PlannedTensor]) -> int:
    """What a GGUF of these takes at most."""
    return _HEADER_ROOM + sum(_padded(tensor.num_bytes) for tensor in tensors)


# --- whole or not at all -------------------------------------------------------------------------------


def check_out(out: Path, *, force: bool) -> None:
    """Raises: UsageError: no file can have that name, or one has it and is not to be replaced."""
    if out.is_dir():
        raise UsageError(f"{out}: this is a directory: name a file in it")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent}: there is no such directory: make it first")
    if out.exists() and not force:
        raise UsageError(f"{out}: there is such a file already: name another, or replace it with --force")
    if out.is_file() and not _is_replaceable(out):
        raise UsageError(f"{out}: this file is no GGUF, and is not replaced: name another")


@contextmanager
def workshop(out: Path, room: int) -> Iterator[Path]:
    """A folder for the files that `out` is made of, on the same disk; gone afterwards.

    Args:
        room: bytes that the work needs at its largest.
    Raises:
        UsageError: nothing can be written there.
        EdgeError: there is not enough room.
    """
    _sweep(out)
    free = shutil.disk_usage(out.parent).free
    if free < room:
        raise EdgeError(
            f"{out.parent}: {_gigabytes(free)} are free, and {out.name} needs {_gigabytes(room)} while it is "
            "made: make room, or write it elsewhere (--out)"
        )
    folder = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        folder.mkdir(0o700)
    except OSError as error:
        raise UsageError(f"{out.parent}: nothing can be written here: {error.strerror or error}") from None
    try:
        with _held(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(made: Path, out: Path, *, force: bool) -> None:
    """Give a file of the workshop its name, lastingly.

    Raises:
        UsageError: it cannot have it; without `force` also if another got it meanwhile.
    """
    check_out(out, force=force)
    try:
        os.replace(made, out)
    except OSError as error:
        raise UsageError(f"{out}: the file cannot be written: {error.strerror or error}") from None
    with suppress(OSError):  # where a folder cannot be synced, the system does it by itself
        descriptor = os.open(out.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


if sys.platform == "win32":

    @contextmanager
    def _held(folder: Path) -> Iterator[None]:
        yield

    def _sweep(out: Path) -> None:
        """A folder cannot be locked here, so nobody can tell whether it is still in use."""

else:
    import fcntl

    @contextmanager
    def _held(folder: Path) -> Iterator[None]:
        """Lock it, so that others see that it is in use."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # no locks here: then nobody sweeps here either
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)

    def _sweep(out: Path) -> None:
        for folder in out.parent.glob(f".{_literal(out.name)}.*.partial"):
            with suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(descriptor)


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _is_replaceable(out: Path) -> bool:
    """A slip of the hand must not cost a checkpoint its weights."""
    try:
        with out.open("rb") as file:
            return file.read(4) in (b"GGUF", b"")
    except OSError as error:
        raise UsageError(f"{out}: the file cannot be read: {error.strerror or error}") from None


# --- one file ------------------------------------------------------------------------------------------


def write_gguf(
    path: Path,
    architecture: str,
    fields: Sequence[Field],
    tensors: Sequence[PlannedTensor],
    source: Source,
    progress: Progress,
) -> None:
    """Write the file and sync it. If it fails, what is there of it is of no use.

    Raises:
        ModelError: the source's values cannot be read, or not be written as their type.
        EdgeError: the disk is full, or broken.
    """
    try:
        start = _write_header(path, architecture, fields, tensors)
        offsets = _offsets(start, tensors)
        with path.open("r+b", buffering=0) as file:
            file.truncate(offsets[-1])
            _write_tensors(file.fileno(), offsets, tensors, source, progress)
            os.fsync(file.fileno())
    except OSError as error:
        raise _cannot_write(path, error) from None


def _write_header(
    path: Path, architecture: str, fields: Sequence[Field], tensors: Sequence[PlannedTensor]
) -> int:
    """Returns where the first tensor begins."""
    writer = GGUFWriter(path, architecture)
    try:
        for field in fields:
            if field.key != "general.architecture":  # the writer's own
                writer.add_key_value(field.key, field.value, field.type, field.item_type)
        for tensor in tensors:
            kind = GGMLQuantizationType[tensor.type]
            writer.add_tensor_info(tensor.name, tensor.shape, _ANY_DTYPE, tensor.num_bytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    return _padded(path.stat().st_size)


def _offsets(start: int, tensors: Sequence[PlannedTensor]) -> list[int]:
    """Where each tensor begins, and where the file ends."""
    offsets = [start]
    for tensor in tensors:
        offsets.append(offsets[-1] + _padded(tensor.num_bytes))
    return offsets


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _write_tensors(
    descriptor: int,
    offsets: Sequence[int],
    tensors: Sequence[PlannedTensor],
    source: Source,
    progress: Progress,
) -> None:
    """Every piece has its place, so threads need not wait for each other; numpy lets them run at once."""
    pieces = (
        (tensor, offset + tensor.offset_of(first), first, last)
        for tensor, offset in zip(tensors, offsets, strict=False)
        for first, last in tensor.pieces()
    )
    whole = sum(tensor.num_bytes for tensor in tensors)
    done = 0
    lock, stop = threading.Lock(), threading.Event()

    def work() -> None:
        nonlocal done
        while not stop.is_set():
            with lock:
                piece = next(pieces, None)
            if piece is None:
                return
            tensor, offset, first, last = piece
            packed = pack(source, tensor, first, last).data.cast("B")
            _write_at(descriptor, offset, packed)
            with lock:
                done += len(packed)

    num_workers = min(_MAX_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_workers, thread_name_prefix="pack") as pool:
        workers: list[Future[None]] = [pool.submit(work) for _ in range(num_workers)]
        try:
            while True:
                ended = wait(workers, _REPORT_SECONDS, return_when=FIRST_EXCEPTION)
                progress(done, whole)
                if not ended.not_done or any(worker.exception() for worker in ended.done):
                    break
        finally:
            stop.set()  # after a failure, and after Ctrl-C: each worker ends with its piece
    for worker in workers:
        worker.result()


def _write_at(descriptor: int, offset: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _cannot_write(path: Path, error: OSError) -> EdgeError:
    folder = path.parent.parent  # that of the workshop means nothing to a user
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return EdgeError(f"{folder}: the disk is full: make room, or write the file elsewhere (--out)")
    return EdgeError(f"{folder}: the file cannot be written: {error.strerror or error}")
