"""One file of a repository, fetched so that a cut costs nothing: at any byte, of any process, on any day.

What has come lies in `KEY.part`, and what it is a part of in `KEY.json` beside it. A file has its name only
once it is whole, its hash is the one that the hub announced, and the disk has it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sr_edge.errors import EdgeError, ModelError, UsageError
from sr_edge.files import BusyError, cannot_write, locked, make_private_dir
from sr_edge.hub.failing import MAX_TRIES, HubError, Note, pause, refusal, said_of
from sr_edge.hub.repository import HubFile
from sr_edge.hub.unfinished import Part, read_part
from sr_edge.remote.failure import FailedError, Failure
from sr_edge.remote.hub_client import Answer, HubClient
from sr_edge.shelf import amount

Report = Callable[[int, int], None]
"""Gets the bytes that are there, and all of them."""

_ADVANCE = 1 << 20  # bytes: a try that brought so many is no failed one
_CHUNK = 1 << 20
_FROM_THE_BEGINNING = "it is fetched from the beginning"
_NOT_THAT = "it is not that file. Pull again later, or choose another repository"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def key_of(file: HubFile) -> str:
    """What its content is called, wherever it is named."""
    return file.sha256 or f"git-{file.git_sha1}"


def missing(file: HubFile, target: Path, folder: Path) -> int:
    """Bytes that are still to come."""
    if target.exists():
        return 0
    with suppress(OSError):
        return max(0, file.size - (folder / f"{key_of(file)}.part").stat().st_size)
    return file.size


def download(
    client: HubClient, file: HubFile, target: Path, folder: Path, *, report: Report, note: Note
) -> None:
    """Fetch `file` to `target`, unless it is there already and whole; what had come before is gone on with.

    Args:
        folder: for parts, on the same disk as `target`.
        report: what it raises ends the download; the part stays.
    Raises:
        HubError: the hub failed, again and again.
        ModelError: the file is not there, or not what was announced.
        UsageError: it cannot be written, or another process is fetching it.
        EdgeError: the disk is full.
    """
    try:
        make_private_dir(folder)
        make_private_dir(target.parent)
        with alone(folder / key_of(file), file.name):
            if target.exists() and not _is_whole(target, file, report):
                target.unlink()  # it was whole when it got its name
            if not target.exists():
                _Download(client, file, target, folder, report, note).run()
    except OSError as error:
        if error.errno in _FULL:
            have = amount(file.size - missing(file, target, folder))
            raise EdgeError(
                f"the disk is full ({error.strerror}): {have} of the {amount(file.size)} of {file.name} are "
                f"kept. Free some of {folder}, then pull again: it goes on from there"
            ) from None
        raise cannot_write(Path(error.filename or target), error) from None


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Raises: UsageError: another process does the same."""
    try:
        with locked(path, timeout=0.0):
            with suppress(OSError):
                os.utime(path.with_name(f".{path.name}.lock"))  # or it would be swept as an old one
            yield
    except BusyError:
        raise UsageError(
            f"another sr-edge is fetching {what} just now: wait for it, or end it; nothing is lost either way"
        ) from None


class _AgainError(Exception):
    """What is there cannot be gone on with: from the beginning."""


class _Download:
    def __init__(
        self, client: HubClient, file: HubFile, target: Path, folder: Path, report: Report, note: Note
    ) -> None:
        self._client = client
        self._file = file
        self._target = target
        self._part = folder / f"{key_of(file)}.part"
        self._sidecar = folder / f"{key_of(file)}.json"
        self._report = report
        self._note = note
        self._have = 0
        self._etag: str | None = None
        self._digest = _digest_of(file)
        self._is_resumed = False

    def run(self) -> None:
        self._take_up()
        failed = restarts = 0
        while True:
            before = self._have
            try:
                if self._have < self._file.size or not self._part.exists():
                    self._fetch()
                self._finish()
                return
            except _AgainError as reason:
                self._note(f"{self._file.name}: {reason}; {_FROM_THE_BEGINNING}")
                self._begin_again()
                restarts += 1
                if restarts >= MAX_TRIES:
                    raise HubError(f"{self._file.name}: {reason}, again and again: try later") from None
            except FailedError as error:
                failed = 1 if self._have - before >= _ADVANCE else failed + 1
                if not _may_pass(error.failure) or failed >= MAX_TRIES:
                    raise self._given_up(error.failure) from None
                pause(failed, error.failure, self._client, self._note)

    def _given_up(self, failure: Failure) -> HubError:
        line = f"{said_of(failure, self._client)}; {amount(self._have)} of the {amount(self._file.size)} of "
        return HubError(
            f"{line}{self._file.name} have come and are kept: pull again, and it goes on from there"
        )

    def _take_up(self) -> None:
        """Go on with what an earlier download left, if it is of the same file."""
        sidecar = read_part(self._sidecar)
        size = self._part.stat().st_size if self._part.exists() else 0
        if sidecar is None or sidecar.size != self._file.size or not 0 < size <= self._file.size:
            self._begin_again()
            return
        os.utime(self._sidecar)  # or it would be swept as an old one
        self._etag, self._is_resumed = sidecar.etag, True
        with self._part.open("rb") as part:
            while chunk := part.read(_CHUNK):
                self._digest.update(chunk)
                self._have += len(chunk)
                self._report(self._have, self._file.size)
        if self._have >= _ADVANCE:
            self._note(f"{self._file.name}: {amount(self._have)} are there, and it goes on from there")

    def _begin_again(self) -> None:
        self._part.unlink(missing_ok=True)
        self._have, self._etag, self._digest, self._is_resumed = 0, None, _digest_of(self._file), False

    def _fetch(self) -> None:
        """Raises: FailedError, _AgainError, or what is final."""
        file, client = self._file, self._client
        url = f"{client.endpoint}/{file.repo}/resolve/{file.commit}/{quote(file.path)}"
        headers = {}
        if self._have:
            headers["Range"] = f"bytes={self._have}-"
            if self._etag is not None:
                headers["If-Range"] = self._etag
        with client.get(url, headers) as answer:
            self._check(answer)
            with self._part.open("ab", buffering=0) as part:
                for chunk in answer.chunks:
                    if self._have + len(chunk) > file.size:
                        self._discard()
                        raise ModelError(
                            f"{file.name}: {answer.where} sends more than the {file.size:,} bytes that the "
                            f"hub announced: {_NOT_THAT}"
                        )
                    _write(part.write, chunk)
                    self._digest.update(chunk)
                    self._have += len(chunk)
                    self._report(self._have, file.size)
        if self._have < file.size:
            raise FailedError(Failure(f"{answer.where} broke off", "unreachable", is_passing=True))

    def _check(self, answer: Answer) -> None:
        """Whether what follows is the file, or the rest of what is there."""
        file = self._file
        if answer.status == 416:
            raise _AgainError(f"{answer.where} does not know the part that is here")
        if answer.status not in (200, 206):
            raise refusal(
                self._client, answer.status, answer.linked if answer.status == 404 else answer.headers,
                repo=file.repo, revision=file.commit, file=file.path,
            )  # fmt: skip
        etag = answer.headers.get("etag", "")
        strong = etag if re.fullmatch(r'"[\x21\x23-\x7e]{1,200}"', etag) else None
        if answer.status == 206:
            self._check_range(answer, strong)
        else:
            self._check_whole(answer)
            if self._have:
                was_changed = self._etag is not None and strong is not None and strong != self._etag
                why = (
                    "the file was changed on the way" if was_changed else "the rest of it cannot be had alone"
                )
                self._note(f"{file.name}: {why}; {_FROM_THE_BEGINNING}")
                self._begin_again()
        if not self._have or self._etag is None:
            self._etag = strong
            part = Part(file.repo, file.commit, file.path, file.size, strong)
            temporary = self._sidecar.with_suffix(".new")
            temporary.write_text(json.dumps({"v": 1, **asdict(part)}, indent=2) + "\n", "utf-8")
            os.replace(temporary, self._sidecar)

    def _check_range(self, answer: Answer, etag: str | None) -> None:
        found = re.fullmatch(
            r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", answer.headers.get("content-range", "")
        )
        if not self._have or found is None or int(found[1]) != self._have:
            raise _AgainError(f"{answer.where} sends another part than was asked for")
        if found[3] != "*" and int(found[3]) != self._file.size:
            raise _AgainError(f"{answer.where} has it as {int(found[3]):,} bytes, not {self._file.size:,}")
        if etag is not None and self._etag is not None and etag != self._etag:
            raise _AgainError("the file was changed on the way")
        self._is_resumed = True

    def _check_whole(self, answer: Answer) -> None:
        announced = answer.headers.get("content-length", "")
        if not announced.isdecimal() or int(announced) == self._file.size:
            return
        name, size = self._file.name, self._file.size
        if answer.headers.get("content-type", "").startswith("text/html"):
            raise ModelError(
                f"{name}: {answer.where} sends a web page instead: does the network here want a login first?"
            )
        raise ModelError(
            f"{name}: {answer.where} sends {int(announced):,} bytes, and the hub announced {size:,}: "
            f"{_NOT_THAT}"
        )

    def _finish(self) -> None:
        """Raises: _AgainError, ModelError: it is not what was announced."""
        if self._digest.hexdigest() != (self._file.sha256 or self._file.git_sha1):
            was_resumed = self._is_resumed
            self._discard()
            if was_resumed:  # the beginning may have been damaged here
                raise _AgainError("what came and what was there do not fit together")
            raise ModelError(
                f"{self._file.name}: all of it came, and it is not what the hub announced: its "
                f"{'sha256' if self._file.sha256 else 'git hash'} is {self._digest.hexdigest()}. Pull again; "
                "if that does not help, choose another repository"
            )
        with self._part.open("rb+") as part:
            os.fsync(part.fileno())
        os.replace(self._part, self._target)
        self._sidecar.unlink(missing_ok=True)
        self._report(self._file.size, self._file.size)

    def _discard(self) -> None:
        self._part.unlink(missing_ok=True)
        self._sidecar.unlink(missing_ok=True)


def _is_whole(path: Path, file: HubFile, report: Report) -> bool:
    if path.stat().st_size != file.size:
        return False
    digest, done = _digest_of(file), 0
    with path.open("rb") as data:
        while chunk := data.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report(done, file.size)
    return bool(digest.hexdigest() == (file.sha256 or file.git_sha1))


def _may_pass(failure: Failure) -> bool:
    """The hub was there a moment ago: what cannot be reached now is a gap in the network."""
    return failure.is_passing or failure.fault == "unreachable"


def _digest_of(file: HubFile) -> Any:
    if file.sha256 is not None:
        return hashlib.sha256()
    return hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)


def _write(write: Callable[[bytes], int | None], data: bytes) -> None:
    """A disk that is nearly full takes a part of it first."""
    rest = memoryview(data)
    while rest:
        rest = rest[write(rest) or 0 :]  # type: ignore[arg-type]
