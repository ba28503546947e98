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

from sr_edge.config import Config
from sr_edge.dialogue import Dialogue
from sr_edge.engine.host import Engine, Heard
from sr_edge.engine.messages import Choices
from sr_edge.store import HistoryError, Store, history_path
from sr_edge.tui.app import EdgeApp

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
    with _history(beginning) as (store, problems):
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
        with _ending_in_order(app.leave_with):
            app.run(mouse=beginning.config.ui.mouse)
        return app.return_code or 0


def dialogue_of(store: Store, beginning: Beginning) -> Dialogue:
    def engine(hear: Callable[[Heard], None]) -> Engine:
        return Engine(beginning.choices, hear, environ=beginning.environ)

    return Dialogue(store, engine)


@contextmanager
def _history(beginning: Beginning) -> Iterator[tuple[Store, list[str]]]:
    """The user's own, or one that is forgotten with the chat where none is wanted or can be written."""
    problems: list[str] = []
    if beginning.config.log.enabled:
        try:
            store = Store.open(history_path(beginning.environ), warn=problems.append)
        except HistoryError as error:
            problems.append(f"{error} This conversation is not kept")
        else:
            if not store.is_read_only:
                yield store, problems
                return
            store.close()
            problems.append("this conversation is not kept")
    folder = Path(tempfile.mkdtemp(prefix="sr-edge-", dir=_in_memory()))
    try:
        yield Store.open(folder / "history.db"), problems
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _in_memory() -> str | None:
    """A folder that no disk holds, if the system has one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None


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
