"""An answer as blocks of one writer each, folded from its events: what is drawn, without how.

All text is safe to show. What the blocks of one part hold, joined, is that part's text, think tags aside.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

from sr_edge.events import (
    DEGRADED_ENDS,
    End,
    Event,
    Finished,
    LocalToken,
    SpanClosed,
    SpanDelta,
    SpanOpened,
    Started,
)
from sr_edge.extract import END_THINK, THINK, Part, ReasoningSplitter, is_thinking
from sr_edge.terminal import Sanitiser, safe_line
from sr_edge.transcript import SpanRecord, Transcript, closed, opened

Voice = Literal["local", "remote", "fallback"]
"""Who wrote: the small model, a remote, or the small model where a remote was wanted and did not write."""


@dataclass(frozen=True, slots=True)
class Block:
    voice: Voice
    part: Part
    span: int | None
    """The span's number; of a fallback, that of the span that brought nothing."""
    text: str
    """As it may be shown. Empty: a span that has not written yet, or never did."""
    record: SpanRecord | None
    """Of the span, without its text; None for local text."""
    note: str = ""
    """Why the span ended, unless all was said that there was to say."""


@dataclass(frozen=True, slots=True)
class Share:
    """Who wrote how much, in local tokens; remotes in the order in which they appeared."""

    local_tokens: int = 0
    remotes: tuple[tuple[str, int], ...] = ()
    num_spans: int = 0


class Blocks:
    """The blocks of the events so far. An event costs the same however many came before it."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._changed: list[int] = []  # for each block the revision in which it, or one before it, changed
        self._tail: list[str] = []  # text of the last block that is not joined to it yet
        self._revision = 0
        self._sanitiser = Sanitiser()  # one for all: two writers could make one sequence
        self._begin("")
        self._num_spans = 0
        self._local_tokens = 0
        self._remote_tokens: dict[str, int] = {}

    @classmethod
    def of(cls, transcript: Transcript) -> Blocks:
        """Of an answer that was stored: the same as of its events, once they are all there."""
        blocks = cls()
        blocks._begin(transcript.opening)
        records = {record.span: record for record in transcript.spans}
        last = {segment.span: n for n, segment in enumerate(transcript.trail)}
        for n, segment in enumerate(transcript.trail):
            if segment.span is not None and (blocks._record is None or blocks._record.span != segment.span):
                blocks._open(replace(records[segment.span], text=""))
            blocks._write(segment.text, segment.span)
            if segment.span is not None and n == last[segment.span]:
                blocks._settle()
        blocks._local_tokens = transcript.local_tokens
        blocks.close()
        return blocks

    def add(self, event: Event) -> None:
        match event:
            case Started():
                self._begin(event.opening)
            case LocalToken():
                self._local_tokens += 1
                self._write(event.text, None)
            case SpanOpened():
                self._open(opened(event))
            case SpanDelta():
                self._write(event.text, event.span)
            case SpanClosed():
                if self._record is not None:
                    self._close(closed(self._record, event))
            case Finished():
                self.close()

    def close(self) -> None:
        """Give out what was held back as the possible beginning of a tag. Nothing may follow."""
        self._push(self._sanitiser.flush(), self._writer)
        for part, text, span in self._splitter.flush():
            self._put(part, text, span)

    # --- reading -------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> Block:
        self._join()
        return self._blocks[index]

    def __iter__(self) -> Iterator[Block]:
        self._join()
        return iter(self._blocks)

    def text(self, part: Part) -> str:
        """All of a part, whoever wrote it."""
        return "".join(block.text for block in self if block.part == part)

    def has(self, part: Part) -> bool:
        """Whether the part has begun: whether there is a span in it, or more than white space."""
        return any(block.part == part and (block.record or block.text.strip()) for block in self)

    @property
    def share(self) -> Share:
        return Share(self._local_tokens, tuple(self._remote_tokens.items()), self._num_spans)

    @property
    def revision(self) -> int:
        """Grows with each change."""
        return self._revision

    def unchanged_since(self, revision: int) -> int:
        """How many blocks, from the first one on, are as they were in that revision."""
        count = len(self._blocks)
        while count and self._changed[count - 1] > revision:
            count -= 1
        return count

    # --- text ----------------------------------------------------------------------------------------

    def _begin(self, opening: str) -> None:
        thinks = is_thinking(opening)
        self._splitter = ReasoningSplitter[int | None](thinks=thinks)
        self._settled: Part | None = "reasoning" if thinks else None  # the part of text that holds no tag
        self._writer: int | None = None
        self._record: SpanRecord | None = None  # of the last span
        self._records: dict[int, SpanRecord] = {}
        self._own: list[int] = []  # its blocks
        self._is_open = False
        self._alone: _Alone | None = None
        self._num_read = 0
        self._may_rethink = not thinks
        self._last = ""  # the end of the text: a tag may have begun

    def _write(self, text: str, span: int | None) -> None:
        if text:
            self._writer = span
            self._push(self._sanitiser.push(text), span)

    def _push(self, text: str, span: int | None) -> None:
        if not text:
            return
        self._num_read += len(text)
        if self._settled == "answer" or (self._settled == "reasoning" and "<" not in text):
            self._put(self._settled, text, span)  # it holds no tag, and none is held back
        else:
            pieces = list(self._splitter.push(text, span))
            for part, piece, origin in pieces:
                self._put(part, piece, origin)
            if pieces and pieces[-1][0] == "answer":
                self._settled = "answer"
                is_all = sum(len(piece) for _, piece, _ in pieces) == self._num_read
                self._may_rethink &= is_all  # else there were tags
                text = "".join(piece for _, piece, _ in pieces)
            else:
                self._settled = "reasoning" if pieces and "<" not in text else None
        if self._settled == "answer" and self._may_rethink:
            self._look_for_tags(text)

    def _look_for_tags(self, text: str) -> None:
        """An end tag alone ends reasoning whose begin tag the template left out."""
        text = self._last + text
        begin, end = text.find(THINK), text.find(END_THINK)
        self._last = text[1 - len(END_THINK) :]
        if begin >= 0 and (end < 0 or begin < end):
            self._may_rethink = False
        elif end >= 0:
            self._rethink()

    def _rethink(self) -> None:
        """The same once more, as reasoning from the first character on."""
        blocks, writer = list(self), self._writer
        counts = (self._num_spans, dict(self._remote_tokens))
        is_open, last = self._is_open, self._record
        self._blocks, self._changed = [], []
        self._begin(THINK)
        seen = set()
        for block in blocks:
            goes_on = block.voice == "remote" and block.record == self._record
            if not goes_on and not (is_open and self._record == last):
                self._settle()
            if block.record is not None and block.span not in seen:
                seen.add(block.span)
                self._open(block.record)
                if block.voice == "fallback":
                    self._settle()
            self._push(block.text, block.span if block.voice == "remote" else None)
        if not is_open:
            self._settle()
        self._writer = writer
        self._num_spans, self._remote_tokens = counts

    def _put(self, part: Part, text: str, span: int | None) -> None:
        if span is not None:
            self._alone = None
            self._append("remote", part, text, self._records[span])
            return
        mine, record = 0, None
        if self._alone is not None:
            record = self._alone.record
            mine = self._alone.take(part, text)
            if mine < len(text):
                self._alone = None
        if mine:
            self._append("fallback", part, text[:mine], record)
        if mine < len(text):
            self._append("local", part, text[mine:], None)

    def _append(self, voice: Voice, part: Part, text: str, record: SpanRecord | None) -> None:
        last = self._blocks[-1] if self._blocks else None
        span = None if record is None else record.span
        if last is None or (last.voice, last.span) != (voice, span):
            if voice == "remote" and record == self._record:
                self._forget_place()
            self._add(voice, part, text, record)
            return
        if last.part != part:
            if last.text or self._tail:
                self._add(voice, part, text, record)
                return
            self._blocks[-1] = replace(last, part=part)  # by now it is known where the span writes
        self._tail.append(text)
        self._touch(len(self._blocks) - 1)

    def _add(self, voice: Voice, part: Part, text: str, record: SpanRecord | None) -> None:
        self._join()
        if voice == "remote" and record == self._record:
            self._own.append(len(self._blocks))
        self._blocks.append(Block(voice, part, None if record is None else record.span, text, record))
        self._changed.append(0)
        self._touch(len(self._blocks) - 1)

    def _forget_place(self) -> None:
        """The span writes after text that came since it was opened (half a character, before the marker)."""
        self._join()
        if len(self._own) != 1 or self._blocks[self._own[0]].text:
            return
        at = self._own.pop()
        del self._blocks[at], self._changed[at]
        if at and at < len(self._blocks):
            before, after = self._blocks[at - 1], self._blocks[at]
            if (before.voice, before.part, before.span) == (after.voice, after.part, after.span):
                self._blocks[at - 1 : at + 1] = [replace(before, text=before.text + after.text)]
                del self._changed[at]
                at -= 1
        self._touch(at)

    def _touch(self, index: int) -> None:
        """Those after it count as changed too: `unchanged_since` looks from the end."""
        self._revision += 1
        for n in range(index, len(self._blocks)):
            self._changed[n] = self._revision

    def _join(self) -> None:
        if self._tail:
            last = self._blocks[-1]
            self._blocks[-1] = replace(last, text=last.text + "".join(self._tail))
            self._tail.clear()

    # --- spans ---------------------------------------------------------------------------------------

    def _open(self, record: SpanRecord) -> None:
        self._record, self._own, self._is_open = record, [], True
        self._records[record.span] = record
        self._num_spans += 1
        self._remote_tokens.setdefault(record.remote or "remote", 0)
        self._add("remote", self._part(), "", record)

    def _settle(self) -> None:
        """Close the span that is open, if its record knows its end."""
        if self._is_open and self._record is not None and self._record.end is not None:
            self._close(self._record)

    def _close(self, record: SpanRecord) -> None:
        self._join()
        self._record, self._is_open = record, False
        self._records[record.span] = record
        self._remote_tokens[record.remote or "remote"] += record.tokens
        has_text = any(self._blocks[n].text for n in self._own)
        note = why_it_ended(record, has_text=has_text)
        is_alone = not has_text and went_on_alone(record.end)
        for n in self._own:
            voice: Voice = "fallback" if is_alone else "remote"
            self._blocks[n] = replace(self._blocks[n], voice=voice, record=record, note=note)
        self._touch(self._own[0])
        if not has_text:
            self._alone = _Alone(record, self._blocks[self._own[0]].part) if is_alone else None

    def _part(self) -> Part:
        """Where text would go now."""
        if self._settled is not None:
            return self._settled
        probe = deepcopy(self._splitter)
        pieces = [*probe.push(".", None), *probe.flush()]
        return pieces[-1][0]


@dataclass(slots=True)
class _Alone:
    """The small model writes what a remote should have: up to a blank line."""

    record: SpanRecord
    part: Part
    _has_text: bool = False
    _is_at_start: bool = True  # of a line

    def take(self, part: Part, text: str) -> int:
        """How many characters still belong to it."""
        if part != self.part:
            return 0
        for n, char in enumerate(text):
            if not char.isspace():
                self._has_text, self._is_at_start = True, False
            elif char == "\n":
                if self._has_text and self._is_at_start:
                    return n
                self._is_at_start = True
        return len(text)


def went_on_alone(end: End | None) -> bool:
    """Whether a span that ended so, without text, was wanted and did not come."""
    return end in DEGRADED_ENDS or end in ("declined", "offline", "budget")


def why_it_ended(record: SpanRecord, *, has_text: bool) -> str:
    """For people, in one line. Empty if the span ended because all was said, or has not ended."""
    name = safe_line(record.remote or "") or "the remote"
    error = safe_line(record.error or "").rstrip(".")
    match record.end:
        case None:
            return ""
        case "handback" | "stop" | "boundary":
            return "" if has_text else f"{name} wrote nothing"
        case "cap":
            return "cut: a span's largest size" if has_text else f"{name} wrote nothing"
        case "budget":
            if has_text:
                return f"cut: {error or 'the limit of the answer'}"
            return error or "no budget left; continued locally"
        case "cancelled":
            return "you stopped it"
        case "declined":
            return f"stayed here: {error or 'you said no'}"
        case "offline":
            return error or "offline; continued locally"
        case "stalled" | "error":
            what = error or f"{name} {'fell silent' if record.end == 'stalled' else 'failed'}"
            return f"broke off: {what}" if has_text else f"{what}; continued locally"
