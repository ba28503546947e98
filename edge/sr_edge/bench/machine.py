"""The machine that the figures belong to, as far as it says so itself and as far as speed depends on it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sr_edge.bench.fresh import fresh
from sr_edge.doctor.machine import cores, gpu, memory, versions
from sr_edge.errors import EdgeError
from sr_edge.processor import physical_cores

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Machine:
    """What it does not tell is empty or None."""

    processor: str
    physical_cores: int
    usable_cores: int
    memory: int | None
    """Bytes."""
    system: str
    packages: Mapping[str, str | None]
    """Versions, Python's among them."""
    llama: str
    """What llama.cpp was compiled for, as it says itself."""
    devices: tuple[str, ...]
    """GPUs that llama.cpp can use."""
    clock: str
    """The policy by which Linux sets the processor's clock."""
    quota: str
    """Of processor time, in a container."""
    load: float | None
    """Programs that wanted to run in the minute before."""
    waiting: Mapping[str, str]
    """The user's own choices how threads wait."""

    def lines(self) -> list[str]:
        size = "" if self.memory is None else f", {self.memory / 2**30:.0f} GiB"
        lines = [
            f"{self.processor or 'an unnamed processor'}: {self.physical_cores} cores, "
            f"{self.usable_cores} threads usable{size}; {self.system}",
            ", ".join(f"{name} {version or 'missing'}" for name, version in self.packages.items()),
        ]
        if self.devices:
            lines.append("GPU: " + ", ".join(self.devices))
        if self.llama:
            lines.append(f"llama.cpp: {self.llama}")
        limits = [f"clock: {self.clock}"] * bool(self.clock) + [f"quota: {self.quota}"] * bool(self.quota)
        limits += [f"load before: {self.load:.2f}"] if self.load is not None else []
        limits += [f"{name}={value}" for name, value in self.waiting.items()]
        if limits:
            lines.append(", ".join(limits))
        return lines


@dataclass(frozen=True, slots=True)
class Compiled:
    info: str


def describe(environ: Mapping[str, str]) -> Machine:
    """llama.cpp is asked in processes of their own: here it stays out."""
    usable = cores()
    offloading = gpu(environ)
    try:
        llama = fresh(partial(compiled), environ).info
    except EdgeError:
        llama = ""  # whatever is wrong with it, the first measurement says so
    return Machine(
        processor=processor_name(),
        physical_cores=physical_cores(),
        usable_cores=usable.usable,
        memory=memory().total,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages=versions(),
        llama=llama,
        devices=tuple(device.description or device.name for device in offloading.devices),
        clock=_first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        quota=_quota(_first_line("/sys/fs/cgroup/cpu.max")),
        load=usable.load,
        waiting={name: environ[name] for name in _WAITING if name in environ},
    )


def compiled() -> Compiled:
    from sr_edge.llama import library

    flags = (part.strip() for part in library().system_info.split("|"))
    return Compiled(", ".join(flag for flag in flags if flag and not flag.endswith("= 0")))


def processor_name(read: Callable[[str], str] | None = None) -> str:
    for line in (read or _read)("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Hardware"):
            return value.strip()
    return platform.processor()


def _quota(text: str) -> str:
    quota, _, period = text.partition(" ")
    return f"{int(quota) / int(period):g} cores" if quota.isdigit() and period.isdigit() else ""


def _first_line(path: str) -> str:
    return _read(path).partition("\n")[0]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
