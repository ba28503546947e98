"""What `remote`, `keys` and `config` share: their settings, plain tables, JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from sr_edge.commands.output import width_of
from sr_edge.config import Config, load_config
from sr_edge.report import table
from sr_edge.terminal import can_show, safe, safe_json, safe_line

DASH = "-"


def settings(profile: str | None = None) -> Config:
    """The user's; a file that is named and not there yet is an empty one: these commands make it."""
    return load_config(environ=os.environ, profile=profile, may_be_missing=True)


def offline_origin(config: Config) -> str | None:
    """Who says that no socket may be opened; None if nobody does."""
    return config.origin("offline") if config.offline else None


def print_table(heading: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """An empty cell gets a dash, but in a column without a heading.

    Args:
        right: columns of figures.
    """
    left = [column for column in range(len(heading)) if column not in right]
    ellipsis = "…" if can_show("…", sys.stdout.encoding) else "..."
    cells = [
        [safe_line(cell) or (DASH if named else "") for named, cell in zip(heading, row, strict=True)]
        for row in rows
    ]
    for line in table(heading, cells, left=left, width=width_of(sys.stdout), ellipsis=ellipsis):
        print(line)


def print_json(value: object) -> None:
    print(safe_json(json.dumps(value, ensure_ascii=False, indent=2), sys.stdout.encoding))


def say(line: str, *, keeps_spaces: bool = False) -> None:
    """A line of the result; `note` is for what is none."""
    print(safe(line).replace("\n", " ") if keeps_spaces else safe_line(line))
