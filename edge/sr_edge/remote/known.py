"""What was found out about endpoints, from run to run. To lose it does no harm: it is found out again."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from sr_edge.errors import UsageError
from sr_edge.files import locked, write_private
from sr_edge.remote.dialects import Capabilities

_VERSION = 1
_MAX_ENTRIES = 256


def load(path: Path, url: str, model: str | None) -> Capabilities | None:
    """None where nothing is known, or the file can't be read or understood."""
    return Capabilities.from_json(_read(path).get(_key(url, model)))


def save(path: Path, url: str, model: str | None, capabilities: Capabilities) -> None:
    """Where nothing can be written, nothing is: no reason to stop."""
    with contextlib.suppress(UsageError), locked(path, timeout=1.0):
        known = _read(path)
        known.pop(_key(url, model), None)
        known[_key(url, model)] = capabilities.to_json()
        _write(path, dict(list(known.items())[-_MAX_ENTRIES:]))


def forget(path: Path, url: str) -> None:
    """Of all models at this address."""
    if not path.exists():
        return
    with contextlib.suppress(UsageError), locked(path, timeout=1.0):
        _write(path, {key: known for key, known in _read(path).items() if not key.startswith(f"{url}\n")})


def _key(url: str, model: str | None) -> str:
    return f"{url}\n{model or ''}"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        return {}
    endpoints = content.get("endpoints")
    return endpoints if isinstance(endpoints, dict) else {}


def _write(path: Path, endpoints: dict[str, Any]) -> None:
    write_private(path, json.dumps({"version": _VERSION, "endpoints": endpoints}, indent=1) + "\n")
