"""Split decoding: one answer, written by a small local model and, at its request, by a large one.

`SplitDecoder.generate` is one synchronous generator of events. What it needs is described in `roles`.
Nothing here knows about llama.cpp, sockets, terminals or files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from sr_edge.draft import Draft
from sr_edge.errors import ContextFullError, GenerationError, StoppedError
from sr_edge.events import (
    End,
    Event,
    Finished,
    FinishReason,
    LocalToken,
    SpanClosed,
    SpanDelta,
    SpanOpened,
    Started,
    Trigger,
)
from sr_edge.markers import MarkerFilter
from sr_edge.past import Past
from sr_edge.reading import Read, SpanReader, common_length
from sr_edge.roles import (
    NO_BIAS,
    Fault,
    First,
    Gate,
    Grant,
    Limits,
    LocalModel,
    Message,
    Outcome,
    Policy,
    Progress,
    RemoteModel,
    Schedule,
    SpanRequest,
    Steering,
)
from sr_edge.scanner import Token, scanner_for

_ASKED: frozenset[Trigger] = frozenset({"marker", "user"})  # the small model takes the pen back by itself

_FULL = "the context is full: ask something shorter, or use a model with a larger context"
_PREFILL_CHUNK = 256  # prompt tokens between two looks at `cancelled`
_POLL = 0.02  # seconds between two looks at `cancelled` while the remote is silent
_RESERVE = 16  # context kept free for the closing marker and tokens that are cut anew
_GRACE = 0.05  # seconds that the remote has left once the small model can write no more without it
_PATIENCE = 4.0  # seconds without a word, from which on that is held against the remote
_GATHER = 0.5  # seconds that text waits, at most, for enough to be read at once
_PROVEN = 8  # tokens of a span from which on the remote is trusted to go on, and the draft is dropped
_PROVEN_SECONDS = 1.0  # or so long after its first text
_MUCH = 200  # characters that arrive at once: to read them takes longer than a look


def _never() -> bool:
    return False


def _untold(progress: Progress) -> None:
    pass


def _straight() -> Steering:
    return Steering()


class SplitDecoder:
    """Writes answers with a local model and, when it asks, a remote one."""

    def __init__(
        self,
        local: LocalModel,
        remote: RemoteModel | None = None,
        *,
        gate: Gate | None = None,
        limits: Limits = Limits(),
        policy: Policy = "auto",
        hedge: bool = False,
        steer: Callable[[], Steering] = _straight,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        gate: asked before each span; None lets every span leave.
        steer: looked at before each token, and while a span is read.
        hedge: whether the small model writes on, on a branch, until the remote's first text is there.
        clock: seconds, monotonic.
        """
        self._local = local
        self._remote = remote
        self._gate = gate
        self._limits = limits
        self._policy: Policy = policy
        self._hedge = hedge
        self._steer = steer
        self._clock = clock

    def generate(
        self,
        messages: Sequence[Message],
        *,
        past: Sequence[Event] = (),
        first: First | None = None,
        cancelled: Callable[[], bool] = _never,
        schedule: Schedule | None = None,
        progress: Callable[[Progress], None] = _untold,
    ) -> Iterator[Event]:
        """Answer the conversation; the ids that its prompt shares with the cache are not read again.

        Args:
            past: events of an earlier answer by the same small model, as `past.taken_over` gives them. They
                come again, after `Started`; then the answer goes on. A span that was cut is closed first.
                If the user stops before all that is read again, the cache holds the beginning of it.
            first: who writes on there. None leaves it to the small model.
            cancelled: looked at between tokens and while waiting; the answer so far stays valid.
            schedule: replaces the small model's own decision when to ask.
            progress: hears of work that no event tells of, while it is done.
        Raises:
            ContextFullError: the prompt does not fit; before any event.
            ValueError: `past` is no part of an answer; before any event.
        """
        return _Answer(
            self._local,
            self._remote,
            self._gate,
            self._limits,
            self._policy,
            self._hedge,
            self._steer,
            self._clock,
            tuple(messages),
            tuple(past),
            cancelled,
            progress,
        ).events(schedule, first)


class _Answer:
    """One answer in the making: the only owner of its counters and, while it lasts, of the cache."""

    def __init__(
        self,
        local: LocalModel,
        remote: RemoteModel | None,
        gate: Gate | None,
        limits: Limits,
        policy: Policy,
        hedge: bool,
        steer: Callable[[], Steering],
        clock: Callable[[], float],
        messages: tuple[Message, ...],
        past: tuple[Event, ...],
        cancelled: Callable[[], bool],
        progress: Callable[[Progress], None],
    ) -> None:
        self._local = local
        self._remote = remote
        self._gate = gate
        self._limits = limits
        self._policy = policy
        self._hedge = hedge
        self._clock = clock
        self._messages = messages
        self._cancelled = cancelled
        self._progress = progress
        self._past_events = past
        self._past = Past.of(past)
        self._began = clock()
        self._prompt = local.render(messages)
        self._prompt_tokens = len(self._prompt.ids)
        self._rest_of_cut = self._ids_after_cut()
        self._text: list[str] = [self._past.text]
        self._local_tokens = self._past.local_tokens
        self._remote_tokens = self._past.remote_tokens
        self._spans = self._past.spans
        self._drafted = b""  # what the last span's draft wrote, if that was taken; it may end in a character
        self._read_at = 0.0  # when the prompt was read
        self._span_seconds = self._past.span_seconds + self._past.cut_seconds
        self._steer = steer
        self._reason: FinishReason | None = None
        self._error: str | None = None

    def events(self, schedule: Schedule | None, first: First | None) -> Iterator[Event]:
        reused = self._read_prompt()
        reading = self._now()
        yield Started(
            prompt_ids=self._prompt.ids if self._past_events else tuple(self._local.ids),
            model=self._local.name,
            big=self._remote.name if self._remote else None,
            reused=reused,
            opening=self._prompt.opening,
            at=min(reading, self._past.began) if self._past_events else reading,
        )
        self._read_at = reading + self._past.began
        self._began -= self._past.ended  # its time goes on from there
        yield from self._past_events
        if self._past.cut is not None:
            yield self._close_past(self._past.cut)
        if self._policy == "remote" and first != "local":
            yield from self._remote_answer()
        else:
            yield from self._local_answer(schedule, first)
        seconds = self._now()
        yield Finished(
            reason=self._reason or "error",
            prompt_tokens=self._prompt_tokens,
            local_tokens=self._local_tokens,
            remote_tokens=self._remote_tokens,
            seconds=seconds,
            local_seconds=max(0.0, seconds - self._read_at - self._span_seconds),
            error=self._error,
            at=seconds,
        )

    def _read_prompt(self) -> int:
        """Bring the cache to where the answer begins or goes on, or to where the user stopped it.

        Returns how much of the prompt was there.
        """
        ids = self._prompt.ids + self._past.ids + self._rest_of_cut
        context = len(self._local.ids) + self._local.room
        if len(ids) + _RESERVE > context:
            what = "the question and the answer so far are" if self._past_events else "the question is"
            raise ContextFullError(
                f"{what} {len(ids)} tokens and the context holds {context}: ask something shorter, "
                "or use a model with a larger context"
            )
        reused = common_length(self._local.ids, ids)
        self._local.rewind(reused)
        try:
            for at in range(reused, len(ids), _PREFILL_CHUNK):
                if self._cancelled():
                    break
                self._progress(Progress("reading", at - reused, len(ids) - reused))
                self._local.feed(ids[at : at + _PREFILL_CHUNK])
        except StoppedError:
            pass  # `cancelled` says so too
        return min(reused, self._prompt_tokens)

    def _ids_after_cut(self) -> tuple[int, ...]:
        """What the cache still lacks of a span that an earlier answer was in when it broke off."""
        opened, markers = self._past.cut, self._local.markers
        if opened is None or not (self._past.cut_text or self._past.cut_is_marked):
            return ()
        text_ids = tuple(self._local.tokenize(self._past.cut_text))
        if markers is None or opened.trigger not in _ASKED:
            return text_ids
        return (markers.open_ids if opened.trigger == "user" else ()) + text_ids + markers.close_ids

    def _close_past(self, opened: SpanOpened) -> SpanClosed:
        """End that span; what it had said is kept."""
        tokens = len(self._local.tokenize(self._past.cut_text))
        self._remote_tokens += tokens
        return SpanClosed(
            span=opened.span,
            ids=self._rest_of_cut,
            end="cancelled",
            tokens=tokens,
            ttft=self._past.cut_ttft,
            seconds=self._past.cut_seconds,
            error="the program ended here",
            at=self._now(),
        )

    def _local_answer(self, schedule: Schedule | None, first: First | None) -> Iterator[Event]:
        markers = self._local.markers
        is_token = markers is not None and markers.form == "token"
        may_ask = self._policy == "auto" and self._remote is not None and schedule is None
        scanner = scanner_for(markers)
        scanner.resume(b"".join(map(self._local.piece, self._past.tail)))
        if self._past.ids and self._local.is_end(self._past.ids[-1]):
            self._reason = "stop"
        banned: frozenset[int] = frozenset()  # in the next step
        is_settled = first is not None  # who writes here: no marker asks again
        if is_settled and markers is not None:
            banned = frozenset(markers.open_ids[:1])
        settled_ids = banned
        may_open = is_scheduled = schedule is not None and self._policy == "auto" and self._remote is not None
        try:
            is_wanted = first == "remote" and self._remote is not None and self._reason is None
            if is_wanted and self._budget() >= 1 and not self._cancelled():
                went_on = yield from self._span("user")
                if went_on:
                    scanner.resume(self._drafted)
                    banned, is_settled = frozenset(), False
            while self._reason is None:
                if self._cancelled():
                    self._reason = "cancelled"
                elif self._budget() < 1:
                    self._reason = "length"
                elif self._local.room < 1:
                    self._reason, self._error = "length", _FULL
                elif may_open and schedule and (size := schedule(self._local_tokens + self._remote_tokens)):
                    for token in scanner.flush():
                        yield self._wrote(token)
                    may_open = yield from self._span("random", max_tokens=size)
                    scanner.restart()
                else:
                    steering = self._steer()
                    asks = may_ask and steering.asks
                    bias: Mapping[int, float] = NO_BIAS
                    if markers is not None and is_token:
                        banned |= frozenset(
                            markers.close_ids if asks else markers.open_ids + markers.close_ids
                        )
                        if asks and steering.bias:
                            bias = {markers.open_ids[0]: steering.bias}
                    sampled = self._local.sample(banned, bias)
                    banned = frozenset()
                    may_open = is_scheduled  # a span that brought nothing is not tried twice in one place
                    scan = scanner.push(sampled.id, sampled.logprob, self._local.piece(sampled.id))
                    for token in scan.released if asks else scan.released + scan.opening:
                        is_settled = False
                        yield self._wrote(token)
                    if asks and scan.opening and is_settled:  # spelled as text, in a way that wasn't banned
                        self._local.rewind(len(self._local.ids) - len(scan.opening))
                        settled_ids |= {scan.opening[0].id}
                        banned = settled_ids
                    elif asks and scan.opening:
                        went_on = yield from self._span("marker", opening=scan.opening)
                        if went_on:
                            scanner.resume(self._drafted)
                        else:
                            banned = frozenset({scan.opening[0].id})
                    elif self._local.is_end(sampled.id):
                        self._reason = "stop"
        except GenerationError as error:
            self._fail(error)
        held = scanner.flush()
        if self._reason == "cancelled":  # nobody saw it, and it may yet become a marker
            self._local.rewind(len(self._local.ids) - len(held))
            held = ()
        for token in held:
            yield self._wrote(token)

    def _remote_answer(self) -> Iterator[Event]:
        if self._remote is None:
            self._reason, self._error = "error", "no large model to write the answer: name one with --big"
            return
        if self._budget() < 1:  # an earlier answer had them all
            self._reason = "length"
            return
        yield from self._span("policy", max_tokens=self._limits.max_tokens)

    def _span(
        self, trigger: Trigger, *, opening: tuple[Token, ...] = (), max_tokens: int | None = None
    ) -> Generator[Event, None, bool]:
        """One span, whatever becomes of it. Returns whether anything was written meanwhile, by either."""
        assert self._remote is not None
        self._spans += 1
        self._drafted = b""
        before = len(self._local.ids) - len(opening)  # the cache without the marker
        answer = "".join(self._text) + "".join(token.text for token in opening)
        wanted = max_tokens or self._limits.max_span_tokens
        request = SpanRequest(
            span=self._spans,
            sent_tokens=before,
            local_tokens=self._local_tokens,
            remote_tokens=self._remote_tokens,
            max_tokens=min(wanted, self._budget() - len(opening), self._local.room - _RESERVE),
            taken_over=self._past.spans,
            answer=answer,
        )
        span = _Span(request, self._clock, self._began)
        limit = self._admit(span)
        self._span_seconds += span.was_admitted()
        sent = self._prompt.text + answer if span.end is None else ""
        yield SpanOpened(
            span=span.number,
            trigger=trigger,
            p_open=math.exp(sum(token.logprob for token in opening)) if opening else None,
            remote=self._remote.name,
            sent_tokens=before if sent else 0,
            sent_bytes=len(sent.encode()),
            at=self._now(),
        )
        if span.end is None and trigger == "user":
            self._feed_opening(span)
        if span.end is None:
            is_hedged = self._hedge and trigger == "marker"
            if is_hedged:  # the draft needs room too
                limit = min(limit, max(1, (self._local.room - _RESERVE) // 2))
            reader = SpanReader(
                self._local,
                self._local.markers,
                max_tokens=limit,
                soft_tokens=self._limits.soft_span_tokens if trigger in _ASKED else limit,
                handback=trigger in _ASKED,
                places=self._limits.places,
                batch_tokens=self._local.batch_tokens,
            )
            with ExitStack() as branches:
                if is_hedged:
                    self._begin_draft(span, opening, before, limit, branches)
                yield from self._write_span(span, reader, opening, answer, limit)
                span.is_cut_short, span.is_marked_closed = limit < wanted, reader.is_closed
                yield from self._close_span(span, opening, before, trigger)
        else:
            yield from self._close_span(span, opening, before, trigger)
        return span.shown or span.is_draft_taken

    def _feed_opening(self, span: _Span) -> None:
        """For the small model it is as if it had asked itself."""
        try:
            self._local.feed(self._local.markers.open_ids if self._local.markers else ())
        except GenerationError as error:
            self._fail_in(span, error)

    def _fail_in(self, span: _Span, error: GenerationError) -> None:
        """The local model could not go on in a span: that is not the remote's fault."""
        span.end = "cancelled"
        span.error = None if isinstance(error, StoppedError) else str(error)
        self._fail(error)

    def _admit(self, span: _Span) -> int:
        """How many tokens the span may have; if none, why is in `span.end`."""
        request = span.request
        if self._cancelled():
            span.end = "cancelled"
        elif request.max_tokens < 1:
            span.end, span.error = "budget", "no tokens left for a span"
        elif self._gate is not None:
            decision = self._gate.admit(request)
            if self._cancelled():  # while the user was asked
                span.end = "cancelled"
            elif isinstance(decision, Grant):
                if decision.max_tokens < request.max_tokens:
                    span.why_short = "the budget allows no more"
                return min(decision.max_tokens, request.max_tokens)
            else:
                span.end, span.error = decision.end, decision.reason
        return request.max_tokens

    def _begin_draft(
        self, span: _Span, opening: tuple[Token, ...], before: int, limit: int, branches: ExitStack
    ) -> None:
        """Let the small model write on, where both the draft and the span have room."""
        room = min(self._local.room - limit - _RESERVE, self._budget())
        if room >= 1:
            branch = branches.enter_context(self._local.fork(before, greedy=False))
            draft = Draft(branch, self._local.markers, max_tokens=room, banned=(opening[0].id,))
            span.hedge = _Hedge(branch, draft)

    def _write_span(
        self, span: _Span, reader: SpanReader, opening: tuple[Token, ...], answer: str, limit: int
    ) -> Iterator[Event]:
        """Read the remote's text into the cache as it arrives, until somebody ends the span."""
        assert self._remote is not None
        if self._cancelled():  # whoever saw what would be sent may still say no
            span.end = "cancelled"
            return
        unmark = MarkerFilter()
        stream = self._remote.stream(self._messages, answer, limit)
        is_over = False
        try:
            while span.end is None:
                if self._cancelled():
                    span.end, is_over = "cancelled", True
                elif not self._steer().asks:  # the remote may be asked again: not any more
                    span.end, span.error, is_over = "cancelled", "you want to stay local", True
                elif (text := stream.read(0.0 if span.is_drafting else _POLL)) is None:
                    is_over = True
                    if self._cancelled():  # a model on this machine was stopped in the middle of a step
                        span.end = "cancelled"
                    else:
                        span.end, span.error = stream.outcome.end, stream.outcome.error
                else:
                    if text:
                        span.text_arrived(text, is_first=not reader.is_waiting)
                    if len(text) > _MUCH:
                        self._progress(Progress("catching up", 0, len(text)))
                    if text or reader.is_waiting:
                        is_due = self._clock() >= span.waits_since + _GATHER
                        read = reader.push(unmark.push(text), due=is_due)
                    else:
                        read = Read()
                    yield from self._show(span, reader, read, opening)
                    if not text and span.hedge is not None:
                        self._draft(span, span.hedge)
            if is_over:  # nothing follows what is held back
                self._progress(Progress("catching up", 0, 0))
                yield from self._show(span, reader, reader.push(unmark.flush(), final=True), opening)
        except GenerationError as error:
            self._fail_in(span, error)
        finally:
            stream.close()
        span.outcome = stream.outcome
        span.tokens, span.p_close = reader.tokens, reader.p_close

    def _draft(self, span: _Span, hedge: _Hedge) -> None:
        """One more token of the draft; once there can't be one, the remote has little time left to begin."""
        if hedge.done_at is None and not hedge.draft.step():
            hedge.done_at = self._clock()
        if hedge.done_at is not None and not span.texts and self._clock() >= hedge.done_at + _GRACE:
            span.end = "stalled"
            span.error = "the small model had written all that it could before the large one began"

    def _show(
        self, span: _Span, reader: SpanReader, read: Read, opening: tuple[Token, ...]
    ) -> Iterator[Event]:
        if read.end is not None and span.end in (None, "stop", "cap"):  # a failure stays one
            span.end, span.error = read.end, None
        span.unshown += read.text
        if not span.unshown or self._may_die(span, reader):
            return
        if not span.shown:
            span.hedge = None
            for token in opening:
                yield self._wrote(token)
        span.shown = True
        span.text_accepted()
        text, span.unshown = span.unshown, ""
        self._text.append(text)
        yield SpanDelta(span=span.number, text=text, at=self._now())

    def _may_die(self, span: _Span, reader: SpanReader) -> bool:
        """Whether the draft goes on beside the span: the remote has not said much yet, or said no more."""
        if span.hedge is None or span.end not in (None, "stalled", "error"):
            return False
        is_young = reader.tokens < _PROVEN and self._clock() < span.first_at + _PROVEN_SECONDS
        return span.end is not None or (is_young and span.hedge.done_at is None)

    def _close_span(
        self, span: _Span, opening: tuple[Token, ...], before: int, trigger: Trigger
    ) -> Iterator[Event]:
        assert span.end is not None
        if span.end == "cap" and span.is_cut_short:
            span.end = "budget"
        if span.shown:
            start = before + len(opening)
            is_open = trigger in _ASKED and not span.is_marked_closed
            if is_open and self._local.markers is not None and self._error is None:
                try:
                    self._local.feed(self._local.markers.close_ids)
                except GenerationError as error:
                    self._fail(error)
            ids = tuple(self._local.ids[start:])
            self._remote_tokens += span.tokens
        else:
            ids = ()
            self._local.rewind(before)
        closed = span.closed(ids, self._report(span), self._now())
        if trigger not in _ASKED and self._reason is None:
            self._end_by_remote(span, whole=trigger == "policy")
        yield closed
        if span.hedge is not None and not span.shown and span.end != "cancelled":
            yield from self._take_draft(span, span.hedge)
        if not span.is_draft_taken:
            self._span_seconds += closed.seconds + (closed.resume or 0.0)

    def _report(self, span: _Span) -> float | None:
        """Tell the gate how an admitted span ended. Returns its cost, if that is known."""
        if self._gate is None or span.outcome is None or span.end is None:
            return None
        tokens = span.outcome.completion_tokens
        if tokens is None:
            tokens = len(self._local.tokenize("".join(span.texts)))
        outcome = span.outcome
        if span.end == "stalled" and outcome.end != "stalled":  # it is we who did not wait
            fault: Fault = "unreachable" if self._clock() - span.asked >= _PATIENCE else "request"
            outcome = replace(outcome, end="stalled", error=span.error, fault=fault)
        return self._gate.report(span.request, span.end, outcome, tokens)

    def _take_draft(self, span: _Span, hedge: _Hedge) -> Iterator[Event]:
        """The large model did not begin in time: the draft is the answer from here on."""
        tokens = hedge.draft.take()
        if not tokens:
            return
        span.is_draft_taken = True
        self._drafted = b"".join(self._local.piece(token.id) for token in tokens)
        self._local.adopt(hedge.branch)
        for token in tokens:
            yield self._wrote(token)
        if hedge.draft.is_done:
            self._reason = "stop"

    def _end_by_remote(self, span: _Span, *, whole: bool) -> None:
        if span.end == "stop":
            self._reason = "stop"
        elif span.end == "cancelled":
            self._reason = "cancelled"
        elif whole and span.shown and span.end in ("cap", "budget", "boundary"):
            self._reason = "length"
            self._error = span.why_short if span.end == "budget" else None
        elif whole:
            self._reason, self._error = "error", span.error

    def _wrote(self, token: Token) -> LocalToken:
        self._local_tokens += 1
        self._text.append(token.text)
        return LocalToken(id=token.id, text=token.text, logprob=token.logprob, at=self._now())

    def _budget(self) -> int:
        """Tokens that the answer may still have."""
        return self._limits.max_tokens - self._local_tokens - self._remote_tokens

    def _fail(self, error: GenerationError) -> None:
        if isinstance(error, StoppedError):
            self._reason = "cancelled"
        else:
            self._reason, self._error = "error", str(error)

    def _now(self) -> float:
        return self._clock() - self._began


@dataclass(slots=True)
class _Hedge:
    """A draft and the branch that it is written on."""

    branch: LocalModel
    draft: Draft
    done_at: float | None = None
    """When it had nothing more to write, or no room, on the decoder's clock."""


class _Span:
    """One span in the making."""

    def __init__(self, request: SpanRequest, clock: Callable[[], float], began: float) -> None:
        self.request = request
        self.number = request.span
        self.hedge: _Hedge | None = None
        self.is_draft_taken = False
        self.is_cut_short = False  # it may have fewer tokens than a span has
        self.is_marked_closed = False  # its closing marker was read along with its text
        self.waits_since = 0.0  # when the first text came that was not read yet
        self.unshown = ""  # what was read while a draft still goes on
        self.why_short = _FULL
        self.texts: list[str] = []  # what the remote wrote, read or not
        self.end: End | None = None
        self.error: str | None = None
        self.outcome: Outcome | None = None
        self.tokens = 0
        self.p_close: float | None = None
        self.shown = False
        self._clock = clock
        self.asked = clock()
        self._first: float | None = None
        self._arrived = self.asked
        self._accepted: float | None = None

    @property
    def is_drafting(self) -> bool:
        """Nothing is shown yet, and the small model has something to do meanwhile."""
        return self.hedge is not None and self.hedge.done_at is None

    def was_admitted(self) -> float:
        """Time counts from here on. Returns the seconds that it took: a user may have been asked."""
        before, self.asked = self.asked, self._clock()
        self._arrived = self.asked
        return self.asked - before

    @property
    def first_at(self) -> float:
        """When its first text came, on the decoder's clock; 0 before."""
        return self._first or 0.0

    def text_arrived(self, text: str, *, is_first: bool) -> None:
        """Args:
        is_first: nothing waited to be read.
        """
        self.texts.append(text)
        self._arrived = self._clock()
        if is_first:
            self.waits_since = self._arrived
        if self._first is None:
            self._first = self._arrived

    def text_accepted(self) -> None:
        """The text that arrived last is, at least in part, in the answer."""
        self._accepted = self._arrived

    def closed(self, ids: tuple[int, ...], cost: float | None, at: float) -> SpanClosed:
        assert self.end is not None
        now = self._clock()
        outcome = self.outcome
        return SpanClosed(
            span=self.number,
            ids=ids,
            end=self.end,
            tokens=self.tokens if self.shown else 0,
            p_close=self.p_close,
            remote_prompt_tokens=outcome.prompt_tokens if outcome else None,
            remote_completion_tokens=outcome.completion_tokens if outcome else None,
            cost=cost,
            ttft=None if self._first is None else self._first - self.asked,
            seconds=(self._accepted if self._accepted is not None else now) - self.asked,
            resume=None if self._accepted is None else now - self._accepted,
            error=self.error,
            at=at,
        )
