"""The chat: composes its parts, hears keys and the engine, and brings them together. Draws nothing itself."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.notifications import SeverityLevel
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Footer, Static

from sr_edge.config import load_config
from sr_edge.dialogue import Dialogue, Kept
from sr_edge.engine.host import Heard
from sr_edge.engine.messages import Answered, Answering, Asked, Choices, Died, Failed, Note, Ready
from sr_edge.errors import EdgeError, UsageError
from sr_edge.events import Event, Finished
from sr_edge.policy import Dial
from sr_edge.states import forget_states
from sr_edge.store import Turn
from sr_edge.terminal import safe_line
from sr_edge.transcript import Fold, Transcript
from sr_edge.tui.bindings import bindings
from sr_edge.tui.commanding import Commanding
from sr_edge.tui.deeds import Deeds
from sr_edge.tui.prompts import PastPrompts
from sr_edge.tui.quiet import QuietScreen, one_turn
from sr_edge.tui.slash import parse
from sr_edge.tui.state import State
from sr_edge.tui.widgets.consent import Consent, Request
from sr_edge.tui.widgets.prompt import Prompt
from sr_edge.tui.widgets.sidebar import Sidebar
from sr_edge.tui.widgets.status import Doing, Facts, Limit, StatusLine
from sr_edge.tui.widgets.transcript import Talk, foot_of
from sr_edge.tui.widgets.turn import AnswerView, Folding
from sr_edge.tui.widgets.welcome import Setup, Welcome

if TYPE_CHECKING:
    from sr_edge.config import Config
    from sr_edge.store import Hit
    from sr_edge.tui.screens.sessions import Found

FRAMES = 12
"""A second: how often what was heard is drawn."""

_FRAMES_BESIDE_TYPING = 4  # a second: a letter that is typed is not to wait for every frame
_TYPING_SECONDS = 0.3  # after a letter

PAUSE_SECONDS = 0.6
"""Without a letter, after which the small model may read what was typed."""

MAX_BIAS = 10.0

_TWICE_SECONDS = 2.0
_SETTLE_SECONDS = 1.0  # it takes milliseconds
_DIALS: tuple[Dial, ...] = ("auto", "ask", "local")


class ChatScreen(QuietScreen[None]):
    DEFAULT_CSS = """
    ChatScreen {
        #title {
            height: 1;
            padding: 0 1;
            background: $panel;
            text-wrap: nowrap;
            text-overflow: ellipsis;
        }
        #main { width: 1fr; }
        #body { height: 1fr; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = bindings("chat")
    AUTO_FOCUS = "#prompt"

    class Woken(Message):
        """Something was heard while nothing was expected, or what the user waits for."""

    def __init__(
        self,
        dialogue: Dialogue,
        config: Config,
        *,
        choices: Choices,
        past: PastPrompts,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.dialogue = dialogue
        self.config = config
        self.choices = choices
        self.environ = environ
        self.deeds = Deeds(self)
        self.state = State(config.offload.policy, clock)
        self.bias = 0.0
        self._past = past
        self._heard: deque[Heard | Kept] = deque()  # filled on the engine's thread
        self._frames: Timer | None = None
        self._is_awake = False
        self._live: AnswerView | None = None  # the answer that is being written
        self._is_placing = False
        self._is_to_reopen = False  # once the answer is over
        self._is_drawing = False
        self._typed_at = self._drawn_at = 0.0
        self._pause: Timer | None = None  # since the last letter
        self._is_typing = False  # something stands there
        self._fold = Fold()
        self._edited: str | None = None  # the turn whose prompt is being edited
        self._code_at = -1  # the block of code that was copied last
        self._shares: dict[float, tuple[int, int]] = {}  # by bias: local and remote tokens of its answers
        self._quits = False  # Ctrl+C was pressed once

    def compose(self) -> ComposeResult:
        ui = self.config.ui
        yield Static(id="title", markup=False)
        with Horizontal(id="body"):
            yield Sidebar(ui.sidebar, id="sidebar")
            with Vertical(id="main"):
                yield Welcome(self._setup(), id="welcome")
                yield Talk(folding=ui.reasoning, id="talk")
                yield Consent(id="consent")
                yield Prompt(self._past, id="prompt")
        yield StatusLine(clock=self.state.clock, id="status")
        yield Footer(compact=True)

    def load_config(self) -> Config:
        """As it would be read now. Raises: UsageError."""
        path = None if self.choices.config is None else Path(self.choices.config)
        return load_config(
            environ=self.environ, path=path, profile=self.choices.profile, flags=self.choices.flags
        )

    def on_mount(self) -> None:
        self._frames = self.set_interval(1 / FRAMES, self._draw, pause=True)
        self.dialogue.show = self._hear
        self._welcome(True)
        self._steer()
        self._show_place()
        self._list_conversations()
        self._show_status()

    @property
    def focus_chain(self) -> list[Widget]:
        """Where Tab goes: from the prompt to a question that waits, the conversation, the list of them."""
        parts = ["#prompt", "#consent", "#welcome", "#talk", "#sidebar"]
        places = {id(self.query_one(part)): n for n, part in enumerate(parts)}

        def place(widget: Widget) -> int:
            return next((places[id(node)] for node in widget.ancestors_with_self if id(node) in places), 99)

        return sorted(super().focus_chain, key=place)

    # --- hearing the engine --------------------------------------------------------------------------

    def _hear(self, heard: Heard | Kept) -> None:
        """On the engine's thread."""
        self._heard.append(heard)
        if not self._is_awake or self.state.phase == "stopping":
            self._is_awake = True
            self.post_message(self.Woken())

    @on(Woken)
    async def _wake(self) -> None:
        if self._frames is not None:
            self._frames.resume()
        if self.state.phase == "stopping":
            await self._draw()

    @on(Prompt.Changed)
    def _typed(self) -> None:
        self._typed_at = time.monotonic() if self.query_one(Prompt).text else 0.0
        self._read_soon()

    def _read_soon(self) -> None:
        """At the first letter and whenever the user pauses, the small model may read what stands there."""
        if self._pause is not None:
            self._pause.stop()
            self._pause = None
        was_typing, self._is_typing = self._is_typing, bool(self.query_one(Prompt).text)
        if self.config.chat.prefill_while_typing and self._is_typing:
            if not was_typing:  # the answer before it can be read meanwhile
                self._read_draft()
            self._pause = self.set_timer(PAUSE_SECONDS, self._read_draft)

    def _read_draft(self) -> None:
        text = self.query_one(Prompt).text.rstrip().strip("\n")
        if text and not text.startswith("/"):
            with suppress(UsageError):  # the turn that is edited is no more
                self.dialogue.draft(text, turn=self._edited)

    async def _draw(self) -> None:
        """All that was heard since the last frame."""
        if self._is_placing or self._is_drawing:
            return  # what is heard belongs to a view that is not there yet, or comes after what is drawn
        now = time.monotonic()
        if now - self._typed_at < _TYPING_SECONDS and now - self._drawn_at < 1 / _FRAMES_BESIDE_TYPING:
            return
        self._drawn_at = now
        if not self._heard and not self.state.is_busy and not self.is_answering:
            self._is_awake = False
            if not self._heard and self._frames is not None:  # nothing came between the two lines
                self._frames.pause()
        self._is_drawing = True
        try:
            await self._draw_heard()
        finally:
            self._is_drawing = False
        self._show_status()

    async def _draw_heard(self) -> None:
        grew = False
        for _ in range(len(self._heard)):
            heard = self._heard.popleft()
            if isinstance(heard, Kept):
                self.tell(heard.problem, "warning")
                continue
            self.state.add(heard)
            if isinstance(heard, Event):
                grew = True
                self._fold.add(heard)
                if isinstance(heard, Finished):
                    break  # the status says so before all else is put in order
                if self._live is not None:
                    self._live.blocks.add(heard)
            elif await self._hear_report(heard):
                break  # what follows belongs to a view that is being made
        if grew and self._live is not None:
            await self._live.grew()

    async def _hear_report(self, heard: Heard) -> bool:
        """Whether another answer was asked for meanwhile."""
        match heard:
            case Answering():
                self._fold = Fold()
            case Ready(notices=notices):
                self._show_place()
                for line in notices:
                    self.tell(line)
            case Failed(error):
                self._show_place()
                self.tell(error, "error")
            case Asked() if self.state.dial == "ask" and not self.state.is_offline:
                to = heard.remote if heard.where in ("", heard.remote) else f"{heard.remote} at {heard.where}"
                request = Request(to, heard.tokens, heard.size, heard.cost, heard.text)
                is_typing = self.focused is self.query_one(Prompt) and bool(self.query_one(Prompt).text)
                self.query_one(Consent).ask(request, take_focus=not is_typing)
            case Note(text):
                self.tell(text, "warning")
            case Answered(error=error):
                await self._end_answer(error)
            case Died(reason, number):
                kept = "" if number is None else " Your text is saved: /continue goes on."
                self.tell(f"{reason}.{kept} The next prompt starts it again", "error")
                await self._end_answer(None)
        return self._is_placing

    async def _end_answer(self, error: str | None) -> None:
        self.query_one(Consent).withdraw()
        live, self._live = self._live, None
        if live is None:
            if error is not None:
                self.tell(error, "error")
            return
        local, remote = self._shares.get(self.bias, (0, 0))
        self._shares[self.bias] = (local + self.state.local_tokens, remote + self.state.remote_tokens)
        foot = ""
        try:
            self.dialogue.reload()
        except EdgeError as failed:
            self.tell(str(failed), "warning")
        else:
            foot = foot_of(self.dialogue.turns[-1])
        await live.end(foot)
        await self.query_one(Talk).trim(self.dialogue.turns)
        if self._is_to_reopen:
            self._reopen()
        if error is not None:
            self.tell(error, "error")
        self._read_soon()
        self._list_conversations()
        self._show_place()

    # --- hearing the user ----------------------------------------------------------------------------

    @on(Prompt.Sent)
    async def _sent(self, message: Prompt.Sent) -> None:
        await self.send(message.text.strip("\n"))

    async def send(self, text: str) -> None:
        """A prompt, or a command with a slash."""
        if await self._command(text):
            return
        await self._say(text)

    async def ask(self, act: Callable[[], None], *, text: str = "") -> bool:
        """Ask for an answer, and show its empty place. What can't be done is said; typed text comes back.

        Returns whether it could.
        """
        await self._settle()
        before = [turn.id for turn in self.dialogue.turns]
        self._is_placing = True
        try:
            act()
            await self._show_answering(before)
        except EdgeError as error:
            self.tell(str(error), "error")
            if text and not self.query_one(Prompt).text:
                self.query_one(Prompt).put(text)
            return False
        finally:
            self._is_placing = False
        return True

    async def _settle(self) -> None:
        """Show the end of the answer before, if it has been written and not shown yet."""
        until = time.monotonic() + _SETTLE_SECONDS
        while self._live is not None and self._is_written and time.monotonic() < until:
            if not self._heard:
                time.sleep(0.001)  # its end is being told on the engine's thread just now
            self._drawn_at = 0.0
            await self._draw()
            await one_turn()

    @property
    def _is_written(self) -> bool:
        """Whether nothing of the answer is to come but word that it is over."""
        return not self.dialogue.is_answering or self._fold.transcript.finish is not None

    async def _show_answering(self, before: list[str]) -> None:
        """Bring the views to the dialogue's turns, of which the answer under way is not one yet."""
        talk = self.query_one(Talk)
        self._welcome(False)
        turns = self.dialogue.turns
        running = self.dialogue.written
        shown = [turn for turn in turns if turn.id != running]
        same = sum(1 for one, other in zip(before, shown, strict=False) if one == other.id)
        for id in before[same:]:
            await talk.truncate(id)
        for turn in shown[same:]:
            if turn.role == "user":
                await talk.add_prompt(turn)
        if running is not None:
            self._live = await talk.add_answer(running)
        talk.unchoose()
        self._list_conversations()
        self._show_place()

    async def _say(self, text: str) -> None:
        edited = self._edited
        if edited is None:
            await self.ask(lambda: self.dialogue.say(text), text=text)
        elif await self.ask(lambda: self.dialogue.edit(edited, text), text=text):
            self._leave_edit()

    def edit_prompt(self, turn: Turn) -> None:
        """What is sent next takes the place of this prompt."""
        prompt = self.query_one(Prompt)
        if prompt.text.strip():
            self.tell("there is text in the prompt: send it or clear it first", "warning")
            return
        self._edited = turn.id
        prompt.put(turn.text)
        prompt.border_title = "edit: enter makes a branch, esc leaves it"
        prompt.focus()

    def _leave_edit(self) -> bool:
        """Whether there was one."""
        was_editing, self._edited = self._edited is not None, None
        self.query_one(Prompt).border_title = None
        return was_editing

    def _welcome(self, is_empty: bool) -> None:
        """Show what this is, instead of a conversation that is empty."""
        self.query_one(Welcome).display = is_empty
        self.query_one(Talk).display = not is_empty

    @on(Consent.Decided)
    def _decided(self, message: Consent.Decided) -> None:
        if message.verdict == "always":
            self.turn_dial("auto")
        self.dialogue.engine.decide("no" if message.verdict == "no" else "yes")
        self.state.decided()
        self.query_one(Prompt).focus()

    @on(Welcome.Chosen)
    def _example(self, message: Welcome.Chosen) -> None:
        self.query_one(Prompt).put(message.text)
        self.query_one(Prompt).focus()

    @on(Sidebar.Renamed)
    def _renamed(self, message: Sidebar.Renamed) -> None:
        self._change(lambda: self.dialogue.store.rename(message.conversation.id, message.title))

    @on(Sidebar.Removed)
    async def _removed(self, message: Sidebar.Removed) -> None:
        id = message.conversation.id
        current = self.dialogue.conversation
        is_open = current is not None and current.id == id
        if is_open and self.dialogue.is_answering:
            self.tell("an answer is being written in it: stop it first (esc)", "error")
            return
        if is_open:
            await self.action_new()
        self._change(lambda: self._remove(id))

    def _remove(self, id: str) -> None:
        self.dialogue.remove(id)
        forget_states(id, self.environ)

    def rename(self, title: str) -> None:
        conversation = self.dialogue.conversation
        if conversation is None:
            self.tell("there is no conversation yet")
        else:
            self._change(lambda: self.dialogue.store.rename(conversation.id, title))

    def _change(self, act: Callable[[], None]) -> None:
        """Something about the list of conversations."""
        try:
            act()
            self.dialogue.look_again()
        except EdgeError as error:
            self.tell(str(error), "error")
        self._list_conversations()
        self._show_place()

    @on(Sidebar.Left)
    def _left_sidebar(self) -> None:
        self.query_one(Prompt).focus()

    @on(Sidebar.Opened)
    async def _opened(self, message: Sidebar.Opened) -> None:
        await self.open(message.conversation.id)

    async def open(self, id: str, turn: str | None = None) -> None:
        """Show a conversation, at this turn or at its end. Nothing is sent."""
        await self._settle()
        try:
            self.dialogue.open(id, turn)
        except EdgeError as error:
            self.tell(str(error), "error")
            return
        await self.show_all()
        talk = self.query_one(Talk)
        view = talk.view_of(turn) if turn is not None else None
        if view is not None:
            talk.focus()
            self.call_after_refresh(talk.choose, view, None)

    async def show_all(self) -> None:
        if self._leave_edit():
            self.query_one(Prompt).clear_text()
        self._welcome(not self.dialogue.turns)
        await self.query_one(Talk).show(self.dialogue.turns)
        self._list_conversations()
        self._show_place()
        self.query_one(Prompt).focus()

    def take_settings(self, config: Config) -> None:
        """All that was changed holds from here on; while an answer is written, for the next one at least.

        What keeps text on this machine holds at once: offline, and the policy.
        """
        before, self.config = self.config, config
        self.query_one(Sidebar).set_mode(config.ui.sidebar)
        self.set_folding(config.ui.reasoning)
        if config.offline and not before.offline:
            self.set_offline(True)
        if config.offload.policy != before.offload.policy:
            self.turn_dial(config.offload.policy)
        if config.log != before.log:
            self.tell("what is kept is settled when a chat begins: from the next one on")
        if replace(config, ui=before.ui, log=before.log, settings=before.settings) != before:
            self._reopen()
        self._show_status()

    def _reopen(self) -> None:
        """Load the models anew, with the settings as they are; after the answer that is being written."""
        self._is_to_reopen = self.dialogue.is_answering
        if not self._is_to_reopen:
            self.dialogue.engine.reopen(self.choices)

    # --- commands --------------------------------------------------------------------------------------

    async def _command(self, text: str) -> bool:
        """Whether it was one."""
        try:
            typed = parse(text)
            if typed is None:
                return False
            await Commanding(self).run(typed)
        except EdgeError as error:
            self.tell(str(error), "error")
            if not self.query_one(Prompt).text:
                self.query_one(Prompt).put(text)
        return True

    def run_command(self, name: str, argument: str) -> None:
        """For the palette."""
        self.run_worker(self._command(f"/{name} {argument}".rstrip()))

    def prepare_command(self, text: str) -> None:
        """For the palette: the user says what it takes."""
        self.query_one(Prompt).put(text)
        self.query_one(Prompt).focus()

    def search_history(self, text: str) -> list[Hit]:
        try:
            return self.dialogue.store.search(text, limit=10)
        except EdgeError:
            return []  # the screen for it says why

    def open_found(self, found: Hit) -> None:
        self.run_worker(self.open(found.conversation.id, found.turn))

    # --- what stands around the turns ------------------------------------------------------------------

    def _setup(self) -> Setup:
        config = self.config
        return Setup(
            model=None if config.model is None else Path(config.model).name.removesuffix(".gguf"),
            remote=self.choices.big or config.default_remote,
            is_offline=config.offline,
        )

    def _show_place(self) -> None:
        """Where the user is, and with whom."""
        conversation, ready = self.dialogue.conversation, self.state.ready
        who = "no model" if self.state.phase == "failed" else "loading"
        if ready is not None:
            big = f" ▸ {ready.big}" if ready.big else ""
            who = f"{ready.model}{big}"
        title = safe_line(conversation.title) if conversation else "new conversation"
        self.query_one("#title", Static).update(
            Content.assemble(("sr-edge", "bold $primary"), "  ", title, "  ", (safe_line(who), "dim"))
        )

    def _list_conversations(self) -> None:
        current = self.dialogue.conversation
        try:
            self.query_one(Sidebar).show(self.dialogue.store.conversations(), current.id if current else None)
        except EdgeError as error:
            self.tell(str(error), "warning")

    def set_folding(self, folding: Folding) -> None:
        self.query_one(Talk).set_folding(folding)

    @property
    def is_answering(self) -> bool:
        """Until the end of the answer is shown."""
        return self.dialogue.is_answering or self._live is not None

    # --- what the deeds need ---------------------------------------------------------------------------

    @property
    def has_remote(self) -> bool:
        return self.state.ready is None or self.state.ready.big is not None

    @property
    def live_transcript(self) -> Transcript:
        return self._fold.transcript

    def tell(self, line: str, severity: SeverityLevel = "information") -> None:
        self.notify(
            safe_line(line), severity=severity, markup=False, timeout=4 if severity == "information" else 8
        )

    def picture(self) -> str:
        """The screen as it is, as SVG."""
        conversation = self.dialogue.conversation
        return self.app.export_screenshot(title=safe_line(conversation.title) if conversation else "sr-edge")

    def next_code(self, turn: str | None) -> str | None:
        """The block of code after the one that was copied last; of one turn, or of all."""
        talk = self.query_one(Talk)
        view = talk.view_of(turn) if turn is not None else None
        views = (
            [view] if isinstance(view, AnswerView) else [v for v in talk.views if isinstance(v, AnswerView)]
        )
        blocks = [block for one in views for block in one.code_blocks()]
        if not blocks:
            return None
        self._code_at = (self._code_at + 1) % len(blocks)
        return blocks[self._code_at]

    # --- deeds on turns and spans --------------------------------------------------------------------

    @on(Talk.Wish)
    async def _wished(self, wish: Talk.Wish) -> None:
        deeds = self.deeds
        turn, span = wish.turn, wish.span
        match wish.deed:
            case "span_detail" | "span_view" | "span_why":
                deeds.show_detail(turn, span, sent=wish.deed == "span_view")
            case "rerun_local":
                await deeds.rerun(turn, span, "local")
            case "rerun_remote":
                await deeds.rerun(turn, span, "remote")
            case "copy_block":
                deeds.copy_place(turn, span)
            case "copy_answer":
                deeds.copy_answer(turn)
            case "copy_code":
                deeds.copy_code(turn)
            case "open_pager":
                deeds.open_pager(turn, span)
            case "save_block":
                deeds.save(turn, span)
            case "edit":
                deeds.edit(turn)
            case "regenerate":
                await deeds.regenerate(turn)
            case "continue":
                await deeds.go_on(turn)
            case "fork":
                await deeds.fork(turn)
            case "previous_branch":
                await deeds.branch(turn, -1)
            case "next_branch":
                await deeds.branch(turn, 1)

    # --- keys ----------------------------------------------------------------------------------------

    def action_stop(self) -> None:
        """One press stops; with nothing to stop it leaves what is under way, or clears the prompt."""
        prompt = self.query_one(Prompt)
        if self.dialogue.is_answering:
            self._typed_at = 0.0  # what comes of it is drawn at once
            self.state.stopping()
            self.dialogue.stop()
            self._show_status()
        elif self._leave_edit():
            prompt.clear_text()
        elif self.focused is not prompt:
            self.query_one(Talk).unchoose()
            prompt.focus()
        else:
            prompt.clear_text()

    def action_policy(self) -> None:
        dial = self.state.dial
        self.turn_dial(_DIALS[(_DIALS.index(dial) + 1) % len(_DIALS)] if dial in _DIALS else "auto")

    def action_reasoning(self) -> None:
        view = self._answer_in_focus()
        if view is not None:
            view.toggle()

    def action_details(self) -> None:
        self.query_one(Talk).toggle_details()

    def action_sidebar(self) -> None:
        if not self.query_one(Sidebar).toggle():
            self.query_one(Prompt).focus()

    async def action_new(self) -> None:
        await self._settle()
        try:
            self.dialogue.new()
        except EdgeError as error:
            self.tell(str(error), "error")
            return
        await self.show_all()

    def action_previous_block(self) -> None:
        self._walk(-1)

    def action_next_block(self) -> None:
        self._walk(1)

    def action_sessions(self) -> None:
        from sr_edge.tui.screens.sessions import SessionsScreen  # not before the first frame

        def opened(found: Found | None) -> None:
            if found is not None:
                self.run_worker(self.open(found.conversation.id, found.turn))

        store = self.dialogue.store
        try:
            recent = store.conversations(limit=50)
        except EdgeError as error:
            self.tell(str(error), "error")
            return
        search = SessionsScreen(lambda text, reasoning: store.search(text, reasoning=reasoning), recent)
        self.app.push_screen(search, opened)

    def action_export(self, form: str = "markdown") -> None:
        from sr_edge.tui.screens.export import ExportScreen  # not before the first frame

        conversation = self.dialogue.conversation
        title = conversation.title if conversation else "sr-edge"
        self.app.push_screen(ExportScreen(self.deeds.export, title, folder=Path.cwd(), chosen=form))

    def action_effort_up(self) -> None:
        self.set_bias(self.bias + 1)

    def action_effort_down(self) -> None:
        self.set_bias(self.bias - 1)

    def action_offline(self) -> None:
        self.set_offline(not self.state.is_offline)

    def interrupt(self) -> bool:
        """Ctrl+C: copy what is selected, else clear what is typed, else stop, else leave at the second press.

        Returns whether it is to leave.
        """
        selected = self.get_selected_text()
        prompt = self.query_one(Prompt)
        if selected or prompt.selected_text:
            self.deeds.copy_text(selected or prompt.selected_text, "the selection")
            self.clear_selection()
        elif prompt.clear_text():
            self._leave_edit()
        elif self.dialogue.is_answering:
            self.action_stop()
        elif self._quits:
            return True
        else:
            self._quits = True
            self.set_timer(_TWICE_SECONDS, self._forget_quit)
            self.tell("ctrl+c again to leave")
        return False

    def _forget_quit(self) -> None:
        self._quits = False

    def _walk(self, direction: int) -> None:
        talk = self.query_one(Talk)
        talk.focus()
        talk.step(direction)

    def _answer_in_focus(self) -> AnswerView | None:
        talk = self.query_one(Talk)
        if talk.chosen is not None and isinstance(talk.chosen[0], AnswerView):
            return talk.chosen[0]
        return next((view for view in reversed(talk.views) if isinstance(view, AnswerView)), None)

    # --- dials ---------------------------------------------------------------------------------------

    def turn_dial(self, dial: Dial) -> None:
        self.state.dial = dial
        self._steer()
        if dial != "local" and self._is_alone:
            if self.dialogue.is_answering:
                self.tell("the large model is opened once this answer is over: turn the policy again then")
            else:
                flags = {**self.choices.flags, "offload.policy": dial}
                self.choices = replace(self.choices, flags=flags)
                self.dialogue.engine.reopen(self.choices)
        if dial == "ask" and self.state.ready is not None and not self.state.ready.leaves:
            self.tell("ask: nobody is asked here, for nothing leaves this machine")
        if dial != "ask":
            self.query_one(Consent).withdraw()
        self._show_status()

    @property
    def _is_alone(self) -> bool:
        """No large model was opened, for the policy was local when the models were."""
        opened_with = self.choices.flags.get("offload.policy", self.config.offload.policy)
        return self.state.ready is not None and self.state.ready.big is None and opened_with == "local"

    def set_bias(self, bias: float) -> None:
        if self.state.ready is not None and not self.state.ready.can_ask:
            self.tell("this model's markers are text: how readily it asks cannot be changed", "warning")
            return
        self.bias = max(-MAX_BIAS, min(MAX_BIAS, bias))
        self._steer()
        self._show_status()

    def _steer(self) -> None:
        self.dialogue.policy = self.state.dial
        self.dialogue.engine.steer(dial=self.state.dial, bias=self.bias)

    def set_offline(self, is_offline: bool) -> None:
        """Offline is for good as far as a request under way is concerned: it is hung up on."""
        if not is_offline and self.config.offline:
            self.tell(
                "the settings say offline: `sr-edge config set offline false`, or start without --offline"
            )
            return
        if is_offline:
            self.dialogue.engine.go_offline()
            self.query_one(Consent).withdraw()
        elif self.dialogue.is_answering:
            self.tell("an answer is being written: stop it first (esc)")
            return
        else:
            self.dialogue.engine.go_online()
        self.state.is_offline = is_offline
        self._show_status()

    def _show_status(self) -> None:
        state, budget = self.state, self.config.budget
        ready = state.ready
        answer = day = None
        if ready is not None and ready.leaves:
            if ready.price is not None:
                answer = Limit(state.answer_cost or 0.0, budget.usd_per_answer)
                day = Limit(state.spent[0] if state.spent else 0.0, budget.usd_per_day)
            else:
                answer = Limit(state.answer_tokens, budget.tokens_per_answer, is_usd=False)
                day = Limit(state.spent[1] if state.spent else 0, budget.tokens_per_day, is_usd=False)
        facts = Facts(
            doing=Doing(state.phase, state.remote, state.done, state.total, state.since),
            link=state.link,
            ttft=state.ttft,
            dial=state.dial,
            effort=self._effort(),
            context=(state.context_used, ready.context) if ready is not None else None,
            answer=answer,
            day=day,
        )
        self.query_one(StatusLine).show(facts)

    def _effort(self) -> str:
        """The bias, and what share the large model had of the answers under it."""
        if not self.bias:
            return ""
        local, remote = self._shares.get(self.bias, (0, 0))
        share = f" → {remote / (local + remote):.0%}".replace("%", " %") if local + remote else ""
        return f"effort {self.bias:+g}{share}"
