"""Whether to ask once more, and after how long. Pure.

One retry for each span, at most, and never after its first content: what the user has seen stays as it is.
"""

from __future__ import annotations

import math
from calendar import timegm
from collections.abc import Mapping
from datetime import MAXYEAR
from email.utils import parsedate_tz

MAX_DEMAND = 120.0
"""Seconds: a server that demands a longer wait is taken to demand this."""

MAX_PAUSE = 2.0
"""Seconds before the one retry of a span. Rather than wait for longer, the small model goes on at once."""


def seconds_to_wait(headers: Mapping[str, str], now: float) -> float | None:
    """What the server asks for, from 0 to `MAX_DEMAND`; None if it asks for nothing that makes sense.

    Args:
        headers: names in lower case.
        now: seconds since 1970.
    Source: RFC 9110, section 10.2.3; `retry-after-ms` is OpenAI's.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, MAX_DEMAND)
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is None and value is not None:
        seconds = _seconds_until(value, now)
    return None if seconds is None else min(seconds, MAX_DEMAND)


def pause(demanded: float | None, jitter: float, remaining: float) -> float | None:
    """Seconds until the one retry, `MAX_PAUSE` at most; None if there is no time for it.

    Args:
        demanded: by the server.
        jitter: from 0 to 1, for many clients not to come back at once.
        remaining: seconds that the span's first content may still take. Half of them are left to the answer.
    """
    wait = demanded or 0.1 + 0.4 * jitter
    return wait if wait <= min(MAX_PAUSE, remaining / 2) else None


def _number(value: str | None) -> float | None:
    """Not negative; infinite is allowed for, and means long."""
    try:
        number = float(value or "")
    except ValueError:
        return None
    return None if math.isnan(number) or number < 0 else number


def _seconds_until(value: str, now: float) -> float | None:
    date = parsedate_tz(value)
    if date is None:
        return None
    try:
        return max(0.0, timegm(date[:6]) - (date[9] or 0) - now)
    except (ValueError, OverflowError):
        return MAX_DEMAND if date[0] > MAXYEAR else None
