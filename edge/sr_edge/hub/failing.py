"""What goes wrong between us and a hub, in one line with the way out; and trying again."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from typing import ClassVar, TypeVar

from sr_edge.errors import EdgeError, ModelError
from sr_edge.remote.failure import FailedError, Failure
from sr_edge.remote.hub_client import HubClient
from sr_edge.remote.retry import seconds_to_wait
from sr_edge.terminal import safe_line

MAX_TRIES = 6
_LONGEST_PAUSE = 15.0

Note = Callable[[str], None]
T = TypeVar("T")


class HubError(EdgeError):
    """The hub cannot be reached, or not now: nothing is wrong with what was asked for."""

    exit_code: ClassVar[int] = 3


def persistently(work: Callable[[], T], client: HubClient, note: Note) -> T:
    """What `work` returns, tried again while its failures are those that pass.

    Raises:
        HubError: it failed `MAX_TRIES` times, or in a way that does not pass.
    """
    for attempt in range(1, MAX_TRIES + 1):
        try:
            return work()
        except FailedError as error:
            if attempt == MAX_TRIES or not error.failure.is_passing:
                raise HubError(said_of(error.failure, client)) from None
            pause(attempt, error.failure, client, note)
    raise AssertionError("unreachable")


def pause(attempt: int, failure: Failure, client: HubClient, note: Note) -> None:
    """Wait before the next try: longer each time, or as long as the server asks for."""
    seconds = failure.retry_after
    if seconds is None:
        seconds = min(2.0 ** (attempt - 2), _LONGEST_PAUSE) * (0.75 + 0.5 * random.random())
    note(f"{said_of(failure, client)}; again in {max(seconds, 1):.0f} s")
    client.wait(seconds)


def said_of(failure: Failure, client: HubClient) -> str:
    line = re.sub(r"broke off \(.*\)$", "broke off", failure.line.removeprefix("remote unreachable: "))
    line = line.replace("is the server running there?", "check the network, or try later")
    return safe_line(client.without_token(line))[:300]


def refusal(
    client: HubClient,
    status: int,
    headers: Mapping[str, str],
    *,
    repo: str,
    revision: str,
    file: str | None = None,
) -> Exception:
    """Of an answer that is no page: a FailedError where the same may well succeed in a moment.

    Args:
        headers: names in lower case.
        file: that was asked for, where it was not the repository.
    """
    code, said = headers.get("x-error-code", ""), headers.get("x-error-message", "")
    page = f"{client.endpoint}/{repo}"
    where, what = client.where, file or repo
    if code == "GatedRepo":
        if client.has_token:
            return ModelError(
                f"{repo} is gated, and the account of your token has no access yet: ask for it at {page}, "
                "then pull again"
            )
        return ModelError(
            f"{repo} is gated: accept its terms at {page}, then set HF_TOKEN to a token of that account "
            f"(made at {client.endpoint}/settings/tokens), and pull again"
        )
    if "disabled" in said:
        return ModelError(f"{repo}: {where} has disabled this repository: choose another")
    if code == "RevisionNotFound":
        return ModelError(f"{repo} has no revision {revision}: check it at {page}/commits, or leave it out")
    if code == "EntryNotFound" or (status == 404 and file and not code):
        return ModelError(f"{repo} has no {file} at revision {revision}: see {page}/tree/{revision}")
    if status == 401 and client.has_token and code != "RepoNotFound":
        return ModelError(
            f"{where} does not accept your token: make another at {client.endpoint}/settings/tokens"
        )
    if status in (401, 404):
        private = (
            "or your token's account may not see it"
            if client.has_token
            else "or it is private: then set HF_TOKEN to a token of an account that may see it"
        )
        return ModelError(f"{where} has no repository {repo}: check the spelling, {private}")
    if status == 403:
        reason = safe_line(client.without_token(said))[:200] or "it does not say why"
        return ModelError(f"{where} refuses {what} ({reason}): see {page}")
    if status in (408, 409, 429) or status >= 500:
        wait = seconds_to_wait(headers, time.time())
        is_busy = status == 429
        line = f"{where} " + ("asks us to wait" if is_busy else "failed") + f" (HTTP {status})"
        return FailedError(Failure(line, "busy" if is_busy else "unreachable", True, wait))
    return HubError(f"{where} answered HTTP {status} for {what}: is {client.endpoint} a hub of models?")
