"""A bad model file is refused by name and reason, before llama.cpp sees it."""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.errors import ModelError
from sr_edge.gguf_header import TENSOR_TYPES, Array, read_header


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "copy.gguf"
    path.write_bytes(tiny.read_bytes())
    return path


def replace(path: Path, old: bytes, new: bytes, offset: int = 0) -> None:
    """Overwrite what stands `offset` bytes after the first `old`."""
    data = bytearray(path.read_bytes())
    at = data.index(old) + offset
    data[at : at + len(new)] = new
    path.write_bytes(data)


def test_header_says_what_the_model_is(tiny: Path) -> None:
    header = read_header(tiny)
    assert header.architecture == "qwen2"
    assert header.metadata["general.name"] == "tiny"
    assert header.metadata["qwen2.block_count"] == 2
    assert header.metadata["tokenizer.ggml.add_bos_token"] is False
    assert header.metadata["tokenizer.ggml.tokens"] == Array("string", 276)
    assert header.num_tensors == 27
    assert header.num_parameters == 109_632
    assert header.file_size == tiny.stat().st_size


def test_texts_leave_lists_out(tiny: Path) -> None:
    texts = read_header(tiny).texts()
    assert texts["qwen2.block_count"] == "2"
    assert texts["tokenizer.ggml.add_bos_token"] == "false"
    assert "tokenizer.ggml.tokens" not in texts


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n <?xml version='1.0'?><Error>", "a web page"),
        (struct.pack("<Q", 300) + b'{"__metadata__":{}}', "safetensors: convert"),
        (b"PK\x03\x04" + bytes(40), "zip archive or a PyTorch checkpoint"),
        (b'{"architectures": ["Qwen2ForCausalLM"]}', "JSON text"),
        (b"tjgg" + bytes(40), "from before GGUF"),
        (b"\x1f\x8b\x08" + bytes(40), "gzip"),
        (bytes(4096), "zeros: the download is incomplete"),
        (b"404: not found", "text, '404: not found'"),
        (b"\xff\xfe\x01\x02", "begins with ff fe 01 02"),
        (b"GGUF", "ends inside its own metadata"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(64), "GGUF version 1"),
        (b"GGUF" + struct.pack("<I", 4) + bytes(64), "upgrade sr-edge"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(64), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "does not say its model's architecture"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "counts"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "counts"),
    ],
)
def test_what_is_no_usable_gguf_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        read_header(path)
    assert str(error.value).startswith(f"{path}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file: check the path"):
        read_header(tmp_path / "nowhere.gguf")
    with pytest.raises(ModelError, match=r"directory: name a \.gguf file"):
        read_header(tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        read_header(tmp_path / "a\0b.gguf")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelError, match="not a regular file"):
        read_header(tmp_path / "pipe.gguf")


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "other.gguf", architecture="mamba")
    with pytest.raises(ModelError, match="architecture is 'mamba'; this program runs llama, qwen2, qwen3"):
        read_header(path)


def test_adapters_parts_and_other_tokenizers_are_refused(tmp_path: Path, copy: Path) -> None:
    adapter = write_tiny_gguf(tmp_path / "adapter.gguf", metadata={"general.type": "adapter"})
    with pytest.raises(ModelError, match="holds no model but 'adapter'"):
        read_header(adapter)
    replace(copy, b"gpt2", b"bert")
    with pytest.raises(ModelError, match="tokenizer is 'bert'; this program needs a byte-level one"):
        read_header(copy)


def test_equal_tokens_are_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "twice.gguf", words=["word", "word"])
    with pytest.raises(ModelError, match="two tokens of its vocabulary have the same spelling"):
        read_header(path)


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "twice.gguf", metadata={"general.nama": "other"})
    replace(path, b"general.nama", b"general.name")
    with pytest.raises(ModelError, match=r"the key 'general\.name' is in it twice"):
        read_header(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("block_count", 0), ("block_count", 513), ("attention.head_count", 0), ("context_length", 0)],
)
def test_shapes_that_llama_cpp_asserts_are_refused(key: str, value: int, copy: Path) -> None:
    replace(copy, f"qwen2.{key}".encode(), struct.pack("<I", value), offset=len(f"qwen2.{key}") + 4)
    with pytest.raises(ModelError, match=f"an impossible '{key}'"):
        read_header(copy)


def test_heads_that_do_not_share_the_cache_evenly_are_refused(copy: Path) -> None:
    key = b"qwen2.attention.head_count_kv"
    replace(copy, key, struct.pack("<I", 3), offset=len(key) + 4)
    with pytest.raises(ModelError, match="4 heads cannot share 3 of the cache"):
        read_header(copy)
    # 2**28 + 2 heads of 16: a product of 32 bits would be the same as with 2
    replace(copy, key, struct.pack("<I", (1 << 28) + 2), offset=len(key) + 4)
    with pytest.raises(ModelError, match=r"an impossible 'attention\.head_count_kv'"):
        read_header(copy)


@pytest.mark.parametrize("epsilon", [-1e-6, float("nan"), float("inf")])
def test_an_epsilon_that_llama_cpp_asserts_is_refused(epsilon: float, copy: Path) -> None:
    key = b"qwen2.attention.layer_norm_rms_epsilon"
    replace(copy, key, struct.pack("<f", epsilon), offset=len(key) + 4)
    with pytest.raises(ModelError, match="no possible 'layer_norm_rms_epsilon'"):
        read_header(copy)


def test_tensors_are_where_the_header_says(tiny: Path) -> None:
    ours = read_header(tiny).tensors
    theirs = gguf.GGUFReader(tiny).tensors
    assert [tensor.name for tensor in ours] == [tensor.name for tensor in theirs]
    for tensor, other in zip(ours, theirs, strict=True):
        assert tensor.shape == tuple(other.shape)
        assert tensor.kind == other.tensor_type
        assert tensor.offset == other.data_offset
        assert tensor.size == other.n_bytes


def test_a_tensor_of_unknown_type_is_refused(copy: Path) -> None:
    name = b"output_norm.weight"
    replace(copy, name, struct.pack("<I", 31), offset=len(name) + 4 + 8)
    with pytest.raises(ModelError, match="has type 31, unknown to this version"):
        read_header(copy)


def test_a_tensor_that_is_elsewhere_is_refused(copy: Path) -> None:
    name = b"output_norm.weight"
    replace(copy, name, struct.pack("<Q", 0), offset=len(name) + 4 + 8 + 4)
    with pytest.raises(ModelError, match="not where it should be"):
        read_header(copy)


def test_every_cut_of_a_file_is_refused(copy: Path) -> None:
    size = copy.stat().st_size
    tensors = copy.read_bytes().index(b"token_embd.weight")
    cuts = {*range(64), *range(64, tensors + 2048, 37), *range(tensors, size - 32, 9973), size - 33}
    for cut in sorted(cuts, reverse=True):
        os.truncate(copy, cut)
        with pytest.raises(ModelError, match=r"incomplete|empty|begins with|text"):
            read_header(copy)


@settings(max_examples=100)
@given(data=st.data())
def test_no_change_of_bytes_breaks_the_reader(data: st.DataObject, tiny: Path) -> None:
    content = bytearray(tiny.read_bytes()[:9000])
    content += bytes(tiny.stat().st_size - len(content))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 8992))
        change = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8)))
        content[at : at + len(change)] = change
    path = tiny.with_name("mutant.gguf")
    path.write_bytes(content)
    with suppress(ModelError):
        read_header(path)


MERGES = b"tokenizer.ggml.merges"


def test_a_lying_length_costs_nothing(copy: Path) -> None:
    for lie in (1 << 63, 1 << 40, (1 << 64) - 1, 1 << 31):  # more than the file holds: not to be allocated
        replace(copy, MERGES, struct.pack("<Q", lie), offset=len(MERGES) + 8)
        with pytest.raises(ModelError, match="ends inside its own metadata"):
            read_header(copy)


def test_types_are_those_of_the_library() -> None:
    ggml = pytest.importorskip("llama_cpp._ggml").libggml
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_blck_size.restype = ctypes.c_int64
    for kind in range(max(TENSOR_TYPES) + 1):
        known = ggml.ggml_blck_size(kind), ggml.ggml_type_size(kind)
        assert TENSOR_TYPES.get(kind, (0, 0)) == known, kind
