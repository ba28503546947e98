"""Evaluation from end to end over scripted models: arms, equal shares, the journal, the report."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.scripted_engine import ScriptedEngine, problems

from sr_edge.errors import UsageError
from sr_edge.roles import Schedule
from sr_train.evaluate.arms import CHUNK, KINDS, Arm, arms_of, periodic_spans, random_spans, uncertain_spans
from sr_train.evaluate.figures import Figures
from sr_train.evaluate.records import Record, escalated
from sr_train.evaluate.report import to_dict, to_markdown, write_report
from sr_train.evaluate.running import Plan, cascade_setting, digest_of, evaluate, evaluate_recipe
from sr_train.evaluate.sweeps import calibrate_bias, find_setting, share_of, tau_sweep
from sr_train.latency import LatencyModel, read_streams
from sr_train.problems import Problem
from sr_train.recipe import BigPart, DataPart, EvaluatePart, LatencyPart, ModelPart, Recipe, RolloutPart
from sr_train.rollout.requests import RolloutEngine

ABOUT = {"model": "scripted"}
ALL = arms_of(KINDS)
PLAN = Plan(block=3)
FAST = LatencyPart()


def measure(
    engine: RolloutEngine,
    journal: Path,
    arms: list[Arm] = ALL,
    asked: list[Problem] | None = None,
    plan: Plan = PLAN,
    latency: LatencyPart = FAST,
    events: Path | None = None,
) -> Figures:
    asked = problems(20) if asked is None else asked
    return evaluate(engine, asked, arms, plan, LatencyModel(latency), journal, about=ABOUT, events=events)


# --- what comes out ---------------------------------------------------------------------------------------


def test_each_arm_is_written_by_whom_it_says(tmp_path: Path) -> None:
    figures = measure(ScriptedEngine(), tmp_path / "j.jsonl")
    right = {arm.arm: arm.pass_at_1.value for arm in figures.arms}
    assert list(right) == [
        "small",
        "big",
        "split",
        "random",
        "periodic",
        "entropy",
        "token-entropy",
        "cascade",
    ]
    assert (right["small"], right["big"], right["split"]) == (0.5, 1.0, 1.0)
    assert max(right["random"], right["periodic"], right["entropy"], right["token-entropy"]) <= 0.5
    assert figures.of("small").share.value == figures.of("small").input_share.value == 0
    assert figures.of("big").share.value == figures.of("big").input_share.value == 1
    split = figures.of("split")
    assert split.remote_tokens == len(" help")
    assert split.share.value == pytest.approx(5 / (5 + split.local_tokens))
    assert split.ends == {"stop": 20}
    assert split.spans == 1


def test_baselines_have_the_share_of_split(tmp_path: Path) -> None:
    """As far as they can: a chunk is ten tokens, an answer fifty, a span of split five."""
    asked = problems(40)
    figures = measure(ScriptedEngine(), tmp_path / "j.jsonl", asked=asked)
    target = figures.of("split").share.value
    for name in ("random", "cascade"):
        assert figures.of(name).share.value == pytest.approx(target, abs=0.015)
    gap = next(each for each in figures.differences if each.other == "random")
    assert gap.pass_at_1.value == 1 - figures.of("random").pass_at_1.value
    assert gap.share.value == pytest.approx(target - figures.of("random").share.value)
    assert gap.share.low <= 0 <= gap.share.high


def test_what_another_arm_needs_is_measured_and_not_shown(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    figures = measure(engine, tmp_path / "j.jsonl", [Arm("cascade")])
    assert [arm.arm for arm in figures.arms] == ["cascade"]
    assert {request.policy for request in engine.requests} == {"local", "remote", "auto"}


def test_a_cascade_gives_up_what_the_small_model_was_unsure_of(tmp_path: Path) -> None:
    """Of three problems it is unsure of the first two, and wrong about the second."""
    engine = ScriptedEngine()
    figures = measure(engine, tmp_path / "j.jsonl", [Arm("cascade", -0.4)], problems(3))
    assert figures.of("cascade").pass_at_1.value == 1.0
    assert figures.of("cascade").finishes == {"stop": 3}
    assert figures.of("cascade").ends == {"stop": 2}


def test_a_bias_is_an_arm_of_its_own(tmp_path: Path) -> None:
    arms = arms_of(("split",), (-20.0, 2.0, 0.0, 2.0))
    assert [arm.name for arm in arms] == ["split", "split -20", "split +2"]
    figures = measure(ScriptedEngine(), tmp_path / "j.jsonl", arms)
    assert [arm.share.value > 0 for arm in figures.arms] == [True, False, True]
    assert [(each.arm, each.other) for each in figures.differences] == []


def test_all_arms_have_the_same_random_numbers(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    plan = Plan(samples=3, temperature=0.7, seed=5, block=7)
    measure(engine, tmp_path / "j.jsonl", [Arm("small"), Arm("split")], problems(4), plan)
    keys = [request.key for request in engine.requests]
    assert keys[:12] == keys[12:]
    assert len(set(keys)) == 12
    assert {request.temperature for request in engine.requests} == {0.7}
    other = Arm("small").request(problems(1)[0], 0, seed=6, temperature=0.7)
    assert other.key not in keys


def test_a_problem_whose_answer_cannot_be_compared_is_not_asked(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    asked = [*problems(2), Problem("bad", "question 9", "")]
    figures = measure(engine, tmp_path / "j.jsonl", [Arm("small")], asked)
    assert figures.settings["problems"] == 2
    assert figures.settings["ungradable"] == 1
    assert len(engine.requests) == 2
    with pytest.raises(UsageError, match="none of the problems"):
        measure(engine, tmp_path / "k.jsonl", [Arm("small")], asked[2:])


def test_an_answer_whose_large_model_failed_is_not_counted_and_asked_again(tmp_path: Path) -> None:
    journal = tmp_path / "j.jsonl"
    broken = ScriptedEngine(fails=lambda request, n: n % 5 == 0)
    first = measure(broken, journal, [Arm("split"), Arm("big")])
    assert {arm.arm: (arm.answers, arm.failed) for arm in first.arms} == {"split": (16, 4), "big": (16, 4)}
    assert first.of("split").pass_at_1.value == 1.0
    again = ScriptedEngine()
    second = measure(again, journal, [Arm("split"), Arm("big")])
    assert len(again.requests) == 8
    assert second == measure(ScriptedEngine(), tmp_path / "k.jsonl", [Arm("split"), Arm("big")])


def test_an_arm_that_never_had_an_answer_is_left_out(tmp_path: Path) -> None:
    figures = measure(ScriptedEngine(fails=lambda request, n: True), tmp_path / "j.jsonl",
                      [Arm("small"), Arm("big")])  # fmt: skip
    assert [arm.arm for arm in figures.arms] == ["small"]


# --- the journal ------------------------------------------------------------------------------------------


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    first = measure(ScriptedEngine(), tmp_path / "j.jsonl")
    engine = ScriptedEngine()
    assert measure(engine, tmp_path / "j.jsonl") == first
    assert engine.requests == []


def test_a_journal_cut_anywhere_is_gone_on_with(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    arms = [Arm("split"), Arm("random")]
    expected = measure(ScriptedEngine(), whole, arms, problems(4))
    data = whole.read_bytes()
    rng = random.Random(0)
    for cut in [0, 1, *(rng.randrange(len(data)) for _ in range(25)), len(data) - 1]:
        journal = tmp_path / f"{cut}.jsonl"
        journal.write_bytes(data[:cut])
        assert measure(ScriptedEngine(), journal, arms, problems(4)) == expected
        assert all(json.loads(line) for line in journal.read_bytes().splitlines())


_CHILD = """
import sys
from pathlib import Path
from tests.train.scripted_engine import ScriptedEngine, problems
from tests.train.test_evaluate import ALL, measure

class Told(ScriptedEngine):
    def run(self, requests, done=lambda n: None):
        print("asked", flush=True)
        sys.stdin.readline()
        return super().run(requests, done)

measure(Told(), Path(sys.argv[1]))
"""


def test_kill_9_and_on(tmp_path: Path) -> None:
    expected = measure(ScriptedEngine(), tmp_path / "whole.jsonl")
    journal = tmp_path / "j.jsonl"
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(journal)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdin, child.stdout:
        for _ in range(9):
            assert child.stdout.readline() == "asked\n"
            child.stdin.write("\n")
            child.stdin.flush()
        assert child.stdout.readline() == "asked\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    engine = ScriptedEngine()
    whole = ScriptedEngine()
    measure(whole, tmp_path / "third.jsonl")
    assert measure(engine, journal) == expected
    assert len(engine.requests) == len(whole.requests) - 26  # nine blocks: two arms of 20, in threes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"plan": Plan(block=3, seed=1)}, "seed was 0, is 1"),
        ({"latency": LatencyPart(rtt=2.0)}, "latency was"),
        ({"asked": problems(3)}, "problems was 20, is 3"),
    ],
)
def test_a_journal_of_another_evaluation_is_refused(tmp_path: Path, change: dict, says: str) -> None:  # type: ignore[type-arg]
    measure(ScriptedEngine(), tmp_path / "j.jsonl", [Arm("small")])
    with pytest.raises(UsageError, match=says):
        measure(ScriptedEngine(), tmp_path / "j.jsonl", [Arm("small")], **change)


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "j.jsonl"
    measure(ScriptedEngine(), journal, [Arm("small")])
    lines = journal.read_bytes().splitlines(keepends=True)
    for bad, says in ((b"{}\n", "another version"), (b"nothing\n", "damaged")):
        journal.write_bytes(lines[0] + bad + b"".join(lines[2:]))
        with pytest.raises(UsageError, match=says):
            measure(ScriptedEngine(), journal, [Arm("small")])


def test_the_events_of_each_answer_are_kept_for_calibration(tmp_path: Path) -> None:
    measure(ScriptedEngine(), tmp_path / "j.jsonl", [Arm("small"), Arm("split")], events=tmp_path / "e.jsonl")
    assert len(read_streams(tmp_path / "e.jsonl")) == 40


def test_a_plan_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="all be the same"):
        Plan(samples=4)
    with pytest.raises(UsageError, match="at least 1"):
        Plan(samples=0)
    with pytest.raises(UsageError, match="no arm large"):
        arms_of(("large",))
    with pytest.raises(UsageError, match="no arm is named"):
        arms_of(())


# --- when the large model writes -------------------------------------------------------------------------


class Cursor:
    """Stands wherever the text says, as uncertain as its last character says."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def piece(self, id: int) -> bytes:
        return bytes([id])

    def entropy(self) -> float:
        return 3.0 if chr(self.ids[-1] if self.ids else 0) in "\n5" else 1.0


def opened(schedule: Schedule, num_tokens: int) -> list[int]:
    """Where chunks open in an answer of so many tokens, as the decoder would ask."""
    at, places, may_open = 0, [], True
    while at < num_tokens:
        size = schedule(at) if may_open else None
        if size:
            places.append(at)
        at += size or 1
    return places


@given(share=st.floats(0.01, 0.6), key=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_random_and_periodic_chunks_make_up_their_share(share: float, key: int) -> None:
    for spans, tolerance in ((random_spans(share, (key,)), 0.06), (periodic_spans(share), 0.01)):
        num_opened = len(opened(spans(Cursor()), 8000))
        assert num_opened * CHUNK / 8000 == pytest.approx(share, abs=tolerance)
    assert opened(random_spans(share, (key,))(Cursor()), 300) == opened(
        random_spans(share, (key,))(Cursor()), 300
    )


def test_a_share_of_nothing_opens_nothing_and_one_of_all_everything() -> None:
    assert opened(random_spans(0.0, (1,))(Cursor()), 500) == []
    assert opened(periodic_spans(0.0)(Cursor()), 500) == []
    assert opened(periodic_spans(1.0)(Cursor()), 50) == [0, 10, 20, 30, 40]


def test_uncertain_chunks_open_above_the_threshold_and_where_a_line_begins() -> None:
    text = b"ab5c\nde5"

    def places(spans: Callable[[Cursor], Schedule]) -> list[int]:
        cursor = Cursor()
        schedule = spans(cursor)
        found = []
        for n in range(len(text) + 1):
            cursor.ids = list(text[:n])
            if schedule(n):
                found.append(n)
        return found

    assert places(uncertain_spans(2.0, at_lines=False, chunk=4)) == [3, 5, 8]
    assert places(uncertain_spans(2.0, at_lines=True, chunk=4)) == [5]
    assert places(uncertain_spans(0.5, at_lines=True, chunk=4)) == [0, 5]
    assert places(uncertain_spans(3.0, at_lines=False, chunk=4)) == []


# --- settings ---------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(-3, 0), st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=12),
    st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_a_cascade_gives_up_as_many_answers_as_come_nearest(
    answers: list[tuple[float, int, int]], target: float
) -> None:
    smalls = [record("small", n, local=local, mean_logprob=p) for n, (p, local, _) in enumerate(answers)]
    bigs = [record("big", n, remote=remote) for n, (_, _, remote) in enumerate(answers)]

    def share(threshold: float) -> float:
        made = [
            escalated(small, big, "cascade") if small.mean_logprob < threshold else small
            for small, big in zip(smalls, bigs, strict=True)
        ]
        return sum(each.remote_tokens for each in made) / sum(each.tokens for each in made)

    thresholds = [-100.0, 100.0, *(small.mean_logprob for small in smalls)]
    best = min(abs(share(threshold) - target) for threshold in thresholds)
    assert abs(share(cascade_setting(smalls, bigs, target)) - target) == pytest.approx(best)


def test_both_models_of_a_cascade_are_paid_for() -> None:
    small = replace(record("small", 0, local=30), seconds=2.0, read_tokens=9, measured_seconds=1.0)
    big = replace(record("big", 0, remote=70), seconds=3.0, sent_tokens=9, is_right=True, dollars=0.5)
    made = escalated(small, big, "cascade")
    assert (made.local_tokens, made.remote_tokens, made.read_tokens, made.sent_tokens) == (30, 70, 9, 9)
    assert (made.seconds, made.dollars, made.is_right, made.arm) == (5.0, 0.5, True, "cascade")


@given(st.floats(0.02, 0.98), st.booleans())
def test_a_setting_is_found_by_halving(target: float, falls: bool) -> None:
    low, high = (8.0, 0.0) if falls else (0.0, 8.0)

    def share(setting: float) -> float:
        return 1 - setting / 8 if falls else setting / 8

    found = find_setting(share, target, low=low, high=high, tolerance=0.01)
    assert found.share == pytest.approx(target, abs=0.01)
    assert dict(found.tried)[found.setting] == found.share


def test_the_bias_for_a_share_is_found() -> None:
    """Scripted answers have a share of 0.05 or none: the nearest is what there is."""
    engine = ScriptedEngine()
    assert calibrate_bias(engine, problems(6), 0.05).setting == 0.0
    assert calibrate_bias(engine, problems(6), 0.001).share == 0.0
    with pytest.raises(UsageError, match="between 0 and 1"):
        calibrate_bias(engine, problems(6), 1.0)


def test_a_sweep_of_thresholds_asks_each_engine() -> None:
    engines: dict[float, ScriptedEngine] = {}

    def with_tau(tau: float) -> ScriptedEngine:
        return engines.setdefault(tau, ScriptedEngine())

    swept = tau_sweep(with_tau, problems(3), [0.3, 0.7])
    assert [(tau, len(rollouts)) for tau, rollouts in swept] == [(0.3, 3), (0.7, 3)]
    assert share_of(swept[0][1]) == share_of(swept[1][1]) > 0
    assert {tau: len(engine.requests) for tau, engine in engines.items()} == {0.3: 3, 0.7: 3}
    with pytest.raises(UsageError, match="between 0 and 1"):
        tau_sweep(with_tau, problems(3), [0.5, 1.0])


# --- the report -------------------------------------------------------------------------------------------


def test_a_report_is_the_same_each_time(tmp_path: Path) -> None:
    figures = measure(ScriptedEngine(), tmp_path / "j.jsonl")
    paths = write_report(figures, tmp_path / "one", "client", title="Scripted")
    again = write_report(figures, tmp_path / "two", "client", title="Scripted")
    assert [path.name for path in paths] == ["client.json", "client.md", "client.png", "client.svg"]
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    as_json, table, png, svg = paths
    assert json.loads(as_json.read_text()) == json.loads(json.dumps(to_dict(figures)))
    assert png.read_bytes().startswith(b"\x89PNG")
    assert xml.etree.ElementTree.parse(svg).getroot().tag.endswith("svg")
    for arm in figures.arms:
        assert f"\n| {arm.arm} | {100 * arm.pass_at_1.value:.1f} %" in table.read_text()
        assert arm.arm in svg.read_text()


def test_the_table_says_what_failed_and_how_it_was_measured(tmp_path: Path) -> None:
    engine = ScriptedEngine(fails=lambda request, n: n == 3)
    text = to_markdown(measure(engine, tmp_path / "j.jsonl", [Arm("split"), Arm("random")]))
    assert "| split, 1 failed |" in text
    assert "model: scripted" in text
    assert "found for the share of split: random" in text


def test_a_recipe_says_what_is_measured(tmp_path: Path) -> None:
    part = EvaluatePart(source=str(tmp_path / "p.jsonl"), limit=3, arms=("small", "split"), biases=(1.5,))
    rows = [{"question": f"question {n}", "answer": n} for n in range(5)]
    Path(part.source).write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe("r", ModelPart("demo:small"), DataPart("demo:train"), evaluate=part)
    heard = []
    figures = evaluate_recipe(
        recipe,
        ScriptedEngine(),
        tmp_path / "out",
        "sft",
        about=ABOUT,
        report=lambda *told: heard.append(told),
    )
    assert [(arm.arm, arm.problems) for arm in figures.arms] == [
        ("small", 3),
        ("split", 3),
        ("split +1.5", 3),
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "sft.json", "sft.jsonl", "sft.md", "sft.png", "sft.svg",
    ]  # fmt: skip
    assert heard[-1] == ("split +1.5", 3, 3)


def test_an_evaluation_does_not_go_on_with_answers_of_another_large_model(tmp_path: Path) -> None:
    """Nor with other limits of a span: what was answered so is no answer here."""
    rows = [{"question": f"question {n}", "answer": n} for n in range(2)]
    source = tmp_path / "p.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe(
        "r",
        ModelPart("demo:small"),
        DataPart("demo:train"),
        big=BigPart(model="demo:big"),
        evaluate=EvaluatePart(source=str(source), arms=("split",)),
    )

    def again(recipe: Recipe) -> None:
        evaluate_recipe(recipe, ScriptedEngine(), tmp_path / "out", "sft", about=ABOUT)

    again(recipe)
    again(recipe)
    for other, said in (
        (replace(recipe, big=BigPart(remote="http://there/v1")), "large model was 'demo:big'"),
        (replace(recipe, rollout=RolloutPart(max_spans=1)), "limits was"),
    ):
        with pytest.raises(UsageError, match=said):
            again(other)


def test_weights_are_told_from_others_under_the_same_name(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert digest_of(folder) is None
    folder.mkdir()
    assert digest_of(folder) is None
    (folder / "model.safetensors").write_bytes(b"one")
    first = digest_of(folder)
    assert first == digest_of(folder)
    (folder / "model.safetensors").write_bytes(b"two")
    assert digest_of(folder) != first
    assert digest_of(folder / "model.safetensors") == digest_of(folder)


def record(
    arm: str, problem: int, *, right: bool = False, local: int = 0, remote: int = 0, mean_logprob: float = 0.0
) -> Record:
    return Record(
        arm, f"p{problem}", 0, right, local, remote, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, (), "stop",
        mean_logprob, False, "",
    )  # fmt: skip
