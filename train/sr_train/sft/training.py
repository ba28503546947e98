"""Fine-tuning on annotated traces: TRL's SFTTrainer, rows with labels of our own, and one loss of our own.

All that TRL and transformers know is set in the recipe's `[sft.trainer]`. What is done here: the rows, the
defaults of a machine without an accelerator, the loss of the closing marker, and a model folder at the end.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset  # type: ignore[import-untyped]
from torch import Tensor
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from sr_edge.errors import UsageError
from sr_train.checkpoint import Loaded, gathered_state, keep_rows_exact, load_for_training, save_trained
from sr_train.metrics import MetricsCallback, logging_arguments, mean_loss
from sr_train.recipe import Recipe
from sr_train.rollout.vocabulary import Vocabulary
from sr_train.run import RunFolder, StageFolder, last_checkpoint
from sr_train.sft.rows import IGNORED, AnnotatedRow, RowMaker, SftRow, cut_row

_SET_ELSEWHERE: Mapping[str, str] = {
    "output_dir": "the run's folder",
    "seed": "seed",
    "report_to": "log.to",
    "run_name": "name",
    "project": "log.project",
    "model_init_kwargs": "model",
    "dataset_kwargs": "sft",
    "eos_token": "model",
    "chat_template_path": "model",
    "completion_only_loss": "sft.span_loss",
    "assistant_only_loss": "sft.span_loss",
    "resume_from_checkpoint": "the command's --resume",
}
"""Names of SFTConfig that would contradict what the recipe says in other words, and where it says it."""


def train_sft(
    recipe: Recipe,
    rows: Sequence[AnnotatedRow],
    run: RunFolder,
    *,
    resume: bool = True,
    report: Callable[[str], None] = lambda _: None,
    validation: Sequence[AnnotatedRow] = (),
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Train the recipe's model on these rows, and leave it in the run's `sft/model`, which is returned.

    Args:
        resume: go on from the last whole checkpoint, or take the model if it is done. Otherwise start again.
        report: hears what a user should know, a sentence each.
        validation: rows whose loss is measured and not trained on.
    Raises:
        UsageError: a setting is unknown or contradicts another; no row has anything to learn.
        ModelError: the base cannot be read.
    """
    stage = run.stage("sft")
    if resume and stage.is_done:
        return stage.model
    check_settings(recipe)
    config = sft_config(recipe, stage.path, has_validation=bool(validation))
    if not resume:  # nothing is removed for a setting that is refused
        stage.clear()
    with stage:
        cache = run.path / "cache"
        loaded = load_for_training(recipe.model, recipe.adapter, cache, train_markers=True, seed=recipe.seed)
        maker = row_maker(recipe, loaded)
        data, told = dataset(maker, rows, recipe.data.max_trace_tokens, config.max_length)
        num_tokens = sum(map(len, data["input_ids"]))
        if told:
            report(told)
        measured, _ = dataset(maker, validation, None, config.max_length) if validation else (None, "")
        trainer = sft_trainer(
            recipe,
            loaded,
            config,
            data,
            measured,
            [MetricsCallback(stage.metrics()), _LossReport(report), *callbacks],
        )
        begun = last_checkpoint(stage.path) if resume else None
        if begun is not None:
            report(f"going on from {begun.name}")
        trainer.train(resume_from_checkpoint=None if begun is None else str(begun))
        _save(recipe, loaded, trainer, stage)
        stage.finish(
            {
                "model": stage.model.name,
                "rows": len(rows),
                "steps": trainer.state.global_step,
                "epochs": trainer.state.epoch,
                "tokens_an_epoch": num_tokens,
                "train_loss": mean_loss(trainer.state),
            }
        )
    return stage.model


def check_settings(recipe: Recipe) -> None:
    """Raises: UsageError: `[sft.trainer]` names what SFTConfig does not know, or what is set elsewhere."""
    table = recipe.sft.trainer
    names = _names()
    for name in table:
        if name in _SET_ELSEWHERE:
            raise UsageError(f"sft.trainer.{name} is set by {_SET_ELSEWHERE[name]}: leave it out")
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise UsageError(f"sft.trainer.{name} is no setting of TRL's SFTConfig{hint}")
    if table.get("packing") and table.get("packing_strategy", "bfd") != "bfd":
        raise UsageError(
            f"sft.trainer.packing_strategy = {table['packing_strategy']} cuts rows within spans: use bfd"
        )
    if recipe.sft.span_loss == "close":
        for name, neutral in (("loss_type", "nll"), ("label_smoothing_factor", 0)):
            if table.get(name, neutral) != neutral:
                raise UsageError(f"sft.trainer.{name} and sft.span_loss = close exclude each other")


def sft_config(recipe: Recipe, folder: Path, *, has_validation: bool = False) -> SFTConfig:
    """The recipe's settings over defaults that fit this machine.

    Raises:
        UsageError: TRL or transformers refuse them.
    """
    defaults: dict[str, Any] = {
        "bf16": recipe.model.dtype != "float16",
        "fp16": recipe.model.dtype == "float16",
        "save_total_limit": 2,
        "logging_steps": 10,
        "eval_strategy": "epoch" if has_validation else "no",
        "prediction_loss_only": True,
        "disable_tqdm": True,  # its bar writes figures to stdout; `_LossReport` tells them
        "ddp_find_unused_parameters": False,  # all that is trained is used in every step
    }
    if not has_accelerator():
        defaults |= {"use_cpu": True, "bf16": False, "fp16": False}
    settings = {**defaults, **recipe.sft.trainer}
    if "activation_checkpointing" in _names():  # the newer name; the older one is warned of
        settings.setdefault(
            "activation_checkpointing", settings.pop("gradient_checkpointing", has_accelerator())
        )
    own = {"output_dir": str(folder), "seed": recipe.seed, **logging_arguments(recipe, "sft")}
    try:
        config = SFTConfig(**{**settings, **own})
    except (TypeError, ValueError) as error:
        raise UsageError(f"sft.trainer: {error}") from None
    if config.eval_strategy != "no" and not has_validation:
        raise UsageError(
            f"sft.trainer.eval_strategy = {settings['eval_strategy']} needs rows to measure: set "
            "data.validation"
        )
    return config


def _names() -> set[str]:
    return {each.name for each in dataclasses.fields(SFTConfig) if each.init}


def has_accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def row_maker(recipe: Recipe, loaded: Loaded) -> RowMaker:
    """Raises: UsageError: the tokenizer has no token that ends an answer."""
    end_id: int | None = loaded.tokenizer.eos_token_id
    if end_id is None:
        raise UsageError(f"{recipe.model.base}: its tokenizer names no eos_token, which ends an answer")
    return RowMaker(
        Vocabulary(loaded.tokenizer),
        loaded.open_id,
        loaded.close_id,
        end_id,
        recipe.sft.span_loss,
        recipe.sft.local_share,
        recipe.seed,
    )


def dataset(
    maker: RowMaker,
    annotated: Iterable[AnnotatedRow],
    max_trace_tokens: int | None,
    max_length: int | None,
) -> tuple[Dataset, str]:
    """The rows with their ids and labels, and a sentence on those that did not fit; empty if all did.

    Args:
        max_trace_tokens: a row whose answer is longer is left out.
        max_length: a row that is longer is cut, never within a span.
    Raises:
        UsageError: no row is left.
    """
    kept: list[SftRow] = []
    num_long = num_cut = num_empty = 0
    for each in annotated:
        row = maker.row(each)
        if max_trace_tokens is not None and len(row.input_ids) - row.num_prompt > max_trace_tokens:
            num_long += 1
            continue
        cut = row if max_length is None else cut_row(row, max_length, maker.open_id, maker.close_id)
        if cut is None:
            num_empty += 1
            continue
        num_cut += len(cut.input_ids) < len(row.input_ids)
        kept.append(cut)
    said = [
        (num_long, f"left out, longer than {max_trace_tokens} tokens (data.max_trace_tokens)"),
        (num_cut, f"cut at {max_length} tokens (sft.trainer.max_length)"),
        (num_empty, f"left out, with nothing to learn within {max_length} tokens (sft.trainer.max_length)"),
    ]
    told = "; ".join(f"{num} {what}" for num, what in said if num)
    if not kept:
        raise UsageError(f"there is no row to train on{': ' + told if told else ''}")
    columns = {
        "input_ids": [np.asarray(row.input_ids, np.int32) for row in kept],
        "labels": [np.asarray(row.labels, np.int32) for row in kept],
    }
    num_all = len(kept) + num_long + num_empty
    return Dataset.from_dict(columns), f"of {num_all} rows: {told}" if told else ""


def sft_trainer(
    recipe: Recipe,
    loaded: Loaded,
    config: SFTConfig,
    data: Dataset,
    validation: Dataset | None,
    callbacks: Sequence[TrainerCallback],
) -> SFTTrainer:
    kind = ClosingTrainer if recipe.sft.span_loss == "close" else SFTTrainer
    trainer: SFTTrainer = kind(
        model=loaded.model,
        args=config,
        train_dataset=data,
        eval_dataset=validation,
        processing_class=loaded.tokenizer,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_TokensSeen(trainer))
    keep_rows_exact(loaded.model)
    if isinstance(trainer, ClosingTrainer):
        trainer.close_id = loaded.close_id
    return trainer


class _LossReport(TrainerCallback):
    """One line for each log with a loss, from the first process."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        shown = [f"{name} {float(logs[name]):.3f}" for name in ("loss", "eval_loss") if logs and name in logs]
        if shown and state.is_world_process_zero:
            self._report(f"step {state.global_step}/{state.max_steps}: {', '.join(shown)}")


class _TokensSeen(TrainerCallback):
    """TRL counts tokens for its log in a variable that no checkpoint holds."""

    def __init__(self, trainer: SFTTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._trainer._total_train_tokens = state.num_input_tokens_seen

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        state.num_input_tokens_seen = self._trainer._total_train_tokens


@dataclasses.dataclass(frozen=True)
class ClosingLoss:
    """Sums over positions, and how many there are: both parts weigh the same, however long spans are."""

    written: Tensor
    closing: Tensor
    num_written: Tensor
    num_closing: Tensor

    def mean(self, num_written: Tensor | None = None, num_closing: Tensor | None = None) -> Tensor:
        """Args:
        num_written, num_closing: of a batch that this is a part of; None: this is all of it.
        """
        written = self.written / (self.num_written if num_written is None else num_written).clamp(min=1)
        return written + self.closing / (self.num_closing if num_closing is None else num_closing).clamp(
            min=1
        )


def closing_loss(logprobs: Tensor, ids: Tensor, labels: Tensor, close_id: int) -> ClosingLoss:
    """The loss of `span_loss` = close.

    On what the small model writes, -log p of it. Within a span, -log(1 - p) of the closing marker, and at the
    end of it -log p: the words are not learned, only when to take the pen back.

    Args:
        logprobs: shape (B, T), of the labels.
        ids, labels: shape (B, T), of the tokens predicted there; see `rows.SftRow`.
    """
    is_closing = labels == close_id
    is_written = (labels != IGNORED) & ~is_closing
    closes = is_closing & (ids == close_id)
    stays = is_closing & ~closes
    # log(1 - p) from log p; the clamp keeps the gradient finite where p rounds to 1
    log_stay = torch.log(-torch.expm1(logprobs.float().masked_fill(~stays, -1.0).clamp(max=-1e-6)))
    return ClosingLoss(
        -logprobs.masked_fill(~is_written, 0.0).sum(),
        -logprobs.masked_fill(~closes, 0.0).sum() - log_stay.masked_fill(~stays, 0.0).sum(),
        is_written.sum(),
        is_closing.sum(),
    )


class ClosingTrainer(SFTTrainer):
    """SFTTrainer with `closing_loss`. The labels say where it applies, so packing changes nothing."""

    close_id: int

    def _get_num_items_in_batch(self, batch_samples: list[Mapping[str, Tensor]], device: torch.device) -> Any:
        labels = [batch["labels"][..., 1:] for batch in batch_samples]
        closing = sum((each == self.close_id).sum() for each in labels)
        learned = sum((each != IGNORED).sum() for each in labels)
        counts = torch.as_tensor([int(learned - closing), int(closing)], device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            counts = self.accelerator.gather(counts).view(-1, 2).sum(0)
        self._num_written, self._num_closing = counts.unbind()
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        assert not return_outputs
        inputs["use_cache"] = False
        outputs = model(**inputs, fused_lm_head=True)
        ids, labels = inputs["input_ids"][:, 1:], inputs["labels"][:, 1:]
        parts = closing_loss(outputs.log_probs, ids, labels, self.close_id)
        is_read = inputs.get("attention_mask")
        num_read = torch.tensor(inputs["input_ids"].numel()) if is_read is None else is_read.sum()
        self._note(parts, outputs, ids, labels, num_read.to(ids.device, torch.float32))
        if num_items_in_batch is None:
            return parts.mean()
        loss = parts.mean(self._num_written, self._num_closing)
        # DDP averages the gradients of processes, and the counts are of all of them.
        return loss * (self.accelerator.num_processes if self.args.average_tokens_across_devices else 1)

    def _note(self, parts: ClosingLoss, outputs: Any, ids: Tensor, labels: Tensor, num_read: Tensor) -> None:
        """Figures for the log, under the trainer's own names where it has one."""
        with torch.no_grad():
            is_closing = labels == self.close_id
            closes = is_closing & (ids == self.close_id)
            p_close = outputs.log_probs.float().exp()
            is_written = (labels != IGNORED) & ~is_closing
            sums = torch.stack(
                [
                    outputs.is_top1.masked_fill(~is_written, 0).sum().float(),
                    outputs.entropy.masked_fill(~is_written, 0.0).sum().float(),
                    parts.written.float(),
                    parts.num_written.float(),
                    parts.closing.float(),
                    parts.num_closing.float(),
                    p_close.masked_fill(~closes, 0.0).sum(),
                    closes.sum().float(),
                    p_close.masked_fill(~is_closing | closes, 0.0).sum(),
                    (is_closing & ~closes).sum().float(),
                    num_read,
                ]
            )
            gathered = self.accelerator.gather(sums).view(-1, len(sums)).sum(0).tolist()
        (
            right,
            entropy,
            written,
            num_written,
            closing,
            num_closing,
            end,
            num_ends,
            inside,
            num_inside,
            seen,
        ) = gathered
        assert self.model is not None
        mode = "train" if self.model.training else "eval"
        figures = {
            "mean_token_accuracy": (right, num_written),
            "entropy": (entropy, num_written),
            "loss/written": (written, num_written),
            "loss/closing": (closing, num_closing),
            "p_close/end": (end, num_ends),
            "p_close/inside": (inside, num_inside),
        }
        for name, (total, num) in figures.items():
            if num:
                self._metrics[mode][name].append(total / num)
        if mode == "train":
            self._total_train_tokens += int(seen)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def _save(recipe: Recipe, loaded: Loaded, trainer: SFTTrainer, stage: StageFolder) -> None:
    state = gathered_state(trainer)
    if trainer.accelerator.is_main_process:
        save_trained(
            loaded,
            stage.model,
            handback=recipe.handback,
            base_model=recipe.model.base,
            training_run=recipe.name,
            state=state,
        )
    trainer.accelerator.wait_for_everyone()
