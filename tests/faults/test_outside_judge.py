"""What llmock says of us, who did not write this client: strict, so that its warnings count too.

It sees each attempt and its timing: whether a demanded wait was kept, whether a hopeless request was sent
again, whether half a stream passed for a whole one.
"""

import pytest
from tests.faults.harness import SHORT, TALLY, WIRES, deadlines, endpoint

from sr_edge.split import SplitDecoder
from sr_edge.testing.oracle import AFTER, BEFORE, QUESTION, broken_laws, status_of, writer
from sr_edge.transcript import fold

pytest.importorskip("llmock")

FAULTS = {
    "nothing": (lambda mock: mock, "complete"),
    "500": (lambda mock: mock.fail(500), "complete"),
    "500 twice": (lambda mock: mock.fail(500, times=2), "failed"),
    "502": (lambda mock: mock.fail(502), "complete"),
    "503": (lambda mock: mock.fail(503), "complete"),
    "529": (lambda mock: mock.fail(529), "complete"),
    "408": (lambda mock: mock.fail(408), "complete"),
    "409": (lambda mock: mock.fail(409), "complete"),
    "400": (lambda mock: mock.fail(400), "failed"),
    "401": (lambda mock: mock.fail(401), "failed"),
    "403": (lambda mock: mock.fail(403), "failed"),
    "404": (lambda mock: mock.fail(404), "failed"),
    "422": (lambda mock: mock.fail(422), "failed"),
    "rate limit": (lambda mock: mock.rate_limit(retry_after=0.1), "complete"),
    "rate limit without a wait": (lambda mock: mock.fail(429), "complete"),
    "outage": (lambda mock: mock.outage(), "failed"),
    "context overflow": (lambda mock: mock.context_overflow(), "failed"),
    "delay": (lambda mock: mock.delay(0.1), "complete"),
    "slow first token": (lambda mock: mock.slow_first_token(0.1), "complete"),
    "too slow a first token": (lambda mock: mock.slow_first_token(3 * SHORT), "failed"),
    "disconnect": (lambda mock: mock.disconnect(), "complete"),
    "truncate": (lambda mock: mock.truncate(), "complete"),
    "corrupt": (lambda mock: mock.corrupt(), "complete"),
    "stall": (lambda mock: mock.stall(seconds=2.0), "failed"),
}

MID_SPAN = {
    "disconnect": (lambda mock: mock.disconnect(after_chunks=3), {"gave_up"}),
    "truncate": (lambda mock: mock.truncate(after_chunks=3), {"truncated_stream_accepted"}),
    "corrupt": (lambda mock: mock.corrupt(after_chunks=3), {"malformed_chunk_ignored"}),
    "stall": (lambda mock: mock.stall(after_chunks=3, seconds=2.0), set()),
}
"""Once text was shown we never ask again, which llmock would: it can't see that the rest is written locally
and the span called partial. It must have nothing else to say."""


@pytest.fixture
def wire():
    return WIRES["chat"]  # llmock speaks no other


def span(llmock, wire, **options):
    """One answer with one span."""
    TALLY.cases += 1
    local = writer()
    llmock.reply("1 + 1 = 2, and 2 + 2 = 4.")
    options["jitter"] = lambda: 0.5  # a retry must come after llmock has noticed that we hung up
    with endpoint(f"{llmock.url}/v1", wire, model="gpt-4o", **options) as remote:
        events = list(SplitDecoder(local, remote).generate(QUESTION))
    assert broken_laws(events, local) == []
    transcript = fold(events)
    assert transcript.finish == "stop"
    assert transcript.text.startswith(BEFORE)
    assert transcript.text.endswith(AFTER)
    return transcript.spans[0]


@pytest.mark.parametrize("name", FAULTS)
def test_llmock_has_nothing_to_say(name, wire, llmock):
    fault, truth = FAULTS[name]
    fault(llmock)
    options = {}
    if name in ("too slow a first token", "stall"):
        options["deadlines"] = deadlines(first_content=SHORT, idle=SHORT)
    assert status_of(span(llmock, wire, **options)) == truth
    llmock.assert_resilient(strict=True)


@pytest.mark.parametrize("name", MID_SPAN)
def test_llmock_on_what_breaks_once_text_was_shown(name, wire, llmock):
    fault, expected = MID_SPAN[name]
    fault(llmock)
    assert status_of(span(llmock, wire, deadlines=deadlines(idle=SHORT))) == "partial"
    assert {finding.code for finding in llmock.verdict().findings} == expected
    assert len(llmock.requests) == 1
