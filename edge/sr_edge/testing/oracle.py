"""What must hold after a fault, whatever it was: one oracle, so that a new fault is one line.

    cut = Case([head(), COMPLETIONS.text("1 + 1 "), RST], truth="partial", text="1 + 1 ")
    check(cut, lambda server: Endpoint(server.url, prompt=prompt, model="big", api_key=CANARY))

`check` lets a small model write an answer in which it asks once for help, from a `FaultEndpoint` that does
what the case says, and asserts all of these:

    I1  live       the small model goes on, at once: the answer ends, and in time
    I2  no loss    what was shown is what the events say, and all that the server sent in time is in it
    I3  no dup     nothing is asked again once text has come, and nothing more than twice
    I4  truth      the span is called what it was: complete, partial, failed, cancelled or skipped
    I5  contained  no text becomes a control token
    I6  secret     the key (`CANARY`) is in no event, error, log record or repr, and in no request's body
    I7  egress     no address but the server's is looked up or connected to
    I8  clean      threads and descriptors are as many as before
    I9  plain      a failure is one printable line
    I10 KV         the ids of the events are the cache; for a real model see `assert_in_step`

and the laws of the event stream. All that is broken is told at once, with the case and the events.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sr_edge.events import (
    End,
    Event,
    Finished,
    LocalToken,
    SpanClosed,
    SpanDelta,
    SpanOpened,
    Started,
    from_json,
    to_json,
)
from sr_edge.roles import Gate, Limits, LocalModel, Message, RemoteModel
from sr_edge.split import SplitDecoder
from sr_edge.testing.egress_trap import EgressTrap
from sr_edge.testing.fault_endpoint import AT_ONCE, Connection, FaultEndpoint, Request, Script
from sr_edge.testing.models import END, OPEN, ScriptedLocal
from sr_edge.transcript import SpanRecord, Status, Transcript, fold

CANARY = "sk-canary-b7e1f04c92d8a365"
"""The key to give to the client under test."""

QUESTION = (Message("system", "Be brief."), Message("user", "What is 1 + 1 + 2?"))
BEFORE, AFTER = "Let me see: ", "That is it."
"""What `writer` writes before and after it asks for help."""

FALLBACK = 0.25
"""Seconds from when a fault can be known to when the small model has the pen again."""

MAX_POSTS = 2
"""Requests for one span, at most."""

Connect = Callable[[FaultEndpoint], RemoteModel]


class InvariantError(AssertionError):
    """Something does not hold that always must."""


@dataclass(frozen=True)
class Case:
    """What a server does, and what must be true then."""

    script: Script
    """For the first request."""
    truth: Status | None = "failed"
    """None if any will do."""
    text: str | None = ""
    """What must be left of the span; None if any will do."""
    says: str = ""
    """Must be in the error line."""
    then: tuple[Script, ...] = ()
    """For the requests after the first; there must be no others, be it fewer or more."""
    patience: float | None = 0.0
    """Seconds that the client may wait after the server's last act; None if it is not to be measured."""
    seconds: float = 5.0
    """For the whole answer."""
    hang_up: float = 1.0
    """From when the client is closed to when the server has seen that it hung up."""
    server: Mapping[str, Any] = field(default_factory=dict)
    """More for `FaultEndpoint`."""
    where: tuple[str, int] | None = None
    """Host and port that the client is told, if not the server's: nothing may arrive there then."""
    others: tuple[tuple[str, int], ...] = ()
    """More addresses that may be tried, where a name has several."""


@dataclass(frozen=True)
class Checked:
    """What a case looked like, for whoever wants to look closer."""

    events: list[Event]
    transcript: Transcript
    requests: list[Request]
    connections: list[Connection]
    fallback: float | None
    """Seconds, see `FALLBACK`; None if it was not to be measured."""

    @property
    def span(self) -> SpanRecord:
        """The first one."""
        return self.transcript.spans[0]

    @property
    def status(self) -> Status:
        return status_of(self.span)


def writer(**options: Any) -> ScriptedLocal:
    """A small model that asks for help once; options as for `ScriptedLocal`."""
    return ScriptedLocal([[*BEFORE.encode(), OPEN], [*AFTER.encode(), END]], **options)


def status_of(span: SpanRecord) -> Status:
    return _status(span.end, bool(span.text))


def _status(end: End | None, has_text: bool) -> Status:
    match end:
        case "cancelled":
            return "cancelled"
        case "handback" | "stop" | "boundary":
            return "complete" if has_text else "skipped"
        case "declined" | "offline" | "budget" | "cap":
            return "partial" if has_text else "skipped"
        case _:
            return "partial" if has_text else "failed"


def check(
    case: Case,
    connect: Connect,
    *,
    local: LocalModel | None = None,
    messages: Sequence[Message] = QUESTION,
    gate: Gate | None = None,
    limits: Limits | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    fallback: float = FALLBACK,
) -> Checked:
    """Run the case and assert everything.

    Args:
        connect: makes the client under test, whose key is `CANARY`; it is closed in the end.
        local: None for a fresh `writer`.
        fallback: a looser bound, for slow machines.
    Raises:
        InvariantError: something does not hold.
    """
    local = local or writer()
    broken: list[str] = []
    events: list[tuple[float, Event]] = []
    began = time.monotonic()
    with clean(broken), captured_logs() as logs, EgressTrap() as trap:
        with FaultEndpoint(case.script, *case.then, **case.server) as server:
            remote = connect(server)
            try:
                decoder = SplitDecoder(local, remote, gate=gate, limits=limits or Limits())
                for event in decoder.generate(messages, cancelled=cancelled):
                    events.append((time.monotonic(), event))  # noqa: PERF401  kept if it raises
                took = time.monotonic() - began
                spoken = [repr(remote), str(remote), remote.name]
            finally:
                close = getattr(remote, "close", None)
                if close is not None:
                    close()
            broken += _still_open(server.connections, case.hang_up)
            unscripted, server.unscripted = server.unscripted, []
        allowed = (case.where or (server.host, server.port), *case.others)
        broken += [f"I7 egress: {one}" for one in trap.outside(*allowed)]
    seen = [event for _, event in events]
    checked = Checked(
        seen,
        fold(seen),
        server.requests,
        server.connections,
        _fallback(case, events, server.connections),
    )
    broken += broken_laws(seen, local)
    broken += _truth(case, checked)
    broken += _liveness(case, checked, took, fallback)
    broken += _containment(seen, local)
    broken += _requests(case, checked, events, unscripted, messages[-1].content)
    broken += leaks(CANARY, [*_said(seen), *spoken, *logs], checked.requests)
    broken += _errors(case, seen)
    if broken:
        raise InvariantError(_report(case, broken, seen))
    return checked


def broken_laws(events: Sequence[Event], local: LocalModel | None = None) -> list[str]:
    """What does not hold of an event stream that came to its end; see `events`.

    Args:
        local: the model that wrote it, to compare its cache with the ids.
    """
    broken = []
    if not events or not isinstance(events[0], Started) or not isinstance(events[-1], Finished):
        return ["law: an answer begins with Started and ends with Finished"]
    if sum(isinstance(event, Started | Finished) for event in events) != 2:
        broken.append("law: there is one Started and one Finished")
    open_span: int | None = None
    numbers = []
    for event in events:
        match event:
            case SpanOpened():
                if open_span is not None:
                    broken.append("law: spans are not nested")
                open_span = event.span
                numbers.append(event.span)
            case SpanDelta():
                if event.span != open_span or not event.text:
                    broken.append("law: a delta is text of the open span")
            case SpanClosed():
                if event.span != open_span:
                    broken.append("law: a span is closed once")
                open_span = None
            case _:
                pass
    if open_span is not None or numbers != list(range(1, len(numbers) + 1)):
        broken.append("law: spans are numbered from 1, and always closed")
    transcript = fold(events)
    shown = "".join(event.text for event in events if isinstance(event, LocalToken | SpanDelta))
    if shown != transcript.text:
        broken.append("I2 no loss: what was shown is not what the transcript holds")
    if local is not None and [*transcript.prompt_ids, *transcript.ids] != list(local.ids):
        broken.append("I10 KV: the ids of the events are not the cache")
    if any(a.at > b.at for a, b in pairwise(events)):
        broken.append("law: events are in the order of their times")
    if [from_json(to_json(event)) for event in events] != list(events):
        broken.append("law: events survive their JSON")
    return broken


def assert_in_step(
    local: LocalModel, fresh: LocalModel, *, tokens: int = 24, tolerance: float = 0.05
) -> None:
    """The KV invariant: after this cache, greedy decoding goes on as in a fresh run on the same ids.

    Args:
        local, fresh: two of the same model, both greedy. Both go on by `tokens`, or to the answer's end.
        tolerance: of log-probabilities, which depend a little on how the ids were batched.
    Raises:
        InvariantError: it does not.
    """
    ids = list(local.ids)
    fresh.rewind(0)
    fresh.feed(ids)
    for n in range(tokens):
        continued, expected = local.sample(), fresh.sample()
        if continued.id != expected.id or abs(continued.logprob - expected.logprob) > tolerance:
            raise InvariantError(
                f"I10 KV: token {n + 1} after {len(ids)} ids is {continued}, in a fresh run {expected}"
            )
        if local.is_end(continued.id):
            break


def leaks(secret: str, texts: Sequence[str], requests: Sequence[Request] = ()) -> list[str]:
    """Where a key is that should be in one header of the requests only."""
    broken = [f"I6 secret: {text[:120]!r}" for text in texts if secret in text]
    for request in requests:
        headers = {name: value for name, value in request.headers.items() if name != "authorization"}
        if secret in request.line + request.data.decode("utf-8", "replace") + str(headers):
            broken.append(f"I6 secret: in {request.line}, apart from its header")
    return broken


@contextmanager
def clean(broken: list[str], *, seconds: float = 3.0) -> Iterator[None]:
    """Adds a line to `broken` if threads or descriptors are more than before, after some seconds' grace."""
    threads, descriptors = set(threading.enumerate()), _num_descriptors()
    yield
    until = time.monotonic() + seconds
    while (left := set(threading.enumerate()) - threads) or _num_descriptors() > descriptors:
        if time.monotonic() > until:
            names = sorted(thread.name for thread in left)
            broken.append(f"I8 clean: {_num_descriptors() - descriptors} descriptors and {names} are left")
            return
        if not left:
            gc.collect()  # a socket in a reference cycle is no leak
        time.sleep(0.002)


@contextmanager
def captured_logs() -> Iterator[list[str]]:
    """All that anybody logs, at any level: message, arguments and traceback."""
    lines: list[str] = []
    handler = _Lines(lines)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(f"{self.format(record)} {record.args!r}")


def _still_open(connections: Sequence[Connection], seconds: float) -> list[str]:
    until = time.monotonic() + seconds
    return [
        f"I8 clean: connection {one.number} is still open"
        for one in connections
        if not one.left.wait(max(0.0, until - time.monotonic()))
    ]


def _num_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def _fallback(
    case: Case, events: Sequence[tuple[float, Event]], connections: Sequence[Connection]
) -> float | None:
    """From the server's last act before the first span was closed, its silence taken off."""
    if case.patience is None:
        return None
    opened = next((at for at, event in events if isinstance(event, SpanOpened)), None)
    closed = next((at for at, event in events if isinstance(event, SpanClosed)), None)
    if opened is None or closed is None:
        return None
    acted = [one.acted_at for one in connections if opened <= one.acted_at <= closed]
    return closed - max([opened, *acted]) - case.patience


def _truth(case: Case, checked: Checked) -> list[str]:
    if not checked.transcript.spans:
        return ["I4 truth: the small model asked for no span"]
    broken = []
    span = checked.span
    if case.truth not in (None, checked.status):
        broken.append(f"I4 truth: {checked.status} (it ended by {span.end!r}) where it was {case.truth}")
    if case.text is not None and span.text != case.text:
        broken.append(f"I2 no loss: the span is {span.text[:200]!r} where {case.text[:200]!r} came")
    if case.says not in (span.error or ""):
        broken.append(f"I9 plain: {span.error!r} does not say {case.says!r}")
    return broken


def _liveness(case: Case, checked: Checked, took: float, fallback: float) -> list[str]:
    broken = []
    if took > case.seconds:
        broken.append(f"I1 live: the answer took {took:.2f} s, not {case.seconds:g}")
    if checked.fallback is not None and checked.fallback > fallback:
        broken.append(f"I1 live: {checked.fallback:.3f} s from the fault to the small model")
    last = checked.events[-1] if checked.events else None
    expected = ("cancelled",) if case.truth == "cancelled" else ("stop", "length")
    if isinstance(last, Finished) and last.reason not in expected:
        broken.append(f"I1 live: the answer ended by {last.reason!r} ({last.error})")
    after = checked.events[::-1]
    resumed = next((event for event in after if isinstance(event, LocalToken | SpanClosed)), None)
    if case.truth != "cancelled" and not isinstance(resumed, LocalToken):
        broken.append("I1 live: the small model did not go on")
    return broken


def _containment(events: Sequence[Event], local: LocalModel) -> list[str]:
    """The ids of a span are text, but for the marker that closes it."""
    closing = local.markers.close_ids if local.markers is not None else ()
    broken = []
    for event in events:
        if isinstance(event, SpanClosed) and event.ids:
            text = event.ids[: -len(closing)] if closing else event.ids
            if event.ids[len(text) :] != tuple(closing):
                broken.append("I5 contained: the span does not end in its closing marker")
            control = [id for id in text if not local.piece(id) or local.is_end(id)]
            if control:
                broken.append(f"I5 contained: the span's text became the control tokens {control}")
    return broken


def _requests(
    case: Case,
    checked: Checked,
    events: Sequence[tuple[float, Event]],
    unscripted: Sequence[Request],
    question: str,
) -> list[str]:
    broken = [f"I3 no dup: an unexpected {request.line}" for request in unscripted]
    posts = [r for r in checked.requests if r.method == "POST" and _holds(r, question)]  # others are trials
    if not _is_at_once(case.script) and any(_had_text(post.at, events) for post in posts):
        broken.append("I3 no dup: a request after text had come")
    asked = [span for span in checked.transcript.spans if span.sent_bytes]
    if len(posts) > MAX_POSTS * len(asked):
        broken.append(f"I3 no dup: {len(posts)} requests for {len(asked)} spans")
    expected = 0 if case.where else len(case.then) + (not _is_at_once(case.script))
    if len(posts) < expected:
        broken.append(f"only {len(posts)} of {expected} expected requests came")
    return broken


def _had_text(asked_at: float, events: Sequence[tuple[float, Event]]) -> bool:
    """Whether the span that was open then had text already."""
    had = False
    for at, event in events:
        if at <= asked_at and isinstance(event, SpanOpened | SpanDelta):
            had = isinstance(event, SpanDelta)
    return had


def _holds(request: Request, question: str) -> bool:
    beginning = json.dumps(question.strip()[:40], ensure_ascii=False)[1:-1]
    return beginning.encode("utf-8", "replace") in request.data


def _is_at_once(script: Script) -> bool:
    """What the client sent before such a script ran may never be read."""
    return isinstance(script, Sequence) and AT_ONCE in script[:1]


def _said(events: Sequence[Event]) -> Iterator[str]:
    """All that the events say, the small model's tokens in one."""
    yield "".join(event.text for event in events if isinstance(event, LocalToken))
    yield from (to_json(event) for event in events if not isinstance(event, LocalToken))


def _errors(case: Case, events: Sequence[Event]) -> list[str]:
    broken = []
    for event in events:
        if not isinstance(event, SpanClosed | Finished):
            continue
        line = event.error
        if line is not None and (not line.isprintable() or not 0 < len(line) <= 400 or "Traceback" in line):
            broken.append(f"I9 plain: the error is {line[:400]!r}")
        if isinstance(event, SpanClosed) and event.end in ("stalled", "error") and not line:
            broken.append("I9 plain: a failure without a word")
    return broken


def _report(case: Case, broken: Sequence[str], events: Sequence[Event]) -> str:
    script = case.script if isinstance(case.script, Sequence) else [case.script]
    ops = [str(op)[:160] for op in [*script, *case.then]]
    return "\n".join(
        [
            *broken,
            f"server: {'; '.join(ops)[:2000]}",
            *(to_json(event)[:300] for event in events if not isinstance(event, LocalToken | Started)),
        ]
    )
