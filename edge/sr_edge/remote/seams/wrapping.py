"""What a chat puts before a continuation: announcements, fences, quotes, an ellipsis."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sr_edge.remote.seams.part import CLOSING_QUOTE, MAX_HELD, QUOTES, Part
from sr_edge.remote.seams.repeat import OPERATOR, RELATION

if TYPE_CHECKING:
    from sr_edge.remote.seams.think import Think


# --- what chat models put around a turn ---------------------------------------------------------------------

_POLITE = r"(?:sure(?:\ thing)?|certainly|of\ course|absolutely|understood|got\ it)"

_ANNOUNCES = (
    r"(?:continu(?:ation|ing|es|ed|e)|seamless(?:ly)?|next\ (?:part|words)|left\ off|br(?:eaks|oke)\ off"
    r"|draft|rest\ of\ the\ (?:answer|draft|text|solution|reasoning|notes|proof))\b"
)

_SORRY = (
    r"(?:i\ apologi[sz]e|(?:my\ |sincere\ )*apologies|(?:i['’]m\ |i\ am\ )?sorry)(?:\ [^\n:.!,–—]{0,60})?"
)

_ASSENTING = rf"(?:{_POLITE}|ok(?:ay)?|alright|great|perfect|{_SORRY})\s*[,.!:–—-]\s*"

_HERE_IS = r"here(?:['’]?s|\ is|\ are)"

_PREAMBLE = re.compile(
    rf"""[*_\#>\s]*(?:
      {_POLITE}[!.][*_]*(?=\s|\Z)
    | {_POLITE}[,!.][^\n:]{{0,80}}:[*_]*[ \t]*\n
    | [\[(](?:continu(?:ing|ed|ation)|cont(?:['’]d|\.)?|resum(?:ing|ed))
        (?:\ (?:from|where|with|here)\b[^\n\])]{{0,80}})?[.…:]*[\])][*_]*:?
    | assistant[*_]*\s*:[*_]*
    | {_ASSENTING}{_HERE_IS}\ the\ rest[*_]*\s*:[*_]*
    | (?:{_ASSENTING})?
      (?: (?:{_HERE_IS}|below\ is|this\ is|as\ requested,?)\ [^\n:]{{0,60}}?
          {_ANNOUNCES}[^\n:]{{0,80}}
        | (?:the\ |seamless\ |i['’]ll\ |i\ will\ |let\ me\ |let['’]s\ |let\ us\ |now\ )*
          (?:continu(?:ation|ing|ed|e)|pick(?:ing)?\ up|resum(?:ing|e))
          (?:\ (?:seamlessly|directly|exactly|right|from|where|on|with\ the\ (?:draft|text|answer)
            |the\ (?:answer|draft|text|solution|reasoning|notes|working|response))\b[^\n:]{{0,100}})?
        | here\ you\ (?:go|are)
      )[*_]*\s*(?::[*_]*|[.…]*[*_]*[ \t]*\n)
    )""",
    re.IGNORECASE | re.VERBOSE,
)

_THE_REST = re.compile(rf"[*_\#>\s]*{_HERE_IS}\ the\ rest[*_]*\s*:[*_]*", re.IGNORECASE | re.VERBOSE)
"""After a preamble only: by itself it may well be the answer's."""

_ASSENT = re.compile(_ASSENTING, re.IGNORECASE | re.VERBOSE)

_SORRY_SO_FAR = re.compile(_SORRY, re.IGNORECASE | re.VERBOSE)

_ASSENTS = (
    "sure thing", "certainly", "of course", "absolutely", "understood", "got it", "okay", "alright", "great",
    "perfect", "i apologize", "i apologise", "apologies", "my apologies", "my sincere apologies",
    "sincere apologies", "sorry", "i'm sorry", "i’m sorry", "i am sorry",
)  # fmt: skip

_LEADS = (
    "here", "below is ", "this is ", "as requested", "assistant",
    "the continu", "the seamless continu", "seamless continu",
    *(f"{bracket}{word}" for bracket in "[(" for word in ("continu", "cont'd", "cont’d", "cont.", "resum")),
    *(
        f"{who}{verb}"
        for who in ("", "i'll ", "i’ll ", "i will ", "let me ", "let's ", "let’s ", "let us ", "now ")
        for verb in ("continu", "pick up", "picking up", "resume", "resuming")
    ),
)  # fmt: skip

_TEXT_FENCES = ("", "text", "txt", "plain", "plaintext", "markdown", "md")


class Wrapping(Part):
    """What stands before the continuation: announcement, fence, quotation mark, ellipsis, or the tags that
    quoted the answer."""

    def __init__(self, full: str, names: tuple[str, ...], closers: list[str]) -> None:
        """Args:
        closers: where what may close it is put.
        """
        super().__init__()
        self._full = full.rstrip()
        self._tags = tuple(tag for name in names for tag in (f"<{name}>", f"</{name}>"))
        self._closers = closers
        self.reopens_code = False
        """A fence was opened that is open: what follows is a new line of that code."""

    def _decide(self, *, is_whole: bool) -> str | None:
        is_last = is_whole or len(self._held) >= MAX_HELD
        text, closers, dropped = self._held, list[str](), False
        while True:
            rest = text.lstrip()
            length = self._wrapping(rest, closers, dropped=dropped, is_last=is_last)
            if length is None:
                return None
            if not length:
                break
            text, dropped = rest[length:], True
        if dropped:
            self._closers += closers
            self.dropped.append("preamble")
        return text

    def _wrapping(self, text: str, closers: list[str], *, dropped: bool, is_last: bool) -> int | None:
        """The length of the first thing that is no continuation; None if more must be seen."""
        if not text:
            return 0 if is_last else None
        for tag in self._tags:
            if text.startswith(tag):
                return len(tag)
            if tag.startswith(text) and not is_last:
                return None
        if text[0] == "`" and (length := self._fence(text, closers, is_last=is_last)) != 0:
            return length
        if text[0] in ".…" and (length := self._ellipsis(text, is_last=is_last)) != 0:
            return length
        if dropped and text[0] in QUOTES and text[0] != "`":
            closers.append(CLOSING_QUOTE.get(text[0], text[0]))
            return 1
        length = _preamble(text, is_last=is_last, is_first=not dropped)
        if length and "assistant" in text[:length].lower() and "assistant:" in self._full.lower():
            return 0  # the answer is a dialogue
        return length

    def _fence(self, text: str, closers: list[str], *, is_last: bool) -> int | None:
        if not text.startswith("```"):
            return None if "```".startswith(text) and not is_last else 0
        line, end, _ = text.partition("\n")
        if not end and not is_last:
            return None if len(line) < 24 else 0
        if self._full.count("```") % 2:  # the code that it goes on with is in a fence already
            self.reopens_code = True
            return len(line)
        if line[3:].strip().lower() not in _TEXT_FENCES or self._full.endswith(":"):
            return 0
        closers.append("```")
        return len(line) + len(end)

    def _ellipsis(self, text: str, *, is_last: bool) -> int | None:
        dots = "…" if text[0] == "…" else "..."
        if not text.startswith(dots):
            return None if dots.startswith(text) and not is_last else 0
        after = text[len(dots) :].lstrip()
        if not after:
            return 0 if is_last else None
        # "1 + 2 + ... + 9" and "1, 2, ... 9" mean it, and so do "1 + 2 ... + 9" and "1, 2..., n".
        follows = self._full.endswith((",", ";", "+", "-", "*", "/"))
        if follows and (after[0] in ",;+-*/" or (after[0].isdigit() and self._full[-1] in ",;")):
            return 0
        sign = re.match(rf"(?:[,;]|{OPERATOR.pattern})\s*", after)
        if sign is None:
            is_undecided = re.fullmatch(r"\\[A-Za-z]{0,9}", after) is not None
            return None if is_undecided and not is_last else len(dots)
        if not _is_in_series(self._full, sign[0].strip()):
            return len(dots)
        term = after[sign.end() :]
        if not is_last and (not term or (len(term) == 1 and term.isalpha())):
            return None
        return 0 if re.match(r"[\d$(\\]|[^\W\d_](?![^\W_])", term) else len(dots)


def _is_in_series(full: str, sign: str) -> bool:
    """Whether what `full` ends in has that sign between its terms."""
    line = full.rpartition("\n")[2][-MAX_HELD:]
    ends = [match.end() for match in _BEFORE_SERIES.finditer(line)]
    series = line[ends[-1] if ends else 0 :]
    signs = [match[1] for match in re.finditer(rf"(?<=[\w)}}$!])\s*([,;]|{OPERATOR.pattern})", series)]
    return sign in signs if sign in ",;+-" else signs[-1:] == [sign]  # "2 * 3 + 4" is no product


_BEFORE_SERIES = re.compile(rf"(?<![\\A-Za-z])[A-Za-z]{{2,}}|{RELATION.pattern}")


class Announcement(Part):
    """Raw completions: a line that announces the continuation, after a thought that is not ours: a server
    that has such wraps prompts."""

    def __init__(self, think: Think) -> None:
        super().__init__()
        self._think = think

    def _decide(self, *, is_whole: bool) -> str | None:
        if not self._think.dropped:
            return self._held
        is_last = is_whole or len(self._held) >= MAX_HELD
        at = end = 0
        while True:
            rest = self._held[at:].lstrip()
            length = _preamble(rest, is_last=is_last, is_first=not at) if rest or is_last else None
            if length is None:
                return None
            if not length:
                break
            at = len(self._held) - len(rest) + length
            if self._held[:at].rstrip("*_ \t\n").endswith(":"):
                end = at
        if end:
            self.dropped.append("preamble")
        return self._held[end:]


def _preamble(text: str, *, is_last: bool, is_first: bool) -> int | None:
    """Its length; None if more must be seen.

    Args:
        is_first: no other stands before it.
    """
    found = _PREAMBLE.match(text) or (None if is_first else _THE_REST.match(text))
    if found:
        return None if found.end() == len(text) and not is_last else found.end()
    start = text.lstrip("*_#> \t").lower()
    if is_last or "\n" in start or len(start) > 200:
        return 0
    if not start:
        return None if len(text) < 8 else 0
    if any(assent.startswith(start) for assent in _ASSENTS):
        return None
    assent = _ASSENT.match(start)
    if assent is None and (start == "ok" or _SORRY_SO_FAR.fullmatch(start)):
        return None
    start = start[assent.end() :] if assent else start
    if assent and re.match(_POLITE, assent[0]) and len(start) < 100:
        return None  # whatever it announces, if a colon ends the line
    if start.startswith(("here", "this is ", "below is ", "as requested")) and len(start) > 70:
        return None if re.search(_ANNOUNCES, start) else 0
    return None if any(lead.startswith(start) or start.startswith(lead) for lead in _LEADS) else 0
