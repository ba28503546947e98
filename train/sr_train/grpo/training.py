"""GRPO: TRL's trainer around our rollouts.

TRL does the optimising, the clipping, the KL, the accelerators and the checkpoints. Ours are the rollouts and
what they are worth (`rollouts`), which it takes through `rollout_func`: the ids, and as `env_mask` which of
them the small model sampled. All others are attended to and have no loss.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-untyped]
from transformers import PrinterCallback, TrainerCallback
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from sr_edge.errors import EdgeError, UsageError
from sr_edge.remote.endpoint import Endpoint
from sr_train.checkpoint import Loaded, gathered_state, keep_rows_exact, load_for_training, save_trained
from sr_train.grpo.callbacks import OffloadState, StepReport
from sr_train.grpo.engine import Reach, batched_engine, vllm_engine
from sr_train.grpo.rollouts import OffloadRollouts, Place, Written
from sr_train.latency import LatencyModel
from sr_train.metrics import MetricsCallback, logging_arguments, mean_loss
from sr_train.problems import Problem
from sr_train.recipe import BigPart, Recipe
from sr_train.remotes import Render, open_big
from sr_train.rewards import marked_text
from sr_train.rollout.batch import base_of
from sr_train.rollout.requests import RolloutEngine
from sr_train.run import RunFolder, StageFolder, append_line, last_checkpoint

MakeEngine = Callable[[Recipe, Loaded, GRPOTrainer], RolloutEngine]

_OURS: Mapping[str, str] = {
    "output_dir": "the run's folder",
    "seed": "seed",
    "num_generations": "grpo.num_generations",
    "gradient_accumulation_steps": "grpo.num_prompts, which it follows from",
    "generation_batch_size": "grpo.num_prompts, which it follows from",
    "max_completion_length": "rollout.max_tokens",
    "temperature": "rollout.temperature",
    "use_vllm": "rollout.engine",
    "report_to": "log.to",
    "run_name": "name",
    "resume_from_checkpoint": "the command: a run goes on by itself",
    "remove_unused_columns": "nothing: the columns are ours",
    "eval_strategy": "nothing: `sr-edge train evaluate` measures",
}
"""TRL's settings that follow from the recipe's own, and from which."""


class SpentError(EdgeError):
    """The run has cost what it was allowed to."""


def train_grpo(
    recipe: Recipe,
    problems: Sequence[Problem],
    start: Path | str,
    run: RunFolder,
    *,
    resume: bool = True,
    report: Callable[[str], None] = lambda _: None,
    callbacks: Sequence[TrainerCallback] = (),
    reach: Callable[[BigPart, Render], Endpoint] = open_big,
    make_engine: MakeEngine | None = None,
) -> Path:
    """Train on rollouts, and leave the model in the run's `grpo/model`, which is returned.

    Args:
        start: what is trained: a model folder, as SFT leaves it, or a base.
        resume: go on from the last whole checkpoint, or take the model if it is done. Otherwise start again.
        report: hears what a user should know, a sentence each, and a line a step.
        reach: opens the recipe's endpoint, where it has one; it is closed at the end.
        make_engine: what writes the rollouts; None follows the recipe.
    Raises:
        UsageError: a setting that TRL does not know or that is ours; a batch that cuts a group; no problem;
            a KL to a model without markers.
        ModelError: a model cannot be read.
        RemoteError: the large model failed in all rollouts of several steps.
        SpentError: `big.max_dollars` would be passed; there is a checkpoint to go on from.
    """
    stage = run.stage("grpo")
    if resume and stage.is_done:
        return stage.model
    arguments = grpo_config(recipe, stage.path)
    by_id = _with_answers(problems, report)
    if not resume:  # nothing is removed for a setting that is refused
        stage.clear()
    with stage, ExitStack() as opened:
        loaded = load_for_training(
            dataclasses.replace(recipe.model, base=str(start), revision=None),
            recipe.adapter,
            run.path / "cache",
        )
        model: torch.nn.Module = loaded.model
        model.to(arguments.device)  # before the engine looks where it lies
        reports = [StepReport(report), MetricsCallback(stage.metrics())]
        trainer, rollouts = grpo_trainer(
            recipe,
            loaded,
            by_id,
            arguments,
            make_engine or _engine_maker(run, lambda render: opened.enter_context(reach(recipe.big, render))),
            callbacks=[*reports, *callbacks],
        )
        kept = OffloadState(rollouts, recipe.big.max_dollars)
        trainer.add_callback(kept)
        begun = last_checkpoint(stage.path)
        if begun is not None:
            if (saved := OffloadState.saved(begun)) is not None:
                rollouts.restore(saved)
            report(f"going on from {begun.name}")
        with _quiet():
            trainer.train(resume_from_checkpoint=None if begun is None else str(begun))
        if kept.is_spent:
            raise SpentError(
                f"the run has cost ${rollouts.dollars:.2f}, and one more step might pass big.max_dollars = "
                f"{recipe.big.max_dollars}: raise it and run the command again, it goes on"
            )
        _save(recipe, loaded, trainer, stage)
        stage.finish(
            {
                "model": stage.model.name,
                "problems": len(by_id),
                "steps": trainer.state.global_step,
                "dollars": rollouts.dollars,
                "train_loss": mean_loss(trainer.state),
            }
        )
    return stage.model


def grpo_trainer(
    recipe: Recipe,
    loaded: Loaded,
    problems: Mapping[str, Problem],
    arguments: GRPOConfig,
    make_engine: MakeEngine,
    *,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[GRPOTrainer, OffloadRollouts]:
    """TRL's trainer and the rollouts that it trains on.

    Args:
        problems: by id.
    """
    adapter = _RolloutFunc(Path(str(arguments.output_dir)) / "rollouts.jsonl")
    with _quiet():
        trainer = GRPOTrainer(
            model=loaded.model,
            processing_class=loaded.tokenizer,
            reward_funcs=adapter.offload_reward,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": id} for id in problems]),
            rollout_func=adapter,
            callbacks=list(callbacks),
        )
    keep_rows_exact(loaded.model)
    trainer.remove_callback(PrinterCallback)  # there is a line a step
    _check_sharding(trainer)
    _check_reference(trainer, loaded)
    rollouts = adapter.rollouts = _rollouts(recipe, loaded, problems, make_engine(recipe, loaded, trainer))
    return trainer, rollouts


def grpo_config(recipe: Recipe, folder: Path) -> GRPOConfig:
    """TRL's settings: the recipe's table, what follows from the rest of the recipe, and our defaults.

    Raises:
        UsageError: a key that TRL does not know, or that another setting of the recipe decides.
    """
    table, grpo = dict(recipe.grpo.trainer), recipe.grpo
    if recipe.rollout.temperature == 0:
        raise UsageError("rollout.temperature = 0: GRPO compares rollouts that differ; set it above 0")
    known = {field.name for field in dataclasses.fields(GRPOConfig) if field.init}
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise UsageError(f"grpo.trainer.{key} is no setting of TRL's GRPOConfig{hint}")
        if key in _OURS:
            raise UsageError(f"grpo.trainer.{key} is not set here: it follows from {_OURS[key]}")
    num_rows = grpo.num_prompts * grpo.num_generations
    micro = table.setdefault("per_device_train_batch_size", num_rows)
    if not isinstance(micro, int) or micro < 1 or num_rows % micro:
        raise UsageError(
            f"grpo.trainer.per_device_train_batch_size = {micro}: it divides the {num_rows} rollouts of a "
            "step (grpo.num_prompts * grpo.num_generations)"
        )
    per_generation = table.get("steps_per_generation") or num_rows // micro
    if per_generation * micro % grpo.num_generations:
        raise UsageError(
            f"grpo.trainer.steps_per_generation = {per_generation}: with {micro} rollouts each it cuts a "
            f"group of {grpo.num_generations}"
        )
    on_cpu = not torch.cuda.is_available()
    defaults: dict[str, Any] = {
        "scale_rewards": "none",  # with a group's deviation the size of lam would cancel
        "epsilon_high": 0.28,
        "logging_steps": 1,
        "save_total_limit": 2,
        "disable_tqdm": True,
        "use_cpu": on_cpu,
        "bf16": not on_cpu and recipe.model.dtype == "bfloat16",
        "activation_checkpointing": table.pop("gradient_checkpointing", not on_cpu),  # its new name
        "dataloader_pin_memory": not on_cpu,
        "vllm_importance_sampling_mode": "token_truncate",  # a long answer is not dropped for its length
        **logging_arguments(recipe, "grpo"),
    }
    ours: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": recipe.seed,
        "num_generations": grpo.num_generations,
        "gradient_accumulation_steps": num_rows // micro,
        "max_completion_length": recipe.rollout.max_tokens,
        "temperature": recipe.rollout.temperature,
        "use_vllm": recipe.rollout.engine == "vllm",
    }
    try:
        return GRPOConfig(**{**defaults, **table, **ours})
    except (TypeError, ValueError) as error:
        raise UsageError(f"grpo.trainer: {error}") from None


class _RolloutFunc:
    """What TRL calls: first as `rollout_func` for a batch of prompts, then as the reward function for it."""

    def __init__(self, samples: Path) -> None:
        self.rollouts: OffloadRollouts | None = None
        self._samples = samples
        self._place = Place(step=-1)
        self._figures: Mapping[str, float] = {}

    def __call__(self, prompts: Sequence[str], trainer: GRPOTrainer) -> dict[str, Any]:
        assert self.rollouts is not None
        step = trainer.state.global_step
        batch = self._place.batch + 1 if step == self._place.step else 0
        self._place = Place(step, batch, trainer.accelerator.process_index * len(prompts))
        with _for_writing(trainer):
            written = self.rollouts.write(list(prompts), self._place, lambda sums: _total(trainer, sums))
        self._figures = written.figures
        if trainer.accelerator.is_main_process:
            self._keep_samples(prompts, written)
        return {
            "prompt_ids": [list(rollout.prompt_ids) for rollout in written.rollouts],
            "completion_ids": [list(ids) for ids in written.completion_ids],
            "logprobs": [_padded(rollout.logprobs) for rollout in written.rollouts]
            if trainer.use_vllm
            else None,
            "env_mask": [list(mask) for mask in written.loss_mask],
            "worth": list(written.rewards),
        }

    def offload_reward(
        self, worth: Sequence[float | None], log_metric: Callable[[str, float], None], **_: Any
    ) -> list[float | None]:
        """TRL leaves a row whose reward is None out of its group's mean, and gives it no advantage."""
        for name, value in self._figures.items():
            log_metric(name, value)
        return list(worth)

    def _keep_samples(self, prompts: Sequence[str], written: Written) -> None:
        """The batch's first rollout, to be looked at."""
        line = {
            "step": self._place.step,
            "problem": prompts[0],
            "reward": written.rewards[0],
            "text": marked_text(written.rollouts[0].transcript),
        }
        append_line(self._samples, json.dumps(line, ensure_ascii=False))


@contextmanager
def _for_writing(trainer: GRPOTrainer) -> Iterator[None]:
    """The model as it is asked, not as it is trained; whole where its weights are in shards."""
    arguments = trainer.args
    assert isinstance(arguments, GRPOConfig)
    model = trainer.model
    assert model is not None
    was_training = model.training
    with (
        torch.no_grad(),
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=arguments.ds3_gather_for_generation,
        ),
    ):
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)


def _total(trainer: GRPOTrainer, sums: Sequence[float]) -> list[float]:
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return list(sums)
    exact = torch.float32 if accelerator.device.type == "mps" else torch.float64
    gathered = accelerator.gather(torch.tensor([list(sums)], dtype=exact, device=accelerator.device))
    totals: list[float] = gathered.sum(dim=0).tolist()
    return totals


def _padded(logprobs: Sequence[float]) -> list[float]:
    return list(logprobs) or [0.0]


def _with_answers(problems: Sequence[Problem], report: Callable[[str], None]) -> dict[str, Problem]:
    """By id. An answer that cannot be read shows when it is first compared with: then its group is dropped,
    since to try all of a large set beforehand takes hours.
    """
    by_id = {problem.id: problem for problem in problems if problem.answer.strip()}
    if not by_id:
        raise UsageError("there is no problem with an answer: look at the column answer")
    left_out = len(problems) - len(by_id)
    if left_out:
        report(f"{left_out} of {len(problems)} problems left out: they have no answer, or are there twice")
    return by_id


def _check_sharding(trainer: GRPOTrainer) -> None:
    if trainer.is_fsdp_enabled:
        raise UsageError(
            "rollouts cannot be written from a model that FSDP has cut into shards: each process would need "
            "the others' at times of its own. Launch with DDP or DeepSpeed"
        )


def _check_reference(trainer: GRPOTrainer, loaded: Loaded) -> None:
    """TRL reads the model that the KL keeps to from where ours was read: markers that we put in, it lacks.

    Raises:
        UsageError: it does.
    """
    if trainer.ref_model is None:
        return
    bases: list[Any] = [
        base_of(trainer.accelerator.unwrap_model(model)) for model in (loaded.model, trainer.ref_model)
    ]
    ours, theirs = (base.get_input_embeddings().weight.detach().cpu() for base in bases)
    if not theirs.numel():  # in shards
        return
    ids = [loaded.open_id, loaded.close_id]
    if max(ids) >= len(theirs) or not torch.equal(ours[ids].to(theirs.dtype), theirs[ids]):
        raise UsageError(
            "grpo.trainer.beta compares with the model that this began with, which has no markers: "
            "begin with what SFT left, or set grpo.trainer.beta=0"
        )


def _pad_id(loaded: Loaded) -> int:
    pad: int | None = loaded.tokenizer.pad_token_id
    assert pad is not None  # `load_for_training` sees to it
    return pad


def _save(recipe: Recipe, loaded: Loaded, trainer: GRPOTrainer, stage: StageFolder) -> None:
    state = gathered_state(trainer)
    if stage.run.is_main:
        save_trained(
            loaded,
            stage.model,
            handback=recipe.handback,
            base_model=recipe.model.base,
            training_run=recipe.name,
            state=state,
        )
    trainer.accelerator.wait_for_everyone()


def _engine_maker(run: RunFolder, reach: Reach | None) -> MakeEngine:
    def make(recipe: Recipe, loaded: Loaded, trainer: GRPOTrainer) -> RolloutEngine:
        if recipe.rollout.engine == "transformers":
            return batched_engine(recipe, loaded, run.path, reach)
        return vllm_engine(recipe, loaded, trainer, run.path, reach)

    return make


def _rollouts(
    recipe: Recipe, loaded: Loaded, problems: Mapping[str, Problem], engine: RolloutEngine
) -> OffloadRollouts:
    return OffloadRollouts(
        engine,
        problems,
        grpo=recipe.grpo,
        rollout=recipe.rollout,
        reward=recipe.reward,
        latency=LatencyModel.of(recipe.latency),
        seed=recipe.seed,
        open_id=loaded.open_id,
        fill_id=_pad_id(loaded),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what TRL tells its developers, at each step: that `rollout_func` may change (its version is
    pinned, and a test holds it to what we use), that transformers renamed something, and each batch with a
    dropped row in full (how many were dropped is among the figures).
    """
    logger = logging.getLogger("trl.trainer.grpo_trainer")
    logger.addFilter(_is_not_about_dropped)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            yield
    finally:
        logger.removeFilter(_is_not_about_dropped)


def _is_not_about_dropped(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("All reward functions returned None")
