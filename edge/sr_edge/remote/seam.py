"""Makes a reply read on from the answer so far, whatever the convention by which it was asked for. Pure.

Any cut of a reply into pieces gives the same text: its beginning is decided on character by character. Held
back is only what may yet turn out to be a repetition, a preamble or whitespace: a few words, but for a reply
that repeats the answer, which is held for as long as it does.

What is sent ends without whitespace (but for raw completions), so the reply brings its own. Where the answer
ends in whitespace already, the same whitespace of the reply is taken for that; any other gives way to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from sr_edge.extract import END_THINK, THINK, is_thinking
from sr_edge.remote.dialects import Dialect, delimiter, is_blank, split_thought

Dropped = Literal["echo", "overlap", "preamble", "think"]

MIN_ECHO = 8
"""Characters. A shorter answer may well be repeated by a continuation that means it: "ha", "ha ha"."""
MIN_REPEAT = 40
"""Characters at the answer's end. The same, where the answer is continued as it stands."""
MIN_OVERLAP = 3
"""Characters, whole words. The same, where a turn of its own is asked for: such like to take a run-up. A line
that is begun anew counts even if it is shorter."""
MAX_HELD = 400
"""Characters of whitespace, or that may be a preamble; and where in the answer's end an overlap may begin."""


class Seam:
    """Drops from a reply what is not the continuation, and joins the rest to the answer."""

    def __init__(
        self, answer: str, *, dialect: Dialect, opening: str, prompt: str = "", echoes: bool = False
    ) -> None:
        """Args:
        opening: what the template wrote before `answer`, such as an open think tag.
        prompt: the text of the prompt, where raw completions sent it.
        echoes: the server is known to repeat what was sent: no repetition is too short to be one.
        """
        min_echo = 1 if echoes else MIN_ECHO
        full = opening + answer
        self.takes_reasoning = is_thinking(full) and dialect.continues_thought
        """A reasoning field of the reply continues the open thought; else it is the server's own."""
        self._parts: list[_Part] = (
            [_Echo((prompt + answer, full, answer), min_echo), _SingleSpace(full)]
            if dialect.is_exact
            else list(_parts(full, dialect, min_echo))
        )

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """What was dropped so far, in the order of the reply."""
        return tuple(dropped for part in self._parts for dropped in part.dropped)

    def push(self, text: str) -> str:
        """The text that is certain by now."""
        for part in self._parts:
            text = part.push(text)
        return text

    def flush(self) -> str:
        """The rest, once the reply is complete."""
        text = ""
        for part in self._parts:
            text = part.push(text) + part.flush()
        return text


def _parts(full: str, dialect: Dialect, min_echo: int) -> Iterator[_Part]:
    thinks = is_thinking(full)
    reopens = thinks and dialect.continues_thought
    think = _Think(thinks=thinks, reopens=reopens, is_inside=dialect.thinks_aloud)
    yield think
    if not dialect.is_asking or is_blank(full):
        yield _Repeat(full, min_echo, is_asking=False)
        yield _Join(full)
        return
    names = tuple(name for name in (delimiter(full), "continuation") if f"{name}>" not in full)
    closers: list[str] = []  # what is opened before the continuation, and may be closed after it
    wrapping = _Wrapping(full, names, closers)
    tags = tuple(f"</{name}>" for name in names)
    repeat = _Repeat(full, min_echo, is_asking=True, tags=tags, closers=closers)
    yield wrapping
    yield repeat
    yield _TurnJoin(full, think, wrapping, repeat)
    yield _Ending(tags, closers)


class _Part:
    """A step that looks at the beginning of what it is given, and lets everything after it through.

    `_decide` is asked after each character; it says None while it can't tell.
    """

    def __init__(self) -> None:
        self.dropped: list[Dropped] = []
        self._held = ""
        self._is_open = False  # decided: the rest goes through

    def push(self, text: str) -> str:
        if self._is_open:
            return text
        for at, character in enumerate(text):
            self._held += character
            decided = self._decide(is_whole=False)
            if decided is not None:
                self._is_open = True
                return decided + text[at + 1 :]
        return ""

    def flush(self) -> str:
        if self._is_open:
            return ""
        self._is_open = True
        return self._decide(is_whole=True) or ""

    def _decide(self, *, is_whole: bool) -> str | None:
        """What of `_held` goes on, once that is certain."""
        raise NotImplementedError


class _Echo(_Part):
    """Raw completions: one of the sent texts, to the letter."""

    def __init__(self, echoes: tuple[str, ...], min_echo: int) -> None:
        super().__init__()
        self._alive = [echo for echo in echoes if len(echo) >= min_echo]
        self._length = 0
        self._found = 0

    def push(self, text: str) -> str:
        # As in `_Part`, but without a look at all that is held for each character: prompts are long.
        if self._is_open:
            return text
        self._held += text
        while self._length < len(self._held) and self._alive:
            at = self._length
            self._alive = [e for e in self._alive if at < len(e) and e[at] == self._held[at]]
            self._length += 1 if self._alive else 0
            if any(len(e) == self._length for e in self._alive):
                self._found = self._length
        if any(len(e) > self._length for e in self._alive):
            return ""
        return self.flush()

    def flush(self) -> str:
        if self._is_open:
            return ""
        self._is_open = True
        if self._found:
            self.dropped.append("echo")
        return self._held[self._found :]


class _SingleSpace(_Part):
    """Raw completions: of the spaces at the seam all but the one that was sent, but for an indentation."""

    def __init__(self, full: str) -> None:
        super().__init__()
        self._is_open = not _ends_in_space(full)

    def _decide(self, *, is_whole: bool) -> str | None:
        text = self._held.lstrip(" ")
        return text if text or is_whole else None


def _ends_in_space(full: str) -> bool:
    """Within a line, after something."""
    return full.endswith(" ") and bool(full.rpartition("\n")[2].strip())


class _Think(_Part):
    """A think block in the content is the server's own thought. Its tag may also just re-open ours."""

    def __init__(self, *, thinks: bool, reopens: bool, is_inside: bool) -> None:
        super().__init__()
        self._tags = (THINK,) if thinks else (THINK, END_THINK)
        self._reopens = reopens
        self._is_inside = self._is_open = is_inside
        if is_inside:
            self.dropped.append("think")

    def push(self, text: str) -> str:
        if not self._is_inside:
            text = super().push(text)
        if self._is_inside:  # perhaps since just now: `text` is then what follows the tag
            self._held += text
            _, end, after = self._held.partition(END_THINK)
            self._held = after if end else self._held[-len(END_THINK) + 1 :]
            self._is_inside = not end
            return after
        return text

    def flush(self) -> str:
        return "" if self._is_inside else super().flush()

    def _decide(self, *, is_whole: bool) -> str | None:
        text = self._held.lstrip()
        for tag in self._tags:
            if text.startswith(tag):
                self.dropped.append("think")
                self._is_inside = tag == THINK and not self._reopens
                self._held = ""
                return ""
            if tag.startswith(text) and not is_whole and len(self._held) < MAX_HELD:
                return None
        return self._held


# --- repetitions --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Run:
    """An end of the answer that a reply may begin with. Without whitespace: that may differ."""

    text: str
    at: int
    """Where in `text` it begins."""
    is_echo: bool
    """It is all that was sent, or all of that after the thought."""


class _Repeat(_Part):
    """The longest end of the answer that the reply begins with: words, a line, a paragraph, or all of it."""

    def __init__(
        self,
        full: str,
        min_echo: int,
        *,
        is_asking: bool,
        tags: tuple[str, ...] = (),
        closers: list[str] | None = None,
    ) -> None:
        """Args:
        min_echo: characters of the whole answer that count as its repetition.
        tags: may stand after the repetition.
        closers: where a quotation mark is put that was opened before it.
        """
        super().__init__()
        self._is_asking = is_asking
        self._tags = tags
        self._closers = closers
        self.shows_join = False
        """What follows was written right after what the answer ends in."""
        self._alive = list(_runs(full, min_echo, is_asking=is_asking))
        self._matched = 0  # characters but whitespace
        self._quote = ""  # before them
        self._at = 0  # characters of _held that were looked at
        self._found: _Found | None = None
        self._doubtful: _Found | None = None  # unless the next character goes on with its last word

    def _decide(self, *, is_whole: bool) -> str | None:
        while self._at < len(self._held) and (self._alive or self._doubtful):
            self._look_at(self._held[self._at])
            self._at += 1
        if (self._alive or self._doubtful) and not is_whole:
            return None
        found = self._doubtful or self._found
        if found is None:
            return self._held
        rest = self._held[found.end :]
        text = rest.lstrip()
        self.shows_join = True
        for tag in self._tags:
            if text.startswith(tag):
                rest, self.shows_join = text.removeprefix(tag).lstrip(), False
                break
            if tag.startswith(text) and not is_whole:
                return None
        if self._quote and self._closers is not None:
            self._closers.append(_CLOSING_QUOTE.get(self._quote, self._quote))
        self.dropped.append(found.kind)
        return rest

    def _look_at(self, character: str) -> None:
        if self._doubtful is not None:
            # "the cat" and "catalogue" do not overlap.
            if not (character.isalnum() and self._held[self._at - 1].isalnum()):
                self._found = self._doubtful
            self._doubtful = None
        if character.isspace():
            return
        at = self._matched
        alive = [run for run in self._alive if self._is_same(run.text[run.at + at], character)]
        if not alive and not at and self._is_asking and character in _QUOTES and not self._quote:
            self._quote = character
            return
        self._matched += 1
        done = [run for run in alive if len(run.text) == run.at + self._matched]
        self._alive = [run for run in alive if len(run.text) > run.at + self._matched]
        if done:
            is_echo = any(run.is_echo for run in done)
            found = _Found(self._at + 1, "echo" if is_echo else "overlap")
            if self._is_asking and self._matched < _SURE:
                self._doubtful = found
            else:
                self._found = found

    def _is_same(self, ours: str, theirs: str) -> bool:
        # A turn begins with a capital letter, although it repeats the middle of a sentence.
        return ours == theirs or (self._is_asking and ours.lower() == theirs.lower())


@dataclass(frozen=True, slots=True)
class _Found:
    end: int
    kind: Dropped


_SURE = 20
"""Characters but whitespace: so much is repeated, not met by chance."""
_QUOTES = "\"'“”„«»\u2018’`"
_CLOSING_QUOTE = {"“": "”", "„": "“", "«": "»", "\u2018": "’"}


def _runs(full: str, min_echo: int, *, is_asking: bool) -> Iterator[_Run]:
    """The ends of the answer that count as a repetition, in the ways in which it may have been sent."""
    if is_blank(full):
        return
    thought, text = split_thought(full)
    bases = {full.strip()}
    if thought is not None:
        joined = f"{thought.strip()}\n\n{text.strip()}".strip()
        bases = {full.lstrip().removeprefix(THINK).strip(), joined, text.strip()} - {""}
    for base in sorted(bases):
        yield from _runs_of(base, min_echo, is_asking=is_asking, ends_line=full.endswith("\n"))


def _runs_of(base: str, min_echo: int, *, is_asking: bool, ends_line: bool) -> Iterator[_Run]:
    before = [0, *accumulate(0 if c.isspace() else 1 for c in base)]
    squeezed = "".join(base.split())
    lines = {match.end() - 1 for match in _LINE.finditer(base)}
    words = {match.start() for match in _WORD.finditer(base, max(0, len(base) - MAX_HELD))}
    for at in sorted(lines | words):
        length = len(base) - at
        if at == 0 and not is_asking:
            least = min_echo
        elif not is_asking:
            least = MIN_REPEAT
        elif ends_line:  # a new line may well begin as the last one ended
            least = MIN_ECHO
        else:
            least = 1 if at in lines else MIN_OVERLAP
        if length >= least and (at in lines or any(c.isalnum() for c in base[at:])):
            yield _Run(squeezed, before[at], is_echo=at == 0)


_LINE = re.compile(r"^\s*\S", re.MULTILINE)
_WORD = re.compile(r"(?<!\w)\w|(?<!\S)\S|[^\w\s]")


# --- whitespace ---------------------------------------------------------------------------------------------


class _Join(_Part):
    """The whitespace between the answer and a reply that goes on from it without its last whitespace."""

    def __init__(self, full: str) -> None:
        super().__init__()
        self._body = full.rstrip()
        self._there = full[len(self._body) :]

    def _decide(self, *, is_whole: bool) -> str | None:
        text = self._held.lstrip()
        if not text and not is_whole:
            return None
        space = self._held[: len(self._held) - len(text)]
        return self._joint(space, text) + text

    def _joint(self, space: str, text: str) -> str:
        if not self._body:
            return ""
        there = self._there
        if there:
            space = space[len(there) :] if space.startswith(there) else ""
        if "\n" in there + space:
            return _at_most_one_blank_line(there, space)
        return "" if there else re.sub(r"^ +\Z", " ", space)


class _TurnJoin(_Join):
    """The same for a turn of its own, whose first whitespace tells little."""

    def __init__(self, full: str, think: _Think, wrapping: _Wrapping, repeat: _Repeat) -> None:
        super().__init__(full)
        self._think = think
        self._wrapping = wrapping
        self._repeat = repeat

    def _joint(self, space: str, text: str) -> str:
        if self._repeat.shows_join:
            return super()._joint(space, text)  # it shows by itself how it goes on
        if self._wrapping.reopens_code:
            return space.removeprefix("\n") if "\n" in self._there else space
        if not text or self._there:
            return ""
        if not space or ("\n" in space and (self._think.dropped or self._wrapping.dropped)):
            return " " if _wants_space(self._body, text[0]) else ""
        return super()._joint(space, text)


def _at_most_one_blank_line(there: str, space: str) -> str:
    room = max(0, 2 - there.count("\n"))
    if space.count("\n") <= room:
        return space
    indentation = space.rpartition("\n")[2]
    return "\n" * room + (indentation if room or not there.endswith(" ") else "")


_NO_SPACE_AFTER = frozenset("([{“„«\u2018\\^_-/–—~@#&")
_SPACE_BEFORE = frozenset("=+<>&“„«\u2018\\")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\uff00-\uffef]")
"""Thai, Lao, Burmese, Khmer, Chinese and Japanese, and their punctuation."""


def _wants_space(body: str, first: str) -> bool:
    """Between the answer's last character and the first of a turn that was asked to go on from it."""
    last = body[-1]
    if last in _NO_SPACE_AFTER or _UNSPACED.match(last) or _UNSPACED.match(first):
        return False
    paragraph = body.rpartition("\n\n")[2]
    if last in '$"`' and paragraph.count(last) % 2:
        return False  # it opens something
    if first in '$"`':
        return paragraph.count(first) % 2 == 0  # it opens something
    return first.isalnum() or first in _SPACE_BEFORE


# --- what chat models put around a turn ---------------------------------------------------------------------

_POLITE = r"(?:sure(?:\ thing)?|certainly|of\ course|absolutely|understood|got\ it)"
_ANNOUNCES = (
    r"(?:continu(?:ation|ing|es|ed|e)|seamless(?:ly)?|next\ (?:part|words)|left\ off|br(?:eaks|oke)\ off"
    r"|draft|rest\ of\ the\ (?:answer|draft|text|solution|reasoning|notes|proof))\b"
)
_PREAMBLE = re.compile(
    rf"""[*_\#>\s]*(?:
      {_POLITE}[!.][*_]*(?=\s|\Z)
    | {_POLITE}[,!.][^\n:]{{0,80}}:[*_]*[ \t]*\n
    | (?:(?:{_POLITE}|ok(?:ay)?|alright)\s*[,.!:–—-]\s*)?
      (?: (?:here(?:['’]?s|\ is|\ are)|below\ is|this\ is|as\ requested,?)\ [^\n:]{{0,60}}?
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
_ASSENT = re.compile(rf"(?:{_POLITE}|ok(?:ay)?|alright)\s*[,.!:–—-]\s*", re.IGNORECASE)
_ASSENTS = ("sure", "certainly", "of course", "absolutely", "understood", "got it", "ok", "okay", "alright")
_LEADS = (
    "here", "below is ", "this is ", "as requested",
    "the continu", "the seamless continu", "seamless continu",
    *(
        f"{who}{verb}"
        for who in ("", "i'll ", "i’ll ", "i will ", "let me ", "let's ", "let’s ", "let us ", "now ")
        for verb in ("continu", "pick up", "picking up", "resume", "resuming")
    ),
)  # fmt: skip
_TEXT_FENCES = ("", "text", "txt", "plain", "plaintext", "markdown", "md")


class _Wrapping(_Part):
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
        if dropped and text[0] in _QUOTES and text[0] != "`":
            closers.append(_CLOSING_QUOTE.get(text[0], text[0]))
            return 1
        return _preamble(text, is_last=is_last)

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
        # "1 + 2 + ... + 9" and "1, 2, ... 9" mean it.
        follows = self._full.endswith((",", ";", "+", "-", "*", "/"))
        is_series = follows and (after[0] in ",;+-*/" or (after[0].isdigit() and self._full[-1] in ",;"))
        return 0 if is_series else len(dots)


def _preamble(text: str, *, is_last: bool) -> int | None:
    found = _PREAMBLE.match(text)
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
    if assent is None and start in ("sure thing", *_ASSENTS):
        return None
    start = start[assent.end() :] if assent else start
    if assent and re.match(_POLITE, assent[0]) and len(start) < 100:
        return None  # whatever it announces, if a colon ends the line
    if start.startswith(("here", "this is ", "below is ", "as requested")) and len(start) > 70:
        return None if re.search(_ANNOUNCES, start) else 0
    return None if any(lead.startswith(start) or start.startswith(lead) for lead in _LEADS) else 0


class _Ending(_Part):
    """What closes the wrapping, and what is written after that."""

    def __init__(self, tags: tuple[str, ...], closers: list[str]) -> None:
        super().__init__()
        self._tags = tags
        self._closers = closers
        self._is_over = False
        self._depth = 0  # of fences inside of ours

    def push(self, text: str) -> str:
        out: list[str] = []
        for character in text:
            if self._is_over:
                break
            if self._held or character.isspace() or character in "<`" or character in self._closers:
                out.append(self._look_at(character))
            else:
                out.append(character)
        return "".join(out)

    def flush(self) -> str:
        text, self._held = self._held, ""
        if self._is_over:
            return ""
        self._is_over = True
        for closer in self._closers:
            if text.rstrip().endswith(closer):
                text = text.rstrip().removesuffix(closer).rstrip()
        return text

    def _look_at(self, character: str) -> str:
        """What is certain to be no end, once `character` has come too."""
        self._held += character
        text = self._held.lstrip()
        if text in self._tags or self._closes_fence():
            self._is_over, self._held = True, ""
            return ""
        may_end = (
            any(tag.startswith(text) for tag in self._tags)
            or text.rstrip() in self._closers
            or ("```" in self._closers and "```".startswith(text))
        )
        if may_end and len(self._held) < MAX_HELD:
            return ""
        if re.fullmatch(r"\s*\n[ \t]*```[^\s`]", self._held):
            self._depth += 1
        self._held, before = "", self._held[:-1]
        if before and (character.isspace() or character in "<`" or character in self._closers):
            return before + self._look_at(character)
        return before + character

    def _closes_fence(self) -> bool:
        if "```" not in self._closers or not re.fullmatch(r"\s*\n[ \t]*```[ \t]*\n", self._held):
            return False
        self._depth -= 1
        return self._depth < 0
