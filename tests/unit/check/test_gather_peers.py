"""Loss and path MTU are measured by few packets, against a path in memory."""

from __future__ import annotations

import asyncio
import random
from ipaddress import IPv4Address, IPv4Network
from typing import Self

import pytest
from support.fakes_clock import run

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.check import gather_peers
from flannelpy.check.observations import HostSeen, Peer, PeerSeen, PortSeen, WaySeen
from flannelpy.check.plan import Plan
from flannelpy.linux import udp_probe
from flannelpy.linux.icmp_echo import NOT_PERMITTED, TIME_EXCEEDED, Answer
from flannelpy.linux.udp_probe import PortState
from flannelpy.rtnetlink.links import Address, Link
from flannelpy.subnet.lease import HostIdentity

NETWORK, OURS, THEIRS = map(IPv4Network, ("11.0.0.0/16", "11.0.1.0/24", "11.0.2.0/24"))
EXTERNAL = ExternalInterface("eth1", IPv4Address("172.17.8.101"), 1500)
PEER = Peer(THEIRS, IPv4Address("172.17.8.102"))
UDP = Plan("udp", NETWORK, OURS, 1472, 8285)
LAST = "11.0.2.254"  # of the peer's containers
HELD = ("172.17.8.101", "11.0.1.0", "11.0.1.1")


class Path:
    """What every socket of a test sees: targets that are silent, the widest packet, and the first packets lost.

    ``tokens``: how many pings the peer still answers, None for all; ``chance``: the part of the pings that is lost.
    ``errors``: what is reported, and by whom, about pings of a target.  ``hops``: the TTLs of pings that need not reach
    their target.
    """

    def __init__(self) -> None:
        self.silent: set[str] = set()
        self.errors: dict[str, Answer] = {}
        self.hops: list[tuple[str, int]] = []
        self.widest = 9000
        self.lost = 0
        self.tokens: int | None = None
        self.chance, self.random = 0.0, random.Random(1)
        self.sent: list[tuple[str, str, int]] = []

    def answer(self, source: IPv4Address, target: IPv4Address, length: int) -> bool:
        self.sent.append((str(source), str(target), length))
        if length == 84 and self.lost:
            self.lost -= 1
            return False
        if str(target) in self.silent or length > self.widest or self.random.random() < self.chance:
            return False
        if self.tokens is not None:
            self.tokens -= 1
        return self.tokens is None or self.tokens >= 0


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Path:
    found = Path()

    class FakeEcho:
        def __init__(self, source: IPv4Address) -> None:
            self.source = source

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def ask(self, target: IPv4Address, length: int, patience: float, ttl: int = 64) -> Answer:
            if ttl < 64:
                found.hops.append((str(target), ttl))
            if str(target) in found.errors:
                return found.errors[str(target)]
            if found.answer(self.source, target, length):
                return Answer(0.001)
            await asyncio.sleep(patience)
            return Answer()

    async def closed(*_: object) -> PortState:
        return PortState.CLOSED

    monkeypatch.setattr(gather_peers, "IcmpEcho", FakeEcho)
    monkeypatch.setattr(udp_probe, "probe", closed)
    return found


def look(plan: Plan | None = UDP, held: tuple[str, ...] = HELD, way: WaySeen | None = None) -> PeerSeen:
    addresses = [Address(2, IPv4Address(each), 24) for each in held]
    link = Link(2, "eth1", 1500)
    host = HostSeen(EXTERNAL, HostIdentity(EXTERNAL.address), link, [link], addresses)

    async def ask() -> PeerSeen:
        async with gather_peers.Pings(host, plan) as pings:
            [seen] = await pings.look([PEER], {THEIRS: way or WaySeen()})
            return seen

    return run(ask())


def test_each_address_is_pinged_from_its_counterpart_small_and_at_the_full_mtu(path: Path) -> None:
    seen = look()
    assert set(path.sent) == {
        ("172.17.8.101", "172.17.8.102", 84),
        ("172.17.8.101", "172.17.8.102", 1500),
        ("11.0.1.0", "11.0.2.0", 84),
        ("11.0.1.0", "11.0.2.0", 1472),
        ("11.0.1.1", "11.0.2.1", 84),
        ("11.0.1.1", "11.0.2.1", 1472),
    }
    assert seen.tunnel
    assert (seen.tunnel.sent, seen.tunnel.received, seen.tunnel.path_mtu) == (3, 3, 1472)
    assert seen.tunnel.milliseconds == pytest.approx(1)
    assert seen.port is None
    assert path.hops == []


@pytest.mark.parametrize("widest", [84, 85, 576, 1000, 1280, 1400, 1404, 1470, 1471, 1472])
def test_the_path_mtu_is_exact(path: Path, widest: int) -> None:
    path.widest = widest
    seen = look()
    assert seen.tunnel
    assert seen.tunnel.path_mtu == widest
    assert len(path.sent) < 600


@pytest.mark.parametrize("tokens", [4, 9, 12])
def test_a_rate_limit_of_the_peer_is_loss_and_no_path_mtu(path: Path, tokens: int) -> None:
    path.tokens = tokens
    seen = look()
    for echo in (seen.public, seen.tunnel, seen.bridge):
        assert echo
        assert not echo.is_narrow
        assert echo.received < echo.sent or not echo.received


@pytest.mark.parametrize("seed", range(20))
def test_a_lossy_path_has_no_path_mtu_that_is_wrong(path: Path, seed: int) -> None:
    path.random.seed(seed)
    path.chance, path.widest = 0.3, 1400
    seen = look()
    assert seen.tunnel
    assert seen.tunnel.path_mtu in (0, 1400)
    path.widest = 9000
    seen = look()
    assert not any(echo.is_narrow for echo in (seen.public, seen.tunnel, seen.bridge) if echo)


def test_an_address_is_asked_again_before_it_counts_as_silent(path: Path) -> None:
    path.silent = {"11.0.2.0", "11.0.2.1", LAST}
    seen = look()
    assert seen.tunnel
    assert seen.bridge
    assert (seen.tunnel.sent, seen.tunnel.received, seen.bridge.sent) == (7, 0, 7)
    path.silent, path.lost = set(), 12  # all three of each address, and then one each
    seen = look()
    assert seen.tunnel
    assert seen.public
    assert (seen.tunnel.sent, seen.tunnel.received, seen.public.received) == (7, 3, 3)


def test_a_lost_packet_is_followed_by_more(path: Path) -> None:
    path.lost = 1
    seen = look(Plan("host-gw", NETWORK, OURS, 1500))
    assert seen.public
    assert (seen.public.sent, seen.public.received) == (10, 9)


def test_the_port_is_asked_about_if_only_the_public_ip_answers(path: Path) -> None:
    path.silent = {"11.0.2.0", "11.0.2.1", LAST}
    assert look().port is PortSeen.CLOSED
    path.silent.add("172.17.8.102")
    assert look().port is None


@pytest.mark.parametrize(("backend", "ttl"), [("udp", 2), ("vxlan", 1)])
def test_a_peer_that_answers_no_ping_may_report_that_it_forwards(path: Path, backend: str, ttl: int) -> None:
    path.silent = {"11.0.2.0", "11.0.2.1"}
    plan = Plan(backend, NETWORK, OURS, 1450, 8472)
    path.errors[LAST] = Answer(None, TIME_EXCEEDED, IPv4Address("11.0.2.0"))
    assert look(plan).is_forwarding
    assert path.hops == [(LAST, ttl)]
    path.errors[LAST] = Answer(None, TIME_EXCEEDED, IPv4Address("11.0.1.0"))  # this host
    assert not look(plan).is_forwarding


def test_without_a_tunnel_a_host_that_answers_is_not_asked_whether_it_forwards(path: Path) -> None:
    path.silent = {"11.0.2.1", LAST}
    assert not look(Plan("host-gw", NETWORK, OURS, 1500)).is_forwarding
    assert path.hops == []
    path.silent.add("172.17.8.102")
    path.errors[LAST] = Answer(None, TIME_EXCEEDED, PEER.public_ip)
    assert look(Plan("host-gw", NETWORK, OURS, 1500)).is_forwarding


def test_who_rejects_a_ping_counts(path: Path) -> None:
    path.errors["172.17.8.102"] = Answer(None, NOT_PERMITTED)
    path.errors["11.0.2.0"] = Answer(None, "prohibited", IPv4Address("11.0.2.0"))
    path.errors["11.0.2.1"] = Answer(None, "host unreachable", IPv4Address("11.0.2.0"))
    seen = look()
    assert [(echo.is_rejected, echo.is_stopped) for echo in (seen.public, seen.tunnel, seen.bridge) if echo] == [
        (False, True),
        (True, False),
        (False, False),
    ]


def test_without_device_or_subnet_only_what_can_be_reached_is_pinged(path: Path) -> None:
    for held in (("172.17.8.101",), ("172.17.8.101", "11.0.1.1")):
        seen = look(held=held)
        assert (seen.tunnel, seen.bridge) == (None, None)
    seen = look(plan=None)
    assert seen.public
    assert (seen.tunnel, seen.bridge, seen.public.full) == (None, None, 1500)
    seen = look(Plan("host-gw", NETWORK, OURS, 1500), held=("172.17.8.101",))
    assert seen.bridge
    assert str(seen.bridge.source) == "172.17.8.101"


def test_a_peer_without_a_route_is_not_pinged(path: Path) -> None:
    assert look(way=WaySeen("no route")).public is None
    assert path.sent == []
