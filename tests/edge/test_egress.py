"""The one way out: where a request may go, what TLS must be like, and what being offline means."""

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from tests.raw_server import FIN, HANG, RawServer, head, page, stream, text

from sr_edge.errors import EdgeError, UsageError
from sr_edge.remote.egress import Door, OfflineError, site_of
from sr_edge.remote.endpoint import Deadlines, Endpoint
from sr_edge.remote.exchange import ForbiddenPeerError, HungUpError
from sr_edge.roles import Message, Outcome, Prompt
from sr_edge.testing.fault_endpoint import AT_ONCE

QUESTION = [Message("user", "how? (canary question)")]
SOON = Deadlines(connect=2.0, first_byte=2.0, first_content=3.0, idle=2.0, total=5.0, linger=0.2)


def prompt(messages):
    return Prompt((), "".join(f"<{m.role}>{m.content}" for m in messages) + "<assistant>", "")


def endpoint(url, **options):
    return Endpoint(url, **{"prompt": prompt, "model": "big", "deadlines": SOON, **options})


def listen(span):
    pieces = []
    while (piece := span.read(1.0)) is not None:
        pieces.append(piece)
    span.close()
    return "".join(pieces), span.outcome


def ask(remote):
    return listen(remote.stream(QUESTION, "First, ", 64))


# --- addresses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/v1", "https://8.8.8.8", "https://192.168.1.2", "http://localhost:8080",
        "http://127.0.0.1:8080", "http://127.3.2.1", "http://[::1]:8080", "http://[::ffff:127.0.0.1]",
    ],
)  # fmt: skip
def test_https_goes_anywhere_and_plain_http_stays_on_this_machine(url):
    assert site_of(url).base.startswith(url)


PRIVATE = [
    "http://10.0.0.1", "http://172.16.0.1", "http://172.31.255.254", "http://192.168.178.20:8000", "http://169.254.1.1",
    "http://100.64.0.1", "http://100.127.255.254", "http://[fd00::1]", "http://[fe80::1]", "http://gpu-box:8000",
    "http://gpu.example.com", "http://127.1", "http://2130706433",
]  # fmt: skip
"""Names too: whose address they are is seen when they are asked."""


@pytest.mark.parametrize("url", PRIVATE)
def test_the_box_in_the_next_room_must_be_allowed_by_name(url):
    with pytest.raises(UsageError, match=r"sr-edge remote add NAME http://.* --plain-http"):
        site_of(url)
    assert site_of(url, plain_http=True).reach == "private"


@pytest.mark.parametrize(
    "url",
    [
        "http://8.8.8.8",
        "http://172.32.0.1",
        "http://100.128.0.1",
        "http://[2001:4860::8888]",
        "http://0.0.0.0",
    ],
)
def test_nothing_allows_plain_http_to_the_world(url):
    with pytest.raises(UsageError, match="use https://"):
        site_of(url, plain_http=True)


def resolve_to(monkeypatch, *addresses):
    """Every name gets these addresses, with a port of their own where a pair is given."""

    def found(host, port, *args, **kwargs):
        pairs = [address if isinstance(address, tuple) else (address, port) for address in addresses]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (*pair, 0, 0))
            if ":" in pair[0]
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", pair)
            for pair in pairs
        ]

    monkeypatch.setattr(socket, "getaddrinfo", found)


@pytest.mark.parametrize("url", ["http://gpu-box:8000", "http://localhost:8000"])
@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34"])
def test_a_name_that_turns_out_to_be_public_is_not_even_connected_to(monkeypatch, url, address):
    resolve_to(monkeypatch, address)
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("connected"))
    with endpoint(url, plain_http=True) as remote:
        _, outcome = ask(remote)
    assert outcome.fault == "refused"
    assert address in outcome.error
    assert "use https://" in outcome.error


def test_of_several_addresses_only_those_are_tried_that_may_be(monkeypatch):
    with RawServer(stream("x")) as server:
        port = int(server.where.partition(":")[2])
        resolve_to(monkeypatch, ("93.184.216.34", port), ("127.0.0.1", port))
        with endpoint(f"http://gpu-box:{port}", plain_http=True) as remote:
            assert ask(remote)[0] == "x"
        assert server.requests[0].headers["host"] == f"gpu-box:{port}"


def test_an_address_that_is_dead_does_not_use_up_the_time_of_the_next(monkeypatch):
    with RawServer(stream("x")) as server, blackhole() as nowhere:
        port = int(server.where.partition(":")[2])
        with socket.create_server(("127.0.0.1", 0)) as listener:
            closed = listener.getsockname()
        resolve_to(monkeypatch, closed, nowhere, ("127.0.0.1", port))
        with endpoint(server.url, deadlines=Deadlines(connect=0.6)) as remote:
            assert ask(remote)[0] == "x"


@contextlib.contextmanager
def blackhole():
    """An address that answers no connection: its queue is full."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    time.sleep(0.05)
    try:
        yield listener.getsockname()
    finally:
        for each in (*fillers, listener):
            each.close()


def test_a_connection_that_never_stands_ends_in_time_however_many_addresses(monkeypatch):
    with blackhole() as nowhere:
        resolve_to(monkeypatch, nowhere, nowhere)
        with endpoint("http://127.0.0.1:1", deadlines=Deadlines(connect=0.3)) as remote:
            began = time.monotonic()
            _, outcome = ask(remote)
            assert time.monotonic() - began < 0.6
    assert (outcome.end, outcome.fault) == ("error", "unreachable")
    assert outcome.error.startswith("remote unreachable: no connection to 127.0.0.1:1 ")


# --- redirects and proxies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "target", ["{trap}/v1/completions", "file:///etc/passwd", "/v1/completions", "https://x.invalid"]
)
def test_no_redirect_is_followed(status, target):
    with RawServer() as trap, RawServer(page("", status, Location=target.format(trap=trap.url))) as server:
        with endpoint(server.url, api_key="sk-canary") as remote:
            _, outcome = ask(remote)
        assert (trap.connections, len(server.requests)) == (0, 1)
    assert outcome.fault == "refused"
    assert "redirects to" in outcome.error


def test_the_environment_is_not_asked_for_a_proxy_or_certificates(monkeypatch, tmp_path):
    with RawServer() as trap, RawServer(stream("x")) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, trap.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        with endpoint(server.url) as remote:
            assert ask(remote)[0] == "x"
        assert trap.connections == 0


class Proxy:
    """Connects through, once, and notes what it saw in the clear."""

    def __init__(self, target, status=b"200 OK"):
        self.seen = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://{}:{}".format(*self._listener.getsockname())
        self._target, self._status = target, status
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        with self._listener, contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            with client, socket.create_connection(self._target) as there:
                while b"\r\n\r\n" not in self.seen:
                    self.seen += client.recv(65536)
                client.sendall(b"HTTP/1.1 " + self._status + b"\r\n\r\n")
                back = threading.Thread(target=self._pump, args=(there, client), daemon=True)
                back.start()
                self._pump(client, there)
                back.join()

    def _pump(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def test_a_configured_proxy_connects_through_and_sees_no_text(authority, ca_file):
    with TLSServer(authority, "127.0.0.1") as server:
        proxy = Proxy(server.address)
        with endpoint(server.url, ca_file=ca_file, proxy=proxy.url, api_key="sk-canary") as remote:
            assert ask(remote) == ("ok", Outcome("stop"))
    assert proxy.seen.startswith(b"CONNECT 127.0.0.1:")
    assert b"canary" not in proxy.seen


def test_a_proxy_that_refuses_is_an_outcome(authority, ca_file):
    with TLSServer(authority, "127.0.0.1") as server:
        proxy = Proxy(server.address, b"407 Proxy Authentication Required")
        with endpoint(server.url, ca_file=ca_file, proxy=proxy.url) as remote:
            _, outcome = ask(remote)
    assert outcome.fault == "refused"
    assert "the proxy does not connect" in outcome.error
    assert "407 Proxy Authentication Required" in outcome.error


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://127.0.0.1", "http://127.0.0.1:3128"), ("https://h", "socks5://h"), ("https://h", "https://h"),
        ("https://h", "http://u:canary@h"), ("https://h", "h:3128"),
    ],
)  # fmt: skip
def test_proxies_that_cannot_be_used_are_refused(url, proxy):
    with pytest.raises(UsageError) as refused:
        site_of(url, proxy=proxy)
    assert "canary" not in str(refused.value)


# --- TLS ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority, tmp_path_factory):
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


class TLSServer:
    """Answers one request over TLS, with the certificate that it is given, and notes what it could read."""

    def __init__(self, authority, *names, version=None, **certificate):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if version is not None:
            context.minimum_version = context.maximum_version = version
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
        authority.issue_cert(*names, **certificate).configure_cert(context)
        self._context = context
        self.seen = b""
        self.error = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self.url = f"https://127.0.0.1:{self.address[1]}"

    def __enter__(self):
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *args):
        self._thread.join(5)
        self._listener.close()

    def _run(self):
        self._listener.settimeout(5)
        try:
            connection, _ = self._listener.accept()
            with connection, self._context.wrap_socket(connection, server_side=True) as tls:
                while b"\r\n\r\n{" not in self.seen:
                    data = tls.recv(65536)
                    if not data:
                        return
                    self.seen += data
                for op in (head(), text("ok", "stop")):
                    tls.sendall(op.data)
        except OSError as error:
            self.error = error


def test_a_certificate_of_an_authority_that_the_user_trusts_is_taken(authority, ca_file):
    with TLSServer(authority, "127.0.0.1") as server, endpoint(server.url, ca_file=ca_file) as remote:
        assert ask(remote) == ("ok", Outcome("stop"))
    assert b"canary question" in server.seen


def yesterday():
    return datetime.now(UTC) - timedelta(days=1)


def test_a_certificate_that_has_expired_is_refused(authority, ca_file):
    with TLSServer(authority, "127.0.0.1", not_after=yesterday()) as server:
        check_nothing_is_said(server, ca_file, "expired")


def test_a_certificate_of_another_host_is_refused(authority, ca_file):
    with TLSServer(authority, "example.org") as server:
        check_nothing_is_said(server, ca_file, "not valid for")


def test_a_certificate_that_nobody_vouches_for_is_refused(ca_file):
    with TLSServer(trustme.CA(), "127.0.0.1") as server:
        check_nothing_is_said(server, ca_file, "certificate")


def test_an_authority_that_only_we_know_is_refused_without_its_file(authority):
    with TLSServer(authority, "127.0.0.1") as server:
        check_nothing_is_said(server, None, "certificate")


def check_nothing_is_said(server, ca_file, line, fault="refused"):
    with endpoint(server.url, ca_file=ca_file, api_key="sk-canary") as remote:
        written, outcome = ask(remote)
    server._thread.join(5)
    assert (written, outcome.end, outcome.fault) == ("", "error", fault)
    assert line in outcome.error
    assert outcome.error.startswith("remote unreachable:")
    assert server.seen == b""


def test_an_authority_that_only_the_environment_knows_is_refused(authority, ca_file, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    with TLSServer(authority, "127.0.0.1") as server:
        check_nothing_is_said(server, None, "certificate")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_tls_is_not_spoken(authority, ca_file):
    with TLSServer(authority, "127.0.0.1", version=ssl.TLSVersion.TLSv1_1) as server:
        check_nothing_is_said(server, ca_file, "no TLS with", "unreachable")


def tls_url(server):
    return server.url.replace("http:", "https:")


def test_a_server_that_speaks_plain_http_on_a_tls_port_reads_no_request():
    deadlines = Deadlines(connect=0.2)
    with RawServer([HANG]) as server, endpoint(tls_url(server), deadlines=deadlines) as remote:
        _, outcome = ask(remote)
        assert outcome.fault == "unreachable"
        assert server.requests == []


def test_a_server_that_answers_a_handshake_in_plain_http_is_no_tls():
    refusal = [AT_ONCE, *page("Client sent an HTTP request to an HTTPS server", 400), FIN]
    with RawServer(refusal) as server, endpoint(tls_url(server)) as remote:
        _, outcome = ask(remote)
    assert outcome.fault == "unreachable"
    assert "no TLS with" in outcome.error
    assert "is it http://" in outcome.error


def test_a_file_without_certificates_is_named_early(tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    for name, line in (("ca.pem", "no certificates in PEM"), ("none.pem", "No such file")):
        with pytest.raises(UsageError, match=line):
            site_of("https://h", ca_file=tmp_path / name)


# --- offline ------------------------------------------------------------------------------------------------


def test_an_offline_door_makes_no_lines():
    with pytest.raises(OfflineError) as refused:
        Door(offline=True).line(site_of("http://127.0.0.1:1"), connect_timeout=1.0)
    assert isinstance(refused.value, EdgeError)


def test_offline_nothing_is_asked_whatever_is_called():
    with RawServer() as server, endpoint(server.url, door=Door(offline=True)) as remote:
        written, outcome = ask(remote)
        assert (written, outcome.end, outcome.fault) == ("", "error", None)
        assert "offline" in outcome.error
        for call in (remote.models, remote.survey):
            with pytest.raises(OfflineError):
                call()
        answers = []
        remote.knock(answers.append)
        assert answers == [False]
        assert server.connections == 0


@pytest.mark.parametrize("script", [[HANG], [head(), text("so "), HANG]], ids=["waiting", "mid-span"])
def test_going_offline_hangs_up_at_once(script):
    door = Door()
    with RawServer(script) as server, endpoint(server.url, door=door) as remote:
        span = remote.stream(QUESTION, "", 64)
        while not server.requests or (len(script) > 1 and not span.read(0.01)):
            time.sleep(0.005)
        began = time.monotonic()
        door.go_offline()
        assert server.client_hung_up.wait(1)
        while span.read(0.5) is not None:
            pass
        assert time.monotonic() - began < 0.5
        assert "went offline" in span.outcome.error
        assert (span.outcome.end, span.outcome.fault) == ("error", None)
        ask(remote)
        assert server.connections == 1


def test_going_offline_closes_a_kept_connection_too():
    door = Door()
    with RawServer(page({"data": []})) as server, endpoint(server.url, door=door) as remote:
        assert remote.models() == []
        door.go_offline()
        assert server.client_hung_up.wait(1)


def test_going_offline_while_a_name_is_looked_up_connects_to_nothing(monkeypatch):
    resolve, gone, looking = socket.getaddrinfo, threading.Event(), threading.Event()

    def slow(*args, **kwargs):
        looking.set()
        gone.wait(5)
        return resolve(*args, **kwargs)

    door = Door()
    with RawServer() as server, endpoint(server.url, door=door) as remote:
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        span = remote.stream(QUESTION, "", 64)
        assert looking.wait(5)
        door.go_offline()
        gone.set()
        assert "offline" in listen(span)[1].error
        assert server.connections == 0


def test_a_line_that_was_hung_up_looks_nothing_up(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("a name was looked up"))
    line = Door().line(site_of("https://some.host"), connect_timeout=1.0)
    line.hang_up()
    with pytest.raises(HungUpError):
        line.send("GET", "/", {"Host": "some.host"}, None, timeout=1.0, tell=lambda stage: None)
    line.close()


def test_a_peer_that_may_not_be_reached_is_an_error_of_its_own(monkeypatch):
    resolve_to(monkeypatch, "93.184.216.34")
    line = Door().line(site_of("http://box", plain_http=True), connect_timeout=1.0)
    with pytest.raises(ForbiddenPeerError):
        line.send("GET", "/", {"Host": "box"}, None, timeout=1.0, tell=lambda stage: None)
    line.close()


# --- an audit of all that is opened -------------------------------------------------------------------------

AUDITED = """
import json, sys
opened = []
watched = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind")
sys.addaudithook(lambda event, args: opened.append([event, str(args[-1])]) if event in watched else None)
from pathlib import Path
from sr_edge.remote.egress import Door, OfflineError
from sr_edge.remote.endpoint import Endpoint
from sr_edge.roles import Message, Prompt
url, offline = sys.argv[1], sys.argv[2] == "offline"
door = Door(offline=offline)
remote = Endpoint(url, prompt=lambda messages: Prompt((), "x", ""), door=door, api_key="sk-canary")
for api in ("auto", "chat", "instruct"):
    other = Endpoint(url, prompt=lambda messages: Prompt((), "x", ""), api=api, door=door)
    other.preview([Message("user", "q")], "a", 8), other.name, other.where, repr(other), other.capabilities
    other.close()
before = len(opened)
for _ in range(2 if offline else 1):
    span = remote.stream([Message("user", "q")], "a", 8)
    text = ""
    while (piece := span.read(5.0)) is not None:
        text += piece
    span.close()
if offline:
    for call in (remote.models, remote.survey):
        try:
            call()
        except OfflineError:
            pass
    remote.knock(lambda there: None)
remote.close()
print(json.dumps([before, opened, text]))
"""


def audited(url, mode):
    command = [sys.executable, "-c", AUDITED, url, mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_is_opened_before_the_first_span_and_then_only_the_one_address():
    with RawServer(page({"data": [{"id": "big"}]}), stream("x")) as server:
        before, opened, written = audited(server.url, "online")
    host, _, port = server.where.partition(":")
    assert (before, written) == (0, "x")
    assert {event for event, _ in opened} == {"socket.getaddrinfo", "socket.connect"}
    assert [address for event, address in opened if event == "socket.connect"] == [f"('{host}', {port})"]


def test_offline_opens_nothing_at_all():
    with RawServer() as server:
        assert audited(server.url, "offline") == [0, [], ""]
        assert server.connections == 0
