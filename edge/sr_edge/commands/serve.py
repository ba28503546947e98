"""`sr-edge serve`: the models behind an OpenAI-compatible server, for every other program on this machine."""

from __future__ import annotations

import ipaddress
import os
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sr_edge.commands.completion import model_names, remote_names
from sr_edge.commands.interrupt import ENDING, Interrupt
from sr_edge.commands.leaving import receiver
from sr_edge.commands.output import note
from sr_edge.errors import UsageError

if TYPE_CHECKING:
    from sr_edge.config import Config
    from sr_edge.session import Session, SessionSettings

PORT = 8741
_MAX_PARALLEL = 16
_MAX_QUEUE = 1000


def serve(
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            metavar="REF",
            autocompletion=model_names,
            help="The small model: a GGUF, or its name in `sr-edge models`. Default: the built-in one.",
        ),
    ] = None,
    lora: Annotated[
        Path | None,
        typer.Option("--lora", metavar="GGUF", help="An adapter for the small model; see `sr-edge convert`."),
    ] = None,
    big: Annotated[
        str | None,
        typer.Option("--big", metavar="GGUF|URL", help="The large model, as in `sr-edge ask`."),
    ] = None,
    big_model: Annotated[
        str | None, typer.Option("--big-model", metavar="NAME", help="The endpoint's name for its model.")
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(
            "-r",
            "--remote",
            metavar="NAME",
            autocompletion=remote_names,
            help="The large model: an endpoint set up by `sr-edge remote add`.",
        ),
    ] = None,
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote",
            help="Let spans go to an endpoint. Without it nothing that a client sends leaves this machine.",
        ),
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Open no socket but the one that is listened at.")
    ] = False,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="0 takes any that is free.")
    ] = PORT,
    parallel: Annotated[
        int,
        typer.Option("--parallel", min=1, max=_MAX_PARALLEL, metavar="N", help="Answers written at once."),
    ] = 2,
    queue: Annotated[
        int,
        typer.Option("--queue", min=1, max=_MAX_QUEUE, metavar="N", help="Answers that may wait for a turn."),
    ] = 16,
    beyond_loopback: Annotated[
        bool,
        typer.Option("--beyond-loopback", help="Let --host be an address that other machines can reach."),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME[:PORT]",
            help="A name by which this server may be asked too. Repeatable.",
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            metavar="ORIGIN",
            help="A web page's site that may ask from a browser. Repeatable.",
        ),
    ] = None,
    print_token: Annotated[
        bool, typer.Option("--print-token", help="Print the token that clients must show, and end.")
    ] = False,
    profile: Annotated[
        str | None, typer.Option("--profile", metavar="NAME", help="Settings of this profile go first.")
    ] = None,
    config_path: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings from FILE, not from your own.")
    ] = None,
) -> None:
    """Serve the models over HTTP, as OpenAI's API, to the programs on this machine.

    stdout gets one line once it answers: the base URL. Ctrl-C ends it.
    """
    from sr_edge.serve.token import serve_token, token_path

    if print_token:
        print(serve_token())
        return
    if big is not None and remote is not None:
        raise UsageError("--big and --remote exclude each other: there is one large model")

    from sr_edge.config import load_config
    from sr_edge.session import Session, one_blas_thread

    with one_blas_thread():
        from sr_edge.local import SamplerSettings
    from sr_edge.serve.app import Document, make_app
    from sr_edge.serve.connections import Patience
    from sr_edge.serve.desk import Desk, settings_for
    from sr_edge.serve.guard import names_of
    from sr_edge.serve.metrics import Metrics
    from sr_edge.serve.openapi import document
    from sr_edge.serve.page import load_page
    from sr_edge.serve.requests import RequestLimits, model_ids
    from sr_edge.serve.running import HttpServer, bind, url_of

    config = load_config(
        environ=os.environ,
        path=config_path,
        profile=profile,
        flags={"default_remote": remote, "model": model, "offline": offline or None},
    )
    settings = settings_for(
        _settings(config, big=big, big_model=big_model, lora=lora, remote=remote, allow_remote=allow_remote),
        parallel,
    )
    with (
        Interrupt(*ENDING) as interrupt,
        closing(bind(host, port, beyond_loopback=beyond_loopback)) as bound,
    ):
        address, port = bound.getsockname()[:2]
        names = names_of(port, bound=address, hosts=allow_host or (), origins=allow_origin or ())
        if ipaddress.ip_address(address).is_unspecified and not allow_host:
            raise UsageError(
                f"--host {host} listens at every address of this machine: say with --allow-host by which "
                "name clients will ask for it, such as --allow-host box.lan"
            )
        token = serve_token()
        with (
            Session.open(settings, warn=note, progress=interrupt.check) as session,
            Desk(session, settings, max_waiting=queue, warn=note) as desk,
        ):
            _introduce(session, settings)
            metrics = Metrics(desk.figures)
            page = load_page()
            ids = model_ids(desk.name, has_big=desk.big is not None)
            app = make_app(
                desk,
                limits=RequestLimits(
                    models=ids,
                    sampling=SamplerSettings(temperature=settings.temperature, seed=settings.seed),
                    max_tokens=settings.max_tokens,
                    opening=desk.opening,
                    vocabulary_size=desk.vocabulary_size,
                ),
                names=names,
                token=token,
                metrics=metrics,
                page=Document(page.body, page.headers),
                openapi=document(list(ids), vocabulary_size=desk.vocabulary_size),
                say=note,
            )

            def ready() -> None:
                url = url_of(bound)
                note(f"{next(iter(ids))} is served at {url}/v1, for clients that show the token as API key")
                note(f"the token is in {token_path()}; `sr-edge serve --print-token` prints it")
                key = f"#token={token}" if sys.stderr.isatty() else ""
                note(f"in a browser: {url}/{key}")
                print(f"{url}/v1", flush=True)

            server = HttpServer(
                app,
                patience=Patience(),
                refused=lambda status: metrics.responded("none", status),
                ready=ready,
                closing=desk.close,
                say=note,
            )
            with interrupt.ending(server.stop):
                if not interrupt():
                    server.run(sockets=[bound])
    if interrupt():
        raise typer.Exit(interrupt.code)


def _settings(
    config: Config,
    *,
    big: str | None,
    big_model: str | None,
    lora: Path | None,
    remote: str | None,
    allow_remote: bool,
) -> SessionSettings:
    """What may be asked, and by whom it is decided: the name of a model says who writes, whatever the policy.

    Raises:
        UsageError: an endpoint is named, and nothing allows that it is asked.
    """
    from sr_edge.session import is_url, settings_of

    if config.offload.policy != "local":
        config = replace(config, offload=replace(config.offload, policy="auto"))
    settings = settings_of(config, big=big, big_model=big_model, hedge=None, lora=lora)
    settings = replace(settings, kept_mb=None)
    named = remote if remote is not None else big if big is not None and is_url(big) else None
    if allow_remote:
        return settings
    if named is not None:
        raise UsageError(
            f"{named} is on the network, and any client of this server could send there: add --allow-remote "
            "if they may"
        )
    if settings.remote is not None:
        note(f"{settings.remote.name} is not asked: --allow-remote lets spans go there")
        settings = replace(settings, remote=None)
    return settings


def _introduce(session: Session, settings: SessionSettings) -> None:
    """What the user should know before anybody asks."""
    for notice in session.notices:
        note(notice)
    outside = session.outside
    if outside is not None and not settings.offline:
        where = receiver(outside.model.name, outside.endpoint.where)
        note(f"spans go to {where}, with the question and the answer so far, for every client")
