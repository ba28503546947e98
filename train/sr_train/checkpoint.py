"""Checkpoints in memory: loaded with both markers in them, wrapped for training, merged and saved again.

A saved model is a plain transformers folder and `sr_edge.json`, which the converter reads. Whether a base is
trained whole, through LoRA or through QLoRA, what comes out is the same kind of folder. How the loss is made
lives in `sft` and `grpo`.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import set_peft_model_state_dict
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from sr_edge.errors import ModelError, UsageError
from sr_edge.marker_rows import first_row, free_ids
from sr_edge.markers import CLOSE, OPEN
from sr_edge.passport import demo_paths
from sr_train.demo.checkpoint import NAMES, demo_checkpoint
from sr_train.recipe import AdapterPart, HandbackPart, ModelPart

Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]

NOTE = "sr_edge.json"
ADAPTER_CONFIG = "adapter_config.json"

_DTYPES: Mapping[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Loaded:
    """A model, which changes as it is trained, and its tokenizer, which has the markers as special tokens."""

    model: PreTrainedModel
    """Or PEFT's wrapper around one, which is called the same way."""
    tokenizer: PreTrainedTokenizerFast
    open_id: int
    close_id: int
    part: ModelPart | None = None
    """What it was loaded from, and for an adapter what it is merged into again."""
    cache: Path | None = None


def resolve_base(base: str, cache: Path) -> str:
    """What transformers can load: a folder, or the name of a repository of the hub.

    Args:
        base: as in `ModelPart`; a built-in model is written under `cache` where it is not there yet.
    Raises:
        UsageError: there is no such built-in model, and no such folder.
        ModelError: the built-in models are not here.
    """
    if base.startswith("demo:"):
        name = next((name for name in NAMES if base == f"demo:{name}"), None)
        if name is None:
            known = ", ".join(f"demo:{name}" for name in NAMES)
            raise UsageError(f"there is no built-in model {base}: there are {known}")
        path = demo_paths().small.with_name(f"{name}.gguf")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8] if path.is_file() else "missing"
        return str(demo_checkpoint(name, cache / f"demo-{name}-{digest}"))  # not one of an earlier release
    folder = Path(base).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
            raise UsageError(f"{folder} holds no checkpoint: config.json is missing")
        return str(folder)
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", base):
        return base
    raise UsageError(
        f"there is no folder {base}: name a checkpoint's folder, a repository of the hub (owner/name), "
        "or demo:base"
    )


def load_tokenizer(part: ModelPart, cache: Path | None = None) -> PreTrainedTokenizerFast:
    """The base's tokenizer, with both markers as special tokens.

    Args:
        cache: see `resolve_base`; None keeps nothing.
    Raises:
        UsageError, ModelError: see `resolve_base`; it cannot be read.
    """
    with ExitStack() as held:
        if cache is None:
            cache = Path(held.enter_context(tempfile.TemporaryDirectory()))
        tokenizer = _tokenizer(resolve_base(part.base, cache), part)
        _add_markers(tokenizer)
        return tokenizer


def load_for_training(
    model: ModelPart,
    adapter: AdapterPart | None,
    cache: Path,
    *,
    train_markers: bool | None = None,
    seed: int = 0,
) -> Loaded:
    """The base with both markers in it, and the adapter around it if there is one.

    Markers that the base lacks get the rows that `sr_edge.marker_rows` gives them, in the embedding and in a
    head of its own; a head that is tied stays so. The embedding grows only if it has no unused rows.
    The weights lie on the CPU, but for QLoRA's.

    Args:
        train_markers: whether the markers' rows are trained along with an adapter. None: if the base lacked
            them. Without an adapter all rows are trained.
        seed: draws the adapter's first weights, whatever was drawn before.
    Raises:
        UsageError, ModelError: the base or a package that this needs is not here.
    """
    folder = resolve_base(model.base, cache)
    tokenizer = _tokenizer(folder, model)
    quantized = adapter is not None and adapter.kind == "qlora"
    base, added = _with_markers(_base_model(folder, model, quantized=quantized), tokenizer)
    ids = _marker_ids(tokenizer)
    if adapter is None:
        return Loaded(base, tokenizer, *ids, part=model, cache=cache)
    trained = ids if train_markers or (train_markers is None and added) else ()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped: Any = _adapted(base, _lora(base, adapter, trained))
    return Loaded(wrapped, tokenizer, *ids, part=model, cache=cache)


def load_for_inference(
    base: str, dtype: Dtype, cache: Path, *, attention: Attention = "sdpa", device: str | None = None
) -> Loaded:
    """A model that is only asked: whole, in evaluation mode, without gradients.

    Args:
        base: as in `ModelPart`, or a folder with a LoRA adapter, which is merged into its base.
        device: None: the first accelerator, or else the CPU.
    Raises:
        UsageError, ModelError: it cannot be read.
    """
    part = ModelPart(base=base, dtype=dtype, attention=attention)
    folder = resolve_base(base, cache)
    if (Path(folder) / ADAPTER_CONFIG).is_file():
        model, tokenizer = _merged_adapter(Path(folder), part, cache)
    else:
        tokenizer = _tokenizer(folder, part)
        model, _ = _with_markers(_base_model(folder, part), tokenizer)
    module: nn.Module = model
    module.requires_grad_(False)
    module.train(False)
    module.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    return Loaded(model, tokenizer, *_marker_ids(tokenizer), part=part, cache=cache)


def merged(loaded: Loaded, state: Mapping[str, Tensor] | None = None) -> PreTrainedModel:
    """The model without its adapter, whose weights are in it: what `save_trained` saves.

    An adapter is merged into its base read anew, on the CPU: exactly, whatever the training had quantised or
    cut into shards. A model without one is returned as it is.

    Args:
        state: the weights by name where the model's own are in shards.
    """
    model: Any = loaded.model
    if not isinstance(model, PeftModel):
        return loaded.model
    assert loaded.part is not None
    assert loaded.cache is not None
    weights = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    folder = resolve_base(loaded.part.base, loaded.cache)
    base, _ = _with_markers(_base_model(folder, loaded.part), _tokenizer(folder, loaded.part))
    again = _adapted(base, copy.deepcopy(model.peft_config["default"]))
    result: Any = set_peft_model_state_dict(again, {name: each.cpu() for name, each in weights.items()})
    assert not result.unexpected_keys, result.unexpected_keys
    whole = again.merge_and_unload(safe_merge=True)
    assert isinstance(whole, PreTrainedModel)
    return whole


def save_trained(
    loaded: Loaded,
    folder: Path,
    *,
    handback: HandbackPart,
    base_model: str,
    training_run: str,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Leave the merged model, its tokenizer with the chat template, and `sr_edge.json` in folder.

    What is there is replaced, and only once all of the new one is written.

    Args:
        base_model: of a path only the last name is noted.
        state: see `merged`.
    """
    model = merged(loaded, state)
    is_tied = _is_tied(model)
    partial, replaced = (folder.with_name(f".{folder.name}.{what}") for what in ("partial", "replaced"))
    for left in (partial, replaced):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    whole = dict(state) if state is not None and model is loaded.model else None
    model.save_pretrained(partial, state_dict=whole)
    loaded.tokenizer.save_pretrained(partial)
    saved = json.loads((partial / "config.json").read_text("utf-8"))
    assert saved.get("tie_word_embeddings", False) is is_tied, "the head was untied"
    note = {
        "v": 1,
        "markers": "token",
        "handback": {"tau": handback.tau, "min_span": handback.min_span},
        "base_model": _without_path(base_model),
        "training_run": training_run,
    }
    (partial / NOTE).write_text(json.dumps(note, indent=2) + "\n", "utf-8")
    if folder.exists():
        os.replace(folder, replaced)
    os.replace(partial, folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return folder


def gathered_state(trainer: Any) -> dict[str, Tensor] | None:
    """All weights of a transformers trainer's model where its processes hold a part each; None where each
    holds all of them. To be called in all processes; the first one gets them.
    """
    state: dict[str, Tensor] | None = None
    if trainer.is_deepspeed_enabled:
        state = trainer.accelerator.get_state_dict(trainer.deepspeed)
    elif trainer.is_fsdp_enabled:
        state = trainer.accelerator.get_state_dict(trainer.model)
    return state


def meta_model(part: ModelPart, config: Path | None = None) -> PreTrainedModel:
    """The real class at full shape without any weights: on the meta device.

    Args:
        config: a config.json; None takes the one in the base's folder.
    Raises:
        UsageError: there is none.
    """
    path = config or Path(part.base).expanduser() / "config.json"
    if not path.is_file():
        raise UsageError(f"{path} is missing: the shape of {part.base} is not known without it")
    settings = json.loads(path.read_text("utf-8"))
    shape = AutoConfig.for_model(settings.pop("model_type"), **settings)
    build: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model = build(shape, dtype=_DTYPES[part.dtype])
    assert isinstance(model, PreTrainedModel)
    return model


# --- reading ---------------------------------------------------------------------------------------------


def _tokenizer(folder: str, part: ModelPart) -> PreTrainedTokenizerFast:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, revision=_revision(folder, part), trust_remote_code=part.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _unreadable("the tokenizer", part.base, error) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UsageError(
            f"{part.base}: its tokenizer is {type(tokenizer).__name__}, and it must come as tokenizer.json: "
            "name a base of the Qwen or Llama family"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _base_model(folder: str, part: ModelPart, *, quantized: bool = False) -> PreTrainedModel:
    if part.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise UsageError(
            "model.attention = flash_attention_2 needs one more package: pip install flash-attn; "
            "or set model.attention=sdpa"
        )
    options: dict[str, Any] = _four_bits(part) if quantized else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            revision=_revision(folder, part),
            dtype=_DTYPES[part.dtype],
            attn_implementation=part.attention,
            trust_remote_code=part.trust_remote_code,
            **options,
        )
    except (OSError, ValueError) as error:
        raise _unreadable("the model", part.base, error) from None
    assert isinstance(model, PreTrainedModel)
    return model


def _revision(folder: str, part: ModelPart) -> str:
    return "main" if part.revision is None or Path(folder).is_dir() else part.revision


def _four_bits(part: ModelPart) -> dict[str, Any]:
    """QLoRA's base: NF4 with quantised scales, computed in the recipe's type. Source: arXiv 2305.14314."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            "adapter.kind = qlora needs one more package: pip install bitsandbytes; or set adapter.kind=lora"
        )
    from transformers import BitsAndBytesConfig

    make: Any = BitsAndBytesConfig
    settings = make(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_DTYPES[part.dtype],
    )
    place = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return {"quantization_config": settings, "device_map": {"": place}}


def _unreadable(what: str, base: str, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:300]
    return ModelError(
        f"{what} of {base} cannot be read: {reason}. "
        "Without a network, name a folder that holds the checkpoint"
    )


def _merged_adapter(
    folder: Path, part: ModelPart, cache: Path
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    below = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if below is None:
        raise UsageError(f"{folder}: the adapter does not say what it was trained on; merge it yourself")
    base = resolve_base(below, cache)
    tokenizer = _tokenizer(base, part)
    model, _ = _with_markers(_base_model(base, part), tokenizer)
    if (folder / "tokenizer.json").is_file():
        ids = _marker_ids(tokenizer)
        tokenizer = _tokenizer(str(folder), part)
        _add_markers(tokenizer)
        if _marker_ids(tokenizer) != ids:
            raise UsageError(
                f"{folder}: its markers are other tokens than those of {below} would be: merge it yourself"
            )
    with _old_names():
        wrapped = PeftModel.from_pretrained(model, str(folder))
    whole = wrapped.merge_and_unload(safe_merge=True)
    assert isinstance(whole, PreTrainedModel)
    return whole, tokenizer


# --- markers ---------------------------------------------------------------------------------------------


def _marker_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    vocabulary = tokenizer.get_vocab()
    return vocabulary[OPEN], vocabulary[CLOSE]


def _add_markers(tokenizer: PreTrainedTokenizerFast) -> dict[int, Sequence[int]]:
    """Put in the markers that are missing; those that are there become special if they were not.

    Returns:
        For each new id, the ids that its spelling was cut into before.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [marker for marker in (OPEN, CLOSE) if marker not in vocabulary]
    spelled = {marker: tokenizer.encode(marker, add_special_tokens=False) for marker in missing}
    free = free_ids(set(vocabulary.values()), len(missing))
    tokenizer.add_tokens(
        [AddedToken(marker, normalized=False, special=True) for marker in (OPEN, CLOSE)],
        special_tokens=True,
    )
    ids = tokenizer.get_vocab()
    new = {ids[marker]: spelled[marker] for marker in missing}
    if tuple(new) != free:  # a vocabulary with holes: other tools may put a token there
        assert not set(new) & set(vocabulary.values())
    return new


def _with_markers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedModel, bool]:
    """Both markers in the tokenizer, and rows for them. Returns whether there were any to add."""
    was_tied = _is_tied(model)
    new = _add_markers(tokenizer)
    num_rows = len(_embedding(model).weight)
    num_needed = max(_marker_ids(tokenizer)) + 1
    if num_needed > num_rows:  # exactly as many: rows that no token has could be sampled
        model.resize_token_embeddings(num_needed, mean_resizing=False)
    ends: list[nn.Embedding | nn.Linear] = (
        [_embedding(model)] if was_tied else [_embedding(model), _head(model)]
    )
    with torch.no_grad():
        for end in ends:
            rows = {id: first_row(end.weight[list(ids)].float().cpu().numpy()) for id, ids in new.items()}
            for id, row in rows.items():
                end.weight[id] = torch.from_numpy(row).to(end.weight)
    assert _is_tied(model) is was_tied
    return model, bool(new)


def _is_tied(model: PreTrainedModel) -> bool:
    return _head(model).weight is _embedding(model).weight


def _embedding(model: PreTrainedModel) -> nn.Embedding:
    get: Any = model.get_input_embeddings
    embedding: nn.Embedding = get()
    return embedding


def _head(model: PreTrainedModel) -> nn.Linear:
    get: Any = model.get_output_embeddings
    head: nn.Linear = get()
    return head


# --- adapters --------------------------------------------------------------------------------------------


def keep_rows_exact(model: nn.Module) -> None:
    """The markers' rows as float32, since bfloat16 would round small steps away.

    To be called again once a trainer is built: TRL makes all that is trained bfloat16 on a quantised base.
    """
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data = parameter.data.float()


def _lora(model: PreTrainedModel, adapter: AdapterPart, trained_ids: Sequence[int]) -> LoraConfig:
    """LoRA on the layers that the recipe names, and whole rows of the markers at both ends."""
    rows: Any = None
    if trained_ids:
        ends = {"embed_tokens": list(trained_ids), "lm_head": list(trained_ids)}
        rows = list(trained_ids) if _is_tied(model) else ends  # a list: the tied head follows by itself
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets,
        trainable_token_indices=rows,
    )


def _adapted(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    with _old_names():
        wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    keep_rows_exact(wrapped)
    inner: Any = wrapped.get_base_model()
    head = inner.get_output_embeddings()
    if not hasattr(head, "bias"):
        # TRL's fused head reads `bias` of whatever stands where the head stood; PEFT's wrapper has none.
        object.__setattr__(head, "bias", head.original_module.bias)
    return wrapped


@contextmanager
def _old_names() -> Iterator[None]:
    """PEFT asks the model under a name that transformers warns of: no concern of the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _without_path(base: str) -> str:
    """Nobody's folders in a model that may be published."""
    return Path(base).name if Path(base).expanduser().exists() else base
