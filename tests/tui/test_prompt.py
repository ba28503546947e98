"""The prompt: what sends, what does not, and what is remembered."""

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from textual import events, on
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.pilot import Pilot
from textual.widgets import Input

from sr_edge.tui.prompts import MAX_PROMPTS, PastPrompts
from sr_edge.tui.widgets.prompt import MAX_LINES, Prompt

SIZES = [(120, 40), (60, 20)]


class Host(App[None]):
    def __init__(self, past: PastPrompts | None = None) -> None:
        super().__init__()
        self.past = past
        self.sent: list[str] = []
        self.has_quit = False

    def compose(self) -> ComposeResult:
        yield Prompt(self.past)
        yield Input(id="next")

    @on(Prompt.Sent)
    def keep(self, message: Prompt.Sent) -> None:
        self.sent.append(message.text)

    @property
    def prompt(self) -> Prompt:
        return self.query_one(Prompt)


def past(*texts: str) -> PastPrompts:
    kept = PastPrompts(None)
    for text in texts:
        kept.add(text)
    return kept


async def typed(pilot: Pilot[None], text: str) -> None:
    await pilot.press(*("space" if char == " " else char for char in text))


@pytest.mark.parametrize("size", SIZES)
async def test_enter_sends_and_empties(size: tuple[int, int]) -> None:
    app = Host()
    async with app.run_test(size=size) as pilot:
        await typed(pilot, "two words ")
        await pilot.press("enter")
        await pilot.pause()
        assert app.sent == ["two words"]
        assert app.prompt.text == ""
        await pilot.press("enter", "space", "enter")
        await pilot.pause()
        assert app.sent == ["two words"]


@pytest.mark.parametrize("key", ["ctrl+j", "shift+enter"])
async def test_a_newline_does_not_send(key: str) -> None:
    app = Host()
    async with app.run_test() as pilot:
        await pilot.press("a", key, "b", "enter")
        await pilot.pause()
        assert app.sent == ["a\nb"]


async def test_what_is_pasted_is_not_sent_and_steers_nothing() -> None:
    app = Host()
    async with app.run_test() as pilot:
        app.post_message(events.Paste("one\r\ntwo\n\x1b[31mred\x1b]0;title\x07\tend\n"))
        await pilot.pause()
        assert app.sent == []
        assert app.prompt.text == "one\ntwo\nred\tend\n"
        await pilot.press("ctrl+z")
        await pilot.pause()
        assert app.prompt.text == ""


@pytest.mark.parametrize("size", SIZES)
async def test_it_grows_with_its_text_to_a_limit(size: tuple[int, int]) -> None:
    app = Host()
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        assert app.prompt.size.height == 1
        app.prompt.put("a\nb\nc")
        await pilot.pause()
        assert app.prompt.size.height == 3
        app.prompt.put("line\n" * 50)
        await pilot.pause()
        assert app.prompt.size.height == MAX_LINES
        await pilot.press("enter")
        await pilot.pause()
        assert app.prompt.size.height == 1


async def test_up_and_down_walk_the_past_and_come_back_to_the_draft() -> None:
    app = Host(past("first", "second\nof two lines", "third"))
    async with app.run_test() as pilot:
        await typed(pilot, "draft")
        shown = []
        for _ in range(5):
            await pilot.press("up")
            shown.append(app.prompt.text)
        assert shown == ["third", "second\nof two lines", "first", "first", "first"]
        shown = []
        for _ in range(4):
            await pilot.press("down")
            shown.append(app.prompt.text)
        assert shown == ["second\nof two lines", "third", "draft", "draft"]
        await pilot.press("enter")
        await pilot.pause()
        assert app.sent == ["draft"]


async def test_up_within_several_lines_is_the_line_above() -> None:
    app = Host(past("old"))
    async with app.run_test() as pilot:
        await pilot.press("a", "ctrl+j", "b", "up")
        assert (app.prompt.text, app.prompt.cursor_location[0]) == ("a\nb", 0)
        await pilot.press("up")
        assert app.prompt.text == "old"
        await pilot.press("down")
        assert app.prompt.text == "a\nb"


async def test_a_long_line_has_several_rows_to_walk_through() -> None:
    app = Host(past("old"))
    async with app.run_test(size=(60, 20)) as pilot:
        app.prompt.put("word " * 25)
        await pilot.pause()
        await pilot.press("up")
        assert app.prompt.text != "old"
        await pilot.press("up", "up")
        assert app.prompt.text == "old"


async def test_a_change_to_an_older_prompt_is_not_lost_by_walking_on() -> None:
    app = Host(past("first", "second"))
    async with app.run_test() as pilot:
        await pilot.press("up", "!", "up", "down")
        assert app.prompt.text == "second!"
        await pilot.press("enter", "up", "up")
        await pilot.pause()
        assert app.sent == ["second!"]
        assert app.prompt.text == "second"  # what was sent then is as it was


async def test_tab_completes_a_command_else_goes_on() -> None:
    app = Host()
    async with app.run_test() as pilot:
        await typed(pilot, "/ren")
        assert app.prompt.suggestion == "ame"
        await pilot.press("tab")
        assert app.prompt.text == "/rename "
        assert app.focused is app.prompt
        await pilot.press("tab")
        assert app.focused is not app.prompt


async def test_right_takes_the_suggestion() -> None:
    app = Host()
    async with app.run_test() as pilot:
        await typed(pilot, "/ex")
        await pilot.press("right")
        assert app.prompt.text == "/export"


async def test_ctrl_d_deletes_while_there_is_text_and_leaves_otherwise() -> None:
    class Leaving(Host):
        BINDINGS: ClassVar[list[BindingType]] = [("ctrl+d", "leave")]

        def action_leave(self) -> None:
            self.has_quit = True

    app = Leaving()
    async with app.run_test() as pilot:
        await pilot.press("a", "b", "home", "ctrl+d")
        await pilot.pause()
        assert (app.prompt.text, app.has_quit) == ("b", False)
        await pilot.press("ctrl+d", "ctrl+d")
        await pilot.pause()
        assert app.has_quit


async def test_a_changed_key_sends() -> None:
    app = Host()
    async with app.run_test() as pilot:
        app.set_keymap({"chat.send": "f5", "chat.newline": "enter"})
        await pilot.press("a", "enter", "b")
        assert app.prompt.text == "a\nb"
        await pilot.press("f5")
        await pilot.pause()
        assert app.sent == ["a\nb"]


async def test_a_click_puts_the_cursor() -> None:
    app = Host()
    async with app.run_test() as pilot:
        app.prompt.put("abcdef")
        app.query_one(Input).focus()
        await pilot.pause()
        await pilot.click(Prompt, offset=(4, 1))
        assert app.focused is app.prompt
        assert app.prompt.cursor_location == (0, 2)


async def test_clearing_keeps_the_past() -> None:
    app = Host(past("old"))
    async with app.run_test() as pilot:
        await pilot.press("a")
        assert app.prompt.clear_text()
        assert not app.prompt.clear_text()
        await pilot.press("up")
        assert app.prompt.text == "old"


# --- the editor --------------------------------------------------------------------------------------


class Suspending(Host):
    @contextmanager
    def suspend(self) -> Iterator[None]:  # a test has no terminal to give away
        yield


def editor(folder: Path, body: str) -> str:
    script = folder / "editor"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o700)
    return str(script)


async def test_the_editor_gets_the_text_and_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL", editor(tmp_path, 'printf " world\\n\\033[31m!\\n" >> "$1"'))
    app = Suspending()
    async with app.run_test() as pilot:
        await pilot.press("h", "i", "ctrl+g")
        await pilot.pause()
        assert app.prompt.text == "hi world\n!"
        assert app.sent == []


@pytest.mark.parametrize("body", ["exit 3", None])
async def test_an_editor_that_fails_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str | None
) -> None:
    monkeypatch.setenv("VISUAL", editor(tmp_path, body) if body else str(tmp_path / "none"))
    app = Suspending()
    async with app.run_test(notifications=True) as pilot:
        await pilot.press("h", "i", "ctrl+g")
        await pilot.pause()
        assert app.prompt.text == "hi"
        assert len(app._notifications) == 1


# --- what is kept ------------------------------------------------------------------------------------


def test_prompts_outlive_a_run_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "prompts.jsonl"
    assert PastPrompts(path).add("two\nlines ünd ]") is None
    assert [*PastPrompts(path)] == ["two\nlines ünd ]"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_same_again_and_nothing_are_not_kept(tmp_path: Path) -> None:
    kept = PastPrompts(tmp_path / "prompts.jsonl")
    for text in ("a", "a", " ", "b", "a"):
        kept.add(text)
    assert [*PastPrompts(tmp_path / "prompts.jsonl")] == ["a", "b", "a"]


def test_only_so_many_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'"{number}"\n' for number in range(MAX_PROMPTS + 200)))
    kept = PastPrompts(path)
    kept.add("last")
    assert len(kept) == MAX_PROMPTS
    assert kept[MAX_PROMPTS - 1] == "last"
    assert len(path.read_text().splitlines()) == MAX_PROMPTS


def test_damaged_lines_are_left_out_and_a_torn_one_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'"a"\n5\n\xff\xfe\n[1]\n"b"\n"tor')
    kept = PastPrompts(path)
    assert [*kept] == ["a", "b"]
    kept.add("c")
    assert [*PastPrompts(path)] == ["a", "b", "c"]


@pytest.mark.parametrize("num_before", [0, MAX_PROMPTS + 190])  # near where the file is written anew
def test_several_at_once_lose_none(tmp_path: Path, num_before: int) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'"{number}"\n' for number in range(num_before)))

    def write(name: str) -> None:
        kept = PastPrompts(path)
        for number in range(20):
            assert kept.add(f"{name}{number}") is None

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted([*PastPrompts(path)][-80:]) == sorted(
        f"{name}{number}" for name in "abcd" for number in range(20)
    )


@pytest.mark.skipif(os.name == "nt", reason="folders that nobody may write to")
def test_a_file_that_cannot_be_written_is_a_line_and_this_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "file" / "prompts.jsonl"
    path.parent.write_text("in the way")
    kept = PastPrompts(path)
    problem = kept.add("a")
    assert problem is not None
    assert problem.startswith("this prompt is not kept for later runs: ")
    assert [*kept] == ["a"]
