"""What a request must pass before anybody looks at what it wants: where it comes from, who asks, how much.

Each check is an ASGI application around another one, and refuses by raising `Refused`, which the outermost,
`Guard`, answers in the shape that OpenAI's clients know. The order is Host, Origin, (path and method, by the
router), token, kind of content, size of the body.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sr_edge.errors import UsageError

Headers = list[tuple[bytes, bytes]]

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)
"""Of every response, whoever wrote it, unless it has a value of its own."""

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CORS_SECONDS = b"600"
_DEFAULT_PORT = 80


class Refused(Exception):
    """A request that is not let in, or not further. The message is for its sender."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = tuple(headers)


def error_body(refused: Refused) -> bytes:
    """In OpenAI's shape."""
    kind = _TYPES.get(refused.status, "invalid_request_error" if refused.status < 500 else "server_error")
    error = {"message": refused.message, "type": kind, "param": refused.param, "code": refused.code}
    return json.dumps({"error": error}, ensure_ascii=False).encode()


def error_headers(refused: Refused, body: bytes) -> Headers:
    return [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *refused.headers,
    ]


# --- where a request comes from -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Names:
    """What this server is called: a name that somebody else gave it (DNS rebinding) is not among them."""

    hosts: frozenset[bytes]
    """As in a Host header, in small letters."""
    origins: frozenset[bytes]
    """Our own, and those of other sites that the user listed."""
    listed: frozenset[bytes]
    """Only the latter: their pages may read what we answer."""


def names_of(
    port: int, *, bound: str = "127.0.0.1", hosts: Iterable[str] = (), origins: Iterable[str] = ()
) -> Names:
    """Args:
        bound: the address that is listened at.
        hosts: names besides, `NAME` (at our port or at none) or `NAME:PORT`.
        origins: of sites whose pages may ask.

    Raises:
        UsageError: one cannot be meant.
    """
    own = {f"{name}:{port}" for name in LOOPBACK_NAMES}
    address = ipaddress.ip_address(bound)
    if not address.is_unspecified:
        own.add(f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}")
    for named in hosts:
        name, named_port = _host(named)
        own |= {name, f"{name}:{port}"} if named_port is None else {f"{name}:{named_port}"}
    own |= {name.removesuffix(f":{_DEFAULT_PORT}") for name in own}
    listed = frozenset(_origin(origin).encode() for origin in origins)
    return Names(
        hosts=frozenset(name.encode() for name in own),
        origins=frozenset(f"http://{name}".encode() for name in own) | listed,
        listed=listed,
    )


_HOST = re.compile(
    r"(?P<name>[a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:(?P<port>[1-9][0-9]{0,4}))?", re.ASCII
)
_ORIGIN = re.compile(
    r"[a-z][a-z0-9+.-]*://([a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?", re.ASCII
)


def _host(text: str) -> tuple[str, int | None]:
    found = _HOST.fullmatch(text.lower())
    port = int(found["port"]) if found and found["port"] else None
    if found is None or (port is not None and port > 65535):
        raise UsageError(
            f"--allow-host {text!r} is no host: write NAME or NAME:PORT as it stands in an address, without "
            "http:// and without *"
        )
    return found["name"], port


def _origin(text: str) -> str:
    found = text.lower().removesuffix("/")
    if not _ORIGIN.fullmatch(found):
        raise UsageError(
            f"--allow-origin {text!r} is no origin: write scheme, host and port, as in https://app.example:8443"
        )
    scheme, _, rest = found.partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme, "")
    return f"{scheme}://{rest.removesuffix(default)}"  # as a browser says it


class Guard:
    """The outermost: Host and Origin, CORS where it is listed, headers of every response, and the end of
    every error."""

    def __init__(
        self, app: ASGIApp, names: Names, *, crashed: Callable[[Exception], None] = lambda error: None
    ) -> None:
        """Args:
        crashed: told of what is a bug of ours.
        """
        self._app = app
        self._names = names
        self._crashed = crashed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        headers: Headers = scope["headers"]
        has_begun = False
        cors = self._cors(headers)

        async def answer(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                message = {**message, "headers": _with(message.get("headers", []), cors)}
            await send(message)

        try:
            self._check(scope, headers)
            if cors and _is_preflight(scope, headers):
                await _allow(answer)
                return
            await self._app(scope, receive, answer)
        except Refused as refused:
            await respond(answer, refused)
        except Exception as error:
            self._crashed(error)
            if has_begun:
                raise  # the connection is cut: what went out must not look whole
            await respond(answer, Refused(500, "server_error", "the server failed: its own output says how"))

    def _check(self, scope: Scope, headers: Headers) -> None:
        hosts = _all(headers, b"host")
        if not scope["raw_path"].startswith(b"/") and scope["raw_path"] != b"*":
            raise misdirected("the request names a whole address; this is no proxy")
        if len(hosts) != 1 or hosts[0].lower() not in self._names.hosts:
            raise misdirected("this server does not go by the name in the Host header")
        if scope["http_version"] not in ("1.0", "1.1"):
            raise malformed("this server speaks HTTP/1.1")
        # Framing that two parties may read differently.
        if _all(headers, b"content-length") and _all(headers, b"transfer-encoding"):
            raise malformed("Content-Length and Transfer-Encoding exclude each other")
        origins = _all(headers, b"origin")
        if len(origins) > 1 or any(origin not in self._names.origins for origin in origins):
            raise Refused(
                403,
                "origin_not_allowed",
                "this page may not ask: start the server with --allow-origin and its origin to let it",
            )

    def _cors(self, headers: Headers) -> Headers:
        """For listed sites only; nobody else learns anything from a header."""
        origins = _all(headers, b"origin")
        if len(origins) == 1 and origins[0] in self._names.listed:
            return [(b"access-control-allow-origin", origins[0]), (b"vary", b"Origin")]
        return [(b"vary", b"Origin")] if self._names.listed else []


def misdirected(message: str) -> Refused:
    hint = "ask it at 127.0.0.1 or localhost, with its port, or start it with --allow-host"
    return Refused(421, "misdirected_request", f"{message}: {hint}", headers=CLOSE)


def malformed(message: str) -> Refused:
    return Refused(400, "bad_request", message, headers=CLOSE)


CLOSE = ((b"connection", b"close"),)


async def respond(send: Send, refused: Refused) -> None:
    body = error_body(refused)
    headers = error_headers(refused, body)
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _allow(send: Send) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", b"authorization, content-type, *"),
        (b"access-control-max-age", _CORS_SECONDS),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body"})


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return scope["method"] == "OPTIONS" and bool(_all(headers, b"access-control-request-method"))


def _with(headers: Iterable[tuple[bytes, bytes]], more: Headers) -> Headers:
    given = list(headers)
    names = {name.lower() for name, _ in given}
    return [*given, *((name, value) for name, value in (*SECURITY_HEADERS, *more) if name not in names)]


def _all(headers: Headers, name: bytes) -> list[bytes]:
    """uvicorn gives names in small letters."""
    return [value for found, value in headers if found == name]


# --- who asks ----------------------------------------------------------------------------------------


class NeedsToken:
    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = _all(scope["headers"], b"authorization")
        scheme, _, shown = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        is_right = hmac.compare_digest(shown.strip(), self._token)
        if scheme.lower() != b"bearer" or not is_right:
            raise Refused(
                401,
                "invalid_api_key",
                "this server wants its token as the API key: `sr-edge serve --print-token` prints it",
                headers=[(b"www-authenticate", b"Bearer")],
            )
        await self._app(scope, receive, send)


# --- how much ----------------------------------------------------------------------------------------


class JsonBody:
    """Lets JSON through, of a size and within a time; the application gets the body whole.

    A browser sends JSON to another site only after it has asked whether it may.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = scope["headers"]
        _check_content(headers)
        length = _all(headers, b"content-length")
        if length and int(length[0]) > self._max_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(receive)
        except TimeoutError:
            raise Refused(
                408, "request_timeout", f"the body was not there after {self._seconds:g} s", headers=CLOSE
            ) from None
        if body is None:
            return  # the client has left
        is_read = False

        async def receive_whole() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()  # which waits for the client to leave
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_whole, send)

    async def _read(self, receive: Receive) -> bytes | None:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> Refused:
        return Refused(
            413,
            "request_too_large",
            f"the body is larger than {self._max_bytes:,} bytes, the most that is read",
            headers=CLOSE,
        )


def _check_content(headers: Headers) -> None:
    kinds = _all(headers, b"content-type")
    kind, *parameters = kinds[0].lower().split(b";") if len(kinds) == 1 else [b""]
    charsets = [part.strip().partition(b"=")[2].strip(b'"') for part in parameters if b"charset" in part]
    if kind.strip() != b"application/json" or any(charset != b"utf-8" for charset in charsets):
        raise Refused(415, "unsupported_media_type", "the body must be JSON: Content-Type: application/json")
    if any(coding.lower() != b"identity" for coding in _all(headers, b"content-encoding")):
        raise Refused(415, "unsupported_media_type", "the body must not be compressed")
