"""Reads the keyboard so that a lone Esc is known to be one as soon as it can be."""

from __future__ import annotations

import os
import selectors
from codecs import getincrementaldecoder

from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver

_IDLE = 0.1  # seconds between two looks at whether the app ends
_PENDING = 0.01  # while an Esc may be the beginning of a sequence
_ESCAPE = b"\x1b"


class QuickDriver(LinuxDriver):
    """Textual's own looks for the rest of a sequence every 0.1 s: all the time that a stop may take."""

    def run_input_thread(self) -> None:
        parser = XTermParser(self._debug)
        decode = getincrementaldecoder("utf-8")("replace").decode
        pending = 0  # looks that the parser is still owed
        with selectors.SelectSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                if selector.select(_PENDING if pending else _IDLE):
                    data = os.read(self.fileno, 4096)
                    if not data:
                        return  # the terminal is gone
                    for message in parser.feed(decode(data)):
                        self.process_message(message)
                    pending = 20 if data.endswith(_ESCAPE) else 0
                else:
                    pending = max(0, pending - 1)
                for message in parser.tick():
                    self.process_message(message)
