r"""Text that is safe on a terminal, whoever wrote it. Pure: nothing here knows a stream.

Models, servers and recorded files are not trusted: one escape sequence can retitle the window, fill the
clipboard or hide what stands before it. Sequences vanish whole, wherever the pieces of a stream are cut.
What only looks like the beginning of one is shown as text, without what would have made it work.
"""

from __future__ import annotations

import re
import unicodedata

MAX_MARKS = 8
"""Accents and the like on one character. No script needs more; a hundred of them cover other lines."""

_MAX_PAYLOAD = 4096  # characters of one sequence; a longer one is text
_PAYLOAD = (
    rf"[^\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]{{0,{_MAX_PAYLOAD}}}"  # no newline: it ends a sequence
)
_STRING = r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])"  # what OSC, DCS, SOS, PM and APC begin with
_CSI = r"(?:\x1b\[|\x9b)[0-?]{0,256}[ -/]{0,16}"
_SEQUENCE = rf"{_CSI}[@-~]|{_STRING}{_PAYLOAD}(?:\x07|\x1b\\|\x9c)|\x1b(?![\[\]PX^_])[ -/]{{0,16}}[0-~]"
_UNFINISHED = rf"(?P<unfinished>(?:{_CSI}|{_STRING}{_PAYLOAD}\x1b?|\x1b[ -/]{{0,16}})\Z)"
_LINE_END = r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]"  # a bare return would overwrite the line

_INVISIBLE = (
    "\x00-\x08\x0b-\x1f\x7f"  # C0 without tab and newline: escape, bell, carriage return ...
    "\x80-\x9f"  # C1: one character that some terminals take for an escape sequence
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # direction controls: they reorder what is read
    "\u00ad\u034f\u180e\u200b\u2060-\u2065\ufeff"  # no width: words that look alike and are not
    "\u115f\u1160\u3164\uffa0"  # letters of Hangul that show nothing
    "\ufff0-\ufffb\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # layout, annotation
    "\u2028\u2029"  # line ends that only some programs see
    "\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"  # tags: text that nobody sees
)
_HALF = "\ud800-\udfff"  # half characters: no encoding has them
_STEERING = re.compile(f"{_SEQUENCE}|{_LINE_END}|[{_INVISIBLE}{_HALF}]")
_STEERING_SO_FAR = re.compile(f"{_SEQUENCE}|{_UNFINISHED}|{_LINE_END}|[{_INVISIBLE}{_HALF}]")
_PLAIN = re.compile(  # neither steering nor a mark nor a joiner
    "[\t\n -~\xa0-\xac\xae-\u02ff\u0370-\u0482\u048a-\u058f\u05d0-\u05ff\u0620-\u064a\u0671-\u06d3"
    "\u1e00-\u200a\u2010-\u2027\u202f-\u205f\u2070-\u20cf\u2100-\u2ce4\u2e00-\u3029\u3030-\u3098\u309b-\u3163\u3165-\ua66e"
    "\uac00-\ud7a3\uf900-\ufaff\uff00-\uff9f\uffa1-\uffef\U0001f000-\U0001faff\U00020000-\U0003ffff]*"
)
_JOINERS = "\u200c\u200d"
_JOINS = re.compile(  # Arabic, Indic and their neighbours; emoji
    "[\u0600-\u109f\u1700-\u1cff\ua800-\uabff\U00010a00-\U00011fff\xa9\xae\u20e3\u2190-\u21ff\u2300-\u23ff"
    "\u25a0-\u27bf\u2b00-\u2bff\u3030\u303d\u3297\u3299\ufe0f\U0001f000-\U0001faff]"
)
_SELECTOR = re.compile("[\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # picks a glyph's form

_IN_JSON = re.compile(f"[{_INVISIBLE}{_HALF}]")
_WIDE_IN_JSON = re.compile("[^\t\n -~]")


class Sanitiser:
    """Makes text safe that arrives in pieces. However it is cut, the same comes out.

    Newlines and tabs stay, other line ends become newlines. At most one escape sequence is held back.
    """

    def __init__(self) -> None:
        self._held = ""  # the beginning of a sequence
        self._follows_return = False
        self._last = ""  # the last character that came out
        self._num_marks = 0  # on it, or with it on the one before

    def push(self, text: str) -> str:
        """What is certain by now."""
        if not self._held and not self._follows_return and _PLAIN.fullmatch(text):
            if text:
                self._last, self._num_marks = text[-1], 0
            return text
        if not text:
            return ""
        if self._follows_return and text[0] == "\n":
            text = text[1:]
        self._follows_return = text.endswith("\r")
        text, self._held = self._held + text, ""
        return self._visible(_STEERING_SO_FAR.sub(self._replace, text))

    def flush(self) -> str:
        """What was held back and turned out to be no sequence. The next piece begins another text."""
        rest = self._visible(_STEERING.sub(self._replace, self._held))
        self._held, self._follows_return, self._last, self._num_marks = "", False, "", 0
        return rest

    def _replace(self, match: re.Match[str]) -> str:
        found = match[0]
        if found[0] in "\r\x0b\x0c\x85\u2028\u2029":
            return "\n"
        if "\ud800" <= found[0] <= "\udfff":
            return "\ufffd"
        if match.lastgroup == "unfinished":
            self._held = found
        return ""

    def _visible(self, text: str) -> str:
        """Without marks beyond measure, joiners that join nothing, and one selector after another."""
        if _PLAIN.fullmatch(text):
            if text:
                self._last, self._num_marks = text[-1], 0
            return text
        kept = []
        for char in text:
            if char in _JOINERS:
                if not _JOINS.match(self._last):
                    continue
            elif unicodedata.category(char) in ("Mn", "Me"):
                is_second = _SELECTOR.match(char) and _SELECTOR.match(self._last)
                if self._num_marks == MAX_MARKS or is_second:
                    continue
                self._num_marks += 1
            else:
                self._num_marks = 0
            kept.append(char)
            self._last = char
        return "".join(kept)


def safe(text: str) -> str:
    """`text` without what steers a terminal; newlines and tabs stay."""
    if _PLAIN.fullmatch(text):
        return text
    sanitiser = Sanitiser()
    return sanitiser.push(text) + sanitiser.flush()


def safe_line(text: str) -> str:
    """The same on one line, each run of white space as one space."""
    return " ".join(safe(text).split())


def safe_json(line: str, encoding: str = "utf-8") -> str:
    r"""A line of JSON with the same meaning, in which such characters are written as `\u001b`.

    Args:
        encoding: of the stream that it goes to; where that is no Unicode, all but ASCII is escaped.
    """
    if encoding.lower().replace("-", "").startswith("utf"):
        escaped = _IN_JSON.sub(_escaped, line)
        if safe(escaped) == escaped:
            return escaped
    return _WIDE_IN_JSON.sub(_escaped, line)


def can_show(text: str, encoding: str | None) -> bool:
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))
