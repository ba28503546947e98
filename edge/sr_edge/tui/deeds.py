"""What can be done with turns, spans and the conversation, whoever asks: a key, a command, the palette."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from textual.app import SuspendNotSupported

from sr_edge.budget import Price
from sr_edge.dialogue import Dialogue
from sr_edge.errors import EdgeError, UsageError
from sr_edge.extract import split_reasoning
from sr_edge.roles import First
from sr_edge.store import Turn, messages
from sr_edge.terminal import safe
from sr_edge.transcript import SpanRecord, Transcript
from sr_edge.tui.clipboard import copy

if TYPE_CHECKING:
    from sr_edge.tui.screens.chat import ChatScreen
    from sr_edge.tui.screens.detail import Doing, Sent


class Deeds:
    """Stands beside the chat screen, which shows what comes of it."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen

    @property
    def _dialogue(self) -> Dialogue:
        return self._screen.dialogue

    # --- answers -------------------------------------------------------------------------------------

    async def regenerate(self, turn: str | None = None) -> None:
        await self._ask(lambda: self._dialogue.regenerate(turn or self._last().id))

    async def go_on(self, turn: str | None = None) -> None:
        await self._ask(lambda: self._dialogue.go_on(turn or self._last().id))

    async def rerun(self, turn: str, span: int | None, first: First) -> None:
        def act() -> None:
            if span is None:
                raise UsageError("choose a span first: [ and ] walk through them")
            if first == "remote" and not self._screen.has_remote:
                raise UsageError("there is no large model: `sr-edge remote add NAME URL`")
            if first == "remote" and self._screen.state.dial == "local":
                raise UsageError("nothing leaves while the policy is local: shift+tab changes it")
            self._dialogue.rerun(turn, span, first)

        await self._ask(act)

    async def edited(self, turn: str, text: str) -> None:
        await self._ask(lambda: self._dialogue.edit(turn, text))

    def edit(self, turn: str | None = None) -> None:
        """Put the prompt of this turn into the prompt line; sending it makes a branch."""
        turns = self._dialogue.turns
        at = next((n for n, one in enumerate(turns) if one.id == turn), len(turns) - 1)
        prompts = [one for one in turns[: at + 1] if one.role == "user"]
        if not prompts:
            self._screen.tell("there is no prompt to edit yet")
            return
        self._screen.edit_prompt(prompts[-1])

    async def fork(self, turn: str | None = None) -> None:
        await self._move(
            lambda: self._dialogue.fork(turn or self._last().id), "a new conversation, from here"
        )

    async def branch(self, turn: str, step: int) -> None:
        def act() -> None:
            if not self._dialogue.branch(turn, step):
                raise UsageError("there is no other branch in this direction")

        await self._move(act)

    async def _ask(self, act: Callable[[], None]) -> None:
        await self._screen.ask(act)

    async def _move(self, act: Callable[[], None], said: str = "") -> None:
        try:
            act()
        except EdgeError as error:
            self._screen.tell(str(error), "error")
            return
        await self._screen.show_all()
        if said:
            self._screen.tell(said)

    def _last(self) -> Turn:
        """Raises: UsageError: there is none."""
        if not self._dialogue.turns:
            raise UsageError("there is nothing yet: ask something")
        return self._dialogue.turns[-1]

    # --- spans ---------------------------------------------------------------------------------------

    def show_detail(self, turn: str, span: int | None, *, sent: bool = False) -> None:
        """Args: sent: show what was sent at once."""
        from sr_edge.tui.screens.detail import SpanDetail  # not before the first frame

        transcript = self._transcript(turn)
        record = next((one for one in transcript.spans if one.span == span), None) if transcript else None
        if transcript is None or record is None:
            self._screen.tell("choose a span first: [ and ] walk through them")
            return
        ready = self._screen.state.ready
        detail = SpanDetail(
            record,
            sent=self._sent(turn, transcript, record),
            price=Price(*ready.price) if ready and ready.price and ready.big == record.remote else None,
            shows_sent=sent,
        )
        self._screen.app.push_screen(detail, lambda doing: self._detail_over(turn, record.span, doing))

    def _detail_over(self, turn: str, span: int, doing: Doing | None) -> None:
        match doing:
            case "local" | "remote":
                self._screen.run_worker(self.rerun(turn, span, doing))
            case "fork":
                self._screen.run_worker(self.fork(turn))
            case "copy":
                self.copy_place(turn, span)

    def _transcript(self, turn: str) -> Transcript | None:
        if turn == self._dialogue.running:
            return self._screen.live_transcript
        return next((one.transcript for one in self._dialogue.turns if one.id == turn), None)

    def _sent(self, turn: str, transcript: Transcript, record: SpanRecord) -> Sent:
        """The conversation and the answer up to the span: what the request was made of."""
        turns = self._dialogue.turns
        at = next((n for n, one in enumerate(turns) if one.id == turn), len(turns))
        told = messages(turns[:at])
        ready = self._screen.state.ready
        if ready is not None and ready.hears_one_question:
            told = told[-1:]
        before = ""
        for segment in transcript.trail:
            if segment.span == record.span:
                break
            before += segment.text
        parts = [f"{message.role}: {message.content}" for message in told]
        return "\n\n".join([*parts, f"assistant: {transcript.opening}{before}"]) if record.sent_bytes else ""

    # --- copying and writing ---------------------------------------------------------------------------

    def copy_place(self, turn: str, span: int | None) -> None:
        """A span's text, or all of a turn."""
        selected = self._screen.get_selected_text()
        if selected:
            self.copy_text(selected, "the selection")
        elif span is not None:
            self.copy_text(self._text_of(turn, span), f"span {span}")
        else:
            one = self._turn(turn)
            self.copy_text(
                self._text_of(turn, None), "the prompt" if one and one.role == "user" else "the answer"
            )

    def copy_answer(self, turn: str | None = None) -> None:
        """The answer of this turn, or of the last one."""
        answers = [one for one in self._dialogue.turns if one.role == "assistant" and turn in (None, one.id)]
        if not answers:
            answers = [one for one in self._dialogue.turns if one.role == "assistant"]
        if answers:
            self.copy_text(_answer(answers[-1]), "the answer")
        else:
            self._screen.tell("there is no answer yet")

    def copy_code(self, turn: str | None = None) -> None:
        block = self._screen.next_code(turn)
        if block is None:
            self._screen.tell("there is no block of code here")
        else:
            self.copy_text(block, "the block of code")

    def copy_all(self) -> None:
        from sr_edge import exporting

        conversation = self._dialogue.conversation
        if conversation is None:
            self._screen.tell("there is nothing yet")
        else:
            self.copy_text(exporting.markdown(conversation, self._dialogue.turns), "the conversation")

    def copy_text(self, text: str, what: str) -> None:
        app = self._screen.app
        driver = app._driver
        copied = copy(
            text,
            environ=self._screen.environ,
            platform=sys.platform,
            write=driver.write if driver is not None else None,
        )
        self._screen.tell(copied.notice(what), "information" if copied.way else "warning")

    def open_pager(self, turn: str, span: int | None) -> None:
        text = self._text_of(turn, span)
        try:
            pager = shlex.split(self._screen.environ.get("PAGER", "")) or ["less", "-R"]
        except ValueError as error:
            self._screen.tell(f"PAGER cannot be meant ({error}): name your pager in it", "error")
            return
        with tempfile.TemporaryDirectory(prefix="sr-edge-") as folder:
            file = Path(folder) / "text.md"
            file.write_text(safe(text) + "\n", encoding="utf-8")
            try:
                with self._screen.app.suspend():
                    subprocess.run([*pager, str(file)], check=False)
            except SuspendNotSupported:
                self._screen.tell("a pager can't be opened from here", "error")
            except OSError as error:
                self._screen.tell(f"{pager[0]}: {error.strerror}: name your pager in PAGER", "error")

    def save(self, turn: str, span: int | None) -> None:
        """To a new file in the current folder."""
        from sr_edge import exporting

        name = f"span-{span}.md" if span is not None else "turn.md"
        try:
            path = exporting.write(Path.cwd() / name, self._text_of(turn, span) + "\n")
        except EdgeError as error:
            self._screen.tell(str(error), "error")
        else:
            self._screen.tell(f"written to {path}")

    def export(self, form: str, path: Path) -> Path:
        """The conversation as it is shown, to a file. Raises: EdgeError."""
        from sr_edge import exporting

        conversation, turns = self._dialogue.conversation, self._dialogue.turns
        if form == "svg":
            return exporting.write(path, self._screen.picture())
        if conversation is None:
            raise UsageError("there is nothing to export yet: ask something")
        match form:
            case "markdown":
                return exporting.write(path, exporting.markdown(conversation, turns))
            case "html":
                return exporting.write(path, exporting.html(conversation, turns))
            case "json":
                return exporting.write(path, exporting.json_text(conversation, turns))
            case "jsonl":
                answers = [turn for turn in turns if turn.role == "assistant"]
                if not answers:
                    raise UsageError("there is no answer to export yet")
                events = self._dialogue.store.events(answers[-1].id)
                return exporting.write(path, exporting.json_lines(events))
        raise UsageError(f"there is no format {form}: markdown, html, json, jsonl, svg")

    def _turn(self, turn: str) -> Turn | None:
        return next((one for one in self._dialogue.turns if one.id == turn), None)

    def _text_of(self, turn: str, span: int | None) -> str:
        transcript = self._transcript(turn)
        if span is not None and transcript is not None:
            return next((one.text for one in transcript.spans if one.span == span), "")
        one = self._turn(turn)
        if one is None:
            return transcript.text if transcript else ""
        return _answer(one) if one.role == "assistant" else one.text


def _answer(turn: Turn) -> str:
    """Without its reasoning, if there is anything else."""
    opening = turn.transcript.opening if turn.transcript else ""
    return split_reasoning(opening, turn.text)[1].strip() or turn.text.strip()
