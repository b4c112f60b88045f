"""Each page for each kind of client, and what a client gets while the daemon is silent."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannelpy.errors import DaemonUnavailable
from flannelpy.report import (
    BackendReport,
    DaemonReport,
    InterfaceReport,
    LeaseReport,
    NetworkReport,
    NetworkState,
    PeerReport,
)
from flannelpy.serving import wire
from flannelpy.web import pages as pages_module
from flannelpy.web.messages import Request, Response
from flannelpy.web.pages import Pages

LOOPBACK, ETH1, PEER = IPv4Address("127.0.0.1"), IPv4Address("172.17.8.101"), IPv4Address("172.17.8.102")
OPEN = IPv4Address("10.0.0.1")
READY = NetworkReport("", NetworkState.READY, backend=BackendReport("vxlan", 1, 0))
DOWN = NetworkReport(
    "green",
    NetworkState.DEGRADED,
    "Link eth1 is down",
    lease=LeaseReport(IPv4Network("11.0.59.0/24"), None),
    interface=InterfaceReport("eth1", "Link eth1 is down"),
)
OTHER = PeerReport(IPv4Network("11.0.60.0/24"), PEER, 1000.0)
RESTRICTED = ("/metrics", "/status.json")


class FakeDaemon:
    """Answers with a report; counts the questions."""

    def __init__(self, *networks: NetworkReport, failure: Exception | None = None, seconds: float = 0) -> None:
        self.report = DaemonReport(networks, "1.0.0", 17, 1000.0, "compiled")
        self.failure, self.seconds = failure, seconds
        self.questions: list[bool] = []

    async def ask(self, *, with_peers: bool) -> wire.Answer:
        self.questions.append(with_peers)
        await asyncio.sleep(self.seconds)
        if self.failure:
            raise self.failure
        return wire.Answer(self.report, {"": [OTHER]} if with_peers else {})


def answer(
    daemon: FakeDaemon,
    target: str,
    *,
    method: str = "GET",
    host: str = "127.0.0.1:8471",
    local: IPv4Address = LOOPBACK,
    remote: IPv4Address = LOOPBACK,
    addresses: tuple[IPv4Address, ...] = (OPEN,),
    with_peers: bool = False,
) -> Response:
    async def ask() -> Response:
        pages = Pages(daemon, frozenset(addresses), "host1", with_peers=with_peers)
        return await pages.answer(Request(method, target, host, local, remote))

    return asyncio.run(ask())


@pytest.mark.parametrize("path", ["/healthz", "/livez"])
@pytest.mark.parametrize("network", [READY, DOWN, NetworkReport("", NetworkState.WAITING_FOR_CONFIG)])
def test_a_daemon_that_answers_is_alive_in_any_state(path: str, network: NetworkReport) -> None:
    response = answer(FakeDaemon(network), path, local=ETH1, remote=PEER, host="any.example")
    assert response == Response(HTTPStatus.OK, b"flanneld is running")


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz", "/metrics", "/status.json"])
def test_a_daemon_that_hangs_or_answers_nonsense_is_not_alive(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_module, "_HEALTH_SECONDS", 0.01)
    monkeypatch.setattr(pages_module, "_PAGE_SECONDS", 0.01)
    expected = Response(HTTPStatus.SERVICE_UNAVAILABLE, b"flanneld does not answer\n")
    assert answer(FakeDaemon(READY, seconds=60), path) == expected
    assert answer(FakeDaemon(READY, failure=DaemonUnavailable("no report")), path) == expected


@pytest.mark.parametrize(
    ("networks", "status"),
    [
        ([READY], 200),
        ([READY, READY], 200),
        ([READY, DOWN], 503),
        ([NetworkReport("", NetworkState.WAITING_FOR_PEERS)], 503),
        ([NetworkReport("", NetworkState.FAILED, "busy")], 503),
    ],
)
def test_readiness_is_that_of_all_networks(networks: list[NetworkReport], status: int) -> None:
    response = answer(FakeDaemon(*networks), "/readyz", local=ETH1, remote=PEER)
    assert response.status == status
    assert response.body == (b"flanneld is ready" if status == 200 else b"flanneld is not ready yet")


def test_details_of_readiness_name_texts_only_to_those_who_may_read_the_metrics() -> None:
    daemon = FakeDaemon(READY, DOWN)
    public = answer(daemon, "/readyz?verbose", local=ETH1, remote=PEER).body.decode()
    assert public == (
        "flanneld is not ready yet\nnetwork: ready\nnetwork green: degraded\n"
        "problem of network green: external_interface\n"
    )
    for local, remote in ((LOOPBACK, LOOPBACK), (OPEN, PEER)):
        whole = answer(daemon, "/readyz?verbose=1", local=local, remote=remote).body.decode()
        assert "problem of network green: external_interface: Link eth1 is down; restore the link" in whole
    rebound = answer(daemon, "/readyz?verbose", host="evil.example").body.decode()
    assert "Link" not in rebound


@pytest.mark.parametrize("path", RESTRICTED)
@pytest.mark.parametrize(
    ("local", "remote", "addresses", "is_admitted"),
    [
        (LOOPBACK, LOOPBACK, (), True),
        (IPv4Address("127.8.9.1"), LOOPBACK, (), True),
        (LOOPBACK, PEER, (), False),  # by route_localnet
        (ETH1, PEER, (), False),
        (ETH1, ETH1, (), False),
        (ETH1, PEER, (OPEN,), False),
        (OPEN, PEER, (OPEN,), True),
        (ETH1, PEER, (IPv4Address("0.0.0.0"),), True),
    ],
)
def test_who_may_read_metrics_and_status(
    path: str, local: IPv4Address, remote: IPv4Address, addresses: tuple[IPv4Address, ...], is_admitted: bool
) -> None:
    response = answer(FakeDaemon(READY), path, local=local, remote=remote, addresses=addresses)
    assert response.status == (200 if is_admitted else 403)
    assert is_admitted or response.body.endswith(
        b"is only for clients on this host, and at the addresses of -metrics-ip\n"
    )


@pytest.mark.parametrize("path", RESTRICTED)
@pytest.mark.parametrize(
    ("host", "is_accepted"),
    [
        ("", True),
        ("127.0.0.1", True),
        ("127.0.0.1:8471", True),
        ("[::1]:8471", True),
        ("localhost:8471", True),
        ("LOCALHOST", True),
        ("host1", True),
        ("Host1:8471", True),
        ("host1.evil.example:8471", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example", False),
        ("evil.example:8471", False),
        ("127.1", False),
        ("2130706433", False),
        ("[evil.example]", False),
        ("[", True),  # names nothing
        ("::1", True),  # names nothing: a colon ends the name
        ("localhost.", False),
        ("127.0.0.1@evil.example", False),
    ],
)
def test_a_name_that_others_give_to_this_host_is_refused(path: str, host: str, is_accepted: bool) -> None:
    response = answer(FakeDaemon(READY), path, host=host)
    assert response.status == (200 if is_accepted else 403)


def test_metrics_have_series_of_peers_only_if_they_are_wanted() -> None:
    daemon = FakeDaemon(READY)
    totals = answer(daemon, "/metrics")
    assert totals.content_type.startswith("text/plain; version=0.0.4")
    assert b"flannelpy_up 1.0\n" in totals.body
    assert b"flannelpy_peer_" not in totals.body
    assert daemon.questions == [False]
    assert b'subnet="11.0.60.0/24"' in answer(daemon, "/metrics", with_peers=True).body


def test_status_is_the_document_of_the_command_with_all_peers() -> None:
    response = answer(FakeDaemon(READY), "/status.json")
    assert response.content_type == "application/json"
    document = json.loads(response.body)
    assert document["well"] is True
    assert document["networks"][0]["peers"][0]["public_ip"] == "172.17.8.102"


def test_other_paths_and_methods() -> None:
    for path in ("/", "", "/healthz/", "/metrics/..", "*", "http://evil.example/healthz"):
        response = answer(FakeDaemon(READY), path)
        assert response.status == 404
        assert b"/healthz, /livez, /readyz, /metrics, /status.json" in response.body
    for method in ("POST", "PUT", "OPTIONS", "get"):
        response = answer(FakeDaemon(READY), "/healthz", method=method)
        assert (response.status, response.allow) == (405, "GET, HEAD")
    assert answer(FakeDaemon(READY), "/healthz?x=1", method="HEAD").status == 200


def test_many_clients_cause_one_question_a_second() -> None:
    daemon = FakeDaemon(READY, seconds=0.01)

    async def ask() -> None:
        pages = Pages(daemon, frozenset(), "host1", with_peers=False)
        request = Request("GET", "/metrics", "", LOOPBACK, LOOPBACK)
        ready = Request("GET", "/readyz", "", ETH1, PEER)
        responses = await asyncio.gather(*(pages.answer(each) for each in [request, ready] * 100))
        assert {response.status for response in responses} == {200}

    asyncio.run(ask())
    assert daemon.questions == [False]
