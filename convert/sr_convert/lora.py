"""LoRA adapters as peft saves them, and a checkpoint with one merged into it.

What is merged is what the adapter computed while it was trained: W + scale * B A in float32, whole tensors
and single rows in the place of the base's own. peft's `merge_and_unload` gives the same, but for one case:
where the embedding and the head are tied it changes both though only one was trained, or both twice. Here
they are untied then.

`adapter_config.json` is read with an allowlist: a setting that would change the result, and that is not
computed here, is refused by its name. What lives elsewhere: writing an adapter as a GGUF (`adapter`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sr_convert.checkpoint import (
    ADAPTER_CONFIG,
    EMBEDDING,
    HEAD,
    TensorEntry,
    is_tied,
    read_header,
    read_json,
    read_rows,
)
from sr_convert.source import Dtype, Source
from sr_edge.errors import ModelError

WEIGHTS = "adapter_model.safetensors"

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Pair:
    """`scale` * B A, to be added."""

    a: TensorEntry
    """Shape (rank, inputs); of an embedding, (rank, rows)."""
    b: TensorEntry
    """Shape (outputs, rank); of an embedding, (width, rank)."""
    scale: float
    of_embedding: bool = False
    """The product is then the table transposed."""

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """That of the tensor which it is added to."""
        inputs, outputs = self.a.shape[1], self.b.shape[0]
        return (inputs, outputs) if self.of_embedding else (outputs, inputs)


@dataclass(frozen=True, slots=True)
class Change:
    """What an adapter does to one tensor, in this order."""

    whole: TensorEntry | None = None
    """Takes the tensor's place."""
    is_shared: bool = False
    """Whether `whole` was saved as the base's own tensor: one that a tied head has too."""
    pair: Pair | None = None
    shift: tuple[TensorEntry, float] | None = None
    """Of a bias: what is added to it, and its scale."""
    row_ids: tuple[int, ...] = ()
    row_values: TensorEntry | None = None
    """Shape (len(row_ids), width): they take those rows' places."""


@dataclass(frozen=True, slots=True)
class Adapter:
    folder: Path
    base_model: str | None
    """What it was trained on, as its config says."""
    changes: Mapping[str, Change]
    """By the tensor's name in the checkpoint."""


def read_adapter(folder: Path) -> Adapter:
    """Read the config and the names and shapes of the weights.

    Raises:
        ModelError: there is no adapter, or it is none that can be merged exactly.
    """
    settings = _Settings(folder, _read_config(folder))
    settings.check_all()
    entries = {entry.name: entry for entry in read_header(_weights(folder))}
    if not entries:
        raise ModelError(f"{folder}: there are no weights in {WEIGHTS}: get the adapter again")
    changes = _Collector(settings).collect(entries)
    return Adapter(folder, settings.base_model, MappingProxyType(changes))


class Merged:
    """A `Source`: another one with an adapter merged into it.

    Raises:
        ModelError: the adapter is of another base, or its weights are not finite.
    """

    def __init__(self, source: Source, adapter: Adapter) -> None:
        self._source = source
        self._adapter = adapter
        self._was_tied = is_tied(source.config)
        self._changes = dict(adapter.changes)
        self._read_matrix = lru_cache(maxsize=8)(read_matrix)  # the rows of one tensor are asked for in turn
        self.notes: tuple[str, ...] = ()
        """What a user should know of the result."""
        stays_tied = not self._was_tied or self._tie()
        self._origins = {name: name for name in source.shapes}
        if self._was_tied:
            self._origins.pop(HEAD, None)
            if not stays_tied:
                self._origins[HEAD] = EMBEDDING
                self.notes = (
                    "the adapter changes the embedding and the head, which the base has in common, in "
                    "different ways: the result has a head of its own, and is larger by it",
                )
        shapes = {name: self._checked(name, source.shapes[origin]) for name, origin in self._origins.items()}
        for name in sorted(self._changes.keys() - shapes.keys()):
            if self._changes[name].shift is not None:
                raise ModelError(
                    f"{adapter.folder}: lora_bias adds to {name}, and the model has no such bias: the "
                    "adapter cannot be merged, as peft says too"
                )
            raise self._of_another_base(f"it changes {name}, which the model does not have")
        if HEAD in shapes and shapes[HEAD][0] != shapes[EMBEDDING][0]:
            raise ModelError(
                f"{adapter.folder}: the embedding has {shapes[EMBEDDING][0]} rows with the adapter, the head "
                f"{shapes[HEAD][0]}: the vocabulary grew in training, and not all of it was saved; save the "
                "adapter again with save_embedding_layers=True, or merge it with peft"
            )
        _check_finite(adapter.folder, self._changes.values())
        self._shapes = MappingProxyType(shapes)
        config = dict(source.config)
        if self._was_tied:
            config["tie_word_embeddings"] = stays_tied
        if shapes[EMBEDDING] != source.shapes[EMBEDDING]:
            config["vocab_size"] = shapes[EMBEDDING][0]
        self._config = MappingProxyType(config)

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def dtype_of(self, name: str) -> Dtype:
        return self._source.dtype_of(self._origins[name])

    def rows(self, name: str, first: int, last: int) -> NDArray[np.float32]:
        change = self._changes.get(name, _NO_CHANGE)
        if change.whole is not None:
            rows = read_rows(change.whole, first, last)
        else:
            rows = self._source.rows(self._origins[name], first, last)
        if change.pair is not None:
            rows += self._product(change.pair, first, last)
        if change.shift is not None:
            bias, scale = change.shift
            rows += read_rows(bias, first, last) * np.float32(scale)
        if change.row_values is not None:
            for index, id in enumerate(change.row_ids):
                if first <= id < last:
                    rows[id - first] = read_rows(change.row_values, index, index + 1)[0]
        return rows

    def _product(self, pair: Pair, first: int, last: int) -> NDArray[np.float32]:
        a = self._read_matrix(pair.a)
        if pair.of_embedding:
            product = (self._read_matrix(pair.b) @ a[:, first:last]).T
        else:
            product = read_rows(pair.b, first, last) @ a
        return product * np.float32(pair.scale)

    def _tie(self) -> bool:
        """Give a table and the head that is tied to it what both were trained with.

        A whole tensor that was saved as the base's own is in both; trained rows are in the head too, unless
        it has its own. A module that was trained whole (`modules_to_save`), and LoRA, are in that one only.

        Returns: whether the two are still equal.
        """
        table, head = self._changes.get(EMBEDDING, _NO_CHANGE), self._changes.get(HEAD, _NO_CHANGE)
        shared = table if table.is_shared else head
        if shared.is_shared:
            if table.whole is None:
                table = replace(table, whole=shared.whole, is_shared=True)
            if head.whole is None:
                head = replace(head, whole=shared.whole, is_shared=True)
        if head.row_values is None and (head.whole is None or head.is_shared):
            head = replace(head, row_ids=table.row_ids, row_values=table.row_values)
        is_tied = _is_same_table(table, head)
        self._changes.pop(HEAD, None)
        if table != _NO_CHANGE:
            self._changes[EMBEDDING] = table
        if not is_tied and head != _NO_CHANGE:
            self._changes[HEAD] = head
        return is_tied

    def _checked(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's shape, which only a grown vocabulary changes."""
        change = self._changes.get(name, _NO_CHANGE)
        if change.whole is not None:
            if change.whole.shape != shape and (
                name not in (EMBEDDING, HEAD) or change.whole.shape[1:] != shape[1:]
            ):
                raise self._misfit(name, change.whole.shape, shape)
            shape = change.whole.shape
        if change.pair is not None and change.pair.shape != shape:
            raise self._misfit(name, change.pair.shape, shape)
        if change.shift is not None and change.shift[0].shape != shape:
            raise self._misfit(name, change.shift[0].shape, shape)
        if change.row_values is not None:
            if change.row_values.shape[1:] != shape[1:]:
                raise self._misfit(name, change.row_values.shape, shape)
            if max(change.row_ids) >= shape[0]:
                raise ModelError(
                    f"{self._adapter.folder}: it holds the row of token {max(change.row_ids)}, and {name} "
                    f"has {shape[0]} rows: the vocabulary grew in training; name the model with the grown "
                    "vocabulary, or save the adapter again with save_embedding_layers=True"
                )
        return shape

    def _misfit(self, name: str, ours: tuple[int, ...], base: tuple[int, ...]) -> ModelError:
        return self._of_another_base(f"its {name} is {_shape(ours)}, the model's {_shape(base)}")

    def _of_another_base(self, what: str) -> ModelError:
        trained_on = f", it was trained on {self._adapter.base_model}" if self._adapter.base_model else ""
        return ModelError(
            f"{self._adapter.folder}: {what}: the adapter is of another model{trained_on}: name that one"
        )


_NO_CHANGE = Change()


def _is_same_table(table: Change, head: Change) -> bool:
    if table.row_ids != head.row_ids:
        return False
    pairs = [change.pair for change in (table, head) if change.pair is not None]
    if len(pairs) == 1 or (len(pairs) == 2 and not _is_same_product(*pairs)):
        return False
    return _is_same(table.whole, head.whole) and _is_same(table.row_values, head.row_values)


def _is_same_product(table: Pair, head: Pair) -> bool:
    """Whether LoRA of an embedding is that of the head, whose A is the other's B transposed."""
    if table.shape != head.shape or table.rank != head.rank or table.scale != head.scale:
        return False
    return np.array_equal(read_matrix(head.b), read_matrix(table.a).T) and np.array_equal(
        read_matrix(head.a), read_matrix(table.b).T
    )


def read_matrix(entry: TensorEntry) -> NDArray[np.float32]:
    """All of it, which is little where a rank is one of the two sides."""
    return read_rows(entry, 0, entry.shape[0])


def _is_same(a: TensorEntry | None, b: TensorEntry | None) -> bool:
    if a is None or b is None or a == b:
        return a == b
    return a.shape == b.shape and all(
        np.array_equal(read_rows(a, first, last), read_rows(b, first, last))
        for first, last in blocks(a.shape)
    )


def _check_finite(folder: Path, changes: Iterable[Change]) -> None:
    """Of what training makes NaN of; the whole tensors are not read twice for it."""
    for change in changes:
        entries = [change.row_values]
        if change.pair is not None:
            entries += [change.pair.a, change.pair.b]
        for entry in entries:
            if entry is not None and not all(
                np.isfinite(read_rows(entry, first, last)).all() for first, last in blocks(entry.shape)
            ):
                raise ModelError(
                    f"{folder}: {entry.name} holds numbers that are not finite: its training failed; take an "
                    "earlier save of it"
                )


def blocks(shape: tuple[int, ...], num_bytes: int = 16 << 20) -> Iterable[tuple[int, int]]:
    step = max(1, num_bytes // (4 * math.prod(shape[1:]) or 1))
    return ((first, min(first + step, shape[0])) for first in range(0, shape[0], step))


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


# --- the weights ---------------------------------------------------------------------------------------


def _weights(folder: Path) -> Path:
    path = folder / WEIGHTS
    if path.exists():
        return path
    if (folder / "adapter_model.bin").exists():
        raise ModelError(
            f"{folder}: the weights are a pickle (adapter_model.bin), which can run code when it is read: "
            "load the adapter with peft and save it anew, it writes safetensors"
        )
    raise ModelError(f"{folder}: there is no {WEIGHTS} in it: get the whole adapter")


_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.(?P<part>lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB])")
_ROWS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta")
_SHARED = re.compile(r"(?P<module>.+?)(\.token_adapter)?\.base_layer\.(?P<part>weight|bias)")
_OWN = re.compile(r"(?P<module>.+?)(?P<saved>\.modules_to_save)?\.(?P<part>weight|bias)")
_ORIGINAL = re.compile(r".+\.original_module\.(weight|bias)")
"""A copy of what the base had, which some versions of peft save along."""


class _Collector:
    """Sorts the tensors of a file by the tensors of the checkpoint that they change."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._folder = settings.folder
        self._changes: dict[str, Change] = {}
        self._parts: dict[str, dict[str, TensorEntry]] = {}

    def collect(self, entries: Mapping[str, TensorEntry]) -> dict[str, Change]:
        for name, entry in entries.items():
            if not name.startswith(_PREFIX):
                raise ModelError(
                    f"{self._folder}: there is a {name[:100]}, and peft's names begin with {_PREFIX!r}: save "
                    "the adapter with save_pretrained()"
                )
            self._take(name.removeprefix(_PREFIX), entry)
        for module, parts in self._parts.items():
            self._take_lora(module, parts)
        for saved in self._settings.modules_to_save:
            if not any(f"{saved}." in name for name in self._changes):
                raise ModelError(
                    f"{self._folder}: by {ADAPTER_CONFIG} {saved} was trained whole, and it is not in "
                    f"{WEIGHTS}: get the whole adapter"
                )
        return self._changes

    def _take(self, name: str, entry: TensorEntry) -> None:
        if lora := _LORA.fullmatch(name):
            self._parts.setdefault(lora["module"], {})[lora["part"]] = entry
        elif rows := _ROWS.fullmatch(name):
            self._take_rows(rows["module"], entry)
        elif shared := _SHARED.fullmatch(name):
            self._take_whole(f"{shared['module']}.{shared['part']}", entry, is_shared=True)
        elif _ORIGINAL.fullmatch(name):
            pass
        elif "lora_magnitude_vector" in name:
            raise self._settings.refused("DoRA (use_dora)")
        elif (own := _OWN.fullmatch(name)) and "lora_" not in name:
            tensor = f"{own['module']}.{own['part']}"
            if own["saved"] and tensor in self._changes and self._changes[tensor].whole is not None:
                return  # twice in the file: the plain name is what peft loads
            is_own = any(own["module"].endswith(saved) for saved in self._settings.modules_to_save)
            self._take_whole(tensor, entry, is_shared=not is_own)
        else:
            raise ModelError(
                f"{self._folder}: there is a {entry.name[:100]}, which is no part of a LoRA adapter that is "
                f"known here: {_MERGE_WITH_PEFT}"
            )

    def _take_whole(self, tensor: str, entry: TensorEntry, *, is_shared: bool) -> None:
        change = self._changes.get(tensor, _NO_CHANGE)
        self._changes[tensor] = replace(change, whole=entry, is_shared=is_shared)

    def _take_rows(self, module: str, entry: TensorEntry) -> None:
        ids = self._settings.row_ids(module)
        if len(entry.shape) != 2 or entry.shape[0] != len(ids):
            raise ModelError(
                f"{self._folder}: {entry.name} has the shape {_shape(entry.shape)}, and "
                f"trainable_token_indices names {len(ids)} tokens: config and weights are of different "
                "adapters; get it again"
            )
        tensor = f"{module}.weight"
        change = self._changes.get(tensor, _NO_CHANGE)
        self._changes[tensor] = replace(change, row_ids=ids, row_values=entry)

    def _take_lora(self, module: str, parts: dict[str, TensorEntry]) -> None:
        of_embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
        names = (
            ("lora_embedding_A", "lora_embedding_B") if of_embedding else ("lora_A.weight", "lora_B.weight")
        )
        missing = next((name for name in names if name not in parts), None)
        if missing is not None:
            raise ModelError(f"{self._folder}: {module} lacks its {missing}: get the adapter again")
        a, b = (parts.pop(name) for name in names)
        bias = parts.pop("lora_B.bias", None)
        if parts or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise ModelError(
                f"{self._folder}: the two matrices of {module} do not fit each other, {_shape(a.shape)} and "
                f"{_shape(b.shape)}: get the adapter again"
            )
        rank = self._settings.rank(module)
        if rank != a.shape[0]:
            raise ModelError(
                f"{self._folder}: {module} has rank {a.shape[0]}, by {ADAPTER_CONFIG} it has {rank}: config "
                "and weights are of different adapters; get it again"
            )
        scale = self._settings.scale(module, rank)
        tensor = f"{module}.weight"
        change = self._changes.get(tensor, _NO_CHANGE)
        self._changes[tensor] = replace(change, pair=Pair(a, b, scale, of_embedding))
        if self._settings.has_bias != (bias is not None):
            raise ModelError(
                f"{self._folder}: lora_bias is {str(self._settings.has_bias).lower()} in {ADAPTER_CONFIG}, "
                f"and {module} {'has' if bias else 'lacks'} such a bias: config and weights are of different "
                "adapters; get it again"
            )
        if bias is not None:
            tensor = f"{module}.bias"
            change = self._changes.get(tensor, _NO_CHANGE)
            self._changes[tensor] = replace(change, shift=(bias, scale))


# --- the config ----------------------------------------------------------------------------------------

_MERGE_WITH_PEFT = "merge it with peft (merge_and_unload, then save_pretrained) and convert that checkpoint"

_COMPUTED = frozenset({
    "alpha_pattern", "base_model_name_or_path", "init_lora_weights", "lora_alpha", "lora_bias",
    "modules_to_save", "peft_type", "r", "rank_pattern", "trainable_token_indices", "use_rslora",
})  # fmt: skip

_NO_MATTER = frozenset({
    "auto_mapping", "bias", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_dropout", "lora_dtype", "lora_ga_config", "lorap_emb_lr", "lorap_lr_ratio", "megatron_core",
    "modules_to_tie", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules",
    "target_modules_to_tie", "task_type", "velora_config",
})  # fmt: skip
"""They say how it was trained, or where: the weights' own names say which modules they belong to. peft itself
switches fan_in_fan_out off for layers as these models have them."""

_REFUSED = {
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "arrow_config": "Arrow (arrow_config)",
    "kasa_config": "KaSA (kasa_config)",
    "layer_replication": "layer_replication",
    "megatron_config": "Megatron's layers (megatron_config)",
    "monteclora_config": "MonteCLoRA (monteclora_config)",
    "target_parameters": "target_parameters",
    "use_bdlora": "block-diagonal LoRA (use_bdlora)",
    "use_dora": "DoRA (use_dora)",
    "use_qalora": "QALoRA (use_qalora)",
}

_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights`: these take something out of the base's weights before the training."""


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        what = "this is a file" if folder.exists() else "there is no such folder"
        raise ModelError(f"{folder}: {what}: name the folder that {ADAPTER_CONFIG} and {WEIGHTS} are in")
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        if (folder / "config.json").exists():
            raise ModelError(
                f"{folder}: this is a whole checkpoint, not an adapter: convert it without --lora"
            )
        raise ModelError(f"{folder}: there is no {ADAPTER_CONFIG} in it: name the folder of a LoRA adapter")
    config = read_json(path)
    if not isinstance(config, dict):
        raise ModelError(f"{path}: this is no config, which is a JSON object: get the file again")
    return config


class _Settings:
    """adapter_config.json, each value checked before it is used."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self._config = config

    def check_all(self) -> None:
        """Raises: ModelError: something in it is not computed here, or unknown."""
        kind = self._config.get("peft_type")
        if kind != "LORA":
            raise ModelError(
                f"{self.folder}: the adapter is of the kind {str(kind)[:40]}, and only LORA is merged here: "
                f"{_MERGE_WITH_PEFT}, if its kind can be merged"
            )
        for key, value in self._config.items():
            if key in _COMPUTED or key in _NO_MATTER or not value:
                continue
            raise self.refused(_REFUSED.get(key, f"the setting {key[:40]!r}, unknown here,"))
        begun = self._config.get("init_lora_weights")
        if isinstance(begun, str) and begun.lower().startswith(_CHANGES_THE_BASE):
            raise ModelError(
                f"{self.folder}: the adapter began with {begun[:40]}, which changes the base's weights too: "
                "save it with path_initial_model_for_weight_conversion, as peft explains there, or merge it "
                "with peft and convert that checkpoint"
            )

    def refused(self, what: str) -> ModelError:
        return ModelError(f"{self.folder}: {what} is not merged here: {_MERGE_WITH_PEFT}")

    @property
    def base_model(self) -> str | None:
        name = self._config.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    @cached_property
    def has_bias(self) -> bool:
        return self._flag("lora_bias")

    @cached_property
    def modules_to_save(self) -> tuple[str, ...]:
        named = self._config.get("modules_to_save") or []
        if not isinstance(named, list) or not all(isinstance(name, str) and name for name in named):
            raise self._nonsense("modules_to_save", named)
        return tuple(named)

    def rank(self, module: str) -> int:
        value = self._by_pattern("rank_pattern", "r", module)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._nonsense("r", value)
        return value

    def alpha(self, module: str) -> float:
        value = self._by_pattern("alpha_pattern", "lora_alpha", module)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e9:
            raise self._nonsense("lora_alpha", value)
        return value

    def scale(self, module: str, rank: int) -> float:
        return self.alpha(module) / (math.sqrt(rank) if self._flag("use_rslora") else rank)

    def row_ids(self, module: str) -> tuple[int, ...]:
        """Of the tokens whose rows of this module were trained."""
        named = self._config.get("trainable_token_indices")
        if isinstance(named, dict):
            named = next((ids for name, ids in named.items() if module.endswith(name)), None)
        if (
            not isinstance(named, list)
            or not named
            or not all(isinstance(id, int) and not isinstance(id, bool) and id >= 0 for id in named)
            or len(set(named)) < len(named)
        ):
            raise self._nonsense("trainable_token_indices", named)
        return tuple(named)

    def _by_pattern(self, patterns_key: str, key: str, module: str) -> Any:
        """The value of the first pattern that is the module's name, or the end of it from a dot on."""
        patterns = self._config.get(patterns_key) or {}
        if not isinstance(patterns, dict):
            raise self._nonsense(patterns_key, patterns)
        for pattern, value in patterns.items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return value
            except re.error:
                raise self._nonsense(patterns_key, pattern) from None
        return self._config.get(key, 8)  # peft's default of both

    def _flag(self, key: str) -> bool:
        value = self._config.get(key) or False
        if not isinstance(value, bool):
            raise self._nonsense(key, value)
        return value

    def _nonsense(self, key: str, value: object) -> ModelError:
        return ModelError(
            f"{self.folder / ADAPTER_CONFIG}: {key} cannot be {str(value)[:60]}: get the adapter again"
        )
