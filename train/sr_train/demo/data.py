"""Training rows as token ids with one weight a target: stories, drills, and stories with spans marked.

No torch here. Every row is drawn from a generator that the caller seeds, so a batch is a function of its
seed, and a run that resumes sees what it would have seen.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sr_edge.suites.demo import (
    HARD_KINDS,
    MAX_VALUE,
    Kind,
    Problem,
    add_working,
    divide_working,
    multiply_working,
    problem,
    subtract_working,
    training_rng,
)
from sr_train.demo.tokenizer import END_THINK, DemoTokenizer, ending_text, prompt_text

Row = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Mix:
    """What the rows are from a step on; the rest of them are whole stories."""

    first_step: int
    drills: float  # the share of bare computations
    reading: float  # the share of stories that are quoted and not computed


@dataclass(frozen=True)
class Syllabus:
    """What a model is taught in pre-training, and in which order."""

    teaches_hard: bool  # whether it sees the workings of the hard kinds, in stories and in drills
    mixes: tuple[Mix, ...]  # the first one from step 0
    line_start_weight: float = 1.0  # of a line's first token in a story: which sentence comes next


@dataclass(frozen=True)
class Batch:
    """Right-padded rows. weights[r][t] is the weight of predicting ids[r][t + 1] from what precedes it."""

    ids: list[list[int]]
    weights: list[list[float]]


@dataclass(frozen=True)
class Layout:
    """A problem's token ids, and where each step's working lies: span k is ids[start:end]."""

    ids: list[int]
    num_prompt: int
    spans: tuple[tuple[int, int], ...]
    kinds: tuple[Kind, ...]


def layout(tokenizer: DemoTokenizer, problem: Problem) -> Layout:
    """Each piece is tokenised by itself: the joined ids are those of the joined text (tested)."""
    ids = tokenizer.encode(prompt_text(problem.question))
    num_prompt = len(ids)
    spans = []
    text = f"{problem.given}\n" if problem.given else ""
    for step in problem.steps:
        ids += tokenizer.encode(text + step.lead)
        span = tokenizer.encode(step.span)
        spans.append((len(ids), len(ids) + len(span)))
        ids += span
        text = ".\n"
    ids += tokenizer.encode(text + ending_text(problem.answer))
    return Layout(ids, num_prompt, tuple(spans), tuple(step.kind for step in problem.steps))


def story_row(tokenizer: DemoTokenizer, problem: Problem, syllabus: Syllabus) -> Row:
    """The loss lies on all that the model writes, except hard workings that it is not to be taught."""
    laid = layout(tokenizer, problem)
    weights = [0.0] * (laid.num_prompt - 1) + [1.0] * (len(laid.ids) - laid.num_prompt)
    if not syllabus.teaches_hard:
        for (start, end), kind in zip(laid.spans, laid.kinds, strict=True):
            if kind in HARD_KINDS:
                weights[start - 1 : end - 1] = [0.0] * (end - start)
    if syllabus.line_start_weight != 1:
        for t in range(laid.num_prompt - 1, len(weights)):
            if tokenizer.decode([laid.ids[t]]).endswith("\n"):
                weights[t] *= syllabus.line_start_weight
    return laid.ids, weights


def drill_row(tokenizer: DemoTokenizer, syllabus: Syllabus, rng: random.Random) -> Row:
    """Bare computations, one a line; the loss lies on the workings, since the expressions are drawn."""
    ids: list[int] = []
    weights: list[float] = []
    kinds: tuple[Kind, ...] = ("add", "add", "subtract", "subtract", "subtract", "table")
    if syllabus.teaches_hard:
        kinds += ("multiply", "multiply", "divide", "divide")
    length = rng.randint(60, 220)
    while len(ids) < length:
        expression, working = _drill(rng.choice(kinds), rng)
        asked = tokenizer.encode(f" {expression}")
        written = tokenizer.encode(f"{':' if '=' in working else ' ='} {working}.\n")
        ids += asked + written
        weights += [0.0] * len(asked) + [1.0] * len(written)
    return ids, weights[1:]


def reading_row(tokenizer: DemoTokenizer, rng: random.Random) -> Row:
    """Sentences of several stories, quoted in their order and never computed with.

    A story has few places that tell one name from another and one sentence from the next; here they are
    dense. Each line then breaks off, which has no weight.
    """
    stories = [re.findall(r"[^.?]+[.?]", problem(rng).question) for _ in range(3)]
    told = [sentence.strip() for story in stories for sentence in story[:-1]]
    sentences = rng.sample(told, min(len(told), rng.randint(3, 7)))
    ids = tokenizer.encode(prompt_text(" ".join([*sentences, stories[0][-1].strip()])))
    weights = [0.0] * (len(ids) - 1)
    for sentence in sentences:
        quoted = tokenizer.encode(sentence[:-1])
        broken_off = tokenizer.encode(", so.\n")
        ids += quoted + broken_off
        weights += [1.0] * len(quoted) + [0.0] * len(broken_off)
    ids.append(tokenizer.id(END_THINK))
    weights.append(1.0)
    return ids, weights


def pretraining_batches(
    tokenizer: DemoTokenizer, syllabus: Syllabus, seed: int, stage: str, num_rows: int
) -> Callable[[int], Batch]:
    """The batch of each training step. Rows of alike length meet, to waste little on padding."""
    block_size = 8
    cached: dict[int, list[Batch]] = {}

    def batch(step: int) -> Batch:
        block = step // block_size
        if block not in cached:
            cached.clear()
            rng = training_rng(seed, f"{stage} {block}")
            mix = [mix for mix in syllabus.mixes if mix.first_step <= block * block_size][-1]
            rows = []
            for _ in range(num_rows * block_size):
                draw = rng.random()
                if draw < mix.drills:
                    rows.append(drill_row(tokenizer, syllabus, rng))
                elif draw < mix.drills + mix.reading:
                    rows.append(reading_row(tokenizer, rng))
                else:
                    rows.append(story_row(tokenizer, problem(rng), syllabus))
            rows.sort(key=lambda row: len(row[0]))
            starts = range(0, len(rows), num_rows)
            drawn = [pad(rows[start : start + num_rows], tokenizer.id("<|endoftext|>")) for start in starts]
            rng.shuffle(drawn)
            cached[block] = drawn
        return cached[block][step % block_size]

    return batch


def pad(rows: Sequence[Row], pad_id: int) -> Batch:
    longest = max(len(ids) for ids, _ in rows)
    return Batch(
        [ids + [pad_id] * (longest - len(ids)) for ids, _ in rows],
        [weights + [0.0] * (longest - 1 - len(weights)) for _, weights in rows],
    )


def _drill(kind: Kind, rng: random.Random) -> tuple[str, str]:
    """An expression and its working. Long carries are drawn more often than chance would have them."""
    if kind == "table":
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        return f"{a} * {b}", multiply_working(a, b)
    if kind == "multiply":
        a = rng.randint(2, 9) * 10 if rng.random() < 0.15 else rng.randint(10, 99)
        b = rng.randint(2, 9)
        return f"{a} * {b}", multiply_working(a, b)
    if kind == "divide":
        b, quotient = rng.randint(2, 9), rng.randint(2, 99)
        return f"{b * quotient} / {b}", divide_working(b * quotient, b)
    if rng.random() < 0.15:  # about a full hundred, where a carry or a borrow runs on
        a = rng.randint(1, 9) * 100 + rng.choice((-1, 0, 0, 1)) * rng.randint(0, 9)
    else:
        a = rng.randint(1, 400) if rng.random() < 0.7 else rng.randint(1, MAX_VALUE)
    draw = rng.random()
    b = rng.randint(1, 9) if draw < 0.35 else rng.randint(10, 99) if draw < 0.9 else rng.randint(100, 500)
    if kind == "add":
        a = min(a, MAX_VALUE - b)
        return f"{a} + {b}", add_working(a, b)
    a = max(a, b + 1)
    return f"{a} - {b}", subtract_working(a, b)
