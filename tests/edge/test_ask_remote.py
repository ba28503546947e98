"""`sr-edge ask` with remotes that were set up: what leaves, what may not, and what it costs."""

import json
import re

import pytest
from tests.command_line import call
from tests.edge.test_ask import QUESTION, SENDING
from tests.raw_server import DONE, FIN, HANG, RawServer, head, page, text, usage

from sr_edge.commands.replay import recorded
from sr_edge.config import RemoteConfig
from sr_edge.outside import Terms, reach
from sr_edge.roles import Message
from sr_edge.split import SplitDecoder
from sr_edge.testing import END, OPEN, ScriptedLocal
from sr_edge.transcript import fold

SPAN = [head(), text(" 20 * 4 = 80"), text("", "stop"), usage(100, 10), DONE, FIN]
KEY = "sk-canary-7f3a9c2e51d04b86"


class User:
    """Somebody with settings of their own."""

    def __init__(self, home):
        self.home = home
        self.events = home / "events.jsonl"

    def run(self, *arguments, stdin="", env=None):
        return call(*arguments, stdin=stdin, env={"SR_EDGE_HOME": str(self.home), **(env or {})})

    def set_up(self, server, *options, key=KEY, name="lab"):
        assert self.run("remote", "add", name, server.url, "--model", "big", *options).returncode == 0
        if key:
            assert self.run("keys", "set", name, stdin=key).returncode == 0

    def ask(self, *options, env=None):
        done = self.run("ask", QUESTION, "--temp", 0, "--events", self.events, *options, env=env)
        assert KEY not in done.stdout + done.stderr + self.events.read_text()
        return done, fold(recorded(self.events))


@pytest.fixture
def user(tmp_path):
    return User(tmp_path)


def spans_of(n):
    return [SPAN] * n


def test_the_default_remote_is_asked_with_its_own_key_and_named_before_it_is(user):
    with RawServer(*spans_of(12)) as server:
        user.set_up(server)
        done, transcript = user.ask()
    assert done.returncode == 0
    assert re.fullmatch(SENDING.format("lab", server.where), done.stderr), "once, for all spans"
    assert transcript.spans[0].text.startswith(" 20 * 4")
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    assert {request.body["model"] for request in server.requests} == {"big"}


def test_a_key_goes_to_no_other_remote(user):
    with RawServer(*spans_of(12)) as first, RawServer(*spans_of(12)) as second:
        user.set_up(first, name="one")
        user.set_up(second, name="two", key=None)
        user.ask("--remote", "two", env={"OPENAI_API_KEY": KEY, "SR_EDGE_API_KEY": KEY})
        user.ask("--big", first.url, "--big-model", "big")
    assert second.requests
    assert first.requests
    for request in second.requests + first.requests:
        assert "authorization" not in request.headers


def test_an_unknown_remote_is_one_line_with_the_nearest(user):
    with RawServer() as server:
        user.set_up(server)
        done = user.run("ask", QUESTION, "-r", "lap")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "lab" in done.stderr


# --- what leaves -----------------------------------------------------------------------------------------


def test_a_dry_run_shows_the_request_and_sends_nothing(user):
    with RawServer(*spans_of(12)) as server:
        user.set_up(server)
        done, _ = user.ask("--dry-run", "--json")
        assert done.returncode == 0
        shown = json.loads(done.stdout)
        assert server.connections == 0
        user.ask()
        sent = server.requests[0]
    assert shown["url"] == f"{server.url}/v1/completions"
    assert shown["headers"]["Authorization"] == "Bearer ***"
    assert shown["body"] == sent.body, "to the letter"


def test_a_dry_run_is_readable_too(user):
    with RawServer() as server:
        user.set_up(server)
        done, _ = user.ask("--dry-run")
    request, *headers = done.stdout.partition("\n\n")[0].splitlines()
    assert request == f"POST {server.url}/v1/completions"
    assert "Authorization: Bearer ***" in headers
    assert QUESTION in json.loads(done.stdout.partition("\n\n")[2])["prompt"]


def test_a_dry_run_fetches_no_key(user, tmp_path):
    with RawServer() as server:
        user.set_up(server, "--api-key-cmd", f"touch {tmp_path / 'fetched'}", key=None)
        done, _ = user.ask("--dry-run")
    assert "Authorization: Bearer ***" in done.stdout
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("options", [("--offline",), ("--max-spans", 0)])
def test_a_dry_run_of_what_may_not_leave_says_why(user, options):
    with RawServer() as server:
        user.set_up(server)
        done, transcript = user.ask("--dry-run", *options)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"sr-edge: nothing would be sent: {transcript.spans[0].error}\n"


def test_an_evaluation_says_once_what_goes_where(user):
    with RawServer(*spans_of(12)) as server:
        user.set_up(server)
        done = user.run("eval", "--n", 2, "--arm", "split", "-r", "lab")
    assert done.returncode == 0
    assert done.stderr.count(f"so far to lab at {server.where}") == 1


def test_a_dry_run_without_an_endpoint_says_that_nothing_leaves(user):
    done = user.run("ask", QUESTION, "--dry-run")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


@pytest.mark.parametrize("how", ["flag", "environment", "file"])
def test_offline_by_whoever_says_so(user, how):
    with RawServer() as server:
        user.set_up(server)
        env = {}
        if how == "file":
            assert user.run("config", "set", "offline", "true").returncode == 0
            env = {"SR_EDGE_OFFLINE": "0"}
        elif how == "environment":
            env = {"SR_EDGE_OFFLINE": "1"}
        done, transcript = user.ask(*["--offline"] * (how == "flag"), env=env)
        assert server.connections == 0
    assert done.returncode == 0
    assert {span.end for span in transcript.spans} == {"offline"}
    assert {span.status for span in transcript.spans} == {"skipped"}
    assert len(done.stderr.splitlines()) == 1


def test_what_the_user_hides_is_hidden_and_comes_back(tmp_path):
    answer = [head(), *map(text, ["write to ", "EMA", "IL1", "X, at /", "v1"]), text("", "stop"), DONE, FIN]
    local = ScriptedLocal([[*b"me@example.org said ", OPEN], [*b"!", END]])
    with RawServer(answer) as server:
        terms = Terms(
            offline=False, temperature=0.0, seed=None, max_spans=None, redact=("email",), budget=None,
            dry_run=False,
        )  # fmt: skip
        outside = reach(
            RemoteConfig("lab", server.url, model="big"),
            local.render,
            terms,
            key=None,
            is_named=True,
            environ={"SR_EDGE_HOME": str(tmp_path)},
            warn=print,
        )
        decoder = SplitDecoder(local, outside.model, gate=outside.gate)
        transcript = fold(decoder.generate([Message("user", "mail me@example.org")]))
        outside.endpoint.close()
    assert b"example.org" not in server.requests[0].data
    assert transcript.text == "me@example.org said write to me@example.org, at /v1!"
    assert outside.redactor.summary() == "1 mail address was replaced before sending"


# --- what it costs, and how long it takes ------------------------------------------------------------------


def test_the_cost_of_a_span_is_known_where_prices_are(user):
    with RawServer(*spans_of(12)) as server:
        user.set_up(server, "--price-input", 2, "--price-output", 10)
        done, transcript = user.ask("--json", "-u")
    cost = (100 * 2 + 10 * 10) / 1e6
    assert transcript.spans[0].cost == pytest.approx(cost)
    assert json.loads(done.stdout)["usage"]["cost"] == pytest.approx(cost * len(transcript.spans))
    assert " · $0.0003" in done.stderr or len(transcript.spans) > 1


def test_a_budget_that_is_used_up_leaves_the_answer_to_the_small_model(user):
    with RawServer() as server:
        user.set_up(server, "--price-input", 2, "--price-output", 10)
        done, transcript = user.ask("--budget", "0.0000001")
        assert server.connections == 0
    assert done.returncode == 0
    assert {span.end for span in transcript.spans} == {"budget"}
    assert done.stdout
    (line,) = done.stderr.splitlines()
    assert "the answer's budget" in line
    assert "sr-edge config set budget.usd_per_answer" in line


def test_a_budget_in_dollars_without_prices_says_that_it_does_not_count(user):
    with RawServer(*spans_of(12)) as server:
        user.set_up(server)
        done, _ = user.ask("--budget", "1")
    assert "sr-edge remote price lab" in done.stderr.splitlines()[0]


def test_what_was_spent_counts_for_the_next_run(user):
    with RawServer(*spans_of(24)) as server:
        user.set_up(server)
        assert user.run("config", "set", "budget.tokens_per_day", "250").returncode == 0
        ends = [span.end for _ in range(3) for span in user.ask()[1].spans]
    assert (ends[0], ends[-1]) == ("stop", "budget")
    assert len(server.requests) == 2, "of 110 tokens each"


def test_a_large_model_that_may_not_write_the_answer_is_exit_3_and_says_why(user):
    with RawServer() as server:
        user.set_up(server)
        done, _ = user.ask("--policy", "remote", "--max-spans", 0)
        assert server.connections == 0
    assert (done.returncode, done.stdout) == (3, "")
    assert "0 spans" in done.stderr
    assert "context" not in done.stderr


def test_so_many_spans_and_no_more(user):
    with RawServer(*spans_of(12)) as server:
        user.set_up(server)
        done, transcript = user.ask("--max-spans", 0)
        assert server.connections == 0
    assert {span.end for span in transcript.spans} == {"budget"}
    assert "0 spans" in done.stderr


def test_hedging_a_remote_that_never_answers_gives_the_answer_of_the_small_model(user):
    with RawServer([HANG], [HANG], [HANG]) as server:
        user.set_up(server)
        _, alone = user.ask("--policy", "local")
        done, hedged = user.ask("--hedge")
    assert done.returncode == 0
    assert hedged.text == alone.text
    assert len(server.requests) <= 1
    assert hedged.seconds < 5


def test_the_breaker_keeps_the_next_spans_of_the_answer_here(user):
    broken = page({"error": {"message": "overloaded"}}, 503)
    with RawServer(broken, broken, broken, broken) as server:
        user.set_up(server)
        done, transcript = user.ask()
    assert done.returncode == 0
    assert transcript.spans[0].status == "failed"
    assert all(span.end == "declined" for span in transcript.spans[1:])
    assert len(server.requests) <= 2, "one retry, and none for the spans that follow"


def test_settings_of_a_profile_hold_for_the_answer(user):
    with RawServer() as server:
        user.set_up(server)
        assert user.run("config", "set", "profiles.alone.offload.policy", "local").returncode == 0
        _, transcript = user.ask("--profile", "alone")
        assert server.connections == 0
    assert transcript.spans == ()


def test_a_server_that_has_nothing_to_offer_gets_the_users_words_once(user):
    """It has no completions, and is surveyed before it is asked anything else."""
    missing = page({"error": {"message": "not found"}}, 404)
    with RawServer(*[missing] * 30) as server:
        done, transcript = user.ask("--big", server.url, "--big-model", "big")
    assert done.returncode == 0
    assert transcript.spans[0].status == "failed"
    first, *others = server.requests
    assert QUESTION.encode() in first.data
    assert not any(QUESTION.encode() in request.data for request in others)
