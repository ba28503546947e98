"""`sr_edge.testing.fault_endpoint` under the short names that many tests use."""

from sr_edge.testing.fault_endpoint import (
    COMPLETIONS,
    DONE,
    FIN,
    HANG,
    RST,
    Await,
    FaultEndpoint,
    Request,
    Send,
    Sleep,
    chunked,
    delta,
    head,
    page,
    sse,
    usage,
)

__all__ = [
    "DONE", "FIN", "HANG", "RST", "RawServer", "Request", "Send", "Sleep", "Wait", "chunked", "delta",
    "event", "head", "page", "stream", "text", "usage",
]  # fmt: skip

Wait = Await
event = sse
text = COMPLETIONS.text
stream = COMPLETIONS.stream


class RawServer(FaultEndpoint):
    @property
    def connections(self):
        """How many there were."""
        return len(self._records)
