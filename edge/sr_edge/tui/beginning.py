"""How a chat begins and ends: the history is opened, the app runs, and signals let it end in order."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from textual import constants

from sr_edge.config import Config
from sr_edge.dialogue import Dialogue
from sr_edge.engine.host import Engine, Heard
from sr_edge.engine.messages import Choices
from sr_edge.errors import UsageError
from sr_edge.store import HistoryError, Store, history_path
from sr_edge.store.alive import Sign, is_alive
from sr_edge.tui.app import EdgeApp

ESCAPE_SECONDS = 0.02
"""How long an Esc waits for the rest of a sequence. Textual looks once in 0.1: at its own 0.1, twice."""

_FORGOTTEN = "sr-edge-chat-"  # how the folders of chats begin that keep nothing
_CHAT = "chat"  # whose life holds the folder
_SIGNALS = {"SIGTERM": 143, "SIGHUP": 129}


@dataclass(frozen=True, slots=True)
class Beginning:
    config: Config
    choices: Choices
    prompt: str | None = None
    """Sent at once."""
    conversation: str | None = None
    """The one to open; a unique beginning of its id will do."""
    goes_on: bool = False
    """Open the one that was used last."""
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


def run(beginning: Beginning) -> int:
    """Show the chat until the user leaves. Returns the exit code.

    Raises:
        UsageError: there is no such conversation.
    """
    with history(beginning) as (store, problems):
        conversation = beginning.conversation
        if conversation is not None:
            conversation = store.conversation(conversation).id
        elif beginning.goes_on:
            latest = store.latest()
            conversation = latest.id if latest else None
        app = EdgeApp(
            dialogue_of(store, beginning),
            beginning.config,
            choices=beginning.choices,
            environ=beginning.environ,
            prompt=beginning.prompt,
            conversation=conversation,
            notices=problems,
        )
        if "ESCDELAY" not in beginning.environ:  # which Textual obeys
            constants.ESCAPE_DELAY = ESCAPE_SECONDS  # type: ignore[misc]
        with _ending_in_order(app.leave_with):
            app.run(mouse=beginning.config.ui.mouse)
        return app.return_code or 0


def dialogue_of(store: Store, beginning: Beginning) -> Dialogue:
    def engine(hear: Callable[[Heard], None]) -> Engine:
        return Engine(beginning.choices, hear, environ=beginning.environ)

    return Dialogue(store, engine, is_kept=store.path == history_path(beginning.environ))


@contextmanager
def history(beginning: Beginning) -> Iterator[tuple[Store, list[str]]]:
    """The user's own, or one that is forgotten with the chat where none is wanted or can be written."""
    problems: list[str] = []
    wants_old = beginning.conversation is not None or beginning.goes_on
    if beginning.config.log.enabled:
        try:
            store = Store.open(history_path(beginning.environ), warn=problems.append)
        except HistoryError as error:
            if wants_old:
                raise
            problems.append(f"{error} This conversation is not kept")
        else:
            if not store.is_read_only:
                yield store, problems
                return
            store.close()
            if wants_old:
                raise HistoryError(f"{'; '.join(problems)}; read it with `sr-edge logs show`")
            problems.append("this conversation is not kept")
    elif wants_old:
        raise UsageError("a chat that keeps nothing cannot go on with a conversation: leave out --no-log")
    with _forgotten() as folder:
        yield Store.open(folder / "history.db"), problems


@contextmanager
def _forgotten() -> Iterator[Path]:
    """A folder for as long as this lasts, on no disk if the system has such a place.

    What a program that was killed left there is removed by the next one.
    """
    place = _place()
    for folder in place.glob(f"{_FORGOTTEN}*"):
        signs = folder.glob(f".{_CHAT}.*.writer")
        if not any(is_alive(folder / _CHAT, sign.name) for sign in signs):
            shutil.rmtree(folder, ignore_errors=True)  # those of others stay: they can't be read
    folder = Path(tempfile.mkdtemp(prefix=_FORGOTTEN, dir=place))
    sign = Sign(folder / _CHAT)
    try:
        yield folder
    finally:
        sign.close()
        shutil.rmtree(folder, ignore_errors=True)


def _place() -> Path:
    return Path("/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else tempfile.gettempdir())


@contextmanager
def _ending_in_order(leave: Callable[[int], None]) -> Iterator[None]:
    """SIGTERM and a closed terminal end the app as the user would."""

    def hear(number: int, frame: FrameType | None) -> None:
        code = _SIGNALS[signal.Signals(number).name]
        threading.Thread(target=leave, args=(code,), daemon=True).start()  # its loop may be asleep

    before = {}
    for name in _SIGNALS:
        if hasattr(signal, name):
            with suppress(ValueError):  # not the main thread: a test
                before[name] = signal.signal(getattr(signal, name), hear)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
