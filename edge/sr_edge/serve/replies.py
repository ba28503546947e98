"""What is answered over HTTP: what is heard of a job, as chunks or as a whole, in OpenAI's shapes. Pure.

What OpenAI has no field for stands under `sr_edge`, which its clients ignore: who wrote a chunk, when spans
open and close, and, for those who ask, our own events. A thought stands in `reasoning_content`, where
DeepSeek's servers and their followers have it.

This runs once a token, while the next one is computed.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from sr_edge.errors import ContextFullError, EdgeError, ModelError, UsageError
from sr_edge.events import (
    VERSION,
    Event,
    Finished,
    LocalToken,
    SpanClosed,
    SpanDelta,
    SpanOpened,
    Started,
)
from sr_edge.extract import Part, ReasoningSplitter, is_thinking
from sr_edge.serve.jobs import Busy, Failed, Heard, Over
from sr_edge.serve.requests import BadRequest, ChatRequest, CompletionRequest, Wanted

Json: TypeAlias = dict[str, Any]

DONE = b"data: [DONE]\n\n"
"""What a stream ends with; one that broke off does not."""

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_LEAST_LOGPROB = -9999.0  # OpenAI's word for hardly possible; JSON has no infinity
_LINE_ENDS = (("\u0085", "\\u0085"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))


def encoded(value: Json) -> bytes:
    """As JSON, without white space and on one line, whoever counts the lines."""
    text = _JSON.encode(value)
    if not text.isascii():  # clients that split with str.splitlines() see more ends of lines than SSE has
        for end, escape in _LINE_ENDS:
            text = text.replace(end, escape)
    return text.encode(errors="replace")  # what a remote wrote may hold half a surrogate pair


def sse(chunk: Json) -> bytes:
    """A chunk as a server-sent event."""
    return b"data: " + encoded(chunk) + b"\n\n"


# --- what goes wrong ----------------------------------------------------------------------------------------


def error_object(
    message: str, type: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> Json:
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class Problem:
    """Why there is no answer, or no more of it."""

    status: int
    """For a reply of which nothing has left yet."""
    body: Json
    """See `error_object`."""
    retry_after: int | None = None
    """Seconds."""


def problem_of(error: EdgeError) -> Problem:
    match error:
        case BadRequest():
            return Problem(error.status, error_object(error.message, param=error.param, code=error.code))
        case Busy():
            body = error_object(str(error), "rate_limit_error", code="rate_limit_exceeded")
            return Problem(429, body, error.retry_after)
        case ContextFullError():
            return Problem(400, error_object(str(error), param="messages", code="context_length_exceeded"))
        case UsageError():
            return Problem(400, error_object(str(error), code="invalid_value"))
        case ModelError():  # it is open, so it is its template that can't take these messages
            return Problem(400, error_object(str(error), param="messages", code="invalid_value"))
        case _:
            return Problem(500, error_object(str(error), "server_error"))


def _unavailable(message: str) -> Problem:
    return Problem(503, error_object(message, "server_error", code="unavailable"), 1)


# --- stops --------------------------------------------------------------------------------------------------

_Origin: TypeAlias = tuple[int, int | None]
"""Of a text: the number of what it came with, and the span that it belongs to."""

_CONTINUED: _Origin = (0, None)


class StopFinder:
    """Lets a text through up to the stop that is complete first, however the text is cut.

    What may yet become a stop is held back. Of several that are complete at one character the longest counts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _failures(stop)) for stop in stops]
        self._reached = [0] * len(stops)  # by stop: how much of it the text so far ends in
        self._held: deque[tuple[str, _Origin]] = deque()
        self._held_chars = 0
        self.is_found = False

    def push(self, text: str, origin: _Origin) -> list[tuple[str, _Origin]]:
        """What is certain to be no part of a stop, by now."""
        if not self._stops:
            return [(text, origin)]
        if self.is_found:
            return []
        for at, character in enumerate(text, 1):
            longest = 0
            for n, (stop, failures) in enumerate(self._stops):
                reached = self._reached[n]
                while reached and stop[reached] != character:
                    reached = failures[reached - 1]
                if stop[reached] == character:
                    reached += 1
                if reached == len(stop):
                    longest = max(longest, reached)
                    reached = 0  # nothing is looked for any more
                self._reached[n] = reached
            if longest:
                self.is_found = True
                self._hold(text[:at], origin)
                released = self._release(self._held_chars - longest)
                self._held.clear()
                return released
        self._hold(text, origin)
        return self._release(self._held_chars - max(self._reached))

    def flush(self) -> list[tuple[str, _Origin]]:
        """What was held back, now that nothing follows."""
        return self._release(self._held_chars)

    def _hold(self, text: str, origin: _Origin) -> None:
        self._held.append((text, origin))
        self._held_chars += len(text)

    def _release(self, n: int) -> list[tuple[str, _Origin]]:
        self._held_chars -= n
        released = []
        while n > 0 and self._held:
            text, origin = self._held.popleft()
            if len(text) > n:
                self._held.appendleft((text[n:], origin))
                text = text[:n]
            n -= len(text)
            released.append((text, origin))
        return released


def _failures(stop: str) -> list[int]:
    """By place: the length of the longest beginning of `stop` that also ends there (Knuth, Morris, Pratt)."""
    failures = [0] * len(stop)
    reached = 0
    for at in range(1, len(stop)):
        while reached and stop[reached] != stop[at]:
            reached = failures[reached - 1]
        if stop[reached] == stop[at]:
            reached += 1
        failures[at] = reached
    return failures


# --- one choice ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Bit:
    """What makes one chunk."""

    text: str
    part: Part
    span: int | None
    mark: Json | None = None
    """Of a span that opens or closes here."""
    entries: list[Json] = field(default_factory=list)
    """Logprobs."""


FinishReason = Literal["stop", "length"]


class _Choice:
    """Follows one answer: what of it is to be told, in order."""

    def __init__(self, wanted: Wanted, *, continues: str, splits: bool) -> None:
        """Args:
        splits: whether a thought is told apart.
        """
        self._wants_logprobs = wanted.logprobs
        self._wants_events = wanted.events
        self._splits = splits
        self._splitter = ReasoningSplitter[_Origin](thinks=False)
        self._stops = StopFinder(wanted.stops)
        self._skip = len(continues)  # characters that the client has already
        self._number = 1
        self._entries: deque[tuple[int, Json]] = deque()
        self._remotes: dict[int, str | None] = {}
        self._has_answered = not splits  # a thought is over, or there was none
        self._has_thought = False
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._closed: list[SpanClosed] = []
        self._continued_tokens = 0
        self._thought_tokens = 0
        self._events: list[Json] = []  # that were not told yet
        self.has_begun = False
        """There is an answer: its first event after `Started` is no failure."""
        self.is_over = False
        self.finish_reason: FinishReason | None = None
        self.problem: Problem | None = None

    @property
    def is_stopped(self) -> bool:
        return self._stops.is_found

    def take_events(self) -> list[Json]:
        """Those that were not taken yet."""
        events, self._events = self._events, []
        return events

    def push(self, heard: Heard) -> list[_Bit]:
        if isinstance(heard, Over):
            return self._end(heard)
        if isinstance(heard, Failed):
            self.problem = self.problem or problem_of(heard.error)
            return []
        if self._wants_events:
            self._events.append(_as_object(heard))
        bits: list[_Bit] = []
        match heard:
            case LocalToken():
                bits = self._local_token(heard)
            case SpanDelta():
                bits = self._texts(self._split(heard.text, (self._number, heard.span)))
            case SpanOpened():
                self._remotes[heard.span] = heard.remote
                bits = [_Bit("", "answer", heard.span, {"opened": _opened(heard)})]
            case SpanClosed():
                self._closed.append(heard)
                self._count_thought(heard.tokens)
                bits = [_Bit("", "answer", heard.span, {"closed": _closed(heard, self._remotes)})]
            case Started():
                self._started = heard
                if self._splits:
                    self._splitter = ReasoningSplitter(thinks=is_thinking(heard.opening))
            case Finished():
                self._finished = heard
                self._judge(heard)
        self.has_begun = self.has_begun or not (isinstance(heard, Started) or self.problem)
        return bits

    def _local_token(self, token: LocalToken) -> list[_Bit]:
        text, bits = token.text, []
        if self._skip:
            self._continued_tokens += 1
            again, text = text[: self._skip], text[self._skip :]
            self._skip -= len(again)
            bits = self._texts(self._split(again, _CONTINUED))
            if not text:
                return bits
        if self._wants_logprobs:
            self._number += 1
            self._entries.append((self._number, _logprob(token)))
        if text:
            bits += self._texts(self._split(text, (self._number, None)))
        self._count_thought(1)
        return bits

    def _split(self, text: str, origin: _Origin) -> Iterable[tuple[Part, str, _Origin]]:
        return self._splitter.push(text, origin) if self._splits else (("answer", text, origin),)

    def _texts(self, pieces: Iterable[tuple[Part, str, _Origin]]) -> list[_Bit]:
        """What of them is to be told, without what the client has already."""
        bits: list[_Bit] = []
        for part, text, origin in pieces:
            if part == "reasoning":
                self._has_thought = True
                self._tell(bits, part, text, origin)
                continue
            self._has_answered = True
            if origin == _CONTINUED:  # nor is a stop looked for there
                continue
            for released, source in self._stops.push(text, origin):
                self._tell(bits, part, released, source)
        return bits

    def _tell(self, bits: list[_Bit], part: Part, text: str, origin: _Origin) -> None:
        if origin == _CONTINUED or not text:
            return
        number, span = origin
        if not bits or (bits[-1].part, bits[-1].span) != (part, span):
            bits.append(_Bit(text, part, span))
        else:
            bits[-1].text += text
        while self._entries and self._entries[0][0] <= number:
            bits[-1].entries.append(self._entries.popleft()[1])

    def _count_thought(self, tokens: int) -> None:
        """A span counts where it ends."""
        if not self._has_answered:
            self._thought_tokens += tokens

    def _judge(self, finished: Finished) -> None:
        match finished.reason:
            case "refused":
                message = finished.error or "this cannot be answered here"
                self.problem = Problem(400, error_object(message, param="messages", code="refused"))
            case "error" if not self.is_stopped:
                message = finished.error or "the answer broke off"
                self.problem = Problem(500, error_object(message, "server_error"))
            case "stop" | "length" as reason:
                self.finish_reason = reason

    def _end(self, over: Over) -> list[_Bit]:
        """What was held back is told now."""
        self.is_over = True
        if self.problem is not None:
            return []
        bits = self._texts(self._splitter.flush()) if self._splits else []
        for text, origin in self._stops.flush():
            self._tell(bits, "answer", text, origin)
        if self.is_stopped:
            self.finish_reason = "stop"
        else:
            if self._entries:
                bits.append(_Bit("", "answer", None, None, [entry for _, entry in self._entries]))
            if self.finish_reason is None and over.is_overdue and self._finished is not None:
                self.finish_reason = "length"
        self._entries.clear()
        if self.finish_reason is None:  # nobody who still listens has cancelled it
            was_late = over.is_overdue
            self.problem = _unavailable(
                "there was no time for the answer: try again later, or ask for less"
                if was_late
                else "the answer was cancelled: the server is closing; ask again once it is back"
            )
        return bits

    @property
    def usage(self) -> _Usage:
        finished, started = self._finished, self._started
        assert started is not None, "no answer has begun"
        assert finished is not None, "no answer has ended"
        costs = [span.cost for span in self._closed if span.cost is not None]
        return _Usage(
            prompt_tokens=finished.prompt_tokens + self._continued_tokens,
            cached_tokens=started.reused,
            local_tokens=max(0, finished.local_tokens - self._continued_tokens),
            remote_tokens=finished.remote_tokens,
            reasoning_tokens=self._thought_tokens if self._has_thought else 0,
            spans=len(self._closed),
            cost=sum(costs) if costs else None,
            seconds=finished.seconds,
        )


def _as_object(event: Event) -> Json:
    """What `events.to_json` writes."""
    return {"v": VERSION, "event": event.kind, **{name: getattr(event, name) for name in event.__slots__}}


def _opened(event: SpanOpened) -> Json:
    return {
        "remote": event.remote,
        "trigger": event.trigger,
        "sent_tokens": event.sent_tokens,
        "sent_bytes": event.sent_bytes,
    }


def _closed(event: SpanClosed, remotes: dict[int, str | None]) -> Json:
    return {
        "end": event.end,
        "tokens": event.tokens,
        "seconds": event.seconds,
        "ttft": event.ttft,
        "cost": event.cost,
        "error": event.error,
        "remote": remotes.get(event.span),
    }


def _logprob(token: LocalToken) -> Json:
    return {
        "token": token.text,
        "logprob": max(_LEAST_LOGPROB, token.logprob),
        "bytes": list(token.text.encode(errors="replace")),
        "top_logprobs": [],
    }


def _origin(span: int | None) -> Json:
    return {"span": span, "origin": "local" if span is None else "remote"}


@dataclass(frozen=True, slots=True)
class _Usage:
    prompt_tokens: int
    cached_tokens: int
    local_tokens: int
    remote_tokens: int
    reasoning_tokens: int
    spans: int
    cost: float | None
    seconds: float

    def together(self, other: _Usage) -> _Usage:
        """Of two choices of one reply."""
        costs = [cost for cost in (self.cost, other.cost) if cost is not None]
        return _Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.local_tokens + other.local_tokens,
            self.remote_tokens + other.remote_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.spans + other.spans,
            sum(costs) if costs else None,
            max(self.seconds, other.seconds),
        )

    def as_object(self) -> Json:
        completion_tokens = self.local_tokens + self.remote_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "sr_edge": {
                "local_tokens": self.local_tokens,
                "remote_tokens": self.remote_tokens,
                "share": self.remote_tokens / completion_tokens if completion_tokens else 0.0,
                "spans": self.spans,
                "cost": self.cost,
                "seconds": self.seconds,
            },
        }


# --- replies ------------------------------------------------------------------------------------------------


class _Collected:
    """One choice of a reply that is not streamed."""

    def __init__(self) -> None:
        self.segments: list[tuple[Part, int | None, list[str]]] = []
        self.marks: dict[int, Json] = {}
        self.entries: list[Json] = []

    def add(self, bit: _Bit) -> None:
        self.entries += bit.entries
        if bit.mark is not None and bit.span is not None:
            self.marks.setdefault(bit.span, _origin(bit.span)).update(bit.mark)
        elif bit.text:
            if self.segments and self.segments[-1][:2] == (bit.part, bit.span):
                self.segments[-1][2].append(bit.text)
            else:
                self.segments.append((bit.part, bit.span, [bit.text]))

    def text(self, part: Part) -> str:
        return "".join("".join(texts) for own, _, texts in self.segments if own == part)

    def provenance(self) -> Json:
        return {
            "segments": [
                {"text": "".join(texts), "part": part, **_origin(span)} for part, span, texts in self.segments
            ],
            "spans": list(self.marks.values()),
        }


class _Reply(ABC):
    """What both kinds of reply have in common.

    Push what is heard; what comes back is to be sent at once. Until the first chunk has come a `problem` is
    the whole reply; later it is the last event of the stream, which then has no `DONE`.
    """

    _object: str
    _chunk_object: str

    def __init__(self, wanted: Wanted, choices: Sequence[_Choice], *, id: str, created: int) -> None:
        self._wanted = wanted
        self._choices = choices
        self._collected = [_Collected() for _ in choices]
        self._has_opened = [False] * len(choices)
        self._id = id
        self._created = created

    def push(self, heard: Heard, choice: int = 0) -> list[Json]:
        """The chunks that it makes; none where the reply is not streamed."""
        following = self._choices[choice]
        bits = following.push(heard)
        if not self._wanted.stream:
            for bit in bits:
                self._collected[choice].add(bit)
            return []
        chunks: list[Json] = []
        if following.has_begun and not self._has_opened[choice]:
            self._has_opened[choice] = True
            chunks.append(self._opening(choice))
        chunks += [self._chunk(choice, bit) for bit in bits]
        if following.is_over and following.problem is None:
            chunks.append(self._last(choice, following.finish_reason))
            if self._wanted.include_usage and self.is_over and self.problem is None:
                chunks.append(self._shell(self._chunk_object, []) | {"usage": self._usage()})
        return chunks

    def is_stopped(self, choice: int = 0) -> bool:
        """One of the request's stops was found: nothing more of the answer is needed."""
        return self._choices[choice].is_stopped

    @property
    def is_over(self) -> bool:
        return all(choice.is_over for choice in self._choices)

    @property
    def problem(self) -> Problem | None:
        """Of the first choice that has one."""
        return next((choice.problem for choice in self._choices if choice.problem is not None), None)

    def whole(self) -> Json:
        """The reply that is not streamed, once all is over and without a problem."""
        assert self.is_over, "more may follow"
        assert self.problem is None, "there is no whole reply"
        choices = [self._whole(n, collected) for n, collected in enumerate(self._collected)]
        return self._shell(self._object, choices) | {"usage": self._usage()}

    def _usage(self) -> Json:
        """A prompt counts once, as its first choice found it, however many choices it has."""
        total = self._choices[0].usage
        for n, choice in enumerate(self._choices[1:], 1):
            usage = choice.usage
            if n % self._wanted.n:
                usage = replace(usage, prompt_tokens=0, cached_tokens=0)
            total = total.together(usage)
        return total.as_object()

    def _shell(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._wanted.model,
            "choices": choices,
        }

    def _framed(self, choice: int, said: Json, provenance: Json) -> Json:
        """A chunk, and with it the events that came since the one before."""
        chunk = self._shell(self._chunk_object, [{"index": choice, **said}])
        if self._wanted.include_usage:
            chunk["usage"] = None
        if self._wanted.events:
            provenance["events"] = self._choices[choice].take_events()
        chunk["sr_edge"] = provenance
        return chunk

    def _provenance(self, choice: int) -> Json:
        found = self._collected[choice].provenance()
        return found | {"events": self._choices[choice].take_events()} if self._wanted.events else found

    @abstractmethod
    def _opening(self, choice: int) -> Json: ...

    @abstractmethod
    def _chunk(self, choice: int, bit: _Bit) -> Json: ...

    @abstractmethod
    def _last(self, choice: int, reason: FinishReason | None) -> Json: ...

    @abstractmethod
    def _whole(self, choice: int, collected: _Collected) -> Json: ...


class ChatReply(_Reply):
    """`n` choices: push what is heard of a job with its number."""

    _object = "chat.completion"
    _chunk_object = "chat.completion.chunk"

    def __init__(self, request: ChatRequest, *, id: str, created: int) -> None:
        """Args:
        created: seconds since 1970.
        """
        choices = [
            _Choice(request.wanted, continues=request.continues, splits=True) for _ in range(request.wanted.n)
        ]
        super().__init__(request.wanted, choices, id=id, created=created)

    def _opening(self, choice: int) -> Json:
        delta = {"role": "assistant", "content": ""}
        return self._framed(choice, {"delta": delta, "finish_reason": None}, _origin(None))

    def _chunk(self, choice: int, bit: _Bit) -> Json:
        delta: Json = {}
        if bit.mark is None:
            delta["content" if bit.part == "answer" else "reasoning_content"] = bit.text
        said: Json = {"delta": delta, "finish_reason": None}
        if self._wanted.logprobs:
            said["logprobs"] = {"content": bit.entries, "refusal": None} if bit.entries else None
        return self._framed(choice, said, _origin(bit.span) | (bit.mark or {}))

    def _last(self, choice: int, reason: FinishReason | None) -> Json:
        return self._framed(choice, {"delta": {}, "finish_reason": reason}, _origin(None))

    def _whole(self, choice: int, collected: _Collected) -> Json:
        message: Json = {"role": "assistant", "content": collected.text("answer"), "refusal": None}
        if thought := collected.text("reasoning"):
            message["reasoning_content"] = thought
        return {
            "index": choice,
            "message": message,
            "logprobs": {"content": collected.entries, "refusal": None} if self._wanted.logprobs else None,
            "finish_reason": self._choices[choice].finish_reason,
            "sr_edge": self._provenance(choice),
        }


class CompletionReply(_Reply):
    """`n` choices for each prompt, those of the first prompt first."""

    _object = _chunk_object = "text_completion"

    def __init__(self, request: CompletionRequest, *, id: str, created: int) -> None:
        """Args:
        created: seconds since 1970.
        """
        prompts = [prompt for prompt in request.prompts for _ in range(request.wanted.n)]
        choices = [_Choice(request.wanted, continues="", splits=False) for _ in prompts]
        super().__init__(request.wanted, choices, id=id, created=created)
        self._echoed = [prompt if request.echo and isinstance(prompt, str) else "" for prompt in prompts]
        self._chars = [len(text) for text in self._echoed]  # of each choice, so far

    def _opening(self, choice: int) -> Json:
        said: Json = {"text": self._echoed[choice], "logprobs": None, "finish_reason": None}
        return self._framed(choice, said, _origin(None))

    def _chunk(self, choice: int, bit: _Bit) -> Json:
        said: Json = {"text": bit.text, "logprobs": None, "finish_reason": None}
        if bit.entries:
            said["logprobs"] = self._logprobs(choice, bit.entries)
        return self._framed(choice, said, _origin(bit.span) | (bit.mark or {}))

    def _last(self, choice: int, reason: FinishReason | None) -> Json:
        said: Json = {"text": "", "logprobs": None, "finish_reason": reason}
        return self._framed(choice, said, _origin(None))

    def _whole(self, choice: int, collected: _Collected) -> Json:
        return {
            "index": choice,
            "text": self._echoed[choice] + collected.text("answer"),
            "logprobs": self._logprobs(choice, collected.entries) if self._wanted.logprobs else None,
            "finish_reason": self._choices[choice].finish_reason,
            "sr_edge": self._provenance(choice),
        }

    def _logprobs(self, choice: int, entries: Sequence[Json]) -> Json:
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": None,
            "text_offset": None,
        }
