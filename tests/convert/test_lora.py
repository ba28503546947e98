"""A merged adapter is what peft computes, for every way of training that is not refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tests.convert.adapting import load_adapted, load_base, load_tensors, logits_of, make_adapter, tensors
from tests.convert.making import make_checkpoint

from sr_convert.checkpoint import EMBEDDING, HEAD, open_checkpoint
from sr_convert.lora import Merged, read_adapter
from sr_edge.errors import ModelError

# peft warns of tied embeddings and of patterns that match nothing, transformers of what peft calls
pytestmark = pytest.mark.filterwarnings("ignore")

Bases = dict[tuple[str, bool], Path]

ARCHITECTURES = ("qwen2", "qwen3", "llama")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return {
        (architecture, tied): make_checkpoint(
            tmp_path_factory.mktemp(f"{architecture}-{tied}"),
            architecture,
            tied=tied,
            attention_bias=architecture == "llama",
        )
        for architecture in ARCHITECTURES
        for tied in (False, True)
    }


def merge(base: Path, adapter: Path) -> Merged:
    return Merged(open_checkpoint(base), read_adapter(adapter))


def assert_like_peft(base: Path, adapter: Path, num_rows: int | None = None) -> Merged:
    """What it computes is what peft computes with the adapter beside the weights."""
    merged = merge(base, adapter)
    ours = logits_of(load_tensors(base, merged))
    theirs = logits_of(load_adapted(base, adapter, num_rows))
    assert np.abs(theirs - logits_of(load_base(base, num_rows))).max() > 0.05  # it does something
    np.testing.assert_allclose(ours, theirs, atol=5e-5)
    return merged


def assert_same_tensors(base: Path, adapter: Path, num_rows: int | None = None) -> None:
    """They are those that peft's own merge leaves."""
    merged = merge(base, adapter)
    theirs = load_adapted(base, adapter, num_rows).merge_and_unload().state_dict()
    ours = tensors(merged)
    assert ours.keys() == theirs.keys() - ({HEAD} if merged.config["tie_word_embeddings"] else set())
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name].numpy(), atol=2e-6, err_msg=name)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": "all-linear"},
        {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
        {"fan_in_fan_out": True},
        {"bias": "all"},
        {"bias": "lora_only", "target_modules": ["q_proj", "v_proj", "o_proj"]},
        {"modules_to_save": ["norm", "mlp"]},
        {"trainable_token_indices": [7, 3, 599]},
    ],
    ids=lambda lora: "-".join(lora),
)
def test_ways_of_training(bases: Bases, tmp_path: Path, architecture: str, tied: bool, lora: dict[str, Any]):
    base = bases[architecture, tied]
    adapter = make_adapter(base, tmp_path / "adapter", **lora)
    assert assert_like_peft(base, adapter).config["tie_word_embeddings"] is tied
    assert_same_tensors(base, adapter)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_biases_of_the_adapter_itself(bases: Bases, tmp_path: Path, architecture: str, tied: bool):
    base = bases[architecture, tied]
    assert_same_tensors(
        base, make_adapter(base, tmp_path / "a", lora_bias=True, lora_alpha=3, use_rslora=True)
    )
    with pytest.raises(ModelError, match=r"lora_bias adds to .*q_proj.bias, and the model has no such bias"):
        merge(bases["qwen3", tied], tmp_path / "a")


@pytest.mark.parametrize(
    "patterns",
    [
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 16}},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 8, "q_proj": 2}},
        {"alpha_pattern": {r"^model\.layers\.0\..*_proj": 1, r".*\.(q|v)_proj": 32.5}},
        {"alpha_pattern": {"proj": 32, "1.self_attn.v_proj": 1}, "use_rslora": True},
        {"rank_pattern": {r"layers\.[01]\.self_attn\.(q|k)_proj": 3}, "alpha_pattern": {"q_proj|v_proj": 5}},
    ],
)
def test_patterns_match_as_in_peft(bases: Bases, tmp_path: Path, patterns: dict[str, Any]):
    base = bases["llama", False]
    assert_same_tensors(base, make_adapter(base, tmp_path / "adapter", **patterns))


TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@settings(max_examples=12, phases=[Phase.explicit, Phase.generate])  # to shrink takes minutes
@given(st.data())
def test_any_combination(bases: Bases, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    base = bases[data.draw(st.sampled_from(ARCHITECTURES)), data.draw(st.booleans())]
    some = st.sampled_from([*TARGETS, "layers.1.self_attn.v_proj", r".*\.0\..*", "mlp.up_proj"])
    lora = {
        "target_modules": data.draw(st.lists(st.sampled_from(TARGETS), min_size=1, unique=True)),
        "r": data.draw(st.integers(1, 9)),
        "lora_alpha": data.draw(st.integers(1, 40)),
        "use_rslora": data.draw(st.booleans()),
        # in the order in which peft saves them: in another it cannot load what it saved, if two of them fit
        "rank_pattern": dict(
            sorted(data.draw(st.dictionaries(some, st.integers(1, 12), max_size=3)).items())
        ),
        "alpha_pattern": dict(
            sorted(data.draw(st.dictionaries(some, st.integers(1, 64), max_size=3)).items())
        ),
        "bias": data.draw(st.sampled_from(["none", "all", "lora_only"])),
        "modules_to_save": data.draw(st.sampled_from([None, ["norm"], ["input_layernorm"]])),
        "trainable_token_indices": data.draw(
            st.none() | st.lists(st.integers(0, 800), min_size=1, max_size=5, unique=True)
        ),
    }
    assert_same_tensors(base, make_adapter(base, tmp_path_factory.mktemp("drawn") / "adapter", **lora))


# --- the embedding and the head ------------------------------------------------------------------------

TABLES = [
    ({"target_modules": ["q_proj", "embed_tokens"]}, False),
    ({"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}, True),
    ({"target_modules": ["q_proj", "lm_head"]}, False),
    ({"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True}, True),
    ({"target_modules": ["embed_tokens", "lm_head"]}, False),
    ({"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}, True),
    ({"modules_to_save": ["embed_tokens"]}, False),
    ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
    ({"modules_to_save": ["lm_head"]}, False),
    ({"modules_to_save": ["lm_head"], "ensure_weight_tying": True}, True),
    ({"modules_to_save": ["embed_tokens", "lm_head"]}, False),
    ({"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}, True),
    ({"trainable_token_indices": [3, 5]}, True),
    ({"trainable_token_indices": {"embed_tokens": [5, 3]}}, True),
    ({"trainable_token_indices": {"lm_head": [3, 5]}}, False),
    ({"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3, 5]}}, True),
    ({"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [6]}}, False),
]


@pytest.mark.parametrize(("lora", "stays_tied"), TABLES, ids=lambda value: str(value)[:70])
@pytest.mark.parametrize("tied", [False, True])
def test_tables(bases: Bases, tmp_path: Path, tied: bool, lora: dict[str, Any], stays_tied: bool):
    base = bases["qwen2", tied]
    merged = assert_like_peft(base, make_adapter(base, tmp_path / "adapter", **lora))
    assert merged.config["tie_word_embeddings"] is (tied and stays_tied)
    assert (HEAD in merged.shapes) is not (tied and stays_tied)
    assert bool(merged.notes) is (tied and not stays_tied)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": [960, 961]},
    ],
    ids=["resized", "saved", "rows"],
)
def test_a_vocabulary_that_grew_in_training(bases: Bases, tmp_path: Path, tied: bool, lora: dict[str, Any]):
    base = bases["qwen2", tied]
    rows = open_checkpoint(base).config["vocab_size"] + 32
    adapter = make_adapter(base, tmp_path / "adapter", num_rows=rows, **lora)
    merged = merge(base, adapter)
    assert merged.config["vocab_size"] == rows == merged.shapes[EMBEDDING][0]
    ours, theirs = logits_of(load_tensors(base, merged)), logits_of(load_adapted(base, adapter, rows))
    np.testing.assert_allclose(ours, theirs, atol=5e-5)


def test_a_vocabulary_that_grew_and_was_not_saved_is_refused(bases: Bases, tmp_path: Path):
    base = bases["qwen2", False]
    rows = open_checkpoint(base).config["vocab_size"] + 32
    adapter = make_adapter(base, tmp_path / "a", num_rows=rows, target_modules=["embed_tokens"])
    with pytest.raises(ModelError, match="not all of it was saved"):
        merge(base, adapter)
    adapter = make_adapter(base, tmp_path / "b", num_rows=rows, trainable_token_indices=[rows - 1])
    held = load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in held if name.endswith(("base_layer.weight", "lm_head.weight"))]:
        del held[name]  # as save_embedding_layers=False leaves it
    save_file(held, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=f"holds the row of token {rows - 1}"):
        merge(base, adapter)


def test_of_a_base_in_bfloat16_the_sum_is_not_rounded(tmp_path: Path):
    base = make_checkpoint(tmp_path / "base", dtype="bfloat16")
    assert_same_tensors(base, make_adapter(base, tmp_path / "adapter", target_modules="all-linear"))


def test_an_adapter_in_bfloat16_is_summed_in_float32(bases: Bases, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    base = bases["llama", False]
    adapter = make_adapter(base, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    assert_same_tensors(base, adapter)


# --- what is refused -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(bases["qwen2", False], tmp_path_factory.mktemp("adapter"))


def copied(adapter: Path, folder: Path, **config: Any) -> Path:
    """The adapter with other settings."""
    folder.mkdir(exist_ok=True)
    told = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(told | config))
    (folder / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"target_parameters": ["o_proj.weight"]}, "target_parameters"),
        ({"kasa_config": {"beta": 1.0}}, "KaSA"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base's weights"),
        ({"init_lora_weights": "olora"}, "changes the base's weights"),
        ({"twist_factor": 0.5}, "'twist_factor', unknown here"),
        ({"peft_type": "IA3"}, "kind IA3"),
        ({"peft_type": "PROMPT_TUNING"}, "kind PROMPT_TUNING"),
        ({"peft_type": None}, "only LORA is merged"),
        ({"r": 5}, "has rank 4, by adapter_config.json it has 5"),
        ({"r": "many"}, "r cannot be many"),
        ({"lora_alpha": None}, "lora_alpha cannot be None"),
        ({"lora_alpha": float("nan")}, "lora_alpha cannot be nan"),
        ({"rank_pattern": {"q_proj(": 3}}, "rank_pattern cannot be q_proj"),
        ({"rank_pattern": [3]}, "rank_pattern cannot be"),
        ({"use_rslora": "yes"}, "use_rslora cannot be yes"),
        ({"lora_bias": True}, "lacks such a bias"),
        ({"modules_to_save": ["lm_head"]}, "lm_head was trained whole, and it is not in"),
        ({"modules_to_save": "lm_head"}, "modules_to_save cannot be lm_head"),
    ],
)
def test_a_config_that_cannot_be_followed(adapter: Path, tmp_path: Path, config: dict[str, Any], reason: str):
    with pytest.raises(ModelError, match=reason.replace("(", r"\(")):
        read_adapter(copied(adapter, tmp_path / "copy", **config))


@pytest.mark.parametrize(
    "config",
    [{"twist_factor": None}, {"use_twist": False}, {"init_lora_weights": "eva"}, {"lora_dropout": 1}],
)
def test_settings_that_do_not_matter(adapter: Path, tmp_path: Path, config: dict[str, Any]):
    assert read_adapter(copied(adapter, tmp_path / "copy", **config)).changes == read_adapter(
        copied(adapter, tmp_path / "copy")
    ).changes  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda held: held.pop(next(name for name in held if "lora_B" in name)), "lacks its lora_B.weight"),
        (lambda held: held.update(x=held.popitem()[1]), "peft's names begin with"),
        (lambda held: held.update({_Q + ".lora_C": np.ones(3, "f4")}), "no part of a LoRA adapter"),
        (lambda held: held.update({_Q + ".lora_magnitude_vector": np.ones(3, "f4")}), "DoRA"),
        (lambda held: held.update({_Q + ".lora_A.weight": np.ones((3, 64), "f4")}), "do not fit each other"),
        (lambda held: held.update({_Q + ".lora_A.weight": np.ones(4, "f4")}), "do not fit each other"),
        (lambda held: held.update({_Q + ".lora_B.weight": np.full((64, 4), np.nan, "f4")}), "not finite"),
        (
            lambda held: held.update({_Q + ".lora_A.weight": np.ones((4, 48), "f4")}),
            "its model.layers.0.self_attn.q_proj.weight is 64 x 48, the model's 64 x 64",
        ),
        (
            lambda held: held.update({_Q.replace("0", "7") + ".base_layer.bias": np.ones(64, "f4")}),
            "changes model.layers.7.self_attn.q_proj.bias, which the model does not have",
        ),
        (
            lambda held: held.update({
                _E + ".token_adapter.trainable_tokens_delta": np.ones((1, 64), "f4")
            }),
            "trainable_token_indices cannot be None",
        ),
        (lambda held: held.clear(), "no weights"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(bases: Bases, adapter: Path, tmp_path: Path, edit: Any, reason: str):
    folder = copied(adapter, tmp_path / "copy")
    held = load_file(folder / "adapter_model.safetensors")
    edit(held)
    save_file(held, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=reason):
        merge(bases["qwen2", False], folder)


_E = "base_model.model.model.embed_tokens"
_Q = "base_model.model.model.layers.0.self_attn.q_proj"


def test_an_adapter_of_another_base_names_its_own(bases: Bases, tmp_path: Path):
    other = make_checkpoint(tmp_path / "other", hidden=32)
    adapter = make_adapter(other, tmp_path / "adapter")
    with pytest.raises(ModelError, match=f"of another model, it was trained on {other}"):
        merge(bases["qwen2", False], adapter)


def test_folders_that_are_no_adapter(bases: Bases, adapter: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="no such folder"):
        read_adapter(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="a whole checkpoint, not an adapter"):
        read_adapter(bases["qwen2", False])
    folder = copied(adapter, tmp_path / "copy")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="are a pickle"):
        read_adapter(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ModelError, match="there is no adapter_model"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="no JSON"):
        read_adapter(folder)
