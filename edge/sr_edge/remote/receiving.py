"""Reads the reply that a span came in, on the span's thread."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from sr_edge.remote.arrivals import Content, Finished
from sr_edge.remote.dialects import wraps_prompts
from sr_edge.remote.exchange import Reply
from sr_edge.remote.failure import FailedError, Failure, of_report
from sr_edge.remote.reply import ReplyError, ReplyReader, parse_object
from sr_edge.remote.seam import Seam
from sr_edge.remote.sse import ServerSentEvent, SseDecoder, SseLimitError
from sr_edge.roles import Fault, Outcome

MAX_TEXT = 64 << 10  # characters of one span

_BEGINS_STREAM = re.compile(rb"(\xef\xbb\xbf)?\s*(data|event|id|retry|error)?:")
_SURE = 9  # bytes: a byte order mark and `event:`


class WrappedError(Exception):
    """The server does not continue raw text: it puts a chat template around it."""


class Receiving:
    """One reply."""

    def __init__(
        self,
        reply: Reply,
        chunks: Iterator[bytes],
        seam: Seam,
        where: str,
        clock: Callable[[], float],
        put: Callable[[Content | Finished], None],
        *,
        is_raw: bool = False,
    ) -> None:
        """Args:
        chunks: its body.
        is_raw: it should continue raw text, and is given up if the server made a chat of that.
        where: host and port, for messages.
        put: where what is read goes.
        """
        self._headers = reply.headers
        self._chunks = chunks
        self._reader = ReplyReader(thinking=seam.takes_reasoning, seam=seam)
        self._where = where
        self._clock = clock
        self._put = put
        self._is_raw = is_raw
        self._num_events = 0

    def run(self) -> Outcome:
        """How it ended; its text is put by then.

        Raises:
            WrappedError: it is a new turn; nothing of it was put.
            FailedError: it failed or was cut.
        """
        kind = self._headers.get("content-type", "").partition(";")[0].strip().lower()
        if self._headers.get("content-encoding", "identity") != "identity":
            raise self._failed("sent a compressed reply, which was not asked for", "refused")
        try:
            if kind == "application/json" and not self._is_stream():
                self._read_whole()
            elif kind in ("application/json", "text/event-stream", ""):
                self._read_stream()
            if kind not in ("application/json", "text/event-stream") and not self._num_events:
                line = f"answered with {kind or 'a page'}, not with a stream of events"
                raise self._failed(f"{line}; is the URL that of an OpenAI-compatible endpoint?", "refused")
        except (ReplyError, SseLimitError) as error:
            if not self._reader.is_complete:
                raise self._cut(of_report(error)) from error
        except FailedError as error:
            if not self._reader.is_complete:
                raise self._cut(error.failure) from error
        if self._reader.characters > MAX_TEXT:
            return replace(self._outcome(), end="cap")
        if not self._reader.is_complete:
            line = "the stream ended without a finish reason"
            raise self._cut(Failure(line, "unreachable", is_passing=True))
        return self._outcome()

    @property
    def has_only_thought(self) -> bool:
        """The server's own thought took up all the room."""
        reader = self._reader
        return reader.has_reasoned and reader.characters == 0 and reader.finished == "cap"

    @property
    def is_complete(self) -> bool:
        """The server, too, has nothing more to say, as far as can be known."""
        return self._reader.is_complete and not self._reader.left_thought

    def _is_stream(self) -> bool:
        """Whether what is called JSON is a stream of events: no JSON begins like one."""
        beginning = b""
        for chunk in self._chunks:
            beginning += chunk
            if b":" in beginning or len(beginning.lstrip()) >= _SURE or len(beginning) >= 100 * _SURE:
                break
        self._chunks = itertools.chain([beginning] if beginning else [], self._chunks)
        return bool(_BEGINS_STREAM.match(beginning))

    def _read_stream(self) -> None:
        decoder = SseDecoder()
        is_empty = True
        for chunk in self._chunks:
            is_empty = False
            self._tell(decoder.push(chunk))
            if self._reader.done or self._reader.left_thought or self._reader.characters > MAX_TEXT:
                return
        if is_empty:
            raise FailedError(Failure(f"{self._where} sent an empty reply", "unreachable", is_passing=True))
        self._tell(decoder.flush())

    def _read_whole(self) -> None:
        """A reply that is no stream, although one was asked for."""
        body = parse_object(b"".join(self._chunks))
        text: str | None = None
        try:
            text = self._reader.push_body(body)
        except ReplyError as failed:
            text = failed.text
            raise
        finally:
            self._check_raw()
            if text is not None or self._reader.is_complete:
                self._put(Content(self._clock(), (text or "") + self._reader.flush()))
        if text is None and not self._reader.is_complete:
            raise self._failed("sent a reply that holds no text", "unreachable")

    def _tell(self, events: Iterator[ServerSentEvent]) -> None:
        """One message for all that one chunk brought."""
        reader = self._reader
        was_complete = reader.is_complete
        texts: list[str] = []
        try:
            for event in events:
                self._num_events += 1
                text = reader.push(event)
                self._check_raw()
                if text is not None:
                    texts.append(text)
            if reader.is_complete and not was_complete:
                texts.append(reader.flush())
        except ReplyError as failed:
            if failed.text:
                texts.append(failed.text)
            raise
        finally:
            now = self._clock()
            if texts:
                self._put(Content(now, "".join(texts)))
            if reader.is_complete and not was_complete:
                self._put(Finished(now, self._outcome()))

    def _check_raw(self) -> None:
        if self._is_raw and wraps_prompts(self._headers, self._reader.fingerprint):
            raise WrappedError

    def _outcome(self) -> Outcome:
        """`stop` only where the server has said that it was done. Where it has closed the thought that we
        continue and writes on, it is we who end there: `cap`, as where it writes more than a span may have.
        """
        reader = self._reader
        return Outcome(
            reader.finished or ("stop" if reader.done else "cap"),
            prompt_tokens=reader.prompt_tokens,
            completion_tokens=reader.completion_tokens,
        )

    def _cut(self, failure: Failure) -> FailedError:
        if self._reader.characters == 0:
            return FailedError(failure)
        line = f"{self._where} cut off after {self._reader.characters} characters: {failure.line}"
        return FailedError(replace(failure, line=line))

    def _failed(self, line: str, fault: Fault) -> FailedError:
        return FailedError(Failure(f"{self._where} {line}", fault))
