"""What the tables of faults share: the client under test, where a fault can strike, and the tally."""

import dataclasses
import inspect
import statistics
from dataclasses import dataclass, field

from sr_edge.remote.endpoint import Deadlines, Endpoint
from sr_edge.roles import Prompt
from sr_edge.suites.demo import HARD_KINDS, problems
from sr_edge.testing.fault_endpoint import CHAT, COMPLETIONS, Send, chunk, head
from sr_edge.testing.oracle import CANARY, Case, check

WIRES = {wire.name: wire for wire in (COMPLETIONS, CHAT)}

HARD = [p for p in problems(seed=2024, n=40) if any(step.kind in HARD_KINDS for step in p.steps)]
EARLY = HARD[10]
"""Of the built-in pair's own kind: its first hard step comes after 20 tokens, the whole answer has 75."""

PATIENT = 3.0  # seconds; far more than loopback needs
SHORT = 0.15  # seconds; a deadline that a case waits for


def prompt(messages):
    return Prompt((), "".join(f"<{m.role}>{m.content}" for m in messages) + "<assistant>", "")


def deadlines(**given):
    """Patient ones, but for those that are given."""
    names = [each.name for each in dataclasses.fields(Deadlines)]
    patient = dict.fromkeys(names, PATIENT) | {"total": 2 * PATIENT, "linger": 0.02}
    return Deadlines(**patient | {name: value for name, value in given.items() if name in names})


def endpoint(url, wire=COMPLETIONS, **options):
    """The client under test; it retries without a pause."""
    given = {
        "prompt": prompt,
        "model": "big",
        "api": wire.name,
        "api_key": CANARY,
        "deadlines": deadlines(),
        "jitter": lambda *_: 0.0,
        **options,
    }
    known = inspect.signature(Endpoint).parameters
    return Endpoint(url, **{name: value for name, value in given.items() if name in known})


@dataclass
class Tally:
    """What all cases of a run came to."""

    cases: int = 0
    false_complete: int = 0
    fallbacks: list = field(default_factory=list)
    split_executions: int = 0
    interrupts: list = field(default_factory=list)

    def lines(self):
        yield f"{self.cases} cases, {self.false_complete} false complete"
        if len(self.fallbacks) > 1:
            cuts = statistics.quantiles(self.fallbacks, n=100)
            yield (
                f"from fault to fallback: p50 {1000 * cuts[49]:.0f} ms, p95 {1000 * cuts[94]:.0f} ms, "
                f"max {1000 * max(self.fallbacks):.0f} ms, n {len(self.fallbacks)}"
            )
        if self.interrupts:
            median, worst = statistics.median(self.interrupts), max(self.interrupts)
            yield f"Ctrl-C, to the process's end: median {1000 * median:.0f} ms, max {1000 * worst:.0f} ms"
        if self.split_executions:
            yield f"{self.split_executions} split executions"


TALLY = Tally()


def run(case, wire=COMPLETIONS, *, options=None, **more):
    """Check a case against the endpoint, and count it.

    A case is held to 2 s for its fallback, since machines that run tests are slow and shared; that nearly
    all of them take less than 250 ms is asserted over the whole run.
    """
    TALLY.cases += 1

    def connect(server):
        host, port = case.where or (server.host, server.port)
        host = f"[{host}]" if ":" in host else host
        scheme = server.url.partition("://")[0]
        return endpoint(f"{scheme}://{host}:{port}", wire, **(options or {}))

    checked = check(case, connect, fallback=2.0, **more)
    TALLY.false_complete += checked.status == "complete" and case.truth not in ("complete", None)
    if checked.fallback is not None:
        TALLY.fallbacks.append(checked.fallback)
    return checked


# --- where a fault can strike ---------------------------------------------------------------------------

PIECES = ("1 + 1 ", "= 2, ", "and ", "2 + 2 ", "= 4", ". ")


@dataclass(frozen=True)
class Place:
    """Before the head, before the first text, or after some texts."""

    name: str
    texts: int | None

    @property
    def text(self):
        return "".join(PIECES[: self.texts or 0])

    @property
    def truth(self):
        """Of a span that is cut here."""
        return "partial" if self.texts else "failed"

    def script(self, wire, *fault, is_chunked=False):
        """A reply up to here, and then the fault. What comes before it comes in one piece."""
        if self.texts is None:
            return list(fault)
        texts = [wire.text(piece) for piece in PIECES[: self.texts]]
        if is_chunked:
            texts = [chunk(text.data) for text in texts]
        top = head(Transfer_Encoding="chunked") if is_chunked else head()
        return [Send(top.data + b"".join(text.data for text in texts)), *fault]


BEFORE_HEAD = Place("before headers", None)
AFTER = [Place("before content" if k == 0 else f"after {k} texts", k) for k in range(6)]
PLACES = [BEFORE_HEAD, *AFTER]


def cut_at(place, wire, *fault, is_chunked=False, **more):
    """The case of a reply that goes well up to a place."""
    script = place.script(wire, *fault, is_chunked=is_chunked)
    if not place.texts:
        return wordless(script, **more)
    return Case(script, truth=place.truth, text=place.text, **more)


def wordless(script, **more):
    """The case of a reply without a word of text: the same request may be sent once more."""
    return Case(script, server={"then": script}, **more)


def by_name(things):
    """For parametrize."""
    return {"argvalues": things, "ids": [thing.name for thing in things]}
