"""What was compared, what was found, and what it means: rows, and a verdict over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from sr_edge.errors import EdgeError

Judgement: TypeAlias = Literal["equal", "close", "differs", "not checked"]
"""close: not equal, and within what the file's type costs."""


class DifferentError(EdgeError):
    """The GGUF is not what the checkpoint is."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was compared."""

    what: str
    judgement: Judgement
    found: str
    limit: str = ""
    """What it had to be."""
    detail: str = ""
    """The first difference, or why it was not checked; a sentence or two."""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    gguf: Path
    checkpoint: Path
    adapter: Path | None
    type: str
    """Of the file's weights, as its metadata say."""
    rows: tuple[Row, ...]

    @property
    def judgement(self) -> Judgement:
        """The worst of the rows that were checked."""
        found = {row.judgement for row in self.rows}
        order: tuple[Judgement, ...] = ("differs", "close", "equal")
        return next((one for one in order if one in found), "not checked")

    @property
    def unchecked(self) -> tuple[str, ...]:
        return tuple(row.what for row in self.rows if row.judgement == "not checked")

    @property
    def exit_code(self) -> int:
        return DifferentError.exit_code if self.judgement == "differs" else 0

    @property
    def summary(self) -> str:
        against = f"{self.checkpoint} with {self.adapter}" if self.adapter else str(self.checkpoint)
        if self.judgement == "differs":
            wrong = _listed([row.what for row in self.rows if row.judgement == "differs"])
            return f"{self.gguf} differs from {against} in {wrong}"
        if self.judgement == "not checked":
            return f"{self.gguf}: nothing could be compared with {against}"
        holds = {"equal": "equals", "close": f"is as close as {self.type} can be to"}[self.judgement]
        so_far = f", as far as it was checked: {_listed(self.unchecked)} not" if self.unchecked else ""
        return f"{self.gguf} {holds} {against}{so_far}"

    def check(self) -> None:
        """Raises: DifferentError"""
        if self.judgement == "differs":
            raise DifferentError(
                f"{self.summary}: convert the checkpoint again, or name the one that it was made from"
            )

    def as_json(self) -> dict[str, Any]:
        return {
            "gguf": str(self.gguf),
            "checkpoint": str(self.checkpoint),
            "adapter": None if self.adapter is None else str(self.adapter),
            "type": self.type,
            "verdict": self.judgement,
            "not_checked": list(self.unchecked),
            "rows": [{**asdict(row), "figures": dict(row.figures)} for row in self.rows],
        }


HEADING = ("", "verdict", "found", "limit")


def render(verdict: Verdict) -> list[tuple[str, str, str, str]]:
    """The table under `HEADING`; what else is to be said are `remarks`."""
    return [(row.what, row.judgement, row.found, row.limit) for row in verdict.rows]


def remarks(verdict: Verdict) -> Iterator[str]:
    """What a table has no room for, a line each."""
    for row in verdict.rows:
        if row.detail:
            yield f"{row.what}: {row.detail}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
