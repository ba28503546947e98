"""What came of an annotation, in figures and plots: how much is marked, where, in how long spans."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

from sr_train.annotate.steps import Interval


@dataclass(frozen=True, slots=True)
class Marked:
    """One row's marks."""

    num_chars: int
    num_steps: int
    spans: tuple[Interval, ...]
    kinds: tuple[str, ...] = ()
    """Of the marked steps, where a judge gave them."""

    @property
    def share(self) -> float:
        """Of the characters."""
        return sum(end - start for start, end in self.spans) / self.num_chars if self.num_chars else 0.0


def figures(rows: Sequence[Marked]) -> dict[str, Any]:
    """For the card and statistics.json; lengths in characters."""
    lengths = [end - start for row in rows for start, end in row.spans]
    chars = sum(row.num_chars for row in rows)
    return {
        "rows": len(rows),
        "rows_with_spans": sum(bool(row.spans) for row in rows),
        "spans": len(lengths),
        "spans_per_row": len(lengths) / len(rows) if rows else 0.0,
        "steps": sum(row.num_steps for row in rows),
        "characters": chars,
        "share": sum(lengths) / chars if chars else 0.0,
        "share_per_row": spread([row.share for row in rows]),
        "span_length": spread([float(length) for length in lengths]),
        "position": spread(positions(rows)),
        "kinds": dict(Counter(kind for row in rows for kind in row.kinds).most_common()),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and quantiles; empty without values."""
    if not values:
        return {}
    tens = quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 9
    found = {"mean": mean(values), "median": median(values), "p10": tens[0], "p90": tens[8]}
    return found | {"min": min(values), "max": max(values)}


def positions(rows: Sequence[Marked]) -> list[float]:
    """Where in its trace each span's middle lies, from 0 to 1."""
    return [(start + end) / 2 / row.num_chars for row in rows for start, end in row.spans]


def write_statistics(rows: Sequence[Marked], counts: Mapping[str, int], folder: Path) -> list[Path]:
    """`statistics.json` and the plots.

    Args:
        counts: what else was counted on the way.
    """
    path = folder / "statistics.json"
    path.write_text(json.dumps({**figures(rows), **counts}, indent=2) + "\n", "utf-8")
    return [path, *_plots(rows, folder)]


def _plots(rows: Sequence[Marked], folder: Path) -> list[Path]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths = [end - start for row in rows for start, end in row.spans]
    plots = (
        ("share.png", [100 * row.share for row in rows], "marked part of a trace, % of characters", "traces"),
        ("lengths.png", lengths, "length of a span, characters", "spans"),
        ("positions.png", [100 * at for at in positions(rows)], "middle of a span, % of its trace", "spans"),
        ("spans.png", [len(row.spans) for row in rows], "spans in a trace", "traces"),
    )
    written = []
    for name, values, label, counted in plots:
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if name == "spans.png":
            axes.hist(values, bins=[n - 0.5 for n in range(max(map(int, values), default=0) + 2)])
        else:
            axes.hist(
                values,
                bins=40,
                range=(0, 100) if label.endswith(("trace", "characters")) and "%" in label else None,
            )
        axes.set_xlabel(label)
        axes.set_ylabel(counted)
        axes.spines[["top", "right"]].set_visible(False)
        path = folder / name
        figure.savefig(path, dpi=120, metadata={"Software": None})
        written.append(path)
    return written
