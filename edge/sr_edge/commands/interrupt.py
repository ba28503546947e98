"""Ctrl-C asks to stop, so that what was begun is ended well; a second one stops at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self

from sr_edge.commands import INTERRUPTED


class Interrupt:
    """While entered: whether Ctrl-C was pressed, to be called between two tokens."""

    def __init__(self) -> None:
        self._pressed = False

    def __call__(self) -> bool:
        return self._pressed

    def check(self, done: float) -> None:
        """For work that says how far it is (0 to 1), and has nothing worth keeping before its end.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        if self._pressed:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._before)

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self._pressed:
            os._exit(INTERRUPTED)
        self._pressed = True
