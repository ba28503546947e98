"""The card of an annotated data set: what it is, how it was made, what is in it. A README.md as the hub
reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sr_edge.markers import CLOSE, OPEN
from sr_train.recipe import Recipe

_LABELLERS = {
    "judge": "A large model rated numbered steps (difficulty 0 to 3)",
    "measured": "Steps were measured on the small model: its surprisal, then how much more often answers "
    "come out right from there on when a large model writes the next span",
    "both": "A large model rated numbered steps (difficulty 0 to 3); those that it found difficult were "
    "measured on the small model, and kept where help makes answers right more often",
    "snippets": "A large model quoted the hardest parts, which were looked for in the trace (the way of "
    "SplitReason, arXiv 2504.16379)",
}


def write_card(
    recipe: Recipe,
    folder: Path,
    *,
    statistics: Mapping[str, Any],
    counts: Mapping[str, int],
    judges: Sequence[str],
    version: str,
) -> Path:
    """`README.md` beside the data set.

    Args:
        judges: models as their replies named them.
        version: of the questions that were put.
    """
    part = recipe.annotate
    length, share = statistics["span_length"], statistics["share_per_row"]
    lines = [
        "---",
        "task_categories: [text-generation]",
        "tags: [reasoning, split-decoding, sr-edge]",
        "configs:",
        "- config_name: default",
        "  data_files: dataset.jsonl",
        "---",
        "",
        f"# {recipe.name}: worked solutions with their difficult steps marked",
        "",
        f"Each row holds `id`, `question`, `answer` and `text`: a worked solution in which the steps that a "
        f"small model should leave to a large one stand between `{OPEN}` and `{CLOSE}`. Without the markers "
        "`text` is the source's, byte for byte. No marker stands inside mathematics, code or a box; spans "
        "are whole steps, most often sentences or lines, and are not nested.",
        "",
        "## How it was made",
        "",
        f"Source: `{recipe.data.source}`, split `{recipe.data.split}`. Its licence holds for this data too.",
        "",
        f"{_LABELLERS[part.labeller]}. The marks are at most {100 * part.target_share:g} % of a trace's "
        "characters, the most difficult steps first.",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | `{value}` |" for name, value in _settings(recipe, judges, version)),
        "",
        "## What is in it",
        "",
        "| figure | value |",
        "|---|---|",
        f"| rows | {statistics['rows']} |",
        f"| rows with spans | {statistics['rows_with_spans']} |",
        f"| spans | {statistics['spans']} ({statistics['spans_per_row']:.2f} a row) |",
        f"| marked, of all characters | {100 * statistics['share']:.2f} % |",
    ]
    if share:
        lines.append(
            f"| marked, of a row | mean {100 * share['mean']:.1f} %, median {100 * share['median']:.1f} %, "
            f"p90 {100 * share['p90']:.1f} % |"
        )
    if length:
        lines.append(
            f"| length of a span | mean {length['mean']:.0f}, median {length['median']:.0f}, "
            f"p90 {length['p90']:.0f} characters |"
        )
    lines += [f"| {name.replace('_', ' ')} | {count} |" for name, count in counts.items()]
    lines += [f"| marked steps: {kind} | {count} |" for kind, count in statistics["kinds"].items()]
    lines += [
        "",
        *(f"![{alt}]({name}.png)" for name, alt in _PLOTS),
        "",
        "The raw replies and measurements are in `journal.jsonl`, which is not part of the data set.",
        "",
        "## What it is not",
        "",
        "Marks are estimates of where a small model needs help. A judge's are an opinion, measured ones hold "
        "for one small and one large model. The traces may be wrong where their source is.",
        "",
    ]
    path = folder / "README.md"
    path.write_text("\n".join(lines), "utf-8")
    return path


_PLOTS = (
    ("share", "marked part of the traces"),
    ("lengths", "length of the spans"),
    ("positions", "where in their traces the spans lie"),
    ("spans", "spans in a trace"),
)


def _settings(recipe: Recipe, judges: Sequence[str], version: str) -> list[tuple[str, Any]]:
    part = recipe.annotate
    settings: list[tuple[str, Any]] = [("labeller", part.labeller), ("version of the questions", version)]
    if part.labeller != "measured":
        named = ", ".join(judges) or part.judge_model or "not named by its server"
        settings += [("judge", named), ("temperature of the judge", part.judge_temperature)]
    if part.labeller in ("judge", "both"):
        settings.append(("marked from difficulty", part.min_difficulty))
    if part.labeller == "snippets":
        settings.append(("a snippet's least likeness, of 100", part.min_snippet_score))
    if part.labeller in ("measured", "both"):
        settings.append(("small model", recipe.model.base))
        if part.labeller == "measured":
            settings.append(("surprisal from quantile", part.surprisal_quantile))
        if part.continuations:
            big = (
                recipe.big.model
                or recipe.big.remote_model
                or ("itself" if recipe.big.fill == "self" else "an endpoint's")
            )
            settings += [
                ("large model", big),
                ("continuations with a span, and without", part.continuations),
                ("least gain", part.min_gain),
            ]
    settings += [
        ("at most of a trace", part.target_share),
        ("a span's least length, characters", part.min_span_chars),
        ("joined over gaps up to, characters", part.merge_gap_chars),
    ]
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in settings]
