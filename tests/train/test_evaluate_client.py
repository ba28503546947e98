"""The client as an engine, on the built-in pair: what it writes is what `sr-edge` writes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sr_edge.evaluate import answers
from sr_edge.passport import demo_paths
from sr_edge.remote.local_gguf import LocalGGUF
from sr_edge.roles import Limits
from sr_edge.session import Session, SessionSettings
from sr_edge.suites import demo
from sr_train.evaluate.arms import Arm
from sr_train.evaluate.client import ClientEngine
from sr_train.evaluate.records import record_of
from sr_train.latency import LatencyModel
from sr_train.problems import Problem, read_problems
from sr_train.recipe import LatencyPart
from sr_train.rollout.requests import Rollout, RolloutRequest

NUM = 6


@pytest.fixture(scope="module")
def big() -> Iterator[LocalGGUF]:
    with LocalGGUF(demo_paths().big) as model:
        yield model


@pytest.fixture(scope="module")
def engine(big: LocalGGUF) -> Iterator[ClientEngine]:
    with ClientEngine(demo_paths().small, big, limits=Limits(512), max_spans=12, threads=1) as client:
        yield client


@pytest.fixture(scope="module")
def asked() -> list[Problem]:
    return read_problems("demo:eval", limit=NUM)


def requests(arm: Arm, asked: list[Problem], temperature: float = 0.0) -> list[RolloutRequest]:
    return [arm.request(problem, 0, seed=0, temperature=temperature) for problem in asked]


def text_of(rollout: Rollout) -> str:
    return rollout.transcript.text


@pytest.mark.parametrize("name", ["split", "big", "small"])
def test_it_writes_what_the_command_eval_writes(
    name: str, engine: ClientEngine, asked: list[Problem]
) -> None:
    with Session.open(SessionSettings(temperature=0.0, max_tokens=512)) as session:
        arm = "local" if name == "small" else name
        expected = list(answers(session, demo.problems(0, NUM), arm))  # type: ignore[arg-type]
    rollouts = engine.run(requests(Arm(name), asked))  # type: ignore[arg-type]
    assert [text_of(rollout) for rollout in rollouts] == [each.transcript.text for each in expected]
    assert [rollout.transcript.ids for rollout in rollouts] == [each.transcript.ids for each in expected]
    latency = LatencyModel(LatencyPart())
    records = [
        record_of(name, problem, 0, rollout, latency)
        for problem, rollout in zip(asked, rollouts, strict=True)
    ]
    assert [each.is_right for each in records] == [each.is_correct for each in expected]


def test_the_same_key_is_the_same_answer_whatever_came_before(
    engine: ClientEngine, asked: list[Problem]
) -> None:
    wanted = requests(Arm("split"), asked[:4], temperature=3.0)
    together = engine.run(wanted)
    apart = [engine.run([request])[0] for request in reversed(wanted)][::-1]
    assert [rollout.transcript.ids for rollout in together] == [each.transcript.ids for each in apart]
    others = [Arm("split").request(each, 1, seed=0, temperature=3.0) for each in asked[:4]]
    assert [text_of(rollout) for rollout in engine.run(others)] != list(map(text_of, together))


def test_a_temperature_is_the_requests_own(engine: ClientEngine, asked: list[Problem]) -> None:
    greedy = list(map(text_of, engine.run(requests(Arm("small"), asked[:3]))))
    assert list(map(text_of, engine.run(requests(Arm("small"), asked[:3], temperature=2.0)))) != greedy
    assert list(map(text_of, engine.run(requests(Arm("small"), asked[:3])))) == greedy


def test_a_bias_moves_how_often_it_asks(engine: ClientEngine, asked: list[Problem]) -> None:
    spans = [
        sum(len(rollout.transcript.spans) for rollout in engine.run(requests(Arm("split", bias), asked)))
        for bias in (-50.0, 0.0, 25.0)
    ]
    assert spans[0] == 0 < spans[1] < spans[2]


def test_the_threshold_moves_when_it_takes_the_pen_back(big: LocalGGUF, asked: list[Problem]) -> None:
    tokens = {}
    for tau in (1e-9, 0.5, 1 - 1e-9):
        with ClientEngine(demo_paths().small, big, limits=Limits(512), max_spans=12, tau=tau) as client:
            rollouts = client.run(requests(Arm("split"), asked))
            spans = [span for rollout in rollouts for span in rollout.transcript.spans]
            tokens[tau] = sum(span.tokens for span in spans) / len(spans)
    assert tokens[1e-9] < tokens[0.5] <= tokens[1 - 1e-9]
    assert tokens[1e-9] < 3


def test_only_the_small_models_own_spans_are_counted_against_it(big: LocalGGUF, asked: list[Problem]) -> None:
    with ClientEngine(demo_paths().small, big, limits=Limits(512), max_spans=1) as client:
        own = client.run(requests(Arm("split", 8.0), asked))
        by_chance = client.run(requests(Arm("random", 0.6), asked))
    for rollout in own:
        written = [span for span in rollout.transcript.spans if span.text]
        assert len(written) <= 1
        assert {span.end for span in rollout.transcript.spans if not span.text} <= {"budget"}
    assert max(len(rollout.transcript.spans) for rollout in by_chance) > 1
    assert {span.trigger for rollout in by_chance for span in rollout.transcript.spans} == {"random"}


def test_uncertainty_is_read_off_the_model(engine: ClientEngine, asked: list[Problem]) -> None:
    """At every token, so at each first one of a line too; above all that it can be there is none."""
    anywhere, at_lines, never = (
        sum(len(rollout.transcript.spans) for rollout in engine.run(requests(arm, asked)))
        for arm in (Arm("token-entropy", 0.2), Arm("entropy", 0.2), Arm("token-entropy", 7.0))
    )
    assert anywhere > at_lines > 0
    assert never == 0


def test_without_a_large_model_nobody_asks(asked: list[Problem]) -> None:
    with ClientEngine(demo_paths().small, None, limits=Limits(512), max_spans=12) as client:
        (rollout,) = client.run(requests(Arm("split"), asked[:1]))
        assert rollout.transcript.spans == ()
        assert rollout.transcript.finish == "stop"
        assert not rollout.remote_failed
