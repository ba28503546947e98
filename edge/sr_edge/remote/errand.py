"""Requests without a word of the user's: what models there are, what the server can do, whether it is there.

For commands they block, but never for longer than their deadlines, and are given up at Ctrl-C.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar

from sr_edge.errors import EdgeError, RemoteError
from sr_edge.remote.calling import Call
from sr_edge.remote.dialects import Capabilities
from sr_edge.remote.exchange import HungUpError, Reply
from sr_edge.remote.failure import FailedError, Failure, RefusedError
from sr_edge.remote.hearing import hear
from sr_edge.remote.probe import Heard, Trial
from sr_edge.remote.probe import survey as survey_of
from sr_edge.remote.reply import UnreadableError, parse_object
from sr_edge.remote.server import Server
from sr_edge.remote.stopping import stops
from sr_edge.roles import Message, Prompt

T = TypeVar("T")
Ask: TypeAlias = Callable[[str, Mapping[str, Any]], Reply]
Render: TypeAlias = Callable[[Sequence[Message]], Prompt]
Report: TypeAlias = Callable[[str, str], None]

_TELLING = (400, 404, 405, 422, 500, 501)
"""Statuses that say something about what was asked. All others say that now is no time to ask."""


def models(server: Server) -> list[str]:
    """See `Endpoint.models`."""

    def work(call: Call, report: Report) -> list[str]:
        return [server.safe_line(name) for name in names_of_models(_page(call), server)]

    return _Errand(server, work).run()


def survey(server: Server, render: Render, report: Report, *, full: bool) -> Capabilities:
    """See `Endpoint.survey`."""

    opening = render([Message("user", "?")]).opening

    def work(call: Call, report: Report) -> Capabilities:
        if not server.is_model_known:
            server.learn_model(first_model(lambda: _page(call), server))

        def ask(path: str, body: Mapping[str, Any]) -> Reply:
            return call.ask("POST", path, body)

        found = find_out(lambda trial: listen(call, ask, trial), server, opening, render, full=full)
        if full:
            can_cancel = stops(call, ask, found, model=server.model, render=render, clock=server.clock)
            if can_cancel is not None:
                found = replace(found, can_cancel=can_cancel)
                server.learn(found)
        for dialect, verdict in found.findings:
            report(dialect, verdict)
        return found

    return _Errand(server, work).run(report)


def knock(server: Server, heard: Callable[[bool], None]) -> None:
    """See `Endpoint.knock`."""
    if server.is_offline:
        heard(False)
        return

    def run() -> None:
        is_there = False
        limits = server.deadlines
        call = Call(server, tell=lambda stage: None, timeout=limits.connect + limits.first_byte)
        try:
            reply = call.send("GET", "/models")
            is_there = reply.status < 500
            call.small_body(reply)
        except (FailedError, HungUpError, EdgeError):
            pass  # nobody is there
        finally:
            call.end()
            heard(is_there)

    threading.Thread(target=run, name="sr-edge knock", daemon=True).start()


# --- on the thread of whoever asks --------------------------------------------------------------------------


def first_model(read_page: Callable[[], str], server: Server) -> str | None:
    """The name to ask the server by, if it has any.

    Args:
        read_page: asks for `/models`.
    Raises:
        FailedError: it can't be asked.
    """
    try:
        page = read_page()
    except RefusedError as refused:
        if refused.status in (404, 405, 501):
            return None  # such a server has one model, or says later that it wants a name
        raise
    return next(iter(names_of_models(page, server)), None)


def names_of_models(page: str, server: Server) -> list[str]:
    """Raises:
    FailedError: it is no list of models.
    """
    try:
        models = parse_object(page).get("data")
    except UnreadableError:
        line = f"{server.site.base}/models is no list; is the URL that of an OpenAI-compatible endpoint?"
        raise FailedError(Failure(line, "refused")) from None
    listed = models if isinstance(models, list) else []
    names = [model.get("id") for model in listed if isinstance(model, Mapping)]
    return [name for name in names if isinstance(name, str)]


class TookTooLongError(Exception):
    """A trial was broken off: its survey may take no longer."""


def listen(call: Call, ask: Ask, trial: Trial) -> Heard:
    """What comes of a trial.

    Args:
        ask: posts a body to a path on `call`, for a reply that is a 200.
    Raises:
        FailedError: nothing.
    """
    reply = ask(trial.path, trial.body)
    heard = hear(call.chunks(reply), call.hurry)
    call.drain(reply)
    return heard


def find_out(
    hear_of: Callable[[Trial], Heard],
    server: Server,
    opening: str,
    render: Render,
    *,
    full: bool,
    until: float | None = None,
) -> Capabilities:
    """What the server can do, kept in it. Unless `full`, each verdict is kept as it comes; where an earlier
    survey was broken off, this one goes on from there.

    Args:
        hear_of: sends a trial.
        opening, render: as for `probe.survey`.
        until: when to break off, on the server's clock: a trial that may not be done by then is left for the
            next run, and what is returned has no `text`.
    Raises:
        FailedError: it is not well enough to tell, or answers nothing.
    """
    known = server.capabilities
    so_far = known if known is not None and known.text is None and not full else None
    trials = survey_of(
        model=server.model,
        opening=opening,
        host=server.site.where,
        completions=render,
        full=full,
        quirks=server.quirks,
        so_far=so_far,
    )
    has_answered, refused = so_far is not None, None
    heard, longest, began = None, 0.0, server.clock()
    try:
        while True:
            trial = next(trials) if heard is None else trials.send(heard)
            if has_answered and not full and trial.so_far != server.capabilities:
                server.learn(trial.so_far)
            now = server.clock()
            if until is not None and now + longest > until:
                break
            try:
                heard = hear_of(trial)
                has_answered = True
            except RefusedError as error:
                if error.status not in _TELLING:
                    raise
                # A template that can't do with an unfinished answer is an error inside of some servers.
                heard, refused = Heard(400 if error.status == 500 else error.status, error.body), error
            except TookTooLongError:
                if until is None or now - began > (until - began) / 2:
                    break  # it had only what others had left of the time
                heard, has_answered = Heard(200), True  # silent: or the next run would come no further
            longest = max(longest, server.clock() - now)
    except StopIteration as stop:
        found: Capabilities = stop.value
        if not has_answered and refused is not None:
            raise refused from None  # that it refuses everything is nothing to be remembered
        server.learn(found)
    else:
        found = trial.so_far
    server.was_surveyed = True
    return found


def _page(call: Call) -> str:
    return call.small_body(call.ask("GET", "/models"))


# --- on a thread of its own, waited for ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sign:
    """It goes on: something to report, or just a sign of life."""

    dialect: str | None = None
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    value: T


class _Errand(Generic[T]):
    """Work that is waited for, as long as it gets on."""

    def __init__(self, server: Server, work: Callable[[Call, Report], T]) -> None:
        limits = server.deadlines
        self._server = server
        self._work = work
        self._patience = limits.connect + limits.first_content
        self._call = Call(server, tell=lambda stage: self._news.put(_Sign()), timeout=self._patience)
        self._news: queue.SimpleQueue[_Sign | _Done[T] | BaseException] = queue.SimpleQueue()

    def run(self, report: Report = lambda dialect, verdict: None) -> T:
        """Raises:
        RemoteError, OfflineError
        """
        threading.Thread(target=self._run, name="sr-edge errand", daemon=True).start()
        try:
            while True:
                match self._news.get(timeout=self._patience):
                    case _Done(value):
                        return value
                    case _Sign(dialect, verdict):
                        if dialect is not None:
                            report(dialect, verdict)
                    case FailedError() as failed:
                        raise RemoteError(self._server.safe_line(str(failed))) from None
                    case BaseException() as error:
                        raise error
        except queue.Empty:
            self._call.hang_up()
            line = f"{self._server.site.where} said nothing within {self._patience:g} s"
            raise RemoteError(f"{line}; check the URL and the network") from None
        except BaseException:
            self._call.hang_up()  # nobody waits for it any more
            raise

    def _run(self) -> None:
        news: _Done[T] | BaseException
        try:
            news = _Done(self._work(self._call, lambda *found: self._news.put(_Sign(*found))))
        except BaseException as error:  # it is raised where it is waited for
            news = error
        self._call.end()
        self._news.put(news)
