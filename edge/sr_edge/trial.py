"""Opening a model file that nobody has vouched for, where it can do no harm.

`gguf_header` refuses what it knows to be bad. What it does not know may still crash llama.cpp, hang, or ask
for all memory there is: so the file is first opened in a child that has little of everything, and computes
one token there. `python -P -m sr_edge.trial` is for `try_opening` alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, NoReturn

from sr_edge.errors import EdgeError, ModelError
from sr_edge.gguf_header import read_header

SECONDS: Final = 60.0
"""For a small file; a slow disk may take its time with a large one."""
_SLOWEST = 50e6  # bytes a second
_BASE_MEMORY = 3 << 30
"""Bytes of address space, used or not, for interpreter, libraries and the steps of one token."""
_FILES = 64
_CONTEXT = 64
_TICK = 0.05
_MAX_SAID = 1 << 16
_LAST_WORDS = 300

_KEPT = frozenset({
    "DYLD_FALLBACK_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH",
    "LLAMA_CPP_LIB_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONUTF8", "SYSTEMROOT",
})  # fmt: skip
"""Variables that the child gets: what it takes to find its libraries, and no keys of anybody's."""
_SET = {
    "CUDA_VISIBLE_DEVICES": "",  # a GPU's driver wants more address space than there is here
    "HIP_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class TrialEndedError(ModelError):
    """The trial came to no end here and now: nothing is known of the file."""


def try_opening(
    path: Path,
    *,
    memory: int | None = None,
    seconds: float | None = None,
    poll: Callable[[], None] = lambda: None,
) -> None:
    """Return if a child could open the file and compute a token with it.

    Its memory is not limited on macOS, and nothing but its time on Windows.

    Args:
        memory: bytes of address space; None for what a sound file of this size needs.
        seconds: None for `SECONDS`, and more for a large file.
        poll: called some times a second; what it raises ends the trial.
    Raises:
        TrialEndedError
        ModelError: the file is unusable, and why.
    """
    size = read_header(path).file_size
    memory = memory or 2 * size + _BASE_MEMORY  # it is mapped, and its weights are rearranged
    seconds = seconds or SECONDS + size / _SLOWEST
    child = subprocess.Popen(
        (sys.executable, "-P", "-m", "sr_edge.trial", os.fspath(path), str(memory), str(int(seconds) + 1)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_environment(os.environ),
        start_new_session=True,  # Ctrl-C is the parent's
    )
    assert child.stdout is not None
    said = bytearray()
    reader = threading.Thread(target=_listen, args=(child.stdout, said), daemon=True)
    reader.start()
    deadline = time.monotonic() + seconds
    try:
        while (code := child.poll()) is None and time.monotonic() < deadline:
            poll()
            time.sleep(_TICK)
    finally:
        child.kill()
        child.wait()
        reader.join()
        child.stdout.close()
    if code != 0:
        raise _refusal(path, code, said.decode("utf-8", "replace"), memory, seconds)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.upper() in _KEPT} | _SET


def _listen(stdout: IO[bytes], said: bytearray) -> None:
    while part := stdout.read1(_MAX_SAID):  # type: ignore[attr-defined]
        said += part[: _MAX_SAID - len(said)]


def _refusal(path: Path, code: int | None, said: str, memory: int, seconds: float) -> ModelError:
    *words, last = said.strip().splitlines() or [""]
    with suppress(ValueError):
        answer = json.loads(last)
        if isinstance(answer, dict) and isinstance(answer.get("error"), str):
            return ModelError(answer["error"])
        words.append(last)
    tail = " ".join(" ".join([*words, last]).split())[-_LAST_WORDS:]
    because = f": {tail}" if tail else ""
    if code is None or code == -getattr(signal, "SIGXCPU", 0):
        reason = f"it was not open after {seconds:.0f} s"
    elif "MemoryError" in said or "bad_alloc" in said:
        reason = f"it needs more than {memory / 1e9:.1f} GB of memory, which no sound file of its size does"
    elif code == -getattr(signal, "SIGKILL", 0):
        return TrialEndedError(
            f"{path}: the system ended llama.cpp while it opened it, probably for want of memory: close what "
            "else runs, then try again"
        )
    elif code < 0:
        reason = f"llama.cpp crashed with {_signal_name(-code)} when it opened it{because}"
    else:
        reason = f"it could not be opened{because}"
    return ModelError(f"{path}: {reason}: do not use this file; get another of the model")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- the child's side --------------------------------------------------------------------------------


def main(path: Path, memory: int, seconds: int) -> NoReturn:
    _limit(memory, seconds)
    try:
        _compute_a_token(path)
    except EdgeError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def _limit(memory: int, seconds: int) -> None:
    try:
        import resource
    except ImportError:
        return
    limits = {
        "RLIMIT_AS": memory,
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": seconds,
        "RLIMIT_FSIZE": 0,  # it writes nothing
        "RLIMIT_NOFILE": _FILES,
    }
    for name, most in limits.items():
        with suppress(AttributeError, ValueError, OSError):  # not here; or it was less already
            resource.setrlimit(getattr(resource, name), (most, most))


def _compute_a_token(path: Path) -> None:
    """Raises: EdgeError"""
    import numpy as np

    from sr_edge.llama import Llama

    header = read_header(path)
    trained = header.metadata[f"{header.architecture}.context_length"]
    assert isinstance(trained, int)
    llama = Llama(
        path,
        context_size=min(trained, _CONTEXT),
        threads=1,
        gpu_layers=0,
        kv_type="f16",
        tensors=header.tensors,
    )
    llama.decode([0], sequence=0, position=0, outputs=[0])
    if not np.isfinite(llama.logits()).all():
        raise ModelError(
            f"{path}: what it computes are no numbers: the file is damaged, or was converted wrongly; get "
            "another of the model"
        )
    llama.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
