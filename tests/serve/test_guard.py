"""F79 to F82: who is let in. Bytes over a socket, against the real server."""

from __future__ import annotations

import json
import string

import pytest
from tests.serve.scripted_desk import ScriptedDesk
from tests.serve.serving import TOKEN, chat, connect, exchange, read, request, serving

from sr_edge.errors import UsageError
from sr_edge.serve.app import MAX_BODY_BYTES, Bounds
from sr_edge.serve.connections import Patience
from sr_edge.serve.guard import SECURITY_HEADERS, names_of
from sr_edge.serve.running import bind

APP = "https://app.example:8443"
BOX = "box.lan"


@pytest.fixture(scope="module")
def served():
    with serving(ScriptedDesk()) as served:
        yield served


@pytest.fixture(scope="module")
def open_to_an_app():
    """With a site and a name of its own listed."""
    with serving(ScriptedDesk(), hosts=[BOX, "mine.example:443"], origins=[APP]) as served:
        yield served


# --- F80: the name that a request is for --------------------------------------------------------------

OWN_NAMES = ["127.0.0.1:{port}", "localhost:{port}", "LocalHost:{port}", "[::1]:{port}"]

FOREIGN_NAMES = [
    "evil.com",
    "evil.com:{port}",
    "127.0.0.1:evil.com",
    "127.0.0.1:{port}.evil.com",
    "127.0.0.1.evil.com:{port}",
    "localhost.:{port}",
    "localhost.evil.com:{port}",
    "evil-localhost:{port}",
    "x.local:{port}",
    "127.1:{port}",
    "127.0.1:{port}",
    "2130706433:{port}",
    "0x7f000001:{port}",
    "0177.0.0.1:{port}",
    "0.0.0.0:{port}",
    "127.0.0.2:{port}",
    "[::]:{port}",
    "[0:0:0:0:0:0:0:1]:{port}",
    "[::ffff:127.0.0.1]:{port}",
    "::1:{port}",
    "127.0.0.1",
    "localhost",
    "127.0.0.1:1",
    "127.0.0.1:0{port}",
    "127.0.0.1:{port}1",
    "127.0.0.1:",
    "127.0.0.1:{port} evil.com",
    "127.0.0.1:{port},evil.com",
    "user@127.0.0.1:{port}",
    "127.0.0.1:{port}/",
    "127.0.0.1:{port}#evil.com",
    "http://127.0.0.1:{port}",
    "l\N{CYRILLIC SMALL LETTER O}calhost:{port}",
    "",
]


@pytest.mark.parametrize("name", OWN_NAMES)
def test_f80_our_own_names_are_answered(served, name):
    got = exchange(served.port, request(served.port, host=name.format(port=served.port)))
    assert got.status == 200


def with_host(port: int, name: str, target: str, *, token: str | None) -> bytes:
    shown = f"Authorization: Bearer {token}\r\n" if token else ""
    return f"GET {target} HTTP/1.1\r\nHost: {name.format(port=port)}\r\n{shown}\r\n".encode()


@pytest.mark.parametrize("target", ["/v1/models", "/", "/health", "/nowhere"])
@pytest.mark.parametrize("name", FOREIGN_NAMES)
def test_f80_another_name_is_misdirected(served, name, target):
    """Wherever it asks, and even with the token."""
    got = exchange(served.port, with_host(served.port, name, target, token=TOKEN))
    assert (got.status, got.code) == (421, "misdirected_request")


BAD_HEADS = {
    "no Host": "GET / HTTP/1.1\r\n\r\n",
    "no Host in HTTP/1.0": "GET / HTTP/1.0\r\n\r\n",
    "two, the first ours": "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.com\r\n\r\n",
    "two, the last ours": "GET / HTTP/1.1\r\nHost: evil.com\r\nHost: 127.0.0.1:{port}\r\n\r\n",
    "two that agree": "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: 127.0.0.1:{port}\r\n\r\n",
    "two in HTTP/1.0": "GET / HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nHost: 127.0.0.1:{port}\r\n\r\n",
    "a whole address": "GET http://evil.com/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n",
    "a whole address of ours": "GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: evil.com\r\n\r\n",
    "a whole address as a proxy gets it": "GET http://evil.com/ HTTP/1.1\r\nHost: evil.com\r\n\r\n",
    "a tunnel": "CONNECT evil.com:443 HTTP/1.1\r\nHost: evil.com:443\r\n\r\n",
    "a tunnel through us": "CONNECT evil.com:443 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n",
}


@pytest.mark.parametrize("head", BAD_HEADS.values(), ids=BAD_HEADS)
def test_f80_a_head_that_leaves_the_name_open_is_misdirected(served, head):
    got = exchange(served.port, head.format(port=served.port).encode())
    assert (got.status, got.code) == (421, "misdirected_request")


def test_a_name_that_was_given_to_us_is_ours(open_to_an_app):
    port = open_to_an_app.port
    for name in (BOX, f"{BOX}:{port}", BOX.upper(), "mine.example:443"):
        assert exchange(port, request(port, host=name)).status == 200
    for name in (f"{BOX}:1", "mine.example", f"mine.example:{port}", f"a.{BOX}"):
        assert exchange(port, request(port, host=name)).status == 421


def test_port_80_may_be_left_out():
    hosts = names_of(80).hosts
    assert {b"localhost", b"localhost:80", b"127.0.0.1", b"[::1]"} <= hosts
    assert b"http://localhost" in names_of(80).origins
    assert b"localhost" not in names_of(8080).hosts


@pytest.mark.parametrize("name", ["*", "*.lan", "http://box.lan", "box.lan:0", "box.lan:70000", "a b", ""])
def test_what_is_no_host_cannot_be_allowed(name):
    with pytest.raises(UsageError, match="--allow-host"):
        names_of(8741, hosts=[name])


# --- F81: the page that asks --------------------------------------------------------------------------

FOREIGN_ORIGINS = [
    "https://evil.com",
    "http://evil.com:{port}",
    "null",
    "https://127.0.0.1:{port}",
    "http://127.0.0.1",
    "http://127.0.0.1:{port}.evil.com",
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1:1",
    "http://LOCALHOST:{port}",
    "http://localhost.:{port}",
    "127.0.0.1:{port}",
    "file://",
    "chrome-extension://abcdef",
    "http://127.0.0.1:{port} https://evil.com",
    "",
]


@pytest.mark.parametrize("target", ["/v1/models", "/", "/health", "/nowhere"])
@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_f81_a_foreign_page_is_refused_and_learns_nothing(served, origin, target):
    headers = {"Origin": origin.format(port=served.port)}
    got = exchange(served.port, request(served.port, target, headers=headers))
    assert (got.status, got.code) == (403, "origin_not_allowed")
    assert not [name for name in got.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origin", ["http://127.0.0.1:{port}", "http://localhost:{port}", "http://[::1]:{port}"]
)
def test_our_own_page_may_ask(served, origin):
    headers = {"Origin": origin.format(port=served.port)}
    got = exchange(served.port, request(served.port, headers=headers))
    assert got.status == 200
    assert not [name for name in got.headers if name.startswith("access-control")]


def test_f81_two_origins_are_none(served):
    own = f"http://127.0.0.1:{served.port}"
    got = exchange(served.port, request(served.port, headers={"Origin": own, "origin": "https://evil.com"}))
    assert got.status == 403


def preflight(port, origin, target="/v1/chat/completions"):
    asks = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    return request(port, target, method="OPTIONS", token=None, headers=asks)


def test_f81_a_preflight_of_a_foreign_page_is_refused(served):
    got = exchange(served.port, preflight(served.port, "https://evil.com"), method="OPTIONS")
    assert got.status == 403
    assert not [name for name in got.headers if name.startswith("access-control")]


def test_f81_without_a_listed_page_there_is_no_preflight(served):
    own = f"http://127.0.0.1:{served.port}"
    got = exchange(served.port, preflight(served.port, own), method="OPTIONS")
    assert (got.status, got.code) == (405, "method_not_allowed")
    assert not [name for name in got.headers if name.startswith("access-control")]


def test_a_listed_page_may_ask_and_read(open_to_an_app):
    port = open_to_an_app.port
    allowed = exchange(port, preflight(port, APP), method="OPTIONS")
    assert allowed.status == 204
    assert allowed.headers["access-control-allow-origin"] == APP
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    got = exchange(port, chat(port, headers={"Origin": APP}))
    assert (got.status, got.headers["access-control-allow-origin"]) == (200, APP)
    assert got.headers["vary"] == "Origin"
    refused = exchange(port, request(port, token="wrong", headers={"Origin": APP}))
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, APP)
    assert "access-control-allow-credentials" not in allowed.headers | got.headers


def test_beside_a_listed_page_no_other_may(open_to_an_app):
    port = open_to_an_app.port
    for origin in ("https://app.example", "http://app.example:8443", "https://evil.com", "null"):
        got = exchange(port, request(port, headers={"Origin": origin}))
        assert got.status == 403
        assert "access-control-allow-origin" not in got.headers


@pytest.mark.parametrize(
    "origin", ["null", "*", "app.example", "https://app.example/path", "https://*.example", ""]
)
def test_what_is_no_origin_cannot_be_allowed(origin):
    with pytest.raises(UsageError, match="--allow-origin"):
        names_of(8741, origins=[origin])


FORMS = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]


@pytest.mark.parametrize("kind", FORMS)
def test_f81_what_a_page_can_post_without_asking_is_not_taken(served, kind):
    got = exchange(served.port, chat(served.port, headers={"Content-Type": kind}))
    assert (got.status, got.code) == (415, "unsupported_media_type")
    assert served.desk.jobs == [] or served.desk.running == []


@pytest.mark.parametrize(
    "target", ["/", "/health", "/v1/models", "/metrics", "/openapi.json", "/v1/chat/completions"]
)
def test_f81_a_get_has_no_effect(served, target):
    before = len(served.desk.jobs)
    exchange(served.port, request(served.port, f"{target}?prompt=Hi&stream=true"))
    assert len(served.desk.jobs) == before


# --- F82: who asks, and how much ----------------------------------------------------------------------

GUARDED = ["/v1/models", "/v1/models/scripted-small", "/metrics", "/openapi.json"]
WRONG_TOKENS = {
    "none": None,
    "empty": "Bearer ",
    "another": f"Bearer {'u' * 43}",
    "half": f"Bearer {TOKEN[:20]}",
    "more": f"Bearer {TOKEN}x",
    "bare": TOKEN,
    "another scheme": f"Basic {TOKEN}",
    "in capitals": f"Bearer {TOKEN.upper()}",
    "no ASCII": "Bearer \xfctoken",
}


@pytest.mark.parametrize("target", GUARDED)
@pytest.mark.parametrize("shown", WRONG_TOKENS.values(), ids=WRONG_TOKENS)
def test_f82_without_the_token_there_is_nothing(served, target, shown):
    headers = {} if shown is None else {"Authorization": shown}
    got = exchange(served.port, request(served.port, target, token=None, headers=headers))
    assert (got.status, got.code) == (401, "invalid_api_key")
    assert got.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in got.body.decode()


def test_f82_two_tokens_are_none(served):
    got = exchange(served.port, request(served.port, headers={"authorization": "Bearer guess"}))
    assert got.status == 401


@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/completions"])
def test_f82_without_the_token_a_body_is_not_read(served, target):
    """Nor its kind and size judged: who does not know the token learns nothing else."""
    headers = {"Content-Length": str(10**9), "Content-Type": "text/plain"}
    got = exchange(served.port, request(served.port, target, method="POST", token=None, headers=headers))
    assert got.status == 401


def test_the_page_and_health_need_no_token(served):
    page = exchange(served.port, request(served.port, "/", token=None))
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert TOKEN.encode() not in page.body
    health = exchange(served.port, request(served.port, "/health", token=None))
    assert (health.status, health.json) == (200, {"status": "ok"})


def test_f82_a_body_that_says_it_is_too_large_is_not_waited_for(served):
    headers = {"Content-Length": str(100 * 1000**2)}
    got = exchange(
        served.port, request(served.port, "/v1/completions", method="POST", headers=headers, body=b"{")
    )
    assert (got.status, got.code) == (413, "request_too_large")


def test_f82_a_client_that_sends_all_before_it_reads_is_not_cut_off():
    """It would see a connection that was reset, and not why."""
    with serving(ScriptedDesk(), patience=Patience(linger=60)) as served, connect(served.port) as wire:
        wire.sendall(request(served.port, "/v1/completions", method="POST", body=b" " * 20 * 1000**2))
        assert read(wire).status == 413


def test_f82_a_hundred_megabytes_are_refused_and_the_client_sees_why(served):
    """It sends all of it before it reads, as most clients do."""
    body = b" " * (100 * 1000**2)
    got = exchange(served.port, request(served.port, "/v1/chat/completions", method="POST", body=body))
    assert (got.status, got.code) == (413, "request_too_large")
    assert served.desk.running == []


def chunked(port: int, *chunks: bytes) -> bytes:
    headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
    head = request(port, "/v1/chat/completions", method="POST", headers=headers)
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


def test_f82_a_body_whose_size_shows_later_is_cut_too(served):
    got = exchange(served.port, chunked(served.port, *[b" " * 65536] * (MAX_BODY_BYTES // 65536 + 1)))
    assert (got.status, got.code) == (413, "request_too_large")


def test_a_body_in_chunks_is_as_good(served):
    body = json.dumps({"messages": [{"role": "user", "content": "Hi."}]}).encode()
    got = exchange(served.port, chunked(served.port, body[:9], body[9:], b""))
    assert got.status == 200


def test_f82_a_body_that_does_not_come_is_given_up():
    with serving(ScriptedDesk(), bounds=Bounds(body_seconds=0.1)) as served:
        data = chat(served.port)
        with connect(served.port) as wire:
            wire.sendall(data[:-5])
            got = read(wire)
    assert (got.status, got.code) == (408, "request_timeout")
    assert served.desk.jobs == []


@pytest.mark.parametrize("coding", ["gzip", "br", "gzip, identity"])
def test_f82_a_compressed_body_is_not_unpacked(served, coding):
    got = exchange(served.port, chat(served.port, headers={"Content-Encoding": coding}))
    assert got.status == 415


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", 'application/json;charset="UTF-8"']
)
def test_json_may_name_its_charset(served, kind):
    assert exchange(served.port, chat(served.port, headers={"Content-Type": kind})).status == 200


@pytest.mark.parametrize("kind", ["application/json; charset=utf-16", "application/jsonp", "json", ""])
def test_f82_what_is_almost_json_is_not(served, kind):
    assert exchange(served.port, chat(served.port, headers={"Content-Type": kind})).status == 415


BAD_VALUES = [
    {"max_tokens": -1},
    {"max_tokens": 10**30},
    {"max_tokens": True},
    {"seed": -1},
    {"seed": 2**40},
    {"temperature": -0.1},
    {"temperature": 1e308},
    {"top_p": 0},
    {"n": 1000},
    {"n_discard": -5},
    {"stop": [""]},
    {"messages": []},
    {"messages": [{"role": "root", "content": "Hi."}]},
    {"logit_bias": {"5": 100}},
]


@pytest.mark.parametrize("values", BAD_VALUES, ids=str)
def test_f82_a_value_out_of_its_range_is_refused(served, values):
    before = len(served.desk.jobs)
    got = exchange(served.port, chat(served.port, **values))
    assert (got.status, got.json["error"]["param"] is not None) == (400, True)
    assert len(served.desk.jobs) == before


BAD_JSON = [
    b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe{", b"[" * 100_000, b'{"a":' * 50_000,
    b'{"messages": 1, "messages": 2}', b'{"max_tokens": NaN}', b'{"max_tokens": 1e999}', b"{} {}",
    b'{"max_tokens": ' + b"9" * 100_000 + b"}", b"\x00" * 100,
]  # fmt: skip


@pytest.mark.parametrize("body", BAD_JSON, ids=lambda body: str(body[:20]))
def test_f82_what_is_no_json_is_refused(served, body):
    got = exchange(served.port, request(served.port, "/v1/chat/completions", method="POST", body=body))
    assert got.status == 400
    assert got.code is not None


# --- where nothing is ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    ["/nowhere", "//", "/v1", "/v1/", "/v1/models/", "/V1/models", "/v1/models/a/b", "/../etc/passwd",
     "/%2e%2e/", "/docs", "/v1/embeddings", "/%00", "/metrics/", "*"],
)  # fmt: skip
def test_elsewhere_is_nothing(served, target):
    method = "OPTIONS" if target == "*" else "GET"
    got = exchange(served.port, request(served.port, target, method=method), method=method)
    assert (got.status, got.code) == (404, "not_found")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "POST", "TRACE", "BREW"])
def test_another_method_is_not_answered(served, method):
    got = exchange(served.port, request(served.port, "/v1/models", method=method), method=method)
    assert (got.status, got.code) == (405, "method_not_allowed")
    assert "GET" in got.headers["allow"]


def test_a_model_that_is_not_there_says_which_are(served):
    got = exchange(served.port, request(served.port, "/v1/models/gpt-4"))
    assert (got.status, got.code) == (404, "model_not_found")
    assert "scripted-small" in got.json["error"]["message"]
    found = exchange(served.port, request(served.port, "/v1/models/scripted-small:local"))
    assert found.json["id"] == "scripted-small:local"


def test_every_response_has_the_headers(served):
    port = served.port
    asked = [
        request(port),
        request(port, "/", token=None),
        request(port, "/nowhere"),
        request(port, token="wrong"),
        request(port, host="evil.com"),
        request(port, headers={"Origin": "https://evil.com"}),
        chat(port),
        chat(port, stream=True),
        chat(port, n=-1),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01 no HTTP\r\n\r\n",
    ]
    wanted = {name.decode(): value.decode() for name, value in SECURITY_HEADERS}
    for data in asked:
        headers = exchange(port, data).headers
        assert {name: headers.get(name) for name in wanted} == wanted
        assert "server" not in headers


# --- F79: where it listens ----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "8.8.8.8", "fe80::1"])
def test_f79_beyond_loopback_needs_a_word_for_it(host):
    with pytest.raises(UsageError, match="--beyond-loopback"):
        bind(host, 0)


def test_f79_with_that_word_it_is_bound():
    with bind("0.0.0.0", 0, beyond_loopback=True) as bound:
        assert bound.getsockname()[0] == "0.0.0.0"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.5", "::1", "[::1]"])
def test_loopback_needs_none(host):
    with bind(host, 0) as bound:
        assert bound.getsockname()[1] > 0


@pytest.mark.parametrize(
    "host", ["example.com", "localhost.", "127.0.0.1:80", "", string.whitespace, "2130706433x"]
)
def test_a_name_is_not_looked_up(host):
    with pytest.raises(UsageError, match="--host"):
        bind(host, 0)
