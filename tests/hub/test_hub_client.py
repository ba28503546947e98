"""How we ask a hub: whom, with what, where to, and for how long."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from tests.hub.fake_hub import FakeHub, Repo

from sr_edge.errors import UsageError
from sr_edge.remote.egress import Door, OfflineError
from sr_edge.remote.failure import FailedError
from sr_edge.remote.hub_client import HubClient
from sr_edge.testing.egress_trap import EgressTrap
from sr_edge.testing.fault_endpoint import FIN, HANG, RST, FaultEndpoint, Request, head, page

TOKEN = "hf_canaryCanary"


def redirect(url: str, code: int = 302) -> list:
    return page("", code, Location=url)


@pytest.fixture
def other() -> Iterator[FaultEndpoint]:
    with FaultEndpoint(then=page("content")) as server:
        yield server


def get(client: HubClient, url: str) -> str:
    with client.get(url) as answer:
        return answer.read().decode()


def test_redirects_are_followed_and_the_token_stays(other: FaultEndpoint) -> None:
    with FaultEndpoint(redirect("/moved"), redirect(f"{other.url}/blob?a=b%2Fc")) as hub:
        with HubClient(Door(), hub.url, token=TOKEN) as client:
            assert get(client, f"{hub.url}/page") == "content"
        assert [each.path for each in hub.requests] == ["/page", "/moved"]
        assert [each.headers["authorization"] for each in hub.requests] == [f"Bearer {TOKEN}"] * 2
        assert len(hub.connections) == 1
    (request,) = other.requests
    assert request.path == "/blob?a=b%2Fc"
    assert "authorization" not in request.headers
    assert TOKEN not in str(request)
    assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "target",
    [
        "http://example.com/x",
        "http://192.168.1.1/x",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "https://u:p@h/x",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]:8443/x",
        "https://0x7f.1/x",
        "https://2130706433/x",
        "https://localhost/x",
        "https://h/" + "x" * 20_000,
    ],
)
def test_a_redirect_to_where_nothing_may_be_fetched_from_is_an_end(target: str) -> None:
    with FaultEndpoint(redirect(target)) as hub, HubClient(Door(), hub.url) as client, EgressTrap() as trap:
        with pytest.raises(FailedError, match="redirects to where nothing is fetched from"):
            get(client, f"{hub.url}/page")
        assert trap.hosts <= {"127.0.0.1"}


def test_a_redirect_that_never_ends_is_not_waited_for(other: FaultEndpoint) -> None:
    hub = FaultEndpoint([head(302, Location=f"{other.url}/blob"), HANG])
    with hub, HubClient(Door(), hub.url, stall=5.0) as client:
        assert get(client, f"{hub.url}/page") == "content"


def test_a_redirect_that_is_no_address_is_said_in_words() -> None:
    hub = FaultEndpoint(redirect("http://[::1"))
    with hub, HubClient(Door(), hub.url) as client, pytest.raises(FailedError, match="does not speak HTTP"):
        get(client, f"{hub.url}/page")


def test_a_redirect_with_two_slashes_names_no_host() -> None:
    with FaultEndpoint(redirect("/"), page("here")) as hub, HubClient(Door(), hub.url) as client:
        get(client, f"{hub.url}//example.com/x")
        assert hub.requests[0].path == "/example.com/x"


def test_redirects_in_a_circle_end() -> None:
    with FaultEndpoint(then=lambda request: redirect("/again")) as hub, HubClient(Door(), hub.url) as client:
        with pytest.raises(FailedError, match="more than 5 times"):
            get(client, f"{hub.url}/page")
        assert len(hub.requests) == 6


@pytest.mark.parametrize(
    "endpoint", ["http://example.com", "ftp://hub", "hub", "http://10.0.0.1", "https://me:secret@hub.example"]
)
def test_a_hub_is_asked_over_tls_or_on_this_machine(endpoint: str) -> None:
    with pytest.raises(UsageError) as refused:
        HubClient(Door(), endpoint)
    assert "secret" not in str(refused.value)


def test_offline_no_socket_is_made() -> None:
    with EgressTrap() as trap, HubClient(Door(offline=True), "http://127.0.0.1:9") as client:
        with pytest.raises(OfflineError):
            get(client, "http://127.0.0.1:9/x")
        with pytest.raises(OfflineError), client.api() as api:
            api.model_info("a/b")
    assert (trap.attempts, trap.sockets) == ([], 0)


def test_huggingface_hub_goes_through_the_same_door_and_is_given_back() -> None:
    from huggingface_hub.utils import get_session

    with FakeHub(a__b=Repo({"x.gguf": b"x" * 2000}, is_private=True), token=TOKEN) as hub:
        with HubClient(Door(), hub.url, token=TOKEN) as client, EgressTrap() as trap:
            with client.api() as api:
                assert api.model_info("a/b", files_metadata=True).siblings[0].size == 2000
                inside = get_session()
            assert get_session() is not inside
        assert trap.outside(("127.0.0.1", hub.hub.port)) == []
        assert hub.hub.requests[0].headers["user-agent"].startswith("sr-edge/")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ([FIN], "broke off without an answer"),
        ([RST], "reset|broke off"),
        ([head(200, Content_Length=10), FIN], "broke off"),
        ([head(200, Content_Length=10), HANG], "sent nothing for 0.5 s|fell silent"),
        ([HANG], "sent nothing for 0.5 s|fell silent"),
    ],
)
def test_what_is_cut_or_stalls_is_said_in_words(script: list, says: str) -> None:
    with FaultEndpoint(then=script) as hub, HubClient(Door(), hub.url, stall=0.5) as client:
        with pytest.raises(FailedError, match=says) as failed:
            get(client, f"{hub.url}/x")
        assert failed.value.failure.fault == "unreachable"


def test_a_stop_is_heard_while_nothing_comes() -> None:
    is_stopped = threading.Event()

    def tick() -> None:
        if is_stopped.is_set():
            raise KeyboardInterrupt

    def stop(request: Request) -> list:
        is_stopped.set()
        return [HANG]

    with FaultEndpoint(then=stop) as hub, HubClient(Door(), hub.url, tick=tick) as client:
        with pytest.raises(KeyboardInterrupt):
            get(client, f"{hub.url}/x")
        assert hub.connections[0].left.wait(10)
