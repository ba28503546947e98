"""The desk with real models: nothing is mixed, nothing is lost, nobody waits for ever."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.serving import chat, exchange, serving
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.errors import ContextFullError, ModelError
from sr_edge.events import Finished, LocalToken, SpanClosed, Started
from sr_edge.local import LlamaLocal, SamplerSettings
from sr_edge.passport import demo_paths
from sr_edge.roles import Message
from sr_edge.serve.desk import Desk, settings_for
from sr_edge.serve.jobs import Busy, Failed, Heard, Job, Over, Ticket
from sr_edge.session import Session, SessionSettings
from sr_edge.suites import demo
from sr_edge.testing.fault_endpoint import COMPLETIONS, DONE, FIN, FaultEndpoint, head
from sr_edge.transcript import Transcript, fold
from sr_edge.vocabulary import Vocabulary

GREEDY = SamplerSettings(temperature=0.0)
PROBLEMS = demo.problems(seed=11, n=12)


def job_of(
    content: str | Sequence[Message],
    *,
    sampling: SamplerSettings = GREEDY,
    client: str = "me",
    tokens: int = 512,
) -> Job:
    messages = (Message("user", content),) if isinstance(content, str) else tuple(content)
    return Job(messages, None, "", sampling, tokens, "auto", client)


class Listener:
    """Hears one job, and may do something at an event."""

    def __init__(self, act: Callable[[Heard], None] = lambda heard: None) -> None:
        self.heard: list[Heard] = []
        self._act = act
        self._over = threading.Event()

    def __call__(self, heard: Heard) -> None:
        self.heard.append(heard)
        self._act(heard)
        if isinstance(heard, Over):
            self._over.set()

    def wait(self) -> Listener:
        assert self._over.wait(60), "its end was never heard"
        assert sum(isinstance(one, Over) for one in self.heard) == 1
        assert isinstance(self.heard[-1], Over)
        return self

    @property
    def started(self) -> Started:
        assert isinstance(self.heard[0], Started), self.heard
        return self.heard[0]

    @property
    def finished(self) -> Finished:
        return next(one for one in self.heard if isinstance(one, Finished))

    @property
    def transcript(self) -> Transcript:
        return fold([one for one in self.heard if not isinstance(one, Failed | Over)])

    @property
    def error(self) -> Exception | None:
        return next((one.error for one in self.heard if isinstance(one, Failed)), None)

    @property
    def num_tokens(self) -> int:
        return sum(isinstance(one, LocalToken) for one in self.heard)

    @property
    def ids(self) -> list[int]:
        """As the cache holds them."""
        ids: list[int] = []
        for one in self.heard:
            match one:
                case Started():
                    ids += one.prompt_ids
                case LocalToken():
                    ids.append(one.id)
                case SpanClosed():
                    ids += one.ids
        return ids


@pytest.fixture(scope="module")
def pair() -> Iterator[Desk]:
    chosen = settings_for(SessionSettings(temperature=0.0), 2)
    with Session.open(chosen) as session, Desk(session, chosen, max_waiting=64) as desk:
        yield desk
        assert desk.figures().cursors_taken == 0


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """What the pair answers one by one."""
    with Session.open(SessionSettings(temperature=0.0)) as session:
        return [fold(list(session.answer([Message("user", one.question)]))).text for one in PROBLEMS]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", context_length=1024)


@pytest.fixture
def open_desk(tiny: Path) -> Iterator[Callable[..., Desk]]:
    """A desk over a random model, whose answers end nowhere soon."""
    with ExitStack() as opened:

        def open_one(
            answers: int = 1, *, waiting: int = 4, wait: float = 60.0, seconds: float = 60.0
        ) -> Desk:
            chosen = settings_for(SessionSettings(model=tiny, temperature=0.0, policy="local"), answers)
            session = opened.enter_context(Session.open(chosen))
            return opened.enter_context(
                Desk(session, chosen, max_waiting=waiting, max_wait=wait, max_seconds=seconds)
            )

        yield open_one


# --- nothing is mixed -------------------------------------------------------------------------------------


def test_answers_at_once_are_those_that_are_written_alone(pair: Desk, alone: list[str]) -> None:
    listeners = [Listener() for _ in PROBLEMS]
    for n, (problem, listener) in enumerate(zip(PROBLEMS, listeners, strict=True)):
        pair.submit(job_of(problem.question, client=f"client {n % 5}"), listener)
    assert [listener.wait().transcript.text for listener in listeners] == alone
    assert any(listener.transcript.spans for listener in listeners)


class Leaver(Listener):
    """Hangs up once it has heard so much; None: stays to the end."""

    def __init__(self, after: int | None) -> None:
        super().__init__(self._look)
        self.after = after
        self.ticket: Ticket | None = None
        self.has_ticket = threading.Event()

    @property
    def has_left(self) -> bool:
        return self.after is not None and len(self.heard) > self.after

    def _look(self, heard: Heard) -> None:
        if len(self.heard) == self.after and not isinstance(heard, Over):
            self.has_ticket.wait()
            assert self.ticket is not None
            self.ticket.cancel()


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whoever_hangs_up_leaves_the_others_alone(seed: int, pair: Desk, alone: list[str]) -> None:
    """At any event, in a span or not."""
    rng = random.Random(seed)
    numbers = [rng.randrange(len(PROBLEMS)) for _ in range(6)]
    leavers = [Leaver(rng.choice([None, None, rng.randrange(1, 60)])) for _ in numbers]
    for number, leaver in zip(numbers, leavers, strict=True):
        leaver.ticket = pair.submit(job_of(PROBLEMS[number].question), leaver)
        leaver.has_ticket.set()
    for number, leaver in zip(numbers, leavers, strict=True):
        text = leaver.wait().transcript.text
        assert alone[number].startswith(text) if leaver.has_left else text == alone[number]
    assert pair.figures().cursors_taken == pair.figures().running == 0


def test_a_seed_is_repeated_whoever_else_asks(pair: Desk) -> None:
    warm = SamplerSettings(temperature=1.0, seed=5)

    def write(n: int) -> list[str]:
        listeners = [Listener() for _ in range(n)]
        for k, listener in enumerate(listeners):
            sampling = warm if k == 0 else SamplerSettings(temperature=1.3, seed=k)
            pair.submit(job_of(PROBLEMS[k].question, sampling=sampling), listener)
        return [listener.wait().transcript.text for listener in listeners]

    assert write(1)[0] == write(6)[0] == write(2)[0]


def test_many_choices_take_one_place_and_each_is_what_its_seed_gives(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(2, waiting=1)
    asked = {"model": desk.name, "max_tokens": 12, "temperature": 1.0}
    with serving(desk) as served:
        together = exchange(served.port, chat(served.port, n=16, seed=2**32 - 4, **asked)).json
        seeds = [2**32 - 4, 2**32 - 3, 2**32 - 2, 0, 1]
        alone = [exchange(served.port, chat(served.port, seed=seed, **asked)).json for seed in seeds]
    told = [choice["sr_edge"]["segments"] for choice in together["choices"]]
    assert told[:5] == [one["choices"][0]["sr_edge"]["segments"] for one in alone]
    assert len({segments[0]["text"] for segments in told}) == 16
    assert together["usage"]["prompt_tokens"] == alone[0]["usage"]["prompt_tokens"]


# --- leaving, and waiting ---------------------------------------------------------------------------------


def test_who_hangs_up_is_written_no_second_token(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    ticket = None
    at_cancel: list[int] = []

    def act(heard: Heard) -> None:
        if listener.num_tokens == 5 and not at_cancel:
            at_cancel.append(listener.num_tokens)
            ready.wait()
            assert ticket is not None
            ticket.cancel()

    ready = threading.Event()
    listener = Listener(act)
    ticket = desk.submit(job_of("once upon a time"), listener)
    ready.set()
    listener.wait()
    assert listener.num_tokens == 5
    assert listener.finished.reason == "cancelled"
    after = Listener()
    desk.submit(job_of("once upon a time", tokens=20), after)
    assert after.wait().num_tokens == 20
    assert after.ids[: len(listener.ids)] == listener.ids


def test_a_long_prompt_is_not_read_to_its_end_for_nobody(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    reading = threading.Event()
    feed = LlamaLocal.feed

    def slow_feed(self: LlamaLocal, ids: Sequence[int], **how: bool) -> list[float]:
        reading.set()
        return feed(self, ids, **how)

    listener = Listener()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaLocal, "feed", slow_feed)
        ticket = desk.submit(job_of("the " * 800), listener)
        assert reading.wait(30)
        ticket.cancel()
        listener.wait()
    assert listener.error is None
    assert listener.num_tokens == 0


@pytest.mark.parametrize("is_raw", [False, True])
def test_others_write_on_while_a_long_prompt_is_tokenised(
    is_raw: bool, open_desk: Callable[..., Desk]
) -> None:
    desk = open_desk(2)
    going_on, went_on = threading.Event(), threading.Event()
    tokenize = Vocabulary._tokenize

    def act(heard: Heard) -> None:
        if going_on.is_set() and isinstance(heard, LocalToken):
            went_on.set()

    def slow_tokenize(self: Vocabulary, text: str, *, special: bool) -> list[int]:
        if len(text) > 2000 and not going_on.is_set():
            going_on.set()
            assert went_on.wait(10), "nobody wrote meanwhile"
        return tokenize(self, text, special=special)

    writing, listener = Listener(act), Listener()
    asked = job_of("the " * 800, tokens=3)
    if is_raw:
        asked = replace(asked, messages=(), prompt="the " * 800)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Vocabulary, "_tokenize", slow_tokenize)
        ticket = desk.submit(job_of("a", tokens=100_000), writing)
        desk.submit(asked, listener)
        listener.wait()
    ticket.cancel()
    writing.wait()
    assert going_on.is_set()
    assert listener.error is None
    assert listener.num_tokens == 3


def test_who_waits_and_leaves_never_runs(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    first, second = Listener(), Listener()
    busy = desk.submit(job_of("a"), first)
    desk.submit(job_of("b"), second).cancel()
    assert [type(one) for one in second.wait().heard] == [Over]
    busy.cancel()
    first.wait()
    assert desk.figures().waiting == 0


def test_the_queue_is_bounded_and_fair(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(waiting=4)
    order: list[str] = []

    def note(name: str) -> Listener:
        return Listener(lambda heard: order.append(name) if isinstance(heard, Started) else None)

    begun = threading.Event()
    first = Listener(lambda heard: begun.set())
    busy = desk.submit(job_of("x", client="greedy"), first)
    assert begun.wait(30)
    listeners = {name: note(name) for name in ("greedy 1", "greedy 2", "greedy 3", "greedy 4")}
    for name, listener in listeners.items():
        desk.submit(job_of(name, client="greedy", tokens=3), listener)
    with pytest.raises(Busy) as refused:
        desk.submit(job_of("greedy 5", client="greedy"), Listener())
    assert 1 <= refused.value.retry_after <= 60
    modest = note("modest")
    desk.submit(job_of("modest", client="modest", tokens=3), modest)  # another client's newest makes way
    assert isinstance(listeners["greedy 4"].wait().error, Busy)
    busy.cancel()
    for listener in (first, modest, *listeners.values()):
        listener.wait()
    assert order == ["greedy 1", "modest", "greedy 2", "greedy 3"] or order[:2] == ["modest", "greedy 1"]


def test_nobody_is_refused_while_a_lane_is_free(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(2, waiting=1)
    for _ in range(20):
        listeners = [Listener() for _ in range(3)]  # one for each lane, and one that waits
        for n, listener in enumerate(listeners):
            desk.submit(job_of("x", client=f"{n}", tokens=2), listener)
        for listener in listeners:
            assert listener.wait().error is None
        while desk.figures().running:
            time.sleep(0.001)


def test_whoever_leaves_the_queue_is_forgotten(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(waiting=1)
    begun = threading.Event()
    running = Listener(lambda heard: begun.set())
    busy = desk.submit(job_of("a"), running)
    assert begun.wait(30)
    for n in range(100):
        listener = Listener()
        desk.submit(job_of("b", client=f"name {n}"), listener).cancel()
        listener.wait()
    assert not desk._queues
    busy.cancel()
    running.wait()


def test_nobody_waits_or_is_answered_for_ever(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(wait=0.2, seconds=1.0)
    running, waiting = Listener(lambda heard: time.sleep(0.01)), Listener()
    desk.submit(job_of("a", tokens=100_000), running)
    desk.submit(job_of("b"), waiting)
    assert isinstance(waiting.wait().error, Busy)
    running.wait()
    over = running.heard[-1]
    assert isinstance(over, Over)
    assert over.is_overdue
    assert running.finished.reason == "cancelled"


def test_closing_ends_what_runs_and_what_waits(tiny: Path) -> None:
    chosen = settings_for(SessionSettings(model=tiny, temperature=0.0, policy="local"), 2)
    listeners = [Listener() for _ in range(5)]
    with Session.open(chosen) as session:
        desk = Desk(session, chosen)
        for n, listener in enumerate(listeners):
            desk.submit(job_of(f"{n}"), listener)
        desk.close()
        for listener in listeners:
            listener.wait()
        with pytest.raises(Busy):
            desk.submit(job_of("late"), Listener())


# --- what the cache has already ----------------------------------------------------------------------------


def test_conversations_that_take_turns_read_only_what_is_new(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    talks = [[Message("user", f"{word} " * 60)] for word in ("the", "her", "12", "ell")]
    read: dict[int, int] = {}
    for turn in range(3):
        for n, talk in enumerate(talks):
            listener = Listener()
            desk.submit(job_of(talk, tokens=8), listener)
            listener.wait()
            if turn:
                assert listener.started.reused >= read[n] - 5, f"turn {turn} of talk {n}"
            read[n] = len(listener.started.prompt_ids)
            talk += [Message("assistant", listener.transcript.text), Message("user", "and then?")]


def test_what_conversations_have_in_common_is_read_once(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(2)
    system = Message("system", "answer in verse, and mention the sea at least once in each line. " * 3)
    listeners = []
    for n in range(4):
        listener = Listener()
        desk.submit(job_of([system, Message("user", f"{n} " * (n + 1))], tokens=4), listener)
        listeners.append(listener.wait())
    first, *others = listeners
    assert first.started.reused == 0
    for one, other in pairwise([first, *others]):
        assert other.started.reused > 100
        reused = other.started.reused
        assert other.started.prompt_ids[:reused] == one.started.prompt_ids[:reused]


# --- what is asked for ------------------------------------------------------------------------------


def test_an_answer_that_goes_on_is_the_whole_one(pair: Desk, alone: list[str]) -> None:
    for number, cut in ((0, 30), (1, 75), (2, 1)):
        listener = Listener()
        begun = alone[number][:cut]
        pair.submit(replace(job_of(PROBLEMS[number].question), continues=begun), listener)
        text = listener.wait().transcript.text
        assert text.startswith(begun)
        assert listener.finished.reason == "stop"


def test_a_raw_prompt_has_no_template_around_it(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    by_text, by_ids = Listener(), Listener()
    raw = Job((), "12<|im_end|>the", "", GREEDY, 6, "auto", "me")
    desk.submit(raw, by_text)
    ids = by_text.wait().started.prompt_ids
    assert len(ids) < 6
    desk.submit(replace(raw, prompt=ids), by_ids)
    assert by_ids.wait().ids == by_text.ids
    assert by_text.num_tokens == 6


def test_the_small_model_alone_and_the_large_one_alone(pair: Desk) -> None:
    local, remote = Listener(), Listener()
    question = next(one.question for one in PROBLEMS)
    pair.submit(replace(job_of(question), policy="local"), local)
    pair.submit(replace(job_of(question), policy="remote"), remote)
    assert not local.wait().transcript.spans
    assert remote.wait().finished.local_tokens == 0
    assert remote.finished.remote_tokens > 0


def test_an_endpoint_that_writes_alone_samples_as_it_is_asked_to() -> None:
    script = [head(), COMPLETIONS.text("4."), COMPLETIONS.finish(), DONE, FIN]
    with FaultEndpoint(then=lambda request: script) as endpoint:
        chosen = SessionSettings(
            model=demo_paths().small, big=endpoint.url, big_model="m", temperature=0.9, seed=1
        )
        chosen = settings_for(chosen, 2)
        with Session.open(chosen) as session, Desk(session, chosen) as desk:
            for sampling in (GREEDY, SamplerSettings(temperature=0.3, top_p=0.5, seed=7)):
                listener = Listener()
                job = replace(job_of("What is 2 + 2?", sampling=sampling), policy="remote")
                desk.submit(job, listener)
                assert listener.wait().transcript.text == "4."
        told = [[post.body.get(name) for name in ("temperature", "top_p", "seed")] for post in endpoint.posts]
    assert told == [[0.0, 0.95, None], [0.3, 0.5, 7]]


def test_a_question_that_the_pair_was_not_made_for_is_refused(pair: Desk) -> None:
    listener = Listener()
    pair.submit(job_of("Write a poem about the sea."), listener)
    assert listener.wait().finished.reason == "refused"


def test_what_cannot_be_answered_is_said_and_the_lane_goes_on(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    listener, after = Listener(), Listener()
    desk.submit(job_of("x" * 3000), listener)
    assert isinstance(listener.wait().error, ContextFullError)
    desk.submit(job_of("x", tokens=3), after)
    assert after.wait().num_tokens == 3


def test_a_template_that_refuses_is_the_model_s_error(tmp_path: Path) -> None:
    template = "{% if messages[1] %}{{ raise_exception('one only') }}{% endif %}{{ messages[0].content }}"
    path = write_tiny_gguf(tmp_path / "strict.gguf", template=template)
    chosen = settings_for(SessionSettings(model=path, temperature=0.0, policy="local"), 1)
    with Session.open(chosen) as session, Desk(session, chosen) as desk:
        listener, after = Listener(), Listener()
        desk.submit(job_of([Message("system", "a"), Message("user", "b")]), listener)
        assert isinstance(listener.wait().error, ModelError)
        desk.submit(job_of("b", tokens=3), after)
        assert after.wait().num_tokens == 3
        assert desk.figures().cursors_taken == 0


def test_the_cache_is_what_was_heard(pair: Desk) -> None:
    """The ids of `Started`, `LocalToken` and `SpanClosed` are the cache, also of two at once."""
    listeners = [Listener() for _ in range(6)]
    for problem, listener in zip(PROBLEMS, listeners, strict=False):
        pair.submit(job_of(problem.question), listener)
    for listener in listeners:
        listener.wait()
    with LlamaLocal.open(demo_paths().small, temperature=0) as fresh:
        for listener in listeners:
            fresh.rewind(0)
            assert fresh.markers is not None
            for heard in listener.heard:
                match heard:
                    case Started():
                        fresh.feed(heard.prompt_ids)
                    case LocalToken():
                        assert fresh.sample(fresh.markers.close_ids).id == heard.id
                    case SpanClosed():
                        fresh.feed(heard.ids)
