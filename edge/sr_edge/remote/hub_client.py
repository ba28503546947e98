"""GET from a hub of models: pages as a stream, over lines of the door, for us and for huggingface_hub.

Each request runs on a thread of its own, so that whoever waits for it can be stopped at any moment, even
while a name is looked up. What a reply means is for `sr_edge.hub`.
"""

from __future__ import annotations

import ipaddress
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self, TypeAlias
from urllib.parse import urljoin

from sr_edge import __version__
from sr_edge.errors import UsageError
from sr_edge.remote.egress import Door, OfflineError, Site, page_of
from sr_edge.remote.exchange import HungUpError, Reply
from sr_edge.remote.failure import CONNECTION_ERRORS, FailedError, Failure, of_connection

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from sr_edge.remote.line import Line

STALL_SECONDS = 60.0
"""Without a byte; then the connection is given up."""

_CONNECT_SECONDS = 20.0
_TICK = 0.1  # seconds between two looks at whether to go on
_MAX_REDIRECTS = 5
_MAX_URL = 16_000  # characters; a signed one of a store takes 1,500
_READ_AHEAD = 32  # pieces of 64 KiB
_MAX_REDIRECT_PAGE = 64 << 10  # bytes that are worth reading for the connection's sake
_TOLD = ("content-type", "retry-after", "x-error-code", "x-error-message")
"""Headers that huggingface_hub gets: it prints some others, such as warnings, whatever is in them."""
_MAX_PAGE = 64 << 20  # bytes of a page that is read whole; a list of 10,000 files takes 4 MB


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply whose body is still to be read."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    linked: Mapping[str, str]
    """Of the hub's own reply, where it redirected to somebody else; else the same."""
    where: str
    """Host and port of whoever answered in the end."""
    chunks: Iterator[bytes]
    """The body as it arrives.

    Raises:
        FailedError: it was cut, or nothing came for too long.
    """

    def read(self) -> bytes:
        """Raises: FailedError: as above, or it is larger than any page."""
        data = bytearray()
        for chunk in self.chunks:
            data += chunk
            if len(data) > _MAX_PAGE:
                line = f"the answer of {self.where} is larger than {_MAX_PAGE >> 20} MiB"
                raise FailedError(Failure(line, "refused"))
        return bytes(data)


class HubClient:
    """Asks one hub, and whomever it redirects to. The token goes to the hub alone, and over TLS alone.

    Neither proxies nor certificates of the environment are used.
    """

    def __init__(
        self,
        door: Door,
        endpoint: str,
        *,
        token: str | None = None,
        tick: Callable[[], None] = lambda: None,
        stall: float = STALL_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Args:
        endpoint: `https://host`; plain HTTP for this machine only.
        tick: called some times a second while something is awaited; what it raises ends the request.
        stall: seconds without a byte after which a connection is given up.
        Raises:
            UsageError: it can't be the address of a hub.
        """
        self._hub, path = page_of(endpoint, on_loopback=True)
        self.endpoint = self._hub.base + path.rstrip("/")
        self._door = door
        self._token = token
        self._tick = tick
        self._stall = stall
        self._sleep = sleep
        self._kept: dict[Site, Line] = {}
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def where(self) -> str:
        return self._hub.where

    @property
    def has_token(self) -> bool:
        return self._token is not None

    def wait(self, seconds: float) -> None:
        """Until it is time for another try, unless `tick` raises."""
        while seconds > 0:
            self._tick()
            self._sleep(min(seconds, _TICK))
            seconds -= _TICK

    def without_token(self, said: str) -> str:
        if self._token is None:
            return said
        return re.sub(re.escape(self._token), "***", said, flags=re.IGNORECASE)  # a host is in small letters

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[Answer]:
        """The reply of whoever has the page in the end.

        Raises:
            FailedError: there is none.
            OfflineError: nobody is asked.
        """
        request = _Request(self._stall, self._hub.where)

        def work() -> None:
            request.run(lambda: self._ask(request, url, headers or {}))

        threading.Thread(target=work, name="sr-edge hub", daemon=True).start()
        try:
            answer = request.arrived(self._tick)
            assert isinstance(answer, Answer)
            yield Answer(
                answer.status, answer.headers, answer.linked, answer.where, request.pieces(self._tick)
            )
        finally:
            request.give_up()

    @contextmanager
    def api(self) -> Iterator[HfApi]:
        """huggingface_hub, which meanwhile has no other way out than this one, whoever calls it."""
        import httpx2
        from huggingface_hub import HfApi, set_client_factory
        from huggingface_hub.utils._http import default_client_factory

        get = self.get

        class Transport(httpx2.BaseTransport):
            def handle_request(self, request: httpx2.Request) -> httpx2.Response:
                assert request.method == "GET", "nothing is ever written to a hub"
                with get(str(request.url)) as answer:
                    told = {name: answer.headers[name] for name in _TOLD if name in answer.headers}
                    return httpx2.Response(answer.status, headers=told, content=answer.read())

        set_client_factory(lambda: httpx2.Client(transport=Transport(), trust_env=False, timeout=None))
        log = logging.getLogger("huggingface_hub")
        level = log.level
        log.setLevel(logging.CRITICAL)  # what it makes of a hub's words is no line of ours
        try:
            yield HfApi(endpoint=self.endpoint, token=False)
        finally:
            log.setLevel(level)
            set_client_factory(default_client_factory)

    def close(self) -> None:
        with self._lock:
            lines, self._kept, self._is_closed = list(self._kept.values()), {}, True
        for line in lines:
            line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    # --- on the thread of one request ----------------------------------------------------------------

    def _ask(
        self, request: _Request, url: str, headers: Mapping[str, str]
    ) -> tuple[Answer, Callable[[], None]]:
        """Returns the answer, and what to do once its body was read to the end."""
        linked: Mapping[str, str] | None = None
        for _ in range(_MAX_REDIRECTS + 1):
            site, target = self._page(url, is_first=linked is None)
            line = self._line(site, request)
            reply = line.send(
                "GET",
                target,
                {**self._headers(site), **headers},
                None,
                timeout=_CONNECT_SECONDS + self._stall,
                tell=lambda stage: None,
            )
            linked = reply.headers if linked is None else linked
            if reply.status not in (301, 302, 303, 307, 308) or "location" not in reply.headers:
                chunks = _paced(reply, line, self._stall)
                answer = Answer(reply.status, reply.headers, linked, site.where, chunks)
                return answer, partial(self._keep, site, line)
            self._leave(site, line, reply)
            url = urljoin(url, reply.headers["location"])
        raise FailedError(Failure(f"{self._hub.where} redirects more than {_MAX_REDIRECTS} times", "refused"))

    def _page(self, url: str, *, is_first: bool) -> tuple[Site, str]:
        """Raises: FailedError: it is nobody that may be asked."""
        try:
            if len(url) > _MAX_URL:
                raise UsageError(f"the address is longer than {_MAX_URL:,} characters")
            site, page = page_of(url, on_loopback=not self._hub.is_tls)
            if site.is_tls and site.host != self._hub.host and _is_in_here(site.host):
                raise UsageError(f"{site.where} is an address within the network here")
        except UsageError as error:
            if is_first:
                raise
            line = f"{self._hub.where} redirects to where nothing is fetched from: {error}"
            raise FailedError(Failure(line, "refused")) from None
        return site, page

    def _headers(self, site: Site) -> dict[str, str]:
        headers = {
            "Host": site.where,
            "Accept": "*/*",
            "Accept-Encoding": "identity",  # lengths and hashes are those of the file
            "User-Agent": f"sr-edge/{__version__}",
        }
        if self._token is not None and site == self._hub:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _line(self, site: Site, request: _Request) -> Line:
        with self._lock:
            line = self._kept.pop(site, None)
        if line is not None and not line.can_send:
            line.close()
            line = None
        if line is None:
            line = self._door.line(site, connect_timeout=_CONNECT_SECONDS)
        request.takes(line, site.where)
        return line

    def _leave(self, site: Site, line: Line, reply: Reply) -> None:
        """A redirect's own page is of no interest, but its connection is."""
        if not reply.ends_by_itself:
            line.close()
            return
        size = 0
        line.give(self._stall)
        for chunk in reply.chunks:
            size += len(chunk)
            if size > _MAX_REDIRECT_PAGE:
                break
        self._keep(site, line)

    def _keep(self, site: Site, line: Line) -> None:
        if not line.can_send:
            line.close()
            return
        with self._lock:
            unwanted: Line | None = line  # a request that was given up may end after all of them
            if not self._is_closed:
                unwanted = self._kept.get(site)
                self._kept[site] = line
        if unwanted is not None:
            unwanted.close()


def _is_in_here(host: str) -> bool:
    """Whether it is a number, in any spelling, that the world cannot reach: only a name has a certificate."""
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_global
    except ValueError:
        last = host.removesuffix(".").rpartition(".")[2]
        return last == "localhost" or re.fullmatch(r"\d+|0[xX][\da-fA-F]*", last) is not None


def _paced(reply: Reply, line: Line, stall: float) -> Iterator[bytes]:
    line.give(stall)
    for chunk in reply.chunks:
        yield chunk
        line.give(stall)


_Arrived: TypeAlias = Answer | bytes | BaseException | None  # None: the end


class _Request:
    """One request between the thread that makes it and the one that waits for it."""

    def __init__(self, stall: float, where: str) -> None:
        self._stall = stall
        self._where = where
        self._queue: queue.Queue[_Arrived] = queue.Queue(_READ_AHEAD)
        self._lock = threading.Lock()
        self._line: Line | None = None
        self._is_given_up = False

    def run(self, ask: Callable[[], tuple[Answer, Callable[[], None]]]) -> None:
        last: BaseException | None = None
        try:
            answer, done = ask()
            self._pass(answer)
            for chunk in answer.chunks:
                self._pass(chunk)
            with self._lock:
                self._line = None  # it is no more ours to hang up
            done()
        except BaseException as error:  # it is raised where it is waited for
            last = error
            if self._line is not None:
                self._line.close()
        with suppress(HungUpError):  # nobody waits
            self._pass(last)

    def takes(self, line: Line, where: str) -> None:
        with self._lock:
            self._line, self._where = line, where
            if self._is_given_up:
                line.hang_up()

    def _pass(self, arrived: _Arrived) -> None:
        while not self._is_given_up:
            try:
                return self._queue.put(arrived, timeout=_TICK)
            except queue.Full:
                pass
        raise HungUpError

    def arrived(self, tick: Callable[[], None]) -> Answer | bytes | None:
        """Raises: FailedError, OfflineError."""
        until = time.monotonic() + self._stall
        while True:
            tick()
            try:
                arrived = self._queue.get(timeout=_TICK)
                break
            except queue.Empty:
                if time.monotonic() > until:
                    line = f"{self._where} sent nothing for {self._stall:g} s"
                    raise FailedError(Failure(line, "unreachable", is_passing=True)) from None
        if isinstance(arrived, CONNECTION_ERRORS):
            raise FailedError(of_connection(arrived, self._where)) from arrived
        if isinstance(arrived, HungUpError):
            raise OfflineError  # it was the door
        if isinstance(arrived, BaseException):
            raise arrived
        return arrived

    def pieces(self, tick: Callable[[], None]) -> Iterator[bytes]:
        while (arrived := self.arrived(tick)) is not None:
            assert isinstance(arrived, bytes)
            yield arrived

    def give_up(self) -> None:
        """Nothing more is waited for."""
        with self._lock:
            self._is_given_up = True
            if self._line is not None:
                self._line.hang_up()
