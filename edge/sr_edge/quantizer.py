"""Quantising a GGUF with llama.cpp's own quantiser, in a process of its own.

A child, so that Ctrl-C ends it at once, and an abort of llama.cpp is a message. What it tells is llama.cpp's
log, line by line. `python -P -m sr_edge.quantizer` is for `quantize` alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeAlias

from sr_edge.errors import EdgeError, ModelError, UsageError
from sr_edge.gguf_header import Header, read_header
from sr_edge.imatrix import ImportanceMatrix, check_imatrix, read_imatrix
from sr_edge.llama import library
from sr_edge.processor import physical_cores

TYPES: Final = MappingProxyType({
    "f32": 0, "f16": 1, "bf16": 32, "q8_0": 7,
    "q6_k": 18, "q5_k_m": 17, "q5_k_s": 16, "q5_k": 17, "q5_1": 9, "q5_0": 8,
    "q4_k_m": 15, "q4_k_s": 14, "q4_k": 15, "q4_1": 3, "q4_0": 2, "iq4_nl": 25, "iq4_xs": 30,
    "q3_k_l": 13, "q3_k_m": 12, "q3_k_s": 11, "q3_k": 12, "iq3_m": 27, "iq3_s": 26, "iq3_xs": 22,
    "iq3_xxs": 23, "q2_k": 10, "q2_k_s": 21, "iq2_m": 29, "iq2_s": 28, "iq2_xs": 20, "iq2_xxs": 19,
    "iq1_m": 31, "iq1_s": 24, "tq2_0": 37, "tq1_0": 36, "q2_0": 41, "q1_0": 40,
})  # fmt: skip
"""The mixtures of weight types that llama.cpp knows, finest first, and its number of each."""

Progress: TypeAlias = Callable[[int, int], None]
"""Gets the bytes of the source that are done, and all of them; several times a second, done or not."""

_UNQUANTIZED = (0, 1, 28, 30)  # F32, F16, F64, BF16
_TICK = 0.1
_SLACK = 1 << 20  # bytes: the sizes that llama.cpp foretells are rounded
_MAX_BUFFER = 256 << 20  # bytes of one tensor at a time; llama.cpp would take up to 8 GB
_GO = b"go\n"


@dataclass(frozen=True, slots=True)
class Fallback:
    """A tensor whose width is no multiple of its type's block."""

    tensor: str
    wanted: str
    got: str


@dataclass(frozen=True, slots=True)
class Quantized:
    path: Path
    size: int
    source_size: int
    fallbacks: tuple[Fallback, ...]
    without_importance: tuple[str, ...]
    """Tensors that a given importance matrix says nothing of, embedding and output apart."""


def quantize(
    source: Path,
    target: Path,
    type: str,
    *,
    imatrix: Path | None = None,
    threads: int | None = None,
    requantize: bool = False,
    progress: Progress | None = None,
) -> Quantized:
    """Write `target` anew, whole or not at all; what was there is replaced.

    Args:
        type: a key of `TYPES`.
        imatrix: importance matrix of the model.
        threads: None for one per physical core.
        requantize: allow a source that is quantised already, and so lose twice.
        progress: what it raises ends the work, and `target` is as it was.
    Raises:
        ModelError: the source or the importance matrix is unusable.
        UsageError: the type is unknown, or needs an importance matrix; or paths cannot be meant.
        EdgeError: there is no room on the disk.
    """
    if type not in TYPES:
        raise UsageError(f"{type!r} is no type of weights: choose one of {', '.join(TYPES)}")
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads: there must be at least one")
    header = read_header(source)
    _check_source(header, requantize=requantize)
    _check_target(source, target)
    matrix = read_imatrix(imatrix) if imatrix is not None else None
    if matrix is not None:
        check_imatrix(matrix, source, header.tensors)
    with _temporary(target) as temporary:
        job = _Job(
            source=os.fspath(source),
            target=os.fspath(temporary),
            ftype=TYPES[type],
            threads=threads or physical_cores(),
            imatrix=None if imatrix is None else os.fspath(imatrix),
            requantize=requantize,
        )
        log = _Log(header)
        _run(job, log, target, type, progress)
        result = read_header(temporary)
        if {tensor.name for tensor in result.tensors} != {tensor.name for tensor in header.tensors}:
            raise ModelError(f"{source}: llama.cpp has left out some of its tensors: convert it anew")
        _replace(temporary, target)
    missing = tuple(name for name in log.without_importance if name not in _OFTEN_UNMEASURED)
    return Quantized(target, result.file_size, header.file_size, tuple(log.fallbacks), missing)


_OFTEN_UNMEASURED = ("token_embd.weight", "output.weight")  # `llama-imatrix` leaves them out


def _check_source(header: Header, *, requantize: bool) -> None:
    if requantize:
        return
    for tensor in header.tensors:
        if tensor.kind not in _UNQUANTIZED:
            raise UsageError(
                f"{header.path}: it is quantised already ({tensor.name!r} for one): start from a file of 16 "
                "or 32 bits, or allow the double loss with --requantize"
            )


def _check_target(source: Path, target: Path) -> None:
    if target.is_dir():
        raise UsageError(f"{target}: this is a directory: name a file in it")
    if target.exists() and target.samefile(source):
        raise UsageError(f"{target}: a file cannot be quantised onto itself: name another")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent}: there is no such directory: make it first")
    if not os.access(target.parent, os.W_OK):
        raise _cannot_write(target, "its directory allows no new files")


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink()


def _replace(temporary: Path, target: Path) -> None:
    try:
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        if os.name != "nt":
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise _cannot_write(target, error.strerror or str(error)) from None


def _cannot_write(target: Path, reason: str) -> EdgeError:
    return EdgeError(f"{target} cannot be written: {reason}: make room, or name a file on another disk")


# --- the parent's side -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Job:
    source: str
    target: str
    ftype: int
    threads: int
    imatrix: str | None
    requantize: bool


def _run(job: _Job, log: _Log, target: Path, type: str, progress: Progress | None) -> None:
    child = subprocess.Popen(
        (sys.executable, "-P", "-m", "sr_edge.quantizer"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # what is no JSON are the last words of native code
        start_new_session=True,  # Ctrl-C is the parent's
    )
    assert child.stdin is not None
    assert child.stdout is not None
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    stdout = child.stdout
    reader = threading.Thread(target=lambda: _forward(stdout, lines), daemon=True)
    reader.start()
    words: deque[str] = deque(maxlen=5)
    try:
        with suppress(BrokenPipeError):
            child.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
            child.stdin.flush()
        while True:
            try:
                line = lines.get(timeout=_TICK)
            except queue.Empty:
                line = b""
            if line is None:
                break
            message = _decoded(line)
            if "log" in message:
                log.hear(message["log"])
            elif "planned" in message:
                _check_plan(log, target, type)
                log.end_plan()
                with suppress(BrokenPipeError):
                    child.stdin.write(_GO)
                    child.stdin.flush()
            elif line.strip():
                words.append(line.decode("utf-8", "replace").strip())
            if progress is not None:
                progress(log.done, log.whole)
        code = child.wait()
    finally:
        child.kill()
        child.wait()
        reader.join()
        with suppress(BrokenPipeError):
            child.stdin.close()
        stdout.close()
    if code != 0:
        raise _failure(code, log, words, job, target, type)
    if progress is not None:
        progress(log.whole, log.whole)


def _forward(stdout: Any, lines: queue.SimpleQueue[bytes | None]) -> None:
    for line in stdout:
        lines.put(line)
    lines.put(None)


def _decoded(line: bytes) -> dict[str, str]:
    with suppress(ValueError):
        message = json.loads(line)
        if isinstance(message, dict):
            return message
    return {}


def _check_plan(log: _Log, target: Path, type: str) -> None:
    if log.needs_importance:
        raise _needs_importance(type)
    free = shutil.disk_usage(target.parent).free
    if log.planned_size > free:
        raise EdgeError(
            f"{target} will have {log.planned_size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free there: "
            "make room, or name a file on another disk"
        )


def _needs_importance(type: str) -> UsageError:
    return UsageError(
        f"{type} spoils a model without an importance matrix: make one with `llama-imatrix` and name it with "
        "--imatrix, or choose q2_k or more"
    )


def _failure(code: int, log: _Log, words: deque[str], job: _Job, target: Path, type: str) -> EdgeError:
    if "importance matrix" in log.reason or "imatrix!" in log.reason:
        if job.imatrix is None:
            return _needs_importance(type)
        return ModelError(
            f"{job.imatrix}: {log.reason}: measure it on this very model, or choose another type"
        )
    if "iostream error" in log.reason or "basic_ios" in log.reason:
        free = shutil.disk_usage(target.parent).free
        return _cannot_write(target, f"llama.cpp could not write all of it, {free / 1e6:,.0f} MB are free")
    if code < 0:
        return ModelError(
            f"{job.source}: llama.cpp ended with {_signal_name(-code)} while it quantised: "
            f"{' '.join(words)[-300:] or 'it gave no reason'}: convert the file anew, or choose another type"
        )
    reason = log.reason or " ".join(words)[-300:] or "no reason was given"
    return ModelError(
        f"{job.source}: llama.cpp cannot quantise it to {type}: {reason}: convert the file anew"
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_BEGUN = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +-")
_FELL_BACK = re.compile(r"warning: (\S+) +- ncols .* type +(\S+)\) .*-> falling back to +(\S+)")
_UNMEASURED = re.compile(r"did not find weights for (\S+)")
_PLANNED = re.compile(r"quant size += +([0-9.]+) MiB")
_FAILED = re.compile(r"failed to quantize: (.*)")


class _Log:
    """What llama.cpp's log says. Its words may change with a release; then progress or a warning is lost."""

    def __init__(self, header: Header) -> None:
        self._sizes = {tensor.name: tensor.size for tensor in header.tensors}
        self._metadata_size = header.tensors[0].offset
        self.whole = sum(self._sizes.values())
        self.done = 0
        self.planned_size = 0
        self.needs_importance = False
        self.reason = ""
        self.fallbacks: list[Fallback] = []
        self.without_importance: list[str] = []
        self._is_plan = True
        self._tensor = ""
        self._line = ""

    def end_plan(self) -> None:
        """From now on the same comes once more, as it is done."""
        self._is_plan = False
        self.fallbacks.clear()

    def hear(self, text: str) -> None:
        """A part of a line, or several."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._read(line)
        if begun := _BEGUN.match(self._line):
            self._begin(begun[1])

    def _begin(self, tensor: str) -> None:
        if tensor != self._tensor and not self._is_plan:
            self.done += self._sizes.get(self._tensor, 0)
            self._tensor = tensor

    def _read(self, line: str) -> None:
        if begun := _BEGUN.match(line):
            self._begin(begun[1])
        elif fell := _FELL_BACK.match(line):
            self.fallbacks.append(Fallback(fell[1], fell[2], fell[3]))
        elif unmeasured := _UNMEASURED.search(line):
            self.without_importance.append(unmeasured[1])
        elif planned := _PLANNED.search(line):
            self.planned_size = self._metadata_size + int(float(planned[1]) * (1 << 20)) + _SLACK
        elif failed := _FAILED.search(line):
            self.reason = failed[1]
        elif "will require an imatrix" in line:
            self.needs_importance = True


# --- the child's side --------------------------------------------------------------------------------


def main() -> NoReturn:
    """Do the job that stdin names: plan it, wait for leave, do it."""
    wire = os.dup(1)
    os.dup2(2, 1)  # whatever native code prints must not get into a line of ours
    _leave_no_core()
    job = _Job(**json.loads(sys.stdin.buffer.readline()))

    def tell(**message: str) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(wire, data) :]

    try:
        api = library().api
        matrix = None if job.imatrix is None else read_imatrix(Path(job.imatrix))
    except EdgeError as error:
        tell(log=f"failed to quantize: {error}\n")
        sys.exit(1)
    callback = api.llama_log_callback(lambda level, text, _: tell(log=text.decode("utf-8", "replace")))
    api.llama_log_set(callback, None)
    params, owned = _params(api, job, matrix)
    params.dry_run = True
    result = _quantize(api, job, params)
    if result == 0:
        tell(planned="")
        if sys.stdin.buffer.readline() != _GO:
            sys.exit(1)
        threading.Thread(target=_end_with_the_parent, args=(Path(job.target),), daemon=True).start()
        params.dry_run = False
        result = _quantize(api, job, params)
    del owned  # it had to live until here, as has the callback
    sys.stdout.flush()
    os._exit(int(result != 0))  # with no log callback left behind


def _quantize(api: Any, job: _Job, params: Any) -> int:
    return int(
        api.llama_model_quantize(os.fsencode(job.source), os.fsencode(job.target), ctypes.byref(params))
    )


def _params(api: Any, job: _Job, matrix: ImportanceMatrix | None) -> tuple[Any, list[Any]]:
    """llama.cpp's, and what must live as long."""
    params = api.llama_model_quantize_default_params()
    params.ftype = job.ftype
    params.nthread = job.threads
    params.allow_requantize = job.requantize
    params.max_buf_size = _MAX_BUFFER
    if matrix is None:
        return params, []
    data = (api.llama_model_imatrix_data * (len(matrix.entries) + 1))()  # the last one stays zero
    for item, (name, values) in zip(data, matrix.entries.items(), strict=False):
        item.name = name.encode()
        item.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        item.size = len(values)
    notes = _overrides(api, matrix)
    params.imatrix, params.kv_overrides = data, notes
    return params, [data, notes, matrix]


def _overrides(api: Any, matrix: ImportanceMatrix) -> Any:
    """The metadata by which `llama-quantize`, too, says what it has used."""
    notes = (api.llama_model_kv_override * 4)()  # the last one stays zero
    numbers = {"entries_count": len(matrix.entries), "chunks_count": matrix.num_chunks}
    for note, (key, number) in zip(notes, numbers.items(), strict=False):
        note.tag, note.key = api.LLAMA_KV_OVERRIDE_TYPE_INT, f"quantize.imatrix.{key}".encode()
        note.value.val_i64 = number
    notes[2].tag, notes[2].key = api.LLAMA_KV_OVERRIDE_TYPE_STR, b"quantize.imatrix.file"
    notes[2].value.val_str = matrix.path.name.encode("utf-8", "replace")[:127]
    return notes


def _end_with_the_parent(target: Path) -> None:
    sys.stdin.buffer.read()
    with suppress(OSError):
        target.unlink()
    os._exit(1)


def _leave_no_core() -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
