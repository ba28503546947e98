"""From a checkpoint's folder to a GGUF: the whole way, in its order.

Read the checkpoint, merge the adapter, put the markers in, describe, write; for llama.cpp's quantised types,
write in the checkpoint's own precision first and let llama.cpp quantise that. The result is read back before
it gets its name. What each step does is in the module that it calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from sr_convert.checkpoint import EMBEDDING, Checkpoint, cached_origin, open_checkpoint
from sr_convert.describing import describe
from sr_convert.lora import Merged, read_adapter
from sr_convert.markers import marked
from sr_convert.quantize_command import notices_of
from sr_convert.source import Dtype, Source
from sr_convert.tensors import PackedType, PlannedTensor, plan
from sr_convert.tokenizer import TOKENIZER, read_tokenizer
from sr_convert.writing import check_out, num_bytes, publish, workshop, write_gguf
from sr_edge.converting import Progress
from sr_edge.errors import UsageError
from sr_edge.gguf_header import read_header
from sr_edge.quantizer import TYPES, quantize

_DIRECT: Mapping[str, PackedType] = {type.lower(): type for type in get_args(PackedType)}
"""Types that are written here; all others are llama.cpp's."""

_QUANTISED_SHARE = 0.7  # of a 16-bit file: more than the largest of those types takes


@dataclass(frozen=True, slots=True)
class Request:
    checkpoint: Path
    out: Path
    type: str = "q8_0"
    """A key of `quantizer.TYPES`."""
    adapter: Path | None = None
    """The folder of a LoRA adapter to merge."""
    add_markers: bool = False
    text_markers: bool = False
    tau: float | None = None
    """The hand-back threshold to record; None for what the checkpoint says."""
    imatrix: Path | None = None
    threads: int | None = None
    """Of the quantiser; None for all cores."""
    source: str | None = None
    """Where the checkpoint came from, `owner/name@commit`; None for what its folder tells."""
    force: bool = False
    """Whether a file that is there is replaced."""


@dataclass(frozen=True, slots=True)
class Converted:
    path: Path
    notices: tuple[str, ...]
    """What the user should know of the result, a line each."""


def convert(request: Request, progress: Progress) -> Converted:
    """Write the GGUF, whole or not at all.

    Raises:
        UsageError: the request cannot be meant.
        ModelError: the checkpoint or the adapter cannot be converted.
        EdgeError: the disk has no room, or is broken.
    """
    _check(request)
    origin = request.source or cached_origin(request.checkpoint)
    checkpoint = open_checkpoint(request.checkpoint)
    notices: list[str] = []
    source: Source = checkpoint
    folders, trained_on = [request.checkpoint], None
    if request.adapter is not None:
        adapter = read_adapter(request.adapter)
        source = merged = Merged(checkpoint, adapter)
        notices += merged.notes
        folders, trained_on = [request.adapter, request.checkpoint], adapter.base_model
    words = read_tokenizer(_tokenizer_folder(folders), source.shapes[EMBEDDING][0], source.config)
    with_markers = marked(
        source,
        words,
        folders=folders,
        origin=origin,
        trained_on=trained_on,
        add=request.add_markers,
        as_text=request.text_markers,
        tau=request.tau,
    )
    source, words = with_markers.source, with_markers.words
    notices += with_markers.notes
    direct = _DIRECT.get(request.type)
    written = direct or _own_type(checkpoint, is_merged=request.adapter is not None)
    tensors = plan(source, checkpoint.architecture, written)
    fields = describe(
        request.checkpoint,
        source.config,
        checkpoint.architecture,
        words,
        written,
        num_parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        origin=origin,
    )
    fields += with_markers.fields
    room = num_bytes(tensors)
    if direct is None:
        room += round(_QUANTISED_SHARE * num_bytes(plan(source, checkpoint.architecture, "F16")))
    with workshop(request.out, room) as folder:
        made = folder / "model.gguf"
        write_gguf(
            made,
            checkpoint.architecture,
            fields,
            tensors,
            source,
            lambda done, whole: progress("converting", done, whole),
        )
        if direct is None:
            whole_precision, made = made, folder / "quantised.gguf"
            quantized = quantize(
                whole_precision,
                made,
                request.type,
                imatrix=request.imatrix,
                threads=request.threads,
                progress=lambda done, whole: progress("quantising", done, whole),
            )
            notices += notices_of(quantized)
        else:
            notices += _other_types(tensors, direct)
        read_header(made)
        publish(made, request.out, force=request.force)
    return Converted(request.out, tuple(notices))


def _check(request: Request) -> None:
    if request.type not in TYPES:
        raise UsageError(f"{request.type!r} is no type of weights: choose one of {', '.join(TYPES)}")
    if request.imatrix is not None and request.type in _DIRECT:
        raise UsageError(
            f"an importance matrix changes nothing for {request.type}: leave --imatrix out, or choose a type "
            "of fewer bits"
        )
    check_out(request.out, force=request.force)


def _tokenizer_folder(folders: Sequence[Path]) -> Path:
    """The adapter's, where it brings one: it is what the training used, with the tokens that were added."""
    return next((folder for folder in folders if (folder / TOKENIZER).exists()), folders[-1])


def _own_type(checkpoint: Checkpoint, *, is_merged: bool) -> PackedType:
    """One that holds every weight as it is, for the quantiser to start from."""
    dtypes: set[Dtype] = {entry.dtype for entry in checkpoint.tensors.values() if len(entry.shape) > 1}
    if is_merged or len(dtypes) > 1:
        return "F32"
    return dtypes.pop()


def _other_types(tensors: list[PlannedTensor], wanted: PackedType) -> list[str]:
    others = [t.name for t in tensors if len(t.shape) > 1 and t.type != wanted]
    if not others:
        return []
    return [
        f"{len(others)} tensors, {others[0]} first, have a width that {wanted} cannot divide: F16 instead"
    ]
