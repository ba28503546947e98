"""What a user means by a repository, and perhaps a file in it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from sr_edge.errors import UsageError
from sr_edge.terminal import safe_line

_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "www.hf.co")
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")
_OTHER_KINDS = ("datasets", "spaces", "kernels", "buckets", "collections", "papers")
_HOW = "name one as OWNER/NAME, OWNER/NAME:FILE.gguf, or by its URL"


@dataclass(frozen=True, slots=True)
class Reference:
    repo: str
    """`owner/name`"""
    file: str | None = None
    """A path in it, or the type of a file's weights, such as Q4_K_M."""
    revision: str | None = None
    """A branch, a tag or a commit; None: what the hub shows."""

    def __str__(self) -> str:
        file = f":{self.file}" if self.file else ""
        return f"{self.repo}{file}" + (f"@{self.revision}" if self.revision else "")


def parse_reference(text: str, *, revision: str | None = None, endpoint: str = "") -> Reference:
    """Args:
        revision: named apart from it.
        endpoint: of the hub that is asked; its URLs are read like those of huggingface.co.
    Raises:
        UsageError: it cannot be meant.
    """
    text = text.strip()
    if not text.isprintable() or "\\" in text:
        raise UsageError(f"{safe_line(text)[:200]!r} is no repository: {_HOW}")
    hosts = (*_HOSTS, _host_of(endpoint) or "huggingface.co")
    bare = re.sub(r"^https?://", "", text, flags=re.IGNORECASE)
    host, _, path = bare.partition("/")
    if host.lower() in hosts:
        found = _of_url(path)
    elif bare != text or "://" in text:
        raise UsageError(f"{text[:200]} is no URL of {hosts[-1]}: {_HOW}")
    else:
        found = _of_name(text, splits_revision=revision is None)
    if revision is not None and found.revision is not None and revision != found.revision:
        raise UsageError(f"two revisions are named, {found.revision} and {revision}: name one")
    found = Reference(found.repo, found.file, revision if revision is not None else found.revision)
    _check(found, text)
    return found


def is_safe_path(path: str) -> bool:
    """Whether a name in a repository leads to nowhere but below the folder that it is written into."""
    parts = path.split("/")
    return (
        path.isprintable()
        and "\\" not in path
        and ":" not in path
        and len(path) < 500
        and all(0 < len(part) < 200 and part not in (".", "..") for part in parts)
        and not any(_DEVICE.fullmatch(part) or part[-1] in ". " for part in parts)
    )


_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # Windows opens these


def _host_of(endpoint: str) -> str:
    try:
        return urlsplit(endpoint).netloc.lower()
    except ValueError:
        return ""  # whoever asks it says what is wrong


def _of_name(text: str, *, splits_revision: bool) -> Reference:
    revision = None
    if splits_revision and "@" in text:
        text, _, revision = text.rpartition("@")
    repo, colon, file = text.partition(":")
    return Reference(repo, file if colon else None, revision)


def _of_url(path: str) -> Reference:
    """`owner/name`, perhaps with `:FILE`, and `/blob/REVISION/FILE`, `/resolve/...`, `/tree/REVISION`."""
    path = path.split("?")[0].split("#")[0].strip("/")
    parts = path.split("/")
    if parts[0] in _OTHER_KINDS:
        raise UsageError(f"this is the address of one of the hub's {parts[0]}, not of a model: {_HOW}")
    if parts[0] == "models":
        parts = parts[1:]
    if len(parts) > 2:
        kind, rest = parts[2], [unquote(part) for part in parts[3:]]
        repo = "/".join(parts[:2])
        if kind in ("blob", "resolve", "raw") and len(rest) > 1:
            # a revision with a slash in it, such as refs/pr/1, stands there as %2F
            return Reference(repo, "/".join(rest[1:]), rest[0])
        if kind == "tree" and len(rest) == 1:
            return Reference(repo, None, rest[0])
        raise UsageError(f"{safe_line(path)[:200]} is no address of a repository or a file: {_HOW}")
    return _of_name("/".join(parts), splits_revision=True)


def _check(reference: Reference, text: str) -> None:
    if reference.repo.lower().endswith(".gguf"):
        raise UsageError(
            f"{text[:200]} looks like a file: `sr-edge models import FILE` puts one on the shelf"
        )
    if not _REPO.fullmatch(reference.repo) or ".." in reference.repo or "--" in reference.repo:
        raise UsageError(f"{reference.repo[:200]!r} is no repository: {_HOW}")
    if reference.file is not None and not is_safe_path(reference.file):
        raise UsageError(f"{reference.file[:200]!r} is no file of a repository: {_HOW}")
    revision = reference.revision
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise UsageError(f"{revision[:200]!r} is no revision: name a branch, a tag or a commit")
