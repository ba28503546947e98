"""What the chat tells the models of a prompt that is still being typed."""

from pathlib import Path
from typing import Any

import pytest
from tests.tui.chatting import READY, answer, answered, chat, running
from tests.tui.small import until

from sr_edge.events import Finished, LocalToken, Started
from sr_edge.roles import Message
from sr_edge.states import states_dir
from sr_edge.tui.app import EdgeApp
from sr_edge.tui.screens import chat as screen
from sr_edge.tui.widgets.prompt import Prompt

WISH = {"chat.prefill_while_typing": True}
STORY = [
    READY,
    *answer(
        Started((1, 2), "small-1.5b", opening="<think>\n"),
        LocalToken(5, "hmm</think>\n\nIt is 2.", -0.1),
        Finished("stop", 2, 1, 0, 1.0),
    ),
]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "PAUSE_SECONDS", 0.01)


def drafts_of(app: EdgeApp, monkeypatch: pytest.MonkeyPatch) -> list[list[Message]]:
    """What the engine is told, as it comes."""
    told: list[list[Message]] = []
    engine = app.chat.dialogue.engine
    send = engine.draft

    def draft(messages: Any, **options: Any) -> None:
        told.append(list(messages))
        send(messages, **options)

    monkeypatch.setattr(engine, "draft", draft)
    return told


async def test_a_pause_tells_what_stands_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = chat(tmp_path, script=[READY], flags=WISH)
    async with running(app) as pilot:
        told = drafts_of(app, monkeypatch)
        await pilot.press(*"why ")
        await until(pilot, lambda: told[-1:] == [[Message("user", "why")]])


async def test_the_first_letter_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the answer before it is read while the rest is typed."""
    monkeypatch.setattr(screen, "PAUSE_SECONDS", 3600)
    app = chat(tmp_path, script=[READY], flags=WISH)
    async with running(app) as pilot:
        told = drafts_of(app, monkeypatch)
        await pilot.press(*"why")
        await pilot.pause()
        assert told == [[Message("user", "w")]]


async def test_it_is_told_with_the_conversation_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = chat(tmp_path, script=STORY, flags=WISH)
    async with running(app) as pilot:
        app.chat.query_one(Prompt).put("one")
        await pilot.press("enter")
        await answered(app, pilot)
        told = drafts_of(app, monkeypatch)
        await pilot.press("t")
        await until(pilot, lambda: bool(told))
        assert told[0] == [Message("user", "one"), Message("assistant", "It is 2."), Message("user", "t")]
        assert app.chat.dialogue.turns[-1].role == "assistant", "nothing of it is kept"


async def test_commands_and_nothing_are_told_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = chat(tmp_path, script=[READY], flags=WISH)
    async with running(app):
        told = drafts_of(app, monkeypatch)
        for text in ("/help", "   ", "\n"):
            app.chat.query_one(Prompt).put(text)
            app.chat._read_draft()
        assert not told
        app.chat.query_one(Prompt).put("why")
        app.chat._read_draft()
        assert told


async def test_nothing_is_told_unless_it_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = chat(tmp_path, script=[READY])
    async with running(app) as pilot:
        told = drafts_of(app, monkeypatch)
        await pilot.press(*"why")
        await pilot.pause(0.1)
        assert app.chat._pause is None
        assert not told


async def test_while_an_answer_is_written_nothing_is_told_and_afterwards_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [*STORY[:-1], {"wait": "stop"}, STORY[-1]]
    app = chat(tmp_path, script=script, flags=WISH)
    async with running(app) as pilot:
        told = drafts_of(app, monkeypatch)
        app.chat.query_one(Prompt).put("one")
        await pilot.press("enter")
        await until(pilot, lambda: app.chat.is_answering)
        app.chat.query_one(Prompt).put("two")
        app.chat._read_draft()
        assert not [messages for messages in told if messages[-1].content == "two"]
        app.chat.dialogue.stop()
        await answered(app, pilot)
        await until(pilot, lambda: any(messages[-1].content == "two" for messages in told))


async def test_a_conversation_that_is_removed_takes_its_cache_along(tmp_path: Path) -> None:
    app = chat(tmp_path, script=STORY)
    async with running(app) as pilot:
        app.chat.query_one(Prompt).put("one")
        await pilot.press("enter")
        await answered(app, pilot)
        conversation = app.chat.dialogue.conversation
        assert conversation is not None
        folder = states_dir(app.chat.environ)
        folder.mkdir(parents=True)
        for name in (conversation.id, "other"):
            (folder / f"{name}-00.kv").write_bytes(b"cells")
        app.chat._remove(conversation.id)
        assert [file.name for file in folder.iterdir()] == ["other-00.kv"]
