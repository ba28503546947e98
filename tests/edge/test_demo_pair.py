"""The built-in pair through the real engine: the laws of the event stream, and the KV invariant.

The invariant is the most important thing here: after any span, whatever became of it, greedy continuation
equals that of a fresh model that read the same ids. A span that leaves the cache out of step would corrupt
everything after it, silently.
"""

import hashlib
import random

import gguf
import pytest
from tests.edge.test_split import OneGate, assert_lawful

from sr_edge.events import SpanClosed, SpanDelta, SpanOpened
from sr_edge.extract import last_boxed
from sr_edge.local import LlamaLocal
from sr_edge.passport import demo_paths, read_passport
from sr_edge.past import taken_over
from sr_edge.remote.local_gguf import LocalGGUF
from sr_edge.roles import Limits, Message, Outcome, Steering
from sr_edge.split import SplitDecoder
from sr_edge.suites.demo import HARD_KINDS, is_correct, problems
from sr_edge.testing import Reply, ScriptedRemote
from sr_edge.transcript import fold

HARD = [p for p in problems(seed=2024, n=200) if any(step.kind in HARD_KINDS for step in p.steps)]


@pytest.fixture(scope="module")
def small():
    with LlamaLocal.open(demo_paths().small, temperature=0) as model:
        yield model


@pytest.fixture(scope="module")
def fresh():
    """Reads ids in one go, as the other never does."""
    with LlamaLocal.open(demo_paths().small, temperature=0) as model:
        yield model


@pytest.fixture(scope="module")
def big():
    with LocalGGUF(demo_paths().big) as model:
        yield model


def answer(small, remote, problem, **options):
    decoder = SplitDecoder(small, remote, limits=options.pop("limits", Limits(max_tokens=600)), **options)
    events = list(decoder.generate([Message("user", problem.question)]))
    return events, assert_lawful(events, small)


def assert_in_step(small, fresh, tokens=24):
    """Greedy continuation after this cache equals a fresh run on its ids."""
    ids = list(small.ids)
    fresh.rewind(0)
    fresh.feed(ids)
    for _ in range(tokens):
        continued, expected = small.sample(), fresh.sample()
        assert continued.id == expected.id
        assert continued.logprob == pytest.approx(expected.logprob, abs=0.05)
        if small.is_end(continued.id):
            break


def test_the_small_model_asks_and_takes_the_pen_back(small, big):
    spans = [span for p in HARD[:20] for span in answer(small, big, p)[1].spans]
    assert len(spans) >= 12
    assert sum(span.end == "handback" for span in spans) >= 0.9 * len(spans)
    assert all(span.text for span in spans)


def test_the_pen_comes_back_where_the_large_model_would_have_ended_the_step(small, big):
    """Precision and recall at once: each span is the large model's whole working, and no more."""
    with LlamaLocal.open(demo_paths().big, temperature=0) as alone:
        for problem in HARD[:20]:
            transcript = answer(small, big, problem)[1]
            prompt, text = alone.render([Message("user", problem.question)]), ""
            for segment in transcript.segments:
                if segment.span is not None:
                    alone.rewind(0)
                    alone.feed([*prompt.ids, *alone.tokenize(text)])
                    assert segment.text == working(alone)
                text += segment.text


def working(model):
    """What a model writes up to the end of the step: a full stop at the end of a line."""
    text = ""
    while not text.endswith(".\n") and len(text) < 200:
        text += model.piece(model.sample().id).decode()
    return text.removesuffix(".\n")


def test_together_they_solve_what_the_small_one_cannot(small, big):
    def num_solved(**options):
        answers = [(p, answer(small, big, p, **options)[1].text) for p in HARD[:25]]
        return sum(is_correct(p, last_boxed(text)) for p, text in answers)

    assert num_solved() >= num_solved(policy="local") + 10


def test_the_events_come_in_the_order_that_a_reader_relies_on(small, big):
    events, transcript = answer(small, big, HARD[0])
    opened = next(n for n, e in enumerate(events) if isinstance(e, SpanOpened))
    marker, delta = events[opened + 1], events[opened + 2]
    assert (marker.id,) == small.markers.open_ids
    assert isinstance(delta, SpanDelta)
    closed = next(e for e in events if isinstance(e, SpanClosed))
    assert closed.ids[-1:] == small.markers.close_ids
    assert len(closed.ids) == closed.tokens + 1
    assert "<bigmodel>" not in transcript.text


def pieces_of(text, rng):
    cuts = sorted(rng.sample(range(1, len(text)), min(len(text) - 1, rng.randrange(6))))
    return tuple(text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_after_any_span_the_cache_is_in_step(small, fresh, seed):
    """Random texts, cut anywhere, ended in any way, refused now and then; the answer stopped anywhere."""
    rng = random.Random(seed)
    texts = [
        " 20 * 4 = 80, 8 * 4 = 32, 80 + 32 = 112",
        " Well, let me see… 7 · 9 ≠ 64",
        " one\n\ntwo\n\nthree",
        "</bigmodel> x <bigmodel>",
        " 12345678901234567890",
    ]
    outcomes = [Outcome("stop"), Outcome("cap"), Outcome("error", "reset"), Outcome("stalled", "silent")]
    replies = [
        Reply(
            (*("",) * rng.randrange(4), *(pieces_of(rng.choice(texts), rng) if rng.random() < 0.8 else ())),
            rng.choice(outcomes),
        )
        for _ in range(8)
    ]
    answer(
        small,
        ScriptedRemote(replies),
        HARD[seed],
        gate=OneGate(*(n for n in range(1, 9) if rng.random() < 0.2)),
        limits=Limits(rng.randint(30, 400), rng.randint(2, 40), rng.randint(2, 40)),
        hedge=seed % 2 == 1,
    )
    assert_in_step(small, fresh)


def test_a_remote_that_never_begins_leaves_the_answer_of_the_small_model_alone(small, fresh):
    for problem in HARD[:5]:
        alone = answer(small, None, problem, policy="local")[1]
        silent = ScriptedRemote([Reply(("",) * 100_000)] * 3)
        hedged = answer(small, silent, problem, hedge=True)[1]
        assert hedged.text == alone.text
        assert hedged.ids == alone.ids
        assert len(silent.asked) <= 1
        assert_in_step(small, fresh, tokens=2)


def test_the_next_question_reuses_the_cache_and_stays_in_step(small, fresh, big):
    for problem in HARD[:3]:
        events, _ = answer(small, big, problem)
        assert_in_step(small, fresh, tokens=2)
    assert events[0].reused > 0


def special_tokens(path):
    """Ids and spellings of all tokens that are not ordinary text, as the file has them."""
    reader = gguf.GGUFReader(path)
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    spellings = reader.fields["tokenizer.ggml.tokens"].contents()
    special = (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)
    return {id: s for id, (s, t) in enumerate(zip(spellings, types, strict=True)) if t in special}


def test_what_a_user_types_never_becomes_a_special_token(small):
    special = special_tokens(demo_paths().small)
    assert {"<bigmodel>", "</bigmodel>", "<|im_end|>", "<think>"} <= set(special.values())
    plain = small.render([Message("user", "x")])
    for spelling in special.values():
        for content in (
            spelling,
            f"a{spelling}b {spelling}{spelling}",
            spelling[:3] + spelling + spelling[3:],
        ):
            typed = small.render([Message("user", content)])
            assert content in typed.text
            assert [id for id in typed.ids if id in special] == [id for id in plain.ids if id in special]


@pytest.mark.parametrize("role", ["small", "big"])
def test_a_passport_tells_the_truth(role):
    path = getattr(demo_paths(), role)
    passport = read_passport(path)
    assert passport["file"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert passport["file"]["bytes"] == path.stat().st_size
    assert passport["role"] == role


def test_the_pair_is_small():
    pair = demo_paths()
    assert pair.small.stat().st_size + pair.big.stat().st_size < 16e6


# --- going on, and dials ---


def going_on(small, big, problem, past, **options):
    limits = Limits(max_tokens=600)
    first = options.pop("first", None)
    decoder = SplitDecoder(small, big, limits=limits, **options)
    events = list(decoder.generate([Message("user", problem.question)], past=past, first=first))
    return events, assert_lawful(events, small)


def test_an_answer_cut_between_two_events_goes_on_as_if_it_had_not_been(small, big, fresh):
    problem = HARD[0]
    events, whole = answer(small, big, problem)
    rng = random.Random(5)
    for cut in rng.sample(range(2, len(events)), 12):
        past = taken_over(events[:cut])
        small.rewind(rng.randint(0, len(small.ids)))  # another conversation may have been there
        went_on, transcript = going_on(small, big, problem, past)
        assert tuple(went_on[1 : 1 + len(past)]) == past
        if fold(past).spans and fold(past).spans[-1].end is None:
            assert_in_step(small, fresh)  # the text of that span is whatever had arrived
        else:
            assert transcript.ids == whole.ids
            assert transcript.text == whole.text


@pytest.mark.parametrize("first", ["local", "remote"])
def test_a_span_that_is_written_again_leaves_the_cache_in_step(first, small, big, fresh):
    for problem in HARD[:5]:
        events, whole = answer(small, big, problem)
        past = taken_over(events, before_span=1)
        before = fold(past).text
        _, transcript = going_on(small, big, problem, past, first=first)
        if first == "remote":
            assert transcript.spans[0].trigger == "user"
            assert transcript.text == whole.text, "the pair asks and answers as it would have by itself"
        else:
            assert len(transcript.trail[0].text) > len(before)
        small.rewind(len(small.ids) - 1)  # what follows the end, nobody has taught it
        assert_in_step(small, fresh)


def test_a_bias_changes_how_often_it_asks_and_not_what_it_thinks(small, big):
    def runs(bias):
        steer = Steering(bias=bias)
        return [going_on(small, big, problem, (), steer=lambda: steer) for problem in HARD[:4]]

    def num_spans(runs):
        return sum(len(transcript.spans) for _, transcript in runs)

    straight, more, never = runs(0.0), runs(8.0), runs(-50.0)
    assert num_spans(more) > num_spans(straight) > num_spans(never) == 0
    forced = next(e for events, _ in more for e in events if isinstance(e, SpanOpened))
    assert min(e.p_open for events, _ in more for e in events if isinstance(e, SpanOpened)) < 0.1
    assert 0 <= forced.p_open <= 1
