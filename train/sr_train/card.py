"""The model card of a run: what the model does, how it was trained, and how each figure was obtained.

Every figure stands with its n, its interval and the command. What was not measured is not in the card.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sr_edge.errors import EdgeError, UsageError
from sr_edge.markers import CLOSE, OPEN
from sr_train.export import Exported, commands, evaluations
from sr_train.recipe import Recipe
from sr_train.run import RunFolder, StageFolder, write_whole

CARD = "README.md"

_SHOWN = (
    "learning_rate", "num_train_epochs", "max_steps", "max_length", "per_device_train_batch_size",
    "gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "packing", "beta", "epsilon_high",
    "scale_rewards", "loss_type",
)  # fmt: skip
"""Of the trainers' settings, those that a card spells out; recipe.toml has all."""


class PushError(EdgeError):
    """The hub did not take it."""

    exit_code = 3


def model_card(run: RunFolder, trained: StageFolder, exported: Sequence[Exported] = ()) -> str:
    """Markdown with the front matter that the hub reads."""
    return "\n".join(_lines(run, trained, exported)) + "\n"


def push(
    run: RunFolder,
    trained: StageFolder,
    exported: Sequence[Exported] = (),
    *,
    offline: bool = False,
    report: Callable[[str], None] = lambda _: None,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """Upload the model, its card, the recipe and the GGUFs to `hub.repo`; returns the page's address.

    Raises:
        UsageError: the recipe names no repository, or offline is wanted.
        PushError: the hub did not take it.
    """
    repo = check_push(run, offline=offline, environ=environ)
    recipe = run.recipe
    write_whole(trained.model / CARD, model_card(run, trained, exported))
    from huggingface_hub import HfApi

    hub = HfApi(library_name="sr-edge")
    try:
        hub.create_repo(repo, private=recipe.hub.private, exist_ok=True)
        report(f"pushing {trained.model} to {repo}")
        hub.upload_folder(
            repo_id=repo,
            folder_path=trained.model,
            commit_message=f"{recipe.name}, {trained.name}",
        )
        files = [path for each in exported for path in (each.gguf, each.passport)]
        for path in [*files, trained.path / "recipe.toml"]:
            hub.upload_file(repo_id=repo, path_or_fileobj=path, path_in_repo=path.name)
    except Exception as error:  # its own, its HTTP library's, the system's: what counts is what it says
        raise PushError(
            f"the hub did not take {repo}: {' '.join(str(error).split())[:300]}; is there a token "
            "with write access (`hf auth login`)?"
        ) from None
    return f"{hub.endpoint}/{repo}"


def check_push(run: RunFolder, *, offline: bool = False, environ: Mapping[str, str] = os.environ) -> str:
    """The repository to push to. Raises: UsageError: see `push`."""
    repo = run.recipe.hub.repo
    if repo is None:
        raise UsageError("the recipe names no repository to push to: --set hub.repo=OWNER/NAME")
    if offline or environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UsageError("nothing is pushed offline: leave HF_HUB_OFFLINE and the setting offline out")
    return repo


# --- the card --------------------------------------------------------------------------------------------


def _lines(run: RunFolder, trained: StageFolder, exported: Sequence[Exported]) -> Iterator[str]:
    recipe = run.recipe
    yield from _front_matter(recipe)
    yield f"# {recipe.hub.repo.partition('/')[2] if recipe.hub.repo else recipe.name}"
    yield ""
    about = recipe.about or "A small reasoning model that asks a large one for help."
    yield f"{about} Trained with sr-edge, recipe `{recipe.name}`, up to its stage `{trained.name}`."
    yield ""
    yield from _contract(recipe)
    yield from _use(exported)
    yield from _training(run, trained)
    yield from _figures(run)
    yield from _again(run)


def _front_matter(recipe: Recipe) -> Iterator[str]:
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    if _is_repository(recipe.model.base):
        yield f"base_model: {recipe.model.base}"
    if _is_repository(recipe.data.source):
        yield "datasets:"
        yield f"- {recipe.data.source}"
    yield "tags:"
    yield from (f"- {tag}" for tag in ("sr-edge", "split-decoding", "reasoning"))
    yield "---"
    yield ""


def _contract(recipe: Recipe) -> Iterator[str]:
    yield "## What it does"
    yield ""
    tau, least = recipe.handback.tau, recipe.handback.min_span
    yield (
        f"Where a step is too hard for it, it writes the token `{OPEN}`. The program that runs it then lets "
        "a large model write, which never sees a marker. The span ends once this model's probability of "
        f"`{CLOSE}` passes {tau:g}, after {least} {'token' if least == 1 else 'tokens'} at least, and this "
        "model goes on. Without a large model the marker is refused, and it goes on alone. `sr_edge.json` "
        "beside the weights says the same to programs."
    )
    yield ""


def _use(exported: Sequence[Exported]) -> Iterator[str]:
    if not exported:
        return
    yield "## To use it"
    yield ""
    for each in exported:
        yield f'* `{each.gguf.name}`: `sr-edge ask -m {each.gguf.name} "PROBLEM"`{_compared(each)}'
    yield ""


def _compared(exported: Exported) -> str:
    if exported.verdict is None:
        return "; it was not compared with the checkpoint"
    logits = next((row["found"] for row in exported.verdict["rows"] if row["what"] == "logits"), "")
    return f"; against the checkpoint: {exported.verdict['verdict']}{f', {logits}' if logits else ''}"


def _training(run: RunFolder, trained: StageFolder) -> Iterator[str]:
    recipe = run.recipe
    yield "## How it was trained"
    yield ""
    yield f"* base: {_shown(recipe.model.base)}; problems: {_shown(recipe.data.source)}; seed {recipe.seed}"
    if recipe.adapter is None:
        yield "* all weights are trained"
    else:
        kind, rank = recipe.adapter.kind, recipe.adapter.rank
        yield f"* {kind} of rank {rank}, merged; the markers' rows are trained whole"
    if (run.stage("sft").path).exists():
        settings = _settings(recipe.sft.trainer)
        yield f"* fine-tuning: what is learned within a span: `{recipe.sft.span_loss}`; {settings}"
    if trained.name == "grpo":
        writer = "this model itself" if recipe.big.fill == "self" else _writer(recipe)
        reward = f"reward `{recipe.reward.kind}`, lambda {recipe.reward.lam:g} on {recipe.reward.unit}"
        yield (
            f"* reinforcement learning (GRPO): {recipe.grpo.num_prompts} problems x "
            f"{recipe.grpo.num_generations} rollouts a step and process; spans written by {writer}, attended "
            f"to and without loss; {reward}; {_settings(recipe.grpo.trainer)}"
        )
    calls = run.record()["calls"]
    used = calls[-1]["versions"]
    yield "* versions: " + ", ".join(f"{name} {used[name]}" for name in used)
    if any(call["versions"] != used for call in calls):
        yield "* some of the calls that made it ran with other versions: run.json has them"
    yield ""


def _figures(run: RunFolder) -> Iterator[str]:
    yield "## Figures"
    yield ""
    found = list(evaluations(run))
    if not found:
        yield "None were measured for this run."
        yield ""
        return
    for name, figures in found:
        settings = ", ".join(f"{key} {_plain(value)}" for key, value in figures.get("settings", {}).items())
        yield f"### {name}"
        yield ""
        if settings:
            yield f"Measured with: {settings}."
            yield ""
        yield (
            "| who writes | pass@1 | 95 % interval | large model's share of tokens written | "
            "of tokens read | seconds | $ | answers | problems |"
        )
        yield "|---|---|---|---|---|---|---|---|---|"
        yield from (_row(arm) for arm in figures["arms"])
        yield ""
        for gap in figures.get("differences", []):
            right, low, high = (100 * gap["pass_at_1"][key] for key in ("value", "low", "high"))
            yield (
                f"* `{gap['arm']}` against `{gap['other']}`, on the same problems: {right:+.1f} points "
                f"({low:+.1f} to {high:+.1f})"
            )
        yield ""
    yield (
        "pass@1 is the mean over problems of the share of right answers, its interval a bootstrap over "
        "problems. `random` hands as many tokens to the large model as `split` does, at random places. "
        "Seconds and dollars are those of a latency model of the user's machine, whose numbers are in "
        "recipe.toml, not of the machine that measured."
    )
    failed = sum(arm["failed"] for _, figures in found for arm in figures["arms"])
    if failed:
        yield ""
        yield f"{failed} answers are not counted, because the large model failed in them."
    yield ""


def _row(arm: Mapping[str, Any]) -> str:
    right, share, read, seconds = (arm[key] for key in ("pass_at_1", "share", "input_share", "seconds"))
    cells = (
        arm["arm"],
        f"{100 * right['value']:.1f} %",
        f"{100 * right['low']:.1f} to {100 * right['high']:.1f}",
        f"{100 * share['value']:.1f} %",
        f"{100 * read['value']:.1f} %",
        f"{seconds['value']:.1f}",
        f"{arm['dollars']:.4f}",
        str(arm["answers"]),
        str(arm["problems"]),
    )
    return f"| {' | '.join(cells)} |"


def _again(run: RunFolder) -> Iterator[str]:
    yield "## To make it again"
    yield ""
    yield "With the `recipe.toml` that lies beside the weights:"
    yield ""
    yield "```"
    yield from commands(run)
    yield "```"


def _writer(recipe: Recipe) -> str:
    model = recipe.big.remote_model or recipe.big.model
    return _shown(model) if model else "the large model behind the recipe's endpoint"


def _settings(trainer: Mapping[str, Any]) -> str:
    return (
        ", ".join(f"{key} {_plain(trainer[key])}" for key in _SHOWN if key in trainer) or "the usual settings"
    )


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_plain(each)}" for key, each in value.items())
    text = str(value)
    return Path(text).name if isinstance(value, str) and Path(text).is_absolute() else text


def _is_repository(name: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def _shown(name: str) -> str:
    return f"`{Path(name).name if Path(name).expanduser().exists() else name}`"
