"""`sr-edge ask` in this process, with a meter at llama.cpp's door.

Imports little, and nothing that `ask` has to import: that is part of what is measured.
"""

from __future__ import annotations

import resource
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from sr_edge.errors import EdgeError

_BINDINGS = "llama_cpp.llama_cpp"
_LOADING = ("llama_model_load_from_file", "llama_init_from_model")
_DECODE = "llama_decode"


@dataclass(frozen=True, slots=True)
class Asked:
    to_first: float
    """Seconds of processor time, of all threads, from the start of the process to the first decode."""
    loading: float
    """The part of it that llama.cpp took to load model and context."""
    peak: int
    """Bytes of memory that the process had at once."""


def asked(arguments: tuple[str, ...]) -> Asked:
    """Run `sr-edge ask` in this process, which is good for nothing afterwards.

    Raises:
        EdgeError: it did not come to decode anything, or failed.
    """
    meter = _Meter()
    sys.meta_path.insert(0, meter)
    sys.argv = ["sr-edge", "ask", *arguments]
    code: object = 0
    try:
        runpy.run_module("sr_edge", run_name="__main__")
    except SystemExit as left:
        code = left.code
    if code or meter.first is None:
        raise EdgeError(
            f"`sr-edge ask` left with code {code}, after {'some' if meter.first else 'no'} decoding"
        )
    return Asked(*meter.first, most_memory())


class _Meter:
    """Finds llama.cpp's bindings like any other module, and puts itself before three of their functions."""

    def __init__(self) -> None:
        self.first: tuple[float, float] | None = None
        """Processor time at the first decode, and the part of it that loading took."""
        self._loading = 0.0

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _BINDINGS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_attach(module: ModuleType) -> None:
                run(module)
                self._attach(module)

            spec.loader.exec_module = run_and_attach  # type: ignore[method-assign]
        return spec

    def _attach(self, api: Any) -> None:
        for name in _LOADING:
            setattr(api, name, self._loads(getattr(api, name)))
        decode = getattr(api, _DECODE)

        def decodes(*given: Any) -> Any:
            if self.first is None:
                self.first = time.process_time(), self._loading
            return decode(*given)

        setattr(api, _DECODE, decodes)

    def _loads(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def loads(*given: Any) -> Any:
            began = time.thread_time()  # what other threads do meanwhile is no loading
            result = function(*given)
            self._loading += time.thread_time() - began
            return result

        return loads


def most_memory() -> int:
    """Bytes that this process had at once since it began."""
    try:  # what getrusage says may be of the process that started this one
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
