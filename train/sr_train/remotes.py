"""The endpoints that a recipe names, by a name of `sr-edge remote list` or a URL. Opens no connection."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from sr_edge.config import RemoteConfig, load_config
from sr_edge.errors import UsageError
from sr_edge.keys import find_key
from sr_edge.remote.deadlines import Deadlines
from sr_edge.remote.egress import Door
from sr_edge.remote.endpoint import Endpoint
from sr_edge.roles import Message, Prompt
from sr_edge.session import API_KEY_VARIABLE, is_url
from sr_train.recipe import BigPart

Render = Callable[[Sequence[Message]], Prompt]
"""How the small model's template writes a conversation: raw completions continue that."""


def remote_named(
    named: str, *, offline: bool, environ: Mapping[str, str] = os.environ
) -> tuple[RemoteConfig, str | None, bool]:
    """The endpoint of a name or a URL, its key, and whether nothing may be sent.

    Raises:
        UsageError: none is set up under this name, or its key cannot be had.
    """
    config = load_config(environ=environ)
    is_offline = offline or config.offline
    if is_url(named):
        return RemoteConfig(name=named, url=named), environ.get(API_KEY_VARIABLE) or None, is_offline
    remote = config.remote(named)
    secret = None if is_offline else find_key(remote, environ=environ)
    return remote, secret.reveal() if secret else None, is_offline


def open_big(
    part: BigPart, render: Render, *, offline: bool = False, environ: Mapping[str, str] = os.environ
) -> Endpoint:
    """The endpoint that writes the spans; the caller closes it.

    Raises:
        UsageError: the recipe names none, or one that is not set up.
    """
    if part.remote is None:
        raise UsageError("the recipe names no endpoint: set big.remote to a name or a URL")
    remote, key, is_offline = remote_named(part.remote, offline=offline, environ=environ)
    return Endpoint(
        remote.url,
        prompt=render,
        model=part.remote_model or remote.model,
        api_key=key,
        api=remote.api,
        temperature=part.temperature,
        deadlines=Deadlines(**remote.timeout),
        plain_http=remote.plain_http,
        ca_file=remote.ca_file,
        proxy=remote.proxy,
        door=Door(offline=is_offline),
    )
