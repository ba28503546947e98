"""Against llama.cpp's own converter: every tensor the same to the bit, every key that both write the same.

Where the tokenizers are small ones made here, the other is told the pre-tokenizer's name, since it knows
tokenizers by a hash of their ids; the real ones it has to recognise by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.convert.making import make_checkpoint
from tests.convert.official import (
    Official,
    contents,
    differences,
    official_converter,
    only_in_one,
    write_real_tokenizer,
)

from sr_convert.convert import Request, convert

pytestmark = pytest.mark.slow

PRE = {"qwen2": "qwen2", "qwen3": "qwen2", "llama": "llama-bpe"}
TYPES = ("f32", "f16", "bf16", "q8_0")
OURS_ALONE = ("sr_edge.",)
"""Keys that a GGUF of ours has beside theirs."""
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
CARD = """\
---
license: apache-2.0
base_model:
- Qwen/Qwen2.5-Math-1.5B
datasets:
- open-r1/OpenR1-Math-220k
language:
- en
- no
tags:
- math
pipeline_tag: text-generation
---
# A model
"""


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Official]:
    with official_converter(tmp_path_factory.mktemp("official") / "log") as converter:
        yield converter


def check(official: Official, folder: Path, type: str, pre: str | None, more: tuple[str, ...] = ()) -> None:
    """Args: more: keys that only ours has, beside those of `sr_edge.`."""
    ours, theirs = folder.parent / "ours.gguf", folder.parent / "theirs.gguf"
    official.convert(folder, theirs, type, pre)
    convert(Request(checkpoint=folder, out=ours, type=type, force=True), lambda what, done, whole: None)
    mine, other = contents(ours), contents(theirs)
    assert differences(mine, other) == []
    extra, missing = only_in_one(mine, other)
    assert missing == []
    assert [key for key in extra if not key.startswith(OURS_ALONE)] == list(more)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_every_architecture_dtype_and_type(
    architecture: Any, tied: bool, dtype: Any, official: Official, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "model", architecture, tied=tied, dtype=dtype)
    for type in TYPES:
        check(official, folder, type, PRE[architecture])


SHAPES: dict[str, dict[str, Any]] = {
    "linear": {"rope": {"rope_type": "linear", "factor": 2.5}},
    "yarn": {"rope": YARN},
    "yarn-betas": {"rope": YARN | {"beta_fast": 16.0, "beta_slow": 2.0}},
    "theta": {"rope_theta": 123456.0},
    "old": {"form": "old"},
    "old-yarn": {"form": "old", "rope": YARN},
    "shards": {"shards": 3, "dtype": "bfloat16"},
    "odd": {"hidden": 80, "heads": 5, "kv_heads": 1, "inner": 112, "num_tokens": 1001},
    "one-layer": {"layers": 1, "num_tokens": 908},
}
"""Widths of 80 and 112 are no whole Q8_0 blocks."""


@pytest.mark.parametrize("type", ["f16", "q8_0"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_shapes_and_positions(
    architecture: Any, shape: str, type: str, official: Official, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "model", architecture, **SHAPES[shape])
    check(official, folder, type, PRE[architecture])


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"rope": LLAMA3}),
        ("llama", {"rope": LLAMA3, "form": "old", "head_dim": 32, "rope_theta": 10000.0}),
        ("llama", {"rope": LLAMA3, "head_dim": 128, "layers": 1}),
        ("llama", {"head_dim": 48}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"head_dim": 32}),
    ],
    ids=str,
)
def test_what_one_architecture_has(
    architecture: Any, options: dict[str, Any], official: Official, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "model", architecture, **options)
    for type in TYPES:
        check(official, folder, type, PRE[architecture])


@pytest.mark.parametrize(
    ("name", "architecture"), [("qwen2", "qwen3"), ("llama-bpe", "llama"), ("deepseek-r1-qwen", "qwen2")]
)
def test_real_tokenizers(name: Any, architecture: Any, official: Official, tmp_path: Path) -> None:
    """The other recognises them by its hashes, we by how they cut text."""
    write_real_tokenizer(tmp_path / "vocab", name)
    rows = 128256 if architecture == "llama" else 151936
    folder = make_checkpoint(
        tmp_path / "model",
        architecture,
        vocab=tmp_path / "vocab",
        num_tokens=rows,
        hidden=32,
        heads=2,
        kv_heads=1,
        layers=1,
    )
    check(official, folder, "q8_0", pre=None)
    assert contents(tmp_path / "ours.gguf").fields["tokenizer.ggml.pre"][1] == name


def edited(name: str, **values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        written = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(written | values))

    return edit


def text(name: str, content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)

    return write


TOKENIZER_CONFIG = "tokenizer_config.json"
EDITS: dict[str, Callable[[Path], None]] = {
    "card": text("README.md", CARD),
    "card without a header": text("README.md", "# A model\n"),
    "card with links": text(
        "README.md", "---\nbase_model: https://huggingface.co/Qwen/Qwen2.5-0.5B\nname: N\nversion: v1\n---\n"
    ),
    "sampling": edited(
        "generation_config.json", temperature=1, top_k=40, top_p=0.9, min_p=0.05, repetition_penalty=1.1
    ),
    "a name": edited("config.json", _name_or_path="meta-llama/Llama-3.2-1B-Instruct-v2"),
    "ids": edited("config.json", bos_token_id=3, eos_token_id=[5, 6], pad_token_id=7, sep_token_id=9),
    "a new token": edited(TOKENIZER_CONFIG, pad_token="<|pad|>", additional_special_tokens=["<a>", "<b>"]),
    "a space first": edited(TOKENIZER_CONFIG, add_prefix_space=True),
    "flags": edited(TOKENIZER_CONFIG, add_bos_token=True, add_eos_token=True, add_sep_token=True),
    "both templates": edited(TOKENIZER_CONFIG, chat_template="{{ 1 }}"),
    "named templates": edited(
        TOKENIZER_CONFIG,
        chat_template=[
            {"name": "default", "template": "{{ 1 }}"},
            {"name": "tool-use", "template": "{{ 2 }}"},
        ],
    ),
    "another template": text("additional_chat_templates/rag.jinja", "{{ 3 }}"),
    "linear by its old name": edited("config.json", rope_scaling={"type": "linear", "factor": 2.0}),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_what_folders_say(architecture: Any, edit: str, official: Official, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "Tiny-Model-1.5B-Instruct-v2", architecture, layers=1)
    EDITS[edit](folder)
    check(official, folder, "f16", PRE[architecture])
