"""`sr-edge serve` as a user starts it, and what a client must know of it."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.command_line import environment, run

from sr_edge.remote.serving import serving

PATIENCE = 120.0
"""Seconds for what must happen, on a machine that has other things to do."""


@dataclass(frozen=True)
class Server:
    root: str
    """http://127.0.0.1:PORT"""
    token: str
    home: Path

    @property
    def url(self) -> str:
        """What clients call the base URL."""
        return f"{self.root}/v1"


@contextmanager
def served(home: Path, *options: object) -> Iterator[Server]:
    env = environment(SR_EDGE_HOME=str(home))
    told = run("serve", "--print-token", env={"SR_EDGE_HOME": str(home)})
    assert told.returncode == 0, told.stderr
    with serving([*map(str, options)], env) as ready:
        yield Server(ready.url.rstrip("/").removesuffix("/v1"), told.stdout.strip(), home)


def needs(*packages: str) -> pytest.MarkDecorator:
    """For `pytestmark`: what `make test-all` installs and `make test` does not."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed (sr-edge[judges]): {', '.join(missing)}")


def eventually(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "that never happened"
        time.sleep(0.02)
