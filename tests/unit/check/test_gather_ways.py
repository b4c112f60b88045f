"""The kernel's answers about packets to and from peers, against a kernel in memory."""

from __future__ import annotations

import asyncio
import errno
from ipaddress import IPv4Address, IPv4Network

import pytest
from support.fakes_netlink import ETH1, EXTERNAL, FLANNEL1, FakeNetlink

from flannelpy.check.gather_ways import Kernel
from flannelpy.check.observations import HostSeen, Peer, WaySeen
from flannelpy.check.plan import Plan
from flannelpy.linux import rp_filter
from flannelpy.rtnetlink.entries import FdbEntry, GatewayRoute, Neighbour
from flannelpy.rtnetlink.links import Link
from flannelpy.rtnetlink.routes import RouteAnswer
from flannelpy.subnet.lease import HostIdentity

NETWORK, OURS = IPv4Network("11.0.0.0/16"), IPv4Network("11.0.1.0/24")
ANSWERS_OF_RP_FILTER = (errno.EXDEV, errno.EINVAL)


def peer(number: int) -> Peer:
    subnet = IPv4Network(f"11.0.{number}.0/24")
    return Peer(subnet, IPv4Address("172.17.8.100") + number, f"02:00:00:00:00:{number:02x}")


PEERS = [peer(number) for number in range(2, 27)]


def kernel(backend: str) -> FakeNetlink:
    """With the entries that lead to all peers."""
    fake = FakeNetlink()
    for one in PEERS:
        gateway, link = (one.public_ip, ETH1) if backend == "host-gw" else (one.subnet.network_address, FLANNEL1)
        fake.hold(GatewayRoute(one.subnet, gateway, link, is_onlink=backend != "host-gw"))
        if backend == "vxlan":
            fake.hold(FdbEntry(one.mac, one.public_ip, link))
            fake.hold(Neighbour(one.subnet.network_address, one.mac, link))
    return fake


def look(fake: FakeNetlink, backend: str) -> dict[IPv4Network, WaySeen]:
    links = [Link(ETH1, "eth1", 1500), Link(FLANNEL1, "flannel.1", 1450, "vxlan")]
    host = HostSeen(EXTERNAL, HostIdentity(EXTERNAL.address), links[0], links, fake.own_addresses)
    plan = Plan(backend, NETWORK, OURS, 1450)
    device = 0 if backend == "host-gw" else FLANNEL1
    return asyncio.run(Kernel(fake, host, plan, device).look(PEERS))


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_nothing_is_wrong_with_flannelpys_routes(backend: str) -> None:
    assert set(look(kernel(backend), backend).values()) == {WaySeen()}


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_a_missing_route_is_named_for_its_peer_alone(backend: str) -> None:
    fake = kernel(backend)
    fake.gateways = [route for route in fake.gateways if route.destination != PEERS[3].subnet]
    fake.diverted[PEERS[3].subnet, False] = RouteAnswer(errno=errno.ENETUNREACH)
    seen = look(fake, backend)
    assert seen[PEERS[3].subnet].diverted
    assert {subnet for subnet, way in seen.items() if way.diverted} == {PEERS[3].subnet}


def test_what_leads_elsewhere_is_named_for_its_peer_alone() -> None:
    fake, one = kernel("vxlan"), PEERS[3]
    fake.hold(FdbEntry(one.mac, IPv4Address("172.17.8.99"), FLANNEL1))
    seen = look(fake, "vxlan")
    assert seen[one.subnet].missing == (f"forwarding of {one.mac} to {one.public_ip}",)
    assert {subnet for subnet, way in seen.items() if way.missing} == {one.subnet}


def test_a_peer_without_a_route_in_the_underlay_is_named() -> None:
    fake = kernel("vxlan")
    fake.diverted[IPv4Network("172.17.8.103/32"), False] = RouteAnswer(errno=errno.EHOSTUNREACH)
    seen = look(fake, "vxlan")
    assert "No route to host" in seen[PEERS[1].subnet].no_route
    assert [way.no_route for way in seen.values()].count("") == len(PEERS) - 1


@pytest.mark.parametrize("answer", ANSWERS_OF_RP_FILTER)
@pytest.mark.parametrize("is_enabled", [True, False])
def test_a_rejected_arrival_is_rp_filter_only_where_it_is_on(
    answer: int, is_enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = kernel("vxlan")
    fake.diverted[IPv4Network(f"{EXTERNAL.address}/32"), True] = RouteAnswer(errno=answer)
    monkeypatch.setattr(rp_filter, "is_enabled", lambda device: is_enabled and device == "eth1")
    seen = look(fake, "vxlan")
    assert {tuple(way.rejecting) for way in seen.values()} == {("eth1",) if is_enabled else ()}
