"""Packets for the own subnet reach its bridge, or the route that takes them is named; against a kernel in memory."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from support.fakes_netlink import ETH1, EXTERNAL, FLANNEL1, FakeNetlink

from flannelpy.backend.route_cause import DivertingRoutes
from flannelpy.check import gather_subnet
from flannelpy.check.observations import HostSeen, Peer
from flannelpy.check.plan import Plan
from flannelpy.rtnetlink.entries import GatewayRoute
from flannelpy.rtnetlink.links import Address, Link
from flannelpy.rtnetlink.routes import UNICAST, RouteAnswer, RouteQuery
from flannelpy.subnet.lease import HostIdentity

NETWORK, OURS, THEIRS = map(IPv4Network, ("11.0.0.0/16", "11.0.1.0/24", "11.0.2.0/24"))
PLAN = Plan("vxlan", NETWORK, OURS, 1450)
PEER = Peer(THEIRS, IPv4Address("172.17.8.102"))
DOCKER0, CNI0 = Link(4, "docker0", 1450, "bridge"), Link(5, "cni0", 1450, "bridge")
PORT = Link(6, "veth1", 1450, "veth", master=4)
ADDRESS = Address(4, IPv4Address("11.0.1.1"), 24)
ELSEWHERE = RouteAnswer(0, 9, None, 254, UNICAST)


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cause is named by its interface and errno."""

    async def name(_: DivertingRoutes, __: RouteQuery, answer: RouteAnswer) -> str:
        return f"{answer.link_index} {answer.errno}"

    monkeypatch.setattr(DivertingRoutes, "name", name)


def look(
    diverted: dict[tuple[IPv4Network, bool], RouteAnswer] | None = None,
    links: Sequence[Link] = (DOCKER0, PORT),
    addresses: Sequence[Address] = (ADDRESS,),
) -> Sequence[str]:
    fake = FakeNetlink()
    fake.own_addresses = [Address(ETH1, EXTERNAL.address, 24), *addresses]
    fake.diverted = diverted or {}
    eth1 = Link(ETH1, "eth1", 1500)
    host = HostSeen(EXTERNAL, HostIdentity(EXTERNAL.address), eth1, [eth1, *links], fake.own_addresses)
    return asyncio.run(gather_subnet.diverted(fake, host, PLAN, FLANNEL1, [PEER]))


class Kernel(FakeNetlink):
    """A kernel that lists its links."""

    async def links(self) -> list[Link]:
        return list(self.there.values())


LOST = Link(7, "veth0a1b2c3", 1450, "veth", leads_elsewhere=True)


def unplugged(now: Link, *more: Address, before: Link = LOST, route: GatewayRoute | None = None) -> Sequence[Link]:
    """Return what is found if a link has become another one since the host was observed."""
    fake = Kernel()
    fake.own_addresses = [ADDRESS, *more]
    fake.there = {link.name: link for link in (DOCKER0, PORT, now)}
    fake.gateways = [route] if route else []
    host = HostSeen(EXTERNAL, HostIdentity(EXTERNAL.address), None, [DOCKER0, PORT, before], fake.own_addresses)
    return asyncio.run(gather_subnet.unplugged(fake, host, PLAN))


def test_a_containers_end_without_a_bridge_is_unplugged() -> None:
    assert unplugged(LOST) == [LOST]
    assert unplugged(replace(LOST, name="veth0a1b2c3d")) == [replace(LOST, name="veth0a1b2c3d")]


@pytest.mark.parametrize(
    "other",
    [
        replace(LOST, master=4),
        replace(LOST, leads_elsewhere=False),
        replace(LOST, kind="bridge"),
        *(
            replace(LOST, name=name)
            for name in ("eth1", "veth1", "lxc0a1b2c3d4e5f6", "cali0a1b2c3d4e5", "vethwepl1234")
        ),
    ],
)
def test_another_end_is_not(other: Link) -> None:
    assert unplugged(other, before=other) == []
    assert unplugged(other) == []  # plugged in meanwhile
    assert unplugged(LOST, before=replace(other, index=9)) == []  # new


def test_an_end_with_an_address_or_a_route_needs_no_bridge() -> None:
    assert unplugged(LOST, Address(7, IPv4Address("11.0.1.1"))) == []
    assert unplugged(LOST, route=GatewayRoute(IPv4Network("11.0.1.7/32"), IPv4Address("11.0.1.7"), 7)) == []


def test_without_a_bridge_of_the_subnet_no_end_is_missing_there() -> None:
    fake = Kernel()
    fake.own_addresses, fake.there = [], {LOST.name: LOST}
    host = HostSeen(EXTERNAL, HostIdentity(EXTERNAL.address), None, [LOST], [])
    assert asyncio.run(gather_subnet.unplugged(fake, host, PLAN)) == []


def test_packets_that_reach_the_bridge_have_no_flaw() -> None:
    assert look() == []
    assert look(links=[DOCKER0]) == []
    assert look(addresses=[]) == []


@pytest.mark.parametrize("part", ["11.0.1.128/25", "11.0.1.16/28", "11.0.1.7/32"])
@pytest.mark.parametrize("is_forwarded", [True, False])
def test_a_more_specific_route_is_named(part: str, is_forwarded: bool) -> None:
    assert look({(IPv4Network(part), is_forwarded): ELSEWHERE}) == ["9 0"]


def test_a_blackhole_is_named_and_what_rp_filter_rejects_is_not() -> None:
    part = IPv4Network("11.0.1.64/26")
    assert look({(part, False): RouteAnswer(errno=errno.EINVAL)}) == [f"0 {errno.EINVAL}"]
    assert look({(part, True): RouteAnswer(errno=errno.EXDEV)}) == []


def test_a_route_to_one_container_is_its_own() -> None:
    one = IPv4Network("11.0.1.7/32")
    assert look({(one, False): ELSEWHERE._replace(prefix=one)}) == []


def test_a_second_bridge_counts_only_if_its_route_takes_the_packets_of_containers() -> None:
    both = [ADDRESS, replace(ADDRESS, link_index=5)]
    assert look(links=[DOCKER0, CNI0, PORT], addresses=both) == []
    assert look(links=[DOCKER0, CNI0, PORT], addresses=both[::-1]) == ["5 0"]
    assert look(links=[DOCKER0, CNI0], addresses=both) == []


def test_a_bridge_that_is_down_has_a_line_of_its_own() -> None:
    assert look({(OURS, False): ELSEWHERE}, [replace(DOCKER0, is_up=False), PORT]) == []
