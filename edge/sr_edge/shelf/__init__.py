"""The shelf: a folder of GGUFs that have names, each with a passport beside it.

`folder` finds, takes in and removes; `passport_file` is what is known of a file since it came; `facts` is
what its header says. What is on the shelf is never changed, only replaced whole.
"""

from __future__ import annotations

from sr_edge.shelf.facts import Facts, amount, facts_of, memory_need
from sr_edge.shelf.folder import (
    BUILT_IN,
    NONE,
    Shelved,
    find,
    models,
    named,
    remove,
    shelf_dir,
    take_in,
)
from sr_edge.shelf.passport_file import Passport, Verdict, read_beside, verify

__all__ = [
    "BUILT_IN",
    "NONE",
    "Facts",
    "Passport",
    "Shelved",
    "Verdict",
    "amount",
    "facts_of",
    "find",
    "memory_need",
    "models",
    "named",
    "read_beside",
    "remove",
    "shelf_dir",
    "take_in",
    "verify",
]
