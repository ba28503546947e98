"""`sr-edge train evaluate` and `export`: what a trained model is worth, and its way to the laptop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sr_edge.commands.listing import say
from sr_edge.commands.output import note
from sr_edge.errors import UsageError
from sr_train.commands.common import (
    Named,
    Offline,
    Settings,
    finished,
    opened,
    recipe_of,
    stays_offline,
    told,
)

if TYPE_CHECKING:
    from sr_train.recipe import Recipe
    from sr_train.rollout.requests import RolloutEngine

RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="The folder of a training run.", show_default=False),
]


def evaluate(
    recipe: Named,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="RUN",
            help="The run whose model is measured, and that keeps the figures. Default: as for the stages.",
            show_default=False,
        ),
    ] = None,
    settings: Settings = None,
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            metavar="MODEL",
            help="A GGUF, measured through the client; or a folder, repository or demo:NAME, through "
            "transformers. Default: what the run has trained.",
            show_default=False,
        ),
    ] = None,
    big: Annotated[
        Path | None,
        typer.Option(
            "--big",
            metavar="GGUF",
            help="The large model of a GGUF. Default: what the recipe names.",
            show_default=False,
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            metavar="ARM",
            help="small, big, split, random, periodic, entropy, token-entropy or cascade. May be repeated. "
            "Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    bias: Annotated[
        list[float] | None,
        typer.Option(
            "--bias",
            metavar="B",
            help="Added to the opening marker's logit: a point of the curve. May be repeated.",
            show_default=False,
        ),
    ] = None,
    target_share: Annotated[
        float | None,
        typer.Option(
            "--target-share",
            min=0.0,
            max=1.0,
            metavar="S",
            help="Find the bias at which the large model writes this share, on problems for training.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="PROBLEMS",
            help="demo:eval, aime24, aime25, math500, gsm8k, a data set of the hub, or a file. Default: the "
            "recipe's.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", show_default=False)] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, metavar="N", help="Answers to each problem.", show_default=False),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temp", min=0.0, metavar="T", show_default=False)
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Of this evaluation in the run.", show_default=False),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Print the table `latency` that explains what the client measured of a GGUF."
        ),
    ] = False,
    offline: Offline = False,
) -> None:
    """Measure who gets how much right at which cost: pass@1 with intervals, shares, seconds, dollars.

    Leaves a table (Markdown, JSON) and a Pareto plot (PNG, SVG) in RUN/evaluate, and the answers, so that the
    same command goes on after a kill.
    """
    offline = stays_offline(offline)
    from sr_train.evaluate.running import digest_of, evaluate_recipe

    given: dict[str, Any] = {
        "source": source,
        "limit": limit,
        "samples": samples,
        "temperature": temperature,
        "arms": tuple(arm) if arm else None,
        "biases": tuple(bias) if bias else None,
    }
    loaded = recipe_of(recipe, settings)
    part = replace(loaded.evaluate, **{key: value for key, value in given.items() if value is not None})
    loaded = replace(loaded, evaluate=part)
    run = opened(loaded, out, "evaluate")
    measured = model or _trained(run)
    if calibrate and not measured.endswith(".gguf"):
        raise UsageError("--calibrate needs a GGUF (-m FILE): a batch of answers has no speed of its own")
    if big is not None and not measured.endswith(".gguf"):
        raise UsageError(
            "--big goes with a GGUF (-m FILE); a checkpoint's large model is big.model, by --set"
        )
    tell = told(run)
    with (
        run.stage("evaluate") as stage,
        _engine(loaded, measured, big, run.path, offline) as (engine, is_client),
    ):
        if target_share is not None:
            loaded = _at_share(loaded, engine, target_share, offline, tell)
        called = name or f"{_short(measured)}-{loaded.evaluate.source}"
        called = "".join(c if c.isalnum() or c in "-_." else "-" for c in called)
        events = stage.path / f"{called}.events.jsonl"
        tell(f"measuring {measured} on {loaded.evaluate.source}")
        evaluate_recipe(
            loaded,
            engine,
            stage.path,
            called,
            about={
                "model": _without_folders(measured),
                "weights": digest_of(Path(measured)),
                "through": "the client" if is_client else "transformers",
                **({} if is_client else {"handback": asdict(loaded.handback)}),
                **({} if big is None else {"large model": _without_folders(str(big))}),
            },
            block=1 if is_client else 256,
            offline=offline,
            events=events if is_client else None,
            report=_counter(tell),
        )
        print((stage.path / f"{called}.md").read_text("utf-8"), end="")
        if calibrate:
            print(_speeds(events, loaded), end="")
            note(f"a recipe takes them as they are, or with --set latency.calibration={events}")


def export(
    run: RunArgument,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting of export or hub, such as hub.repo=OWNER/NAME. May be repeated.",
            show_default=False,
        ),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="As in `sr-edge convert`. Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            "--stage",
            metavar="sft|grpo",
            help="Whose model. Default: the last that is done.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FILE", help="The GGUF. Default: in RUN/export.", show_default=False
        ),
    ] = None,
    verifies: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the file with the checkpoint.")
    ] = True,
    push: Annotated[
        bool,
        typer.Option("--push", help="Push the model and its card to hub.repo of the recipe."),
    ] = False,
) -> None:
    """Merge, convert, quantise, verify, and write the passport: `sr-edge ask -m` runs the file."""
    from sr_train.card import check_push
    from sr_train.export import export as run_export
    from sr_train.run import RunFolder

    strange = [each for each in settings or () if not each.strip().startswith(("export.", "hub."))]
    if strange:
        raise UsageError(f"--set {strange[0]}: the model is trained; what can be set is in export and hub")
    held = RunFolder.read(run, settings or ())
    if push:
        check_push(held, offline=stays_offline(False))
    made = run_export(
        held, stage=stage, quantization=quantization, out=out, verifies=verifies, report=told(held)
    )
    finished(made.gguf)
    if push:
        from sr_train.card import push as push_to_hub

        trained = held.stage("grpo" if made.stage == "grpo" else "sft")
        say(push_to_hub(held, trained, [made], report=told(held)))


@contextmanager
def _engine(
    recipe: Recipe, model: str, big: Path | None, folder: Path, offline: bool
) -> Iterator[tuple[RolloutEngine, bool]]:
    """What answers, and whether it is the client."""
    from sr_train.remotes import open_big

    with ExitStack() as held:
        if model.endswith(".gguf"):
            from sr_edge.passport import demo_paths
            from sr_edge.remote.local_gguf import LocalGGUF
            from sr_edge.roles import Limits, Message, Prompt, RemoteModel
            from sr_train.evaluate.client import ClientEngine

            gguf = big or (demo_paths().big if recipe.big.model == "demo:big" else None)
            rollout = recipe.rollout
            clients: list[ClientEngine] = []

            def render(messages: Sequence[Message]) -> Prompt:
                return clients[0].local.render(messages)

            remote: RemoteModel | None = None
            if gguf is not None:
                remote = held.enter_context(LocalGGUF(gguf, temperature=recipe.big.temperature))
            elif recipe.big.remote is not None:
                remote = held.enter_context(open_big(recipe.big, render, offline=offline))
            elif {*recipe.evaluate.arms} != {"small"} or recipe.evaluate.biases:
                raise UsageError(
                    "nobody is there to write the spans beside a GGUF: name the large model's with --big, "
                    "an endpoint with --set big.remote=URL, or measure --arm small alone"
                )
            client = held.enter_context(
                ClientEngine(
                    Path(model),
                    remote,
                    limits=Limits(rollout.max_tokens, rollout.max_span_tokens, rollout.soft_span_tokens),
                    max_spans=rollout.max_spans,
                    temperature=recipe.evaluate.temperature,
                )
            )
            clients.append(client)
            yield client, True
            return
        from sr_train.checkpoint import load_for_inference
        from sr_train.grpo.engine import batched_engine

        loaded = load_for_inference(model, recipe.model.dtype, folder / "cache")
        engine = batched_engine(
            recipe,
            loaded,
            folder,
            lambda render: held.enter_context(open_big(recipe.big, render, offline=offline)),
        )
        yield engine, False


def _speeds(events: Path, recipe: Recipe) -> str:
    """As a recipe holds them."""
    from sr_train.latency import fit, read_streams

    fitted = asdict(fit(read_streams(events), recipe.latency))
    return "\n[latency]\n" + "".join(
        f"{key} = {value:.4g}\n" for key, value in fitted.items() if value is not None
    )


def _short(model: str) -> str:
    """What an evaluation is called by: of a run's own model its stage, else the last name."""
    path = Path(model)
    return path.parent.name if path.name == "model" and path.is_dir() else path.name


def _trained(run: object) -> str:
    from sr_train.run import RunFolder

    assert isinstance(run, RunFolder)
    for name in ("grpo", "sft"):
        stage = run.stage("grpo" if name == "grpo" else "sft")
        if stage.is_done:
            return str(stage.model)
    raise UsageError(f"{run.path} has trained nothing yet: name what to measure with -m")


def _at_share(
    recipe: Recipe, engine: RolloutEngine, target: float, offline: bool, tell: Callable[[str], None]
) -> Recipe:
    """The recipe with the one bias that gives this share, found on problems for training."""
    from sr_train.evaluate.sweeps import calibrate_bias
    from sr_train.problems import read_problems

    data = recipe.data
    problems = read_problems(data.source, split=data.split, limit=256, seed=recipe.seed, offline=offline)
    found = calibrate_bias(
        engine, problems, target, temperature=recipe.evaluate.temperature, seed=recipe.seed
    )
    tell(f"a bias of {found.setting:+.2f} gives a share of {found.share:.1%} in training")
    if abs(found.share - target) > 0.02:
        note(f"no bias gives {target:.1%}: the nearest is {found.share:.1%}")
    return replace(recipe, evaluate=replace(recipe.evaluate, biases=(round(found.setting, 3),)))


def _counter(tell: Callable[[str], None]) -> Callable[[str, int, int], None]:
    """Tells when an arm is done."""

    def count(arm: str, done: int, total: int) -> None:
        if done == total:
            tell(f"{arm}: {done} answers")

    return count


def _without_folders(model: str) -> str:
    """For a report that others read."""
    path = Path(model)
    return "/".join(path.parts[-3:]) if path.is_absolute() else model
