"""The program in a pseudo-terminal of its own: every byte that it writes, when it came, and what it costs."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.command_line import environment
from tests.tui.glass import Glass

PATIENCE = 30.0  # seconds, after which a test fails
STAGED = (sys.executable, str(Path(__file__).with_name("staged.py")))
"""`sr-edge` with another command as its child: `STAGED_CHILD` has it, one argument a line."""
_TICKS = os.sysconf("SC_CLK_TCK")


class Program:
    """Runs until the `with` is over; killed there, if it has not ended by then."""

    def __init__(
        self,
        *arguments: object,
        home: Path,
        command: Sequence[str] = (sys.executable, "-m", "sr_edge"),
        env: Mapping[str, str] | None = None,
        size: tuple[int, int] = (120, 40),
        glass: bool = True,
    ) -> None:
        self.glass = Glass(*size) if glass else None
        self.output = bytearray()
        self.began = 0.0
        self.chunks: list[tuple[float, int]] = []
        """When it had written how many bytes."""
        self.on_screen: Callable[[Glass], None] | None = None
        """Called, on the reader's thread, after each change of the glass."""
        self._told = threading.Condition()
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self.terminal_before = termios.tcgetattr(slave)
        home.mkdir(mode=0o700, exist_ok=True)
        environ = environment(SR_EDGE_HOME=str(home), COLORTERM="truecolor", **(env or {}))
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            [*command, "chat", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environ,
            cwd=home,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._slave = slave  # stays open, so that what is left in it can be read after its end
        self._stopping = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._stopping = True
        self._reader.join()
        if self._master >= 0:
            os.close(self._master)
            os.close(self._slave)

    @property
    def pid(self) -> int:
        return self._process.pid

    # --- what it writes ------------------------------------------------------------------------------

    def _read(self) -> None:
        while not self._stopping:
            if not select.select([self._master], [], [], 0.05)[0]:
                continue
            with suppress(OSError):
                data = os.read(self._master, 65536)
                now = time.monotonic()
                with self._told:
                    self.output += data
                    self.chunks.append((now, len(self.output)))
                    if self.glass is not None:
                        self.glass.feed(data)
                        if self.on_screen is not None:
                            self.on_screen(self.glass)
                    self._told.notify_all()

    def screen(self) -> str:
        assert self.glass
        with self._told:
            return self.glass.screen()

    def until(self, holds: Callable[[str], bool] | str, *, patience: float = PATIENCE) -> str:
        """Wait until the screen is so, or shows this."""
        wanted = holds if callable(holds) else lambda screen: holds in screen
        assert self.glass
        deadline = time.monotonic() + patience
        with self._told:
            while not wanted(screen := self.glass.screen()):
                left = deadline - time.monotonic()
                if left <= 0 or self._process.poll() is not None:
                    raise AssertionError(f"it did not come to be so:\n{screen}")
                self._told.wait(min(left, 0.2))
        return screen

    def until_written(self, data: bytes, start: int, *, patience: float = PATIENCE) -> float:
        """When these bytes had come, after the first `start` of all: monotonic seconds."""
        deadline = time.monotonic() + patience
        with self._told:
            while (at := self.output.find(data, start)) < 0:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"{data!r} was not written")
                self._told.wait(left)
            return next(when for when, size in self.chunks if size >= at + len(data))

    # --- what it hears -------------------------------------------------------------------------------

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def echo(self, key: str) -> float:
        """Seconds from a keypress until it is on the screen. The key must be one that is nowhere yet."""
        start, began = len(self.output), time.monotonic()
        self.type(key)
        return self.until_written(key.encode(), start) - began

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        code = self._process.wait(PATIENCE)
        time.sleep(0.2)  # for what is still in the terminal
        return code

    def is_running(self) -> bool:
        return self._process.poll() is None

    def hang_up(self) -> None:
        """As when the window is closed: the other end of the terminal is gone."""
        self._stopping = True
        self._reader.join()
        os.close(self._slave)
        os.close(self._master)
        self._slave = self._master = -1

    def terminal_now(self) -> list[object]:
        return termios.tcgetattr(self._slave)

    # --- what it costs -------------------------------------------------------------------------------

    def cpu(self) -> float:
        """Seconds of this process so far, without its children."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory(self) -> float:
        """Resident MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def children(self) -> list[int]:
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(OSError):
                    fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                    if int(fields[1]) == self.pid:
                        found.append(int(folder.name))
        return found


def is_alive(pid: int) -> bool:
    """A process that has ended and is not waited for is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
