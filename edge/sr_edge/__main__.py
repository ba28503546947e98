"""Where the program begins and ends: `sr-edge`, or `python -m sr_edge`."""

from __future__ import annotations

import gc
import os
import signal
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


def run() -> NoReturn:
    """Run the command line and leave with its exit code; Ctrl-C is one at any moment, imports included."""
    before = signal.signal(signal.SIGINT, _leave)
    gc.disable()  # what imports make is no garbage; `sr_edge.commands` enables it
    from sr_edge.commands import main

    signal.signal(signal.SIGINT, before)
    try:
        main()
    except SystemExit as left:
        if left.code == INTERRUPTED:
            os._exit(INTERRUPTED)  # all is closed and flushed; to take the interpreter down takes 0.2 s
        raise


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    run()
