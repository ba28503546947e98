"""The tokenizer and the rows: pieces join, digits stand alone, and weights lie where they should."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge.suites.demo import HARD_KINDS, problem, problems, solution_text, training_rng

pytest.importorskip("tokenizers")

from sr_train.demo.data import (
    Mix,
    Syllabus,
    drill_row,
    layout,
    pretraining_batches,
    reading_row,
    story_row,
)
from sr_train.demo.tokenizer import (
    ADDED_TOKENS,
    CLOSE,
    OPEN,
    DemoTokenizer,
    ending_text,
    prompt_text,
    train_tokenizer,
)

TAUGHT_ALL = Syllabus(teaches_hard=True, mixes=(Mix(0, 0.5, 0.0),))
TAUGHT_EASY = Syllabus(teaches_hard=False, mixes=(Mix(0, 0.5, 0.0),))


@pytest.fixture(scope="module")
def tokenizer() -> DemoTokenizer:
    return train_tokenizer(seed=0, num_problems=500)


def test_prompt_span_and_rest_tokenised_apart_join_as_the_whole_text_does(tokenizer: DemoTokenizer) -> None:
    for asked in problems(11, 2_000):
        text = prompt_text(asked.question) + solution_text(asked) + ending_text(asked.answer)
        assert layout(tokenizer, asked).ids == tokenizer.encode(text)


def test_a_layout_finds_the_workings(tokenizer: DemoTokenizer) -> None:
    for asked in problems(12, 200):
        laid = layout(tokenizer, asked)
        texts = [tokenizer.decode(laid.ids[start:end]) for start, end in laid.spans]
        assert texts == [step.span for step in asked.steps]


@given(st.text())
def test_any_text_survives_a_round_trip(tokenizer: DemoTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_tokens_of_their_own(tokenizer: DemoTokenizer) -> None:
    assert [tokenizer.decode([each]) for each in tokenizer.encode(" 112.\n")] == [" ", "1", "1", "2", ".\n"]


def test_each_marker_is_one_token_and_comes_last_in_the_vocabulary(tokenizer: DemoTokenizer) -> None:
    assert tokenizer.encode(OPEN) == [tokenizer.id(OPEN)]
    assert tokenizer.encode(CLOSE) == [tokenizer.id(CLOSE)]
    assert tuple(tokenizer.vocabulary()[-len(ADDED_TOKENS) :]) == ADDED_TOKENS
    assert tokenizer.merges()


def test_the_small_model_is_not_taught_the_hard_workings(tokenizer: DemoTokenizer) -> None:
    for asked in problems(13, 100):
        laid = layout(tokenizer, asked)
        _, weights = story_row(tokenizer, asked, TAUGHT_EASY)
        for (start, end), kind in zip(laid.spans, laid.kinds, strict=True):
            expected = 0.0 if kind in HARD_KINDS else 1.0
            assert set(weights[start - 1 : end - 1]) == {expected}
            assert weights[end - 1] == 1.0, "the full stop after the working is written by the small model"
        assert set(weights[: laid.num_prompt - 1]) == {0.0}


def test_drills_of_the_small_model_hold_no_division(tokenizer: DemoTokenizer) -> None:
    rng = random.Random(6)
    easy = "".join(tokenizer.decode(drill_row(tokenizer, TAUGHT_EASY, rng)[0]) for _ in range(50))
    taught_all = "".join(tokenizer.decode(drill_row(tokenizer, TAUGHT_ALL, rng)[0]) for _ in range(50))
    assert "/" not in easy
    assert "/" in taught_all


def test_a_reading_row_quotes_its_sentences_in_order(tokenizer: DemoTokenizer) -> None:
    ids, weights = reading_row(tokenizer, random.Random(4))
    asked, written = tokenizer.decode(ids).split("<think>\n")
    quotes = [line.removesuffix(", so.") for line in written.removesuffix("</think>").splitlines()]
    assert len(quotes) >= 3
    assert " ".join(f"{quote}." for quote in quotes) in asked
    weighed = tokenizer.decode(i for i, weight in zip(ids[1:], weights, strict=True) if weight)
    assert weighed == "".join(quotes) + "</think>"


def test_drills_give_way_to_stories(tokenizer: DemoTokenizer) -> None:
    drills_first = Syllabus(teaches_hard=True, mixes=(Mix(0, 1.0, 0.0), Mix(8, 0.0, 0.5)))
    batch_of = pretraining_batches(tokenizer, drills_first, 3, "pretrain big", num_rows=2)
    think = tokenizer.id("<think>")
    assert not any(think in row for row in batch_of(7).ids)
    assert all(think in row for row in batch_of(8).ids)


def test_a_batch_is_a_function_of_its_step(tokenizer: DemoTokenizer) -> None:
    forwards = pretraining_batches(tokenizer, TAUGHT_ALL, 3, "pretrain big", num_rows=2)
    afresh = pretraining_batches(tokenizer, TAUGHT_ALL, 3, "pretrain big", num_rows=2)
    assert [forwards(step) for step in range(12)][9:] == [afresh(step) for step in range(9, 12)]


def test_rows_and_weights_have_the_same_shape(tokenizer: DemoTokenizer) -> None:
    batch = pretraining_batches(tokenizer, TAUGHT_EASY, 3, "pretrain small", num_rows=4)(0)
    assert len({len(row) for row in batch.ids}) == 1
    assert all(len(weights) == len(ids) - 1 for ids, weights in zip(batch.ids, batch.weights, strict=True))


def test_a_training_problem_fits_the_context_with_room(tokenizer: DemoTokenizer) -> None:
    rng = training_rng(0, "test")
    assert max(len(layout(tokenizer, problem(rng)).ids) for _ in range(1_000)) < 512
