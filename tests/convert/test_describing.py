"""A GGUF's metadata says what the config says, in its old and its new form, whatever a model card holds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType, TokenType
from hypothesis import given
from hypothesis import strategies as st

from sr_convert.architectures import ArchitectureName
from sr_convert.describing import KEY_SOURCE, describe
from sr_convert.fields import Field, float32, string, strings, uint32
from sr_convert.rope import rope_of, yarn_magnitude
from sr_convert.tokenizer import Words
from sr_edge.errors import ModelError

WORDS = Words(
    tokens=("a", "b", "ab"),
    types=(TokenType.NORMAL,) * 3,
    merges=("a b",),
    pre="qwen2",
    special_ids={"eos": 2},
    adds={"bos": False},
    templates={"default": "{{ messages }}"},
)
CONFIG: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}


def described(
    folder: Path, architecture: ArchitectureName = "qwen2", origin: str | None = None, **config: Any
) -> dict[str, Field]:
    fields = describe(folder, CONFIG | config, architecture, WORDS, "F16", 1_500_000_000, origin)
    assert len({field.key for field in fields}) == len(fields)
    return {field.key: field for field in fields}


def card(folder: Path, header: str) -> Path:
    (folder / "README.md").write_text(f"---\n{header}\n---\n# A model\n")
    return folder


def test_the_sizes(tmp_path: Path) -> None:
    fields = described(tmp_path)
    assert fields["qwen2.block_count"] == uint32("qwen2.block_count", 4)
    assert fields["qwen2.attention.head_count_kv"].value == 2
    assert fields["qwen2.attention.layer_norm_rms_epsilon"].type is GGUFValueType.FLOAT32
    assert fields["qwen2.rope.freq_base"].value == 500000.0
    assert fields["general.file_type"].value == 1
    assert fields["tokenizer.ggml.eos_token_id"].value == 2
    assert "qwen2.attention.key_length" not in fields


def test_a_width_of_heads_is_said_where_the_architecture_has_one(tmp_path: Path) -> None:
    assert described(tmp_path, "qwen3")["qwen3.attention.key_length"].value == 128
    assert described(tmp_path, "qwen3", head_dim=32)["qwen3.attention.value_length"].value == 32
    llama = described(tmp_path, "llama")
    assert llama["llama.attention.key_length"].value == 16
    assert llama["llama.rope.dimension_count"].value == 16
    assert llama["llama.vocab_size"].value == 3


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        {"rope_scaling": None, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ],
)
def test_old_and_new_positions_are_the_same(config: dict[str, Any], tmp_path: Path) -> None:
    fields = described(tmp_path, **config)
    assert fields["qwen2.rope.freq_base"].value == 1e4
    assert fields["qwen2.rope.scaling.type"] == string("qwen2.rope.scaling.type", "linear")
    assert fields["qwen2.rope.scaling.factor"] == float32("qwen2.rope.scaling.factor", 4.0)


def test_yarn(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0}
    fields = described(tmp_path, rope_scaling=rope)
    assert fields["qwen2.rope.scaling.original_context_length"].value == 512
    assert fields["qwen2.rope.scaling.yarn_beta_fast"].value == 16.0
    assert "qwen2.rope.scaling.attn_factor" not in fields, "llama.cpp's own magnitude is right"


def test_yarn_with_a_magnitude_of_its_own() -> None:
    rope = {"factor": 4.0, "attention_factor": 1.5}
    usual = 0.1 * math.log(4.0) + 1
    assert yarn_magnitude(rope) * usual == pytest.approx(1.5)
    both = {"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    assert yarn_magnitude(both) * usual == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rope", "match"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' cannot be converted for qwen2"),
        ({"rope_type": "longrope", "factor": 2.0}, "'longrope'"),
        ({"type": "mrope", "mrope_section": [1, 2, 3]}, "'mrope'"),
        ({"rope_type": "llama3", "factor": 2.0}, "'llama3'.*llama.cpp has default, linear, yarn$"),
        ({"rope_type": "linear"}, "factor of its rotary positions is missing"),
        ({"rope_type": "yarn", "factor": "4"}, "factor of its rotary positions is '4'"),
        ({"rope_type": "yarn", "factor": -1.0}, "factor .* is -1.0"),
        ({"rope_type": "yarn", "factor": math.inf}, "factor .* is inf"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_slow": []}, "beta_slow"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": False}, "does not round"),
        ("linear", "no table but 'linear'"),
    ],
)
def test_positions_that_cannot_be_converted(rope: Any, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        rope_of(CONFIG | {"rope_scaling": rope}, "qwen2")


def test_the_name_comes_from_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen2.5-Math-1.5B-Instruct-v2"
    folder.mkdir()
    fields = described(folder)
    assert fields["general.name"].value == "Qwen2.5 Math 1.5B Instruct v2"
    assert fields["general.basename"].value == "Qwen2.5-Math"
    assert fields["general.finetune"].value == "Instruct"
    assert fields["general.size_label"].value == "1.5B"


def test_the_name_of_a_copy_comes_from_where_it_was_pulled(tmp_path: Path) -> None:
    folder = tmp_path / "0123abcd"
    folder.mkdir()
    fields = described(folder, origin="akhauriyash/DeepSeek-R1-Distill-Qwen-1.5B@0123abcd")
    assert fields["general.name"].value == "DeepSeek R1 Distill Qwen 1.5B"
    assert fields["general.organization"].value == "Akhauriyash"
    assert fields[KEY_SOURCE].value == "akhauriyash/DeepSeek-R1-Distill-Qwen-1.5B@0123abcd"


def test_a_model_card(tmp_path: Path) -> None:
    fields = described(card(tmp_path, "license: mit\nbase_model: Qwen/Qwen2.5-1.5B\ntags: [math, text]"))
    assert fields["general.license"].value == "mit"
    assert fields["general.base_model.0.repo_url"].value == "https://huggingface.co/Qwen/Qwen2.5-1.5B"
    assert fields["general.tags"] == strings("general.tags", ["math", "text"])


@pytest.mark.parametrize(
    "header",
    [
        "license: [1, {a: b}]\nbase_model: 7",
        "tags: [1, math, null]\nversion: 1.0\nname: [a]",
        "base_model:\n- {x: y}\n- null",
        "a: b: c: d",
        "!!python/object/apply:os.system [ls]",
        "name: '\\ud800'",
    ],
)
def test_a_bad_model_card_stops_nothing(header: str, tmp_path: Path) -> None:
    fields = described(card(tmp_path, header))
    assert isinstance(fields["general.name"].value, str)
    assert fields["qwen2.block_count"].value == 4


def test_a_card_that_is_no_text_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\n\xff\xfe\n---\n")
    assert "general.name" in described(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(values=st.dictionaries(st.sampled_from(["temperature", "top_k", "top_p", "sequence"]), json_values))
def test_whatever_a_generation_config_recommends(
    values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("model")
    (folder / "generation_config.json").write_text(json.dumps(values))
    fields = described(folder)
    assert all(field.is_sound() for field in fields.values())
    temperature = values.get("temperature")
    if isinstance(temperature, float) and abs(temperature) < 1e30:
        assert fields["general.sampling.temp"].value == temperature


def test_the_recommended_sampling(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05})
    )
    fields = described(tmp_path)
    assert fields["general.sampling.temp"].value == 0.6
    assert fields["general.sampling.top_k"].type is GGUFValueType.INT32
    assert fields["general.sampling.penalty_repeat"].value == 1.05


def test_a_number_of_the_config_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"qwen2.block_count cannot be written: 'four'"):
        described(tmp_path, num_hidden_layers="four")


def test_what_can_be_written() -> None:
    assert uint32("k", 2**32 - 1).is_sound()
    assert not uint32("k", 2**32).is_sound()
    assert not uint32("k", True).is_sound()
    assert not string("k", "\ud800").is_sound()
    assert not strings("k", []).is_sound()
    assert not strings("k", ["a", 1]).is_sound()  # type: ignore[list-item]
