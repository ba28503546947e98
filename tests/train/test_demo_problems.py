"""The word problems themselves: what every one of them promises, whatever the seed."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge.suites.demo import (
    HARD_KINDS,
    MAX_VALUE,
    Problem,
    _Story,
    is_correct,
    problem,
    problems,
    solution_text,
    training_rng,
    unknown_words,
)

SIGNS = {"add": "+", "subtract": "-", "table": "*", "multiply": "*", "divide": "/"}
seeds = st.integers(0, 2**32)


def value_of(expression: str) -> int:
    """The value of one `a sign b`, computed here and not by the code under test."""
    a, sign, b = re.fullmatch(r"(\d+) ([-+*/]) (\d+)", expression).groups()
    if sign == "/":
        assert int(a) % int(b) == 0, expression
        return int(a) // int(b)
    return {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]


def drawn(seed: int) -> Problem:
    return problem(random.Random(seed))


@given(seeds)
def test_every_equation_holds_and_leads_to_the_answer(seed: int) -> None:
    asked = drawn(seed)
    for step in asked.steps:
        assert value_of(step.expression) == step.result
        assert step.expression.split()[1] == SIGNS[step.kind]
        *_, last = re.findall(r"\d+", step.working)
        assert int(last) == step.result
        equations = re.findall(r"([^,=]+) = (\d+)", step.working)
        assert all(value_of(left.strip()) == int(right) for left, right in equations)
    assert asked.answer == str(asked.steps[-1].result)


@given(seeds)
def test_additions_and_subtractions_go_on_from_the_result_before(seed: int) -> None:
    for step in drawn(seed).steps:
        if step.kind in ("add", "subtract") and "=" in step.working:
            starts = re.findall(r"(\d+) [-+]", step.working)
            results = re.findall(r"= (\d+)", step.working)
            assert starts == [step.expression.split()[0], *results[:-1]]


@given(seeds)
def test_numbers_stay_within_range_and_steps_within_two_to_five(seed: int) -> None:
    asked = drawn(seed)
    assert 2 <= len(asked.steps) <= 5
    numbers = re.findall(r"\d+", asked.question + solution_text(asked))
    assert all(0 <= int(number) <= MAX_VALUE for number in numbers)
    assert all(step.result >= 1 for step in asked.steps)


@given(seeds)
def test_every_sentence_but_the_last_is_quoted(seed: int) -> None:
    asked = drawn(seed)
    told = re.findall(r"[^.?]+[.?]", asked.question)
    text = solution_text(asked)
    assert all(sentence.strip(" .") in text for sentence in told[:-1])


@given(seeds)
def test_the_lexicon_covers_every_question(seed: int) -> None:
    assert unknown_words(drawn(seed).question) == []


def test_what_the_task_does_not_know_is_named() -> None:
    question = "How many 1,000 coins, dragons & dragons? Ida has 3.5 or 1200, not 999."
    assert unknown_words(question) == ["1,000", "dragons", "&", "3.5", "or", "1200", "not"]


@pytest.mark.parametrize("boxed", ["20", "", "-205", "205.0", None])
def test_another_box_or_none_is_wrong(boxed: str | None) -> None:
    assert not is_correct(Problem("How many?", "205", ()), boxed)


@pytest.mark.parametrize("boxed", ["205", " 205 "])
def test_the_boxed_answer_is_right(boxed: str) -> None:
    assert is_correct(Problem("How many?", "205", ()), boxed)


def test_a_seed_gives_the_same_problems_and_more_of_them_begin_alike() -> None:
    assert problems(7, 5) == problems(7, 8)[:5]
    assert problems(7, 5) != problems(8, 5)


def test_training_never_draws_an_evaluation_problem() -> None:
    rng = training_rng(1, "sft")
    trained = {problem(rng).question for _ in range(2_000)}
    evaluated = {each.question for each in problems(1, 2_000)}
    assert not trained & evaluated


def test_a_total_at_the_limit_goes_down_or_stays() -> None:
    for seed in range(200):
        story = _Story(random.Random(seed), hard_rate=1.0)
        story._total = MAX_VALUE
        story.go_on(3)
        assert story._total <= MAX_VALUE


def test_hard_steps_are_in_about_half_of_the_problems() -> None:
    asked = problems(3, 2_000)
    hard = sum(any(step.kind in HARD_KINDS for step in each.steps) for each in asked) / len(asked)
    assert 0.5 < hard < 0.65
