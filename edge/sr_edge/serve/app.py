"""What stands at which path, and how an answer goes from the desk's threads to its client.

The models compute on threads of the desk. This runs on one more, and takes the interpreter from them for as
long as it works: what has come is fetched at once and leaves in one write.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.exceptions import HTTPException
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sr_edge.errors import EdgeError
from sr_edge.events import LocalToken, SpanDelta
from sr_edge.serve.guard import Guard, JsonBody, Names, NeedsToken, Refused
from sr_edge.serve.jobs import Busy, Heard, Job, Over, Ticket
from sr_edge.serve.metrics import CONTENT_TYPE, Following, Metrics
from sr_edge.serve.replies import (
    DONE,
    ChatReply,
    CompletionReply,
    Json,
    Problem,
    encoded,
    problem_of,
    sse,
)
from sr_edge.serve.requests import BadRequest, RequestLimits, parse_chat, parse_completion

MAX_BODY_BYTES = 4 << 20
BODY_SECONDS = 30.0
QUIET_SECONDS = 15.0
"""After so long without a word a stream gets a comment, for whoever would think it dead."""
LONG_BODY_BYTES = 64 << 10
"""Reading more takes as long as several tokens, which the other answers do not wait for."""

MODEL_PATH = "/v1/models/{id}"
_PATHS = frozenset(
    {"/", "/health", "/metrics", "/openapi.json", "/v1/models", "/v1/chat/completions", "/v1/completions"}
)
_JSON_HEADERS = (("content-type", "application/json"),)
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),  # a proxy is to pass on what comes as it comes
]
_MAX_AGENT_CHARS = 200
_COMMENT = b": still here\n\n"
_GATHER_SECONDS = 0.008


class Desk(Protocol):
    """Whoever has the answers written."""

    lanes: int
    """So many at once."""

    def submit(self, job: Job, hear: Callable[[Heard], None]) -> Ticket:
        """Raises: Busy."""


@dataclass(frozen=True, slots=True)
class Document:
    """What is the same for everybody who asks."""

    body: bytes
    headers: tuple[tuple[str, str], ...]
    """Names in small letters; without the length."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one request."""

    body_bytes: int = MAX_BODY_BYTES
    body_seconds: float = BODY_SECONDS
    """Until the body is there."""
    quiet_seconds: float = QUIET_SECONDS


def make_app(
    desk: Desk,
    *,
    limits: RequestLimits,
    names: Names,
    token: str,
    metrics: Metrics,
    page: Document,
    openapi: Mapping[str, Any],
    bounds: Bounds = Bounds(),
    say: Callable[[str], None],
) -> ASGIApp:
    """Args:
    say: gets a line about each failure that is ours.
    """
    created = int(time.time())
    models = [
        {"id": id, "object": "model", "created": created, "owned_by": "sr-edge"} for id in limits.models
    ]

    def get(path: str, app: ASGIApp) -> Route:
        return Route(path, app, methods=["GET"])

    def post(path: str, order: Callable[[bytes, str], Order]) -> Route:
        app = Answers(desk, order, metrics, quiet_seconds=bounds.quiet_seconds)
        body = JsonBody(app, max_bytes=bounds.body_bytes, seconds=bounds.body_seconds)
        return Route(path, NeedsToken(body, token), methods=["POST"])

    def json(value: Mapping[str, Any]) -> Fixed:
        return Fixed(Document(encoded(dict(value)), _JSON_HEADERS))

    def counted() -> Document:
        return Document(metrics.text(), (("content-type", CONTENT_TYPE),))

    router = Router(
        [
            post("/v1/chat/completions", lambda body, agent: _chat(body, agent, limits)),
            post("/v1/completions", lambda body, agent: _completion(body, agent, limits)),
            get("/v1/models", NeedsToken(json({"object": "list", "data": models}), token)),
            get(MODEL_PATH, NeedsToken(OneOf({str(model["id"]): json(model) for model in models}), token)),
            get("/health", json({"status": "ok"})),
            get("/metrics", NeedsToken(Made(counted), token)),
            get("/openapi.json", NeedsToken(json(openapi), token)),
            get("/", Fixed(page)),
        ],
        redirect_slashes=False,
    )

    def crashed(error: Exception) -> None:
        metrics.failed(error)
        say(f"a request failed: {type(error).__name__}: {error}. This is a bug of sr-edge")

    return Counting(Guard(Plain(router), names, crashed=crashed), metrics)


class Counting:
    """The outermost: every response is counted, by what was asked for."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.responded(_route_of(scope["path"]), message["status"])
            await send(message)

        await self._app(scope, receive, counted)


class Plain:
    """Has the router raise what it would answer in a shape of its own."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._router({**scope, "app": self}, receive, send)
        except HTTPException as error:
            allowed = (error.headers or {}).get("Allow", "")
            if error.status_code == 405:
                allow = [(b"allow", allowed.encode())]
                message = f"{scope['method']} is not answered here: {allowed} is"
                raise Refused(405, "method_not_allowed", message, headers=allow) from None
            raise Refused(404, "not_found", "there is nothing here: see /openapi.json") from None


class Fixed:
    def __init__(self, document: Document) -> None:
        self._document = document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _send(send, 200, self._document)


class Made:
    """A document that is another one each time."""

    def __init__(self, make: Callable[[], Document]) -> None:
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _send(send, 200, self._make())


class OneOf:
    def __init__(self, documents: Mapping[str, Fixed]) -> None:
        self._documents = documents

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._documents.get(scope["path_params"]["id"])
        if found is None:
            there = ", ".join(self._documents)
            raise Refused(404, "model_not_found", f"there is no such model: there are {there}", param="model")
        await found(scope, receive, send)


# --- answers ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """What a request comes to: jobs for the desk, and the reply that is made of what is heard of them."""

    jobs: Sequence[Job]
    reply: ChatReply | CompletionReply
    is_stream: bool


def _chat(body: bytes, agent: str, limits: RequestLimits) -> Order:
    request = parse_chat(body, limits)
    reply = ChatReply(request, id=f"chatcmpl-{secrets.token_hex(12)}", created=int(time.time()))
    return Order(request.jobs(agent=agent), reply, request.wanted.stream)


def _completion(body: bytes, agent: str, limits: RequestLimits) -> Order:
    request = parse_completion(body, limits)
    reply = CompletionReply(request, id=f"cmpl-{secrets.token_hex(12)}", created=int(time.time()))
    return Order(request.jobs(agent=agent), reply, request.wanted.stream)


class Answers:
    """Has an answer written, and passes it on as it comes or whole."""

    def __init__(
        self,
        desk: Desk,
        order: Callable[[bytes, str], Order],
        metrics: Metrics,
        *,
        quiet_seconds: float,
    ) -> None:
        """Args:
        order: reads a body; gets who sent it, too. A long one is read on another thread.
            Raises: BadRequest.
        """
        self._desk = desk
        self._order = order
        self._metrics = metrics
        self._quiet_seconds = quiet_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body: bytes = (await receive())["body"]
        try:
            if len(body) > LONG_BODY_BYTES:
                order = await asyncio.to_thread(self._order, body, _agent(scope))
            else:
                order = self._order(body, _agent(scope))
        except BadRequest as error:
            await _send_problem(send, problem_of(error))
            return
        hearing = Hearing(asyncio.get_running_loop(), quiet_seconds=self._quiet_seconds)
        line = Line(self._desk, order.jobs, hearing, self._metrics)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            if hearing.is_wanted and not line.is_over:
                self._metrics.hung_up()
            hearing.leave()
            line.cancel()

        watching = asyncio.create_task(watch())
        try:
            line.advance()
            if line.problem is not None:
                await _send_problem(send, line.problem)
                return
            await self._pass_on(order, hearing, line, send)
        finally:
            watching.cancel()
            line.cancel()
            hearing.close()

    async def _pass_on(self, order: Order, hearing: Hearing, line: Line, send: Send) -> None:
        reply = order.reply
        has_begun = has_words = is_over = False
        while not is_over:
            chunks: list[Json] = []
            batch = await hearing.next(gathers=has_words)
            for n, heard in batch:
                has_words |= isinstance(heard, LocalToken | SpanDelta)
                line.hear(heard, n)
                chunks += reply.push(heard, n)
                if reply.is_stopped(n):
                    line.cancel_one(n)
            if reply.problem is not None:
                line.cancel()
            line.advance()
            is_over = line.is_over
            problem = reply.problem or line.problem
            if not hearing.is_wanted:
                continue  # it is heard to its end all the same, and counted
            if problem is not None:
                hearing.is_wanted = False
                if has_begun:
                    await _send_body(send, b"".join(map(sse, [*chunks, problem.body])))
                else:
                    await _send_problem(send, problem)
            elif order.is_stream and (chunks or (has_begun and not batch)):  # what is held back is no silence
                if not has_begun:
                    has_begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
                data = b"".join(map(sse, chunks)) or _COMMENT
                if is_over:
                    await _send_body(send, data + DONE)
                else:
                    await _send_body(send, data, more=True)
            elif is_over:
                await _send(send, 200, Document(encoded(reply.whole()), _JSON_HEADERS))


class Line:
    """The jobs of one request, one after the other: as many are under way as there are lanes, and at most one
    of them waits for its lane. So a request takes one place of the queue, however many answers it wants, and
    an answer finds the prompt that it shares with the one before in the cache.
    """

    def __init__(self, desk: Desk, jobs: Sequence[Job], hearing: Hearing, metrics: Metrics) -> None:
        self._desk = desk
        self._hearing = hearing
        self._metrics = metrics
        self._later = deque(enumerate(jobs))
        self._under_way: dict[int, tuple[Ticket, Following]] = {}
        self._waiting: int | None = None  # the job of which nothing was heard yet
        self.problem: Problem | None = None
        """Why there was no place for one of them."""

    @property
    def is_over(self) -> bool:
        return not (self._under_way or self._later)

    def advance(self) -> None:
        """Submit the next one if it is time. One that finds no place waits for those of its own request."""
        if not self._later or self._waiting is not None or len(self._under_way) >= self._desk.lanes:
            return
        n, job = self._later[0]
        following = self._metrics.follow(job.continues)
        try:
            ticket = self._desk.submit(job, self._hearing.ear(n))
        except EdgeError as error:
            if not (self._under_way and isinstance(error, Busy)):
                self._metrics.failed(error)
                self.problem = problem_of(error)
                self.cancel()
            return
        self._later.popleft()
        self._under_way[n] = (ticket, following)
        self._waiting = n

    def hear(self, heard: Heard, n: int) -> None:
        _, following = self._under_way[n]
        following.hear(heard)
        if self._waiting == n:
            self._waiting = None
        if isinstance(heard, Over):
            del self._under_way[n]

    def cancel_one(self, n: int) -> None:
        if n in self._under_way:
            self._under_way[n][0].cancel()

    def cancel(self) -> None:
        self._later.clear()
        for ticket, _ in self._under_way.values():
            ticket.cancel()


class Hearing:
    """Brings what is heard on the desk's threads to the loop, which wakes once for all that has come."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, quiet_seconds: float) -> None:
        self._loop = loop
        self._quiet_seconds = quiet_seconds
        self._heard: deque[tuple[int, Heard]] = deque()
        self._come = asyncio.Event()
        self._ended = asyncio.Event()  # one of the jobs has: what it said last does not wait
        self._is_woken = False
        self._is_nudged = False
        self._woke = loop.time()
        self._timer = loop.call_later(quiet_seconds, self._look)
        self.is_wanted = True
        """The client is there, and was told of no problem yet."""

    def ear(self, choice: int) -> Callable[[Heard], None]:
        """For one of the jobs; to be called on any thread."""

        def hear(heard: Heard) -> None:
            self._heard.append((choice, heard))
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                if isinstance(heard, Over):
                    self._loop.call_soon_threadsafe(self._ended.set)
                if not self._is_woken:
                    self._is_woken = True
                    self._loop.call_soon_threadsafe(self._come.set)

        return hear

    async def next(self, *, gathers: bool = False) -> list[tuple[int, Heard]]:
        """What has come, once there is something; nothing after a long silence, or if the client left.

        Args:
            gathers: whether what comes within a few milliseconds of the last time waits for the rest of them,
                so that a model of a thousand tokens a second is not woken for, and held up, at each.
        """
        come: list[tuple[int, Heard]] = []
        while not (come or self._is_nudged):
            await self._come.wait()
            early = self._woke + _GATHER_SECONDS - self._loop.time()
            if gathers and early > 0 and self.is_wanted:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), early)
            self._come.clear()
            self._ended.clear()
            self._is_woken = False  # before the look: what comes during it wakes again, maybe for nothing
            while self._heard:
                come.append(self._heard.popleft())
        self._is_nudged = False
        self._woke = self._loop.time()
        return come

    def leave(self) -> None:
        self.is_wanted = False
        self._nudge()

    def close(self) -> None:
        self._timer.cancel()

    def _nudge(self) -> None:
        self._is_nudged = True
        self._come.set()

    def _look(self) -> None:
        silent = self._loop.time() - self._woke
        if silent >= self._quiet_seconds:
            self._nudge()
            silent = 0.0
        self._timer = self._loop.call_later(self._quiet_seconds - silent, self._look)


def _agent(scope: Scope) -> str:
    """Who asks, as far as it says so."""
    found = next((value for name, value in scope["headers"] if name == b"user-agent"), b"")
    return str(found[:_MAX_AGENT_CHARS], "latin-1")


def _route_of(path: str) -> str:
    """As one of ours, since the label of a metric must not be a client's text."""
    if path in _PATHS:
        return path
    return MODEL_PATH if path.startswith("/v1/models/") else "other"


async def _send(send: Send, status: int, document: Document, *more: tuple[str, str]) -> None:
    headers = [(name.encode(), value.encode()) for name, value in (*document.headers, *more)]
    headers.append((b"content-length", str(len(document.body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await _send_body(send, document.body)


async def _send_body(send: Send, body: bytes, *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _send_problem(send: Send, problem: Problem) -> None:
    wait = [] if problem.retry_after is None else [("retry-after", str(problem.retry_after))]
    await _send(send, problem.status, Document(encoded(problem.body), _JSON_HEADERS), *wait)
