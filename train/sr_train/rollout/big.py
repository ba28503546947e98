"""Who writes the spans of rollouts: another checkpoint, the small model itself, or an endpoint.

Each opens a `RemoteModel` for one rollout. It is read in the rollout's greenlet: while it has nothing to say,
others go on.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from greenlet import getcurrent, greenlet

from sr_edge.errors import EdgeError, UsageError
from sr_edge.markers import Markers
from sr_edge.remote.local_gguf import LocalStream
from sr_edge.roles import Message, Outcome, RemoteModel, RemoteStream
from sr_train.rollout.batch import Batch, Uniforms, base_of
from sr_train.rollout.hub import Hub
from sr_train.rollout.local import BatchedLocal, SelfCursor
from sr_train.rollout.requests import RolloutRequest
from sr_train.rollout.span_cache import End, SpanCache, Written
from sr_train.rollout.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_BIG_WRITER = 1
"""Tells its random numbers from the small model's."""

_POLL = 0.02  # seconds between two looks at whether a span is still wanted


class Opened(Protocol):
    """The large model of one rollout."""

    @property
    def name(self) -> str: ...
    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> RemoteStream: ...
    def close(self) -> None: ...


class Big(Protocol):
    """Writes the spans of many rollouts."""

    def running(self, hub: Hub) -> AbstractContextManager[object]:
        """Entered once for each run of the engine."""

    def open(self, request: RolloutRequest, local: BatchedLocal) -> Opened:
        """For one rollout. The caller closes it.

        Args:
            local: the small model's cursor.
        """


class CheckpointBig:
    """A second checkpoint in this process. It keeps its keys and values from span to span of a rollout."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        temperature: float = 0.0,
        *,
        name: str | None = None,
        markers: Markers | None = None,
        top_p: float = 1.0,
        batch_tokens: int = 1,
    ) -> None:
        """Args:
        markers: that it has too and must not write.
        batch_tokens: see `LocalGGUF`.
        """
        self._batch = Batch(model, top_p=top_p)
        self._vocabulary = Vocabulary(tokenizer, end_ids_of(model))
        self._temperature = temperature
        self._name = name or name_of(model)
        self._markers = markers
        self._batch_tokens = batch_tokens

    def running(self, hub: Hub) -> AbstractContextManager[object]:
        return hub.decoding(self._batch)

    def open(self, request: RolloutRequest, local: BatchedLocal) -> Opened:
        cursor = BatchedLocal(
            self._batch,
            self._vocabulary,
            name=self._name,
            markers=self._markers,
            temperature=self._temperature,
            uniforms=Uniforms(request.key, _BIG_WRITER),
        )
        return _Checkpoint(cursor, self._batch_tokens)


class _Checkpoint:
    def __init__(self, cursor: BatchedLocal, batch_tokens: int) -> None:
        self._cursor = cursor
        self._batch_tokens = batch_tokens

    @property
    def name(self) -> str:
        return self._cursor.name

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> RemoteStream:
        return LocalStream(self._cursor, messages, answer, max_tokens, self._batch_tokens, time.monotonic)

    def close(self) -> None:
        self._cursor.close()


class SelfBig:
    """The small model's own weights, from the context that it asked in: it writes on after its own marker
    until it closes the span itself. So the paper's rollouts were written (arXiv 2504.16379).
    """

    def __init__(self, temperature: float | None = None) -> None:
        """Args:
        temperature: None: the rollout's.
        """
        self._temperature = temperature

    def running(self, hub: Hub) -> AbstractContextManager[object]:
        return nullcontext()

    def open(self, request: RolloutRequest, local: BatchedLocal) -> Opened:
        uniforms = Uniforms(request.key, _BIG_WRITER)
        return _Itself(SelfCursor(local, temperature=self._temperature, uniforms=uniforms))


class _Itself:
    def __init__(self, cursor: SelfCursor) -> None:
        self._cursor = cursor

    @property
    def name(self) -> str:
        return self._cursor.name

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> RemoteStream:
        return LocalStream(self._cursor, messages, "", max_tokens, 1, time.monotonic)

    def close(self) -> None:
        self._cursor.close()


class EndpointBig:
    """Any remote model, read on threads of its own: usually a `sr_edge.remote.endpoint.Endpoint`."""

    def __init__(
        self,
        remote: RemoteModel | Callable[[], RemoteModel],
        *,
        concurrency: int = 16,
        attempts: int = 3,
        timeout: float = 120.0,
        cache: SpanCache | None = None,
        jitter: Callable[[], float] = random.random,
        pause: float = 1.0,
    ) -> None:
        """Args:
        remote: or what opens it, before the first span is asked for. Whoever opened it closes it.
        concurrency: spans that are written at once; 1 for a model that can do no more.
        attempts: for each span, as long as no text has come.
        timeout: seconds, of a span with all its attempts.
        cache: where the remote always writes the same: at temperature 0.
        jitter: from 0 to 1.
        pause: seconds before a second attempt, twice as long before each further one; up to half as long
            again by `jitter`.
        """
        if concurrency < 1 or attempts < 1 or not timeout > 0:
            raise UsageError("big.concurrency and big.attempts are at least 1, and big.timeout is above 0")
        self._given = remote
        self._remote: RemoteModel | None = None
        self._concurrency = concurrency
        self._attempts = attempts
        self._timeout = timeout
        self._cache = cache
        self._jitter = jitter
        self._pause = pause
        self._hub: Hub | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._streams: set[_ThreadedStream] = set()

    @property
    def remote(self) -> RemoteModel:
        if self._remote is None:
            self._remote = self._given() if callable(self._given) else self._given
        return self._remote

    @contextmanager
    def running(self, hub: Hub) -> Iterator[None]:
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="span") as threads:
            self._hub, self._threads = hub, threads
            try:
                yield
            finally:
                self._hub = self._threads = None
                for stream in list(self._streams):  # threads that end take theirs out meanwhile
                    stream.close()
                self._streams.clear()

    def open(self, request: RolloutRequest, local: BatchedLocal) -> Opened:
        return _Endpoint(self)

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> RemoteStream:
        assert self._hub is not None
        assert self._threads is not None
        stream = _ThreadedStream(self._hub)
        self._streams.add(stream)
        task = self._threads.submit(self._write, stream, tuple(messages), answer, max_tokens)
        task.add_done_callback(lambda done: self._written(stream, done.exception()))
        return stream

    def _written(self, stream: _ThreadedStream, error: BaseException | None) -> None:
        if error is not None:
            stream.fail(error)
        self._streams.discard(stream)

    def _write(
        self, stream: _ThreadedStream, messages: tuple[Message, ...], answer: str, max_tokens: int
    ) -> None:
        """On a thread: ask until there is text or no hope, then read to the end."""
        until = time.monotonic() + self._timeout
        known = Written()
        if self._cache is not None:
            key = self._cache.key(self.remote.name, messages, answer, max_tokens)
            known = self._cache.get(key) or known
            stream.push(known.text)
        if known.end is not None:
            stream.finish(
                Outcome(
                    known.end,
                    prompt_tokens=known.prompt_tokens,
                    completion_tokens=known.completion_tokens,
                )
            )
            return
        for attempt in range(1, self._attempts + 1):
            outcome = self._attempt(stream, messages, answer + known.text, max_tokens, until)
            is_hopeless = outcome.fault not in ("unreachable", "busy") or attempt == self._attempts
            if is_hopeless or stream.written != known.text or stream.is_closed:
                break
            wait = self._pause * 2 ** (attempt - 1) * (1 + self._jitter() / 2)
            wait = max(wait, outcome.retry_after or 0.0)
            if time.monotonic() + wait >= until or stream.closing.wait(wait):
                break
        if self._cache is not None and outcome.fault is None:
            end: End | None = None if stream.is_closed else "cap" if outcome.end == "cap" else "stop"
            written = Written(stream.written, end, outcome.prompt_tokens, outcome.completion_tokens)
            if written != known:
                self._cache.put(key, written)
        stream.finish(outcome)

    def _attempt(
        self,
        stream: _ThreadedStream,
        messages: tuple[Message, ...],
        answer: str,
        max_tokens: int,
        until: float,
    ) -> Outcome:
        try:
            source = self.remote.stream(messages, answer, max_tokens)
            try:
                while not stream.is_closed:
                    if time.monotonic() >= until:
                        late = f"the large model was not done after {self._timeout:g} s"
                        return Outcome("stalled", late, fault="unreachable")
                    if (text := source.read(_POLL)) is None:
                        break
                    stream.push(text)
            finally:
                source.close()
            return source.outcome
        except EdgeError as error:
            return Outcome("error", str(error), fault="request")


class _Endpoint:
    def __init__(self, big: EndpointBig) -> None:
        self._big = big

    @property
    def name(self) -> str:
        return self._big.remote.name

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> RemoteStream:
        return self._big.stream(messages, answer, max_tokens)

    def close(self) -> None:
        pass


class _ThreadedStream:
    """One span: a thread writes it, a rollout's greenlet reads it."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._lock = threading.Lock()
        self._texts: list[str] = []
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._waiter: greenlet | None = None
        self.closing = threading.Event()
        self.written = ""
        """All of it. For the thread."""

    # --- the rollout's side

    def read(self, timeout: float) -> str | None:
        """As `RemoteStream.read`, but waits as long as it takes: others go on meanwhile."""
        while True:
            with self._lock:
                if self._error is not None:
                    raise self._error
                if self._texts:
                    text, self._texts = "".join(self._texts), []
                    return text
                if self._outcome is not None:
                    return None
                self._waiter = getcurrent()
            self._hub.pause()

    @property
    def outcome(self) -> Outcome:
        """After `close` it waits for the thread to have hung up."""
        while True:
            with self._lock:
                if self._error is not None:
                    raise self._error
                if self._outcome is not None:
                    return self._outcome
                self._waiter = getcurrent()
            self._hub.pause()

    def close(self) -> None:
        self.closing.set()

    # --- the thread's side

    @property
    def is_closed(self) -> bool:
        return self.closing.is_set()

    def push(self, text: str) -> None:
        if text:
            self.written += text
            with self._lock:
                self._texts.append(text)
                self._wake()

    def finish(self, outcome: Outcome) -> None:
        with self._lock:
            self._outcome = outcome
            self._wake()

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._hub.wake(waiter)


def name_of(model: PreTrainedModel) -> str:
    """The last part of where it came from."""
    config = base_of(model).config
    return str(config._name_or_path).rstrip("/").rpartition("/")[2] or str(config.model_type)


def end_ids_of(model: PreTrainedModel) -> tuple[int, ...]:
    """Tokens that end an answer, as the checkpoint says."""
    found: set[int] = set()
    for config in (model.config, getattr(model, "generation_config", None)):
        ids = getattr(config, "eos_token_id", None)
        found |= {ids} if isinstance(ids, int) else set(ids or ())
    return tuple(sorted(found))
