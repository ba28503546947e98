"""The shelf: a folder of GGUFs that have names, each with a passport beside it.

`folder` finds, takes in and removes; `passport_file` is what is known of a file since it came; `facts` is
what its header says. What is on the shelf is never changed, only replaced whole.
"""

from __future__ import annotations

from sr_edge.shelf.facts import Facts, amount, cache_need, facts_of, memory_need
from sr_edge.shelf.folder import (
    BUILT_IN,
    NONE,
    Shelved,
    find,
    models,
    name_for,
    named,
    place,
    put_in,
    refuse_taken,
    remove,
    shelf_dir,
    take_in,
)
from sr_edge.shelf.passport_file import (
    Passport,
    Verdict,
    check_on_load,
    new_passport,
    read_beside,
    sha256_of,
    verify,
)

__all__ = [
    "BUILT_IN",
    "NONE",
    "Facts",
    "Passport",
    "Shelved",
    "Verdict",
    "amount",
    "cache_need",
    "check_on_load",
    "facts_of",
    "find",
    "memory_need",
    "models",
    "name_for",
    "named",
    "new_passport",
    "place",
    "put_in",
    "read_beside",
    "refuse_taken",
    "remove",
    "sha256_of",
    "shelf_dir",
    "take_in",
    "verify",
]
