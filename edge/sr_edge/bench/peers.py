"""Others that decode the same file: llama.cpp's own benchmark, and llama-cpp-python's two loops.

They run as their users run them, with the same threads. Only where repacked weights kill llama.cpp (see
`processor.has_amx`) they go without.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sr_edge.bench.writing import PROBLEM
from sr_edge.errors import EdgeError
from sr_edge.processor import has_amx

Loop = Literal["create_completion", "generate"]


@dataclass(frozen=True, slots=True)
class Decoded:
    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def llama_bench(program: Path, model: Path, threads: int, tokens: int, environ: Mapping[str, str]) -> Decoded:
    """Its test `tg`: decoding from an empty context, without sampling.

    Raises:
        EdgeError: it failed, or says something else than it used to.
    """
    command = [str(program), "-m", str(model), "-t", str(threads), "-p", "0", "-n", str(tokens)]
    command += ["-r", "1", "-o", "json", *(["--repack", "0"] if _has_tiles() else [])]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env={**environ})
    except OSError as error:
        raise EdgeError(f"{program}: {error.strerror}") from None
    if done.returncode:
        how = f"ended with code {done.returncode}"
        if done.returncode < 0:
            how = f"was ended by {signal.Signals(-done.returncode).name}"
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise EdgeError(f"{program} {how}{': ' + lines[-1][:200] if lines else ''}")
    try:
        (said,) = json.loads(done.stdout)
        seconds = float(said["avg_ns"]) / 1e9
        if not seconds > 0:
            raise ValueError("it took no time")
        return Decoded(tokens=int(said["n_gen"]), seconds=seconds)
    except (ValueError, KeyError, TypeError):
        raise EdgeError(f"{program}: its JSON is not understood: take that of a recent llama.cpp") from None


def llama_cpp_python(model: Path, threads: int, tokens: int, loop: Loop) -> Decoded:
    """One answer by the class `Llama`, sampled as ours is. The first token, with the prompt, is not counted.

    Raises:
        EdgeError: the file cannot be loaded.
    """
    import llama_cpp
    from llama_cpp import llama_cpp as api

    default = api.llama_model_default_params
    repacks = not has_amx(api.llama_print_system_info().decode("utf-8", "replace"))

    def params() -> Any:
        chosen = default()
        chosen.use_extra_bufts = repacks
        return chosen

    api.llama_model_default_params = params
    try:
        llama = llama_cpp.Llama(
            str(model), n_ctx=tokens + 512, n_threads=threads, n_gpu_layers=-1, seed=0, verbose=False
        )
    except (ValueError, RuntimeError) as error:
        raise EdgeError(f"llama-cpp-python cannot load {model}: {error}") from None
    finally:
        api.llama_model_default_params = default
    try:
        prompt: list[int] = llama.tokenize(PROBLEM.encode(), add_bos=False)
        return _timed(llama, prompt, tokens, loop)
    finally:
        llama.close()


def _timed(llama: Any, prompt: list[int], tokens: int, loop: Loop) -> Decoded:
    written, seconds = 0, 0.0
    while written < tokens:
        first: tuple[float, int] | None = None
        llama.reset()
        for _ in _steps(llama, prompt, tokens - written + 1, loop):
            now = time.perf_counter(), int(llama.n_tokens)
            first = first or now
            if now[1] - first[1] >= tokens - written:
                break
        if first is None or now[1] == first[1]:
            break  # it ends its answers at once, greedy or not: the seed goes on, but this is no model
        written, seconds = written + now[1] - first[1], seconds + now[0] - first[0]
    if not written:
        raise EdgeError("it ends its answers at once")
    return Decoded(written, seconds)


def _steps(llama: Any, prompt: list[int], tokens: int, loop: Loop) -> Iterator[object]:
    if loop == "generate":
        # It goes on after an end; nobody asks.
        return iter(llama.generate(prompt, temp=0.6, top_k=40, top_p=0.95, min_p=0.0))
    return iter(
        llama.create_completion(
            prompt, max_tokens=tokens, temperature=0.6, top_k=40, top_p=0.95, min_p=0.0, stream=True
        )
    )


def _has_tiles() -> bool:
    """Of the processor: how somebody else's llama.cpp was compiled is not known before it runs."""
    try:
        return "amx_tile" in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False
