"""Small real parts for tests, ours and yours.

`models` are scripted models that speak the true Protocols; `fault_endpoint` is a scripted server on bare
sockets that fails in every way that servers do; `oracle` says what must hold afterwards.
"""

from sr_edge.testing.models import (
    CLOSE,
    END,
    OPEN,
    Reply,
    ScriptedLocal,
    ScriptedRemote,
    ScriptedStream,
    TextLocal,
)

__all__ = [
    "CLOSE",
    "END",
    "OPEN",
    "Reply",
    "ScriptedLocal",
    "ScriptedRemote",
    "ScriptedStream",
    "TextLocal",
]
