"""The study on paper: means and spread over the seeds, each model beside the one it began with, a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sr_edge.errors import UsageError
from sr_train.demo.study.plan import LEARNINGS, TEACHERS, Task
from sr_train.demo.study.work import FIGURES
from sr_train.evaluate.plots import STYLE
from sr_train.run import write_whole

Point = tuple[float, float]
"""Share of the large model's tokens, share of right answers; both in 0..1."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model of one seed, greedy on the held-out problems."""

    name: str
    seed: int
    accuracy: float
    share: float
    alone: float
    """Right answers with the large model switched off."""
    random: Point
    """Chunks at random places, as many tokens as this model asks for."""
    seconds: float
    """An answer's, by the latency model."""
    curve: tuple[Point, ...]
    """With a bias on the opening marker, by share; of models that were taught only."""
    calibrated: Point | None = None
    """With the bias that gave the target share on problems for training; of those with a budget."""
    wrong_marks: float | None = None


@dataclass(frozen=True, slots=True)
class Against:
    """A model beside the curve of the one that it began with."""

    name: str
    seed: int
    points: float
    """More right answers than the curve has at the same share, in points."""
    needed: float | None
    """The share at which the curve has as many right answers; None if it never has, 0 if it has without."""
    saved: float | None
    """Of the large model's tokens, fewer than that; None where `needed` is None or 0."""
    alone: float
    """Change of the right answers with the large model switched off, in points."""
    over_random: float


def write_study(out: Path, seeds: Sequence[int], folder: Path, name: str = "study") -> list[Path]:
    """`name.json`, `.md`, `.png` and `.svg` in the folder, from what the tasks left in out.

    Raises:
        UsageError: no seed has both models that were taught.
    """
    models, bigs = [], []
    for seed in seeds:
        tasks = [Task(seed, teacher) for teacher in TEACHERS]
        tasks += [Task(seed, learning.teacher, learning) for learning in LEARNINGS]
        for task in tasks:
            path = out / task.folder / FIGURES
            if path.is_file():
                found = json.loads(path.read_text("utf-8"))
                models.append(_model(task, found))
                bigs += [
                    arm["pass_at_1"]["value"] for arm in found["figures"]["arms"] if arm["kind"] == "big"
                ]
    compared = [each for model in models if (each := _against(model, models))]
    if not compared:
        raise UsageError(f"{out} has no model to compare yet: run the study first")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("json", "md", "png", "svg")]
    record = {"v": 1, "models": [asdict(each) for each in models], "against": [asdict(e) for e in compared]}
    write_whole(paths[0], json.dumps(record, indent=2) + "\n")
    write_whole(paths[1], _markdown(models, compared, bigs))
    _plot(models, paths[2:])
    return paths


def at_share(curve: Sequence[Point], share: float) -> float:
    """The curve's accuracy there: between two points a line, beyond the ends the nearest one's."""
    points = sorted(curve)
    if share <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if share <= x1:
            return y0 + (y1 - y0) * (share - x0) / (x1 - x0) if x1 > x0 else max(y0, y1)
    return points[-1][1]


def share_for(curve: Sequence[Point], accuracy: float) -> float | None:
    """The least share at which the curve has this accuracy; None if it never has."""
    points = sorted(curve)
    if points[0][1] >= accuracy:
        return points[0][0]
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 < accuracy <= y1:
            return x0 + (x1 - x0) * (accuracy - y0) / (y1 - y0)
    return None


def _model(task: Task, found: Mapping[str, Any]) -> Model:
    arms = {arm["arm"]: arm for arm in found["figures"]["arms"]}
    split, small, by_chance = arms["split"], arms["small"], arms["random"]
    curve = [_point(small), *(_point(arm) for arm in arms.values() if arm["kind"] == "split")]
    calibrated = found["calibrated"]["arms"][0] if "calibrated" in found else None
    return Model(
        name=task.name,
        seed=task.seed,
        accuracy=split["pass_at_1"]["value"],
        share=split["share"]["value"],
        alone=small["pass_at_1"]["value"],
        random=_point(by_chance),
        seconds=split["seconds"]["value"],
        curve=tuple(sorted(curve)) if task.learning is None else (),
        calibrated=None if calibrated is None else _point(calibrated),
        wrong_marks=found.get("wrong_marks"),
    )


def _point(arm: Mapping[str, Any]) -> Point:
    return arm["share"]["value"], arm["pass_at_1"]["value"]


def _against(model: Model, models: Sequence[Model]) -> Against | None:
    teacher = next((each.teacher for each in LEARNINGS if each.name == model.name), None)
    begun = f"SFT, {teacher}"
    start = next((each for each in models if (each.name, each.seed) == (begun, model.seed)), None)
    if start is None:
        return None
    needed = share_for(start.curve, model.accuracy)
    return Against(
        model.name,
        model.seed,
        points=100 * (model.accuracy - at_share(start.curve, model.share)),
        needed=needed,
        saved=None if not needed else 1 - model.share / needed,
        alone=100 * (model.alone - start.alone),
        over_random=100 * (model.accuracy - model.random[1]),
    )


# --- on paper ---------------------------------------------------------------------------------------------


def _markdown(models: Sequence[Model], compared: Sequence[Against], bigs: Sequence[float]) -> str:
    names = list(dict.fromkeys(model.name for model in models))
    lines = [
        "| model | seeds | right answers | by the large model | over random at its share | large model off "
        "| seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        of = [model for model in models if model.name == name]
        gaps = [100 * (model.accuracy - model.random[1]) for model in of]
        lines.append(
            f"| {name} | {len(of)} | {_percent([m.accuracy for m in of])} "
            f"| {_percent([m.share for m in of])} | {_points(gaps)} | {_percent([m.alone for m in of])} "
            f"| {_plain([m.seconds for m in of])} |"
        )
    if bigs:
        lines.append(f"| large model alone | {len(bigs)} | {_percent(bigs)} | 100 % | | | |")
    lines += [
        "",
        "Beside the curve of the model that it began with (that one's opening marker biased):",
        "",
        "| learning | right answers at equal share | large model's tokens at equal right answers "
        "| large model off |",
        "|---|---|---|---|",
    ]
    for name in (name for name in names if any(each.name == name for each in compared)):
        of_name = [each for each in compared if each.name == name]
        lines.append(
            f"| {name} | {_points([each.points for each in of_name])} | {_tokens(of_name)} "
            f"| {_points([each.alone for each in of_name])} |"
        )
    with_budget = [each for each in LEARNINGS if each.target_share is not None and each.name in names]
    if with_budget:
        lines += ["", "| budget | share, as trained | share, calibrated | right answers, calibrated |"]
        lines += ["|---|---|---|---|"]
        for learning in with_budget:
            of = [model for model in models if model.name == learning.name]
            points = [model.calibrated for model in of if model.calibrated]
            lines.append(
                f"| {100 * (learning.target_share or 0):.0f} % | {_percent([m.share for m in of])} "
                f"| {_percent([p[0] for p in points])} | {_percent([p[1] for p in points])} |"
            )
    wrong = [model.wrong_marks for model in models if model.wrong_marks]
    if wrong:
        lines += [
            "",
            f"Wrong marks of the judge: {_percent(wrong)}. Mean, and ± the standard deviation over seeds.",
        ]
    return "\n".join(lines) + "\n"


def _tokens(compared: Sequence[Against]) -> str:
    """The large model's, beside what the curve needs for as many right answers."""
    known = [-100 * each.saved for each in compared if each.saved is not None]
    never = sum(each.needed is None for each in compared)
    free = sum(each.needed == 0 for each in compared)
    told = [f"{_mean_and_spread(known)} %"] if known else []
    for count, what in ((never, "the curve never has as many"), (free, "the curve has as many without any")):
        if count:
            told.append(f"{what} ({count} of {len(compared)} seeds)")
    return "; ".join(told)


def _percent(values: Sequence[float]) -> str:
    return f"{_mean_and_spread([100 * value for value in values])} %" if values else ""


def _points(values: Sequence[float]) -> str:
    return f"{fmean(values):+.1f}{_spread(values)}" if values else ""


def _plain(values: Sequence[float]) -> str:
    return f"{fmean(values):.2f}{_spread(values, 2)}"


def _mean_and_spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f}{_spread(values)}"


def _spread(values: Sequence[float], digits: int = 1) -> str:
    return f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""


_LOOKS = {
    "SFT, opinion": ("#b45309", "o"),
    "SFT, measured": ("#1d4ed8", "o"),
    "true": ("#0f766e", "D"),
    "true, lam 0.3": ("#14b8a6", "^"),
    "true, lam 0.95": ("#134e4a", "v"),
    "true, measured": ("#1d4ed8", "D"),
    "self": ("#be123c", "X"),
}


def _plot(models: Sequence[Model], paths: Sequence[Path]) -> None:
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axes = figure.subplots()
        for name, (colour, shape) in _LOOKS.items():
            of = [model for model in models if model.name == name]
            if of:
                _draw(axes, name, of, colour, shape)
        budgets = [m for m in models if m.calibrated]
        if budgets:
            axes.scatter(
                [100 * m.share for m in budgets], [100 * m.accuracy for m in budgets],
                marker="+", color="#6b7280", s=42, linewidths=1.2, label="with a budget of 5, 10, 20 %",
            )  # fmt: skip
        chance = [model.random for model in models if model.name != "self"]
        axes.scatter(
            [100 * x for x, _ in chance], [100 * y for _, y in chance],
            marker=".", color="#9ca3af", s=26, label="random places, at the share of each",
        )  # fmt: skip
        axes.set_xlabel("tokens written by the large model, %")
        axes.set_ylabel("right answers, %")
        axes.grid(visible=True, color="#e5e7eb", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_ylim(-3, 103)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(fontsize=8, frameon=False, loc="center right")
        figure.savefig(paths[0], dpi=150, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None, "Creator": "sr-edge"})


def _draw(axes: Axes, name: str, models: Sequence[Model], colour: str, shape: str) -> None:
    for model in models:
        if model.curve:
            axes.plot(
                [100 * x for x, _ in model.curve], [100 * y for _, y in model.curve],
                color=colour, linewidth=0.8, alpha=0.6, zorder=1,
            )  # fmt: skip
    label = name if name.startswith("SFT") else f"GRPO, {name}"
    axes.scatter(
        [100 * m.share for m in models], [100 * m.accuracy for m in models],
        marker=shape, color=colour, s=38, label=label, zorder=3,
    )  # fmt: skip
