"""The true child while its user types, and what it keeps of a conversation when it ends."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.engine.situations import Ear, choices, opened
from tests.tiny_gguf import write_tiny_gguf

from sr_edge.engine.host import Engine
from sr_edge.engine.messages import Answered, Choices, Ready
from sr_edge.events import Event, Finished, Started
from sr_edge.roles import Message

QUESTION = "the hello, the 12 hellos; er the "


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", context_length=2048)


def chosen(model: Path, **flags: Any) -> Choices:
    return choices(model=str(model), **{"sampling.max_tokens": 8, "offload.policy": "local"}, **flags)


def user(*texts: str) -> list[Message]:
    return [Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]


def ask(engine: Engine, ear: Ear, messages: Sequence[Message], conversation: str | None = None) -> Started:
    before = len(ear.all)
    number = engine.answer(messages, conversation=conversation)
    assert ear.answered(number).error is None
    events = [one for one in ear.all[before:] if isinstance(one, Event)]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    return events[0]


def test_what_was_typed_has_been_read_when_it_is_sent(tiny: Path) -> None:
    with opened(chosen(tiny)) as (engine, ear):
        engine.start()
        ear.wait(Ready)
        for n in range(8):  # the child does not tell when it has read: each time it is left longer alone
            draft = f"{n} {QUESTION * 10}"
            engine.draft(user(draft))
            time.sleep(0.05 * 2**n)
            started = ask(engine, ear, user(draft + "er?"))
            if len(started.prompt_ids) - started.reused < 30:
                return
        pytest.fail("no draft was read")


def test_what_arrives_in_the_middle_of_reading_is_answered_all_the_same(tiny: Path) -> None:
    rng = random.Random(5)
    with opened(chosen(tiny)) as (engine, ear):
        engine.start()
        ear.wait(Ready)
        for n in range(25):
            draft = f"{n % 3} {QUESTION * rng.randrange(1, 30)}"
            for length in sorted(rng.sample(range(1, len(draft)), 3)):
                engine.draft(user(draft[:length]))
                time.sleep(rng.random() * 0.02)
            prompt = draft if n % 4 else "hello"
            started = ask(engine, ear, user(prompt))
            assert started.reused <= len(started.prompt_ids)
        assert len(ear.of(Answered)) == 25


# --- what is kept ---


def kept(home: Path) -> list[str]:
    return sorted(file.name.partition("-")[0] for file in (home / "cache" / "conversations").glob("[!.]*"))


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"SR_EDGE_HOME": str(tmp_path)}


def test_a_conversation_opens_again_in_another_process(
    tiny: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    wanted = chosen(tiny, **{"cache.conversations": True})
    with opened(wanted, env=env) as (engine, ear):
        ask(engine, ear, user(QUESTION * 10), "first")
        ask(engine, ear, user("hello"), "second")
        assert kept(tmp_path) == ["first"]
    assert kept(tmp_path) == ["first", "second"]
    with opened(wanted, env=env) as (engine, ear):
        started = ask(engine, ear, user(QUESTION * 10, "er", "hello"), "first")
        assert started.reused > 150
        assert len(started.prompt_ids) - started.reused < 40


def test_it_is_kept_when_nobody_has_asked_for_a_while(
    tiny: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    with opened(chosen(tiny, **{"cache.conversations": True}), env=env) as (engine, ear):
        ask(engine, ear, user(QUESTION), "first")
        until = time.monotonic() + 60
        while not kept(tmp_path) and time.monotonic() < until:
            time.sleep(0.05)
        assert kept(tmp_path) == ["first"]


def test_a_conversation_that_was_removed_is_not_kept(tiny: Path, tmp_path: Path, env: dict[str, str]) -> None:
    with opened(chosen(tiny, **{"cache.conversations": True}), env=env) as (engine, ear):
        ask(engine, ear, user(QUESTION), "first")
        engine.forget("first")
    assert kept(tmp_path) == []


@pytest.mark.parametrize("flags", [{}, {"cache.conversations": True, "log.enabled": False}])
def test_nothing_is_kept_unless_it_is_wanted(
    flags: dict[str, Any], tiny: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    with opened(chosen(tiny, **flags), env=env) as (engine, ear):
        ask(engine, ear, user(QUESTION), "first")
        ask(engine, ear, user(QUESTION), "second")
    assert kept(tmp_path) == []
