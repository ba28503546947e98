"""llama.cpp's own test texts for its vocabularies, through our engine: every one must give the same ids."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.convert.official import llama_cpp_sources

from sr_edge.llama import open_vocabulary
from sr_edge.vocabulary import Vocabulary

pytestmark = pytest.mark.slow

NAMES = (
    "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gpt-2", "llama-bpe", "mpt", "qwen2", "qwen35",
    "refact", "starcoder",
)  # fmt: skip
"""Those of byte-level BPE."""
SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.fixture(scope="module")
def models() -> Path:
    return llama_cpp_sources() / "models"


@pytest.mark.parametrize("name", NAMES)
def test_every_text_has_the_ids_that_llama_cpp_expects(name: str, models: Path) -> None:
    path = models / f"ggml-vocab-{name}.gguf"
    with open_vocabulary(path) as vocabulary:
        check(vocabulary, path)


def test_the_distilled_qwen_of_deepseek_too(models: Path, tmp_path: Path) -> None:
    """The archive has no texts of its own: it cuts as Qwen does, under another name."""
    path = tmp_path / "deepseek.gguf"
    path.write_bytes(renamed((models / "ggml-vocab-qwen2.gguf").read_bytes(), "qwen2", "deepseek-r1-qwen"))
    with open_vocabulary(path) as vocabulary:
        check(vocabulary, models / "ggml-vocab-qwen2.gguf")


def check(vocabulary: Vocabulary, path: Path) -> None:
    cases = [*read_cases(path)]
    assert len(cases) > 40
    for text, ids in cases:
        assert vocabulary.scaffold(text) == ids, text
        assert vocabulary.ordinary(text) == ids, text  # nothing in them is special
        assert b"".join(map(vocabulary.piece, ids)).decode() == text


def read_cases(path: Path) -> Iterator[tuple[str, list[int]]]:
    texts = path.with_name(path.name + ".inp").read_text(encoding="utf-8").split(SEPARATOR)
    lines = path.with_name(path.name + ".out").read_text(encoding="utf-8").splitlines()
    assert texts.pop() == ""  # the last one ends with a separator, too
    for text, line in zip(texts, lines, strict=True):
        yield text, [int(id) for id in line.split()]


def renamed(data: bytes, old: str, new: str) -> bytes:
    """Another name for the pre-tokenizer. (There are no tensors whose places would change.)"""
    key = b"tokenizer.ggml.pre" + struct.pack("<I", 8)
    start = data.index(key) + len(key)
    before = struct.pack("<Q", len(old)) + old.encode()
    assert data[start : start + len(before)] == before
    return data[:start] + struct.pack("<Q", len(new)) + new.encode() + data[start + len(before) :]
