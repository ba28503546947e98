"""The loss of GRPO on a real small model: it lies on what the small model sampled, and nowhere else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.convert.making import make_checkpoint
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from sr_edge.events import Event, Finished, LocalToken, SpanClosed, SpanDelta, SpanOpened, Started
from sr_train.checkpoint import Loaded, load_for_training
from sr_train.grpo.training import grpo_config, grpo_trainer
from sr_train.problems import Problem
from sr_train.recipe import DataPart, GrpoPart, LogPart, ModelPart, Recipe, RewardPart, RolloutPart
from sr_train.rollout.requests import Rollout, RolloutRequest, rollout_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PROBLEMS = {f"p{n}": Problem(f"p{n}", f"How many are {n}?", str(n)) for n in range(2)}
TEMPERATURE = 0.7


class RandomEngine:
    """Rollouts of random ids, as random event streams tell them: nothing wrote them."""

    def __init__(self, num_ids: int, open_id: int, close_id: int, end_id: int) -> None:
        self._ids = [id for id in range(5, num_ids) if id not in (open_id, close_id, end_id)]
        self._open_id, self._close_id, self._end_id = open_id, close_id, end_id

    def run(
        self, requests: Sequence[RolloutRequest], done: Callable[[int], None] = lambda index: None
    ) -> list[Rollout]:
        return [rollout_of(request, self._events(request)) for request in requests]

    def _events(self, request: RolloutRequest) -> Iterator[Event]:
        rng = random.Random(repr(request.key))
        gold = request.messages[0].content.split()[3].rstrip("?")
        yield Started(tuple(rng.choices(self._ids, k=3 + request.key[-1] // 4)), "random")
        local = remote = span = 0
        for _ in range(rng.randint(2, 4)):
            for id in rng.choices(self._ids, k=rng.randint(0, 4)):
                local += 1
                yield LocalToken(id, "a", -1.0)
            if rng.random() < 0.7:
                span += 1
                ids = rng.choices(self._ids, k=rng.randint(1, 4))
                local += 1
                remote += len(ids)
                yield SpanOpened(span, "marker", 0.5, "big", sent_tokens=9)
                yield LocalToken(self._open_id, "", -1.0)
                yield SpanDelta(span, "x" * len(ids))
                yield SpanClosed(span, (*ids, self._close_id), "stop", len(ids))
        yield LocalToken(self._ids[0], rf"\boxed{{{gold if rng.random() < 0.5 else 99}}}", -1.0)
        yield LocalToken(self._end_id, "", -1.0)
        yield Finished("stop", 3, local + 2, remote, 1.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), markers="token", hidden=32, inner=48, tied=True)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def made(checkpoint: Path, folder: Path, **table: object) -> tuple[GRPOTrainer, Loaded]:
    recipe = Recipe(
        name="tiny",
        model=ModelPart(str(checkpoint), dtype="float32"),
        data=DataPart("demo:train"),
        rollout=RolloutPart(temperature=TEMPERATURE, max_tokens=64),
        reward=RewardPart(unit="share"),
        grpo=GrpoPart(num_prompts=2, num_generations=4, trainer={"max_steps": 1, **table}),
        log=LogPart(to=()),
    )
    loaded = load_for_training(recipe.model, None, folder / "cache")
    end_id = loaded.tokenizer.eos_token_id
    engine = RandomEngine(loaded.tokenizer.vocab_size, loaded.open_id, loaded.close_id, end_id)
    trainer, _ = grpo_trainer(
        recipe, loaded, PROBLEMS, grpo_config(recipe, folder), lambda recipe, loaded, trainer: engine
    )
    trainer.current_gradient_accumulation_steps = 1  # the loop that we step around sets it
    trainer.model.train()
    return trainer, loaded


def batch(trainer: GRPOTrainer) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = trainer._generate_and_score_completions(
        [{"prompt": f"p{number}"} for number in range(2) for _ in range(4)]
    )
    return inputs


def loss_mask(inputs: dict[str, Tensor]) -> Tensor:
    return (inputs["completion_mask"] * inputs["tool_mask"]).bool()  # (B, C)


def gradients(trainer: GRPOTrainer, inputs: dict[str, Tensor]) -> tuple[float, Tensor, dict[str, Tensor]]:
    """The loss, its gradient at what the head reads, (B, P + C, H), and at all parameters."""
    seen: list[Tensor] = []

    def keep(module: torch.nn.Module, given: Any, hidden: Tensor) -> None:
        hidden.retain_grad()
        seen.append(hidden)

    trainer.model.zero_grad()
    hook = trainer.model.model.norm.register_forward_hook(keep)
    try:
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
    finally:
        hook.remove()
    (hidden,) = seen
    assert hidden.grad is not None
    parameters = {
        name: parameter.grad.clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None
    }
    return loss.item(), hidden.grad, parameters


def test_gradient_at_the_logits_is_zero_where_masked_and_the_hand_reference_elsewhere(checkpoint, tmp_path):
    trainer, _ = made(checkpoint, tmp_path)
    inputs = batch(trainer)
    mask = loss_mask(inputs)
    loss, at_hidden, at_parameters = gradients(trainer, inputs)
    num_prompt = inputs["prompt_ids"].shape[1]

    # by hand: a row at a time, without padding, from the logits
    trainer.model.zero_grad()
    num_learned = mask.sum()
    reference = torch.zeros(())
    head = trainer.model.get_output_embeddings().weight
    expected = torch.zeros_like(at_hidden)
    for row in range(len(mask)):
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        written = inputs["completion_mask"][row].bool()
        completion = inputs["completion_ids"][row][written]
        logits = trainer.model(torch.cat([prompt, completion])[None]).logits[0]
        logits = logits[len(prompt) - 1 : -1] / TEMPERATURE  # (C, V)
        logprobs = logits.log_softmax(-1)
        chosen = logprobs.gather(1, completion[:, None])[:, 0]
        advantage = inputs["advantages"][row]
        own = mask[row][written]
        reference = reference - (chosen * own).sum() * advantage / num_learned
        onehot = torch.nn.functional.one_hot(completion, logits.shape[1])
        at_logits = (logprobs.exp() - onehot) * own[:, None] * advantage / num_learned / TEMPERATURE
        at = slice(num_prompt - 1, num_prompt - 1 + len(completion))
        expected[row, at] = (at_logits @ head).detach()
    reference.backward()

    predicts = torch.zeros(at_hidden.shape[:2], dtype=torch.bool)
    predicts[:, num_prompt - 1 : -1] = mask & (inputs["advantages"] != 0)[:, None]
    assert (inputs["tool_mask"] == 0).sum() > 5
    assert predicts.sum() > 20
    assert torch.all(at_hidden[~predicts] == 0)  # exactly
    assert torch.all(at_hidden[predicts].abs().sum(-1) > 0)
    torch.testing.assert_close(at_hidden, expected, rtol=1e-4, atol=1e-7)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(at_parameters[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert loss == pytest.approx(
        -(inputs["advantages"][:, None] * mask).sum().item() / num_learned.item(), abs=1e-6
    )


def test_spans_are_attended_to(checkpoint, tmp_path):
    """Another token in a span changes nothing at its own place, and what follows is less or more likely."""
    trainer, _ = made(checkpoint, tmp_path)
    inputs = batch(trainer)
    mask = loss_mask(inputs)
    remote = (inputs["completion_mask"].bool() & ~mask).nonzero()
    row, at = next(
        (r, t) for r, t in remote.tolist() if mask[r, t + 1 :].any() and inputs["advantages"][r] != 0
    )
    _, before, _ = gradients(trainer, inputs)
    changed = dict(inputs, completion_ids=inputs["completion_ids"].clone())
    changed["completion_ids"][row, at] += 1
    _, after, _ = gradients(trainer, changed)
    num_prompt = inputs["prompt_ids"].shape[1]
    same = num_prompt + at  # hidden states up to here have not read it
    assert torch.equal(after[row, :same], before[row, :same])
    later = torch.zeros_like(mask[row])
    later[at + 1 :] = mask[row, at + 1 :]
    moved = (after[row] - before[row]).abs().sum(-1)[num_prompt - 1 : -1]
    assert torch.all(moved[later] > 0)
    others = [r for r in range(len(mask)) if r != row]
    torch.testing.assert_close(after[others], before[others])


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "dr_grpo"])
def test_kl_and_clipped_ratios_ignore_spans(checkpoint, tmp_path, loss_type):
    trainer, _ = made(checkpoint, tmp_path, beta=0.1, loss_type=loss_type)
    inputs = batch(trainer)
    mask = loss_mask(inputs)
    with torch.no_grad():
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attended = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        logprobs, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, attended, mask.shape[1]
        )
    generator = torch.Generator().manual_seed(0)
    inputs["old_per_token_logps"] = logprobs + 0.3 * torch.randn(logprobs.shape, generator=generator)

    def outcome(inputs: dict[str, Tensor]) -> tuple[float, dict[str, float], dict[str, Tensor]]:
        loss, _, at_parameters = gradients(trainer, inputs)
        metrics = trainer._metrics["train"]
        figures = {
            name: metrics[name][-1] for name in metrics if name == "kl" or name.startswith("clip_ratio")
        }
        assert {"kl", "clip_ratio/region_mean", "clip_ratio/high_max"} <= set(figures)
        return loss, figures, at_parameters

    loss, figures, at_parameters = outcome(inputs)
    assert figures["clip_ratio/region_mean"] > 0
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        elsewhere = dict(inputs, **{name: inputs[name] + 0.5 * ~mask})
        same_loss, same_figures, same_gradients = outcome(elsewhere)
        assert same_loss == loss
        assert same_figures == figures
        assert all(torch.equal(same_gradients[key], at_parameters[key]) for key in at_parameters)
        other_loss, _, _ = outcome(dict(inputs, **{name: inputs[name] + 0.5 * mask}))
        assert other_loss != loss


def test_decisions_alone_can_be_learned(checkpoint, tmp_path):
    trainer, loaded = made(checkpoint, tmp_path)
    trainer.rollout_func.rollouts._grpo = GrpoPart(num_generations=4, decisions_only=True)
    inputs = batch(trainer)
    mask = loss_mask(inputs)
    asked = (inputs["completion_ids"] == loaded.open_id) & inputs["completion_mask"].bool()
    assert mask[asked].all()
    assert 0 < mask.sum() < inputs["completion_mask"].sum() / 2
