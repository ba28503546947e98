"""A sample of all faults with the true engine and the built-in small model: the KV invariant (I10).

After each of them greedy decoding goes on exactly as a fresh model that read the same ids. A span that leaves
the cache out of step would corrupt everything after it, silently.
"""

import dataclasses

import pytest
from tests.faults.harness import (
    AFTER,
    EARLY,
    PIECES,
    SHORT,
    TALLY,
    WIRES,
    by_name,
    cut_at,
    deadlines,
    endpoint,
    run,
)
from tests.faults.test_stream import ERRORS, INVALID, MARKERS, UNREADABLE
from tests.faults.test_torture import REPLY, Ports, answer

from sr_edge.local import LlamaLocal
from sr_edge.passport import demo_paths
from sr_edge.roles import Grant, Limits, Message, Refusal
from sr_edge.testing.fault_endpoint import (
    DONE,
    FIN,
    HANG,
    RST,
    FaultEndpoint,
    Loop,
    Send,
    Sleep,
    failure,
    head,
)
from sr_edge.testing.oracle import Case, assert_in_step, broken_laws

LIMITS = Limits(max_tokens=100, max_span_tokens=40, soft_span_tokens=40)


class FirstOnly:
    """Lets the answer's first span leave, so that a case is about one."""

    def admit(self, request):
        return Grant(request.max_tokens) if request.span == 1 else Refusal("declined", "one is enough")

    def report(self, request, end, outcome, tokens):
        return None


@pytest.fixture(scope="module")
def small():
    with LlamaLocal.open(demo_paths().small, temperature=0) as model:
        yield model


@pytest.fixture(scope="module")
def fresh():
    with LlamaLocal.open(demo_paths().small, temperature=0) as model:
        yield model


@pytest.fixture(params=WIRES)
def wire(request):
    return WIRES[request.param]


def run_in_step(case, wire, small, fresh, **options):
    messages = [Message("user", EARLY.question)]
    checked = run(
        case,
        wire,
        local=small,
        messages=messages,
        gate=FirstOnly(),
        limits=LIMITS,
        options={"prompt": small.render, **options},
    )
    assert_in_step(small, fresh)
    return checked


@pytest.mark.parametrize("name", ["fin", "reset", "silence", "error", "not json", "flood"])
@pytest.mark.parametrize("place", **by_name([AFTER[0], AFTER[1], AFTER[4]]))
def test_cut(place, name, wire, small, fresh):
    ops = {
        "fin": [FIN],
        "reset": [Sleep(0.02), RST],
        "silence": [HANG],
        "error": [ERRORS["object"], FIN],
        "not json": [UNREADABLE["not json"], FIN],
        "flood": [Send(b"data: "), Loop((Send(65536 * b"x"),))],
    }[name]
    options = {}
    if name == "silence":
        options = {"deadlines": deadlines(**{("idle" if place.texts else "first_content"): SHORT})}
    patience = {"silence": SHORT, "flood": None}.get(name, 0.0)
    case = dataclasses.replace(cut_at(place, wire, *ops, patience=patience, hang_up=4), text=None)
    run_in_step(case, wire, small, fresh, **options)


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_refused(status, small, fresh):
    wire = WIRES["chat" if status % 2 else "completions"]
    then = (failure(status),) if status in (429, 500) else ()
    run_in_step(Case(failure(status), then=then), wire, small, fresh)


@pytest.mark.parametrize("name", [*INVALID, *MARKERS])
def test_odd_text(name, small, fresh):
    wire = WIRES["completions" if len(name) % 2 else "chat"]
    if name in INVALID:
        event = wire.text("@").data.replace(b'"@"', INVALID[name][0])
        script = [head(), Send(event), wire.finish(), DONE, FIN]
    else:
        script = wire.stream(*MARKERS[name][0])
    checked = run_in_step(Case(script, truth="complete", text=None), wire, small, fresh)
    assert "bigmodel>" not in checked.transcript.text


@pytest.mark.parametrize("pieces", [PIECES, tuple("".join(PIECES)), ("".join(PIECES),)])
def test_complete(pieces, wire, small, fresh):
    run_in_step(Case(wire.stream(*pieces), truth="complete", text=None), wire, small, fresh)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, None])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("port", "number"), [(p, n) for p in ("feed", "sample", "rewind") for n in (1, 2, 4, 20)]
)
def test_a_call_that_fails(port, number, moment, error, small, fresh, tmp_path):
    """The cache holds what the model says that it holds, and the next answer is as good as any."""
    TALLY.cases += 1
    ports = Ports(port, number, error, moment)
    with FaultEndpoint(then=REPLY) as server, endpoint(server.url, prompt=small.render) as remote:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(small, port, ports.wrapped(port, getattr(small, port)))
            question = [Message("user", EARLY.question)]
            answer(small, remote, tmp_path / "events.jsonl", ports, messages=question, limits=LIMITS)
        if small.ids:
            assert_in_step(small, fresh, tokens=4)
        events, raised = answer(small, remote, None, Ports(), messages=question, limits=LIMITS)
    assert raised is None
    assert not broken_laws(events, small)
    assert_in_step(small, fresh, tokens=4)
