"""`/metrics`, as Prometheus's own parser reads it."""

from __future__ import annotations

import threading
from dataclasses import fields

from prometheus_client.parser import text_string_to_metric_families
from tests.serve.scripted_desk import ENDLESS, Figures, ScriptedDesk, slowly
from tests.serve.serving import chat, connect, exchange, read, request, serving, until

from sr_edge.errors import GenerationError
from sr_edge.events import LocalToken
from sr_edge.serve.desk import DeskFigures
from sr_edge.serve.metrics import NOW, Following, Metrics


def figures(served) -> dict[tuple[str, ...], float]:
    """By name and the values of the labels."""
    got = exchange(served.port, request(served.port, "/metrics"))
    assert got.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(got.body.decode())
        for sample in family.samples
    }


def test_answers_are_counted_by_who_wrote_them():
    with serving(ScriptedDesk()) as served:
        exchange(served.port, chat(served.port))
        exchange(served.port, chat(served.port, stream=True))
        found = figures(served)
    assert found["sr_edge_tokens_total", "local"] == 2 * 15
    assert found["sr_edge_tokens_total", "remote"] == 2 * 9
    assert found["sr_edge_spans_total", "stop"] == 2
    assert found["sr_edge_prompt_tokens_total",] == 2 * 5
    assert found["sr_edge_requests_total", "/v1/chat/completions", "200"] == 2
    for name in ("queue", "first_token", "request"):
        assert found[f"sr_edge_{name}_seconds_count",] == 2
        assert found[f"sr_edge_{name}_seconds_bucket", "+Inf"] == 2
    assert found["sr_edge_token_interval_seconds_count",] > 10
    assert found["process_resident_memory_bytes",] > 1e6


def test_both_origins_are_there_from_the_start():
    with serving(ScriptedDesk()) as served:
        found = figures(served)
    assert found["sr_edge_tokens_total", "local"] == found["sr_edge_tokens_total", "remote"] == 0
    assert (found["sr_edge_waiting",], found["sr_edge_running",]) == (0, 0)


def test_what_runs_is_seen_while_it_does_and_counted_when_its_client_leaves():
    desk = ScriptedDesk(ENDLESS, gate=slowly())
    with serving(desk) as served:
        with connect(served.port) as wire:
            wire.sendall(chat(served.port, stream=True))
            until(lambda: desk.tickets and desk.tickets[0].tokens > 3)
            assert figures(served)["sr_edge_running",] == 1
        until(lambda: desk.running == [])
        until(lambda: ("sr_edge_request_seconds_count",) in figures(served))
        found = figures(served)
    assert found["sr_edge_running",] == 0
    assert found["sr_edge_hang_ups_total",] == 1
    assert found["sr_edge_tokens_total", "local"] >= desk.tickets[0].tokens - 1


def test_whoever_was_told_of_a_problem_has_not_hung_up():
    told = threading.Event()
    desk = ScriptedDesk(error=GenerationError("no"), gate=lambda: told.wait(10))
    with serving(desk) as served, connect(served.port) as wire:
        wire.sendall(chat(served.port))
        assert read(wire).status == 500
        wire.sendall(request(served.port, "/health"))  # by now the server knows that the first one is over
        assert read(wire).status == 200
        told.set()
        until(lambda: desk.running == [])
        assert figures(served)["sr_edge_hang_ups_total",] == 0


def test_what_an_answer_goes_on_from_counts_as_prompt():
    body = {"continue_final_message": True, "max_tokens": 8}
    said = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "So it began:"}]
    with serving(ScriptedDesk()) as served:
        got = exchange(served.port, chat(served.port, messages=said, **body))
        found = figures(served)
    usage = got.json["usage"]
    assert usage["prompt_tokens"] == found["sr_edge_prompt_tokens_total",] == 5 + len("So it began:")
    assert usage["sr_edge"]["local_tokens"] == found["sr_edge_tokens_total", "local"]


def test_the_first_text_is_one_that_was_written():
    given = Following(metrics := Metrics(lambda: Figures(0, 0)), "Once.", clock=iter([0.0, 5.0]).__next__)
    for letter in "Once.":
        given.hear(LocalToken(id=1, text=letter, logprob=0.0, at=0.0))
    given.hear(LocalToken(id=1, text="Then", logprob=0.0, at=5.0))
    assert b"sr_edge_first_token_seconds_sum 5.0" in metrics.text()
    assert b"sr_edge_token_interval_seconds_count 0.0" in metrics.text()


def test_each_of_the_desks_figures_is_explained():
    assert NOW.keys() == {field.name for field in fields(DeskFigures)}


def test_failures_are_counted_by_their_kind():
    with serving(ScriptedDesk(error=GenerationError("secret words"))) as served:
        assert exchange(served.port, chat(served.port)).status == 500
        found = figures(served)
    assert found["sr_edge_errors_total", "GenerationError"] == 1
    assert found["sr_edge_requests_total", "/v1/chat/completions", "500"] == 1


def test_what_is_refused_is_counted_and_no_word_of_a_client_is_kept():
    with serving(ScriptedDesk()) as served:
        secret = "canary"
        for data in (
            request(served.port, f"/{secret}?{secret}"),
            request(served.port, f"/v1/models/{secret}"),
            request(served.port, method=secret.upper()),
            request(served.port, host=secret),
            request(served.port, headers={"Origin": f"https://{secret}", "User-Agent": secret}),
            request(served.port, token=secret),
            chat(served.port, secret, user=secret, headers={"User-Agent": secret}),
            f"{secret}\r\n\r\n".encode(),
        ):
            exchange(served.port, data)
        found = figures(served)
        assert secret.encode() not in served.metrics.text().lower()
    assert found["sr_edge_requests_total", "other", "404"] == 1
    assert found["sr_edge_requests_total", "/v1/models/{id}", "404"] == 1
    assert found["sr_edge_requests_total", "/v1/models", "421"] == 1
    assert found["sr_edge_requests_total", "none", "400"] == 1


def test_two_servers_count_apart():
    with serving(ScriptedDesk()) as one, serving(ScriptedDesk()) as other:
        exchange(one.port, chat(one.port))
        assert figures(one)["sr_edge_tokens_total", "local"] == 15
        assert figures(other)["sr_edge_tokens_total", "local"] == 0
