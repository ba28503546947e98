"""Rollouts written by the batched engine: they are what the client would have written, one by one."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.train.rollout_models import ask, gist, load_demo, logprobs_from_scratch, make_random

from sr_edge.errors import ContextFullError, UsageError
from sr_edge.evaluate import random_schedule
from sr_edge.events import LocalToken, SpanOpened
from sr_edge.local import LlamaLocal
from sr_edge.markers import OPEN
from sr_edge.passport import demo_paths
from sr_edge.remote.endpoint import Endpoint
from sr_edge.remote.local_gguf import LocalGGUF
from sr_edge.roles import Limits, Message, Outcome
from sr_edge.split import SplitDecoder
from sr_edge.suites.demo import HARD_KINDS, problems
from sr_edge.testing import FaultEndpoint
from sr_edge.testing.fault_endpoint import COMPLETIONS, RST, failure, head
from sr_edge.testing.oracle import broken_laws
from sr_edge.transcript import fold
from sr_train.rollout.big import CheckpointBig, EndpointBig, SelfBig
from sr_train.rollout.engine import BatchedEngine
from sr_train.rollout.hub import Hub
from sr_train.rollout.span_cache import SpanCache, Written

HARD = [p for p in problems(seed=77, n=120) if any(step.kind in HARD_KINDS for step in p.steps)]
QUESTIONS = [problem.question for problem in HARD]
LIMITS = Limits(max_tokens=400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def small(folder):
    return load_demo("small", folder)


@pytest.fixture(scope="module")
def big(folder):
    return load_demo("big", folder)


@pytest.fixture(scope="module")
def noise(folder):
    return make_random(folder / "noise")


@pytest.fixture(scope="module")
def random_models(folder):
    return cache(lambda architecture: make_random(folder / f"noise-{architecture}", architecture))


def engine_of(small, big=None, **options):
    options = {"limits": LIMITS, "temperature": 0.0, **options}
    return BatchedEngine(small.model, small.tokenizer, small.markers, big, **options)


def checkpoint_big(big, **options):
    return CheckpointBig(big.model, big.tokenizer, markers=big.markers, **options)


class FunctionRemote:
    """A remote that writes what a function of the answer so far says, a letter at a time, from any thread."""

    name = "function"

    def __init__(self, write, *, outcome=None, delay=0.0):
        self.write, self.outcome, self.delay = write, outcome or Outcome("stop"), delay
        self.asked: list[str] = []
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()

    def stream(self, messages, answer, max_tokens):
        with self.lock:
            self.asked.append(answer)
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        return _FunctionStream(self, list(self.write(answer)))


class _FunctionStream:
    def __init__(self, remote, letters):
        self.remote, self.letters, self.closed = remote, letters, False

    def read(self, timeout):
        time.sleep(self.remote.delay)
        return self.letters.pop(0) if self.letters else None

    @property
    def outcome(self):
        return self.remote.outcome

    def close(self):
        if not self.closed:
            self.closed = True
            with self.remote.lock:
                self.remote.busy -= 1


# --- train = deploy -------------------------------------------------------------------------------------


def test_greedy_rollouts_are_what_the_client_writes(small, big):
    asked = QUESTIONS[:22]
    rollouts = engine_of(small, checkpoint_big(big), max_rows=16).run(
        [ask(q, n) for n, q in enumerate(asked)]
    )
    paths = demo_paths()
    with LlamaLocal.open(paths.small, temperature=0, kv_type="f32") as local, LocalGGUF(paths.big) as remote:
        decoder = SplitDecoder(local, remote, limits=LIMITS)
        for question, rollout in zip(asked, rollouts, strict=True):
            expected = fold(decoder.generate([Message("user", question)]))
            got = rollout.transcript
            assert (got.prompt_ids, got.ids, got.sampled) == (
                expected.prompt_ids,
                expected.ids,
                expected.sampled,
            )
            assert (got.text, got.opening, got.finish) == (expected.text, expected.opening, expected.finish)
            assert [(s.end, s.text, s.tokens) for s in got.spans] == [
                (s.end, s.text, s.tokens) for s in expected.spans
            ]
    assert sum(len(rollout.transcript.spans) for rollout in rollouts) >= 10


def test_logprobs_are_the_models_own_and_the_cache_is_in_step(small, big):
    """After every span and rewind: the log-probabilities are those of one pass over the final ids."""
    engine = engine_of(small, checkpoint_big(big), temperature=1.2, max_rows=5)
    rollouts = engine.run([ask(q, n, bias=1.0) for n, q in enumerate(QUESTIONS[:7])])
    for rollout in rollouts:
        fresh = logprobs_from_scratch(small.model, rollout)
        for own, again, is_sampled in zip(rollout.logprobs, fresh, rollout.sampled, strict=True):
            assert own == (pytest.approx(again, abs=2e-4) if is_sampled else 0.0)
    assert any(rollout.transcript.spans for rollout in rollouts)


# --- what always holds ----------------------------------------------------------------------------------


def assert_lawful(rollout):
    assert broken_laws(rollout.events) == []
    assert rollout.completion_ids == rollout.transcript.ids
    assert len(rollout.completion_ids) == len(rollout.sampled) == len(rollout.logprobs)
    tokens = [event for event in rollout.events if isinstance(event, LocalToken)]
    assert [p for p, s in zip(rollout.logprobs, rollout.sampled, strict=True) if s] == [
        t.logprob for t in tokens
    ]


@settings(max_examples=30, phases=[Phase.explicit, Phase.generate])
@given(
    architecture=st.sampled_from(["qwen2", "qwen3", "llama"]),
    bias=st.sampled_from([0.0, 3.0, 8.0]),
    max_tokens=st.integers(1, 60),
    max_span=st.integers(1, 20),
    max_spans=st.integers(0, 4),
    max_rows=st.integers(1, 6),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    policies=st.lists(st.sampled_from(["auto", "local", "remote"]), min_size=1, max_size=7),
    writer=st.sampled_from(["checkpoint", "self", "endpoint", "in pieces", "failing", "none"]),
    seed=st.integers(0, 100),
)
def test_the_laws_hold_on_random_models(
    random_models, architecture, bias, max_tokens, max_span, max_spans, max_rows, temperature, policies,
    writer, seed,
):  # fmt: skip
    noise = random_models(architecture)
    eager = replace(noise.markers, tau=0.002)  # it takes the pen back in the middle of what was read
    broken = Outcome("error", "it broke", fault="request")
    bigs = {
        "checkpoint": lambda: checkpoint_big(noise, temperature=1.0),
        "self": SelfBig,
        "endpoint": lambda: EndpointBig(FunctionRemote(lambda answer: "one two\n\nthree"), concurrency=2),
        "in pieces": lambda: EndpointBig(FunctionRemote(lambda answer: ["so 12 + 30\n\n = 4", "2 and on."])),
        "failing": lambda: EndpointBig(FunctionRemote(lambda answer: "on", outcome=broken), attempts=1),
        "none": lambda: None,
    }
    limits = Limits(max_tokens=max_tokens, max_span_tokens=max_span, soft_span_tokens=max_span // 2 + 1)
    engine = BatchedEngine(
        noise.model, noise.tokenizer, eager, bigs[writer](),
        limits=limits, temperature=temperature, max_rows=max_rows, max_spans=max_spans,
    )  # fmt: skip
    requests = [ask(f"q{n}", seed, n, policy=policy, bias=bias) for n, policy in enumerate(policies)]
    heard = []
    rollouts = engine.run(requests, heard.append)
    assert sorted(heard) == list(range(len(requests)))
    for request, rollout in zip(requests, rollouts, strict=True):
        assert rollout.request is request
        assert_lawful(rollout)
        transcript = rollout.transcript
        # a span ends with a whole character, which may take some tokens more
        assert transcript.local_tokens + transcript.remote_tokens <= max_tokens + 3
        marked = [span for span in transcript.spans if span.text and span.trigger == "marker"]
        assert len(marked) <= max_spans
        assert rollout.remote_failed == (
            writer == "failing" and any(s.end == "error" for s in transcript.spans)
        )
        if request.policy == "local":
            assert not transcript.spans
            assert all(rollout.sampled)
        fresh = logprobs_from_scratch(noise.model, rollout)
        for own, again, is_sampled in zip(rollout.logprobs, fresh, rollout.sampled, strict=True):
            assert not is_sampled or own == pytest.approx(again, abs=1e-3)


def test_text_that_was_read_too_far_is_forgotten(noise):
    """The pen goes back in the middle of what came at once: the cells after it must not be seen again."""
    remote = FunctionRemote(lambda answer: ["so 12 + 30\n\n = 4", "2 and on."])
    eager = replace(noise.markers, tau=0.002)
    limits = Limits(max_tokens=60, max_span_tokens=20, soft_span_tokens=11)
    engine = BatchedEngine(
        noise.model, noise.tokenizer, eager, EndpointBig(remote), limits=limits, temperature=1.0
    )
    rollouts = engine.run([ask("q", n, bias=8.0) for n in range(8)])
    ends = [span.end for rollout in rollouts for span in rollout.transcript.spans]
    assert {"handback", "boundary"} <= set(ends)
    for rollout in rollouts:
        assert_lawful(rollout)
        fresh = logprobs_from_scratch(noise.model, rollout)
        for own, again, is_sampled in zip(rollout.logprobs, fresh, rollout.sampled, strict=True):
            assert not is_sampled or own == pytest.approx(again, abs=1e-3)


def test_a_rollout_does_not_depend_on_its_neighbours(small, big):
    requests = [ask(q, 5, n, bias=0.5) for n, q in enumerate(QUESTIONS[:6])]
    together = engine_of(small, checkpoint_big(big, temperature=0.7), temperature=1.0).run(requests)
    refilled = engine_of(small, checkpoint_big(big, temperature=0.7), temperature=1.0, max_rows=3)
    assert list(map(gist, refilled.run(requests))) == list(map(gist, together))
    alone = engine_of(small, checkpoint_big(big, temperature=0.7), temperature=1.0)
    for n in (0, 4):
        assert gist(alone.run([requests[n]])[0]) == gist(together[n])
    others = alone.run([replace(request, key=(*request.key, 0)) for request in requests])
    assert list(map(gist, others)) != list(map(gist, together))


def test_tokens_are_drawn_by_their_probabilities(noise):
    """Many first tokens of one prompt, against the model's own distribution with a bias and a ban in it."""
    engine = engine_of(noise, SelfBig(), limits=Limits(max_tokens=1), temperature=2.0)
    rollouts = engine.run([ask("x", n, bias=2.0) for n in range(1000)])
    # a span that got no room leaves no marker behind: what is looked at is who asked
    asked = sum(any(isinstance(e, SpanOpened) for e in rollout.events) for rollout in rollouts) / len(
        rollouts
    )
    ids = torch.tensor([rollouts[0].prompt_ids])
    with torch.no_grad():
        logits = noise.model(input_ids=ids).logits[0, -1].double()
    open_id, close_id = noise.markers.open_ids[0], noise.markers.close_ids[0]
    logits[open_id] += 2.0
    logits[close_id] = -torch.inf
    p = float((logits / 2.0).softmax(-1)[open_id])
    assert asked == pytest.approx(p, abs=5 * (p * (1 - p) / len(rollouts)) ** 0.5)
    assert not any(close_id in rollout.completion_ids[:1] for rollout in rollouts)


# --- who writes a span ----------------------------------------------------------------------------------


def test_the_small_model_itself_writes_its_spans_and_closes_them(small):
    engine = engine_of(small, SelfBig(), temperature=0.0)
    rollouts = engine.run([ask(q, n) for n, q in enumerate(QUESTIONS[:6])])
    spans = [span for rollout in rollouts for span in rollout.transcript.spans if span.text]
    assert spans
    assert {span.end for span in spans} <= {"stop", "handback"}
    for rollout in rollouts:
        assert_lawful(rollout)


def test_spans_are_limited_and_then_the_marker_is_banned(noise):
    remote = FunctionRemote(lambda answer: "two words")
    engine = engine_of(noise, EndpointBig(remote), limits=Limits(max_tokens=80), temperature=1.0, max_spans=2)
    rollouts = engine.run([ask("q", n, bias=9.0) for n in range(6)])
    assert all(len(rollout.transcript.spans) == 2 for rollout in rollouts)


def test_a_schedule_asks_in_place_of_the_marker_and_sees_the_cursor(small, big):
    entropies = []

    def uncertain(cursor):
        def at(num_tokens):
            entropies.append(cursor.entropy())
            return 5 if entropies[-1] > 1.0 else None

        return at

    engine = engine_of(small, checkpoint_big(big))
    requests = [
        ask(QUESTIONS[0], 0, schedule=uncertain),
        ask(QUESTIONS[1], 1, schedule=lambda cursor: random_schedule(0.3, random.Random(3))),
    ]
    rollouts = engine.run(requests)
    for rollout in rollouts:
        assert_lawful(rollout)
        assert {span.trigger for span in rollout.transcript.spans} == {"random"}
        fresh = logprobs_from_scratch(small.model, rollout)
        sampled = [(a, b) for a, b, s in zip(rollout.logprobs, fresh, rollout.sampled, strict=True) if s]
        assert all(a == pytest.approx(b, abs=2e-4) for a, b in sampled)
    prompt = torch.tensor([rollouts[0].prompt_ids])
    with torch.no_grad():
        logp = small.model(input_ids=prompt).logits[0, -1].log_softmax(-1)
    assert entropies[0] == pytest.approx(float(-(logp.exp() * logp).sum()), abs=1e-4)


def test_a_schedule_is_not_held_to_the_small_models_spans(noise):
    """Baselines at equal share may need more of them than the small model may ask for."""
    limits = Limits(max_tokens=60)
    remote = FunctionRemote(lambda answer: "ab " * 50)  # cut, not at its end, which would be the answer's
    engine = engine_of(noise, EndpointBig(remote), limits=limits, max_spans=1)
    rollout = engine.run([ask("q", schedule=lambda cursor: random_schedule(0.5, random.Random(3)))])[0]
    assert len([span for span in rollout.transcript.spans if span.text]) > 1


def test_markers_of_text_form_open_and_close_spans(folder):
    """Ordinary text, several tokens each: found by decoding on, which must leave the cache as it was."""
    plain = make_random(folder / "text", markers="none", context=512)
    vocabulary = plain.tokenizer
    open_ids = vocabulary.encode(OPEN, add_special_tokens=False)
    close_ids = vocabulary.encode("</bigmodel>", add_special_tokens=False)
    markers = replace(
        make_random(folder / "form").markers, form="text", open_ids=open_ids, close_ids=close_ids
    )
    remote = FunctionRemote(lambda answer: "so x < 3 and </b> then y.")
    engine = BatchedEngine(
        plain.model, vocabulary, markers, EndpointBig(remote), limits=Limits(max_tokens=60), temperature=1.0
    )
    schedule = random_schedule(0.4, random.Random(1))
    for rollout in engine.run([ask("q", 1), ask("r", 2, schedule=lambda cursor: schedule)]):
        assert_lawful(rollout)
        fresh = logprobs_from_scratch(plain.model, rollout)
        assert all(
            own == pytest.approx(again, abs=1e-3)
            for own, again, is_sampled in zip(rollout.logprobs, fresh, rollout.sampled, strict=True)
            if is_sampled
        )


# --- endpoints and their faults -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "has_failed"),
    [
        ([head(), *COMPLETIONS.stream(" 3", " + 4")], False),
        ([head(), COMPLETIONS.text(" 3 + 4 and so"), RST], True),
        (failure(500, "ill"), True),
    ],
)
def test_a_failing_endpoint_is_told_and_the_rollout_goes_on(small, script, has_failed):
    local = engine_of(small)
    with FaultEndpoint(then=script) as server:
        prompt = local._vocabulary.render
        remote = Endpoint(server.url, prompt=prompt, model="big", api="completions", temperature=0.0)
        try:
            big = EndpointBig(remote, concurrency=2, attempts=1)
            engine = engine_of(small, big)
            rollouts = engine.run([ask(q, n) for n, q in enumerate(QUESTIONS[:4])])
        finally:
            remote.close()
    asked = [rollout for rollout in rollouts if rollout.transcript.spans]
    assert asked
    assert all(rollout.remote_failed == has_failed for rollout in asked)
    for rollout in rollouts:
        assert_lawful(rollout)
        assert rollout.transcript.finish in ("stop", "length")  # such help confuses it
        assert has_failed or not rollout.transcript.degraded
        # who failed is not asked again
        assert not has_failed or len(rollout.transcript.spans) <= 1
        fresh = logprobs_from_scratch(small.model, rollout)
        assert all(
            own == pytest.approx(again, abs=2e-4)
            for own, again, is_sampled in zip(rollout.logprobs, fresh, rollout.sampled, strict=True)
            if is_sampled
        )


def test_an_endpoint_is_asked_again_before_the_first_text_only(noise):
    ill = Outcome("error", "ill", fault="unreachable")
    silent = FunctionRemote(lambda answer: "", outcome=ill)
    engine = engine_of(noise, EndpointBig(silent, attempts=3, pause=0.001), limits=Limits(max_tokens=12))
    rollout = engine.run([ask("q", bias=30.0)])[0]
    assert len(silent.asked) == 3
    assert rollout.remote_failed
    cut = FunctionRemote(lambda answer: "some words", outcome=ill)
    engine = engine_of(noise, EndpointBig(cut, attempts=3, pause=0.001), limits=Limits(max_tokens=12))
    assert engine.run([ask("q", bias=30.0)])[0].remote_failed
    assert len(cut.asked) == 1


def test_an_endpoint_is_asked_again_after_a_beginning_that_was_known(noise, tmp_path):
    """What the cache knew is no sign that the endpoint is there."""
    ill = Outcome("error", "ill", fault="unreachable")
    remote = FunctionRemote(lambda answer: "", outcome=ill)
    kept = SpanCache(tmp_path / "spans.jsonl")
    kept.put(kept.key(remote.name, [Message("user", "q")], "", 11), Written("the whole"))
    big = EndpointBig(remote, attempts=3, pause=0.001, cache=kept)
    engine = engine_of(noise, big, limits=Limits(max_tokens=12), max_spans=1)
    engine.run([ask("q", bias=30.0)])
    assert remote.asked[:3] == ["the whole"] * 3


def test_spans_that_end_while_a_run_ends_do_not_disturb_it():
    """Their threads take them out of the list that the run goes through."""
    big = EndpointBig(FunctionRemote(lambda answer: "x"))

    class Ending:
        def close(self):
            big._streams.discard(self)

    with big.running(Hub()):
        big._streams |= {Ending() for _ in range(3)}
    assert not big._streams


def test_an_endpoint_has_only_so_many_spans_at_once(noise):
    remote = FunctionRemote(lambda answer: "two words", delay=0.002)
    engine = engine_of(noise, EndpointBig(remote, concurrency=3), limits=Limits(max_tokens=20), max_spans=1)
    engine.run([ask("q", n, bias=30.0) for n in range(12)])
    assert remote.most_busy == 3
    assert remote.busy == 0


def test_a_silent_endpoint_is_given_up(noise):
    remote = FunctionRemote(lambda answer: [""] * 10_000, delay=0.005)
    engine = engine_of(noise, EndpointBig(remote, timeout=0.05, attempts=1), limits=Limits(max_tokens=12))
    rollout = engine.run([ask("q", bias=30.0)])[0]
    assert rollout.remote_failed
    assert rollout.transcript.spans[0].end == "stalled"
    assert remote.busy == 0


def test_what_an_endpoint_wrote_is_asked_for_once(noise, tmp_path):
    remote = FunctionRemote(lambda answer: "two words")
    limits = Limits(max_tokens=20)

    def run():
        kept = SpanCache(tmp_path / "spans.jsonl", {"temperature": 0})
        engine = engine_of(noise, EndpointBig(remote, cache=kept), limits=limits, max_spans=1)
        return [gist(rollout) for rollout in engine.run([ask("q", n, bias=30.0) for n in range(3)])]

    first = run()
    num_asked = len(remote.asked)
    assert run() == first
    assert len(remote.asked) == num_asked


def test_a_span_that_was_hung_up_on_is_written_on(noise, tmp_path):
    kept = SpanCache(tmp_path / "spans.jsonl")
    remote = FunctionRemote(lambda answer: "the whole of it"[len(answer) :])
    key = kept.key(remote.name, [Message("user", "q")], "", 11)
    kept.put(key, Written("the whole"))
    engine = engine_of(noise, EndpointBig(remote, cache=kept), limits=Limits(max_tokens=12), max_spans=1)
    rollout = engine.run([ask("q", bias=30.0)])[0]
    span = next(span for span in rollout.transcript.spans if span.text)
    assert "the whole of it".startswith(span.text)
    assert remote.asked == ["the whole"]
    assert kept.get(key).text.startswith("the whole of")


def test_a_cache_that_was_cut_is_read_as_far_as_it_is_whole(tmp_path):
    path = tmp_path / "spans.jsonl"
    kept = SpanCache(path)
    keys = [kept.key("big", [Message("user", "q")], answer, 9) for answer in "abc"]
    kept.put(keys[0], Written("one", "stop", 3, 1))
    kept.put(keys[1], Written("two", "cap"))
    path.write_bytes(path.read_bytes()[:-10])
    again = SpanCache(path)
    assert again.get(keys[0]) == Written("one", "stop", 3, 1)
    assert again.get(keys[1]) is None
    again.put(keys[2], Written("three", "stop"))
    assert SpanCache(path).get(keys[2]) == Written("three", "stop")
    assert len(SpanCache(path)) == 2


# --- the model belongs to the trainer -------------------------------------------------------------------


def test_the_model_is_left_as_it_was_even_after_an_error(noise):
    noise.model.train()
    before = noise.model.config._attn_implementation
    engine = engine_of(noise, limits=Limits(max_tokens=5))
    engine.run([ask("q")])
    with pytest.raises(ContextFullError):
        engine.run([ask("fine", 1), ask("long " * 400, 2)])
    with pytest.raises(UsageError, match="0 or more"):
        engine.run([ask("q", -1)])
    assert noise.model.training
    assert noise.model.config._attn_implementation == before
    noise.model(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([[5, 6]])).loss.backward()
    assert noise.model.get_input_embeddings().weight.grad is not None
    noise.model.zero_grad()
    noise.model.eval()
    engine.run([ask("q")])


def test_a_run_sees_the_weights_as_they_are(noise, folder):
    changing = make_random(folder / "changing")
    engine = engine_of(changing, limits=Limits(max_tokens=20))
    before = engine.run([ask("q")])[0]
    with torch.no_grad():
        changing.model.get_input_embeddings().weight.mul_(-1.0)
    after = engine.run([ask("q")])[0]
    assert before.completion_ids != after.completion_ids
    assert after.logprobs[0] == pytest.approx(logprobs_from_scratch(changing.model, after)[0], abs=1e-4)


def test_settings_out_of_range_are_refused(noise):
    for wrong in ({"max_rows": 0}, {"max_spans": -1}, {"temperature": -0.1}, {"top_p": 0.0}):
        with pytest.raises(UsageError, match="at least 1"):
            engine_of(noise, **wrong)
