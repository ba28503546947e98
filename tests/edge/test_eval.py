"""What evaluation counts, on scripted models; then the command on the built-in pair."""

import json
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import command_line

from sr_edge import commands
from sr_edge.commands.interrupt import Interrupt
from sr_edge.errors import RemoteError
from sr_edge.evaluate import CHUNK, answers, random_schedule, summary, wilson
from sr_edge.roles import Outcome
from sr_edge.session import Session
from sr_edge.suites.demo import problems
from sr_edge.testing import END, OPEN, Reply, ScriptedLocal, ScriptedRemote
from sr_edge.testing.fault_endpoint import FaultEndpoint, failure

ASKED = problems(seed=1, n=2)


class Repeating(ScriptedRemote):
    """Sends the same reply for every span."""

    def stream(self, messages, answer, max_tokens):
        self._replies = [self._replies[0]] * (len(self.asked) + 1)
        return super().stream(messages, answer, max_tokens)


def session(*segments: str, reply: Reply | str = "") -> Session:
    script = [[*segment.encode(), OPEN] for segment in segments[:-1]] + [[*segments[-1].encode(), END]]
    return Session(ScriptedLocal(script), Repeating([reply]))


def test_an_answer_is_right_if_its_last_box_is() -> None:
    right = session("so ", ".", reply=f"\\boxed{{{ASKED[0].answer}}}")
    figures = summary(list(answers(right, [ASKED[0]] * 3, "split")))
    assert (figures["accuracy"], figures["n"]) == (1.0, 3)
    assert figures["ends"] == {"stop": 3}
    assert figures["spans_per_answer"] == 1.0
    wrong = session("so ", ".", reply="\\boxed{-1}")
    assert summary(list(answers(wrong, ASKED, "split")))["accuracy"] == 0.0


def test_a_box_in_the_reasoning_is_no_answer() -> None:
    thinking = session(f"<think>\\boxed{{{ASKED[0].answer}}}")
    assert not next(answers(thinking, ASKED, "local")).is_correct


def test_each_arm_lets_its_own_model_write() -> None:
    both = session("ab", "c", reply="xyz")
    shares = {
        arm: summary(list(answers(both, ASKED, arm)))["remote_share"] for arm in ("local", "split", "big")
    }
    assert shares["local"] == 0.0
    assert shares["split"] == pytest.approx(3 / 8)  # a b <open> x y z c <end>
    assert shares["big"] == 1.0


def test_the_large_model_alone_is_nothing_without_it() -> None:
    broken = session("a", reply=Reply((), Outcome("error", "remote unreachable")))
    with pytest.raises(RemoteError, match="unreachable"):
        list(answers(broken, ASKED, "big"))


def test_split_is_measured_with_a_failing_remote_too() -> None:
    broken = session("a", "b", reply=Reply((), Outcome("error", "remote unreachable")))
    assert summary(list(answers(broken, ASKED, "split")))["ends"] == {"error": 2}


def test_what_was_stopped_does_not_count() -> None:
    stops = iter([False] * 20 + [True] * 1000)
    done = list(answers(session("abcdefgh"), ASKED * 10, "local", cancelled=lambda: next(stops)))
    assert 0 < len(done) < 4


@pytest.mark.parametrize("share", [0.02, 0.12, 0.5])
def test_random_switching_has_the_share_it_was_given(share: float) -> None:
    schedule = random_schedule(share, random.Random(1))
    local = remote = 0
    while local < 200_000:
        size = schedule(local + remote)
        local, remote = (local, remote + size) if size else (local + 1, remote)
    assert remote / (local + remote) == pytest.approx(share, rel=0.15)
    assert remote % CHUNK == 0


def test_no_share_means_no_span() -> None:
    schedule = random_schedule(0.0, random.Random(1))
    assert not any(schedule(n) for n in range(1000))


@given(st.integers(0, 50), st.integers(0, 50))
def test_an_interval_holds_its_proportion(right: int, wrong: int) -> None:
    low, high = wilson(right, right + wrong)
    assert 0.0 <= low <= high <= 1.0
    if right + wrong:
        assert low - 1e-9 <= right / (right + wrong) <= high + 1e-9


def test_the_interval_is_wilsons() -> None:
    low, high = wilson(81, 263)  # the worked example in Newcombe, Statistics in Medicine 17 (1998), table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return command_line.call("eval", *arguments)


def test_an_arm_that_fails_does_not_cost_the_others() -> None:
    done = run("--n", 1, "--arm", "local", "--arm", "big", "--big", "http://127.0.0.1:9", "--json")
    assert (done.returncode, list(json.loads(done.stdout)["arms"])) == (3, ["local"])
    assert "the arm big cannot be measured" in done.stderr


def test_problems_are_printed_without_a_model() -> None:
    done = run("--suite", "demo", "--print-problems", 3, "--seed", 7)
    assert (done.returncode, done.stderr) == (0, "")
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert printed == [{"problem": p.question, "answer": p.answer} for p in problems(7, 3)]


def test_the_object_has_the_documented_keys() -> None:
    done = run("--suite", "demo", "--seed", 3, "--n", 4, "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert (data["suite"], data["seed"], data["n"]) == ("demo", 3, 4)
    assert list(data["arms"]) == ["split", "local", "big", "random"]
    for arm in data["arms"].values():
        low, high = arm["interval"]
        assert 0 <= low <= arm["accuracy"] <= high <= 1
        assert sum(arm["ends"].values()) == pytest.approx(arm["spans_per_answer"] * 4)
    assert data["arms"]["local"]["remote_share"] == 0
    assert data["arms"]["big"]["remote_share"] == 1
    assert set(data["arms"]["random"]["ends"]) <= {"cap", "stop", "budget"}


def test_a_measurement_can_be_repeated() -> None:
    arms = [json.loads(run("--n", 3, "--arm", "split", "--json").stdout)["arms"]["split"] for _ in range(2)]
    for arm in arms:
        for timing in ("seconds", "decode_ms_median", "resume_ms_median"):
            del arm[timing]
    assert arms[0] == arms[1]


def test_random_alone_measures_the_share_it_needs() -> None:
    done = run("--n", 2, "--arm", "random")
    assert done.returncode == 0, done.stderr
    assert "measuring split's share on the first 2 problems" in done.stderr
    heading, line = done.stdout.splitlines()
    assert heading.split()[:3] == ["arm", "n", "accuracy"]
    assert line.split()[:2] == ["random", "2"]


def test_ctrl_c_keeps_what_was_measured(monkeypatch) -> None:
    class Pressed(Interrupt):
        """Ctrl-C after a while."""

        looks = 0

        def __call__(self) -> bool:
            self.looks += 1
            return self.looks > 600

    monkeypatch.setattr("sr_edge.commands.eval.Interrupt", Pressed)
    done = run("--n", 500, "--json")
    arms = json.loads(done.stdout)["arms"]
    assert (done.returncode, list(arms)) == (130, ["split"])
    assert 0 < arms["split"]["n"] < 500
    assert "interrupted" in done.stderr


@pytest.mark.parametrize(
    "options", [["--n", "0"], ["--arm", "medium"], ["--suite", "aime"], ["--temp", "nan"]]
)
def test_what_cannot_be_meant_is_refused(options: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sr-edge", "eval", *options])
    with pytest.raises(SystemExit) as left:
        commands.main()
    assert left.value.code == 2


def test_a_model_of_ones_own_needs_its_large_one() -> None:
    done = run("-m", "model.gguf")
    assert done.returncode == 2
    assert "--big" in done.stderr


# --- through a server ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--through", "http", "--arm", "random"], "no server opens spans by chance"),
        (["--through", "ftp"], "--through ftp: it is http, or the URL"),
        (
            ["--through", "http://127.0.0.1:9", "-m", "small.gguf", "--arm", "local"],
            "give their options to it",
        ),
        (["--through", "http", "--offline"], "offline"),
        (["--through", "http://192.168.0.7:8741"], "another machine"),
    ],
)
def test_what_no_server_can_do_is_refused(options: list[str], says: str) -> None:
    done = command_line.call("eval", *options, env={"SR_EDGE_SERVE_TOKEN": "x"})
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr.splitlines()[-1]


def test_a_server_that_is_not_there_is_named() -> None:
    done = command_line.call("eval", "--through", "http://127.0.0.1:9", env={"SR_EDGE_SERVE_TOKEN": "x"})
    assert done.returncode == 3
    assert "connection refused at 127.0.0.1:9" in done.stderr


def test_through_a_server_of_its_own_the_figures_are_the_same() -> None:
    """Whatever the user's settings say."""
    arms = ["--arm", "split", "--arm", "local", "--arm", "big"]
    env = {"SR_EDGE_POLICY": "local", "SR_EDGE_SAMPLING__TEMPERATURE": "1.5"}
    straight, served = (
        json.loads(command_line.call("eval", "--n", 2, *arms, *how, "--json", env=env).stdout)
        for how in ([], ["--through", "http"])
    )
    assert served.pop("through") == "http"
    for figures in (*straight["arms"].values(), *served["arms"].values()):
        for timing in ("seconds", "decode_ms_median", "resume_ms_median"):
            del figures[timing]
    assert straight == served


def test_an_endpoint_is_asked_as_warmly_through_a_server() -> None:
    asked = []
    for how in ([], ["--through", "http"]):
        with FaultEndpoint(then=lambda request: failure(500)) as endpoint:
            big = ["--big", endpoint.url, "--big-model", "m"]
            done = command_line.call("eval", "--n", 1, "--seed", 7, "--arm", "split", *big, *how)
            assert done.returncode == 0, done.stderr
            asked.append(endpoint.posts[0].body)
    assert asked[0] == asked[1]
    assert (asked[1]["temperature"], asked[1]["seed"]) == (0.0, 7)
