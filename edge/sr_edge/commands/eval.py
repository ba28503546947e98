"""`sr-edge eval`: what the pair of models is worth, measured."""

from __future__ import annotations

import json
import math
import os
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sr_edge.commands import INTERRUPTED
from sr_edge.commands.interrupt import Interrupt
from sr_edge.commands.leaving import receiver
from sr_edge.commands.output import note, width_of
from sr_edge.errors import RemoteError, UsageError
from sr_edge.report import table
from sr_edge.terminal import can_show

if TYPE_CHECKING:
    from sr_edge.evaluate import Answer, Answering, Arm
    from sr_edge.session import SessionSettings

_SERVED = "http"  # what --through is given, if not a URL
_SHARE_PROBLEMS = 40  # enough to measure split's share where only the random arm is wanted


class ArmName(Enum):
    SPLIT = "split"
    LOCAL = "local"
    BIG = "big"
    RANDOM = "random"


def evaluate(
    suite: Annotated[Literal["demo"], typer.Option("--suite", help="The problems.")] = "demo",
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="S", help="Which problems of the suite.")] = 0,
    n: Annotated[int, typer.Option("--n", min=1, metavar="N", help="How many problems.")] = 100,
    arm: Annotated[
        list[ArmName] | None,
        typer.Option(
            "--arm",
            metavar="split|local|big|random",
            help="Who writes: both as the small model asks, the small one alone, the large one alone, or "
            "both by chance at split's share. May be repeated; default: all four.",
            show_default=False,
        ),
    ] = None,
    as_object: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    print_problems: Annotated[
        int | None,
        typer.Option(
            "--print-problems", min=1, metavar="N", help="Print N problems as JSON lines, and no more."
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("-m", "--model", metavar="GGUF", help="The small model. Default: the built-in one."),
    ] = None,
    lora: Annotated[
        Path | None,
        typer.Option("--lora", metavar="GGUF", help="An adapter for the small model; see `sr-edge convert`."),
    ] = None,
    big: Annotated[
        str | None, typer.Option("--big", metavar="GGUF|URL", help="The large model, as in `sr-edge ask`.")
    ] = None,
    big_model: Annotated[
        str | None, typer.Option("--big-model", metavar="NAME", help="The endpoint's name for its model.")
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(
            "-r", "--remote", metavar="NAME", help="The large model: an endpoint of `sr-edge remote list`."
        ),
    ] = None,
    temp: Annotated[
        float, typer.Option("--temp", min=0.0, metavar="T", help="Temperature; 0 takes the likeliest token.")
    ] = 0.0,
    offline: Annotated[
        bool, typer.Option("--offline", help="Open no socket; a --big file still works.")
    ] = False,
    through: Annotated[
        str | None,
        typer.Option(
            "--through",
            metavar="http|URL",
            help="Ask through `sr-edge serve`: http starts one for as long as this takes, a URL asks one "
            "that runs on this machine.",
        ),
    ] = None,
) -> None:
    """Measure what split decoding is worth on known problems.

    Accuracy with its 95 % interval, the large model's share of the tokens, spans and time, for each arm.
    """
    from sr_edge.suites.demo import problems

    if print_problems is not None:
        for problem in problems(seed, print_problems):
            print(json.dumps({"problem": problem.question, "answer": problem.answer}))
        return
    if not math.isfinite(temp):
        raise UsageError(f"--temp {temp} is no temperature")

    from sr_edge.config import load_config
    from sr_edge.evaluate import ARMS, answers, random_schedule, remote_share, summary
    from sr_edge.session import SessionSettings

    wanted = {name.value for name in arm or ArmName}
    if through is not None and ArmName.RANDOM.value in wanted:
        line = "random is measured without --through: no server opens spans by chance"
        if arm is not None:
            raise UsageError(line)
        note(line)
        wanted.discard(ArmName.RANDOM.value)
    arms = [name for name in ARMS if name in wanted]
    needs_big = arms != ["local"]
    if big is not None and remote is not None:
        raise UsageError("--big and --remote exclude each other: there is one large model")
    if through not in (None, _SERVED) and not all(option is None for option in (model, lora, big, remote)):
        raise UsageError(f"the models are those of the server at {through}: give their options to it")
    if model is not None and big is None and remote is None and needs_big:
        raise UsageError("-m without --big: name the large model too, or measure --arm local")
    config = load_config(environ=os.environ, flags={"default_remote": remote, "offline": offline or None})
    if through is not None and config.offline:
        raise UsageError("--through opens a socket, if only to this machine, and offline means none at all")
    settings = SessionSettings(
        model=model,
        lora=lora,
        big=big,
        big_model=big_model,
        remote=None if remote is None else config.remote(),
        policy="remote" if needs_big else "local",  # only opens the models: each arm has its own policy
        offline=config.offline,
        seed=seed,
        temperature=temp,
        big_temperature=temp if arms == ["big"] else 0.0,  # as `ask` writes spans
        max_spans=config.offload.max_spans,
        handback=config.offload.handback,
        speculate=config.offload.speculate,
        threads=config.engine.threads,
        redact=config.offload.redact,
        budget=config.budget,
    )
    asked = problems(seed, n)
    figures: dict[str, Any] = {}
    share: float | None = None
    failure: RemoteError | None = None
    with (
        Interrupt() as interrupt,
        _opened(settings, arms, interrupt)
        if through is None
        else _served(through, settings, interrupt) as answering,
    ):
        for name in arms:
            if interrupt():
                break
            schedule = None
            if name == "random":
                if share is None:
                    first = asked[:_SHARE_PROBLEMS]
                    note(f"measuring split's share on the first {len(first)} problems, for the random arm")
                    share = remote_share(list(answers(answering, first, "split", cancelled=interrupt)))
                schedule = random_schedule(share, random.Random(f"sr-edge random arm {seed}"))
            arm_answers = answers(answering, asked, name, schedule=schedule, cancelled=interrupt)
            try:
                measured = list(_with_progress(name, n, arm_answers))
            except RemoteError as error:
                failure = error
                continue
            if name == "split":
                share = remote_share(measured)
            if measured:
                figures[name] = summary(measured)
            degraded = sum(answer.transcript.degraded for answer in measured)
            if degraded:
                note(f"{name}: the large model failed in {degraded} of {len(measured)} answers")
    if as_object:
        how = {} if through is None else {"through": through}
        print(json.dumps({"suite": suite, "seed": seed, "n": n, **how, "arms": figures}), flush=True)
    elif figures:
        _print_table(figures)
    if failure:
        raise failure
    if interrupt():
        note("interrupted: these are the answers so far")
        raise typer.Exit(INTERRUPTED)


@contextmanager
def _opened(settings: SessionSettings, arms: list[Arm], interrupt: Interrupt) -> Iterator[Answering]:
    """The pair in this process."""
    from sr_edge.session import Session

    with Session.open(settings, warn=note, progress=interrupt.check) as session:
        if session.outside is not None and not settings.offline:
            _disclose(session.outside.endpoint.name, session.outside.endpoint.where)
        if "split" in arms and session.local.markers is None:
            note(f"{session.local.name} has no markers, so split is the small model alone")
        yield session


@contextmanager
def _served(through: str, settings: SessionSettings, interrupt: Interrupt) -> Iterator[Answering]:
    """The same pair behind HTTP, or the one that is at that URL."""
    from sr_edge.remote.served import ServedClient, ServedSession, find_token, kept_token
    from sr_edge.remote.serving import serving
    from sr_edge.session import is_url

    if through != _SERVED and not is_url(through):
        raise UsageError(f"--through {through}: it is {_SERVED}, or the URL of a running `sr-edge serve`")
    with ExitStack() as stack:
        if through == _SERVED:
            started = serving(_options(settings), _environ(settings), check=lambda: interrupt.check(0.0))
            url, token = stack.enter_context(started).url, kept_token()
        else:
            url, token = through, find_token()
        yield ServedSession(
            stack.enter_context(ServedClient(url, token)),
            temperature=settings.temperature,
            seed=settings.seed or 0,
            max_tokens=settings.max_tokens,
        )


def _options(settings: SessionSettings) -> list[str]:
    """Of a server with these models, whatever the user's settings say. Tells what will leave."""
    from sr_edge.passport import demo_paths
    from sr_edge.remote.egress import site_of
    from sr_edge.session import is_url

    options = ["--model", str(settings.model or demo_paths().small)]
    if settings.lora is not None:
        options += ["--lora", str(settings.lora)]
    if settings.policy == "local":
        return options
    if settings.remote is not None:
        remote = settings.remote
        _disclose(remote.name, site_of(remote.url, plain_http=remote.plain_http).where)
        return [*options, "--remote", remote.name, "--allow-remote"]
    big = settings.big or str(demo_paths().big)
    options += ["--big", big]
    if settings.big_model is not None:
        options += ["--big-model", settings.big_model]
    if is_url(big):
        _disclose(None, site_of(big).where)
        options += ["--allow-remote"]
    return options


def _environ(settings: SessionSettings) -> dict[str, str]:
    """For a server that answers as this command does, whatever the user's settings say."""
    return {
        **os.environ,
        "SR_EDGE_POLICY": "auto",
        "SR_EDGE_OFFLOAD__MAX_SPAN_TOKENS": str(settings.max_span_tokens),
        "SR_EDGE_OFFLOAD__HEDGE": "false",
        "SR_EDGE_SAMPLING__TEMPERATURE": str(settings.temperature),  # an endpoint's, too
        "SR_EDGE_SAMPLING__SEED": str(settings.seed or 0),
    }


def _disclose(name: str | None, where: str) -> None:
    note(f"sending the problems and the answers so far to {receiver(name, where)}")


def _print_table(figures: dict[str, Any]) -> None:
    dash = "–" if can_show("–", sys.stdout.encoding) else "-"
    rows = []
    for name, arm in figures.items():
        low, high = arm["interval"]
        tokens = arm["local_tokens"] + arm["remote_tokens"]
        ends = ", ".join(f"{end} {count}" for end, count in arm["ends"].items())
        rows.append(
            [
                name,
                str(arm["n"]),
                f"{arm['accuracy']:.1%}",
                f"{low:.1%}{dash}{high:.1%}",
                f"{arm['remote_share']:.1%}",
                f"{arm['spans_per_answer']:.2f}",
                str(tokens),
                f"{arm['seconds']:.1f}",
                ends or "-",
            ]
        )
    heading = ["arm", "n", "accuracy", "95 % interval", "large share", "spans", "tokens", "s", "span ends"]
    ellipsis = "…" if dash == "–" else "..."
    print(*table(heading, rows, left=(0, 8), width=width_of(sys.stdout), ellipsis=ellipsis), sep="\n")


def _with_progress(arm: Arm, n: int, done: Iterable[Answer]) -> Iterator[Answer]:
    """The same answers, with a line on stderr that counts them, where that is a terminal."""
    if not sys.stderr.isatty():
        yield from done
        return
    width = width_of(sys.stderr) - 1
    num_correct = 0
    try:
        for count, answer in enumerate(done, start=1):
            num_correct += answer.is_correct
            line = f"{arm} {count}/{n}, {num_correct} correct"
            print("\r" + line[:width], end="", file=sys.stderr, flush=True)
            yield answer
    finally:
        print("\r" + " " * min(width, 40) + "\r", end="", file=sys.stderr, flush=True)
