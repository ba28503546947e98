"""A small model of the same kind as a large one, with a tokenizer made on the spot: for rehearsals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"
)

_LINES = (
    "Let us think step by step. The sum of the first numbers is what we look for, so we add them up.",
    "Now 17 + 3 = 20. So 17 * 3 = 51, which is what we look for. Next we divide by 2 and check.",
    "Therefore the answer is \\boxed{42}. Wait, is it? Yes: 6 * 7 = 42, and nothing is left over.",
)


def make_stand_in(folder: Path, config: PreTrainedConfig, seed: int = 0) -> Path:
    """Leave a checkpoint in folder: the config's class, two narrow layers, its head tied or not as there.

    The embedding has rows to spare where there are some.
    """
    tokenizer = _tokenizer()
    num_tokens = len(tokenizer)
    small: Any = copy.deepcopy(config)
    heads, key_values = small.num_attention_heads, small.num_key_value_heads
    small.num_hidden_layers = 2
    small.layer_types = ["full_attention"] * 2
    small.num_attention_heads, small.num_key_value_heads = max(1, heads // key_values) * 2, 2
    small.head_dim = 8
    small.hidden_size = small.num_attention_heads * 8
    small.intermediate_size = 64
    small.vocab_size = -(-(num_tokens + 2) // 64) * 64
    small.bos_token_id = small.eos_token_id = tokenizer.eos_token_id
    small.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    build: Any = AutoModelForCausalLM.from_config
    model = build(small, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(_LINES, trainer)
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=inner, eos_token=SPECIAL[2], pad_token=SPECIAL[0], chat_template=TEMPLATE
    )
    return tokenizer
