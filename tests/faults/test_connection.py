"""F01 to F10: no connection, or not the right one."""

import datetime
import errno
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings

import pytest
import trustme
from tests.faults.harness import SHORT, WIRES, deadlines, endpoint, run

from sr_edge.policy import Breaker, SpanGate
from sr_edge.split import SplitDecoder
from sr_edge.testing.fault_endpoint import (
    AT_ONCE,
    FIN,
    HANG,
    RST,
    FaultEndpoint,
    Send,
    black_hole,
    chunked,
    closed_port,
    failure,
    page,
)
from sr_edge.testing.models import END, OPEN, ScriptedLocal
from sr_edge.testing.oracle import QUESTION, Case, writer
from sr_edge.transcript import fold

RESOLVE = socket.getaddrinfo


@pytest.fixture(params=WIRES)
def wire(request):
    return WIRES[request.param]


def resolved(*addresses):
    """A resolver that knows these only."""

    def resolve(host, port, *args, **kwargs):
        found = []
        for address in addresses:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            found.append((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address))
        return found

    return resolve


# --- F01 to F04: nobody there ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_f01_refused(wire, host):
    refused = Case([], says="refused", where=(host, closed_port(host)))
    assert run(refused, wire).span.end == "error"


def test_f02_black_hole(wire):
    with black_hole() as url:
        host, port = url.removeprefix("http://").split(":")
        silent = Case([], says="no connection", where=(host, int(port)), patience=SHORT)
        run(silent, wire, options={"deadlines": deadlines(connect=SHORT)})


def test_f02_two_black_holes_have_one_deadline(wire, monkeypatch):
    with black_hole() as one, black_hole() as other:
        addresses = [("127.0.0.1", int(url.rpartition(":")[2])) for url in (one, other)]
        monkeypatch.setattr(socket, "getaddrinfo", resolved(*addresses))
        silent = Case([], says="no connection", where=addresses[0], others=(addresses[1],), patience=SHORT)
        run(silent, wire, options={"deadlines": deadlines(connect=SHORT)})


@pytest.mark.parametrize("code", ["EAI_NONAME", "EAI_AGAIN", "EAI_FAIL", "EAI_FAMILY"])
def test_f03_no_such_name(wire, code, monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(getattr(socket, code), "no")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    checked = run(
        Case([], says="no address known", where=("no.such.host", 443)), wire, options={"plain_http": True}
    )
    assert "refused" not in checked.span.error


def test_f04_a_resolver_that_hangs(wire, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: released.wait(2) and [])
    timer = threading.Timer(2 * SHORT, released.set)
    timer.start()
    hanging = Case([], says="no connection", where=("slow.host", 443), patience=SHORT)
    run(hanging, wire, options={"deadlines": deadlines(connect=SHORT), "plain_http": True})
    timer.join()


LEAVING = """
import socket, sys, time
socket.getaddrinfo = lambda *args, **kwargs: time.sleep(30)
from sr_edge.remote.endpoint import Deadlines, Endpoint
from sr_edge.roles import Message, Prompt
from sr_edge.split import SplitDecoder
from sr_edge.testing.oracle import writer
remote = Endpoint("https://slow.host", prompt=lambda messages: Prompt((), "", ""), model="big",
                  deadlines=Deadlines(connect=0.1))
events = list(SplitDecoder(writer(), remote).generate([Message("user", "?")]))
remote.close()
print(time.time())
"""


def test_f04_the_end_of_the_process_is_not_held():
    done = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, timeout=20)
    left = time.time()
    assert (done.returncode, done.stderr) == (0, "")
    assert left - float(done.stdout) < 2


@pytest.mark.parametrize(
    "number", ["ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "EADDRNOTAVAIL", "ECONNABORTED"]
)
def test_f01_no_route(wire, number, monkeypatch):
    def fail(self, address):
        raise OSError(getattr(errno, number), "no")

    monkeypatch.setattr(socket.socket, "connect", fail)
    run(Case([], where=("127.0.0.1", 9)), wire)


# --- F05: not the one that was meant ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def shown(certificate):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(tls)
    return tls


def expired(authority):
    return shown(authority.issue_cert("127.0.0.1", not_after=datetime.datetime(2020, 1, 1)))


def of_another_host(authority):
    return shown(authority.issue_cert("example.org"))


def of_another_authority(authority):
    return shown(trustme.CA().issue_cert("127.0.0.1"))


def of_old_tls(authority):
    tls = shown(authority.issue_cert("127.0.0.1"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tls.minimum_version = ssl.TLSVersion.TLSv1
        tls.maximum_version = ssl.TLSVersion.TLSv1_1
    return tls


@pytest.mark.parametrize("wrong", [expired, of_another_host, of_another_authority, of_old_tls])
def test_f05_a_wrong_certificate_gets_nothing(wire, wrong, authority, tmp_path):
    pem = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(pem)
    case = Case([AT_ONCE, HANG], server={"tls": wrong(authority)})
    checked = run(case, wire, options={"ca_file": pem})
    assert checked.requests == []
    assert all(connection.received == 0 for connection in checked.connections)
    assert len(checked.connections) == 1, "it was tried again"


def test_f05_an_authority_that_the_user_named_is_trusted(wire, authority, tmp_path):
    pem = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(pem)
    tls = shown(authority.issue_cert("127.0.0.1"))
    good = Case(wire.stream("1 + 1"), truth="complete", text="1 + 1", server={"tls": tls})
    run(good, wire, options={"ca_file": pem})


@pytest.mark.parametrize("script", [[FIN], [RST], [Send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), FIN], [HANG]])
def test_f05_no_tls_on_the_port(wire, script, monkeypatch):
    """Nothing but the beginning of a handshake leaves."""
    case = Case([AT_ONCE, *script], patience=None)
    tls = {"deadlines": deadlines(connect=SHORT, first_byte=SHORT)}
    monkeypatch.setattr(FaultEndpoint, "url", property(lambda server: f"https://{server.where}"))
    checked = run(case, wire, options=tls)
    assert checked.requests == []


# --- F06, F07: broken off, or answered by somebody else ---------------------------------------------------


@pytest.mark.parametrize("broken", [[RST], [FIN], [AT_ONCE, RST], [AT_ONCE, FIN]])
def test_f06_broken_off_before_headers_is_asked_once_more(wire, broken):
    good = wire.stream("1 + 1")
    run(Case(broken, truth="complete", text="1 + 1", then=(good,)), wire)


@pytest.mark.parametrize("broken", [RST, FIN])
def test_f06_broken_off_twice_is_left(wire, broken):
    run(Case([broken], then=([broken],)), wire)


@pytest.mark.parametrize("broken", [RST, FIN])
def test_f06_a_kept_connection_that_died(wire, broken):
    """The second span of an answer comes on the first one's connection."""
    local = ScriptedLocal([[*b"a", OPEN], [*b"b", OPEN], [*b"c", END]])
    reply = chunked(wire.text("1"), wire.finish())
    case = Case(reply, truth="complete", text="1", then=([broken], reply))
    checked = run(case, wire, local=local)
    assert checked.transcript.text == "a1b1c"


PORTALS = {
    "redirect": page("", 302, kind="text/html", Location="http://portal.example/login"),
    "page": page("<html>Log in</html>", kind="text/html"),
    "page without a type": [Send(b"HTTP/1.1 200 OK\r\n\r\n<html>Log in</html>"), FIN],
    "old http": [Send(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<html>Log in"), FIN],
    "511": page("<html>Log in</html>", 511, kind="text/html"),
}


@pytest.mark.parametrize("portal", PORTALS)
def test_f07_a_captive_portal(wire, portal):
    again = (PORTALS[portal],) if portal == "511" else ()
    checked = run(Case(PORTALS[portal], then=again), wire)
    assert "Log in" not in checked.transcript.text


# --- F08: gone, and back ----------------------------------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("is_back", [True, False])
def test_f08_a_remote_that_comes_back_is_found_without_a_word_of_the_users(wire, is_back):
    clock, ill = Clock(), failure(503)
    models = page({"data": [{"id": "big"}]}) if is_back else ill
    scripts = [ill, ill, [*wire.stream("1 + 1"), FIN]]
    with (
        FaultEndpoint(*scripts, pages={"/v1/models": models}) as server,
        endpoint(server.url, wire) as remote,
    ):
        breaker = Breaker(knock=remote.knock, clock=clock)
        gate = SpanGate(offline=False, uses_network=True, breaker=breaker)

        def answer():
            decoder = SplitDecoder(writer(), remote, gate=gate)
            return fold(decoder.generate(QUESTION)).spans[0]

        assert (answer().end, len(server.posts)) == ("error", 2)
        assert (answer().end, len(server.requests)) == ("declined", 2), "it is asked again at once"
        clock.now += 10
        found = answer()  # it may be heard of at once
        until = time.monotonic() + 2
        while found.end == "declined" and time.monotonic() < until and (is_back or len(server.requests) < 3):
            time.sleep(0.005)
            found = answer()
        knock = server.requests[2]
        assert (knock.method, knock.data) == ("GET", b"")
        assert (found.text, len(server.posts)) == (("1 + 1", 3) if is_back else ("", 2))


# --- F09, F10: the way there -----------------------------------------------------------------------------


def test_f09_ipv6_is_broken_and_ipv4_is_not(wire, monkeypatch):
    good = Case(wire.stream("1 + 1"), truth="complete", text="1 + 1")
    with FaultEndpoint(good.script) as server:
        addresses = [("::1", closed_port("::1"), 0, 0), ("127.0.0.1", server.port)]
        monkeypatch.setattr(socket, "getaddrinfo", resolved(*addresses))
        with endpoint(f"http://localhost:{server.port}", wire) as remote:
            transcript = fold(SplitDecoder(writer(), remote).generate(QUESTION))
    assert transcript.spans[0].text == "1 + 1"


def test_f09_ipv6_alone(wire):
    good = Case(wire.stream("1 + 1"), truth="complete", text="1 + 1", server={"host": "::1"})
    run(good, wire)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"])
def test_f10_the_environments_proxies_are_ignored(wire, name, monkeypatch):
    with FaultEndpoint(then=page("trapped")) as trap:
        for spelling in (name, name.lower()):
            monkeypatch.setenv(spelling, trap.url)
        monkeypatch.setenv("NO_PROXY", "")
        run(Case(wire.stream("1 + 1"), truth="complete", text="1 + 1"), wire)
        assert trap.connections == []


def test_f10_the_environments_certificates_are_ignored(wire, authority, tmp_path, monkeypatch):
    pem = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    tls = shown(authority.issue_cert("127.0.0.1"))
    checked = run(Case([AT_ONCE, HANG], says="certificate", server={"tls": tls}), wire)
    assert checked.requests == []
