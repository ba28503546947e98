"""A large model as a second GGUF in this process. It opens no socket and runs no thread.

It decodes only while it is read: the two models take turns, since they share the same cores. Where the small
one's vocabulary allows it, it drafts what this one then verifies: see `speculation`.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

from sr_edge.errors import ContextFullError, EdgeError
from sr_edge.local import LlamaLocal, SamplerSettings
from sr_edge.reading import common_length
from sr_edge.remote.speculation import Drafting, Speculation, share_vocabulary
from sr_edge.roles import LocalModel, Message, Outcome

_PREFILL = 128  # prompt tokens between two looks at the clock


class Writer:
    """Continues the answers of one conversation at a time, and keeps its KV cache from span to span."""

    def __init__(self, model: LlamaLocal, *, batch_tokens: int, clock: Callable[[], float]) -> None:
        """For `LocalGGUF`."""
        self._model = model
        self.speculation: Speculation | None = None
        """None where nothing is drafted."""
        self._batch_tokens = batch_tokens
        self._clock = clock
        self._stream: LocalStream | None = None

    @property
    def name(self) -> str:
        return self._model.name

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> LocalStream:
        """One at a time: the span before is closed."""
        if self._stream is not None:
            self._stream.close()
        drafting = self.speculation.begin(max_tokens) if self.speculation else None
        self._stream = LocalStream(
            self._model, tuple(messages), answer, max_tokens, self._batch_tokens, self._clock, drafting
        )
        return self._stream

    def choose(self, settings: SamplerSettings) -> None:
        """See `LlamaLocal.choose`."""
        self._model.choose(settings)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._model.close()


class LocalGGUF(Writer):
    """The model itself: it is closed with its last conversation."""

    def __init__(
        self,
        path: Path,
        *,
        temperature: float = 0.0,
        seed: int | None = None,
        batch_tokens: int = 1,
        small: LocalModel | None = None,
        threads: int | None = None,
        progress: Callable[[float], None] | None = None,
        answers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        temperature: 0 by default: a span is the step that must be right, not one of many attempts.
        batch_tokens: written in one read. On a CPU four tokens take the small model nearly four times as
            long to read as one, so more would only delay the moment when it has the pen again.
        small: drafts the spans, if it has the same vocabulary and the temperature is 0. Its cache holds the
            conversation when a span begins, and it stays open as long as this model.
        progress: see `LlamaLocal.open`.
        answers: so many conversations can have spans at once: see `another`.
        Raises:
            ModelError: the file is missing or unusable.
        """
        assert batch_tokens > 0
        model = LlamaLocal.open(
            path,
            temperature=temperature,
            seed=seed,
            threads=threads,
            progress=progress,
            cursors=answers,
            contexts=answers,
        )
        super().__init__(model, batch_tokens=batch_tokens, clock=clock)
        if small is not None and temperature == 0 and share_vocabulary(small, model):
            self.speculation = Speculation(small, model, clock=clock)
        self._contest = self.speculation.contest if self.speculation else None

    def another(self) -> Writer:
        """For another conversation; nothing is drafted there before `drafts_for`."""
        return Writer(self._model.another(), batch_tokens=self._batch_tokens, clock=self._clock)

    def drafts_for(self, writer: Writer, small: LocalModel | None) -> None:
        """From here on `small`, a cursor of the same small model, drafts what `writer` writes, if that is any
        use. None: nobody does."""
        if self._contest is not None:
            writer.speculation = None
            if small is not None:
                writer.speculation = Speculation(
                    small, writer._model, clock=self._clock, contest=self._contest
                )

    def stop(self) -> None:
        """As `LlamaLocal.stop`."""
        self._model.stop()

    def go_on(self) -> None:
        self._model.go_on()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


class LocalStream:
    """One span; while it lasts, the only user of the model's cache."""

    def __init__(
        self,
        model: LocalModel,
        messages: Sequence[Message],
        answer: str,
        max_tokens: int,
        batch_tokens: int,
        clock: Callable[[], float],
        drafting: Drafting | None = None,
    ) -> None:
        """Args:
        drafting: has `model` write this span; the stream closes it.
        """
        self._model = model
        self._messages = messages
        self._answer = answer
        self._max_tokens = max_tokens
        self._batch_tokens = batch_tokens
        self._clock = clock
        self._drafting = drafting
        markers = model.markers
        self._banned: tuple[int, ...] = ()
        if markers is not None and markers.form == "token":  # as text, the caller takes them out
            self._banned = markers.open_ids + markers.close_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._unread: list[int] | None = None  # prompt ids that the cache lacks; None before they are known
        self._prompt_tokens: int | None = None
        self._tokens = 0
        self._outcome: Outcome | None = None

    def read(self, timeout: float) -> str | None:
        """As `RemoteStream.read`; does at least one step, however short the time."""
        if self._is_over():
            return None
        until = self._clock() + timeout
        written = self._tokens + self._batch_tokens
        text = ""
        try:
            while not self._is_over() and self._tokens < written:
                text += self._step()
                if self._clock() >= until:
                    break
        except EdgeError as error:
            self._end("error", str(error))
        if self._is_over():
            text += self._decoder.decode(b"", final=True)
        return None if self._is_over() and not text else text

    @property
    def outcome(self) -> Outcome:
        assert self._outcome is not None, "the span is still being read"
        return self._outcome

    def close(self) -> None:
        if not self._is_over():
            self._end("stop")

    def _is_over(self) -> bool:
        return self._outcome is not None

    def _step(self) -> str:
        """Read a piece of the prompt, or write a token or a few."""
        model = self._model
        if self._unread is None:
            self._unread = self._find_unread()
        if self._unread:
            model.feed(self._unread[:_PREFILL])
            del self._unread[:_PREFILL]
            return ""
        if self._tokens >= self._max_tokens:
            self._end("cap")
            return ""
        if model.room < 1:
            self._end("cap", f"the context of {model.name} is full after {len(model.ids)} tokens")
            return ""
        text = ""
        for id in self._write(min(self._max_tokens - self._tokens, model.room)):
            if model.is_end(id):
                self._end("stop")
                break
            self._tokens += 1
            text += self._decoder.decode(model.piece(id))
        return text

    def _write(self, most: int) -> Sequence[int]:
        """The model's next token; or more of them, if they were drafted."""
        if self._drafting is None:
            return [self._model.sample(self._banned).id]
        return self._drafting.write(most, self._banned)

    def _find_unread(self) -> list[int]:
        """Rewind the cache to what it shares with the prompt; the rest is to be fed."""
        prompt = self._model.render(self._messages)
        wanted = [*prompt.ids, *self._model.tokenize(self._answer)]
        self._prompt_tokens = len(wanted)
        shared = common_length(self._model.ids, wanted)
        self._model.rewind(shared)
        if len(wanted) - shared > self._model.room:
            raise ContextFullError(
                f"the conversation is {len(wanted)} tokens and the context of {self._model.name} holds "
                f"{shared + self._model.room}"
            )
        return wanted[shared:]

    def _end(self, end: Literal["stop", "cap", "error"], error: str | None = None) -> None:
        if self._drafting is not None:
            self._drafting.close()
        self._outcome = Outcome(
            end,
            error,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._tokens,
            fault="request" if end == "error" else None,  # the next span may well be written
        )
