"""Whom to ask and as whom: the hub's address and the user's token, as huggingface_hub reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sr_edge.errors import UsageError

DEFAULT_ENDPOINT = "https://huggingface.co"
_TRUE = ("1", "ON", "YES", "TRUE")


def endpoint(environ: Mapping[str, str]) -> str:
    return environ.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT_ENDPOINT


def offline_variable(environ: Mapping[str, str]) -> str | None:
    """The variable that says that no hub may be asked."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if environ.get(name, "").upper() in _TRUE:
            return name
    return None


def token(environ: Mapping[str, str]) -> str | None:
    """Of the environment, or the one that `hf auth login` keeps.

    Raises:
        UsageError: it is none.
    """
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if environ.get(name, "").strip():
            return _checked(environ[name].strip(), name)
    if environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE:
        return None
    path = _token_path(environ)
    with suppress(OSError, ValueError):
        kept = path.read_text("utf-8").strip()
        return _checked(kept, str(path)) if kept else None
    return None


def _checked(text: str, origin: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise UsageError(f"{origin} holds no token: a token is one word of plain letters and digits")
    return text


def _token_path(environ: Mapping[str, str]) -> Path:
    named = environ.get("HF_TOKEN_PATH")
    if named:
        return Path(os.path.expanduser(named))
    home = environ.get("HF_HOME")
    if not home:
        cache = environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        home = os.path.join(cache, "huggingface")
    return Path(os.path.expanduser(home)) / "token"
