"""Load: many clients ask `sr-edge serve` at once, some hang up, and the large model fails in every way.

`python -m tests.serve.soak --minutes 10 --clients 32` prints what came of it, and ends with 1 if anything was
wrong. Every whole answer is read again by a model of its own (`replaying`); what the large model writes is
the question's own, so that a span in another's answer is seen; and at the end nothing may be in use any more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import queue
import random
import re
import statistics
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from tests.serve.replaying import Replay

from sr_edge.events import DEGRADED_ENDS, Event, SpanClosed
from sr_edge.local import LlamaLocal
from sr_edge.passport import demo_paths
from sr_edge.remote.served import ServedClient, ServedError, events_of, kept_token
from sr_edge.remote.serving import Serving, serving
from sr_edge.roles import Message
from sr_edge.split import SplitDecoder
from sr_edge.suites.demo import problems
from sr_edge.testing.fault_endpoint import (
    COMPLETIONS,
    DONE,
    FIN,
    HANG,
    RST,
    FaultEndpoint,
    Op,
    Request,
    Send,
    Sleep,
    Slice,
    failure,
    head,
    page,
    usage,
)
from sr_edge.transcript import fold

QUESTIONS = 200
HANG_UPS = 0.1
LONGEST_PAUSE = 2.0  # seconds that a refused client waits, whatever it is told
SHOWN = 20  # faults that are told one by one
SETTLING = 15.0  # seconds that the server has, once the load is over
GROWTH = 0.05  # of its memory between the middle and the end, at most
LONGEST_HEARING = 8.0  # seconds until a client hangs up, if it does so by the clock
LEFT = 4  # descriptors and threads that may be there at the end, and were not before: the line to the remote
REMOTE = """
[remotes.soak]
url = "{url}"
model = "big"
timeout = {{ first_byte = 2, first_content = 2, idle = 2 }}
"""
"""Short, since a span that is not answered keeps a lane."""

Kind = Literal["split", "sampled", "local", "whole", "continued"]
_KINDS: Mapping[Kind, float] = {"split": 45, "sampled": 20, "local": 10, "whole": 10, "continued": 15}


# --- the large model -----------------------------------------------------------------------------------


def remote_text(question: str, line: str) -> str:
    """What the large model writes after this line of an answer to this question, and to no other."""
    found = re.findall(r"\d+", line) or ["1"]
    tag = zlib.crc32(f"{question}\n{line}".encode()) % 1000
    return f" {found[-1]} * 10 = {tag}, {tag} + {found[0]} = {(tag + int(found[0])) % 1000}.\n"


class FaultyRemote:
    """A script for each request: mostly an answer, by its seed a fault."""

    def __init__(self, questions: Sequence[str], seed: int) -> None:
        self._questions = questions
        self._dice = random.Random(f"soak remote {seed}")
        self._lock = threading.Lock()
        self.given: Counter[str] = Counter()

    def __call__(self, request: Request) -> Sequence[Op]:
        if request.method == "GET":
            return page({"object": "list", "data": [{"id": "big"}]})
        prompt = request.body["prompt"]
        question = next((one for one in self._questions if one in prompt), "")
        with self._lock:
            fault = self._dice.choices(
                ("none", "busy", "failed", "cut", "reset", "stalled", "silent", "garbage"),
                (84, 3, 2, 3, 3, 1, 1, 3),
            )[0]
            at = self._dice.randrange(5)
            pause = self._dice.uniform(0.0, 0.01)
            self.given[fault] += 1
        return self._script(fault, remote_text(question, prompt.rpartition("\n")[2]), at, pause)

    def _script(self, fault: str, text: str, at: int, pause: float) -> Sequence[Op]:
        texts: list[Op] = []
        for piece in re.findall(r"\s*\S+|\s+$", text):
            texts += [COMPLETIONS.text(piece), Sleep(pause)]
        end = [COMPLETIONS.finish(), usage(50, len(texts) // 2), DONE, FIN]
        begun: list[Op] = [head(), *texts[: 2 * at]]
        match fault:
            case "busy":
                return failure(429, "try later", Retry_After=1)
            case "failed":
                return failure(500, "out of memory")
            case "cut":
                return [*begun, FIN]
            case "reset":
                return [*begun, RST]
            case "stalled":
                return [*begun, HANG]
            case "silent":
                return [HANG]
            case "garbage":
                junk = Send(b'data: {"choices": [{"text": 7}]}\n\ndata: {{{\n\n')
                return [*begun, Slice(7), junk, FIN]
            case _:
                return [head(), *texts, *end]


# --- the clients ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    kind: Kind
    question: str
    body: Mapping[str, object]
    is_greedy: bool
    continues: str = ""
    chunks: int | None = None
    """After which the client hangs up; None: not for that."""
    seconds: float | None = None
    """After which it does, be it still in the queue."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A whole answer."""

    asked: Asked
    events: tuple[Event, ...]
    thought: str
    content: str


@dataclass
class Tally:
    """What all clients saw. Its numbers are the report."""

    requests: int = 0
    answered: int = 0
    hung_up: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    """By status."""
    broken: list[str] = field(default_factory=list)
    """Neither answered nor refused."""
    widest_gap: float = 0.0
    """See `replaying`; and the next one."""
    farthest_drift: float = 0.0
    late: int = 0
    """Answered or refused after the deadline."""
    wrong: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    """With something of another's."""
    by_kind: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    """Of spans."""
    first: list[float] = field(default_factory=list)
    """Seconds to the first chunk with text."""
    whole: list[float] = field(default_factory=list)


class Load:
    """The clients, and what they share."""

    def __init__(self, url: str, token: str, *, deadline: float, seed: int) -> None:
        self.tally = Tally()
        self.heard: queue.Queue[Heard | None] = queue.Queue(maxsize=200)
        self._url = url
        self._token = token
        self._deadline = deadline
        self._seed = seed
        self._lock = threading.Lock()
        self._questions = [problem.question for problem in problems(seed, QUESTIONS)]
        with ServedClient(url, token) as client:
            self._model = client.models()[0]
        with LlamaLocal.open(demo_paths().small, temperature=0.0, threads=1) as local:
            self._alone = {
                question: fold(SplitDecoder(local, policy="local").generate([Message("user", question)])).text
                for question in self._questions[:40]
            }

    def client(self, number: int, until: float) -> None:
        """Ask again and again."""
        dice = random.Random(f"soak client {self._seed} {number}")
        with ServedClient(self._url, self._token, seconds=2 * self._deadline, patience=0.0) as client:
            for _ in count():
                if time.monotonic() >= until:
                    return
                pause = self._ask(client, self._next(dice, number))
                if pause is not None:
                    time.sleep(min(pause, LONGEST_PAUSE) * dice.uniform(0.5, 1.0))

    def _next(self, dice: random.Random, number: int) -> Asked:
        kind: Kind = dice.choices(list(_KINDS), list(_KINDS.values()))[0]
        question = dice.choice(list(self._alone) if kind == "continued" else self._questions)
        variant = ":local" if kind in ("local", "whole") else ""
        messages = [{"role": "user", "content": question}]
        temperature = 0.8 if kind == "sampled" else 0.0
        body: dict[str, object] = {
            "model": self._model + variant,
            "messages": messages,
            "temperature": temperature,
            "top_p": 1.0,  # with less, a model that is as sure as this one draws nothing
            "seed": dice.randrange(1000),
            "user": f"client {number}",
        }
        continues = ""
        if kind == "continued":
            thought = self._alone[question].partition("</think>")[0]
            continues = thought[: dice.randrange(1, len(thought))]
            messages.append({"role": "assistant", "content": "", "reasoning_content": continues})
            body["continue_final_message"] = True
        chunks = seconds = None
        if kind != "whole" and dice.random() < HANG_UPS / (1 - _KINDS["whole"] / 100):
            if dice.random() < 0.5:
                chunks = dice.randrange(60)
            else:
                seconds = dice.uniform(0.0, LONGEST_HEARING)
        return Asked(kind, question, body, temperature == 0.0, continues, chunks, seconds)

    def _ask(self, client: ServedClient, asked: Asked) -> float | None:
        """Returns the seconds to wait, where it was refused."""
        began = time.monotonic()
        pause: float | None = None
        heard: Heard | None = None
        status: int | None = None
        broken: str | None = None
        first: float | None = None
        try:
            if asked.kind == "whole":
                heard = self._whole(asked)
            else:
                heard, first = self._streamed(client, asked, began)
        except ServedError as error:
            status, pause = error.status, error.retry_after or 0.2
            broken = None if status is not None else str(error)
        except Exception as error:  # what came was nothing of ours; the client goes on
            broken = f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - began
        with self._lock:
            tally = self.tally
            tally.requests += 1
            tally.by_kind[asked.kind] += 1
            tally.late += seconds > self._deadline
            if heard is not None:
                tally.answered += 1
                tally.whole.append(seconds)
                if first is not None:
                    tally.first.append(first)
                tally.ends.update(event.end for event in heard.events if isinstance(event, SpanClosed))
            elif status is not None:
                tally.refused[status] += 1
            elif broken is not None:
                tally.broken.append(f"{asked.kind}: {broken}")
            else:
                tally.hung_up += 1
        if heard is not None:
            self.heard.put(heard)
        return pause

    def _streamed(
        self, client: ServedClient, asked: Asked, began: float
    ) -> tuple[Heard | None, float | None]:
        events: list[Event] = []
        texts: dict[str, list[str]] = {"content": [], "reasoning_content": []}
        first: float | None = None
        body = {**asked.body, "sr_edge": {"events": True}}
        until = math.inf if asked.seconds is None else began + asked.seconds

        def is_enough() -> bool:
            return time.monotonic() >= until

        cancelled = None if asked.seconds is None else is_enough
        with contextlib.closing(client.chunks(body, cancelled=cancelled)) as chunks:
            for number, chunk in enumerate(chunks):
                if asked.chunks is not None and number >= asked.chunks:
                    return None, None
                events += events_of(chunk)
                for choice in chunk["choices"]:
                    for name, pieces in texts.items():
                        pieces.append(choice["delta"].get(name) or "")
                if first is None and any(map("".join, texts.values())):
                    first = time.monotonic() - began
        if is_enough():
            return None, None
        thought, content = "".join(texts["reasoning_content"]), "".join(texts["content"])
        return Heard(asked, tuple(events), thought, content), first

    def _whole(self, asked: Asked) -> Heard:
        """As a client that does not stream, on a connection of its own."""
        connection = HTTPConnection(urlsplit(self._url).netloc, timeout=2 * self._deadline)
        try:
            body = json.dumps({**asked.body, "sr_edge": {"events": True}})
            headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            reply = connection.getresponse()
            data = json.loads(reply.read())
            if reply.status != 200:
                wait = float(reply.getheader("Retry-After", "0"))
                raise ServedError(str(data), status=reply.status, retry_after=wait)
            (choice,) = data["choices"]
            message = choice["message"]
            return Heard(
                asked,
                tuple(events_of(choice)),
                message.get("reasoning_content") or "",
                message["content"] or "",
            )
        except (OSError, ValueError, KeyError) as error:
            raise ServedError(f"{type(error).__name__}: {error}") from None
        finally:
            connection.close()

    def check(self) -> None:
        """Read every answer again, until there are no more."""
        with Replay(demo_paths().small) as replay:
            while (heard := self.heard.get()) is not None:
                try:
                    self._check(heard, replay)
                except Exception as error:  # an answer that can't even be read
                    self._note(heard.asked, [f"{type(error).__name__}: {error}"], [])
            self.tally.widest_gap, self.tally.farthest_drift = replay.widest_gap, replay.farthest_drift

    def _check(self, heard: Heard, replay: Replay) -> None:
        asked = heard.asked
        faults = replay.faults(
            heard.events,
            [Message("user", asked.question)],
            is_greedy=asked.is_greedy,
            thought=heard.thought,
            content=heard.content,
            continues=asked.continues,
        )
        self._note(asked, faults, foreign_spans(heard.events, asked.question))

    def _note(self, asked: Asked, faults: Sequence[str], foreign: Sequence[str]) -> None:
        """One line for each answer."""
        where = f"{asked.kind} {asked.question[:40]!r}: "
        strange = [*foreign, *(fault for fault in faults if "the prompt is not" in fault)]
        with self._lock:
            if strange:
                self.tally.mixed.append(where + "; ".join([*strange, *faults][:3]))
            elif faults:
                self.tally.wrong.append(where + "; ".join(faults[:3]))


def foreign_spans(events: Sequence[Event], question: str) -> list[str]:
    """Spans with text that the large model did not write for this question, at this place."""
    transcript = fold(events)
    text, faults = transcript.opening, []
    for segment in transcript.segments:
        if segment.span is not None:
            expected = remote_text(question, text.rpartition("\n")[2])
            if not expected.startswith(segment.text):
                faults.append(f"span {segment.span} holds {segment.text!r}, and not {expected!r}")
        text += segment.text
    return faults


# --- the server, seen from outside ---------------------------------------------------------------------


def metrics(server: Serving, token: str) -> dict[str, float]:
    """By name and labels, as the server writes them."""
    connection = HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    try:
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"})
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def resident(pid: int) -> int:
    """Bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def held(pid: int) -> dict[str, float]:
    """What a process holds of the system."""
    folder = Path(f"/proc/{pid}")
    return {
        "descriptors": len(list((folder / "fd").iterdir())),
        "threads": len(list((folder / "task").iterdir())),
    }


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of a line through them, by least squares."""
    if len(points) < 2:
        return 0.0
    return statistics.linear_regression(*zip(*points, strict=True)).slope


# --- all of it -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    tally: Tally
    remote: Mapping[str, int]
    """What the endpoint was made to do, how often."""
    in_use: Mapping[str, float]
    """Of the server, at the end: what should be 0 then."""
    more: Mapping[str, float]
    """Of what a process holds, than before the load."""
    memory: tuple[float, float, float]
    """Resident, in MB: after a warm-up, in the middle, at the end."""
    slope: float
    """MB a minute, over the second half."""
    unchecked: int

    def faults(self) -> list[str]:
        """Why it was not good; nothing if it was."""
        tally = self.tally
        found = []
        for name in ("wrong", "mixed", "broken"):
            if told := getattr(tally, name):
                found += [f"{len(told)} {name}", *(f"    {line}" for line in told[:SHOWN])]
        if tally.late:
            found.append(f"{tally.late} neither answered nor refused in time")
        if strange := set(tally.refused) - {429}:
            found.append(f"refused with {sorted(strange)}")
        if not tally.answered or self.unchecked:
            found.append(f"{tally.answered} answers, {self.unchecked} of them unchecked")
        found += [f"{name} is {value:g} at the end" for name, value in self.in_use.items() if value]
        found += [
            f"{number:g} more {name} than before" for name, number in self.more.items() if number > LEFT
        ]
        if self.memory[2] > self.memory[1] * (1 + GROWTH):
            found.append(f"its memory grew from {self.memory[1]:.1f} to {self.memory[2]:.1f} MB")
        return found

    def lines(self) -> Iterator[str]:
        tally = self.tally
        refused = ", ".join(f"{count} with {status}" for status, count in sorted(tally.refused.items()))
        yield (
            f"{tally.requests} requests: {tally.answered} answered, {sum(tally.refused.values())} refused "
            f"({refused or 'none'}), {tally.hung_up} hung up, {len(tally.broken)} broken, {tally.late} late"
        )
        yield (
            f"{len(tally.wrong)} wrong, {len(tally.mixed)} mixed, of {tally.answered} that were read again: "
            f"logits at most {tally.widest_gap:.4f} from the highest, log-probabilities "
            f"{tally.farthest_drift:.4f} apart"
        )
        yield "asked: " + _counted(tally.by_kind)
        yield "spans: " + _counted(tally.ends)
        degraded = sum(number for end, number in tally.ends.items() if end in DEGRADED_ENDS)
        yield f"the remote: {_counted(self.remote)}; {degraded} spans failed"
        yield f"to the first text: {_percentiles(tally.first)}; to the end: {_percentiles(tally.whole)}"
        yield f"in use at the end: {_counted(self.in_use)}; more than before: {_counted(self.more)}"
        yield (
            "memory: {:.1f}, {:.1f}, {:.1f} MB; ".format(*self.memory)
            + f"{self.slope:+.2f} MB a minute in the second half"
        )


def soak(*, seconds: float, clients: int, deadline: float, seed: int, options: Sequence[str] = ()) -> Report:
    """Args:
    options: more for `sr-edge serve`.
    """
    questions = [problem.question for problem in problems(seed, QUESTIONS)]
    remote = FaultyRemote(questions, seed)
    with (
        tempfile.TemporaryDirectory(prefix="sr-edge-soak-") as home,
        FaultEndpoint(then=remote) as endpoint,
    ):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SR_EDGE_")}
        environ = {**kept, "SR_EDGE_HOME": home}
        Path(home, "config.toml").write_text(REMOTE.format(url=endpoint.url))
        with serving(["--remote", "soak", "--allow-remote", *options], environ) as server:
            token = kept_token(environ)
            before = held(server.pid)
            load = Load(server.url, token, deadline=deadline, seed=seed)
            until = time.monotonic() + seconds
            asking = [
                threading.Thread(target=load.client, args=(number, until), name=f"client {number}")
                for number in range(clients)
            ]
            checking = threading.Thread(target=load.check, name="check")
            for thread in (checking, *asking):
                thread.start()
            memory = []
            while any(thread.is_alive() for thread in asking):
                memory.append((time.monotonic(), resident(server.pid) / 1e6))
                time.sleep(min(1.0, seconds / 20))
            in_use = _settled(server, token)
            more = {name: number - before[name] for name, number in held(server.pid).items()}
            memory.append((time.monotonic(), resident(server.pid) / 1e6))
            load.heard.put(None)
            checking.join()
    sizes = [size for _, size in memory]
    half = memory[len(memory) // 2 :]
    return Report(
        load.tally,
        dict(remote.given),
        in_use,
        more,
        (sizes[min(2, len(sizes) - 1)], sizes[len(sizes) // 2], sizes[-1]),
        60 * slope(half),
        load.heard.qsize(),
    )


def _settled(server: Serving, token: str) -> dict[str, float]:
    """What is still in use, once that does not change any more."""
    until = time.monotonic() + SETTLING
    while True:
        found = metrics(server, token)
        in_use = {name: found[name] for name in IN_USE}
        if not any(in_use.values()) or time.monotonic() > until:
            return in_use
        time.sleep(0.1)


IN_USE = ("sr_edge_waiting", "sr_edge_running", "sr_edge_cursors_taken")


def _counted(numbers: Mapping[str, float]) -> str:
    ordered = sorted(numbers.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {number:g}" for name, number in ordered) or "none"


def _percentiles(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return "too few"
    cuts = statistics.quantiles(seconds, n=20)
    return f"p50 {statistics.median(seconds):.2f} s, p95 {cuts[18]:.2f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--deadline", type=float, default=150.0, help="seconds: the queue's, and an answer's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("options", nargs="*", help="after --: more for `sr-edge serve`")
    asked = parser.parse_args()
    report = soak(
        seconds=60 * asked.minutes,
        clients=asked.clients,
        deadline=asked.deadline,
        seed=asked.seed,
        options=asked.options,
    )
    faults = report.faults()
    if asked.json:
        print(json.dumps({**asdict(report), "faults": faults}))
    else:
        print(*report.lines(), *faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
