"""The losses against references by hand, packing, runs from end to end, and a run that was killed."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.convert.making import make_checkpoint
from transformers import AutoModelForCausalLM, TrainerCallback

from sr_edge.errors import UsageError
from sr_edge.markers import CLOSE, OPEN
from sr_train.checkpoint import load_for_inference, load_for_training
from sr_train.demo.sft import CLOSES, STAY, WRITTEN, span_loss
from sr_train.demo.sft import IGNORED as DEMO_IGNORED
from sr_train.recipe import AdapterPart, DataPart, LogPart, ModelPart, Recipe, SftPart
from sr_train.run import RunFolder, read_metrics
from sr_train.sft.rows import IGNORED, AnnotatedRow
from sr_train.sft.training import (
    check_settings,
    closing_loss,
    dataset,
    row_maker,
    sft_config,
    sft_trainer,
    train_sft,
)

CLOSE_ID = 7


@pytest.fixture(autouse=True)
def quiet_and_single(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base"), "qwen2", tied=True, hidden=32, inner=64)


def annotated(num: int, seed: int = 0) -> list[AnnotatedRow]:
    """Sums: each answer's working is a span in most of them."""
    rng = random.Random(seed)
    rows = []
    for n in range(num):
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        step = f"{a} + {b} = {a + b}"
        marked = f"{OPEN}{step}{CLOSE}" if rng.random() < 0.8 else step
        text = f"We add: {marked}. So it is {a + b}.</think>\n\n\\boxed{{{a + b}}}"
        rows.append(AnnotatedRow(f"sum-{seed}-{n}", f"What is {a} + {b}?", str(a + b), text))
    return rows


def recipe(base: Path, span_loss="mask", adapter=None, local_share=0.0, **trainer) -> Recipe:
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return Recipe(
        name="tiny",
        model=ModelPart(str(base), dtype="float32"),
        data=DataPart("demo:train"),
        adapter=adapter,
        log=LogPart(to=()),
        sft=SftPart(span_loss, local_share, {**settings, **trainer}),
    )


# --- the loss of the closing marker ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_closing_loss_is_the_one_that_the_built_in_pair_was_trained_with(seed):
    torch.manual_seed(seed)
    kinds = torch.tensor([DEMO_IGNORED, WRITTEN, STAY, CLOSES])[torch.randint(4, (30,))]
    logits = torch.randn(30, 12, requires_grad=True)
    ids = torch.randint(8, 12, (30,))
    ids[kinds == CLOSES] = CLOSE_ID
    expected = span_loss(logits, ids, kinds, CLOSE_ID).total()
    (by_hand,) = torch.autograd.grad(expected, logits)

    labels = torch.where(kinds == WRITTEN, ids, torch.full_like(ids, IGNORED))
    labels[(kinds == STAY) | (kinds == CLOSES)] = CLOSE_ID
    logprobs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    loss = closing_loss(logprobs[None], ids[None], labels[None], CLOSE_ID).mean()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert torch.allclose(gradient, by_hand, atol=1e-6)
    assert (gradient[kinds == DEMO_IGNORED] == 0).all()


def test_a_marker_that_is_certain_has_a_finite_loss():
    logprobs = torch.zeros(1, 2, requires_grad=True)
    ids, labels = torch.tensor([[9, CLOSE_ID]]), torch.full((1, 2), CLOSE_ID)
    loss = closing_loss(logprobs, ids, labels, CLOSE_ID).mean()
    loss.backward()
    assert loss.isfinite()
    assert logprobs.grad.isfinite().all()


# --- the trainer's loss against a reference by hand ------------------------------------------------------


def reference(model, rows, close_id: int, span_loss: str) -> torch.Tensor:
    """From full logits, each row by itself."""
    written, closing = [], []
    for ids, labels in rows:
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for t in range(len(ids) - 1):
            label = labels[t + 1]
            if label == IGNORED:
                continue
            if span_loss == "close" and label == close_id:
                p = logprobs[t, close_id].exp()
                closing.append(-torch.log(p if ids[t + 1] == close_id else 1 - p))
            else:
                assert label == ids[t + 1]
                written.append(-logprobs[t, label])
    total = torch.stack(written).mean()
    return total + torch.stack(closing).mean() if closing else total


def prepared(recipe: Recipe, rows, folder: Path):
    loaded = load_for_training(recipe.model, None, folder)
    config = sft_config(recipe, folder / "sft")
    data, _ = dataset(row_maker(recipe, loaded), rows, None, config.max_length)
    return loaded, data, sft_trainer(recipe, loaded, config, data, None, [])


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("span_loss", ["mask", "train", "close"])
def test_losses_and_gradients_equal_the_reference_packed_or_not(span_loss, packing, base, tmp_path):
    """All rows are in one packed sequence, so a leak from one to the next would show in its loss."""
    options = {"packing": True, "max_length": 512} if packing else {"max_length": 512}
    settings = recipe(base, span_loss, local_share=0.2, per_device_train_batch_size=6, **options)
    loaded, data, trainer = prepared(settings, annotated(6), tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(base)
    plain.load_state_dict(loaded.model.state_dict())
    rows = list(zip(data["input_ids"], data["labels"], strict=True))
    expected = reference(plain, rows, loaded.close_id, span_loss)
    expected.backward()

    (batch,) = trainer.get_train_dataloader()
    assert ("position_ids" in batch) is packing
    assert len(batch["input_ids"]) == (1 if packing else 6)
    count = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    by_name = dict(plain.named_parameters())
    for name, parameter in loaded.model.named_parameters():
        assert torch.allclose(parameter.grad, by_name[name].grad, atol=1e-5), name


def test_a_batch_in_parts_has_the_gradient_of_the_whole(base, tmp_path):
    gradients = []
    for size in (6, 2):
        settings = recipe(base, "close", per_device_train_batch_size=size)
        loaded, _, trainer = prepared(settings, annotated(6), tmp_path / str(size))
        batches = list(trainer.get_train_dataloader())
        count = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
        for batch in batches:
            trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count).backward()
        gradients.append([each.grad for each in loaded.model.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        assert torch.allclose(whole, parts, atol=1e-6)


@pytest.mark.parametrize("span_loss", ["mask", "train", "close"])
def test_what_is_not_learned_has_no_gradient_and_is_read_all_the_same(span_loss, base, tmp_path):
    settings = recipe(base, span_loss, max_length=512)
    loaded, data, trainer = prepared(settings, annotated(1, seed=3), tmp_path)
    ids, labels = torch.tensor(data["input_ids"]), torch.tensor(data["labels"])
    assert loaded.open_id in ids
    logits = loaded.model(input_ids=ids).logits.detach().requires_grad_()
    model = Recorded(logits)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    trainer.compute_loss(model, batch).backward()
    learned = labels[0, 1:] != IGNORED
    assert (logits.grad[0, :-1][~learned] == 0).all()
    assert (logits.grad[0, :-1][learned].abs().amax(-1) > 0).all()
    at = ids[0].tolist().index(loaded.open_id) + 1
    other = ids.clone()
    other[0, at] = (other[0, at] + 1) % 900
    changed = loaded.model(input_ids=other).logits
    assert (changed[0, -1] - loaded.model(input_ids=ids).logits[0, -1]).abs().max() > 1e-4


class Recorded(torch.nn.Module):
    """A model whose logits are given, with TRL's fused output on them."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self._logits = logits

    def forward(self, input_ids, labels, attention_mask, use_cache, fused_lm_head):
        targets = labels[:, 1:]
        mask = targets != IGNORED
        logprobs = self._logits[:, :-1].log_softmax(-1)
        chosen = logprobs.gather(-1, targets.clamp(min=0)[..., None])[..., 0].masked_fill(~mask, 0)
        zeros = torch.zeros_like(chosen)
        return Outputs(chosen, zeros, zeros, mask)


@dataclasses.dataclass
class Outputs:
    log_probs: torch.Tensor
    entropy: torch.Tensor
    is_top1: torch.Tensor
    label_mask: torch.Tensor


# --- whole runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span_loss", "adapter"),
    [
        ("close", None),
        ("mask", AdapterPart(rank=4)),
    ],
)
def test_a_run_learns_to_ask_and_leaves_a_model(span_loss, adapter, base, tmp_path):
    settings = recipe(base, span_loss, adapter, max_steps=40, learning_rate=1e-2, save_steps=100)
    run = RunFolder.open(tmp_path / "run", settings, ["test"])
    rows = annotated(24)
    folder = train_sft(settings, rows, run)
    assert folder == run.stage("sft").model
    done = run.stage("sft").result()
    assert (done["rows"], done["steps"]) == (24, 40)

    def log_p_open(model) -> float:
        ids = maker.row(next(row for row in rows if OPEN in row.text)).input_ids
        at = ids.index(maker.open_id)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:at]])).logits[0, -1]
        return float(F.log_softmax(logits, -1)[maker.open_id])

    after = load_for_inference(str(folder), "float32", tmp_path)
    maker = row_maker(settings, after)
    before = load_for_training(settings.model, None, tmp_path)
    assert log_p_open(after.model) > log_p_open(before.model) + 2
    head = after.model.get_output_embeddings().weight
    assert head is after.model.get_input_embeddings().weight
    lines = read_metrics(run.metrics_path, "sft")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 40
    assert losses[-1] < losses[0] / 2
    if span_loss == "close":
        closings = [line["loss/closing"] for line in lines if "loss/closing" in line]
        assert closings[-1] < closings[0]

    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert train_sft(settings, rows, run) == folder  # done: nothing is trained again
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_validation_rows_are_measured_and_long_ones_are_told_of(base, tmp_path):
    settings = recipe(base, "close", max_length=48, eval_strategy="steps", eval_steps=2)
    settings = dataclasses.replace(settings, data=DataPart("demo:train", max_trace_tokens=60))
    run = RunFolder.open(tmp_path / "run", settings, ["test"])
    long = AnnotatedRow("long", "Why?", "7", "so " * 200)
    told: list[str] = []
    train_sft(settings, [*annotated(8), long], run, report=told.append, validation=annotated(4, seed=1))
    sentence = told[0]
    assert "of 9 rows: 1 left out, longer than 60 tokens" in sentence
    assert "cut at 48 tokens" in sentence
    measured = [line for line in read_metrics(run.metrics_path, "sft") if "eval_loss" in line]
    assert [line["step"] for line in measured] == [2, 4]
    assert all(line["eval_p_close/end"] < 1 for line in measured)


def test_no_row_is_said_so(base, tmp_path):
    settings = recipe(base)
    run = RunFolder.open(tmp_path / "run", settings, ["test"])
    with pytest.raises(UsageError, match="no row to train on"):
        train_sft(settings, [], run)
    assert run.record()["stages"]["sft"]["status"] == "failed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rat": 1}, "no setting of TRL's SFTConfig: did you mean learning_rate"),
        ({"seed": 1}, "is set by seed"),
        ({"packing": True, "packing_strategy": "wrapped"}, "within spans"),
        ({"loss_type": "dft"}, "exclude each other"),
    ],
)
def test_settings_that_cannot_be_are_named(options, message, base):
    with pytest.raises(UsageError, match=message):
        check_settings(recipe(base, "close", **options))


def test_what_the_trainer_refuses_is_a_usage_error(base, tmp_path):
    with pytest.raises(UsageError, match=r"sft\.trainer"):
        sft_config(recipe(base, save_strategy="sometimes"), tmp_path)


# --- a run that was killed -------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
import torch
from sr_train.run import RunFolder
from sr_train.sft.training import train_sft
from tests.train.test_sft_training import At, annotated, killed_recipe

torch.set_num_threads(1)
settings = killed_recipe(Path(sys.argv[1]), None)
run = RunFolder.open(Path(sys.argv[2]), settings, ["test"])
train_sft(settings, annotated(20), run, callbacks=[At(9, lambda: os.kill(os.getpid(), 9))])
"""


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self._step, self._action = step, action

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self._step:
            self._action()


def killed_recipe(base: Path, adapter: AdapterPart | None) -> Recipe:
    return recipe(base, "close", adapter, 0.1, max_steps=12, save_steps=4, shuffle_dataset=True)


def check_same(whole: RunFolder, again: RunFolder) -> None:
    expected, found = (load_file(run.stage("sft").model / "model.safetensors") for run in (whole, again))
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert torch.equal(found[name], weights), name
    one, other = (
        [line["loss"] for line in read_metrics(run.metrics_path, "sft") if "loss" in line]
        for run in (whole, again)
    )
    assert one == other
    assert len(one) == 12


def test_a_killed_run_goes_on_to_the_same_weights(base, tmp_path):
    settings = killed_recipe(base, None)
    whole = RunFolder.open(tmp_path / "whole", settings, ["test"])
    train_sft(settings, annotated(20), whole)

    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(base), str(tmp_path / "killed")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    run = RunFolder.open(tmp_path / "killed", settings, ["test"])
    assert not run.stage("sft").is_done
    half = run.stage("sft").path / "checkpoint-10"  # as if it had been killed while it wrote one
    half.mkdir()
    (half / "trainer_state.json").write_text('{"global_step": 1')
    told: list[str] = []
    train_sft(settings, annotated(20), run, report=told.append)
    assert told[0] == "going on from checkpoint-8"
    check_same(whole, run)


def test_an_adapter_with_dropout_goes_on_to_the_same_weights(base, tmp_path):
    settings = killed_recipe(base, AdapterPart(rank=4, dropout=0.1))
    whole = RunFolder.open(tmp_path / "whole", settings, ["test"])
    train_sft(settings, annotated(20), whole)

    def stop() -> None:
        raise KeyboardInterrupt

    run = RunFolder.open(tmp_path / "stopped", settings, ["test"])
    with pytest.raises(KeyboardInterrupt):
        train_sft(settings, annotated(20), run, callbacks=[At(9, stop)])
    train_sft(settings, annotated(20), run)
    check_same(whole, run)


def test_a_run_that_was_stopped_before_it_saved_its_model_only_saves_it(base, tmp_path, monkeypatch):
    settings = killed_recipe(base, None)
    run = RunFolder.open(tmp_path / "run", settings, ["test"])
    with monkeypatch.context() as patched:
        patched.setattr("sr_train.sft.training.save_trained", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_sft(settings, annotated(20), run)
    last = load_file(run.stage("sft").path / "checkpoint-12" / "model.safetensors")
    saved = load_file(train_sft(settings, annotated(20), run) / "model.safetensors")
    assert all(torch.equal(saved[name], weights) for name, weights in last.items())


def test_a_run_can_be_started_again(base, tmp_path):
    settings = recipe(base)
    run = RunFolder.open(tmp_path / "run", settings, ["test"])
    folder = train_sft(settings, annotated(8), run)
    first = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    again = load_file(train_sft(settings, annotated(8), run, resume=False) / "model.safetensors")
    assert all(torch.equal(again[name], weights) for name, weights in first.items())
