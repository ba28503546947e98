"""`sr-edge models pull`: a model from a hub onto the shelf. The only command that fetches any."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from sr_edge.commands.bar import Bar, short
from sr_edge.commands.interrupt import ENDING, Interrupt
from sr_edge.commands.listing import offline_origin, settings
from sr_edge.commands.output import note
from sr_edge.errors import UsageError
from sr_edge.hub.access import endpoint, offline_variable, token
from sr_edge.hub.reference import Reference, parse_reference
from sr_edge.shelf import Shelved, check_on_load, models

if TYPE_CHECKING:
    from sr_edge.hub.pull import Pulled

What = Annotated[
    str,
    typer.Argument(
        metavar="REPO[:FILE]",
        help="OWNER/NAME on the hub or its URL; FILE is a GGUF in it, or a type such as Q4_K_M.",
        show_default=False,
    ),
]
Type = Annotated[
    str | None,
    typer.Option(
        "--type", metavar="TYPE", help="Of the weights, as `sr-edge convert` has it. Default: q4_k_m."
    ),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="REV", help="A branch, a tag or a commit of the repository."),
]
KeepCheckpoint = Annotated[
    bool, typer.Option("--keep-checkpoint", help="Keep what was converted, for `sr-edge verify`.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Ask nobody: look on the shelf only.")]


def pull_model(
    what: str,
    *,
    type: str | None,
    name: str | None,
    revision: str | None,
    force: bool,
    keep_checkpoint: bool,
    offline: bool,
) -> Pulled:
    """Raises: HubError, ModelError, UsageError, EdgeError."""
    environ = os.environ
    reference = parse_reference(what, revision=revision, endpoint=endpoint(environ))
    origin = "--offline" if offline else offline_origin(settings()) or offline_variable(environ)
    if origin is not None:
        return _from_the_shelf(reference, type, name, origin)

    from sr_edge.doctor.machine import memory
    from sr_edge.hub.pull import Request, Surroundings, pull
    from sr_edge.remote.egress import Door
    from sr_edge.remote.hub_client import HubClient

    with Interrupt(*ENDING) as interrupt, Bar("", interrupt) as bar:

        def progress(doing: str, done: int, whole: int) -> None:
            bar.stage(short(doing), done, whole)

        def say(line: str) -> None:
            bar.clear()
            note(line)

        key = token(environ)
        try:
            client = HubClient(Door(), endpoint(environ), token=key, tick=bar.tick)
        except UsageError as error:
            raise UsageError(f"HF_ENDPOINT: {error}") from None
        request = Request(reference, type, name, force, keep_checkpoint)
        with client:
            try:
                return pull(client, request, Surroundings(environ, memory().total, progress, say))
            except (KeyboardInterrupt, SystemExit):
                say("stopped; what has come is kept: the same command goes on from there")
                raise


def _from_the_shelf(reference: Reference, type: str | None, name: str | None, origin: str) -> Pulled:
    """Raises:
    HubError: it is not there.
    ModelError: it is, and was changed.
    """
    from sr_edge.hub.failing import HubError
    from sr_edge.hub.pull import Pulled

    shelf = models(os.environ)
    for model in shelf:
        if model.is_there and _is_meant(reference, type, name, model):
            check_on_load(model.path)
            return Pulled(model, was_there=True)
    names = ", ".join(model.name for model in shelf) or "nothing"
    what = f"{reference}{f' of type {type}' if type else ''}{f' called {name}' if name else ''}"
    raise HubError(
        f"offline ({origin}): nothing is fetched, and {what} is not on the shelf, which holds {names}"
    )


def _is_meant(reference: Reference, type: str | None, name: str | None, model: Shelved) -> bool:
    from sr_edge.hub.choosing import type_in, type_named

    passport = model.passport
    if passport is None or (passport.repo or "").lower() != reference.repo.lower():
        return False
    has_type = passport.converted or type_in(passport.file or "")
    file, revision = reference.file, reference.revision

    def is_of(wanted: str) -> bool:
        return has_type is not None and has_type == type_named(wanted)

    return (
        (file is None or passport.file in (file, f"{file}.gguf") or is_of(file))
        and (type is None or is_of(type))
        and name in (None, model.name)
        and (revision is None or (passport.revision or "").startswith(revision))
    )
