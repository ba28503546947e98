"""What all judges ask: a server over the built-in pair, and models whose answers are short or without end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import pytest
from tests.serve.judges.serving import Server, served
from tests.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Answers word problems, with spans."""
    with served(tmp_path_factory.mktemp("home"), "--parallel", 4, "--queue", 32) as running:
        yield running


@pytest.fixture(scope="session")
def terse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes any text, and comes to an end after a few tokens."""
    path = write_tiny_gguf(tmp_path_factory.mktemp("terse") / "terse.gguf", context_length=32768)
    with _output_rows(path) as (rows, ends):
        rows[ends[0]] *= 4
        rows[ends[1]] = -rows[ends[0]]  # one of the two is likely, whatever comes before
    return path


@pytest.fixture(scope="session")
def rambling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes any text, and at temperature 0 writes on until it is stopped."""
    path = write_tiny_gguf(tmp_path_factory.mktemp("rambling") / "rambling.gguf", context_length=32768)
    with _output_rows(path) as (rows, ends):
        rows[ends] = 0  # never the likeliest: of hundreds of random logits one is above 0
    return path


@contextmanager
def _output_rows(path: Path) -> Iterator[tuple[Any, list[int]]]:
    """One row a token, to be changed, and which of them end an answer."""
    reader = gguf.GGUFReader(path, "r+")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    (output,) = (tensor for tensor in reader.tensors if tensor.name == "output.weight")
    yield output.data, [tokens.index(token) for token in ("<|im_end|>", "<|endoftext|>")]
    output.data.flush()
