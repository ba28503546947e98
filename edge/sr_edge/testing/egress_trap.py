"""Sees every attempt of this process to reach the network, whatever library makes it.

    >>> import socket
    >>> with EgressTrap() as trap:
    ...     _ = socket.getaddrinfo("localhost", 80)
    >>> trap.hosts
    {'localhost'}

It sits on Python's audit events, so it does not see child processes, nor native code that opens sockets by
itself: for those run the command in a network namespace of its own, or under strace. Standard library only.
"""

from __future__ import annotations

import socket
import sys
import threading
from dataclasses import dataclass
from typing import Any, Self

_NAMES = ("socket.getaddrinfo", "socket.gethostbyname")
_ADDRESSES = ("socket.connect", "socket.sendto", "socket.sendmsg")
_NEW = "socket.__new__"


@dataclass(frozen=True, slots=True)
class Attempt:
    event: str
    """The audit event: `socket.connect`, `socket.getaddrinfo`, `socket.__new__` …"""
    host: str
    """Empty for a socket that has just been made."""
    port: int | None


class EgressTrap:
    """Records while it is entered, for all threads."""

    def __init__(self) -> None:
        self._attempts: list[Attempt] = []

    @property
    def attempts(self) -> list[Attempt]:
        """Look-ups, connections and datagrams; a socket alone is none yet."""
        return [attempt for attempt in self._attempts if attempt.event != _NEW]

    @property
    def sockets(self) -> int:
        """How many internet sockets were made, used or not."""
        return sum(attempt.event == _NEW for attempt in self._attempts)

    @property
    def hosts(self) -> set[str]:
        return {attempt.host for attempt in self.attempts}

    def outside(self, *allowed: tuple[str, int]) -> list[Attempt]:
        """Attempts at anything but these hosts and ports."""
        hosts = {host for host, _ in allowed}
        return [
            one
            for one in self.attempts
            if (one.host not in hosts if one.event in _NAMES else (one.host, one.port) not in allowed)
        ]

    def __enter__(self) -> Self:
        _HOOK.add(self)
        return self

    def __exit__(self, *args: object) -> None:
        _HOOK.remove(self)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _NAMES:
            self._attempts.append(Attempt(event, _plain(args[0]), None))
        elif event in _ADDRESSES and isinstance(args[1], tuple):  # others are of this machine only
            self._attempts.append(Attempt(event, _plain(args[1][0]), args[1][1]))
        elif event == _NEW and args[1] in (socket.AF_INET, socket.AF_INET6):
            self._attempts.append(Attempt(event, "", None))


class _Hook:
    """The one audit hook of the process, which Python cannot take away again; installed at first use."""

    def __init__(self) -> None:
        self._traps: tuple[EgressTrap, ...] = ()
        self._lock = threading.Lock()
        self._is_installed = False

    def add(self, trap: EgressTrap) -> None:
        with self._lock:
            if not self._is_installed:
                sys.addaudithook(self)
                self._is_installed = True
            self._traps = (*self._traps, trap)

    def remove(self, trap: EgressTrap) -> None:
        with self._lock:
            self._traps = tuple(one for one in self._traps if one is not trap)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self._traps and event.startswith("socket."):
            for trap in self._traps:
                trap._hear(event, args)


_HOOK = _Hook()


def _plain(host: object) -> str:
    if isinstance(host, bytes):
        return host.decode("ascii", "replace")
    return str(host)
