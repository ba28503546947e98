"""What is well here and what is not: checks as data. Nothing is printed, and no socket is opened.

`machine` looks at the computer, `checks` judges: each check is a function of what it is given.
"""

from __future__ import annotations

from sr_edge.doctor.checks import Check, State

__all__ = ["Check", "State"]
