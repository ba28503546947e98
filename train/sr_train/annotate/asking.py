"""Puts many questions to one chat model: so many at once, so many a minute, patient with a busy server.

Every reply is in the journal before the next question of its thread; a question that has an entry there is
not asked. Nothing here knows what the questions are about.
"""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sr_edge.errors import RemoteError, UsageError
from sr_edge.remote.chatting import ChatEndpoint, Completion, CompletionError
from sr_edge.remote.egress import Door
from sr_edge.roles import Message
from sr_train.annotate.journal import Journal
from sr_train.recipe import AnnotatePart
from sr_train.remotes import remote_named

MAX_TOKENS = 16384
"""Of a reply: room for a thought before it. An endpoint that has less is asked for less."""

ATTEMPTS = 8
MAX_PAUSE = 60.0
"""Seconds between two attempts; more only if the server demands it."""


@dataclass(frozen=True, slots=True)
class Question:
    key: str
    """Of its entry in the journal."""
    problem: str
    """The problem's id, for whoever reads the journal."""
    messages: Callable[[], Sequence[Message]]
    """Made when it is asked: together they are large."""


class Chat(Protocol):
    """What of `ChatEndpoint` is needed."""

    def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float,
        schema: Mapping[str, Any] | None = None,
    ) -> Completion: ...
    def close(self) -> None: ...


def ask_all(
    questions: Sequence[Question],
    chat: Chat,
    journal: Journal,
    *,
    part: AnnotatePart,
    schema: Mapping[str, Any] | None,
    done: Callable[[int, int], None],
    pause: Callable[[float, float], float] = lambda attempt, jitter: min(
        MAX_PAUSE, 2.0**attempt * (0.5 + jitter)
    ),
) -> None:
    """Ask what the journal has no entry for, on threads of its own. Closes the chat where it breaks off.

    A question that the model's server refuses for what stands in it gets an entry that says so.

    Args:
        done: told how many of how many have an entry, on this thread.
        pause: seconds before the next attempt at a question, from the number of those made and a jitter from
            0 to 1.
    Raises:
        RemoteError: some were not answered, for a reason that may be gone when they are asked again.
        OfflineError: nothing is sent.
    """
    waiting = {question.key: question for question in questions if question.key not in journal}
    total = len({question.key for question in questions})
    done(total - len(waiting), total)
    if waiting:
        _Asking(chat, journal, part, schema, pause).run(list(waiting.values()), total, done)


class _Pace:
    """When the next question may leave, for all threads."""

    def __init__(self, per_minute: float | None, stopped: threading.Event) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._stopped = stopped
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        with self._lock:
            at = max(time.monotonic(), self._next)
            self._next = at + self._interval
        self._stopped.wait(max(0.0, at - time.monotonic()))

    def hold(self, seconds: float) -> None:
        """The server asked us to wait: nobody goes before that."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class _Asking:
    """One run of the threads: the only owner of what they share."""

    def __init__(
        self,
        chat: Chat,
        journal: Journal,
        part: AnnotatePart,
        schema: Mapping[str, Any] | None,
        pause: Callable[[float, float], float],
    ) -> None:
        self._chat = chat
        self._journal = journal
        self._part = part
        self._schema = schema
        self._pause = pause
        self._stopped = threading.Event()
        self._pace = _Pace(part.requests_per_minute, self._stopped)
        self._todo: queue.SimpleQueue[Question] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._jitter = random.Random()

    def run(self, questions: Sequence[Question], total: int, done: Callable[[int, int], None]) -> None:
        for question in questions:
            self._todo.put(question)
        num_threads = max(1, min(self._part.concurrency, len(questions)))
        threads = [
            threading.Thread(target=self._work, name=f"sr-edge judge {number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in threads:
            thread.start()
        num_answered, num_left, last, row = 0, 0, "", 0
        try:
            for _ in questions:
                news = self._news.get()
                if isinstance(news, _LeftError):
                    num_left, last, row = num_left + 1, str(news), row + 1
                    if row > num_threads:  # nobody gets an answer any more
                        self._chat.close()
                        break
                elif news is not None:
                    raise news
                else:
                    num_answered, row = num_answered + 1, 0
                    done(total - len(questions) + num_answered, total)
        except BaseException:
            self._chat.close()  # whoever waits for a reply need not
            raise
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()
        if num_left:
            left = sum(question.key not in self._journal for question in questions)
            raise RemoteError(
                f"{left} of {total} questions have no answer ({last}). Start again: only these are asked"
            )

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                question = self._todo.get_nowait()
            except queue.Empty:
                return
            try:
                self._journal.add(question.key, self._entry(question))
            except BaseException as error:  # it is raised where it is waited for
                self._news.put(error)
            else:
                self._news.put(None)

    def _entry(self, question: Question) -> dict[str, Any]:
        for attempt in range(ATTEMPTS):
            self._pace.wait()
            if self._stopped.is_set():
                raise _LeftError("stopped")
            began = time.monotonic()
            try:
                completion = self._chat.complete(
                    question.messages(),
                    max_tokens=MAX_TOKENS,
                    temperature=self._part.judge_temperature,
                    schema=self._schema,
                )
            except CompletionError as error:
                if not error.is_passing:
                    if error.fault != "request":
                        raise RemoteError(
                            f"{error}. What was answered is kept: start again once that is mended"
                        ) from None
                    return {"problem": question.problem, "refused": str(error)}
                if attempt + 1 == ATTEMPTS:
                    raise _LeftError(str(error)) from None
                if error.retry_after is not None:
                    self._pace.hold(error.retry_after)
                self._stopped.wait(self._pause(attempt, self._jitter.random()))
            else:
                return {
                    "problem": question.problem,
                    "reply": completion.text,
                    "model": completion.model,
                    "prompt_tokens": completion.prompt_tokens,
                    "completion_tokens": completion.completion_tokens,
                    "is_cut": completion.is_cut,
                    "seconds": round(time.monotonic() - began, 3),
                }
        raise AssertionError("unreachable")


class _LeftError(Exception):
    """A question got no answer, however often it was asked."""


def open_judge(part: AnnotatePart, *, offline: bool, environ: Mapping[str, str] = os.environ) -> ChatEndpoint:
    """The endpoint that the recipe names. Opens no connection.

    Raises:
        UsageError: it names none, or one that is not set up.
    """
    if part.judge is None:
        raise UsageError(
            "the recipe names no judge: annotate.judge is a name from `sr-edge remote list`, or a URL; "
            'annotate.labeller = "measured" needs none'
        )
    remote, key, is_offline = remote_named(part.judge, offline=offline, environ=environ)
    return ChatEndpoint(
        remote.url,
        model=part.judge_model or remote.model,
        api_key=key,
        timeout=max(300.0, remote.timeout.get("total", 0.0)),
        connect_timeout=max(10.0, remote.timeout.get("connect", 0.0)),
        plain_http=remote.plain_http,
        ca_file=remote.ca_file,
        proxy=remote.proxy,
        door=Door(offline=is_offline),
    )
