"""What a repository holds, at one commit, as the hub says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sr_edge.errors import EdgeError
from sr_edge.hub.failing import HubError, Note, persistently, refusal
from sr_edge.hub.reference import Reference, is_safe_path
from sr_edge.remote.failure import FailedError
from sr_edge.remote.hub_client import HubClient

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file at one commit. One of the two hashes is known, or else it is not fetched."""

    repo: str
    commit: str
    path: str
    size: int
    """Bytes."""
    sha256: str | None
    """Of large files."""
    git_sha1: str | None
    """Of small ones: git's hash of the file as a blob."""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Repository:
    name: str
    """As the hub spells it now; it may have been renamed."""
    commit: str
    files: tuple[HubFile, ...]
    """Those with a name and a hash that can be."""

    def file(self, path: str) -> HubFile | None:
        return next((file for file in self.files if file.path == path), None)


def look_up(client: HubClient, reference: Reference, note: Note) -> Repository:
    """Raises:
    ModelError: there is none, or it is not for this user; says what to do.
    HubError: the hub cannot be asked.
    """
    return persistently(lambda: _ask(client, reference), client, note)


def _ask(client: HubClient, reference: Reference) -> Repository:
    with client.api() as api:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            info = api.model_info(reference.repo, revision=reference.revision, files_metadata=True)
            return _read(info)
        except HfHubHTTPError as error:
            response = error.response
            raise refusal(
                client,
                response.status_code,
                {name.lower(): value for name, value in response.headers.items()},
                repo=reference.repo,
                revision=reference.revision or "main",
            ) from None
        except (EdgeError, FailedError):
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise HubError(
                f"what {client.where} says of {reference.repo} cannot be read ({type(error).__name__}): is "
                f"{client.endpoint} a hub of models?"
            ) from None


def _read(info: Any) -> Repository:
    """Args:
        info: huggingface_hub's, which takes whatever the hub said without a look.
    Raises:
        ValueError: it is no description of a repository.
    """
    name, commit = info.id, info.sha
    if not isinstance(name, str) or not isinstance(commit, str) or not _SHA1.fullmatch(commit):
        raise ValueError("no name, or no commit")
    if name.count("/") != 1 or not is_safe_path(name):
        raise ValueError("a name that cannot be")
    files = [_file(name, commit, sibling) for sibling in info.siblings or ()]
    return Repository(name, commit, tuple(file for file in files if file is not None))


def _file(repo: str, commit: str, sibling: Any) -> HubFile | None:
    path, size, lfs = sibling.rfilename, sibling.size, sibling.lfs
    sha256 = str(lfs.sha256).lower() if lfs is not None else ""
    sha1 = str(sibling.blob_id).lower() if lfs is None else ""
    size = lfs.size if lfs is not None and size is None else size
    if type(size) is not int or size < 0 or not is_safe_path(path):
        return None
    if not _SHA256.fullmatch(sha256) and not _SHA1.fullmatch(sha1):
        return None
    return HubFile(repo, commit, path, size, sha256 or None, sha1 or None)
