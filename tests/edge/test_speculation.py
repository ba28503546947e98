"""The small model drafts what the large one then verifies: the same text, in fewer decodes."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.errors import ContextFullError, StoppedError
from sr_edge.events import SpanClosed, SpanOpened
from sr_edge.local import LlamaLocal
from sr_edge.passport import demo_paths
from sr_edge.remote import speculation
from sr_edge.remote.local_gguf import LocalGGUF
from sr_edge.remote.speculation import Always, Contest, Speculation, share_vocabulary
from sr_edge.roles import NO_BIAS, Limits, Message
from sr_edge.session import Session, SessionSettings
from sr_edge.split import SplitDecoder
from sr_edge.suites.demo import problems
from sr_edge.transcript import fold

QUESTION = [Message("user", "how?")]
NEAR = 1e-3
"""Logits that differ by less may change places when they are computed in another batch."""

REAL = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`big` and small models that resemble it: wholly, somewhat, not at all."""
    folder = tmp_path_factory.mktemp("pairs")
    write_tiny_gguf(folder / "big.gguf", seed=3)
    write_tiny_gguf(folder / "alike.gguf", seed=3)
    write_tiny_gguf(folder / "similar.gguf", seed=3, heads=8)  # the same weights, cut into other heads
    write_tiny_gguf(folder / "other.gguf", seed=4)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    with LlamaLocal.open(folder / "big.gguf", temperature=0) as model:
        yield model


@pytest.fixture(scope="module")
def fresh(folder):
    with LlamaLocal.open(folder / "big.gguf", temperature=0) as model:
        yield model


def asking(path, *, has_asked=True, **options):
    """A small model that has just asked for a span; or else one that has only read the question."""
    small = LlamaLocal.open(path, temperature=0, **options)
    small.feed(small.render(QUESTION).ids)
    if has_asked:
        small.feed(small.markers.open_ids)
    return small


def listen(span):
    pieces = []
    while (piece := span.read(1.0)) is not None:
        pieces.append(piece)
    return "".join(pieces), span.outcome


def always(remote, small):
    """Draft each step, whether it is faster or not."""
    remote.speculation = Speculation(small, remote._model, clock=lambda: 0.0, likely=0, contest=Always())
    return remote


def alone(path, answer, count):
    with LocalGGUF(path) as remote:
        return listen(remote.stream(QUESTION, answer, count))


def assert_same_but_for_near_ties(ids, expected, fresh):
    """Where they part, the two tokens are equally likely up to rounding."""
    part = next((n for n, (a, b) in enumerate(zip(ids, expected, strict=True)) if a != b), None)
    if part is not None:
        fresh.rewind(0)
        fresh.feed(expected[:part])
        fresh.entropy()  # computes the logits
        logits = fresh._llama.logits()
        assert abs(logits[ids[part]] - logits[expected[part]]) < NEAR, f"they part at {part}"


# --- one decode for many tokens ------------------------------------------------------------------------


@given(
    prompt=st.text(st.sampled_from("the cat, 12 + 3\n"), min_size=1, max_size=20),
    drafts=st.lists(st.tuples(st.integers(0, 31), st.integers(0, 31), st.randoms()), min_size=1, max_size=6),
    sampled_first=st.booleans(),
)
@REAL
def test_verified_tokens_are_those_that_sampling_writes(model, fresh, prompt, drafts, sampled_first):
    """Whatever is drafted: right, wrong, or right up to somewhere."""
    prompt = model.tokenize(prompt)
    banned = model.markers.open_ids
    fresh.rewind(0)
    fresh.feed(prompt)
    expected = [fresh.sample(banned).id for _ in range(32 * 7)]
    model.rewind(0)
    model.feed(prompt)
    written = [model.sample(banned).id] if sampled_first else []
    for length, right, chance in drafts:
        draft = expected[len(written) :][:length]
        draft[right:] = [chance.choice([id, chance.randrange(256)]) for id in draft[right:]]
        before = model._llama.decodes
        chosen = model.verify(draft, banned)
        assert model._llama.decodes - before <= 1
        assert chosen[:-1] == draft[: len(chosen) - 1]
        assert len(chosen) - 1 == len(draft) or chosen[-1] != draft[len(chosen) - 1]
        written += chosen
        assert list(model.ids) == prompt + written
    assert_same_but_for_near_ties(prompt + written, prompt + expected[: len(written)], fresh)


@given(st.integers(0, 8), st.randoms())
@REAL
def test_what_was_refused_leaves_nothing_in_the_cache(model, fresh, right, chance):
    model.rewind(0)
    model.feed(model.tokenize("the hen and "))
    fork = model.fork()
    draft = [fork.sample().id for _ in range(right)] + [chance.randrange(256) for _ in range(8)]
    fork.close()
    model.verify(draft)
    ids = [*model.ids]
    goes_on = [model.sample().id for _ in range(12)]
    fresh.rewind(0)
    fresh.feed(ids)
    expected = [fresh.sample().id for _ in range(12)]
    assert_same_but_for_near_ties(ids + goes_on, ids + expected, fresh)


def test_a_banned_token_is_chosen_nowhere(model):
    model.rewind(0)
    model.feed(model.tokenize("then"))
    wanted = model.fork()
    draft = [wanted.sample().id for _ in range(6)]
    wanted.close()
    chosen = model.verify(draft, [draft[3]])
    assert chosen[:3] == draft[:3]
    assert draft[3] not in chosen


def test_a_failed_decode_leaves_the_cursor_as_it_was(model, monkeypatch):
    model.rewind(0)
    model.feed(model.tokenize("then"))
    expected = model.fork()
    draft = [expected.sample().id for _ in range(4)]
    expected.close()
    before = [*model.ids]
    model.stop()
    with pytest.raises(StoppedError):
        model.verify(draft)
    model.go_on()
    assert list(model.ids) == before
    assert model.verify(draft)[:4] == draft


def test_what_cannot_be_verified_is_refused(folder, model):
    model.rewind(0)
    with pytest.raises(ValueError, match="feed a prompt"):
        model.verify([1])
    model.feed([1])
    with pytest.raises(ValueError, match="31 at most"):
        model.verify([1] * 32)
    model.feed([1] * (model.room - 3))
    with pytest.raises(ContextFullError):
        model.verify([1, 1, 1])
    with (
        LlamaLocal.open(folder / "big.gguf", temperature=0.5) as warm,
        pytest.raises(ValueError, match="must be 0"),
    ):
        warm.verify([1])


# --- a span --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["", "First, ", "größer 🧮 "])
@pytest.mark.parametrize("name", ["alike", "similar", "other"])
def test_a_drafted_span_is_the_one_that_the_large_model_writes_alone(folder, fresh, name, answer):
    expected, outcome = alone(folder / "big.gguf", answer, 120)
    with asking(folder / f"{name}.gguf") as small, LocalGGUF(folder / "big.gguf") as remote:
        _, drafted = listen(always(remote, small).stream(QUESTION, answer, 120))
        ids = list(remote._model.ids)
    assert (drafted.end, drafted.completion_tokens) == (outcome.end, outcome.completion_tokens)
    with LocalGGUF(folder / "big.gguf") as remote:
        assert listen(remote.stream(QUESTION, answer, 120))[0] == expected
        assert_same_but_for_near_ties(ids, list(remote._model.ids), fresh)


@given(
    name=st.sampled_from(["alike", "similar", "other"]),
    likely=st.sampled_from([0, 0.02, 0.05]),
    spans=st.lists(
        st.tuples(st.text("the 1,\n", max_size=6), st.integers(1, 50), st.integers(1, 20)),
        min_size=1,
        max_size=4,
    ),
)
@REAL
def test_whatever_spans_come_and_whenever_they_are_cut_the_text_stays_the_same(
    folder, fresh, name, likely, spans
):
    answer = ""
    with asking(folder / f"{name}.gguf") as small, LocalGGUF(folder / "big.gguf") as remote:
        remote.speculation = Speculation(
            small, remote._model, clock=lambda: 0.0, likely=likely, contest=Always()
        )
        for said, most, reads in spans:
            answer += said
            span = remote.stream(QUESTION, answer, most)
            written = "".join(filter(None, (span.read(1.0) for _ in range(reads))))
            span.close()
            prompt = [*remote._model.render(QUESTION).ids, *remote._model.tokenize(answer)]
            ids = list(remote._model.ids)
            assert ids[: len(prompt)] == prompt
            fresh.rewind(0)
            fresh.feed(prompt)
            banned = fresh.markers.open_ids + fresh.markers.close_ids
            expected = [fresh.sample(banned).id for _ in ids[len(prompt) :]]
            assert_same_but_for_near_ties(ids, prompt + expected, fresh)
            answer += written
            small.feed(small.tokenize(said + written))


def test_a_right_draft_saves_decodes_and_a_wrong_one_costs_the_large_model_none(folder):
    with LocalGGUF(folder / "big.gguf") as remote:
        listen(remote.stream(QUESTION, "", 200))
        without = remote._model._llama.decodes
    shares = {}
    for name in ("alike", "similar", "other"):
        with (
            asking(folder / f"{name}.gguf", has_asked=False) as small,
            LocalGGUF(folder / "big.gguf") as remote,
        ):
            speculated = always(remote, small).speculation
            listen(remote.stream(QUESTION, "", 200))
            assert remote._model._llama.decodes == without - speculated.accepted + 1, "the first row again"
            shares[name] = speculated.accepted / speculated.drafted
    assert shares["alike"] == 1
    assert 0.02 < shares["similar"] < 1
    assert shares["other"] < 0.1


def test_drafts_become_longer_while_they_are_right_and_shorter_when_not(folder):
    with asking(folder / "alike.gguf", has_asked=False) as small, LocalGGUF(folder / "big.gguf") as remote:
        listen(always(remote, small).stream(QUESTION, "", 150))
        assert remote.speculation.length == speculation.MAX_DRAFT
    with asking(folder / "other.gguf") as small, LocalGGUF(folder / "big.gguf") as remote:
        listen(always(remote, small).stream(QUESTION, "", 150))
        assert remote.speculation.length == 1


def test_the_small_model_keeps_its_cache_and_its_branches(folder):
    with asking(folder / "alike.gguf") as small, LocalGGUF(folder / "big.gguf") as remote:
        before, room = [*small.ids], small.room
        span = always(remote, small).stream(QUESTION, "", 60)
        span.read(1.0)
        span.close()
        assert (list(small.ids), small.room) == (before, room)
        listen(remote.stream(QUESTION, "", 60))
        assert (list(small.ids), small.room) == (before, room)
        branches = [small.fork() for _ in range(3)]
        assert len({branch._sequence for branch in branches}) == 3


def test_without_a_branch_or_room_the_large_model_writes_alone(folder):
    expected, _ = alone(folder / "big.gguf", "", 40)
    with asking(folder / "alike.gguf") as small, LocalGGUF(folder / "big.gguf") as remote:
        branches = [small.fork() for _ in range(3)]
        assert listen(always(remote, small).stream(QUESTION, "", 40))[0] == expected
        assert remote.speculation.drafted == 0
        for branch in branches:
            branch.close()
    with asking(folder / "alike.gguf", n_ctx=100) as small, LocalGGUF(folder / "big.gguf") as remote:
        assert listen(always(remote, small).stream(QUESTION, "", 40))[0] == expected
        assert remote.speculation.drafted == 0


def test_a_span_that_fills_the_small_models_context_loses_nothing_to_the_draft(folder):
    """What the branch holds is room that the span itself needs."""
    answers = []
    for drafts in (False, True):
        opened = LlamaLocal.open(folder / "alike.gguf", temperature=0, n_ctx=220)
        with opened as small, LocalGGUF(folder / "big.gguf") as remote:
            if drafts:
                always(remote, small)
            decoder = SplitDecoder(small, remote, policy="remote", limits=Limits(max_tokens=150))
            events = list(decoder.generate(QUESTION))
            closed = next(e for e in events if isinstance(e, SpanClosed))
            answers.append((fold(events).text, closed.end, closed.tokens))
            drafted = drafts and remote.speculation.drafted
    assert answers[0] == answers[1]
    assert 0 < drafted < 50, "some, until there was no more room for the branch"


def test_a_stop_while_the_small_model_drafts_is_the_users(folder):
    stopped = []
    with (
        LlamaLocal.open(folder / "alike.gguf", temperature=0) as small,
        LocalGGUF(folder / "big.gguf") as remote,
    ):
        always(remote, small)
        decoder = SplitDecoder(small, remote, policy="remote", limits=Limits(max_tokens=100))
        events = []
        for event in decoder.generate(QUESTION, cancelled=lambda: bool(stopped)):
            events.append(event)
            if isinstance(event, SpanOpened):
                small.stop()
                stopped.append(True)
        small.go_on()
        closed = next(e for e in events if isinstance(e, SpanClosed))
        assert (closed.end, closed.error) == ("cancelled", None)


def test_the_built_in_pair_shares_no_vocabulary_and_so_drafts_nothing(folder):
    pair = demo_paths()
    with LlamaLocal.open(pair.small, temperature=0) as small:
        with LocalGGUF(pair.big, small=small) as remote:
            assert remote.speculation is None
        with LlamaLocal.open(folder / "big.gguf") as big:
            assert not share_vocabulary(small, big)


def test_drafting_with_another_vocabulary_shows_only_what_both_have(folder):
    """A draft is never trusted: even so the answers of the built-in pair stay what they were."""
    pair = demo_paths()
    asked = [[Message("user", problem.question)] for problem in problems(seed=2024, n=6)]
    with LlamaLocal.open(pair.small, temperature=0) as small, LocalGGUF(pair.big) as remote:
        expected = [fold(list(SplitDecoder(small, remote).generate(one))).text for one in asked]
        always(remote, small)
        assert [fold(list(SplitDecoder(small, remote).generate(one))).text for one in asked] == expected
        assert remote.speculation.drafted > 0


def test_markers_and_padding_may_differ(folder, tmp_path):
    plain = write_tiny_gguf(
        tmp_path / "plain.gguf", seed=3, control=("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    )
    longer = write_tiny_gguf(tmp_path / "longer.gguf", seed=3, user_defined=("<think>", "</think>", "<pad>"))
    with LlamaLocal.open(folder / "alike.gguf", temperature=0) as small:
        for path in (plain, longer):
            with LocalGGUF(path, small=small) as remote:
                assert remote.speculation is not None
        with LocalGGUF(longer, small=small, temperature=0.7) as remote:
            assert remote.speculation is None, "what is drawn by lot cannot be foreseen"


def test_each_draft_goes_on_from_what_the_large_model_wrote(folder, monkeypatch):
    verify = LlamaLocal.verify
    with asking(folder / "similar.gguf") as small, LocalGGUF(folder / "big.gguf") as remote:
        span = always(remote, small).stream(QUESTION, "", 80)
        question, read = len(small.render(QUESTION).ids), []

        def checking(self, draft, banned=()):
            prompt = [*small.ids]
            written = [*self.ids[question:]]
            branch = next(one for one in small._model.cursors if one is not small)
            read.append(list(branch.ids[: len(prompt) + len(written)]) == prompt + written)
            return verify(self, draft, banned)

        monkeypatch.setattr(LlamaLocal, "verify", checking)
        listen(span)
    assert len(read) > 10
    assert all(read)


def test_the_small_models_markers_are_in_no_draft(folder, monkeypatch):
    drafts = []
    verify = LlamaLocal.verify

    def recording(self, draft, banned=()):
        drafts.append([*draft])
        return verify(self, draft, banned)

    monkeypatch.setattr(LlamaLocal, "verify", recording)
    with asking(folder / "similar.gguf") as small, LocalGGUF(folder / "big.gguf") as remote:
        markers = small.markers
        wanted = markers.close_ids[0]
        sample, count = LlamaLocal.sample, iter(range(10**6))

        def wanting(self, banned=(), logit_bias=NO_BIAS):
            sampled = sample(self, banned, logit_bias)
            if self._model is small._model and next(count) % 3 == 2:  # it would close the span here
                self._ids[-1] = wanted
                return type(sampled)(wanted, 0.0)
            return sampled

        monkeypatch.setattr(LlamaLocal, "sample", wanting)
        listen(always(remote, small).stream(QUESTION, "", 60))
    assert drafts
    assert all(len(draft) <= 2 for draft in drafts), "a draft ends where the small model wants the pen"
    assert not {*markers.open_ids, *markers.close_ids} & {id for draft in drafts for id in draft}


@pytest.mark.parametrize("speculate", [True, False])
def test_a_session_lets_the_small_model_draft_unless_that_is_switched_off(folder, speculate):
    chosen = SessionSettings(
        model=folder / "alike.gguf", big=str(folder / "big.gguf"), policy="remote", temperature=0.7, seed=1
    )
    with Session.open(replace(chosen, speculate=speculate)) as session:
        assert session.remote.speculation is None, "the large model's whole answers are drawn by lot"
    chosen = replace(chosen, big_temperature=0.0, max_tokens=60, speculate=speculate)
    with Session.open(chosen) as session:
        assert (session.remote.speculation is not None) == speculate
        text = fold(list(session.answer(QUESTION))).text
        assert not speculate or session.remote.speculation.contest.is_kept is not None, "tried"
    with Session.open(replace(chosen, speculate=False)) as session:
        assert fold(list(session.answer(QUESTION))).text == text


# --- whether to draft ----------------------------------------------------------------------------------


def play(contest, steps, *, alone, drafting, per_draft=3):
    """Steps on a scripted clock: `alone` and `drafting` are seconds a token, by how many there are."""
    ways, tokens = [], 0
    for _ in range(steps):
        is_drafting = contest.is_drafting
        count = per_draft if is_drafting else 1
        pace = (drafting if is_drafting else alone)(tokens)
        contest.wrote(count, count * pace)
        ways += [is_drafting] * count
        tokens += count
    return ways


@given(
    alone=st.floats(0.01, 1), ratio=st.floats(0.1, 3), seed=st.integers(0, 999), per_draft=st.integers(1, 8)
)
def test_the_faster_way_is_kept_whatever_else_slows_the_machine(alone, ratio, seed, per_draft):
    contest, noise = Contest(), random.Random(seed)

    def loaded(pace):
        return lambda tokens: pace * (1 + noise.random() ** 8 / 100)

    ways = play(contest, 2000, alone=loaded(alone), drafting=loaded(alone * ratio), per_draft=per_draft)
    if ratio < 0.9:
        assert contest.is_kept
        assert sum(ways) > 0.8 * len(ways)
    elif ratio > 1:
        assert contest.is_kept is False
        assert sum(ways) < 0.1 * len(ways)
        assert sum(ways[500:1000]) <= 60, "tried again, but rarely"


def test_as_fast_is_not_faster():
    contest = Contest()
    play(contest, 200, alone=lambda n: 1.0, drafting=lambda n: 0.97)
    assert contest.is_kept is False


def test_a_hopeless_draft_is_dropped_after_one_turn():
    contest = Contest()
    ways = play(contest, 100, alone=lambda n: 1.0, drafting=lambda n: 2.0, per_draft=1)
    assert ways.count(True) == 9, "one turn, and the step that catches up"


def test_a_draft_that_becomes_slow_is_dropped_at_once():
    contest = Contest()
    play(contest, 400, alone=lambda n: 1.0, drafting=lambda n: 0.5)
    assert contest.is_kept
    ways = play(contest, 200, alone=lambda n: 1.0, drafting=lambda n: 1.4, per_draft=1)
    assert contest.is_kept is False
    assert ways.count(True) < 80
    assert not any(ways[-60:])


def test_trials_that_end_alike_become_rarer():
    contest = Contest(rest=64, longest=512)
    ways = play(contest, 4000, alone=lambda n: 1.0, drafting=lambda n: 1.2, per_draft=1)
    starts = [n for n in range(1, len(ways)) if ways[n] and not any(ways[max(0, n - 20) : n])]
    gaps = [b - a for a, b in pairwise(starts)]
    assert gaps == sorted(gaps)
    assert gaps[0] < 120
    assert gaps[-1] > 500
