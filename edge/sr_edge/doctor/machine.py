"""What the computer says of itself: processors, memory, disk, and the devices that llama.cpp can use.

What a system does not tell is None, never a guess.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

_CHILD_SECONDS = 60.0
_PACKAGES = ("llama-cpp-python", "numpy", "httpx", "textual")


@dataclass(frozen=True, slots=True)
class Cores:
    usable: int
    """Processors that this process may use, hyper-threads counted."""
    load: float | None
    """Programs that wanted to run, on average over the last minute."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes."""

    total: int | None
    available: int | None


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    description: str
    total: int
    """Bytes of its memory."""
    free: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """What llama.cpp, as it is installed here, can use beside the processor."""

    offloads: bool
    devices: tuple[Device, ...]
    problem: str | None = None
    """Why it is not known."""


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that much depends on; None: it is not installed."""
    found: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def wanted_versions() -> dict[str, tuple[str, str]]:
    """What our own package says that it needs, where that is a range; nothing if it is not installed."""
    try:
        needs = requires("sr-edge") or []
    except PackageNotFoundError:
        return {}
    ranges = (re.match(r"([\w-]+)\s*(?=.*>=([\d.]+))(?=.*<([\d.]+))[^;]*$", need) for need in needs)
    return {found[1]: (found[2], found[3]) for found in ranges if found and found[1] in _PACKAGES}


def cores() -> Cores:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        load: float | None = os.getloadavg()[0]
    except (OSError, AttributeError):
        load = None
    return Cores(usable, load)


def memory(read: Callable[[str], str] | None = None) -> Memory:
    """The machine's, or the container's where that is less."""
    read = read or _read
    total = available = None
    for line in read("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name in ("MemTotal", "MemAvailable") and value.split()[:1]:
            bytes_ = int(value.split()[0]) * 1024
            total, available = (bytes_, available) if name == "MemTotal" else (total, bytes_)
    if total is None:
        total = _physical()
    limit, used = read("/sys/fs/cgroup/memory.max").strip(), read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdecimal() and used.isdecimal() and (total is None or int(limit) < total):
        left = max(0, int(limit) - int(used))
        return Memory(int(limit), left if available is None else min(available, left))
    return Memory(total, available)


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def free_disk(folder: Path) -> int | None:
    """Bytes free where `folder` is, or would be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


# In a child: whatever a driver does when it is asked, it does not do here, where llama.cpp stays out.
_ASK = """
import ctypes, json, os, sys
kept = os.dup(1)
os.dup2(2, 1)  # drivers talk
import llama_cpp.llama_cpp as api
api.llama_backend_init()
devices = []
from llama_cpp import _ggml
library = next((found for found in vars(_ggml).values() if isinstance(found, ctypes.CDLL)), None)
if hasattr(library, "ggml_backend_dev_count"):
    def call(name, result, *arguments):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = [type(argument) for argument in arguments]
        return function(*arguments)
    for n in range(call("ggml_backend_dev_count", ctypes.c_size_t)):
        device = ctypes.c_void_p(call("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t(n)))
        if call("ggml_backend_dev_type", ctypes.c_int, device) not in (1, 2):  # GPU, integrated GPU
            continue
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        call("ggml_backend_dev_memory", None, device, ctypes.pointer(free), ctypes.pointer(total))
        devices.append([
            call("ggml_backend_dev_name", ctypes.c_char_p, device).decode("utf-8", "replace"),
            call("ggml_backend_dev_description", ctypes.c_char_p, device).decode("utf-8", "replace"),
            total.value,
            free.value,
        ])
answer = json.dumps({"offloads": bool(api.llama_supports_gpu_offload()), "devices": devices})
os.write(kept, b"\\n" + answer.encode())
"""


def gpu(environ: Mapping[str, str] = os.environ, *, ask: str = _ASK) -> Gpu:
    """As llama.cpp says it."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", ask],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CHILD_SECONDS,
            env={**environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Gpu(False, (), f"llama.cpp could not be asked: {type(error).__name__}")
    try:
        said = json.loads(done.stdout.splitlines()[-1])
        return Gpu(said["offloads"], tuple(Device(*device) for device in said["devices"]))
    except (ValueError, IndexError, KeyError, TypeError):
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return Gpu(False, (), lines[-1] if lines else f"llama.cpp ended with code {done.returncode}")


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
