"""Which line of a TOML file says what: tomllib tells what a file means, not where."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """A header, or a key with its value."""

    first: int
    """Line, from 1."""
    last: int
    paths: tuple[Path, ...]
    """What it names: one path, or for an inline table one for each value in it."""


def statements(text: str) -> list[Statement]:
    """Those of a valid TOML file, in order.

    A statement begins at a line's beginning, and is over at the first line's end at which it is TOML by
    itself: until then a bracket or a quote is open.
    """
    found = []
    lines = text.split("\n")
    header: Path = ()
    at = 0
    while at < len(lines):
        start = lines[at].strip()
        if not start or start.startswith("#"):
            at += 1
            continue
        end = at + 1
        table = _parsed("\n".join(lines[at:end]))
        while table is None and end < len(lines):
            end += 1
            table = _parsed("\n".join(lines[at:end]))
        if table is None:
            break  # not valid after all
        if start.startswith("["):
            header = _only_path(table)
            paths: tuple[Path, ...] = (header,)
        else:
            paths = tuple(header + path for path in _leaves(table))
        found.append(Statement(at + 1, end, paths))
        at = end
    return found


def line_numbers(text: str) -> dict[Path, int]:
    """The line at which each key and each table is first named."""
    numbers: dict[Path, int] = {}
    for statement in statements(text):
        for path in statement.paths:
            for length in range(1, len(path) + 1):
                numbers.setdefault(path[:length], statement.first)
    return numbers


def _parsed(text: str) -> dict[str, object] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _only_path(table: object) -> Path:
    path: list[str] = []
    while isinstance(table, dict) and table:
        name, table = next(iter(table.items()))
        path.append(name)
        if isinstance(table, list):  # [[name]]
            break
    return tuple(path)


def _leaves(table: dict[str, object], above: Path = ()) -> Iterator[Path]:
    for name, value in table.items():
        path = (*above, name)
        if isinstance(value, dict) and value:
            yield from _leaves(value, path)
        else:
            yield path
