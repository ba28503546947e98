"""A GGUF with something in it changed, as a wrong conversion would have written it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter


def rewritten(
    source: Path,
    target: Path,
    *,
    fields: Mapping[str, Callable[[Any], Any]] | None = None,
    tensors: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
) -> Path:
    """Copy a GGUF; what a function returns takes the place of what it was given, None leaves a field out."""
    reader = GGUFReader(source)
    changes, turns = dict(fields or {}), dict(tensors or {})
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = changes.pop(key, lambda value: value)(field.contents())
        if value is None:
            continue
        inner = field.types[-1] if field.types[0] is GGUFValueType.ARRAY else None
        writer.add_key_value(key, value, field.types[0], inner)
    for tensor in reader.tensors:
        data = turns.pop(tensor.name, lambda data: data)(np.array(tensor.data))
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    assert not changes, "no such field"
    assert not turns, "no such tensor"
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
