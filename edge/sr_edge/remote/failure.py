"""What a failure means: one line that a user can act on, and whose fault it is. Pure.

Lines quote what a server said. Whoever shows one makes it harmless first (`reply.plain_line`).
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from sr_edge.remote.exchange import (
    CutOffError,
    ForbiddenPeerError,
    NoAnswerError,
    NoConnectionError,
    NoHttpError,
    ProxyRefusedError,
)
from sr_edge.remote.reply import UnreadableError, error_text, parse_object
from sr_edge.remote.retry import seconds_to_wait
from sr_edge.roles import Fault


@dataclass(frozen=True, slots=True)
class Failure:
    line: str
    fault: Fault | None
    """None: it was our own doing."""
    is_passing: bool = False
    """The same request may well succeed in a moment."""
    retry_after: float | None = None
    """Seconds that the server asks us to wait."""


class FailedError(Exception):
    """The request failed, or its reply did."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.line)
        self.failure = failure


class RefusedError(FailedError):
    """The server answered with something other than 200."""

    def __init__(self, failure: Failure, status: int, body: str) -> None:
        super().__init__(failure)
        self.status = status
        self.body = body


CONNECTION_ERRORS = (OSError, NoHttpError, ForbiddenPeerError, ProxyRefusedError)
"""What a `Line` raises where it is not we who hung up."""


def of_connection(error: BaseException, where: str) -> Failure:
    """Of one of `CONNECTION_ERRORS`; or of any other error, as a last resort.

    Args:
        where: host and port.
    """
    match error:
        case ForbiddenPeerError():
            line = f"{where} turned out to be {error}, which is not on your own network"
            return Failure(f"{line}: plain http is not used there; use https://", "refused")
        case ProxyRefusedError():
            return Failure(f"the proxy does not connect to {where} ({error}); check `proxy`", "refused")
        case ssl.SSLCertVerificationError():
            line = f"the certificate of {where} is not valid for it ({error.verify_message or error.reason})"
            return Failure(f"remote unreachable: {line}; nothing was sent", "refused")
        case CutOffError():
            return Failure(f"{where} broke off ({error})", "unreachable", is_passing=True)
        case NoAnswerError() | ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return Failure(f"{where} broke off without an answer", "unreachable", is_passing=True)
        case ssl.SSLError():
            line = f"no TLS with {where} ({error.reason}); is it http://, not https://?"
            return Failure(f"remote unreachable: {line}", "unreachable")
        case socket.gaierror():
            line = f"no address known for {where}; check the URL and the network"
            return Failure(f"remote unreachable: {line}", "unreachable")
        case ConnectionRefusedError():
            line = f"connection refused at {where}; is the server running there?"
            return Failure(f"remote unreachable: {line}", "unreachable")
        case ConnectionError():
            return Failure(f"connection reset by {where}", "unreachable", is_passing=True)
        case NoConnectionError():
            line = f"no connection to {where} in time; check the URL and the network"
            return Failure(f"remote unreachable: {line}", "unreachable")
        case TimeoutError():
            return Failure(f"{where} fell silent", "unreachable")
        case OSError() if error.errno in _NO_ROUTE:
            return Failure(f"remote unreachable: no route to {where}; check the network", "unreachable")
        case NoHttpError():
            return Failure(f"{where} broke off or does not speak HTTP ({error})", "unreachable")
        case _:
            line = f"the request to {where} failed: {type(error).__name__}: {error}"
            return Failure(line, "unreachable" if isinstance(error, OSError) else "request")


_NO_ROUTE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}


def of_status(
    status: int, headers: Mapping[str, str], body: str, *, where: str, url: str, model: str | None,
    has_key: bool, now: float,
) -> Failure:  # fmt: skip
    """Of a reply that is no 200.

    Args:
        url: what was asked.
        now: seconds since 1970, for a date that the server asks us to wait for.
    """
    said = _said(body)
    wait = seconds_to_wait(headers, now)
    fault: Fault = "request"
    if 300 <= status < 400:
        target = headers.get("location", "nowhere")
        line = f"{where} redirects to {target}: not followed; give the final address as the URL"
        return Failure(line, "refused")
    if status in (401, 403):
        fault, what = "refused", "does not accept the API key" if has_key else "wants an API key"
    elif status in (404, 405, 501):
        fault, what = "refused", f"has no {url}, or no model {model!r}: check URL and model name"
    elif status == 402 or (status == 429 and is_used_up(body)):
        line = f"{where} says that your quota or credit is used up (HTTP {status}){said}"
        return Failure(line, "busy")
    elif status == 429:
        fault, what = "busy", "is busy"
    elif status >= 500 or status == 408:
        fault, what = "busy" if wait else "unreachable", "failed"
    else:
        what = "refused the request"
    is_passing = status in (408, 409, 429) or (status >= 500 and status != 501)
    return Failure(f"{where} {what} (HTTP {status}){said}", fault, is_passing, wait if is_passing else None)


def has_no_completions(status: int, body: str) -> bool:
    """Whether the refusal of a raw completion may mean that there is only chat."""
    return status in (404, 405, 501) or (status == 400 and bool(_CHAT_ONLY.search(body)))


def of_report(error: Exception) -> Failure:
    """Of what is wrong with a reply that had begun with a 200: it says so, or can't be read."""
    said = str(error)
    if isinstance(error, UnreadableError):
        return Failure(said, "unreachable", is_passing=True)
    if is_used_up(said) or _BUSY.search(said):
        return Failure(said, "busy")
    return Failure(said, "request" if _REQUEST.search(said) else "unreachable")


def is_used_up(said: str) -> bool:
    """It is no use to ask again in a moment."""
    return bool(_USED_UP.search(said))


_CHAT_ONLY = re.compile(r"\bchat\b", re.I)
_USED_UP = re.compile(r"insufficient_quota|exceeded your current quota|insufficient.?(balance|credit)", re.I)
_BUSY = re.compile(r"rate.?limit|overloaded|\b429\b|too many requests", re.I)
_REQUEST = re.compile(
    r"content.?filter|finish reason|context.{0,10}(length|size|window)|invalid_request", re.I
)


def _said(body: str) -> str:
    """What the server gives as the reason; a page of HTML says nothing."""
    try:
        said = error_text(parse_object(body))
    except UnreadableError:
        said = "" if body.lstrip().startswith("<") else body
    return f": {said}" if said.strip() else ""
