"""A function called in a process of its own: nothing that was measured before is warm there, or in the way.

`python -P -m sr_edge.bench.fresh` is for `fresh` alone.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from sr_edge.errors import EdgeError

T = TypeVar("T")

_LAST_WORDS = 300


def fresh(call: partial[T], environ: Mapping[str, str]) -> T:
    """Call it there.

    Args:
        call: a function of a module, that returns a flat dataclass, with arguments that JSON has a form for;
            paths too.
        environ: as our own was before llama.cpp was loaded here, which changes it.
    Raises:
        EdgeError: what the function raised, or that the process died.
    """
    with tempfile.TemporaryDirectory(prefix="sr-edge-bench-") as folder:
        result = Path(folder, "result")
        bound = inspect.signature(call.func).bind(*call.args, **call.keywords)
        done = subprocess.run(
            [sys.executable, "-P", "-m", "sr_edge.bench.fresh", _name_of(call.func), str(result)],
            input=json.dumps(bound.arguments, default=str).encode(),
            stdout=subprocess.DEVNULL,  # whatever a peer prints is no result
            stderr=subprocess.PIPE,
            env={**environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        try:
            said: dict[str, Any] = json.loads(result.read_text("utf-8"))
        except (OSError, ValueError):
            raise EdgeError(_death(call.func.__name__, done)) from None
    if "error" in said:
        raise EdgeError(said["error"] + _last_words(done))
    kind: Callable[..., T] = get_type_hints(call.func)["return"]
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in said["result"].items()})


def _name_of(function: Callable[..., object]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _death(name: str, done: subprocess.CompletedProcess[bytes]) -> str:
    how = f"ended with code {done.returncode}"
    if done.returncode < 0:
        how = f"was ended by {signal.Signals(-done.returncode).name}"
    return f"the process that measured {name} {how}{_last_words(done)}"


def _last_words(done: subprocess.CompletedProcess[bytes]) -> str:
    """What it said last, if it said anything."""
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return f": {lines[-1][:_LAST_WORDS]}" if lines else ""


def main(function: str, result: str) -> None:
    module, _, name = function.partition(":")
    called: Callable[..., Any] = getattr(import_module(module), name)
    hints = get_type_hints(called)
    arguments = {key: _as(value, hints[key]) for key, value in json.load(sys.stdin).items()}
    try:
        said: dict[str, Any] = {"result": asdict(called(**arguments))}
    except EdgeError as error:
        said = {"error": str(error)}
    Path(result).write_text(json.dumps(said), "utf-8")


def _as(value: Any, hint: object) -> Any:
    if value is not None and hint in (Path, Path | None):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    main(*sys.argv[1:])
