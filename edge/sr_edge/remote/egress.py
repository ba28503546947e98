"""The one way out: where a request may go, and the door that it goes through.

Only the door makes lines (`line`), so whatever it refuses stays in. Being offline means that it has none.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, urlsplit

from sr_edge.errors import EdgeError, UsageError

if TYPE_CHECKING:
    from sr_edge.remote.line import Line

Reach = Literal["anywhere", "private", "loopback"]

_PRIVATE = [
    ipaddress.ip_network(network)
    for network in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10",
        "fc00::/7", "fe80::/10",
    )
]  # fmt: skip
"""Networks that the world can't reach: RFC 1918, link-local, carrier NAT (and VPNs), IPv6's unique local."""


class OfflineError(EdgeError):
    """Nothing is sent, to nobody: the user said so."""

    def __init__(self) -> None:
        super().__init__("offline: nothing is sent, because of --offline, SR_EDGE_OFFLINE or the settings")


@dataclass(frozen=True, slots=True)
class Site:
    """Whom to ask, and how to get there. `site_of` makes one of what a user wrote."""

    base: str
    """The URL that paths are put behind."""
    where: str
    """Host and port, for messages and the Host header."""
    host: str
    port: int
    path: str
    reach: Reach
    """Addresses that it may turn out to have: plain HTTP must not leave the house."""
    is_tls: bool
    ca_file: Path | None
    proxy: tuple[str, int] | None

    def may_reach(self, address: str) -> bool:
        return self.reach == "anywhere" or _reach_of(address) in (self.reach, "loopback")


class Door:
    """Makes lines to sites, and can hang up all of them at once. One for a whole program."""

    def __init__(self, *, offline: bool = False) -> None:
        self._lock = threading.Lock()
        self._lines: weakref.WeakSet[Line] | None = None if offline else weakref.WeakSet()
        self._tls: dict[Path | None, ssl.SSLContext] = {}

    @property
    def is_offline(self) -> bool:
        return self._lines is None

    def make_ready(self) -> None:
        """Do now what else the first line would have to wait for. Opens nothing."""
        if not self.is_offline:
            _line_class()

    def line(self, site: Site, *, connect_timeout: float) -> Line:
        """A line that is not connected yet: it will be when it is used, if nobody hung up before.

        Raises:
            OfflineError: there are no more lines.
        """
        with self._lock:
            if self._lines is None:
                raise OfflineError
            tls = self._trust(site.ca_file) if site.is_tls else None
            line = _line_class()(
                site.host,
                site.port,
                tls=tls,
                proxy=site.proxy,
                may_reach=site.may_reach,
                connect_timeout=connect_timeout,
            )
            self._lines.add(line)
            return line

    def go_offline(self) -> None:
        """For good, from any thread: all lines hang up, whatever they are doing; there are no new ones."""
        with self._lock:
            lines, self._lines = self._lines, None
        for line in lines or ():
            line.hang_up()

    def _trust(self, ca_file: Path | None) -> ssl.SSLContext:
        tls = self._tls.get(ca_file)
        if tls is None:
            import httpx

            tls = httpx.create_ssl_context(trust_env=False)
            tls.minimum_version = ssl.TLSVersion.TLSv1_2
            tls.set_alpn_protocols(["http/1.1"])
            if ca_file is not None:
                tls.load_verify_locations(ca_file)
            self._tls[ca_file] = tls
        return tls


def _line_class() -> type[Line]:
    """httpx takes its time: it is not imported before somebody is to be asked."""
    from sr_edge.remote.line import Line

    return Line


def site_of(
    url: str, *, plain_http: bool = False, ca_file: Path | None = None, proxy: str | None = None
) -> Site:
    """Opens nothing and looks nothing up. A URL without a path gets `/v1`.

    Args:
        plain_http: this one may be asked without encryption, if it is on the user's own network.
        ca_file: certificates (PEM) to trust besides the usual ones.
        proxy: `http://host:port` of one that connects us through; the environment's are ignored.
    Raises:
        UsageError: it can't be the address of an endpoint, or may not be. The message quotes no credentials.
    """
    parsed = _parse(url, "the URL of an endpoint")
    if parsed.rest:
        raise UsageError("the URL of an endpoint ends with its path: it takes no ? and no #")
    is_tls = parsed.scheme == "https"
    host, where = parsed.host, parsed.where
    path = parsed.path.rstrip("/") or "/v1"
    base = f"{parsed.scheme}://{where}{path}"
    return Site(
        base=base,
        where=where,
        host=host,
        port=parsed.port or (443 if is_tls else 80),
        path=path,
        reach="anywhere" if is_tls else _plain_reach(host, where, base, plain_http),
        is_tls=is_tls,
        ca_file=None if ca_file is None else _certificates(ca_file),
        proxy=None if proxy is None else _proxy(proxy, is_tls),
    )


def page_of(url: str, *, on_loopback: bool = False) -> tuple[Site, str]:
    """Whom to ask, and for what, for one page: a path and a query as they go over the wire.

    Args:
        on_loopback: plain HTTP may be spoken, to this machine.
    Raises:
        UsageError: it can't be an address, or may not be.
    """
    parsed = _parse(url, "the URL of a page")
    where, is_tls = parsed.where, parsed.scheme == "https"
    reach: Reach = "anywhere"
    if not is_tls:
        reach = _plain_reach(parsed.host, where, f"http://{where}", plain_http=True)
        if reach != "loopback" or not on_loopback:
            raise UsageError(f"http://{where} is not encrypted: anybody on the way could change what comes")
    site = Site(
        base=f"{parsed.scheme}://{where}",
        where=where,
        host=parsed.host,
        port=parsed.port or (443 if is_tls else 80),
        path="",
        reach=reach,
        is_tls=is_tls,
        ca_file=None,
        proxy=None,
    )
    query = quote(urlsplit(url.strip()).query, safe="/%:@!$&'()*+,;=~?[]|")
    path = "/" + parsed.path.lstrip("/")  # two slashes would name a host
    return site, path + (f"?{query}" if query else "")


@dataclass(frozen=True, slots=True)
class _Url:
    """All of it as it goes over the wire."""

    scheme: str
    host: str
    port: int | None
    path: str
    rest: str
    """What follows the path."""

    @property
    def where(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


def _parse(url: str, what: str) -> _Url:
    url = url.strip()
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError("not a URL, or one with a port that does not exist: ports are 1 to 65535") from None
    authority = url.partition("://")[2].partition("/")[0]
    if "@" in authority:
        raise UsageError("the URL holds a user name or a password: give the API key apart from it")
    if "://" not in url or not url.isprintable():
        raise UsageError("not a URL: it must begin with http:// or https://, and hold no control characters")
    if url.partition("://")[0].lower() not in ("http", "https"):
        raise UsageError(f"{url!r} is not {what}: it must begin with http:// or https://")
    try:
        host = _wire_host(parts.hostname or "")
    except ValueError:
        raise UsageError("the URL names a host that cannot be: check its spelling") from None
    if not host:
        raise UsageError(f"{url!r} names no host")
    if port == 0:
        raise UsageError(f"{url!r} names a port that does not exist: ports are 1 to 65535")
    default = 443 if parts.scheme == "https" else 80
    return _Url(
        parts.scheme,
        host,
        None if port == default else port,
        quote(parts.path, safe="/%:@!$&'()*+,;=~"),
        parts.query + parts.fragment,
    )


def _wire_host(host: str) -> str:
    """In ASCII.

    Raises:
        ValueError: no host can be called so.
    """
    if host.isascii():
        labels = host.removesuffix(".").split(".")
        is_name = all(0 < len(label) < 64 for label in labels) or ":" in host
        if not re.fullmatch(r"[A-Za-z0-9._:%-]*", host) or (host and not is_name):
            raise ValueError(host)
        return host
    return host.encode("idna").decode("ascii")


def _plain_reach(host: str, where: str, base: str, plain_http: bool) -> Reach:
    """How far plain HTTP to this host may go."""
    try:
        reach: Reach | None = _reach_of(host)
    except ValueError:  # a name: its addresses will be looked at when it is asked
        reach = "loopback" if host == "localhost" else None
    if reach == "loopback":
        return "loopback"
    if reach == "anywhere":
        raise UsageError(f"plain http shows your text to all on the way to {where}: use https://{where}")
    if not plain_http:
        raise UsageError(
            f"{base} is not encrypted. If {where} is a machine on your own network, allow it by name: "
            f"sr-edge remote add NAME {base} --plain-http; else use https://"
        )
    return "private"


def _reach_of(address: str) -> Reach:
    """From how far away the address can be reached.

    Raises:
        ValueError: it is none.
    """
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
    if parsed.is_loopback:
        return "loopback"
    return "private" if any(parsed in network for network in _PRIVATE) else "anywhere"


def _certificates(path: Path) -> Path:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as error:
        reason = "it holds no certificates in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise UsageError(f"{path} can't be used as ca_file: {reason}") from None
    return path


def _proxy(url: str, is_tls: bool) -> tuple[str, int]:
    if not is_tls:
        raise UsageError("a proxy would read along on plain http: use https:// or no proxy")
    parsed = _parse(url, "the URL of a proxy")
    if parsed.scheme != "http":
        raise UsageError(
            f"{url!r} can't be used as proxy: it must begin with http://; what it carries is https"
        )
    return parsed.host, parsed.port or 80
