"""`sr-edge models`: the GGUFs on the shelf. Only `pull` fetches any (`pulling`)."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sr_edge.commands import STYLE
from sr_edge.commands.bar import Bar
from sr_edge.commands.completion import model_names
from sr_edge.commands.interrupt import Interrupt
from sr_edge.commands.listing import print_json, print_table, say, settings
from sr_edge.commands.output import note
from sr_edge.commands.pulling import KeepCheckpoint, Offline, Revision, Type, What, pull_model
from sr_edge.config.edit import Change, change_config
from sr_edge.errors import ModelError, UsageError
from sr_edge.files import config_path
from sr_edge.gguf_header import ARCHITECTURES, read_header
from sr_edge.hub.unfinished import checkpoint_dir, unfinished
from sr_edge.markers import Markers
from sr_edge.passport import demo_paths
from sr_edge.shelf import (
    BUILT_IN,
    NONE,
    Facts,
    Shelved,
    Verdict,
    amount,
    facts_of,
    find,
    models,
    name_for,
    named,
    place,
    read_beside,
    refuse_taken,
    remove,
    shelf_dir,
    take_in,
    verify,
)
from sr_edge.terminal import safe_line
from sr_edge.trial import try_opening

app = typer.Typer(**STYLE)

AsObject = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="On the shelf.", autocompletion=model_names, show_default=False)
]
Ref = Annotated[
    str | None,
    typer.Argument(
        metavar="REF",
        help="A name on the shelf, or a path. Default: the default model.",
        autocompletion=model_names,
        show_default=False,
    ),
]


@app.callback(invoke_without_command=True)
def models_(ctx: typer.Context) -> None:
    """The models on this machine, by name.

    They are GGUFs on a shelf of their own. REF is a name on the shelf or the path of a GGUF; `ask -m` takes
    both too. Only `pull` fetches anything. Exit codes: 0 done, 1 no room on the disk, 2 wrong usage, 3 the
    hub cannot be reached, 4 a model is missing or unusable, 130 interrupted. Without a command: `list`.
    """
    if ctx.invoked_subcommand is None:
        list_models()


@app.command("list")
def list_models(as_object: AsObject = False) -> None:
    """All models on the shelf; the default one has a star."""
    shelf = models(os.environ)
    default = _default()
    rows, objects = [], []
    for model in shelf:
        facts, problem = _looked_at(model)
        is_default = default is not None and _is_same(default, model.path)
        objects.append(_as_json(model.path, facts, problem) | {"name": model.name, "default": is_default})
        rows.append(
            [
                "*" if is_default else " ",
                model.name,
                amount(model.size),
                facts.quantization if facts else "",
                facts.architecture if facts else "",
                f"{facts.context:,}" if facts else "",
                _marker_words(facts) if facts else "",
                problem.removeprefix(f"{model.path}: ") if problem else "",
            ]
        )
    if as_object:
        print_json(objects)
        return
    heading = ["", "name", "size", "weights", "kind", "context", "markers", "problem"]
    rows.append(["*" if default is None else " ", BUILT_IN, "", "", "", "", "yes", ""])
    if not any(row[-1] for row in rows):
        heading, rows = heading[:-1], [row[:-1] for row in rows]
    print_table(heading, rows, right=(2, 5))
    if default is not None and not any(item["default"] for item in objects):
        say(f"the default is {default}, which is not on the shelf", keeps_spaces=True)
    if not shelf:
        note(
            f"no model is on the shelf yet: get a GGUF of a {', '.join(ARCHITECTURES[:-1])} or "
            f"{ARCHITECTURES[-1]} model, then `sr-edge models import FILE.gguf`, or "
            "`sr-edge models pull REPO`"
        )
    for cut in unfinished(shelf_dir(os.environ)):
        part = cut.part
        what = part.repo + (f":{part.path}" if part.path.lower().endswith(".gguf") else "")
        note(
            f"{amount(cut.size)} of the {amount(part.size)} of {part.path} have come: `sr-edge models pull "
            f"{shlex.quote(what)}` goes on from there"
        )


@app.command("show")
def show(ref: Ref = None, as_object: AsObject = False) -> None:
    """What a model is, as its file says it."""
    path = _meant(ref)
    facts = facts_of(read_header(path))
    if as_object:
        print_json(_as_json(path, facts, None))
        return
    passport = read_beside(path)
    free = _free_memory()
    lines = {
        "model": facts.name,
        "file": str(path),
        "size": f"{amount(facts.file_size)}, {_count(facts.parameters)} weights",
        "weights": facts.quantization,
        "kind": facts.architecture,
        "context": f"{facts.context:,} tokens",
        "vocabulary": f"{facts.vocabulary:,} tokens",
        "memory": f"about {amount(facts.memory)}" + (f", {amount(free)} is free" if free else ""),
        "markers": _marker_details(facts),
        "base": facts.base,
        "licence": facts.licence or "the file does not say",
        "came from": passport and f"{passport.source}, {passport.added}",
        "converted": passport and passport.converted and f"here, from a checkpoint, to {passport.converted}",
        "sha256": passport and passport.sha256,
    }
    for what, words in lines.items():
        if words:
            say(f"{what:<12}{safe_line(words)}", keeps_spaces=True)


@app.command("path")
def path(ref: Ref = None) -> None:
    """Where a model's file is; without REF, where the shelf is."""
    if ref is None:
        print(shelf_dir(os.environ))
    else:
        print(_meant(ref))


@app.command("default")
def default(
    ref: Annotated[
        str | None,
        typer.Argument(
            metavar="REF",
            help="A name on the shelf, a path, or `none` for the built-in pair.",
            autocompletion=model_names,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print the default model, or make REF it."""
    if ref is None:
        now = _default()
        say(BUILT_IN if now is None else _called(now), keeps_spaces=True)
        return
    if ref in (NONE, BUILT_IN):
        change_config(config_path(os.environ), lambda data: [Change(("model",), None)])
        say("the built-in pair is the default")
        _say_if_overridden(None)
        return
    found = find(ref, os.environ).absolute()
    read_header(found)
    change_config(config_path(os.environ), lambda data: [Change(("model",), str(found))])
    say(f"{_called(found)} is the default", keeps_spaces=True)
    _say_if_overridden(found)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF.", show_default=False)],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What you call it. Default: the file's name.")
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="Leave the file where it is, and link to it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the one of this name.")] = False,
    default: Annotated[bool, typer.Option("--default", help="Make it the default.")] = False,
) -> None:
    """Put a GGUF on the shelf: a copy whose sha256 is taken down.

    It is first opened where it can do no harm. Ctrl-C, a full disk or a file that is no model leave the shelf
    as it was.
    """
    read_header(file)
    refuse_taken(place(name_for(file.name, name), os.environ), force=force or _is_on_shelf(file))
    with Interrupt() as interrupt, Bar("trying it", interrupt) as bar:
        try_opening(file, poll=bar.tick)
        bar = Bar("copying" if not link else "reading", interrupt)
        model = take_in(file, name=name, is_link=link, force=force, environ=os.environ, progress=bar.progress)
        bar.clear()
    how = "a link to it is" if link else "it is"
    say(f"{model.name}: {amount(model.size)}, {how} at {model.path}", keeps_spaces=True)
    _say_what_now(model, default)


@app.command("pull")
def pull(
    what: What,
    type: Type = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What you call it. Default: the file's name.")
    ] = None,
    revision: Revision = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the one of this name; fetch it again.")
    ] = False,
    default: Annotated[bool, typer.Option("--default", help="Make it the default.")] = False,
    keep_checkpoint: KeepCheckpoint = False,
    offline: Offline = False,
) -> None:
    """Fetch a model from a hub and put it on the shelf, ready for use.

    A repository of GGUFs gives the one that is named, or its Q4_K_M; one of safetensors is fetched, converted
    and quantised. What comes is compared with the sha256 that the hub announces, and first opened where it
    can do no harm. A pull that was cut, by Ctrl-C too, goes on where it was. HF_ENDPOINT, HF_TOKEN and
    HF_HUB_OFFLINE mean what they mean to the hub's own tools; the environment's proxies are not used.

    Exit codes: 0 it is on the shelf, 1 no room on the disk, 2 wrong usage, or another pull is at it, 3 the
    hub cannot be reached, or the shelf lacks it offline, 4 a repository or a file is missing, not open to you
    or unusable, 130 interrupted, 143 and 129 ended by a signal.
    """
    pulled = pull_model(
        what,
        type=type,
        name=name,
        revision=revision,
        force=force,
        keep_checkpoint=keep_checkpoint,
        offline=offline,
    )
    model = pulled.model
    how = "it is there already" if pulled.was_there else "it is"
    say(f"{model.name}: {amount(model.size)}, {how} at {model.path}", keeps_spaces=True)
    if pulled.checkpoint is not None:
        say(
            f"its checkpoint is at {pulled.checkpoint}; to compare: "
            f"sr-edge verify {shlex.quote(str(model.path))} --against {shlex.quote(str(pulled.checkpoint))}",
            keeps_spaces=True,
        )
    _say_what_now(model, default)


def _say_what_now(model: Shelved, default: bool) -> None:
    facts = facts_of(read_header(model.path))
    if facts.markers is None:
        note(
            facts.marker_problem or f"{model.name} has no markers, so it cannot ask for help: it writes alone"
        )
    if default:
        change_config(config_path(os.environ), lambda data: [Change(("model",), str(model.path))])
        say(f"{model.name} is the default")
        _say_if_overridden(model.path)
    else:
        say(f'to use it: sr-edge ask -m {model.name} "PROBLEM"; always: sr-edge models default {model.name}')


@app.command("verify")
def verify_(ref: Ref = None, as_object: AsObject = False) -> None:
    """Whether a model's file is whole, and still the one that came.

    Exit code 0: it is, as far as can be known; 4: it is not.
    """
    found = _meant(ref)
    with Interrupt() as interrupt, Bar("reading", interrupt) as bar:
        verdict = verify(found, bar.progress)
    if as_object:
        print_json(
            {
                "path": str(verdict.path),
                "ok": verdict.problem is None,
                "sha256": verdict.sha256,
                "expected": verdict.expected,
                "problem": verdict.problem,
            }
        )
    else:
        _print_verdict(verdict)
    if verdict.problem is not None:
        raise typer.Exit(ModelError.exit_code)


@app.command("rm")
def rm(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take a model off the shelf, for good; what a link leads to stays."""
    model = named(name, os.environ)
    is_link = model.path.is_symlink()
    what = f"the link {model.name}" if is_link else f"{model.name}, {amount(model.size)},"
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError(
                f"nobody is there to ask: `sr-edge models rm {model.name} --yes` removes {what}"[:-1]
            )
        if not _says_yes(f"Remove {what} for good? [y/N] "):
            note("nothing was removed")
            raise typer.Exit(0)

    def changes(data: Mapping[str, Any]) -> Iterable[Change]:
        profiles = data.get("profiles", {})
        layers = [((), data), *((("profiles", name), profiles[name]) for name in profiles)]
        for above, layer in layers:
            said = layer.get("model")
            if isinstance(said, str) and _is_same(config_path(os.environ).parent / said, model.path):
                yield Change((*above, "model"), None)

    was_default = (
        change_config(config_path(os.environ), changes) if config_path(os.environ).exists() else False
    )
    remove(model)
    say(f"{model.name} is removed" + ("; the built-in pair is the default now" if was_default else ""))
    checkpoint = checkpoint_dir(shelf_dir(os.environ), model.name)
    if checkpoint.exists():
        say(f"its checkpoint is still at {checkpoint}", keeps_spaces=True)


# --- what is meant -----------------------------------------------------------------------------------


def _meant(ref: str | None) -> Path:
    """Raises: ModelError: nothing is."""
    if ref == BUILT_IN and not Path(ref).exists():
        return demo_paths().small
    if ref is not None:
        return find(ref, os.environ)
    return _default() or demo_paths().small


def _default() -> Path | None:
    """None: the built-in pair. What is not there is shown as it was meant."""
    said = settings().model
    if said is None:
        return None
    try:
        return find(said, os.environ)
    except ModelError:
        return Path(said)


def _is_on_shelf(file: Path) -> bool:
    """Whether somebody put it there by hand."""
    return file.absolute().parent == shelf_dir(os.environ)


def _called(path: Path) -> str:
    """The name on the shelf, or the path."""
    return path.stem if path.parent == shelf_dir(os.environ) else str(path)


def _is_same(a: Path, b: Path) -> bool:
    with suppress(OSError):
        return a.samefile(b)
    return a.absolute() == b.absolute()


def _say_if_overridden(wanted: Path | None) -> None:
    config = settings()
    origin = config.origin("model")
    if origin.startswith(("env ", "profile ")) and config.model != (wanted and str(wanted)):
        note(f"but {origin} comes first, and says {config.model}")


def _says_yes(question: str) -> bool:
    print(safe_line(question), end=" ", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


# --- what is shown -----------------------------------------------------------------------------------


def _looked_at(model: Shelved) -> tuple[Facts | None, str | None]:
    if not model.is_there:
        return None, "the file that it links to is gone"
    try:
        return facts_of(read_header(model.path)), None
    except ModelError as error:
        return None, str(error)


def _as_json(path: Path, facts: Facts | None, problem: str | None) -> dict[str, Any]:
    passport = read_beside(path)
    found: dict[str, Any] = {"path": str(path), "problem": problem, "passport": passport and asdict(passport)}
    if facts is None:
        return found
    return found | {
        "title": facts.name,
        "architecture": facts.architecture,
        "parameters": facts.parameters,
        "bytes": facts.file_size,
        "quantization": facts.quantization,
        "context": facts.context,
        "vocabulary": facts.vocabulary,
        "markers": facts.markers and facts.markers.form,
        "handback_tau": facts.markers and facts.markers.tau,
        "marker_problem": facts.marker_problem,
        "licence": facts.licence,
        "base": facts.base,
        "memory": facts.memory,
    }


def _marker_words(facts: Facts) -> str:
    if facts.marker_problem:
        return "wrong"
    return "no" if facts.markers is None else "yes" if facts.markers.form == "token" else "as text"


def _marker_details(facts: Facts) -> str:
    markers: Markers | None = facts.markers
    if markers is None:
        return facts.marker_problem or "none: it cannot ask for help, and writes alone"
    form = "control tokens" if markers.form == "token" else "ordinary text"
    return f"{form}; it takes the pen back at p {markers.tau:g}"


def _count(parameters: int) -> str:
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if parameters >= unit:
            return f"{parameters / unit:.1f} {name}"
    return f"{parameters:,}"


def _free_memory() -> int | None:
    from sr_edge.doctor.machine import memory

    return memory().available


def _print_verdict(verdict: Verdict) -> None:
    say(f"sha256 {verdict.sha256}", keeps_spaces=True)
    if verdict.problem is not None:
        note(f"{verdict.path}: {verdict.problem}. Its passport says {verdict.expected}")
    elif verdict.expected is None:
        say("the file is whole; it has no passport, so nobody knows whether it is the one that came")
    else:
        say("the file is whole, and the one that came")
