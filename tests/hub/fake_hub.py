"""A hub on loopback: what it has is a dictionary, and large files come from another server.

The real one does so too. It speaks what huggingface_hub and the downloader ask for: the description of a
repository with sizes and hashes, files at a commit, redirects with the linked headers, ranges and entity
tags. Each request for the content of a file uses up one fault of a script; without faults all goes well.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self
from urllib.parse import unquote

from sr_edge.testing.fault_endpoint import FIN, HANG, RST, FaultEndpoint, Op, Request, Send, Sleep

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_FROM = 1000  # bytes: what is smaller lies in git


@dataclass
class Repo:
    files: dict[str, bytes] = field(default_factory=dict)
    commit: str = COMMIT
    is_gated: bool = False
    is_private: bool = False
    branches: tuple[str, ...] = ("main",)
    announced: dict[str, Any] = field(default_factory=dict)
    """Overrides of what the hub says of a path: size, sha256."""


@dataclass(frozen=True)
class Ask:
    """A request for a file's content."""

    request: Request
    data: bytes
    start: int
    """Where the range begins; 0 without one."""
    etag: str
    is_ranged: bool


Fault = Callable[[Ask], Sequence[Op]]


def whole(ask: Ask) -> Sequence[Op]:
    """As it should be."""
    return answered(ask)


def answered(
    ask: Ask,
    *,
    body: bytes | None = None,
    status: int | None = None,
    etag: str | None = None,
    length: int | None = None,
    range_: str | None = None,
    kind: str = "application/octet-stream",
    then: Sequence[Op] = (),
) -> Sequence[Op]:
    start = ask.start if ask.is_ranged and status != 200 else 0
    body = ask.data[start:] if body is None else body
    status = status or (206 if ask.is_ranged else 200)
    fields = {
        "Content-Type": kind,
        "Content-Length": len(ask.data) - start if length is None else length,
        "ETag": ask.etag if etag is None else etag,
        "Accept-Ranges": "bytes",
    }
    if status == 206:
        fields["Content-Range"] = range_ or f"bytes {start}-{len(ask.data) - 1}/{len(ask.data)}"
    return [_head(status, fields), Send(body), *then]


def cut(at: int, end: Op = FIN) -> Fault:
    """After so many bytes of the body."""
    return lambda ask: answered(ask, body=ask.data[ask.start :][:at], then=[end])


def stall(at: int) -> Fault:
    return lambda ask: answered(ask, body=ask.data[ask.start :][:at], then=[HANG])


def slow(pieces: int, pause: float) -> Fault:
    def ops(ask: Ask) -> Sequence[Op]:
        top, body = answered(ask)
        assert isinstance(body, Send)
        step = max(1, len(body.data) // pieces)
        cuts = [body.data[at : at + step] for at in range(0, len(body.data), step)]
        return [top, *(op for piece in cuts for op in (Send(piece), Sleep(pause)))]

    return ops


def range_ignored(ask: Ask) -> Sequence[Op]:
    return answered(ask, status=200)


def status(code: int, **headers: Any) -> Fault:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda ask: [_head(code, {"Content-Length": 0, **fields})]


def flipped(at: int) -> Fault:
    """One byte is another."""

    def ops(ask: Ask) -> Sequence[Op]:
        data = bytearray(ask.data)
        data[at % len(data)] ^= 0xFF
        return answered(ask, body=bytes(data)[ask.start :])

    return ops


class FakeHub:
    def __init__(self, *faults: Fault, token: str | None = None, **repos: Repo) -> None:
        """Args:
        faults: one for each request for content, in order.
        token: that opens what is gated or private.
        repos: by name; two underscores stand for the slash.
        """
        self.repos = {name.replace("__", "/"): repo for name, repo in repos.items()}
        self.faults = list(faults)
        self.api_faults: list[Fault] = []
        self.etag: Callable[[bytes], str] = lambda data: f'"{_hash("md5", data)}"'
        self._token = token
        self._lock = threading.Lock()
        self.hub = FaultEndpoint(then=self._serve)
        self.cdn = FaultEndpoint(then=self._serve_content)

    @property
    def url(self) -> str:
        return self.hub.url

    @property
    def contents(self) -> list[Request]:
        """Requests for content."""
        resolved = [each for each in self.hub.requests if "/resolve/" in each.path]
        return [*self.cdn.requests, *(each for each in resolved if not self._is_linked(each))]

    def __enter__(self) -> Self:
        self.hub.__enter__()
        self.cdn.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self.cdn.__exit__(*args)
        self.hub.__exit__(*args)

    def _is_linked(self, request: Request) -> bool:
        found = self._found(request)
        return found is not None and len(found) >= LFS_FROM

    def _found(self, request: Request) -> bytes | None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", request.path)
        if match is None or match[1] not in self.repos:
            return None
        return self.repos[match[1]].files.get(unquote(match[3]))

    def _serve(self, request: Request) -> Sequence[Op]:
        path = request.path.partition("?")[0]
        if request.method != "GET":
            return _page({"error": "no"}, 405)
        if path.startswith("/api/models/"):
            with self._lock:
                fault = self.api_faults.pop(0) if self.api_faults else None
            if fault is not None:
                return fault(Ask(request, b"", 0, "", False))
            return self._describe(request, path.removeprefix("/api/models/"))
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match is None:
            return _page({"error": "not found"}, 404)
        refused = self._refused(request, match[1])
        if refused is not None:
            return refused
        repo, name = self.repos[match[1]], unquote(match[3])
        if name not in repo.files:
            return _page({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        data = repo.files[name]
        if len(data) < LFS_FROM:
            return self._content(request, data)
        fields = {
            "Content-Length": 0,
            "Location": f"{self.cdn.url}/blobs/{match[1]}/{name}?Signature=a%2Fb",
            "X-Repo-Commit": repo.commit,
            "X-Linked-Size": len(data),
            "X-Linked-ETag": f'"{_hash("sha256", data)}"',
        }
        return [_head(302, fields)]

    def _describe(self, request: Request, rest: str) -> Sequence[Op]:
        name, _, revision = rest.partition("/revision/")
        refused = self._refused(request, name, lists=True)
        if refused is not None:
            return refused
        repo = self.repos[name]
        if revision and unquote(revision) not in (*repo.branches, repo.commit):
            return _page({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        siblings = [self._sibling(repo, path, data) for path, data in repo.files.items()]
        return _page(
            {"id": name, "modelId": name, "sha": repo.commit, "gated": repo.is_gated, "siblings": siblings}
        )

    def _sibling(self, repo: Repo, path: str, data: bytes) -> dict[str, Any]:
        said = {"size": len(data), "sha256": _hash("sha256", data)} | repo.announced.get(path, {})
        pointer = _hash("sha1", b"blob %d\0" % len(data) + data) if len(data) < LFS_FROM else "0" * 40
        found: dict[str, Any] = {"rfilename": path, "size": said["size"], "blobId": pointer}
        if len(data) >= LFS_FROM:
            found["lfs"] = {"sha256": said["sha256"], "size": said["size"], "pointerSize": 134}
        return found

    def _refused(self, request: Request, name: str, *, lists: bool = False) -> Sequence[Op] | None:
        repo = self.repos.get(name)
        given = request.headers.get("authorization")
        if given is not None and given != f"Bearer {self._token}":
            message = "Invalid credentials in Authorization header"
            return _page({"error": message}, 401, X_Error_Message=message)
        if repo is None or (repo.is_private and given is None):
            return _page(
                {"error": "Repository not found"}, 401 if given is None else 404, X_Error_Code="RepoNotFound"
            )
        if repo.is_gated and given is None and not lists:
            return _page({"error": "gated"}, 401, X_Error_Code="GatedRepo")
        return None

    def _serve_content(self, request: Request) -> Sequence[Op]:
        match = re.fullmatch(r"/blobs/([^/]+/[^/]+)/(.+)", request.path.partition("?")[0])
        assert match is not None
        return self._content(request, self.repos[match[1]].files[unquote(match[2])])

    def _content(self, request: Request, data: bytes) -> Sequence[Op]:
        etag = self.etag(data)
        found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        start = int(found[1]) if found else 0
        is_same = request.headers.get("if-range", etag) == etag
        if found and start >= len(data):
            return [_head(416, {"Content-Length": 0, "Content-Range": f"bytes */{len(data)}"})]
        with self._lock:
            fault = self.faults.pop(0) if self.faults else whole
        is_ranged = bool(found) and is_same
        return fault(Ask(request, data, start if is_ranged else 0, etag, is_ranged))


@cache
def _hash(kind: str, data: bytes) -> str:
    return hashlib.new(kind, data).hexdigest()


def _head(code: int, fields: dict[str, Any]) -> Send:
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return Send(f"HTTP/1.1 {code} Whatever\r\n{lines}\r\n".encode())


def _page(body: object, code: int = 200, **headers: str) -> Sequence[Op]:
    data = json.dumps(body).encode()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return [
        _head(code, {"Content-Type": "application/json", "Content-Length": len(data), **fields}),
        Send(data),
    ]


__all__ = [
    "COMMIT", "FIN", "RST", "Ask", "FakeHub", "Repo", "answered", "cut", "flipped", "range_ignored", "slow",
    "stall", "status", "whole",
]  # fmt: skip
