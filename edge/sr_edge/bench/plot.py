"""Who wrote which tokens when, as a picture: PNG for documents, SVG for the rest.

A thin line is the small model's, a thick one the large one's, and a dotted one nobody's (reading, waiting,
probing), so that it can be read without colour. The same timelines give the same bytes of SVG.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from sr_edge.bench.report import Point, Timeline, Writer
from sr_edge.errors import EdgeError, UsageError

NAME: Final = "tokens-over-time"
_STYLE = {
    "svg.hashsalt": "sr-edge",  # else its ids are drawn at random
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 9.0,
}
_COLOURS = ("#0f766e", "#b45309", "#1d4ed8", "#9d174d")
_GREY = "#6b7280"
_WIDTHS: dict[Writer, float] = {"local": 1.2, "remote": 4.0}
_WRITERS: dict[Writer, str] = {"local": "the small model", "remote": "the large model"}


def check_plotting(folder: Path) -> None:
    """Before anything is measured for it.

    Raises:
        UsageError: matplotlib is missing, or the folder cannot be made.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UsageError('--plot needs matplotlib: `pip install "sr-edge[bench]"`') from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--plot {folder}: {error.strerror}") from None


def plot(timelines: Sequence[Timeline], folder: Path, title: str = "") -> tuple[Path, Path]:
    """All of them on the same axes.

    Raises:
        EdgeError: the files cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    png, svg = folder / f"{NAME}.png", folder / f"{NAME}.svg"
    with rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(8.0, 4.2), layout="constrained")
        axes = figure.subplots()
        for n, timeline in enumerate(timelines):
            colour = _COLOURS[n % len(_COLOURS)]
            for writer, stretch in stretches(timeline.points):
                axes.plot(
                    [point.seconds for point in stretch],
                    [point.tokens for point in stretch],
                    color=colour,
                    linewidth=_WIDTHS[writer or "local"],
                    linestyle="-" if writer else ":",
                    solid_capstyle="butt",
                )
        axes.set_xlabel("seconds after the question")
        axes.set_ylabel("tokens written")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        keys = [
            Line2D([], [], color=_COLOURS[n % len(_COLOURS)], linewidth=2.0) for n in range(len(timelines))
        ]
        keys += [Line2D([], [], color=_GREY, linewidth=width) for width in _WIDTHS.values()]
        keys.append(Line2D([], [], color=_GREY, linewidth=_WIDTHS["local"], linestyle=":"))
        names = [*(one.name for one in timelines), *_WRITERS.values(), "nobody"]
        axes.legend(keys, names, frameon=False, fontsize=8)
        if title:
            axes.set_title(title, fontsize=10)
        try:
            figure.savefig(png, dpi=150, metadata={"Software": None})
            figure.savefig(svg, metadata={"Date": None, "Creator": "sr-edge"})
        except OSError as error:
            raise EdgeError(f"{folder}: {error.strerror}: the plot is not written") from None
    return png, svg


def stretches(points: Sequence[Point]) -> Iterator[tuple[Writer | None, list[Point]]]:
    """Cut where the pen changes hands or rests; each stretch begins where the one before it ends."""
    writer: Writer | None = None
    stretch: list[Point] = []
    for before, point in pairwise(points):
        now = point.writer if point.tokens > before.tokens else None
        if not stretch or now != writer:
            if stretch:
                yield writer, stretch
            writer, stretch = now, [before]
        stretch.append(point)
    if stretch:
        yield writer, stretch
