"""Records docs/ask.svg: a real run of `sr-edge ask` on the built-in pair, as its terminal showed it.

make picture
"""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 96
COMMAND = ("ask", os.environ["DEMO_PROBLEM"], "--temp", "0", "-u")


def record() -> str:
    """What the command writes to a terminal of WIDTH columns, control sequences and all."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(WIDTH), "LINES": "40"}
    env.pop("NO_COLOR", None)
    with subprocess.Popen([sys.executable, "-m", "sr_edge", *COMMAND], stdout=theirs, stderr=theirs, env=env):
        os.close(theirs)
        written = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # Linux says so when the other side is closed
                break
            if not data:
                break
            written += data
    os.close(ours)
    return written.decode().replace("\r\n", "\n")


def main() -> None:
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text(f'$ sr-edge ask "{COMMAND[1]}"', style="bold"))
    console.print()
    console.print(Text.from_ansi(record().rstrip()))
    svg = re.sub(r"\s*@font-face \{.*?\}", "", console.export_svg(title="sr-edge"), flags=re.DOTALL)
    Path(__file__).with_name("ask.svg").write_text(svg, "utf-8")  # no font is fetched by who looks at it


if __name__ == "__main__":
    main()
