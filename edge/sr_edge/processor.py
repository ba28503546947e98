"""What llama.cpp should know of the processor: how many cores are worth a thread, and what it cannot do."""

from __future__ import annotations

import os
from pathlib import Path


def has_amx(system_info: str) -> bool:
    """Whether llama.cpp multiplies by AMX tiles: on some servers, and no laptop.

    As GCC 12 compiles it, it loads the tile configuration before it is written: with a quantised model the
    process dies, or not, by what lay on the stack. So these kernels are not used.

    Args:
        system_info: what `llama_print_system_info` says.
    """
    return "AMX_INT8 = 1" in system_info


def default_threads() -> int:
    """Physical cores that this process may use, one left free where there are four or more."""
    cores = physical_cores()
    return cores - 1 if cores >= 4 else cores


def physical_cores() -> int:
    """Fast ones only, where the processor has two kinds; at least 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    fast = _cpu_list(_first_line("/sys/devices/cpu_core/cpus")) & allowed or allowed
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {_first_line(topology.format(cpu)) for cpu in fast} - {""}
    cores = len(siblings) or max(1, len(fast) // 2)
    quota, _, period = _first_line("/sys/fs/cgroup/cpu.max").partition(" ")  # of a container
    return min(cores, max(1, int(quota) // int(period))) if quota.isdigit() and period.isdigit() else cores


def _first_line(path: str) -> str:
    return _read(path).partition("\n")[0]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _cpu_list(text: str) -> set[int]:
    """`0-3,8` and the like."""
    ranges = [part.partition("-") for part in text.split(",") if part]
    return {cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)}
