"""Accuracy against what it costs, as a picture: PNG for documents, SVG for the rest.

Each arm has a colour and a shape of its own in every plot, so that plots can be compared. The same figures
give the same bytes of SVG.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sr_train.evaluate.figures import ArmFigures, Estimate, Figures, pareto

STYLE = {
    "svg.hashsalt": "sr-edge",  # else its ids are drawn at random
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 9.0,
}

_LOOKS = {
    "small": ("#6b7280", "o"),
    "big": ("#111827", "s"),
    "split": ("#0f766e", "D"),
    "random": ("#b45309", "v"),
    "periodic": ("#a16207", "^"),
    "entropy": ("#7c3aed", "<"),
    "token-entropy": ("#9d174d", ">"),
    "cascade": ("#1d4ed8", "P"),
}
"""Of each kind of arm: colour and shape."""


def plot_pareto(figures: Figures, path: Path, title: str = "") -> tuple[Path, Path]:
    """Accuracy against the large model's share of the tokens, and against seconds, side by side.

    Args:
        path: without an ending; `.png` and `.svg` are written.
    """
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(10.4, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _draw(left, figures.arms, lambda arm: _percent(arm.share))
        _draw(right, figures.arms, lambda arm: arm.seconds)
        left.set_xlabel("tokens written by the large model, %")
        right.set_xlabel("seconds an answer, by the latency model")
        left.set_ylabel("right answers (pass@1), %")
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
        if title:
            figure.suptitle(title, fontsize=10)
        png, svg = path.with_suffix(".png"), path.with_suffix(".svg")
        figure.savefig(png, dpi=150, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None, "Creator": "sr-edge"})
    return png, svg


def _draw(axes: Axes, arms: Sequence[ArmFigures], cost: Callable[[ArmFigures], Estimate]) -> None:
    """A point an arm with its interval, and two lines: through `split`'s points, and from small to big."""
    points = [(cost(arm).value, 100 * arm.pass_at_1.value) for arm in arms]
    best = {points[n] for n in pareto(points)}
    for arm, point in zip(arms, points, strict=True):
        x, y = cost(arm), _percent(arm.pass_at_1)
        colour, shape = _LOOKS[arm.kind]
        axes.errorbar(
            x.value,
            y.value,
            xerr=[[x.value - x.low], [x.high - x.value]],
            yerr=[[y.value - y.low], [y.high - y.value]],
            fmt=shape,
            color=colour,
            markerfacecolor=colour if point in best else "white",
            markersize=6,
            elinewidth=0.8,
            label=arm.arm,
        )
    ends = [point for arm, point in zip(arms, points, strict=True) if arm.kind in ("small", "big")]
    if len(ends) == 2:
        axes.plot(*zip(*ends, strict=True), linestyle=":", color="#9ca3af", linewidth=1, zorder=0)
    curve = sorted(point for arm, point in zip(arms, points, strict=True) if arm.kind == "split")
    if len(curve) > 1:
        axes.plot(*zip(*curve, strict=True), color=_LOOKS["split"][0], linewidth=1, zorder=0)
    axes.grid(visible=True, color="#e5e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_ylim(-3, 103)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))


def _percent(estimate: Estimate) -> Estimate:
    return Estimate(100 * estimate.value, 100 * estimate.low, 100 * estimate.high)
