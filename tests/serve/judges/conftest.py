"""Two servers for all judges: one over the built-in pair, one whose answers are as long as is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
from tests.serve.judges.serving import Server, served
from tests.tiny_gguf import CONTROL, write_tiny_gguf


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Answers word problems, with spans."""
    with served(tmp_path_factory.mktemp("home"), "--parallel", 4, "--queue", 32) as running:
        yield running


@pytest.fixture(scope="session")
def rambling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes any text, and at temperature 0 writes on until it is stopped."""
    path = write_tiny_gguf(tmp_path_factory.mktemp("rambling") / "rambling.gguf", context_length=32768)
    reader = gguf.GGUFReader(path, "r+")
    (tokens,) = (field for name, field in reader.fields.items() if name == "tokenizer.ggml.tokens")
    (output,) = (tensor for tensor in reader.tensors if tensor.name == "output.weight")
    ends = [n for n, token in enumerate(tokens.contents()) if token in CONTROL]
    output.data[ends] = 0  # never the likeliest: of hundreds of random logits one is above 0
    output.data.flush()
    return path
