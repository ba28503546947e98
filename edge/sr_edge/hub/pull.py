"""From a repository's name to a model on the shelf: found, chosen, fetched, converted, tried, put there."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sr_edge.converting import Conversion, Converter, Progress, converter
from sr_edge.errors import EdgeError, ModelError, UsageError
from sr_edge.gguf_header import read_header
from sr_edge.hub.choosing import Checkpoint, Gguf, check_config, choose, shards_of
from sr_edge.hub.download import alone, download, missing
from sr_edge.hub.failing import Note
from sr_edge.hub.reference import Reference
from sr_edge.hub.repository import HubFile, Repository, look_up
from sr_edge.hub.unfinished import STALE_SECONDS, checkpoint_dir, downloads_dir, sweep
from sr_edge.quantizer import TYPES
from sr_edge.remote.hub_client import HubClient
from sr_edge.shelf import (
    Passport,
    Shelved,
    amount,
    check_on_load,
    models,
    name_for,
    new_passport,
    place,
    put_in,
    refuse_taken,
    sha256_of,
    shelf_dir,
)
from sr_edge.trial import TrialEndedError, try_opening

_MARGIN = 64 << 20  # bytes left free on the disk
_BITS = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.6}
_BITS_OF_OTHERS = 6.0
_DIRECT = ("f32", "f16", "bf16", "q8_0")
"""Types that are written without a file of 16 bits in between."""


@dataclass(frozen=True, slots=True)
class Request:
    reference: Reference
    type: str | None
    name: str | None
    force: bool = False
    keep_checkpoint: bool = False


@dataclass(frozen=True, slots=True)
class Pulled:
    model: Shelved
    checkpoint: Path | None = None
    """Where it is kept, if it is."""
    was_there: bool = False
    """Nothing was fetched: it is on the shelf already."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    environ: Mapping[str, str]
    memory: int | None
    """Bytes of this machine."""
    progress: Progress
    """What it raises ends the pull; what has come stays."""
    note: Note
    find_converter: Callable[[], Converter] = converter


def pull(client: HubClient, request: Request, around: Surroundings) -> Pulled:
    """Raises:
    UsageError, ModelError, HubError, EdgeError: says what happened and what mends it.
    """
    reference = request.reference
    around.progress(f"asking {client.where}", 0, 0)
    repository = look_up(client, reference, around.note)
    chosen = choose(repository, file=reference.file, type=request.type, memory=around.memory)
    there = _on_shelf(repository, chosen, around.environ)
    if there is not None and not request.force and request.name in (None, there.name):
        check_on_load(there.path)
        return Pulled(there, _kept_checkpoint(there, chosen, request, around), was_there=True)
    if isinstance(chosen, Gguf):
        name = name_for(chosen.file.name, request.name)
    else:
        name = name_for(f"{repository.name.rpartition('/')[2]}-{chosen.type}", request.name)
    path = place(name, around.environ)
    refuse_taken(path, force=request.force)
    shelf = shelf_dir(around.environ)
    sweep(shelf)
    folder = _folder_of(repository, around)
    with alone(folder.with_name(f"{folder.name}.pull"), repository.name):
        with suppress(OSError):
            os.utime(folder)  # it is gone on with
        if isinstance(chosen, Gguf):
            return _pull_gguf(client, repository, chosen, path, request, around)
        return _pull_checkpoint(client, repository, chosen, path, request, around)


def _on_shelf(
    repository: Repository, chosen: Gguf | Checkpoint, environ: Mapping[str, str]
) -> Shelved | None:
    file, kind = (chosen.file.path, None) if isinstance(chosen, Gguf) else (None, chosen.type)
    for model in models(environ):
        passport = model.passport
        if passport is None or (passport.repo, passport.revision) != (repository.name, repository.commit):
            continue
        if (passport.file, passport.converted) == (file, kind) and model.size == passport.bytes:
            return model
    return None


def _kept_checkpoint(
    there: Shelved, chosen: Gguf | Checkpoint, request: Request, around: Surroundings
) -> Path | None:
    if not request.keep_checkpoint or isinstance(chosen, Gguf):
        return None
    kept = checkpoint_dir(shelf_dir(around.environ), there.name)
    if kept.is_dir():
        return kept
    around.note(f"the checkpoint of {there.name} was not kept: --force fetches and converts it again")
    return None


def _pull_gguf(
    client: HubClient,
    repository: Repository,
    chosen: Gguf,
    path: Path,
    request: Request,
    around: Surroundings,
) -> Pulled:
    if chosen.note is not None:
        around.note(chosen.note)
    folder = _folder_of(repository, around)
    target = folder / chosen.file.name
    _check_room([(chosen.file, target)], 0, folder)
    try:
        _fetch(client, chosen.file, target, "", around)
        _try(target, f"{repository.name}: {chosen.file.path}", around)
        read = around.progress
        sha256 = chosen.file.sha256 or sha256_of(target, lambda done, whole: read("reading it", done, whole))
        passport = _passport(client, repository, sha256, target, file=chosen.file, type=None)
        model = put_in(target, path, passport, force=request.force)
    except TrialEndedError:
        raise  # another time it may well open
    except ModelError:
        target.unlink(missing_ok=True)  # to come again, it would have to be another file
        raise
    finally:
        with suppress(OSError):  # something is left in it
            folder.rmdir()
    return Pulled(model)


def _pull_checkpoint(
    client: HubClient,
    repository: Repository,
    chosen: Checkpoint,
    path: Path,
    request: Request,
    around: Surroundings,
) -> Pulled:
    if chosen.type not in TYPES:
        raise UsageError(f"{chosen.type!r} is no type of weights: choose one of {', '.join(TYPES)}")
    convert = around.find_converter()  # before gigabytes have come for nothing
    folder = _folder_of(repository, around)
    checkpoint = folder / "checkpoint"
    kept = checkpoint_dir(path.parent, path.stem)
    if request.keep_checkpoint and kept.exists() and not request.force:
        raise UsageError(f"there is a checkpoint at {kept} already: remove it, or use --force")
    for left in folder.glob(".*"):  # by a conversion that was killed: gigabytes, for a large model
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
    _check_room(
        [(file, checkpoint / file.path) for file in (*chosen.small, *chosen.shards, chosen.single) if file],
        _while_converting(chosen.weights_size, chosen.type),
        folder,
    )
    small = [*chosen.small, *([chosen.index] if chosen.index else [])]
    for file in small:
        _fetch(client, file, checkpoint / file.path, "", around)
    weights = [chosen.single] if chosen.single else []
    try:
        check_config(repository, (checkpoint / "config.json").read_bytes())
        if chosen.index:
            weights = [*shards_of(repository, (checkpoint / chosen.index.path).read_bytes())]
            _check_room(
                [(file, checkpoint / file.path) for file in weights],
                _while_converting(sum(file.size for file in weights), chosen.type),
                folder,
            )
    except ModelError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    for number, file in enumerate(weights, start=1):
        count = f" ({number} of {len(weights)})" if len(weights) > 1 else ""
        _fetch(client, file, checkpoint / file.path, count, around)
    out = folder / f"{path.stem}.gguf"
    source = f"{repository.name}@{repository.commit}"
    out.unlink(missing_ok=True)
    try:
        convert(Conversion(checkpoint, out, chosen.type, source), around.progress)
        _try(out, f"{repository.name}, as it was converted", around)
        read = around.progress
        sha256 = sha256_of(out, lambda done, whole: read("reading it", done, whole))
        passport = _passport(client, repository, sha256, out, file=None, type=chosen.type)
        model = put_in(out, path, passport, force=request.force)
    except EdgeError:
        days = STALE_SECONDS / 86400
        around.note(f"what was fetched is kept for {days:.0f} days, for another try: {checkpoint}")
        raise
    finally:
        out.unlink(missing_ok=True)
    if request.keep_checkpoint:
        _keep(checkpoint, kept)
    shutil.rmtree(folder, ignore_errors=True)
    return Pulled(model, kept if request.keep_checkpoint else None)


def _keep(checkpoint: Path, kept: Path) -> None:
    """Raises: UsageError: it is where it was."""
    try:
        if kept.is_dir() and not kept.is_symlink():
            shutil.rmtree(kept)
        else:
            kept.unlink(missing_ok=True)
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        checkpoint.rename(kept)
    except OSError as error:
        raise UsageError(
            f"the model is on the shelf, but its checkpoint could not be moved to {kept} ({error.strerror}): "
            f"it is at {checkpoint} for {STALE_SECONDS / 86400:.0f} days"
        ) from None


def _folder_of(repository: Repository, around: Surroundings) -> Path:
    """For what is on its way to the shelf. Its name says what it is to whoever looks."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "--", repository.name)
    return downloads_dir(shelf_dir(around.environ)) / f"{readable}@{repository.commit[:12]}"


def _fetch(client: HubClient, file: HubFile, target: Path, count: str, around: Surroundings) -> None:
    doing = file.name + count
    download(
        client,
        file,
        target,
        downloads_dir(shelf_dir(around.environ)),
        report=lambda done, whole: around.progress(doing, done, whole),
        note=around.note,
    )


def _try(file: Path, what: str, around: Surroundings) -> None:
    """Raises: ModelError: it is no model that can run here; called `what`, for the file will be gone."""
    try:
        read_header(file)
        try_opening(file, poll=lambda: around.progress("trying it", 0, 0))
    except ModelError as error:
        raise type(error)(str(error).replace(str(file), what)) from None


def _passport(
    client: HubClient,
    repository: Repository,
    sha256: str,
    path: Path,
    *,
    file: HubFile | None,
    type: str | None,
) -> Passport:
    page = f"{client.endpoint}/{repository.name}"
    fresh = new_passport(sha256, path, Path(), is_linked=False)
    return Passport(
        sha256=sha256,
        bytes=fresh.bytes,
        source=f"{page}/blob/{repository.commit}/{file.path}" if file else f"{page}/tree/{repository.commit}",
        added=fresh.added,
        repo=repository.name,
        revision=repository.commit,
        file=file.path if file else None,
        converted=type,
        stamp=fresh.stamp,
    )


def _while_converting(size: int, type: str) -> int:
    """Bytes, about: weights of 16 bits are what nearly all repositories hold."""
    result = round(size * _BITS.get(type, _BITS_OF_OTHERS) / 16)
    return result if type in _DIRECT else result + size


def _check_room(files: list[tuple[HubFile, Path]], more: int, folder: Path) -> None:
    """Raises: EdgeError: the disk has none."""
    downloads = folder.parent
    coming = sum(missing(file, target, downloads) for file, target in files)
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if coming + more + _MARGIN > free:
        parts = f"{amount(coming)} to fetch" + (f" and {amount(more)} to convert it" if more else "")
        raise EdgeError(
            f"no room for it: it takes {parts}, and {amount(free)} is free in {existing}. Free some, or let "
            "SR_EDGE_HOME=FOLDER put our files elsewhere"
        )
