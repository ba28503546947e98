"""Which files of a repository are the model that is meant. Pure."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sr_edge.errors import ModelError, UsageError
from sr_edge.gguf_header import ARCHITECTURES
from sr_edge.hub.repository import HubFile, Repository
from sr_edge.shelf import amount
from sr_edge.terminal import safe_line

DEFAULT_TYPE = "q4_k_m"

_PREFERRED = (
    DEFAULT_TYPE, "q4_k_s", "q5_k_m", "q5_k_s", "q4_0", "iq4_xs", "iq4_nl", "q6_k", "q8_0", "q4_1", "q5_0",
    "q5_1", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k", "bf16", "f16", "f32",
)  # fmt: skip
_TYPE = re.compile(
    r"(?:^|[-._])((?:ud-)?(?:i?q\d(?:_[a-z0-9]+)*|tq\d_\d|b?f16|fp16|f32|fp32|mxfp4(?:_[a-z0-9]+)?))\.gguf$",
    re.IGNORECASE,
)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.(?:gguf|safetensors)$")
_NO_MODEL = re.compile(r"(?:^|[-._])(?:mmproj|imatrix|lora|adapter)(?:[-._]|$)", re.IGNORECASE)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SMALL = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "chat_template.json", "README.md", "sr_edge.json",
)  # fmt: skip
"""What a conversion reads besides the weights, where it is there."""

_REQUIRED = ("config.json", "tokenizer.json")
_MAX_SMALL = 100 << 20  # bytes of one of them; no real tokenizer takes more
_MAX_LISTED = 12
_ROOM = 1.15  # of a file's size, and the next: what a model needs in memory beside its weights
_ROOM_BYTES = 300 << 20


@dataclass(frozen=True, slots=True)
class Gguf:
    """One file that is the model."""

    file: HubFile
    note: str | None
    """What the user should know about the choice."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Files that are to be converted. The shards are known once their index was read."""

    small: tuple[HubFile, ...]
    index: HubFile | None
    single: HubFile | None
    shards: tuple[HubFile, ...]
    """Those that look like it, until `shards_of` knows."""
    type: str

    @property
    def weights_size(self) -> int:
        return self.single.size if self.single else sum(shard.size for shard in self.shards)


def choose(
    repository: Repository, *, file: str | None, type: str | None, memory: int | None
) -> Gguf | Checkpoint:
    """Args:
        file: a path in the repository, or the type of weights that a file's name says.
        type: of the weights, as `sr-edge convert --type` has it.
        memory: bytes of this machine; None where it does not say.
    Raises:
        ModelError: there is nothing to be run here; says what there is.
        UsageError: there are several, and none is named.
    """
    type = None if type is None else _spelt(type)
    if file is not None and not _file_called(repository, file) and (named := type_named(file)):
        if type not in (None, named):
            raise UsageError(f"two types are named, {named} and {type}: name one")
        file, type = None, named
    if file is not None:
        return _named(repository, file, type)
    ggufs = [each for each in repository.files if _is_model(each)]
    has_weights = _has_safetensors(repository)
    if type is not None:
        found = [each for each in ggufs if type_of(each) == type]
        if len(found) == 1:
            return Gguf(found[0], None)
        if len(found) > 1:
            raise UsageError(f"{repository.name} has several files of {type}: name one of {_listed(found)}")
        if not has_weights and ggufs:
            raise ModelError(
                f"{repository.name} has no file of type {type}, and no checkpoint to make one from; it has "
                f"{_listed(ggufs)}"
            )
    if ggufs and not (type and has_weights):
        return _best(repository, ggufs, memory)
    if has_weights:
        return _checkpoint(repository, type or DEFAULT_TYPE)
    raise _nothing(repository)


def type_of(file: HubFile) -> str | None:
    """Of its weights, as its name says, in small letters."""
    return type_in(file.name)


def type_in(file: str) -> str | None:
    """That the name of a file says."""
    found = _TYPE.search(file)
    return _spelt(found[1]) if found else None


def type_named(word: str) -> str | None:
    """That the word is the name of, if it is."""
    found = _TYPE.fullmatch(f"{word}.gguf")
    return _spelt(found[1]) if found else None


def _spelt(type: str) -> str:
    return type.lower().replace("fp16", "f16").replace("fp32", "f32")


# --- GGUFs -------------------------------------------------------------------------------------------


def _file_called(repository: Repository, name: str) -> HubFile | None:
    return repository.file(name) or repository.file(f"{name}.gguf")


def _named(repository: Repository, name: str, type: str | None) -> Gguf:
    file = _file_called(repository, name)
    if file is None:
        names = [each.path for each in repository.files if each.path.lower().endswith(".gguf")]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}?" if near else "leave the file out, to see what it has"
        raise ModelError(f"{repository.name} has no file {name}; {hint}")
    if not file.name.lower().endswith(".gguf"):
        raise UsageError(
            f"{file.path} is no GGUF: name one, or leave the file out for {repository.name} to be converted"
        )
    _refuse_split(file)
    if type is not None and type_of(file) not in (None, type):
        raise UsageError(f"{file.path} is of type {type_of(file)}, not {type}: name the file or the type")
    return Gguf(file, None)


def _is_model(file: HubFile) -> bool:
    name = file.name.lower()
    return name.endswith(".gguf") and not _NO_MODEL.search(name) and not _SPLIT.search(name)


def _refuse_split(file: HubFile) -> None:
    if found := _SPLIT.search(file.name):
        raise ModelError(
            f"{file.path} is part {int(found[1])} of {int(found[2])} of a file that was cut, and such "
            "files are not put together here: choose a smaller type, or a repository that has it whole"
        )


def _best(repository: Repository, ggufs: list[HubFile], memory: int | None) -> Gguf:
    if len(ggufs) == 1:
        return Gguf(ggufs[0], _does_not_fit(ggufs[0], memory))
    ranked = sorted(
        (each for each in ggufs if type_of(each) in _PREFERRED),
        key=lambda each: (_PREFERRED.index(type_of(each) or ""), each.path),
    )
    best = [each for each in ranked if type_of(each) == type_of(ranked[0])]
    if not ranked or len(best) > 1:
        raise UsageError(f"{repository.name} has several models: name one of {_listed(best or ggufs)}")
    first = ranked[0]
    if _does_not_fit(first, memory) is None:
        return Gguf(first, None)
    smaller = sorted((each for each in ranked if each.size < first.size), key=lambda each: -each.size)
    for each in smaller:
        if _does_not_fit(each, memory) is None:
            return Gguf(each, f"{first.name} does not fit into the memory of this machine: {each.name} does")
    return Gguf(first, _does_not_fit(first, memory))


def _does_not_fit(file: HubFile, memory: int | None) -> str | None:
    if memory is None or file.size * _ROOM + _ROOM_BYTES < memory:
        return None
    return (
        f"{file.name} is {amount(file.size)}, and this machine has {amount(memory)} of memory: it will not "
        "run well"
    )


def _listed(files: Iterable[HubFile]) -> str:
    files = sorted(files, key=lambda file: file.size)
    words = [f"{file.path} ({amount(file.size)})" for file in files[:_MAX_LISTED]]
    more = f" and {len(files) - _MAX_LISTED} more" if len(files) > _MAX_LISTED else ""
    return ", ".join(words) + more


# --- checkpoints -------------------------------------------------------------------------------------


def _has_safetensors(repository: Repository) -> bool:
    has_shards = any(_is_shard(each) for each in repository.files)
    return repository.file(_SINGLE) is not None or repository.file(_INDEX) is not None or has_shards


def _is_shard(file: HubFile) -> bool:
    return "/" not in file.path and file.path.startswith("model-") and bool(_SPLIT.search(file.path))


def _checkpoint(repository: Repository, type: str) -> Checkpoint:
    for name in _REQUIRED:
        if repository.file(name) is None:
            missing = (
                "its tokenizer is of a kind that is not converted here" if "tok" in name else "it is no model"
            )
            raise ModelError(f"{repository.name} has no {name}, so {missing}: see what it says of itself")
    templates = [
        each
        for each in repository.files
        if re.fullmatch(r"additional_chat_templates/[^/]+\.jinja", each.path)
    ]
    small = [found for name in _SMALL if (found := repository.file(name)) is not None] + templates
    for file in small:
        if file.size > _MAX_SMALL:
            raise ModelError(f"{repository.name}: {file.path} is {amount(file.size)}, which it cannot need")
    single, index = repository.file(_SINGLE), repository.file(_INDEX)
    shards = tuple(each for each in repository.files if _is_shard(each))
    if single is None and index is None:
        raise ModelError(
            f"{repository.name} has its weights in {len(shards)} files and no {_INDEX} that says what is "
            "where: it is not complete"
        )
    return Checkpoint(tuple(small), None if single else index, single, () if single else shards, type)


def shards_of(repository: Repository, index: bytes) -> tuple[HubFile, ...]:
    """The files that the index names.

    Raises:
        ModelError: it is no index, or the repository lacks one of them.
    """
    try:
        names = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(
            f"{repository.name}: {_INDEX} says not what is where: the repository is damaged"
        ) from None
    shards = []
    for name in names:
        file = repository.file(name) if isinstance(name, str) else None
        if file is None or not file.path.endswith(".safetensors"):
            shown = safe_line(str(name))[:100]
            raise ModelError(f"{repository.name}: {_INDEX} names {shown}, which the repository does not have")
        shards.append(file)
    return tuple(shards)


def check_config(repository: Repository, config: bytes) -> None:
    """Refuse what cannot be converted before its weights are fetched.

    Raises:
        ModelError
    """
    try:
        said = json.loads(config)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, Mapping):
        raise ModelError(f"{repository.name}: its config.json is no JSON object: the repository is damaged")
    kind = said.get("model_type")
    if kind not in ARCHITECTURES:
        shown = safe_line(str(kind))[:60]
        raise ModelError(
            f"{repository.name} is a model of the kind {shown}; those that run here are "
            f"{', '.join(ARCHITECTURES)}"
        )
    quantization: Any = said.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        raise ModelError(
            f"{repository.name} holds weights that were quantised already ({safe_line(str(method))[:40]}): "
            "pull the repository that it was made from, or one of GGUFs"
        )


def _nothing(repository: Repository) -> ModelError:
    names = [file.path for file in repository.files]
    name = repository.name
    split = next(
        (
            file
            for file in repository.files
            if file.name.lower().endswith(".gguf") and _SPLIT.search(file.name)
        ),
        None,
    )
    if split is not None:
        _refuse_split(split)
    if "adapter_config.json" in names:
        return ModelError(
            f"{name} is an adapter, not a model: get the checkpoint that it was trained on, then `sr-edge "
            "convert CHECKPOINT --lora ADAPTER`"
        )
    if any(path.endswith(_PICKLES) for path in names):
        return ModelError(
            f"{name} has its weights as pickles only, which can run any program when they are opened: "
            "they are not fetched. Choose a repository with safetensors or GGUFs"
        )
    if any(path.endswith(".safetensors") for path in names):
        return ModelError(
            f"{name} has safetensors, but no {_SINGLE} and no {_INDEX}: it is no language model"
        )
    shown = ", ".join(names[:_MAX_LISTED]) or "nothing"
    return ModelError(f"{name} holds no model that could run here: no GGUF and no safetensors, but {shown}")
