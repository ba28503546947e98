"""The chat as its user has it: the real pair in its child process, keys, and what the screen says."""

from pathlib import Path

import pytest
from tests.tui.chatting import QUESTION, READY, answer, answered, chat, running, spans_story
from tests.tui.small import shown, until

from sr_edge.engine.messages import Answered, Answering, Asked, Died
from sr_edge.events import Finished, LocalToken, SpanClosed, SpanOpened, Started
from sr_edge.store import Store
from sr_edge.tui.widgets import transcript
from sr_edge.tui.widgets.consent import Consent
from sr_edge.tui.widgets.prompt import Prompt
from sr_edge.tui.widgets.transcript import Talk
from sr_edge.tui.widgets.turn import AnswerView


def answers(app):
    return [view for view in app.chat.query_one(Talk).views if isinstance(view, AnswerView)]


async def ask(app, pilot, text=QUESTION):
    before = len(answers(app))
    app.chat.query_one(Prompt).put(text)
    await pilot.press("enter")
    await until(pilot, lambda: len(answers(app)) > before)
    await answered(app, pilot)


async def test_an_answer_of_the_pair_shows_who_wrote_what(tmp_path: Path) -> None:
    app = chat(tmp_path)
    async with running(app) as pilot:
        await ask(app, pilot)
        screen = shown(app)
        assert "◆1" in screen
        assert "complete" in screen
        (view,) = answers(app)
        stored = app.chat.dialogue.turns[-1]
        assert stored.text.startswith("Ida fills 28 bags")
        assert view.blocks.text("reasoning") + view.blocks.text("answer") != ""
        assert "".join(b.text for b in view.blocks if b.voice == "remote") == stored.transcript.spans[0].text


async def test_a_span_written_again_locally_is_a_branch_and_the_old_answer_stays(tmp_path: Path) -> None:
    app = chat(tmp_path)
    async with running(app) as pilot:
        await ask(app, pilot)
        first = app.chat.dialogue.turns[-1]
        app.chat.query_one(Talk).focus()
        await pilot.press("[", "l")
        await until(pilot, lambda: app.chat.is_answering or app.chat.dialogue.turns[-1].id != first.id)
        await answered(app, pilot)
        second = app.chat.dialogue.turns[-1]
        assert (second.branch, second.branches) == (2, 2)
        before = first.transcript.trail[0].text
        assert second.text.startswith(before)
        assert not second.transcript.spans or second.transcript.trail[0].text != before
        await pilot.press("<")
        await until(pilot, lambda: app.chat.dialogue.turns[-1].id == first.id)
        assert app.chat.dialogue.turns[-1].text == first.text


async def test_escape_stops_and_c_goes_on_where_it_was(tmp_path: Path) -> None:
    words = [LocalToken(n, f"word{n} ", -0.1, at=n) for n in range(5)]
    stopped = Finished("cancelled", 1, 5, 0, 5.0, at=5.0)
    more = LocalToken(9, "and more", -0.1, at=6)
    script = [
        READY,
        {"wait": "answer"},
        Answering(0),
        Started((1,), "small-1.5b"),
        *words,
        {"wait": "stop"},
        stopped,
        Answered(0),
        {"wait": "answer"},
        Answering(0),
        Started((1,), "small-1.5b"),
        *words,
        more,
        Finished("stop", 1, 6, 0, 7.0, at=7.0),
        Answered(0),
    ]
    app = chat(tmp_path, script=script)
    async with running(app) as pilot:
        app.chat.query_one(Prompt).put("go")
        await pilot.press("enter")
        await until(pilot, lambda: "word4" in shown(app))
        await pilot.press("escape")
        await answered(app, pilot)
        turn = app.chat.dialogue.turns[-1]
        assert (turn.status, turn.text) == ("stopped", "word0 word1 word2 word3 word4 ")
        assert "stopped" in shown(app)
        app.chat.query_one(Talk).focus()
        await pilot.press("c")
        await until(pilot, lambda: "and more" in shown(app))
        await answered(app, pilot)
        again = app.chat.dialogue.turns[-1]
        assert (again.id, again.status) == (turn.id, "done")
        assert again.text == turn.text + "and more"


async def test_what_would_leave_is_shown_first_and_no_keeps_it_here(tmp_path: Path) -> None:
    asked = Asked(1, "lab", "api.example.com:443", 1812, 7200, '{"prompt": "the whole chat"}', 0.0006)
    script = [
        READY,
        {"wait": "answer"},
        Answering(0),
        Started((1,), "small-1.5b", big="lab"),
        asked,
        {"wait": "decide"},
        SpanOpened(1, "marker", 0.8, "lab"),
        SpanClosed(1, (), "declined", error="ask: you kept it here"),
        LocalToken(3, "alone", -0.1),
        Finished("stop", 1, 1, 0, 1.0),
        Answered(0),
    ]
    app = chat(tmp_path, script=script, flags={"offload.policy": "ask"})
    async with running(app) as pilot:
        app.chat.query_one(Prompt).put("go")
        await pilot.press("enter")
        consent = app.chat.query_one(Consent)
        await until(pilot, lambda: consent.is_asking)
        assert "lab at api.example.com:443 wants 1,812 tokens" in shown(app)
        assert "7.2 kB" in shown(app)
        await pilot.pause(0.6)  # its keys are deaf for a moment
        await pilot.press("v")
        await until(pilot, lambda: "the whole chat" in shown(app))
        await pilot.press("n")
        await answered(app, pilot)
        assert "alone" in shown(app)
        assert "stayed here" in shown(app)


async def test_a_decoder_that_dies_costs_nothing_but_the_rest(tmp_path: Path) -> None:
    script = [
        READY,
        {"wait": "answer"},
        Answering(0),
        Started((1,), "small-1.5b"),
        LocalToken(3, "so far", -0.1),
        {"die": 9},
    ]
    app = chat(tmp_path, script=script)
    async with running(app) as pilot:
        app.chat.query_one(Prompt).put("go")
        await pilot.press("enter")
        await until(pilot, lambda: "killed" in shown(app))
        await answered(app, pilot)
        turn = app.chat.dialogue.turns[-1]
        assert (turn.text, turn.status) == ("so far", "error")
        assert "so far" in shown(app)
        await pilot.press(*"on")
        assert app.chat.query_one(Prompt).text == "on"  # the screen is alive


async def test_opening_a_conversation_asks_for_nothing(tmp_path: Path) -> None:
    app = chat(tmp_path, script=[READY, *answer(*spans_story())])
    async with running(app) as pilot:
        await ask(app, pilot, "7^2024")
        id = app.chat.dialogue.conversation.id
    again = chat(tmp_path, script=[READY, {"wait": "answer"}, Died("somebody asked")], conversation=id)
    async with running(again) as pilot:
        await until(pilot, lambda: "✓ complete" in shown(again))
        await pilot.pause(0.2)
        assert not again.chat.is_answering
        assert "somebody asked" not in shown(again)


async def test_a_chat_that_began_locally_opens_the_large_model_when_the_policy_is_turned(
    tmp_path: Path,
) -> None:
    app = chat(tmp_path, flags={"offload.policy": "local"})
    async with running(app) as pilot:
        assert app.chat.state.ready.big is None
        await ask(app, pilot)
        assert not app.chat.dialogue.turns[-1].transcript.spans
        await pilot.press("shift+tab")
        await until(pilot, lambda: app.chat.state.ready.big is not None)
        await ask(app, pilot)
        assert app.chat.dialogue.turns[-1].transcript.spans


async def test_tab_goes_from_the_prompt_to_the_conversation(tmp_path: Path) -> None:
    app = chat(tmp_path, script=[READY, *answer(*spans_story())])
    async with running(app) as pilot:
        await ask(app, pilot, "7^2024")
        await pilot.press("tab")
        assert app.focused is app.chat.query_one(Talk)


def said(text: str) -> list[object]:
    return answer(Started((1,), "small-1.5b"), LocalToken(5, text, -0.1), Finished("stop", 1, 1, 0, 1.0))


async def test_a_prompt_before_the_end_of_the_last_answer_is_drawn_has_its_own_answer(
    tmp_path: Path,
) -> None:
    app = chat(tmp_path, script=[READY, *said("one"), *said("two")])
    async with running(app) as pilot:
        app.chat._frames.pause()
        await app.chat.send("q1")
        while app.chat.dialogue.is_answering:
            await pilot.pause(0.01)
        await app.chat.send("q2")
        app.chat._frames.resume()
        await answered(app, pilot)
        assert [view.blocks.text("answer") for view in answers(app)] == ["one", "two"]
        assert [turn.text for turn in app.chat.dialogue.turns] == ["q1", "one", "q2", "two"]


async def test_an_edit_ends_with_its_conversation(tmp_path: Path) -> None:
    app = chat(tmp_path, script=[READY, *said("one"), *said("two")])
    async with running(app) as pilot:
        await ask(app, pilot, "q1")
        prompt = app.chat.query_one(Prompt)
        app.chat.deeds.edit()
        assert prompt.text == "q1"
        assert prompt.border_title
        await pilot.press("ctrl+n")
        await until(pilot, lambda: not app.chat.dialogue.turns)
        assert not prompt.border_title
        prompt.put("q2")
        await pilot.press("enter")
        await until(pilot, lambda: len(app.chat.dialogue.turns) == 2)
        assert [turn.text for turn in app.chat.dialogue.turns] == ["q2", "two"]


async def test_a_conversation_that_was_removed_elsewhere_costs_no_more_than_a_line(tmp_path: Path) -> None:
    app = chat(tmp_path, script=[READY, *said("one")])
    async with running(app) as pilot:
        await ask(app, pilot, "q1")
        conversation = app.chat.dialogue.conversation
        with Store.open(tmp_path / "state" / "history.db") as other:
            other.remove(conversation.id)
        app.chat.rename("another title")
        await pilot.pause()
        assert any("conversation" in note.message for note in app._notifications)
        assert "one" in shown(app)


async def test_offline_in_the_settings_holds_at_once(tmp_path: Path) -> None:
    app = chat(tmp_path, script=[READY])
    async with running(app) as pilot:
        (tmp_path / "config.toml").write_text('offline = true\noffload.policy = "local"\n')
        app.chat.take_settings(app.chat.load_config())
        await pilot.pause()
        assert app.chat.state.is_offline
        assert app.chat.state.dial == "local"
        assert app.chat.dialogue.engine._is_offline


async def test_the_question_goes_when_the_user_goes_offline(tmp_path: Path) -> None:
    asked = Asked(1, "lab", "api.example.com:443", 1812, 7200, "{}", 0.0006)
    script = [READY, {"wait": "answer"}, Answering(0), Started((1,), "small-1.5b", big="lab"), asked]
    app = chat(tmp_path, script=[*script, {"wait": "stop"}, Answered(0)], flags={"offload.policy": "ask"})
    async with running(app) as pilot:
        app.chat.query_one(Prompt).put("go")
        await pilot.press("enter")
        consent = app.chat.query_one(Consent)
        await until(pilot, lambda: consent.is_asking)
        app.chat.set_offline(True)
        assert not consent.is_asking
        await pilot.press("escape")
        await answered(app, pilot)


async def test_a_long_conversation_keeps_no_more_views_than_its_window_and_none_of_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcript, "WINDOW", 4)
    app = chat(tmp_path, script=[READY, *(step for n in range(5) for step in said(f"answer {n}"))])
    async with running(app) as pilot:
        for n in range(1, 6):
            await app.chat.send(f"question {n}")
            await answered(app, pilot)
            assert len(app.chat.dialogue.turns) == 2 * n
        talk = app.chat.query_one(Talk)
        await until(pilot, lambda: len(talk.views) == 4)
        assert "6 earlier turns" in shown(app)
        talk.focus()
        await pilot.press("g")
        await until(pilot, lambda: len(talk.views) == 8)
        assert "2 earlier turns" in shown(app)
