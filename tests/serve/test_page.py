"""The web page as a file: it stands alone, and its policy fits it. `test_page_browser` has what it does."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from sr_edge.serve.page import Page, content_security_policy, load_page

LOADING = {"src", "srcset", "data", "action", "formaction", "ping", "poster", "background", "manifest"}
FORBIDDEN = (
    *(
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "setHTMLUnsafe",
        "document.write",
        "DOMParser",
        "srcdoc",
    ),
    *("createContextualFragment", "eval(", "new Function", "import(", "javascript:"),
)


@pytest.fixture(scope="module")
def page() -> Page:
    return load_page()


class Elements(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self._open: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open = tag if tag in self.texts else None

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open].append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = None


def policy_of(page: Page) -> dict[str, list[str]]:
    policy = dict(page.headers)["content-security-policy"]
    return {name: values for name, *values in (part.split() for part in policy.split("; "))}


def test_page_loads_nothing_and_leads_nowhere(page: Page) -> None:
    elements = Elements(page.body.decode()).found
    tags = {tag for tag, _ in elements}
    assert not tags & {"base", "embed", "form", "frame", "iframe", "img", "object", "audio", "video"}
    for tag, attributes in elements:
        assert not LOADING & attributes.keys(), tag
        link = attributes.get("href") or attributes.get("xlink:href") or ""
        assert link.startswith(("#", "data:image/svg+xml,")) or not link, (tag, link)
        assert not [name for name in attributes if name.startswith("on")], (
            f"{tag} has a handler in its markup"
        )
        assert "style" not in attributes, f"{tag} has a style that the policy refuses"
    names = rb"http://www\.w3\.org/(?:2000/svg|1998/Math/MathML)"  # no addresses
    body = re.sub(names, b"", page.body)
    assert not re.search(rb"@import|url\(|//\w+[.:]\w", body)


def test_page_never_makes_html_of_a_string(page: Page) -> None:
    found = [word for word in FORBIDDEN if word in page.body.decode()]
    assert not found


def test_page_is_small(page: Page) -> None:
    assert len(page.body) < 100_000


def test_policy_lets_in_the_script_and_the_style_of_the_page_alone(page: Page) -> None:
    texts = Elements(page.body.decode()).texts
    policy = policy_of(page)
    for element, text in texts.items():
        digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in text]
        assert len(digests) == 1
        assert policy[f"{element}-src"] == [f"'sha256-{digest}'" for digest in digests]


def test_policy_refuses_all_else(page: Page) -> None:
    assert {name: values for name, values in policy_of(page).items() if not name.endswith("e-src")} == {
        "default-src": ["'none'"],
        "script-src": policy_of(page)["script-src"],
        "img-src": ["data:"],
        "connect-src": ["'self'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }


def test_policy_names_another_script_by_another_hash() -> None:
    one, other = (content_security_policy(f"<script>{n}</script><style></style>") for n in "12")
    assert one != other


def test_headers_are_those_of_a_page_that_nobody_may_frame_or_guess_at(page: Page) -> None:
    headers: dict[str, Any] = dict(page.headers)
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert all(name == name.lower() for name in headers)
