"""Measuring with the built-in models: who cannot multiply finds products surprising, and is helped there."""

import json
import re
from dataclasses import replace

import pytest
import torch

from sr_edge.markers import Markers
from sr_edge.roles import Limits, Message
from sr_train.annotate.continuing import Continuing
from sr_train.annotate.measured import trials_of
from sr_train.annotate.models import Surprisals, measuring
from sr_train.annotate.pipeline import annotate
from sr_train.annotate.steps import split_steps
from sr_train.checkpoint import load_for_inference
from sr_train.problems import read_problems
from sr_train.recipe import load_recipe
from sr_train.rollout.vocabulary import Vocabulary

HARD = re.compile(r"\d [*/] \d+: ")
"""A product or a quotient that needs more than the table, which the base was never taught."""

PROBLEMS = read_problems("demo:train", limit=10)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def base(cache):
    return load_for_inference("demo:base", "float32", cache)


def recipe(**settings):
    settings = {
        "annotate.labeller": '"measured"', "annotate.continuations": 1, "annotate.target_share": 0.9,
        "annotate.surprisal_quantile": 0.6, "rollout.max_tokens": 256, "rollout.temperature": 0.0, **settings,
    }  # fmt: skip
    return load_recipe("demo", [f"{name}={value}" for name, value in settings.items()])


def test_surprisal_is_the_models_own(base):
    problem = PROBLEMS[0]
    found = Surprisals(base)(problem.question, problem.trace)
    prompt = list(Vocabulary(base.tokenizer, []).render([Message("user", problem.question)]).ids)
    ids = base.tokenizer.encode(problem.trace, add_special_tokens=False)
    for at, (_, nats) in enumerate(found):
        if at % 7 == 0:  # each from a pass of its own
            logits = base.model(input_ids=torch.tensor([prompt + ids[:at]])).logits[0, -1]
            assert nats == pytest.approx(-logits.log_softmax(-1)[ids[at]].item(), abs=1e-3)
    starts = [start for start, _ in found]
    assert starts == sorted(starts)
    assert (len(found), starts[0]) == (len(ids), 0)


def test_a_long_trace_is_read_in_windows_and_no_token_is_missing(base):
    problem = PROBLEMS[3]
    whole, parts = Surprisals(base), Surprisals(base, window=64)
    found = parts(problem.question, problem.trace)
    assert [start for start, _ in found] == [start for start, _ in whole(problem.question, problem.trace)]
    assert all(nats >= 0 for _, nats in found)


def test_a_trial_goes_on_from_its_place(cache):
    settings = recipe()
    with measuring(settings, cache, offline=True) as models:
        for problem in PROBLEMS[:2]:
            steps = split_steps(problem.trace)
            trials = [
                trial
                for index, step in enumerate(steps)
                if step.is_markable
                for trial in trials_of(problem, steps, index, n=1, seed=0, number=0)
            ]
            answers = models.continue_(trials)
            alone = [answer for trial, answer in zip(trials, answers, strict=True) if not trial.is_helped]
            assert models.continue_([t for t in trials if not t.is_helped]) == alone  # whoever is beside it
            for trial, answer in zip(trials, answers, strict=True):
                assert answer.endswith("}.")
                assert answer.count("</think>") == 1
                is_hard = bool(HARD.search(trial.step))
                if is_hard and trial.is_helped:
                    assert answer.startswith(trial.step)  # the large model can do it
                elif is_hard:
                    assert not answer.startswith(trial.step)


def test_without_a_large_model_the_traces_own_step_is_the_help(base):
    problem = next(p for p in PROBLEMS if HARD.search(p.trace))
    steps = split_steps(problem.trace)
    index = next(i for i, step in enumerate(steps) if HARD.search(problem.trace[step.start : step.end]))
    markers = Markers("token", (base.open_id,), (base.close_id,))
    continuing = Continuing(base, markers, None, limits=Limits(256), temperature=0.0, max_rows=4)
    alone, helped = continuing(trials_of(problem, steps, index, n=1, seed=0, number=0))
    own = problem.trace[steps[index].start : steps[index].end]
    assert helped.startswith(own)
    assert not alone.startswith(own)


def test_think_tag_that_the_template_writes_already_is_not_read_twice(base):
    """Sources disagree on it; the built-in template opens the thought itself."""
    problem = next(p for p in PROBLEMS if HARD.search(p.trace))
    tagged = replace(problem, trace=f"<think>\n{problem.trace}")
    num_more = len(tagged.trace) - len(problem.trace)
    surprisals = Surprisals(base)
    plain = surprisals(problem.question, problem.trace)
    assert surprisals(tagged.question, tagged.trace) == [(at + num_more, nats) for at, nats in plain]

    markers = Markers("token", (base.open_id,), (base.close_id,))
    continuing = Continuing(base, markers, None, limits=Limits(256), temperature=0.0, max_rows=4)
    answers = []
    for each in (problem, tagged):
        steps = split_steps(each.trace)
        index = next(i for i, step in enumerate(steps) if HARD.search(each.trace[step.start : step.end]))
        answers.append(continuing(trials_of(each, steps, index, n=1, seed=0, number=0)))
    assert answers[0] == answers[1]


def test_hard_steps_are_found(tmp_path):
    path = annotate(recipe(), PROBLEMS, tmp_path / "a", environ={"SR_EDGE_HOME": str(tmp_path / "home")})
    hits = misses = others = 0
    for line in path.read_text("utf-8").splitlines():
        text = json.loads(line)["text"]
        marked = "".join(re.findall(r"<bigmodel>(.*?)</bigmodel>", text, re.DOTALL))
        num_hard = len(HARD.findall(text))
        num_marked_hard = len(HARD.findall(marked))
        hits, misses = hits + num_marked_hard, misses + num_hard - num_marked_hard
        others += marked.count("\n") - num_marked_hard
    assert misses == 0
    assert hits > others  # it misreads a question now and then: help helps there too
