"""The checks: each judges what it is given, and says what to do where something is not as it should be."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sr_edge.budget import Budget
from sr_edge.config import RemoteConfig
from sr_edge.doctor.machine import Cores, Gpu, Memory
from sr_edge.keys import KnownKey
from sr_edge.shelf import Facts, amount

State = Literal["ok", "warn", "fail"]

_EARLIEST, _LATEST = 2025, 2100  # years in which this program can run
_MIN_COLUMNS, _MIN_ROWS = 60, 20
_MIN_DISK = 200 << 20
_LARGE_HISTORY = 2 << 30
_BUSY = 1.5


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    state: State
    says: str
    do: str = ""
    """What mends it: a command, or a plain step. Not empty unless all is well."""


def check_versions(
    ours: str, found: Mapping[str, str | None], wanted: Mapping[str, tuple[str, str]]
) -> Check:
    """Args:
    wanted: for some packages the version that it must have at least, and the one that is too new.
    """
    says = ", ".join(
        [f"sr-edge {ours}", *(f"{name} {version}" for name, version in found.items() if version)]
    )
    missing = [name for name, version in found.items() if version is None]
    wrong = [
        f"{name}>={low},<{high}"
        for name, (low, high) in wanted.items()
        if (version := found.get(name)) and not _parts(low) <= _parts(version) < _parts(high)
    ]
    if missing or wrong:
        named = [f"{name} is not installed" for name in missing] + [f"needed is {name}" for name in wrong]
        packages = " ".join(f"'{name}'" for name in missing + wrong)
        return Check("versions", "fail", f"{says}; {', '.join(named)}", f"pip install {packages}")
    return Check("versions", "ok", says)


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def check_settings(path: str, problem: str | None) -> Check:
    if problem is not None:
        return Check(
            "settings",
            "fail",
            problem,
            "mend that line: sr-edge config edit; the other checks used the defaults",
        )
    return Check("settings", "ok", path)


def check_cores(cores: Cores) -> Check:
    says = f"{cores.usable} processor{'' if cores.usable == 1 else 's'} to use"
    if cores.load is not None:
        says += f", load {cores.load:.1f}"
    if cores.usable == 1:
        return Check(
            "cores", "warn", says, "give this machine or container a second one: one does not do two things"
        )
    if cores.load is not None and cores.load > _BUSY * cores.usable:
        return Check(
            "cores",
            "warn",
            f"{says}: others keep them busy",
            "end what computes beside it: decoding waits for it",
        )
    return Check("cores", "ok", says)


def check_memory(memory: Memory, model: Facts | None) -> Check:
    total = "unknown" if memory.total is None else amount(memory.total)
    says = f"{total} in all" + ("" if memory.available is None else f", {amount(memory.available)} free")
    if model is None:
        return Check("memory", "ok", says)
    says += f"; the model needs about {amount(model.memory)}"
    room = memory.available if memory.available is not None else memory.total
    smaller = "choose a smaller model or quantisation: sr-edge models list"
    if memory.total is not None and model.memory > memory.total:
        return Check("memory", "fail", says, smaller)
    if room is not None and model.memory > room:
        return Check("memory", "warn", says, f"close other programs, or {smaller}")
    return Check("memory", "ok", says)


def check_gpu(gpu: Gpu) -> Check:
    if gpu.problem is not None:
        return Check(
            "gpu",
            "fail",
            f"llama.cpp does not run: {gpu.problem}",
            "pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python",
        )
    if gpu.devices:
        names = (
            f"{device.description or device.name} ({amount(device.total)}, {amount(device.free)} free)"
            for device in gpu.devices
        )
        return Check("gpu", "ok", ", ".join(names))
    if gpu.offloads:
        return Check(
            "gpu",
            "warn",
            "llama.cpp was built for one, and finds none",
            "look at the driver; the processor does",
        )
    return Check("gpu", "ok", "none that llama.cpp can use: the processor does")


def check_model(path: str, facts: Facts | None, problem: str | None, *, is_built_in: bool) -> Check:
    """Args:
    facts: None with a `problem`.
    """
    if facts is None:
        return Check(
            "model",
            "fail",
            problem or "not readable",
            "choose another: sr-edge models list, then sr-edge models default REF",
        )
    named = "the built-in pair" if is_built_in else f"{path}: {facts.architecture}, {facts.quantization}"
    says = f"{named}, {amount(facts.file_size)}, context {facts.context:,}"
    if facts.marker_problem is not None:
        return Check("model", "fail", f"{says}; {facts.marker_problem}", "get or convert the file again")
    if facts.markers is None:
        return Check(
            "model",
            "warn",
            f"{says}; it has no markers, so it never asks for help",
            "choose one that was trained with markers, or let a remote answer: sr-edge ask --policy remote",
        )
    if is_built_in:
        says += "; it does only word problems of its own kind"
    return Check("model", "ok", says)


def check_remote(
    remote: RemoteConfig | None,
    key: KnownKey | None,
    *,
    offline: str | None,
    has_own_large_model: bool,
    budget: Budget | None = None,
    answer: str | None = None,
    failure: str | None = None,
) -> Check:
    """Args:
    remote: the default one.
    offline: who says that no socket may be opened, if anybody.
    has_own_large_model: whether the small one brings a large one along.
    answer: what it said, if it was asked.
    failure: why it did not.
    """
    if remote is None:
        if has_own_large_model:
            return Check("remote", "ok", "none is set up; the built-in pair has its own large model")
        return Check(
            "remote", "warn", "none is set up: the small model writes alone", "sr-edge remote add NAME URL"
        )
    name = remote.name
    says = f"{name}, {remote.url}"
    if key is not None and key.problem:
        return Check("remote", "fail", f"{says}; its key: {key.problem}", f"sr-edge keys set {name}")
    says += "; no key, none is sent" if key is None or key.place is None else f"; its key is in {_place(key)}"
    if failure is not None:
        return Check("remote", "fail", failure, f"sr-edge remote test {name} says more")
    if answer is not None:
        says += f"; it answers: {answer}"
    if offline is not None:
        return Check(
            "remote",
            "warn",
            f"{says}; offline ({offline}), so it is not asked",
            "sr-edge config set offline false",
        )
    limits = budget is not None and (budget.usd_per_answer is not None or budget.usd_per_day is not None)
    if limits and remote.price is None:
        return Check(
            "remote",
            "warn",
            f"{says}; there is a budget in dollars, and its price is not known",
            f"sr-edge remote price {name} --input X --output Y",
        )
    if answer is None:
        says += "; not asked now, --online does"
    return Check("remote", "ok", says)


def _place(key: KnownKey) -> str:
    match key.place:
        case "api_key_cmd":
            return f"the output of {key.detail}"
        case "api_key_env":
            return f"the variable {key.detail}"
        case "keyring":
            return "the system's key store"
        case _:
            return "the file of keys"


def check_clock(year: int, now: str) -> Check:
    if not _EARLIEST <= year < _LATEST:
        return Check(
            "clock", "fail", f"it says {now}: certificates look invalid then", "set the date of this machine"
        )
    return Check("clock", "ok", now)


def check_terminal(
    *,
    is_terminal: bool,
    columns: int,
    rows: int,
    encoding: str,
    shows_marks: bool,
    environ: Mapping[str, str],
) -> Check:
    """Args:
    shows_marks: whether the encoding has the characters that spans are marked with.
    """
    if not is_terminal:
        return Check(
            "terminal", "warn", "this is none: input or output is a pipe or a file",
            "nothing, for scripts; `sr-edge chat` is to be started in a terminal",
        )  # fmt: skip
    colors = _colors(environ)
    says = f"{columns} x {rows}, {colors}, {encoding}"
    if environ.get("TERM", "") in ("", "dumb"):
        return Check(
            "terminal",
            "warn",
            f"{says}; TERM says that it can do nothing",
            "set TERM, such as xterm-256color",
        )
    if not shows_marks:
        return Check(
            "terminal",
            "warn",
            f"{says}; it cannot show the marks of spans",
            "use UTF-8: export LC_ALL=C.UTF-8",
        )
    if columns < _MIN_COLUMNS or rows < _MIN_ROWS:
        return Check("terminal", "warn", says, f"make it {_MIN_COLUMNS} x {_MIN_ROWS} or larger")
    return Check("terminal", "ok", says)


def _colors(environ: Mapping[str, str]) -> str:
    if environ.get("NO_COLOR"):
        return "no colours (NO_COLOR)"
    if environ.get("COLORTERM", "") in ("truecolor", "24bit"):
        return "16 million colours"
    return "256 colours" if "256" in environ.get("TERM", "") else "16 colours"


def check_history(path: str, size: int | None, problem: str | None) -> Check:
    """Args:
    size: bytes of the file; None where there is none yet.
    """
    if problem is not None:
        return Check(
            "history", "fail", f"{path}: {problem}", "sr-edge logs list, which sets it aside if need be"
        )
    if size is None:
        return Check("history", "ok", "none is kept yet")
    says = f"{path}, {amount(size)}"
    if size > _LARGE_HISTORY:
        return Check("history", "warn", says, "remove conversations: sr-edge logs list, sr-edge logs rm ID")
    return Check("history", "ok", says)


def check_disk(folder: str, free: int | None, problem: str | None) -> Check:
    """Args:
    problem: why our files cannot be written there.
    """
    if problem is not None:
        return Check(
            "disk", "fail", f"{folder}: {problem}", "let it be yours to write, or put our files elsewhere: "
            "SR_EDGE_HOME=FOLDER",
        )  # fmt: skip
    if free is None:
        return Check("disk", "ok", folder)
    says = f"{folder}, {amount(free)} free"
    if free < _MIN_DISK:
        return Check("disk", "warn", says, "free some room: what is written may get lost")
    return Check("disk", "ok", says)


def is_well(checks: Sequence[Check]) -> bool:
    """Whether none failed."""
    return all(check.state != "fail" for check in checks)
