"""The app: what all its screens share, which are the theme, the keys, help and the way out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from textual.app import App
from textual.binding import BindingType
from textual.driver import Driver
from textual.screen import Screen

from sr_edge.dialogue import Dialogue
from sr_edge.engine.messages import Choices
from sr_edge.files import state_dir
from sr_edge.terminal import safe_line
from sr_edge.tui.bindings import bindings
from sr_edge.tui.palette import ChatCommands, History
from sr_edge.tui.prompts import PastPrompts
from sr_edge.tui.screens.chat import ChatScreen

if TYPE_CHECKING:
    from sr_edge.config import Config
    from sr_edge.config.load import Ui
    from sr_edge.tui.screens.settings import SettingsScreen


class EdgeApp(App[int]):
    TITLE = "sr-edge"
    CSS = """
    ToastRack { dock: top; align: right top; margin: 1 1 0 0; }
    Toast { margin: 0 0 1 0; width: 60; max-width: 100%; }
    FooterKey.-command-palette { margin-right: 0; padding-right: 1; background: $footer-background; }
    """
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "ctrl+p"  # what the keymap has: the foot of the screen has it at its right
    COMMANDS: ClassVar = {ChatCommands, History}
    BINDINGS: ClassVar[list[BindingType]] = bindings("app")
    PAUSE_GC_ON_SCROLL = True

    def __init__(
        self,
        dialogue: Dialogue,
        config: Config,
        *,
        choices: Choices,
        environ: Mapping[str, str],
        prompt: str | None = None,
        conversation: str | None = None,
        notices: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        dialogue: closed with the app.
        prompt: sent at once.
        conversation: opened at first.
        notices: what the user should know, one line each.
        """
        super().__init__()
        self._dialogue = dialogue
        self._config = config
        self._choices = choices
        self._environ = environ
        self._prompt = prompt
        self._conversation = conversation
        self._notices = notices
        self._clock = clock
        self._code: int | None = None  # with which it is to end before it has begun

    def get_default_screen(self) -> Screen[None]:
        keeps = self._config.log.enabled
        return ChatScreen(
            self._dialogue,
            self._config,
            choices=self._choices,
            past=PastPrompts(state_dir(self._environ) / "prompts.jsonl" if keeps else None),
            environ=self._environ,
            clock=self._clock,
        )

    def get_driver_class(self) -> type[Driver]:
        driver = super().get_driver_class()
        if driver.__name__ != "LinuxDriver":
            return driver
        from sr_edge.tui.driver import QuickDriver

        return QuickDriver

    async def on_mount(self) -> None:
        self._follow(self._config.ui)
        for line in self._notices:
            self.notify(safe_line(line), severity="warning", markup=False, timeout=10)
        self.call_after_refresh(self._begin)

    async def _begin(self) -> None:
        """After the first frame: the screen is there before the models are."""
        if self._code is not None:
            self.exit(return_code=self._code)
            return
        screen = self.chat
        gc.freeze()  # what is there by now stays: looking through it would only make keys wait
        gc.enable()
        self._dialogue.engine.start()
        if self._conversation is not None:
            await screen.open(self._conversation)
        if self._prompt is not None:
            await screen.send(self._prompt)

    def on_settings_screen_changed(self, message: SettingsScreen.Changed) -> None:
        self._follow(message.config.ui)
        self.chat.take_settings(message.config)

    def _follow(self, ui: Ui) -> None:
        """Theme, animations and keys."""
        if ui.theme in self.available_themes:
            self.theme = ui.theme
        else:
            known = ", ".join(sorted(self.available_themes))
            self.notify(f"there is no theme {safe_line(ui.theme)}: {known}", severity="warning", markup=False)
        self.animation_level = "full" if ui.animations else "none"
        self.set_keymap(dict(ui.keymap))

    @property
    def chat(self) -> ChatScreen:
        screen = self.screen_stack[0]
        assert isinstance(screen, ChatScreen)
        return screen

    async def on_unmount(self) -> None:
        self._dialogue.close()

    def leave_with(self, code: int) -> None:
        """From any thread, also before there is a first frame."""
        self._code = code
        with suppress(RuntimeError):  # it does not run yet, or no more
            self.call_from_thread(self.exit, return_code=code)

    # --- keys ----------------------------------------------------------------------------------------

    def action_help(self) -> None:
        if self.screen.query("HelpPanel"):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()

    def action_settings(self) -> None:
        from sr_edge.tui.screens.settings import SettingsScreen  # not before the first frame

        if not isinstance(self.screen, SettingsScreen):
            self.push_screen(SettingsScreen(self.chat.config, self.chat.load_config))

    def action_interrupt(self) -> None:
        if self.screen is not self.chat:  # what lies under it is not what the key is about
            self._interrupt_modal()
            return
        if self.chat.interrupt():
            self.exit(return_code=0)

    def _interrupt_modal(self) -> None:
        """Copy what is selected on it, else leave it."""
        selected = self.screen.get_selected_text() or getattr(self.focused, "selected_text", "")
        if selected:
            self.chat.deeds.copy_text(selected, "the selection")
            self.screen.clear_selection()
        else:
            self.simulate_key("escape")

    async def action_quit(self) -> None:
        self.exit(return_code=0)
