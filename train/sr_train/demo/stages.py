"""What one model goes through, from nothing to its GGUF, each stage leaving a file that ends it.

    big     pretrain -> export
    small   pretrain -> export as base -> mark the steps that it fails, and fine-tune (sft) -> export

A stage whose file is there is not run again; a stage that was cut off goes on from its checkpoint.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from sr_edge.suites.demo import problem, problems, training_rng
from sr_train.demo.data import Layout, layout
from sr_train.demo.export import Role, write_gguf
from sr_train.demo.loop import Progress, Spent
from sr_train.demo.measure import Rates, measure, rates
from sr_train.demo.model import Decoder, hf_state_dict
from sr_train.demo.pretrain import new_model, pretrain
from sr_train.demo.recipe import Recipe
from sr_train.demo.sft import fine_tune, sft_rows
from sr_train.demo.tokenizer import CLOSE, END_OF_TEXT, OPEN, DemoTokenizer


@dataclass(frozen=True)
class Done:
    """A finished stage, as it is written beside its weights."""

    spent: Spent
    rates: Rates | None = None


class Stages:
    """Runs the stages of one role in its own folder. report(stage, progress) tells how far."""

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: DemoTokenizer,
        role: Role,
        seed: int,
        folder: Path,
        report: Callable[[str, Progress], None],
    ) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._role = role
        self._seed = seed
        self._folder = folder
        self._report = report

    def run(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        model = new_model(self._recipe.pretraining(self._role), self._tokenizer, self._seed)
        self._stage("pretrain", model, self._pretrain)
        if self._role == "small":
            self._export(model, "base")
            self._stage("sft", model, self._sft)
        self._export(model, self._role)

    def _export(self, model: Decoder, role: Role | Literal["base"]) -> None:
        hand_back = self._recipe.hand_back if role == "small" else None
        path = self._folder / f"{role}.gguf"
        write_gguf(path, hf_state_dict(model), model.shape, self._tokenizer, role, hand_back)

    def _stage(self, name: str, model: Decoder, run: Callable[[str, Decoder], Done]) -> None:
        """Run a stage, or load what it left. The record comes last: it says that the weights are whole."""
        weights_path, record_path = self._folder / f"{name}.pt", self._folder / f"{name}.json"
        if record_path.exists():
            model.load_state_dict(torch.load(weights_path, weights_only=True))
            return
        done = run(name, model)
        torch.save(model.state_dict(), weights_path)
        record_path.write_text(json.dumps(asdict(done), indent=2) + "\n", "utf-8")

    def _pretrain(self, name: str, model: Decoder) -> Done:
        plan = self._recipe.pretraining(self._role)
        checkpoint_path = self._folder / f"{name}.checkpoint"
        stream = f"{name} {self._role}"
        spent = pretrain(
            model, plan, self._tokenizer, stream, self._seed, checkpoint_path, self._reporter(name)
        )
        drawn = problems(self._recipe.evaluation_seed, self._recipe.num_evaluated)
        layouts = [layout(self._tokenizer, each) for each in drawn]
        return Done(spent, rates(layouts, measure(model.all_logits, layouts)))

    def _sft(self, name: str, model: Decoder) -> Done:
        checkpoint_path = self._folder / f"{name}.checkpoint"
        plan = self._recipe.sft
        rng = training_rng(self._seed, "sft")
        layouts = [layout(self._tokenizer, problem(rng)) for _ in range(plan.num_problems)]
        found = self._failures(model, layouts)
        open_id, close_id = self._tokenizer.id(OPEN), self._tokenizer.id(CLOSE)
        is_marked = [[not is_right for is_right in flags] for flags in found]
        rows = sft_rows(layouts, is_marked, open_id, close_id, plan.local_share, rng)
        pad_id = self._tokenizer.id(END_OF_TEXT)
        spent = fine_tune(model, plan, rows, close_id, pad_id, rng, checkpoint_path, self._reporter(name))
        return Done(spent)

    def _failures(self, model: Decoder, layouts: list[Layout]) -> list[list[bool]]:
        """Which steps the pre-trained model got right; kept, for a resumed run starts from other weights."""
        path = self._folder / "failures.json"
        if not path.exists():
            report = self._reporter("measure")

            def done(num: int) -> None:
                report(Progress(num, len(layouts), 0.0))

            marks = measure(model.all_logits, layouts, report=done)
            record = {"rates": asdict(rates(layouts, marks)), "is_right": [mark.is_right for mark in marks]}
            partial_path = path.with_suffix(".partial")
            partial_path.write_text(json.dumps(record), "utf-8")
            partial_path.replace(path)
        loaded: list[list[bool]] = json.loads(path.read_text("utf-8"))["is_right"]
        return loaded

    def _reporter(self, stage: str) -> Callable[[Progress], None]:
        return lambda progress: self._report(stage, progress)
