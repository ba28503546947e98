"""Small real parts for tests, ours and yours.

`models` are scripted models that speak the true Protocols; `fault_endpoint` is a scripted server on bare
sockets that fails in every way that servers do; `oracle` says what must hold afterwards, and `egress_trap`
sees what this process tries to reach. `model_endpoint`, which is imported by name, serves a true GGUF.
"""

from sr_edge.testing.egress_trap import EgressTrap
from sr_edge.testing.fault_endpoint import FaultEndpoint
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
from sr_edge.testing.oracle import Case, Checked, InvariantError, check

__all__ = [
    "CLOSE",
    "END",
    "OPEN",
    "Case",
    "Checked",
    "EgressTrap",
    "FaultEndpoint",
    "InvariantError",
    "Reply",
    "ScriptedLocal",
    "ScriptedRemote",
    "ScriptedStream",
    "TextLocal",
    "check",
]
