"""Asks our own server, on this machine: for its chunks, or for the events that it made them of.

To others an answer is text. To us each chunk brings the events behind it (`sr_edge.events`), all of them, so
that what `Session.answer` yields there is what a client hears here. Who has heard enough hangs up. How a
server is started as a child of ours is `serving`'s business.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, Self

from sr_edge.errors import RemoteError, UsageError
from sr_edge.events import Event, Finished, from_json
from sr_edge.files import state_dir
from sr_edge.policy import Dial
from sr_edge.remote.calling import Call
from sr_edge.remote.deadlines import Deadlines
from sr_edge.remote.dialects import CHAT, INSTRUCT
from sr_edge.remote.egress import Door, site_of
from sr_edge.remote.exchange import HungUpError, Reply
from sr_edge.remote.failure import FailedError, RefusedError
from sr_edge.remote.reply import DONE, UnreadableError, error_text, parse_object
from sr_edge.remote.server import Server
from sr_edge.remote.sse import SseDecoder, SseLimitError
from sr_edge.roles import Message, Schedule

TOKEN_VARIABLE: Final = "SR_EDGE_SERVE_TOKEN"

_LOOK = 0.05  # seconds between two looks at `cancelled`
_PAUSE = 1.0  # seconds, where a busy server does not say how long to wait
_BUSY = 429
_VARIANTS: Final[Mapping[Dial, str]] = {"auto": "", "local": ":local", "remote": ":remote"}

Cancelled = Callable[[], bool]


class ServedError(RemoteError):
    """The server refused, or broke off."""

    def __init__(self, line: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(line)
        self.status = status
        """Of HTTP, where it refused; None where it broke off."""
        self.retry_after = retry_after
        """Seconds that it asks us to wait."""


class ServedClient:
    """One answer at a time from `sr-edge serve`, over a connection that is kept."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        door: Door | None = None,
        seconds: float = 600.0,
        patience: float = 60.0,
    ) -> None:
        """Opens nothing.

        Args:
            url: as the server prints it; of this machine only, for what it speaks is not encrypted.
            door: None opens one of its own.
            seconds: the most that one answer may take, the wait for its turn included.
            patience: seconds for which a server that is busy is asked again.
        Raises:
            UsageError: the URL can't be meant.
        """
        site = site_of(url, plain_http=True)
        if site.reach != "loopback":
            raise UsageError(
                f"{site.where} is another machine: bring its port to this one, as with "
                f"`ssh -L {site.port}:127.0.0.1:{site.port} {site.host}`, and name http://127.0.0.1:{site.port}"
            )
        self._server = Server(
            site,
            door or Door(),
            key=token,
            model=None,
            pinned=INSTRUCT,
            capabilities=None,
            learned=lambda capabilities: None,
            deadlines=Deadlines(),
        )
        self._seconds = seconds
        self._patience = patience

    @property
    def where(self) -> str:
        """Host and port."""
        return self._server.site.where

    def models(self) -> list[str]:
        """Raises: ServedError, OfflineError"""
        call = self._new_call()
        try:
            listed = parse_object(call.small_body(call.ask("GET", "/models")))
            return [str(model["id"]) for model in listed["data"]]
        except FailedError as error:
            raise self._error(error) from None
        except (UnreadableError, KeyError, TypeError):
            raise ServedError(f"{self.where} lists no models: is it `sr-edge serve`?") from None
        finally:
            call.end()

    def events(self, body: Mapping[str, Any], *, cancelled: Cancelled | None = None) -> Generator[Event]:
        """The events of one answer as they come. Where it is cancelled they end, whatever the last one was.

        Args:
            body: of a chat completion: model, messages, and what else the server takes.
            cancelled: looked at on another thread too.
        Raises:
            ServedError, OfflineError
        """
        is_finished = False
        with closing(self.chunks({**body, "sr_edge": {"events": True}}, cancelled=cancelled)) as chunks:
            for chunk in chunks:
                for event in events_of(chunk):
                    is_finished = isinstance(event, Finished)
                    yield event
        if not is_finished and not (cancelled is not None and cancelled()):
            raise ServedError(f"{self.where} ended an answer before its last event")

    def chunks(
        self, body: Mapping[str, Any], *, cancelled: Cancelled | None = None
    ) -> Generator[dict[str, Any]]:
        """The chunks of one answer as they come. To close the iterator is to hang up.

        Raises: ServedError, OfflineError
        """
        call = self._new_call()
        try:
            with _hanging_up(call, cancelled):
                reply = self._reply(call, {**body, "stream": True}, cancelled)
                yield from self._read(call, reply)
        except HungUpError:
            pass
        except FailedError as error:
            raise self._error(error) from None
        except (UnreadableError, SseLimitError) as error:
            raise ServedError(f"{self.where} sent what is no chunk: {error}") from None
        finally:
            call.end()

    def close(self) -> None:
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _new_call(self) -> Call:
        return Call(self._server, tell=lambda stage: None, timeout=self._seconds)

    def _reply(self, call: Call, body: Mapping[str, Any], cancelled: Cancelled | None) -> Reply:
        until = time.monotonic() + self._patience
        while True:
            try:
                return call.ask("POST", CHAT, body)
            except RefusedError as error:
                wait = error.failure.retry_after or _PAUSE
                if error.status != _BUSY or time.monotonic() + wait > until:
                    raise
            again = time.monotonic() + wait
            while time.monotonic() < again:
                if cancelled is not None and cancelled():
                    raise HungUpError
                time.sleep(_LOOK)

    def _read(self, call: Call, reply: Reply) -> Iterator[dict[str, Any]]:
        decoder, is_whole = SseDecoder(), False
        for data in call.chunks(reply):
            for event in decoder.push(data):
                if event.data == DONE:
                    is_whole = True
                    continue
                chunk = parse_object(event.data)
                if "error" in chunk:
                    raise ServedError(self._line(f"broke the answer off: {error_text(chunk)}"))
                yield chunk
        if not is_whole:
            raise ServedError(f"{self.where} broke the answer off")

    def _error(self, error: FailedError) -> ServedError:
        if not isinstance(error, RefusedError):
            return ServedError(self._line(error.failure.line, named=True))
        if error.status == 401:
            line = f"does not take the token: it is another server's, or {TOKEN_VARIABLE} is out of date"
            return ServedError(self._line(line), status=401)
        try:
            said = error_text(parse_object(error.body))
        except UnreadableError:
            said = "no reason was given; is it `sr-edge serve`?"
        how = "is busy" if error.status == _BUSY else "refused"
        line = self._line(f"{how} (HTTP {error.status}): {said}")
        return ServedError(line, status=error.status, retry_after=error.failure.retry_after)

    def _line(self, said: str, *, named: bool = False) -> str:
        return self._server.safe_line(said if named else f"{self.where} {said}")


def events_of(chunk: Mapping[str, Any]) -> Iterator[Event]:
    """Those that a chunk brings; none from a server that was not asked for them.

    Raises: ServedError: they are none of ours, or a newer program's.
    """
    ours = chunk.get("sr_edge")
    try:
        for event in ours.get("events", ()) if isinstance(ours, dict) else ():
            yield from_json(json.dumps(event))
    except (TypeError, ValueError) as error:
        raise ServedError(f"the server's events can't be read: {error}") from None


class ServedSession:
    """A server's pair of models, asked as a `Session` is."""

    def __init__(self, client: ServedClient, *, temperature: float, seed: int, max_tokens: int) -> None:
        """Asks the server for its models.

        Raises: ServedError, OfflineError
        """
        self.dial: Dial = "auto"
        self._client = client
        self._models = client.models()
        self._sampling = {"temperature": temperature, "seed": seed, "max_tokens": max_tokens}

    @property
    def model(self) -> str:
        """The one that the dial stands for.

        Raises: UsageError: there is none.
        """
        plain = next((id for id in self._models if not id.endswith((":local", ":remote"))), "")
        id = plain + _VARIANTS[self.dial]
        if id not in self._models:
            raise UsageError(
                f"{self._client.where} has no model {id!r}, only {', '.join(self._models)}: start it with "
                "--big, or with --allow-remote"
            )
        return id

    def answer(
        self,
        messages: Sequence[Message],
        *,
        schedule: Schedule | None = None,
        cancelled: Cancelled = lambda: False,
    ) -> Iterator[Event]:
        """Raises: UsageError, ServedError, OfflineError"""
        if schedule is not None:
            raise UsageError("no server opens spans by chance: the arm random is measured without one")
        told = [{"role": message.role, "content": message.content} for message in messages]
        body = {"model": self.model, "messages": told, **self._sampling}
        return self._client.events(body, cancelled=cancelled)


def token_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where a server keeps its token."""
    return state_dir(environ) / "serve-token"


def find_token(environ: Mapping[str, str] = os.environ) -> str:
    """From the variable, or else the kept one.

    Raises: UsageError: there is none.
    """
    return environ.get(TOKEN_VARIABLE, "").strip() or kept_token(environ)


def kept_token(environ: Mapping[str, str] = os.environ) -> str:
    """Raises: UsageError: there is none, or it can't be read."""
    path = token_path(environ)
    try:
        return path.read_text("ascii").strip()
    except (OSError, ValueError):
        raise UsageError(
            f"no token for the server: {path} can't be read. Whoever runs the server sees it with "
            f"`sr-edge serve --print-token`; give it as {TOKEN_VARIABLE}"
        ) from None


@contextmanager
def _hanging_up(call: Call, cancelled: Cancelled | None) -> Iterator[None]:
    """As soon as it is cancelled: a thread that reads a silent socket looks at nothing."""
    if cancelled is None:
        yield
        return
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_LOOK):
            if cancelled():
                call.hang_up()
                return

    watching = threading.Thread(target=watch, name="sr-edge hanging up", daemon=True)
    watching.start()
    try:
        yield
    finally:
        is_over.set()
        watching.join()
