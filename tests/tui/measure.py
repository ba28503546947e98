"""What the chat costs and how fast it is, in a real terminal: `python -m tests.tui.measure [NAME…]`.

Figures of the machine it runs on, for people to read; no test depends on them.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tests.engine.situations import ENDLESS, endpoint
from tests.tui.chatting import QUESTION
from tests.tui.in_pty import STAGED, Program
from tests.tui.talking_child import story

from sr_edge.store import Store, history_path
from sr_edge.testing.fault_endpoint import HANG

KEYS = [chr(n) for n in range(0x0410, 0x0450)]  # letters that nothing else here writes
PLACEHOLDER = "Ask something"
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧"
CTRL_C = "\x03"
TALKING_CHILD = Path(__file__).with_name("talking_child.py")


def quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def row(name: str, *figures: object) -> None:
    print(f"{name:44}" + "".join(f"{figure:>12}" for figure in figures), flush=True)


@contextmanager
def a_home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sr-edge-measure-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def fill(home: Path, answers: int, spans: int) -> None:
    """A history with one conversation, of so many answers of so many spans each."""
    store = Store.open(history_path({"SR_EDGE_HOME": str(home)}))
    conversation = store.new_conversation("go", model="small-1.5b")
    parent = None
    for _ in range(answers):
        parent = store.say(conversation.id, parent, "go").id
        recorder = store.begin(parent, policy="auto", seed=None)
        for event, _ in story(spans):
            recorder.add(event)
        recorder.close()
        parent = recorder.turn
    store.close()


def talking(spans: int, rate: float) -> dict[str, str]:
    """The environment in which `STAGED` has a child that writes answers of many spans."""
    return {"STAGED_CHILD": "\n".join([sys.executable, str(TALKING_CHILD), str(spans), str(rate)])}


def status_of(screen: str) -> str:
    """What the status line says is going on."""
    line = next((line for line in reversed(screen.splitlines()[:-1]) if line.strip("│ ")), "")
    return line.rsplit("│", 1)[-1].strip()


def type_along(program: Program, n: int, rng: random.Random) -> list[float]:
    """Type as people do; milliseconds until each letter is on the screen."""
    took = []
    for key in KEYS[:n]:
        time.sleep(rng.uniform(0.05, 0.2))
        took.append(program.echo(key) * 1000)
    program.type(CTRL_C)  # clears what is typed
    time.sleep(0.3)
    return took


@contextmanager
def busy_cores() -> Iterator[None]:
    """As many processes as there are cores that do nothing but compute."""
    burn = [sys.executable, "-c", "while True: sum(range(100_000))"]
    processes = [subprocess.Popen(burn) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def latencies(name: str, took: Sequence[float]) -> None:
    figures = [f"{quantile(took, q):.0f}" for q in (0.5, 0.95)]
    row(name, len(took), *figures, f"{max(took):.0f}")


# --- what is measured --------------------------------------------------------------------------------


def start(n: int = 7) -> None:
    """From exec until the first typed letter is echoed."""
    row("start, with bytecode as pip leaves it", "CPU s", "wall s", "child ready")
    with tempfile.TemporaryDirectory(prefix="sr-edge-measure-", ignore_cleanup_errors=True) as cache:
        for run in range(n + 1):
            env = {"PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
            with a_home() as home, Program(home=home, env=env) as program:
                program.until(PLACEHOLDER)
                program.echo(KEYS[0])
                cpu, wall = program.cpu(), time.monotonic() - program.began
                program.until(lambda screen: "loading" not in screen.rsplit("╯", 1)[-1])
                ready = time.monotonic() - program.began
                row("" if run else "  (the first one compiles)", f"{cpu:.2f}", f"{wall:.2f}", f"{ready:.2f}")


def keys() -> None:
    """From a keypress until the letter is on the screen, while an answer is written."""
    row("keypress to screen, ms", "n", "p50", "p95", "max")
    rng = random.Random(0)
    for rate, is_busy in ((0, False), (30, False), (1000, False), (30, True), (1000, True)):
        with a_home() as home, Program(home=home, command=STAGED, env=talking(2000, rate)) as program:
            program.until("idle")
            if rate:
                program.type("go\r")
                program.until("◆1")
            with busy_cores() if is_busy else nullcontext():
                took = [ms for _ in range(3) for ms in type_along(program, 40, rng)]
            what = f"{rate:,} tokens a second" if rate else "nothing is written"
            latencies(what + (", all cores busy" if is_busy else ""), took)


def cpu(seconds: float = 10.0) -> None:
    """What the screen takes of one core."""
    row("CPU of the screen's process, % of a core", "%")

    def share(program: Program) -> str:
        before, began = program.cpu(), time.monotonic()
        time.sleep(seconds)
        return f"{100 * (program.cpu() - before) / (time.monotonic() - began):.1f}"

    with a_home() as home, Program(home=home, command=STAGED, env=talking(2000, 30), glass=False) as program:
        program.until_written(b"idle", 0)
        time.sleep(1)
        row("idle, a new conversation", share(program))
        program.type("go\r")
        time.sleep(2)
        row("30 tokens a second, a new conversation", share(program))
    with a_home() as home:
        fill(home, 1, 2000)
        with Program("-c", home=home, command=STAGED, env=talking(2000, 30)) as program:
            program.until("✓ complete")
            time.sleep(3)
            row("idle, 2,000 spans", share(program))
            program.type("go\r")
            program.until("◆1 ")
            row("30 tokens a second, after 2,000 spans", share(program))
    with a_home() as home, Program(home=home, command=STAGED, env=talking(2000, 1000)) as program:
        program.until("idle")
        program.type("go\r")
        program.until("◆20 ")
        row("1,000 tokens a second", share(program))


def open_(n: int = 3) -> None:
    """Conversations with 2,000 spans, from the click in the list until they are drawn."""
    row("opening 2,000 spans", "CPU s", "wall s")
    for answers, spans in ((1, 2000), (20, 100)):
        with a_home() as home:
            fill(home, answers, spans)
            with Program(home=home, command=STAGED, env=talking(1, 0)) as program:
                program.until("idle")
                for _ in range(n):
                    before, began = program.cpu(), time.monotonic()
                    program.type("\x1b[<0;5;3M\x1b[<0;5;3m")  # a click on the first one of the list
                    program.until("✓ complete")
                    wall = time.monotonic() - began
                    time.sleep(1)
                    row(f"  {answers} x {spans}", f"{program.cpu() - before:.2f}", f"{wall:.2f}")
                    program.type("/new\r")
                    program.until(lambda screen: "✓ complete" not in screen)
                    time.sleep(1)


def memory() -> None:
    """Of the screen's process, as one conversation grows by answers of 500 spans."""
    row("resident MiB", "spans", "MiB")
    with a_home() as home, Program(home=home, command=STAGED, env=talking(500, 0)) as program:
        program.until("idle")
        row("", 0, f"{program.memory():.0f}")
        for turn in range(1, 21):
            program.type(f"go {turn}\r")
            program.until(lambda screen, turn=turn: f"go {turn}" in screen or "500 spans" in screen)
            program.until(lambda screen: status_of(screen)[:1] not in SPINNER)
            time.sleep(1)
            if turn in (1, 2, 4, 8, 14, 20):
                row("", 500 * turn, f"{program.memory():.0f}")


def is_over(screen: str) -> bool:
    return "✓ complete" in screen and status_of(screen)[:1] not in SPINNER


def stop(n: int = 20) -> None:
    """From Esc until the screen says so."""
    row("Esc to stopped on the screen, ms", "n", "p50", "p95", "max")
    rng = random.Random(0)
    with a_home() as home:
        latencies("loading", [stopped_while_loading(home, rng) for _ in range(n // 2)])
    for state, (reply, policy, sign) in STATES.items():
        server = endpoint(reply) if reply else None
        with server or nullcontext(), a_home() as home:
            remote = ["--big", server.url, "--big-model", "big"] if server else []
            options = ["--policy", policy, "--temp", 0, *remote]
            with Program(*options, home=home) as program:
                program.until(lambda screen: "   idle" in screen)
                latencies(state, [stopped_in(program, sign, rng) for _ in range(n)])


STATES = {
    "waiting": (HANG, "auto", "waiting for"),
    "remote": (ENDLESS, "auto", "big "),
    "asking": (HANG, "ask", "waiting for you"),
}
"""What the remote does, who may write, and what is on the screen then."""


def stopped_in(program: Program, sign: str, rng: random.Random) -> float:
    """Milliseconds. In a new conversation: after stopped answers the pair asks for nothing."""
    program.type("\x0e")  # Ctrl+N
    program.until("A small model on this machine")
    program.type(QUESTION)
    time.sleep(0.3)
    program.type("\r")
    program.until(lambda screen: sign in status_of(screen))
    time.sleep(rng.uniform(0, 0.3))
    return stopped(program)


def stopped_while_loading(home: Path, rng: random.Random) -> float:
    with Program(QUESTION, home=home) as program:
        program.until("❯")
        time.sleep(rng.uniform(0, 0.2))
        return stopped(program)


def stopped(program: Program) -> float:
    began = time.monotonic()
    program.type("\x1b")
    program.until(lambda screen: status_of(screen).startswith(("stopped", "idle")))
    return (time.monotonic() - began) * 1000


MEASURES: dict[str, Callable[[], None]] = {
    "start": start,
    "keys": keys,
    "cpu": cpu,
    "open": open_,
    "memory": memory,
    "stop": stop,
}


def main(names: Sequence[str]) -> None:
    for name in names or MEASURES:
        MEASURES[name]()
        print()


if __name__ == "__main__":
    main(sys.argv[1:])
