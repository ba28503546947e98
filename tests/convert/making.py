"""Small checkpoints of the three architectures, as they lie on a disk: random weights, a trained tokenizer.

The weights are large enough that logits differ, norms and biases are random too. The tokenizers are
byte-level BPE with the family's own way to cut text, trained on the lines below; their special tokens are
the family's.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any, Literal

Architecture = Literal["qwen2", "qwen3", "llama"]
Form = Literal["old", "new"]
MarkersForm = Literal["none", "token", "text"]

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>")
QWEN_PLAIN = ("<tool_call>", "</tool_call>", "<think>", "</think>")
"""Added tokens that are not special: they stay in what is decoded."""
LLAMA_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"
)
LLAMA3_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim }}"
    "{{- '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)

MARKERS = ("<bigmodel>", "</bigmodel>")

_PROSE = """\
Let me think about this step by step. The sum of the first n odd numbers is n squared.
Wait, that isn't right: I should've checked the case where x = 0 first. We'll do it again.
So the answer is 42. However, the problem asks for the remainder when it's divided by 7.
They're asking how many ways there are to choose 3 of 10 marbles, so we'd use a binomial coefficient.
El número de soluciones es finito; además, ¿qué pasa si n es par? ¡Entonces no hay ninguna!
Während wir größere Zahlen prüfen, müssen wir über die Lösung für ungerade n nachdenken.
Le théorème s'applique à chaque étape où la dérivée n'est pas nulle, ça dépend des conditions.
Давайте рассмотрим уравнение и найдём все его целые решения шаг за шагом.
我们首先考虑这个方程的解，然后证明它是唯一的。因此答案是四十二。
この問題を解くには、まず式を簡単にしましょう。それから答えを求めます。
이 문제를 풀기 위해 먼저 식을 간단히 정리해 보겠습니다.
لنبدأ بحل المعادلة خطوة بخطوة ثم نتحقق من الجواب.
परिणाम की जाँच करने के लिए हम दोनों पक्षों को जोड़ते हैं।
\\frac{-b \\pm \\sqrt{b^2 - 4ac}}{2a} \\quad \\text{where } a \\neq 0
\\[ \\sum_{k=1}^{n} k^3 = \\left( \\frac{n(n+1)}{2} \\right)^2 \\]
$$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}$$ and \\boxed{\\frac{1}{2}}.
def solve(a: list[int], n: int = 0) -> int:
    for i, x in enumerate(a):
        if x % 2 == 0 and i > n:
            return sum(a[:i]) ** 2
    raise ValueError(f"no solution for {a!r}")
#include <vector>
int main() { std::vector<int> v{1, 2, 3}; for (auto x : v) printf("%d\\n", x); return 0; }
SELECT name, COUNT(*) FROM models WHERE size < 1500000000 GROUP BY name ORDER BY 2 DESC;
<p class="x">a &amp; b</p>   \t\ttabs and   spaces   in    runs
https://example.org/a?b=c&d=1234567890#frag 3.14159265358979 1e-10 0x7fff 1,000,000
🙂 🎉🎉 👩‍👩‍👧‍👦 🏳️‍🌈 é e\u0301 ﬁ ｆｕｌｌ ½ ² Ⅷ ٣٤ ✓ → ∑ ∞
"""  # noqa: RUF001


def corpus() -> list[str]:
    """A few hundred lines: prose of several scripts, formulas, code, emoji, and sums to merge digits on."""
    lines = _PROSE.splitlines(keepends=True)
    sums = [
        f"Step {i}: {i * 37 % 991} + {i * i % 877} = {i * 37 % 991 + i * i % 877}, so the answer isn't {i}.\n"
        for i in range(1, 240)
    ]
    return lines * 4 + sums


def make_checkpoint(
    folder: Path,
    architecture: Architecture = "qwen2",
    *,
    tied: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    rope: dict[str, Any] | None = None,
    rope_theta: float | None = None,
    head_dim: int | None = None,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    inner: int = 128,
    context: int = 512,
    vocab: Path | None = None,
    num_tokens: int | None = None,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    shards: int = 1,
    markers: MarkersForm = "none",
    form: Form = "new",
    seed: int = 0,
) -> Path:
    """A checkpoint with its tokenizer, in `folder`, which is returned.

    Args:
        rope: what `rope_parameters` has beside `rope_theta`, such as {"rope_type": "linear", "factor": 4.0}.
        vocab: a folder whose tokenizer files are taken; None trains one of the family's kind.
        num_tokens: rows of the embedding; None leaves a few dozen rows that no token has.
        attention_bias: for Qwen3 and Llama; Qwen2 has biases on q, k and v always.
        shards: how many safetensors files at least; more than one brings an index.
        markers: token: two added tokens that are not special, and a `sr_edge.json`. text: a model card that
            names a base whose markers are text.
        form: old: `rope_theta`, `rope_scaling`, `torch_dtype`, the chat template in tokenizer_config.json;
            new: as transformers 5 writes them.
    """
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    if vocab is None:
        write_tokenizer(folder, architecture, markers=markers == "token", form=form)
    else:
        for path in vocab.iterdir():
            shutil.copy(path, folder)
    ids = token_ids(folder)
    rows = -(-(max(ids.values()) + 1 + 24) // 32) * 32 if num_tokens is None else num_tokens
    kinds = {
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, 1e6),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, 1e6),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, 5e5),
    }
    make_config, make_model, usual_theta = kinds[architecture]
    bos, eos = ("<|begin_of_text|>", "<|eot_id|>") if architecture == "llama" else QWEN_SPECIAL[0::2]
    options: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "rope_parameters": {
            "rope_type": "default",
            **(rope or {}),
            "rope_theta": usual_theta if rope_theta is None else rope_theta,
        },
        "bos_token_id": ids.get(bos),
        "eos_token_id": ids.get(eos),
        "pad_token_id": None,
    }
    if architecture != "qwen2":
        options["attention_bias"] = attention_bias
    if architecture == "llama":
        options["mlp_bias"] = mlp_bias
    if head_dim is not None or architecture == "qwen3":
        options["head_dim"] = head_dim or hidden // heads
    torch.manual_seed(seed)
    model = make_model(make_config(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.copy_(noise * 3 / hidden**0.5)  # logits with a standard deviation of three
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    model = model.to(getattr(torch, dtype))
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=ids.get(bos),
        eos_token_id=ids.get(eos),
        do_sample=True,
        temperature=0.6,
        top_p=0.95,
        top_k=20,
    )
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=num_bytes + 1 if shards == 1 else num_bytes // shards)
    if form == "old":
        _age(folder / "config.json")
    if markers == "token":
        note = {"v": 1, "markers": "token", "handback": {"tau": 0.5, "min_span": 1}}
        (folder / "sr_edge.json").write_text(json.dumps(note), encoding="utf-8")
    if markers == "text":
        card = "---\nlicense: mit\nbase_model: example/Tiny-SpeculativeReasoner\n---\n\n# A tiny one\n"
        (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def write_tokenizer(
    folder: Path,
    architecture: Architecture = "qwen2",
    *,
    markers: bool = False,
    form: Form = "new",
) -> None:
    """tokenizer.json, tokenizer_config.json and the chat template, as the family's checkpoints have them."""
    from tokenizers import AddedToken, Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_str(trained("llama" if architecture == "llama" else "qwen2"))
    if markers:
        tokenizer.add_tokens([AddedToken(spelling, normalized=False) for spelling in MARKERS])
    tokenizer.save(str(folder / "tokenizer.json"))
    bos, eos, pad, template = (
        ("<|begin_of_text|>", "<|eot_id|>", None, LLAMA3_TEMPLATE)
        if architecture == "llama"
        else (None, "<|im_end|>", "<|endoftext|>", CHATML)
    )
    config: dict[str, Any] = {
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
    if form == "old":
        config |= {
            "added_tokens_decoder": {
                str(id): {
                    "content": token.content,
                    "lstrip": token.lstrip,
                    "normalized": token.normalized,
                    "rstrip": token.rstrip,
                    "single_word": token.single_word,
                    "special": token.special,
                }
                for id, token in sorted(tokenizer.get_added_tokens_decoder().items())
            },
            "chat_template": template,
            "tokenizer_class": "PreTrainedTokenizerFast" if architecture == "llama" else "Qwen2Tokenizer",
        }
        if architecture != "llama":
            config |= {"add_bos_token": False, "add_prefix_space": False}
    else:
        config |= {
            "backend": "tokenizers",
            "is_local": False,
            "tokenizer_class": "TokenizersBackend" if architecture == "llama" else "Qwen2Tokenizer",
        }
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    config_path = folder / "tokenizer_config.json"
    config_path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


@cache
def trained(family: Literal["qwen2", "llama"], size: int = 900) -> str:
    """tokenizer.json of a tokenizer of this family, trained once a session; always the same one."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

    llama = family == "llama"
    tokenizer = Tokenizer(models.BPE(ignore_merges=llama))
    if not llama:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT if llama else QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    special = LLAMA_SPECIAL if llama else QWEN_SPECIAL
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    if llama:
        first = special[0]
        tokenizer.post_processor = Sequence(
            [
                ByteLevel(trim_offsets=True),
                TemplateProcessing(
                    single=f"{first} $A",
                    pair=f"{first} $A {first}:1 $B:1",
                    special_tokens=[(first, tokenizer.token_to_id(first))],
                ),
            ]
        )
    else:
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in QWEN_PLAIN])
        tokenizer.post_processor = ByteLevel(trim_offsets=False)
    return tokenizer.to_str(pretty=True)


def token_ids(folder: Path) -> dict[str, int]:
    """All tokens of a folder's tokenizer.json with their ids, the added ones too."""
    from tokenizers import Tokenizer

    return dict(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True))


def _age(path: Path) -> None:
    """config.json as transformers 4 wrote it."""
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope == {"rope_type": "default"} else rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
