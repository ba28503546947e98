"""`--dry-run`: a rehearsal of a recipe without its weights, its data, or its hardware.

Real are the model's class at its full shape (on the meta device), the libraries' settings, and the way from
annotated text to the first batch, on a stand-in: a model of the same kind with a hundredth of the width and a
tokenizer made on the spot. Estimated are memory and hours; every estimate is told with what it assumes.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import (  # type: ignore[import-untyped]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from torch import nn
from transformers.utils import logging as transformers_logging

from sr_edge.errors import UsageError
from sr_edge.markers import CLOSE, OPEN
from sr_train.checkpoint import load_for_training, meta_model, resolve_base
from sr_train.grpo.training import grpo_config
from sr_train.recipe import Recipe
from sr_train.sft.rows import AnnotatedRow
from sr_train.sft.training import check_settings, dataset, row_maker, sft_config, sft_trainer
from sr_train.stand_in import make_stand_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.sft_config import SFTConfig

Report = Callable[[str], None]

GIB = 2**30

# What is assumed where nothing can be known before the run.
TRACE_TOKENS = 5000
"""Of an R1 trace on a mathematical problem, on average."""
PROMPT_TOKENS = 200
ANSWER_PART = 0.5
"""Of `rollout.max_tokens`, the mean length of a rollout."""
SPAN_TOKENS = 100
REMOTE_SHARE = 0.1
"""Of the tokens, those of the large model."""
USE = 0.35
"""Of a card's peak that training reaches; of its bandwidth that decoding does."""
OVERHEAD = 2 * GIB
"""CUDA's context, its workspaces, and tiles of logits."""


@dataclass(frozen=True, slots=True)
class Card:
    name: str
    memory: float
    """Bytes."""
    flops: float
    """A second, bfloat16, dense."""
    bandwidth: float
    """Bytes a second."""


CARDS = (
    Card("RTX 4090 (24 GB)", 24e9, 165e12, 1.0e12),
    Card("A100 (80 GB)", 80e9, 312e12, 2.0e12),
    Card("H100 (80 GB)", 80e9, 989e12, 3.35e12),
)
CORE = Card("one CPU core", math.inf, 60e9, 20e9)
"""At `USE` of it: about what such a core does for a model of a million parameters."""


@dataclass(frozen=True, slots=True)
class Size:
    """The model in numbers."""

    parameters: int
    trained: int
    embedded: int
    """Parameters that are looked up and not multiplied."""
    layers: int
    hidden: int
    inner: int
    query: int
    """Width of all heads' queries."""
    key_value: int
    """Width of all heads' keys and values."""
    weight_bytes: float
    """Of all weights as they lie in memory."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on each device, by what they are for. Nothing is cut into shards: FSDP and ZeRO need less."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    cache: float = 0.0
    """Keys and values of rollouts that the transformers engine writes at once."""

    @property
    def total(self) -> float:
        """At the peak: a step is either writing rollouts or learning from them."""
        fixed = self.weights + self.gradients + self.optimizer
        return fixed + max(self.activations, self.cache)


@dataclass(frozen=True, slots=True)
class StagePlan:
    name: str
    memory: Memory
    tokens: float
    """Learned from in a step, by all processes together."""
    steps: int
    learning: float
    """Floating-point operations a step, on each device."""
    written: float = 0.0
    """Tokens a step that each device's rollouts have."""
    waiting: float = 0.0
    """Seconds a step for the large model, if nothing else takes longer."""
    vllm_part: float = 0.0
    """Of the card, that vLLM takes for itself."""

    def seconds(self, size: Size, card: Card, rows: int) -> float:
        """Of a step."""
        learning = self.learning / (USE * card.flops)
        if not self.written:
            return learning
        compute = self.written * 2 * (size.parameters - size.embedded) / (USE * card.flops)
        passes = self.written / max(1, rows)  # each reads all weights once
        reading = passes * size.parameters * 2 / (USE * card.bandwidth)
        return learning + max(compute, reading, self.waiting)

    def fits(self, card: Card) -> bool:
        return self.memory.total + OVERHEAD <= (1 - self.vllm_part) * card.memory


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a dry run found."""

    size: Size
    batch: tuple[int, int]
    """Shape of the first batch of fine-tuning."""
    learned: int
    """Of its positions, those with a loss."""
    stages: tuple[StagePlan, ...]


def dry_run(recipe: Recipe, report: Report) -> Rehearsal:
    """Go through all that a run does before its first step, and say what it will take.

    Raises:
        UsageError: a setting that the libraries refuse; a base whose shape is not known here.
    """
    with tempfile.TemporaryDirectory(prefix="sr-edge-dry-run-") as made, _without_bars():
        folder = Path(made)
        check_settings(recipe)
        config = sft_config(recipe, folder / "sft", has_validation=recipe.data.validation > 0)
        arguments = grpo_config(recipe, folder / "grpo")
        report("settings: SFTConfig and GRPOConfig take them")
        for note in _needed(recipe):
            report(note)
        shape = shape_of(recipe.model.base, folder)
        model = meta_model(recipe.model, shape.config)
        size = size_of(model, recipe)
        report(f"model: {_kind(model)}; {_count(size.parameters)} parameters, {_count(size.trained)} trained")
        report(_markers_note(shape, model))
        batch, learned = _first_batch(recipe, model, folder)
    _forward(model, batch)
    stages = (
        _sft_plan(recipe, size, config, batch),
        _grpo_plan(recipe, size, arguments),
    )
    told = f"{batch[0]} x {batch[1]} tokens, {learned} of them with a loss"
    report(f"first batch of fine-tuning: {told}; the model at full shape takes it")
    for stage in stages:
        for line in _told(stage, size, recipe):
            report(line)
    report(_assumed(recipe))
    return Rehearsal(size, batch, learned, stages)


# --- the shape -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    config: Path
    num_tokens: int | None
    """Of its tokenizer; None where it is not here."""
    has_markers: bool = False


def shape_of(base: str, folder: Path) -> Shape:
    """Where the base's config.json lies: its own, the hub's cache, or one that ships for it.

    Args:
        folder: for files that are made here.
    Raises:
        UsageError: it is nowhere on this machine.
    """
    if base.startswith("demo:") or Path(base).expanduser().is_dir():
        found = Path(resolve_base(base, folder / "base"))
        return Shape(found / "config.json", *_tokens(found / "tokenizer.json"))
    for path in shipped_shapes():
        told = json.loads(path.read_text("utf-8"))
        if told["repository"] == base:
            config = folder / "config.json"
            config.write_text(json.dumps(told["config"]), "utf-8")
            return Shape(config, told["num_tokens"])
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(base, "config.json") if "/" in base else None
    if isinstance(cached, str):
        return Shape(Path(cached), *_tokens(Path(cached).with_name("tokenizer.json")))
    raise UsageError(
        f"the shape of {base} is not known here: fetch it with "
        f"`hf download {base} config.json tokenizer.json`, or name a folder that holds it"
    )


def shipped_shapes() -> list[Path]:
    return sorted((Path(str(files("sr_train"))) / "shapes").glob("*.json"))


def _tokens(tokenizer: Path) -> tuple[int | None, bool]:
    """How many ids it uses, holes included, and whether the markers are among them."""
    if not tokenizer.is_file():
        return None, False
    told = json.loads(tokenizer.read_text("utf-8"))
    ids = {**told["model"]["vocab"], **{token["content"]: token["id"] for token in told["added_tokens"]}}
    return max(ids.values()) + 1, OPEN in ids and CLOSE in ids


def size_of(model: PreTrainedModel, recipe: Recipe) -> Size:
    """What the recipe trains of it, and what it weighs as it is loaded.

    LoRA adds rank x (in + out) to each linear layer but the head, and the two markers' rows.
    """
    config: Any = model.config
    parameters = sum(each.numel() for each in model.parameters())
    body = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("lm_head")
    ]
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    is_tied = bool(config.tie_word_embeddings)
    width = _WIDTHS[recipe.model.dtype]
    trained, weight_bytes = parameters, float(parameters * width)
    adapter = recipe.adapter
    if adapter is not None:
        trained = sum(adapter.rank * (each.in_features + each.out_features) for each in body)
        trained += 2 * config.hidden_size * (1 if is_tied else 2)
        if adapter.kind == "qlora":
            in_layers = sum(each.weight.numel() for each in body)
            weight_bytes = in_layers * 0.56 + (parameters - in_layers) * width  # 4 bits and their scales
        weight_bytes += trained * 4
    return Size(
        parameters=parameters,
        trained=trained,
        embedded=0 if is_tied else config.vocab_size * config.hidden_size,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        query=config.num_attention_heads * head_width,
        key_value=config.num_key_value_heads * head_width,
        weight_bytes=weight_bytes,
    )


_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


def _markers_note(shape: Shape, model: PreTrainedModel) -> str:
    config: Any = model.config
    rows = config.vocab_size
    if shape.num_tokens is None:
        return f"markers: the embedding has {rows} rows; how many the tokenizer uses is not known here"
    if shape.has_markers:
        return f"markers: {OPEN} and {CLOSE} are tokens of the base already"
    if shape.num_tokens + 2 <= rows:
        return (
            f"markers: {OPEN} and {CLOSE} fit the embedding's {rows} rows, of which the tokenizer uses "
            f"{shape.num_tokens}: it does not grow"
        )
    return f"markers: the tokenizer uses {shape.num_tokens} of {rows} rows: the embedding grows"


def _needed(recipe: Recipe) -> Iterator[str]:
    """Packages that the recipe needs where it runs, and that are not here."""
    if recipe.rollout.engine == "vllm" and find_spec("vllm") is None:
        yield "missing here: vllm, which writes the rollouts: pip install 'trl[vllm]'"
    if recipe.adapter is not None and recipe.adapter.kind == "qlora" and find_spec("bitsandbytes") is None:
        yield "missing here: bitsandbytes, which holds the weights in 4 bits: pip install bitsandbytes"
    optimizers = {str(table.get("optim", "")) for table in (recipe.sft.trainer, recipe.grpo.trainer)}
    if any("8bit" in name for name in optimizers) and find_spec("bitsandbytes") is None:
        yield "missing here: bitsandbytes, whose optimiser the recipe names: pip install bitsandbytes"


# --- the first batch -------------------------------------------------------------------------------------


def _first_batch(recipe: Recipe, model: PreTrainedModel, folder: Path) -> tuple[tuple[int, int], int]:
    """The shape of it, and the positions with a loss: by the recipe's own settings, on the stand-in."""
    base = make_stand_in(folder / "stand-in", model.config)
    small = replace(recipe.model, base=str(base), dtype="float32", revision=None)
    adapter = recipe.adapter
    if adapter is not None and adapter.kind == "qlora":  # its four bits need a GPU
        adapter = replace(adapter, kind="lora")
    measuring = ("eval_strategy", "load_best_model_at_end")  # there are no rows for it here
    table = {name: value for name, value in recipe.sft.trainer.items() if name not in measuring}
    sft = replace(recipe.sft, trainer=table)
    rehearsed = replace(recipe, model=small, adapter=adapter, sft=sft)
    loaded = load_for_training(small, adapter, folder / "cache", train_markers=True)
    config = sft_config(rehearsed, folder / "batch")
    rows, _ = dataset(
        row_maker(rehearsed, loaded),
        synthetic_rows(_tokens_a_row(recipe, config), config.per_device_train_batch_size),
        recipe.data.max_trace_tokens,
        config.max_length,
    )
    trainer = sft_trainer(rehearsed, loaded, config, rows, None, [])
    batch = next(iter(trainer.get_train_dataloader()))
    height, width = batch["input_ids"].shape
    return (int(height), int(width)), int((batch["labels"] != -100).sum())


def synthetic_rows(num_tokens: int, batch_size: int) -> Iterator[AnnotatedRow]:
    """Annotated traces of about so many tokens each: enough of them for a batch, packed or not."""
    step = "Now {0} + {1} = {2}. <bigmodel>So {0} * {1} = {3}, which is what we look for.</bigmodel> Next.\n"
    for number in range(max(8, 4 * batch_size)):
        parts: list[str] = []
        length = 0
        while length < num_tokens * 2 * (0.5 + number % 8 / 7):  # characters; a token has about two of them
            a, b = 17 + number, 3 + len(parts)
            parts.append(step.format(a, b, a + b, a * b))
            length += len(parts[-1])
        yield AnnotatedRow(f"synthetic {number}", "What is it?", "42", f"{''.join(parts)}\\boxed{{42}}")


def _tokens_a_row(recipe: Recipe, config: SFTConfig) -> int:
    """On average."""
    if recipe.data.source.startswith("demo:"):
        return 200
    return min(TRACE_TOKENS, recipe.data.max_trace_tokens or TRACE_TOKENS, config.max_length or TRACE_TOKENS)


def _forward(model: PreTrainedModel, batch: tuple[int, int]) -> None:
    height, width = batch
    ids = torch.zeros(batch, dtype=torch.long, device="meta")
    mask = torch.ones(height, 1, width, width, dtype=torch.bool, device="meta")  # as packed rows have it
    call: Any = model
    with torch.no_grad():
        logits = call(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1).logits
    assert tuple(logits.shape[:2]) == (height, 1)


@contextmanager
def _without_bars() -> Iterator[None]:
    """The libraries' progress bars are for what takes long."""
    bars: Any = transformers_logging
    were_on = not are_progress_bars_disabled(), bars.is_progress_bar_enabled()
    disable_progress_bars()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if were_on[0]:
            enable_progress_bars()
        if were_on[1]:
            bars.enable_progress_bar()


# --- what it takes ---------------------------------------------------------------------------------------


def _sft_plan(recipe: Recipe, size: Size, config: SFTConfig, batch: tuple[int, int]) -> StagePlan:
    micro = config.per_device_train_batch_size
    row = _tokens_a_row(recipe, config)
    packed = bool(config.packing)
    each = config.max_length if packed and config.max_length else row
    a_device = micro * config.gradient_accumulation_steps * each
    tokens = recipe.num_processes * a_device
    num_rows = (recipe.data.limit or 1000) - recipe.data.validation
    steps = math.ceil(config.num_train_epochs * num_rows * row / tokens)
    if config.max_steps > 0:
        steps = config.max_steps
    longest = config.max_length if packed and config.max_length else max(batch[1], row)
    activations = activation_memory(
        size, recipe, micro * longest, is_checkpointed=_is_checkpointed(recipe, "sft")
    )
    if packed:
        activations += micro * longest**2  # the mask that keeps packed rows apart, a byte each
    return StagePlan(
        name="fine-tuning",
        memory=fixed_memory(size, recipe, config.optim, activations),
        tokens=tokens,
        steps=steps,
        learning=_operations(size, recipe, a_device, row, is_checkpointed=_is_checkpointed(recipe, "sft")),
    )


def _grpo_plan(recipe: Recipe, size: Size, arguments: GRPOConfig) -> StagePlan:
    grpo, rollout, big = recipe.grpo, recipe.rollout, recipe.big
    rows = grpo.num_prompts * grpo.num_generations
    answer = rollout.max_tokens * ANSWER_PART
    written = rows * answer
    steps = arguments.max_steps
    if steps <= 0:
        problems = recipe.data.limit or 1000
        steps = math.ceil(arguments.num_train_epochs * problems / (grpo.num_prompts * recipe.num_processes))
    is_checkpointed = _is_checkpointed(recipe, "grpo")
    longest = PROMPT_TOKENS + rollout.max_tokens
    activations = activation_memory(
        size, recipe, arguments.per_device_train_batch_size * longest, is_checkpointed=is_checkpointed
    )
    cache = 0.0
    if rollout.engine == "transformers":
        a_token = 2 * size.layers * size.key_value * _WIDTHS[recipe.model.dtype]
        cache = min(rollout.max_rows, rows) * longest * a_token
    spans = written * REMOTE_SHARE / SPAN_TOKENS
    waiting = 0.0
    if big.remote is not None:
        a_span = recipe.latency.rtt + SPAN_TOKENS / recipe.latency.big_decode
        waiting = spans * a_span / max(1, big.concurrency)
    return StagePlan(
        name="GRPO",
        memory=replace(fixed_memory(size, recipe, arguments.optim, activations), cache=cache),
        tokens=recipe.num_processes * written,
        steps=steps,
        learning=_operations(
            size, recipe, written + rows * PROMPT_TOKENS, round(answer), is_checkpointed=is_checkpointed
        ),
        written=written,
        waiting=waiting,
        vllm_part=_vllm_part(arguments, recipe),
    )


def _vllm_part(arguments: GRPOConfig, recipe: Recipe) -> float:
    """Of the card. A vLLM that sleeps gives its memory back while the model learns: then it is not added."""
    if recipe.rollout.engine != "vllm" or arguments.vllm_mode != "colocate":
        return 0.0
    part: float = arguments.vllm_gpu_memory_utilization
    return part


def fixed_memory(size: Size, recipe: Recipe, optimizer: object, activations: float) -> Memory:
    width = 4 if recipe.adapter is not None else _WIDTHS[recipe.model.dtype]
    name = str(getattr(optimizer, "value", optimizer))
    state: float = 2 * width
    if "8bit" in name:
        state = 2.1
    elif "4bit" in name:
        state = 1.1
    elif name in ("sgd", "adafactor"):
        state = 0.1
    casts = 0.0
    if recipe.model.dtype == "float32" and recipe.adapter is None and _is_mixed(recipe):
        casts = size.parameters * 2  # autocast keeps a copy in 16 bits of what it has cast
    return Memory(
        weights=size.weight_bytes + casts,
        gradients=size.trained * width,
        optimizer=size.trained * state,
        activations=activations,
    )


def _is_mixed(recipe: Recipe) -> bool:
    return any(recipe.sft.trainer.get(key, recipe.grpo.trainer.get(key)) for key in ("bf16", "fp16"))


def _is_checkpointed(recipe: Recipe, stage: str) -> bool:
    """As the recipe says; the libraries' default is to do so wherever there is an accelerator."""
    table = recipe.sft.trainer if stage == "sft" else recipe.grpo.trainer
    on = not recipe.model.base.startswith("demo:")
    return bool(table.get("activation_checkpointing", table.get("gradient_checkpointing", on)))


def activation_memory(size: Size, recipe: Recipe, tokens: int, *, is_checkpointed: bool) -> float:
    """What the backward pass needs kept: of every layer all of it, or its input and one layer in full."""
    width = 2 if recipe.model.dtype != "float32" or _is_mixed(recipe) else 4
    layer = width * (6 * size.hidden + 2 * size.query + 2 * size.key_value + 4 * size.inner)
    layer += 8 * size.hidden  # the norms compute in 32 bits
    if is_checkpointed:
        return tokens * (size.layers * size.hidden * width + layer)
    return tokens * size.layers * layer


def _operations(size: Size, recipe: Recipe, tokens: float, length: int, *, is_checkpointed: bool) -> float:
    """A forward pass takes 2 a parameter and token, a backward one twice that, or as much where the weights
    are frozen. Activations that were not kept are computed again, by one forward pass more.
    """
    passes = 3 + is_checkpointed
    dense = 2 * (passes - (recipe.adapter is not None)) * (size.parameters - size.embedded)
    attention = 2 * passes * size.layers * size.query * length  # causal: half of the square, twice
    return tokens * (dense + attention)


# --- telling it ------------------------------------------------------------------------------------------


def _told(stage: StagePlan, size: Size, recipe: Recipe) -> Iterator[str]:
    memory = stage.memory
    parts = [
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimiser", memory.optimizer),
        ("activations", memory.activations),
        ("KV cache", memory.cache),
    ]
    listed = ", ".join(f"{name} {_bytes(value)}" for name, value in parts if value)
    yield f"{stage.name}: {_bytes(memory.total)} at the peak on each device: {listed}"
    yield f"{stage.name}: {_count(stage.tokens)} tokens a step, {stage.steps} steps"
    rows = min(recipe.rollout.max_rows, recipe.grpo.num_prompts * recipe.grpo.num_generations)
    for card in cards_for(recipe):
        hours = stage.steps * stage.seconds(size, card, rows) / 3600
        where = f"{recipe.num_processes} x {card.name}" if recipe.num_processes > 1 else card.name
        vllm = f" beside vLLM, which takes {stage.vllm_part:.0%} of it" if stage.vllm_part else ""
        if not stage.fits(card):
            yield f"{stage.name} on {where}: does not fit{vllm}"
        elif card is CORE:
            yield f"{stage.name} on {where}: about {_hours(hours)}"
        else:
            yield f"{stage.name} on {where}: fits{vllm}; about {_hours(hours)}"
    if stage.waiting:
        yield (
            f"{stage.name}: at least {stage.waiting:.0f} s a step for the large model, "
            f"{_dollars(stage, recipe)}"
        )


def cards_for(recipe: Recipe) -> Sequence[Card]:
    return (CORE,) if recipe.model.base.startswith("demo:") else CARDS


def _dollars(stage: StagePlan, recipe: Recipe) -> str:
    """Each span sends all of the answer so far, half of it on average."""
    out = stage.tokens * REMOTE_SHARE
    spans = out / SPAN_TOKENS
    sent = spans * (PROMPT_TOKENS + recipe.rollout.max_tokens * ANSWER_PART / 2)
    dollars = (sent * recipe.latency.dollars_in + out * recipe.latency.dollars_out) / 1e6
    whole = stage.steps * dollars
    return (
        f"{_count(stage.steps * spans)} spans in the run, {_count(stage.steps * sent)} tokens sent and "
        f"{_count(stage.steps * out)} written, ${whole:,.0f} by the recipe's prices"
    )


def _assumed(recipe: Recipe) -> str:
    demo = recipe.model.base.startswith("demo:")
    return (
        f"assumed: {USE:.0%} of {'the core' if demo else 'the card'} is used; a rollout has half of "
        f"max_tokens = {recipe.rollout.max_tokens}, {REMOTE_SHARE:.0%} of it written by the large model in "
        f"spans of {SPAN_TOKENS} tokens; a trace has {200 if demo else TRACE_TOKENS} tokens, where it is "
        "not cut; nothing is cut into shards over devices; each model is loaded once"
    )


def _kind(model: PreTrainedModel) -> str:
    config: Any = model.config
    tied = "tied head" if config.tie_word_embeddings else "a head of its own"
    return f"{type(model).__name__}, {config.num_hidden_layers} layers of {config.hidden_size}, {tied}"


def _bytes(value: float) -> str:
    return f"{value / GIB:.1f} GiB" if value >= GIB / 10 else f"{value / 2**20:.1f} MiB"


def _count(value: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= unit:
            return f"{value / (1e3 if name == 'k' else unit):.3g}{name}"
    return f"{value:.0f}"


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{max(1, round(60 * hours))} min"
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"
