"""Text that is safe on a terminal, whoever wrote it. Pure: nothing here knows a stream.

Models, servers and recorded files are not trusted: one escape sequence can retitle the window, fill the
clipboard or hide what stands before it. Every character is judged alone, so that a sequence cut in two
pieces is as harmless as a whole one.
"""

from __future__ import annotations

import re

_UNSAFE = (
    "\x00-\x08\x0b-\x1f\x7f"  # C0 without tab and newline: escape, bell, carriage return ...
    "\x80-\x9f"  # C1: one character that some terminals take for an escape sequence
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction controls: they reorder what is read
    "\u2028\u2029"  # line ends that only some programs see
    "\ud800-\udfff"  # half characters: no encoding has them
    "\U000e0000-\U000e007f"  # tags: text that nobody sees
)
_UNSAFE_CHARACTER = re.compile(f"[{_UNSAFE}]")
_UNSAFE_OR_WIDE = re.compile(f"[{_UNSAFE}]|[^\x00-\x7f]")


def safe(text: str) -> str:
    """`text` without characters that steer a terminal; newlines and tabs stay."""
    return _UNSAFE_CHARACTER.sub("", text)


def safe_line(text: str) -> str:
    """The same on one line, each run of white space as one space."""
    return " ".join(safe(text).split())


def safe_json(line: str, encoding: str = "utf-8") -> str:
    r"""A line of JSON with the same meaning, in which such characters are written as `\u001b`.

    Args:
        encoding: of the stream that it goes to; where that is no Unicode, all but ASCII is escaped.
    """
    is_unicode = encoding.lower().replace("-", "").startswith("utf")
    return (_UNSAFE_CHARACTER if is_unicode else _UNSAFE_OR_WIDE).sub(_escaped, line)


def can_show(text: str, encoding: str | None) -> bool:
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))
