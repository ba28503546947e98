"""What llama.cpp should know of the processor: which cores are worth a thread, who else uses them, what it
cannot do.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path


def has_amx(system_info: str) -> bool:
    """Whether llama.cpp multiplies by AMX tiles: on some servers, and no laptop.

    As GCC 12 compiles it, it loads the tile configuration before it is written: with a quantised model the
    process dies, or not, by what lay on the stack. So these kernels are not used.

    Args:
        system_info: what `llama_print_system_info` says.
    """
    return "AMX_INT8 = 1" in system_info


def name() -> str:
    """What the processor is called."""
    lines = (line.partition(":") for line in _read("/proc/cpuinfo").splitlines())
    names = [value.strip() for key, _, value in lines if key.strip() in ("model name", "Hardware")]
    return names[0] if names else platform.processor() or platform.machine()


def default_threads() -> int:
    """Physical cores that this process may use, one left free where there are four or more."""
    cores = physical_cores()
    return cores - 1 if cores >= 4 else cores


def physical_cores() -> int:
    """Fast ones only, where the processor has two kinds; at least 1."""
    allowed = _allowed()
    fast = _cpu_list(_first_line("/sys/devices/cpu_core/cpus")) & allowed or allowed
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {_first_line(topology.format(cpu)) for cpu in fast} - {""}
    cores = len(siblings) or max(1, len(fast) // 2)
    quota, _, period = _first_line("/sys/fs/cgroup/cpu.max").partition(" ")  # of a container
    return min(cores, max(1, int(quota) // int(period))) if quota.isdigit() and period.isdigit() else cores


class OtherUse:
    """How many cores other programs use, of those that this process may use. Call it again and again."""

    def __init__(
        self,
        *,
        read: Callable[[str], str] | None = None,
        own: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read or _read
        self._own = own
        self._clock = clock
        self._last = self._reading()
        self._cores: float | None = None

    def __call__(self) -> float | None:
        """Since the last call, or over a quarter of a second; None where the system does not tell."""
        if self._last is None:
            return None
        if self._clock() - self._last[0] < _SHORTEST:
            return self._cores
        before, self._last = self._last, self._reading()
        if self._last is None:
            return None
        seconds, busy, own = (now - then for now, then in zip(self._last, before, strict=True))
        self._cores = max(0.0, busy - own) / seconds
        return self._cores

    def _reading(self) -> tuple[float, float, float] | None:
        """Seconds: of the clock, that the cores were in use, that this process used."""
        jiffies = _busy_jiffies(self._read("/proc/stat"), _allowed())
        return None if jiffies is None else (self._clock(), jiffies / _PER_SECOND, self._own())


_SHORTEST = 0.25  # seconds: the system counts in hundredths
_PER_SECOND = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def _busy_jiffies(text: str, cpus: set[int]) -> int | None:
    """Of /proc/stat: `cpu0 user nice system idle iowait irq softirq steal ...`, of these processors."""
    lines = [line.split() for line in text.splitlines() if line.startswith("cpu")]
    counts = [line[1:9] for line in lines if line[0][3:].isdigit() and int(line[0][3:]) in cpus]
    if not counts or not all(len(count) >= 5 and all(map(str.isdigit, count)) for count in counts):
        return None
    return sum(sum(map(int, count)) - int(count[3]) - int(count[4]) for count in counts)


def _allowed() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


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
