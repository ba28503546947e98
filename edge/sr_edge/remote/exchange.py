"""What a line says of one exchange: how far it has come, what the reply is, and how it broke."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Stage: TypeAlias = Literal[
    "dialling",  # a connection is about to be made, name look-up first
    "sent",  # the request is about to leave on it
    "answered",  # the first byte of the reply's head has come
]


class HungUpError(Exception):
    """This side hung up."""


class NoAnswerError(ConnectionError):
    """The other side closed the connection before a reply began."""


class NoConnectionError(TimeoutError):
    """There was none in time."""


class NoHttpError(Exception):
    """What came is no head of an HTTP reply."""


class CutOffError(ConnectionError):
    """The other side broke the reply off, or does not keep to its own framing."""


class ForbiddenPeerError(Exception):
    """The host's address is none that may be asked. Nothing was sent to it."""


class ProxyRefusedError(Exception):
    """The configured proxy made no connection."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply whose body is still to be read."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    ends_by_itself: bool
    """Its body has an end other than that of the connection."""
    chunks: Iterator[bytes]
    """The body as it arrives.

    Raises:
        OSError: it was cut.
    """
