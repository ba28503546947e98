"""An evaluation on paper: a table as Markdown, all figures as JSON, the plots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sr_edge.errors import UsageError
from sr_train.evaluate.figures import ArmFigures, Difference, Estimate, Figures
from sr_train.run import write_whole

VERSION = 1


def write_report(figures: Figures, folder: Path, name: str, *, title: str = "") -> list[Path]:
    """`name.json`, `name.md`, `name.png` and `name.svg` in the folder; their paths."""
    from sr_train.evaluate.plots import plot_pareto

    try:
        folder.mkdir(parents=True, exist_ok=True)
        plots = plot_pareto(figures, folder / name, title)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}") from None
    as_json, as_table = folder / f"{name}.json", folder / f"{name}.md"
    write_whole(as_json, json.dumps(to_dict(figures), indent=2, ensure_ascii=False) + "\n")
    write_whole(as_table, f"{to_markdown(figures, title)}\n![{title or name}]({name}.png)\n")
    return [as_json, as_table, *plots]


def to_dict(figures: Figures) -> dict[str, Any]:
    """As JSON holds it: `settings`, `arms`, `differences`; each estimate as value, low and high."""
    return {"v": VERSION, **asdict(figures)}


def to_markdown(figures: Figures, title: str = "") -> str:
    """The table, and what is needed to read it."""
    rows = [_row(arm) for arm in figures.arms]
    lines = [f"# {title}", ""] if title else []
    lines += _table(_HEADING, rows)
    if figures.differences:
        lines += ["", *_table(_GAPS, [_gap(difference) for difference in figures.differences])]
    lines += ["", _reading(figures), "", "```", *_said(figures.settings), "```"]
    return "\n".join(lines) + "\n"


_HEADING = (
    "arm", "pass@1 (95 %)", "large model's tokens", "of those read", "sent, new", "spans", "s modelled",
    "of it waiting", "s measured", "$ / 1000", "span ends",
)  # fmt: skip
_GAPS = ("split against", "pass@1 (95 %)", "share", "s modelled")


def _row(arm: ArmFigures) -> list[str]:
    failed = f", {arm.failed} failed" if arm.failed else ""
    ends = ", ".join(f"{end} {count}" for end, count in arm.ends.items())
    return [
        arm.arm + failed,
        _percent(arm.pass_at_1),
        _percent(arm.share),
        f"{100 * arm.input_share.value:.1f} %",
        f"{arm.sent_tokens:.0f}, {arm.fresh_tokens:.0f}",
        f"{arm.spans:.2f}",
        f"{arm.seconds.value:.2f}",
        f"{arm.offload_seconds:.2f}",
        f"{arm.measured_seconds:.2f}",
        f"{1000 * arm.dollars:.2f}",
        ends or "–",
    ]


def _gap(difference: Difference) -> list[str]:
    return [
        difference.other,
        _points(difference.pass_at_1),
        _points(difference.share),
        f"{difference.seconds.value:+.2f} ({difference.seconds.low:+.2f} to {difference.seconds.high:+.2f})",
    ]


def _reading(figures: Figures) -> str:
    plural = "s" if figures.settings.get("samples", 1) != 1 else ""
    n = figures.settings.get("problems", max((arm.problems for arm in figures.arms), default=0))
    samples = figures.settings.get("samples", 1)
    found = [
        f"{arm.arm} {arm.setting:.4g}"
        for arm in figures.arms
        if arm.setting is not None and arm.kind != "split"
    ]
    at = f" Settings that were found for the share of split: {', '.join(found)}." if found else ""
    return (
        f"{n} problems, {samples} answer{plural} to each. Intervals are bootstrapped over "
        "problems; differences are those on the same problems. Tokens are the small model's: shares of those "
        "written, of those read by either model, and sent in an answer (in all, and without what a prefix "
        f"cache spares).{at}"
    )


def _said(settings: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {each}" for name, each in value.items() if each is not None)
        lines.append(f"{key}: {value}")
    return lines


def _table(heading: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in ([*heading], rule, *rows)]


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} % ({100 * estimate.low:.1f} – {100 * estimate.high:.1f})"


def _points(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.1f} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f}) points"
