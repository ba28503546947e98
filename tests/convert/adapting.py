"""Trained adapters without a training: peft makes one, noise stands for what it learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sr_convert.source import Source


def load_base(checkpoint: Path, num_rows: int | None = None) -> Any:
    """The model in float32; `num_rows`: its vocabulary grown to so many."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if num_rows is not None:
        model.resize_token_embeddings(num_rows, mean_resizing=False)
    return model.eval()


def make_adapter(
    checkpoint: Path, folder: Path, *, num_rows: int | None = None, seed: int = 1, **lora: Any
) -> Path:
    """Save an adapter of these LoraConfig settings in `folder`, which is returned."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    usual = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
    model = get_peft_model(load_base(checkpoint, num_rows), LoraConfig(**{**usual, **lora}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def load_adapted(checkpoint: Path, adapter: Path, num_rows: int | None = None) -> Any:
    """The model as peft runs it, with the adapter beside the weights."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load_base(checkpoint, num_rows), adapter).eval()


def tensors(source: Source, step: int = 7) -> dict[str, NDArray[np.float32]]:
    """All of a source, read in pieces that fit nothing."""
    return {
        name: np.concatenate([
            source.rows(name, first, min(first + step, shape[0])) for first in range(0, shape[0], step)
        ])
        for name, shape in source.shapes.items()
    }  # fmt: skip


def load_tensors(checkpoint: Path, source: Source) -> Any:
    """A transformers model whose weights are the source's, tied or not as its config says."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint)
    config.vocab_size = source.config["vocab_size"]
    config.tie_word_embeddings = source.config["tie_word_embeddings"]
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    found = {name: torch.from_numpy(values) for name, values in tensors(source).items()}
    left = model.load_state_dict(found, strict=False)
    assert not left.unexpected_keys
    assert left.missing_keys == (["lm_head.weight"] if config.tie_word_embeddings else [])
    model.tie_weights()
    return model


def logits_of(model: Any, num_tokens: int = 32) -> NDArray[np.float32]:
    import torch

    ids = torch.randint(0, 600, (1, num_tokens), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits: NDArray[np.float32] = model(ids).logits[0].numpy()
    return logits
