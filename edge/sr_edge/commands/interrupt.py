"""Ctrl-C asks to stop, so that what was begun is ended well; a second one stops at once.

The signals that end a program from outside can be taken the same way: SIGTERM, and SIGHUP of a terminal that
is closed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from sr_edge.commands import INTERRUPTED

_BY_SIGNAL = 128  # and its number: as a shell reports a program that a signal ended

ENDING = (signal.SIGTERM, *([] if sys.platform == "win32" else [signal.SIGHUP]))


class Interrupt:
    """While entered: whether Ctrl-C was pressed, to be called between two tokens."""

    def __init__(self, *also: signal.Signals) -> None:
        """Args:
        also: signals that mean the same.
        """
        self._signals = (signal.SIGINT, *also)
        self._before: dict[signal.Signals, Any] = {}
        self._number: int | None = None

    def __call__(self) -> bool:
        return self._number is not None

    @contextmanager
    def ending(self, stop: Callable[[], None]) -> Iterator[None]:
        """Call `stop` as soon as one of the signals comes, on another thread.

        Python hears a signal between two of its own steps. One step may be a call of llama.cpp that reads a
        long prompt for seconds; `stop` can end that.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard, told = os.pipe()
        os.set_blocking(told, False)
        before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)

        def listen() -> None:
            with open(heard, "rb", buffering=0) as signals:
                while number := signals.read(1):
                    if number[0] in self._signals:
                        stop()

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(told)
            listener.join()

    @property
    def code(self) -> int:
        """The exit code that tells how it was stopped."""
        return INTERRUPTED if self._number is None else _BY_SIGNAL + self._number

    def check(self, done: float) -> None:
        """For work that says how far it is (0 to 1), and has nothing worth keeping before its end.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
            SystemExit: another of the signals came.
        """
        if self._number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._number is not None:
            raise SystemExit(self.code)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                before = signal.getsignal(number)
                if number == signal.SIGINT or before is not signal.SIG_IGN:  # as nohup ignores SIGHUP
                    self._before[number] = signal.signal(number, self._press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if isinstance(error, OSError) and self._number not in (None, signal.SIGINT):
            raise SystemExit(self.code) from None  # a terminal that is gone takes no more

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None and number == signal.SIGINT:
            os._exit(self.code)
        self._number = self._number or number
