"""Marks on the demo task: measured failures, and the opinions of a judge that is wrong in a known share."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sr_edge.extract import last_boxed
from sr_edge.markers import CLOSE, OPEN, strip_markers
from sr_edge.suites.demo import HARD_KINDS, solution_text, wording
from sr_train.demo.checkpoint import demo_checkpoint
from sr_train.demo.marking import (
    MarkedProblem,
    by_failures,
    by_opinion,
    share_wrong,
    training_problems,
)
from sr_train.demo.tokenizer import DemoTokenizer
from sr_train.demo.workings import split_workings


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[MarkedProblem]:
    folder = demo_checkpoint("base", tmp_path_factory.mktemp("base") / "base")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def logits(ids: Tensor) -> Tensor:
        found: Tensor = model(ids).logits
        return found

    return by_failures(logits, DemoTokenizer.load(folder / "tokenizer.json"), training_problems(0, 300))


def test_the_base_model_fails_at_what_it_was_not_taught(measured: list[MarkedProblem]) -> None:
    steps = [pair for each in measured for pair in zip(each.problem.steps, each.is_marked, strict=True)]
    agreed = sum((step.kind in HARD_KINDS) == marked for step, marked in steps)
    assert agreed / len(steps) > 0.98


def test_marks_stand_around_the_workings_and_change_nothing(measured: list[MarkedProblem]) -> None:
    for each in measured:
        assert strip_markers(each.text).startswith(solution_text(each.problem))
        assert last_boxed(each.text) == each.problem.answer
        spans = [part.partition(CLOSE)[0] for part in each.text.split(OPEN)[1:]]
        steps = zip(each.problem.steps, each.is_marked, strict=True)
        assert spans == [step.span for step, marked in steps if marked]


@pytest.mark.parametrize("error", [0.0, 0.1, 0.3])
def test_a_judge_is_wrong_as_often_as_said(measured: list[MarkedProblem], error: float) -> None:
    judged = by_opinion(measured, error, seed=1)
    assert share_wrong(judged, measured) == pytest.approx(error, abs=0.05)
    assert by_opinion(measured, error, seed=1) == judged
    if error:
        assert by_opinion(measured, error, seed=2) != judged


def test_a_judge_is_wrong_about_wordings_not_by_chance_alone(measured: list[MarkedProblem]) -> None:
    wrong: dict[str, list[bool]] = {}
    for one, other in zip(by_opinion(measured, 0.3, seed=1), measured, strict=True):
        for step, a, b in zip(one.problem.steps, one.is_marked, other.is_marked, strict=True):
            if not b:
                wrong.setdefault(wording(step), []).append(a != b)
    rates = [sum(each) / len(each) for each in wrong.values() if len(each) >= 20]
    assert min(rates) < 0.2
    assert max(rates) > 0.7


def test_workings_are_the_steps_of_a_solution(measured: list[MarkedProblem]) -> None:
    for each in measured:
        trace = strip_markers(each.text)
        steps = split_workings(trace)
        assert "".join(trace[step.start : step.end] for step in steps) == trace
        workings = [trace[step.start : step.end] for step in steps if step.is_markable]
        assert workings == [step.span for step in each.problem.steps]


def test_what_a_judge_misses_is_read_and_not_learned(measured: list[MarkedProblem]) -> None:
    missed = 0
    for each, truth in zip(by_opinion(measured, 0.3, seed=1), measured, strict=True):
        steps = zip(each.problem.steps, each.is_marked, truth.is_marked, strict=True)
        expected = [step.span for step, marked, failed in steps if failed and not marked]
        assert [each.text[start:end] for start, end in each.unlearned] == expected
        missed += len(expected)
    assert missed > 20
    assert not any(each.unlearned for each in measured)
