"""What was measured, as data: rows, and the JSON and Markdown that are made of them.

A *row* answers one question: a figure with its unit and, where there is one, the goal that it has to reach.
The figure is a `Spread`: of ratios taken round by round where two sides are compared (`pairs.ratios`), of the
measurements themselves where there is one side. `sides` are what the figure was made from, in units of their
own, so that a reader can check it: 0.98 of how much?

A *subject* is a module of this package with one function

    def rows(setting: Setting) -> Iterator[Found]

that measures, and yields each `Row` as soon as it is known; a `Skipped` with the reason for one that cannot
be measured here; and a `Timeline` where there is an answer to draw. It raises `EdgeError` where nothing can
be measured at all. `commands.bench` has the list of subjects; whoever adds one adds a line there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

from sr_edge.bench.machine import Machine
from sr_edge.bench.pairs import Spread

SCHEMA: Final = 1
"""Of the JSON. A new field needs no new one; a changed meaning does."""

Writer = Literal["local", "remote"]


@dataclass(frozen=True, slots=True)
class Goal:
    relation: Literal["at least", "at most"]
    value: float

    def is_met(self, measured: float) -> bool:
        return measured >= self.value if self.relation == "at least" else measured <= self.value


@dataclass(frozen=True, slots=True)
class Side:
    """One of the things that were measured for a row."""

    name: str
    measured: Spread
    unit: str


@dataclass(frozen=True, slots=True)
class Row:
    """One question, answered."""

    subject: str
    name: str
    """What the figure is, such as `ours / llama-bench tg128`."""
    figure: Spread
    unit: str
    """`x` for a ratio, `%` for a share (0 to 1 in the data), else a unit: `ms`, `s`, `tok/s`, `MB`."""
    goal: Goal | None = None
    sides: tuple[Side, ...] = ()
    note: str = ""
    """What a reader must know to judge it; one sentence."""

    @property
    def is_met(self) -> bool | None:
        """None without a goal."""
        return None if self.goal is None else self.goal.is_met(self.figure.median)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that could not be measured here."""

    subject: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Point:
    """So much was written so many seconds after the question, the last of it by `writer`."""

    seconds: float
    tokens: float
    """With a fraction inside a span, whose tokens are known as a whole."""
    writer: Writer


@dataclass(frozen=True, slots=True)
class Timeline:
    """How one answer grew."""

    name: str
    """Who wrote it, as the plot's legend has it."""
    points: tuple[Point, ...]


Found: TypeAlias = Row | Skipped | Timeline


@dataclass(frozen=True, slots=True)
class Report:
    when: str
    """UTC, ISO 8601."""
    command: str
    sr_edge: str
    """Version."""
    machine: Machine
    model: str
    """File name and size."""
    threads: int
    pairs: int
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    timelines: tuple[Timeline, ...]


def as_json(report: Report) -> str:
    data: dict[str, Any] = {"schema": SCHEMA, **asdict(report)}
    for row, written in zip(report.rows, data["rows"], strict=True):
        written["is_met"] = row.is_met
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def as_markdown(report: Report) -> str:
    """A table of the rows, what could not be measured, and the machine."""
    lines = ["| what | measured | goal | made from |", "|---|---|---|---|"]
    for row in report.rows:
        cells = (
            f"{row.subject}: {row.name}",
            f"**{figure(row.figure.median, row.unit)}** ({within(row.figure, row.unit)})",
            goal(row),
            made_from(row),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    notes = [f"* {row.subject}, {row.name}: {row.note}" for row in report.rows if row.note]
    notes += [f"* not measured: {one.subject}, {one.name}: {one.reason}" for one in report.skipped]
    if notes:
        lines += ["", *notes]
    lines += ["", *machine_lines(report), "", f"`sr-edge {report.command}`"]
    return "\n".join(lines) + "\n"


def machine_lines(report: Report) -> list[str]:
    """The conditions, one sentence a line."""
    said = [f"{report.model}, {report.threads} threads, {report.pairs} rounds, {report.when}"]
    said += report.machine.lines()
    return [f"{line}." for line in said]


def figure(value: float, unit: str) -> str:
    """Three digits that count, and the unit."""
    if unit == "%":
        return f"{value:.1%}".replace("%", " %")
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f} {unit}"


def within(spread: Spread, unit: str) -> str:
    if spread.count == 1:
        return "once"
    return f"{figure(spread.low, unit)} to {figure(spread.high, unit)}, n = {spread.count}"


def goal(row: Row) -> str:
    if row.goal is None:
        return ""
    return f"{row.goal.relation} {figure(row.goal.value, row.unit)}{'' if row.is_met else ': missed'}"


def made_from(row: Row) -> str:
    return ", ".join(f"{side.name} {figure(side.measured.median, side.unit)}" for side in row.sides)


def sorted_out(found: Iterable[Found]) -> tuple[list[Row], list[Skipped], list[Timeline]]:
    rows: list[Row] = []
    skipped: list[Skipped] = []
    timelines: list[Timeline] = []
    for one in found:
        match one:
            case Row():
                rows.append(one)
            case Skipped():
                skipped.append(one)
            case Timeline():
                timelines.append(one)
    return rows, skipped, timelines


def failures(subject: str, names: Mapping[str, str]) -> Iterable[Skipped]:
    """Of the sides of a subject, with the reasons (`pairs.Rounds.failures`)."""
    return [Skipped(subject, name, reason) for name, reason in names.items()]
