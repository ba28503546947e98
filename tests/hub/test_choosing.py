"""Which file of a repository is the model."""

from __future__ import annotations

import json

import pytest

from sr_edge.errors import EdgeError, ModelError, UsageError
from sr_edge.hub.choosing import Checkpoint, Gguf, check_config, choose, shards_of, type_of
from sr_edge.hub.repository import HubFile, Repository

GB = 10**9
QUANTS = {"m-Q2_K.gguf": GB, "m-Q4_K_M.gguf": 2 * GB, "m-Q8_0.gguf": 4 * GB, "m-F16.gguf": 8 * GB}
CHECKPOINT = {"config.json": 700, "tokenizer.json": 7_000_000, "model.safetensors": 3 * GB, "README.md": 10}


def repository(files: dict[str, int] | list[str]) -> Repository:
    sizes = files if isinstance(files, dict) else dict.fromkeys(files, 1000)
    found = [HubFile("a/b", "c" * 40, path, size, "0" * 64, None) for path, size in sizes.items()]
    return Repository("a/b", "c" * 40, tuple(found))


def chosen(files: dict[str, int] | list[str], file: str | None = None, type: str | None = None) -> str:
    found = choose(repository(files), file=file, type=type, memory=None)
    return found.file.path if isinstance(found, Gguf) else f"convert to {found.type}"


@pytest.mark.parametrize(
    ("files", "file", "type", "expected"),
    [
        (QUANTS, None, None, "m-Q4_K_M.gguf"),
        (QUANTS, None, "q8_0", "m-Q8_0.gguf"),
        (QUANTS, None, "F16", "m-F16.gguf"),
        (QUANTS, "m-Q2_K.gguf", None, "m-Q2_K.gguf"),
        (QUANTS, "m-Q2_K", None, "m-Q2_K.gguf"),
        (QUANTS, "q8_0", None, "m-Q8_0.gguf"),
        (["only.gguf"], None, None, "only.gguf"),
        (QUANTS, "fp16", "f16", "m-F16.gguf"),
        (["q8_0.gguf", "m-Q8_0.gguf"], "q8_0", None, "q8_0.gguf"),
        (CHECKPOINT, "Q6_K", None, "convert to q6_k"),
        (["m-Q8_0.gguf", "m-Q5_K_M.gguf", "mmproj-f16.gguf", "imatrix.gguf"], None, None, "m-Q5_K_M.gguf"),
        (["m.Q4_K_M.gguf", "m-BIG-F32-00001-of-00002.gguf"], None, None, "m.Q4_K_M.gguf"),
        (CHECKPOINT, None, None, "convert to q4_k_m"),
        (CHECKPOINT, None, "Q6_K", "convert to q6_k"),
        (CHECKPOINT | QUANTS, None, None, "m-Q4_K_M.gguf"),
        (CHECKPOINT | QUANTS, None, "q5_k_m", "convert to q5_k_m"),
        (CHECKPOINT | {"pytorch_model.bin": 9, "onnx/model.onnx": 9}, None, None, "convert to q4_k_m"),
    ],
)
def test_what_is_meant_is_chosen(
    files: dict[str, int] | list[str], file: str | None, type: str | None, expected: str
) -> None:
    assert chosen(files, file, type) == expected


@pytest.mark.parametrize(
    ("files", "file", "type", "says"),
    [
        (QUANTS, "m-Q4_K_S.gguf", None, r"has no file m-Q4_K_S.gguf; did you mean m-Q4_K_M.gguf\?"),
        (QUANTS, "zzz", None, "leave the file out, to see what it has"),
        (QUANTS, "q6_k", None, r"no file of type q6_k, and no checkpoint .* m-Q2_K.gguf \(1.0 GB\)"),
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "Q4_K_M", None, "several files of q4_k_m: name one of a-Q4"),
        (QUANTS, "q8_0", "q4_k_m", "two types are named, q8_0 and q4_k_m"),
        (
            QUANTS,
            None,
            "q6_k",
            r"no file of type q6_k, and no checkpoint .* m-Q2_K.gguf \(1.0 GB\), m-Q4_K_M",
        ),
        (QUANTS, "m-Q2_K.gguf", "q8_0", "is of type q2_k, not q8_0"),
        (QUANTS | {"README.md": 1}, "README.md", None, "is no GGUF"),
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], None, None, "several models: name one of a-Q4_K_M.gguf"),
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], None, "q4_k_m", "several files of q4_k_m"),
        (["a.gguf", "b.gguf"], None, None, "several models"),
        (["m-Q8_0-00001-of-00003.gguf"], None, None, "part 1 of 3 of a file that was cut"),
        (["m-Q8_0-00001-of-00003.gguf"], "m-Q8_0-00001-of-00003.gguf", None, "part 1 of 3"),
        (["pytorch_model.bin", "config.json"], None, None, "pickles only"),
        (["adapter_model.safetensors", "adapter_config.json"], None, None, "is an adapter, not a model"),
        (["diffusion.safetensors"], None, None, "no model.safetensors"),
        (["README.md"], None, None, "no GGUF and no safetensors, but README.md"),
        ([], None, None, "but nothing"),
        (["model.safetensors", "tokenizer.json"], None, None, "has no config.json"),
        (["model.safetensors", "config.json"], None, None, "has no tokenizer.json"),
        (
            ["model-00001-of-00002.safetensors", "config.json", "tokenizer.json"],
            None,
            None,
            "it is not complete",
        ),
        (CHECKPOINT | {"tokenizer.json": GB}, None, None, "tokenizer.json is 1.0 GB, which it cannot need"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(
    files: dict[str, int] | list[str], file: str | None, type: str | None, says: str
) -> None:
    with pytest.raises(EdgeError, match=says) as refused:
        chosen(files, file, type)
    assert isinstance(refused.value, UsageError | ModelError)


@pytest.mark.parametrize(
    ("memory", "expected", "says"),
    [
        (16 * GB, "m-Q4_K_M.gguf", None),
        (
            2 * GB,
            "m-Q2_K.gguf",
            "m-Q4_K_M.gguf does not fit into the memory of this machine: m-Q2_K.gguf does",
        ),
        (GB, "m-Q4_K_M.gguf", "will not run well"),
    ],
)
def test_the_memory_of_the_machine_counts(memory: int, expected: str, says: str | None) -> None:
    found = choose(repository(QUANTS), file=None, type=None, memory=memory)
    assert isinstance(found, Gguf)
    assert found.file.path == expected
    assert found.note == says if says is None else says in (found.note or "")


@pytest.mark.parametrize(
    ("name", "type"),
    [
        ("m-Q4_K_M.gguf", "q4_k_m"),
        ("M.IQ4_XS.gguf", "iq4_xs"),
        ("m-fp16.gguf", "f16"),
        ("m-BF16.gguf", "bf16"),
        ("m-UD-Q4_K_XL.gguf", "ud-q4_k_xl"),
        ("q8_0.gguf", "q8_0"),
        ("model.gguf", None),
        ("qwen2.gguf", None),
    ],
)
def test_a_name_tells_the_type(name: str, type: str | None) -> None:
    assert type_of(HubFile("a/b", "c", name, 1, None, None)) == type


def test_only_what_a_conversion_reads_is_fetched() -> None:
    shards = {f"model-0000{n}-of-00002.safetensors": GB for n in (1, 2)}
    files = (
        CHECKPOINT | shards | {"model.safetensors.index.json": 9, "optimizer.pt": 9, "chat_template.jinja": 9}
    )
    del files["model.safetensors"]
    found = choose(repository(files), file=None, type=None, memory=None)
    assert isinstance(found, Checkpoint)
    assert {file.path for file in found.small} == {*CHECKPOINT, "chat_template.jinja"} - {"model.safetensors"}
    assert found.weights_size == 2 * GB
    index = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}).encode()
    assert [file.path for file in shards_of(repository(files), index)] == ["model-00001-of-00002.safetensors"]


@pytest.mark.parametrize(
    "index",
    [
        b"", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": 3}}',
        b'{"weight_map": {"a": "../x"}}', b'{"weight_map": {"a": "config.json"}}',
        b'{"weight_map": {"a": ["x"]}}', b"\xff",
    ],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(index: bytes) -> None:
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        shards_of(repository(CHECKPOINT), index)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (b"", "no JSON object"),
        (b"[]", "no JSON object"),
        (b"[" * 100_000, "no JSON object"),
        (b"{}", "of the kind None"),
        (b'{"model_type": "gemma3"}', "of the kind gemma3; those that run here are llama, qwen2, qwen3"),
        (b'{"model_type": "qwen2", "quantization_config": {"quant_method": "gptq"}}', r"already \(gptq\)"),
    ],
)
def test_what_cannot_be_converted_is_refused_before_its_weights_come(config: bytes, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        check_config(repository(CHECKPOINT), config)
