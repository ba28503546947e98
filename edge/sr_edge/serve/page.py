"""The web page: one file, and the headers that keep it from doing anything but talk to this server."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Page:
    body: bytes
    headers: tuple[tuple[str, str], ...]
    """Names in lower case; content-type is among them, content-length is not."""


def load_page() -> Page:
    """To be called once for a server: the policy names this very text by its hashes."""
    body = Path(__file__).with_name("page.html").read_bytes()
    return Page(
        body,
        (
            ("content-type", "text/html; charset=utf-8"),
            ("content-security-policy", content_security_policy(body.decode())),
            ("cache-control", "no-cache"),  # an update is seen at once
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("referrer-policy", "no-referrer"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
        ),
    )


def content_security_policy(html: str) -> str:
    """Nothing runs but what is in `html`, nothing is loaded, and nobody but our own origin is spoken to.

    Trusted types are refused altogether: a script that parsed a string as HTML would fail, whoever wrote
    the string.
    """
    directives = (
        "default-src 'none'",
        f"script-src {' '.join(_hashes(html, 'script'))}",
        f"style-src {' '.join(_hashes(html, 'style'))}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return "; ".join(directives)


def _hashes(html: str, element: str) -> Iterator[str]:
    for text in re.findall(rf"<{element}\b[^>]*>(.*?)</{element}>", html, flags=re.DOTALL):
        digest = hashlib.sha256(text.encode()).digest()
        yield f"'sha256-{b64encode(digest).decode()}'"
