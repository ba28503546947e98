"""Each tensor of the file against the checkpoint's, value by value; it needs neither torch nor much memory.

How exact a value can be follows from the type it is packed in, whatever the model: so this finds a damaged or
exchanged tensor in a file of four bits too, whose logits are far from the checkpoint's in any case. Which
tensor is which, and the order of Llama's rows, it takes from the converter's own tables: a mistake there is
found by the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

from sr_convert.architectures import ArchitectureName
from sr_convert.checkpoint import EMBEDDING, HEAD
from sr_convert.source import Source
from sr_convert.tensors import PlannedTensor, pack, plan
from sr_convert.verify.report import Judgement, Row

_EXACT_TO = (
    ("F32", 0.0, 0.0),
    ("F16", 5e-4, 1e-3),
    ("BF16", 4e-3, 4e-3),
    ("Q8", 0.02, 0.01),
    ("Q6", 0.06, 0.06),
    ("Q5", 0.12, 0.12),
    ("Q4 IQ4 MXFP4 NVFP4", 0.25, 0.25),
    ("Q3 IQ3", 0.4, 0.5),
    ("", 0.9, 1.5),
)
"""By type: the error of a tensor, root mean square over that of its values; and that of one value, over the
largest in its row. Of normal random numbers the first is 0.0002 in F16, 0.0017 in BF16, 0.0054 in Q8_0, 0.018
in Q6_K, 0.036 in Q5_K, 0.072 in Q4_K, 0.15 in Q3_K and 0.3 in Q2_K; of another tensor it is over 1."""


def compare_weights(
    gguf: Path,
    source: Source,
    architecture: ArchitectureName,
    added: Sequence[int],
    progress: Callable[[int, int], None],
) -> Row:
    """Args:
    gguf: one that llama.cpp has opened.
    added: rows of the embedding and the head that the conversion put in.
    progress: values compared, and all of them.
    """
    limit = "as exact as its type"
    wanted = {tensor.name: tensor for tensor in plan(source, architecture, "F32")}
    reader: Any = GGUFReader(gguf)
    found = {tensor.name: tensor for tensor in reader.tensors}
    for names, where in (
        (wanted.keys() - found.keys(), "file"),
        (found.keys() - wanted.keys(), "checkpoint"),
    ):
        if names:
            detail = f"{min(names)} is not in the {where}"
            return Row("weights", "differs", f"{len(names)} tensors too few or too many", limit, detail)

    wrong: list[str] = []
    errors: dict[str, tuple[float, str]] = {}
    unknown: list[str] = []
    done, whole = 0, sum(math.prod(tensor.shape) for tensor in wanted.values())
    for name, tensor in wanted.items():
        kind = found[name].tensor_type.name
        skipped = added if tensor.source in (EMBEDDING, HEAD) else ()
        try:
            complaint, error = _compare(source, tensor, found[name], kind, skipped)
        except NotImplementedError:
            unknown.append(f"{name} ({kind})")
            continue
        if complaint:
            wrong.append(f"{name} ({kind}) {complaint}")
        errors[kind] = max(errors.get(kind, (0.0, "")), (error, name))
        done += math.prod(tensor.shape)
        progress(done, whole)
    progress(whole, whole)

    worst = max(errors.values(), default=(0.0, ""))[0]
    figures = {"tensors": len(wanted), "different": len(wrong), "largest_error": worst}
    detail = "; ".join([*wrong[:3], *(f"{one} cannot be unpacked here" for one in unknown[:1])])
    if wrong:
        return Row("weights", "differs", f"{len(wrong)} of {len(wanted)} tensors", limit, detail, figures)
    if not errors:
        return Row("weights", "not checked", "", limit, detail)
    judgement: Judgement = "equal" if worst == 0 and not unknown else "close"
    kinds = ", ".join(f"{kind} {error:.2g}" for kind, (error, _) in errors.items() if error)
    detail = detail or (f"the largest relative errors are {kinds}" if kinds else "")
    return Row("weights", judgement, f"{len(wanted)} tensors", limit, detail, figures)


def _compare(
    source: Source, tensor: PlannedTensor, stored: Any, kind: str, skipped: Sequence[int]
) -> tuple[str, float]:
    """What is wrong, if anything; and the relative error."""
    shape = tuple(int(n) for n in reversed(stored.shape))
    rows = tensor.shape[0]
    if shape[1:] != tensor.shape[1:] or (shape[0] < rows if skipped else shape[0] != rows):
        return f"has the shape {shape}, and {tensor.shape} in the checkpoint", 0.0
    mean_limit, peak_limit = next(
        (mean, peak) for names, mean, peak in _EXACT_TO if kind.startswith(tuple(names.split() or [""]))
    )
    squares, total = 0.0, 0.0
    for first, last in tensor.pieces():
        own = pack(source, tensor, first, last).reshape(last - first, -1)
        theirs = dequantize(stored.data[first:last], stored.tensor_type).reshape(last - first, -1)
        kept = [i for i in range(last - first) if first + i not in skipped] if skipped else slice(None)
        difference = np.abs(own[kept] - theirs[kept])
        at = _first_over(difference, own[kept], peak_limit, is_vector=len(shape) == 1)
        if at is not None:
            return f"has another value in row {first + at}", 1.0
        squares += float(np.square(difference, dtype=np.float64).sum())
        total += float(np.square(own[kept], dtype=np.float64).sum())
    error = math.sqrt(squares / total) if total else math.sqrt(squares)
    return (f"is off by {error:.2g} on average" if error > mean_limit else ""), error


def _first_over(
    difference: NDArray[np.float32], own: NDArray[np.float32], limit: float, *, is_vector: bool
) -> int | None:
    """The first row in which a value is off by more than the limit, or is no number."""
    scale = np.abs(own) if is_vector else np.abs(own).max(axis=1, keepdims=True)
    over = ~(difference <= scale * limit)
    return int(over.any(axis=1).argmax()) if over.any() else None
