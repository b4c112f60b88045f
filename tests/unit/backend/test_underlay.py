"""The network below the overlay: which networks would cut a host off, and what is removed that did."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from support.fakes_machine import FakeMachine, direct
from support.fakes_netlink import ETH1, EXTERNAL, NO_ROUTE

from flannelpy.backend import underlay
from flannelpy.backend.underlay import Routed, Underlay
from flannelpy.errors import ConfigError
from flannelpy.rtnetlink.entries import GatewayRoute
from flannelpy.rtnetlink.links import Address, Link
from flannelpy.rtnetlink.routes import LOCAL, RouteAnswer

ALIAS, FOREIGN_ALIAS = "flannelpy /run/flannel/subnet.env", "flannelpy /run/other/subnet.env"
ETCD = IPv4Address("172.20.0.5")
TUN = Link(7, "flannel0", 1472, "tun", alias=ALIAS)
ETH2 = Link(3, "eth2", 1500)
NETWORK = IPv4Network("172.16.0.0/12")  # around the link and etcd


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, frozenset[IPv4Address]]:
    """What the resolver knows."""
    known = {"etcd": frozenset([ETCD])}

    async def resolve(names: Collection[str], seconds: float) -> dict[str, frozenset[IPv4Address]]:
        assert seconds == 2
        return {name: known.get(name, frozenset()) for name in names}

    monkeypatch.setattr(underlay, "resolve", resolve)
    return known


class World:
    """A machine with one link, 172.17.8.0/24, whose way to everything else is eth2."""

    def __init__(self, *etcd_hosts: str) -> None:
        self.machine = FakeMachine()
        self.machine.have(ETH2, Address(3, IPv4Address("10.0.0.1"), 24))
        self.machine.connected = ETH1
        self.underlay = Underlay(EXTERNAL, EXTERNAL.address, etcd_hosts)

    def lead(self, destination: str, link_index: int, prefix: str = "", kind: int = 1) -> None:
        """Have the kernel send packets to that network out of that interface, by a route to ``prefix``."""
        network = IPv4Network(destination)
        answer = RouteAnswer(0, link_index, None, 254, kind, prefix=IPv4Network(prefix or destination))
        self.machine.diverted[network, False] = answer

    async def check(self, network: IPv4Network | str, routed: Routed = Routed.NETWORK) -> str:
        """Why the network is refused."""
        try:
            await self.underlay.check(self.machine, IPv4Network(network), routed)
        except ConfigError as error:
            return str(error)
        return ""


def play(scenario: Callable[[World], Awaitable[None]], *etcd_hosts: str) -> None:
    async def whole() -> None:
        await scenario(World(*etcd_hosts))

    asyncio.run(whole())


# The ways to hosts


def test_an_overlay_device_on_the_way_is_named() -> None:
    async def scenario(world: World) -> None:
        world.machine.have(TUN)
        world.machine.have(Link(8, "flannel.2", 1450, "vxlan", alias=FOREIGN_ALIAS))
        world.machine.have(Link(9, "flannel1", 1472, "tun"))  # as flanneld and earlier versions leave it
        for number in (7, 8, 9):
            world.lead(f"172.18.{number}.0/24", number)
        world.machine.diverted[IPv4Network("172.18.10.0/24"), False] = NO_ROUTE
        addresses = [IPv4Address(f"172.18.{number}.1") for number in (7, 6, 8, 9, 10)]
        found = await world.underlay.overlay_ways(world.machine, addresses)
        assert list(found.items()) == list(zip(addresses, ["flannel0", "", "flannel.2", "flannel1", ""], strict=True))

    play(scenario)


def test_a_device_that_came_later_is_learnt_and_known_ones_are_not_listed_again() -> None:
    async def scenario(world: World) -> None:
        listed = 0
        links = world.machine.links

        async def counted() -> list[Link]:
            nonlocal listed
            listed += 1
            return await links()

        world.machine.links = counted  # type: ignore[method-assign]
        peer = IPv4Address("172.18.7.1")
        for _ in range(3):
            assert await world.underlay.overlay_ways(world.machine, [peer]) == {peer: ""}
        assert listed == 1
        world.machine.have(TUN)
        world.lead("172.18.7.0/24", TUN.index)
        for _ in range(3):
            assert await world.underlay.overlay_ways(world.machine, [peer]) == {peer: "flannel0"}
        assert listed == 2

    play(scenario)


# What a host has


def test_what_overlay_devices_have_is_this_host_s_but_no_network_around_it() -> None:
    async def scenario(world: World) -> None:
        world.machine.have(TUN, Address(7, IPv4Address("11.0.59.0"), 16))
        around = await world.underlay.observe(world.machine)
        assert around.addresses == {EXTERNAL.address, IPv4Address("10.0.0.1"), IPv4Address("11.0.59.0")}
        assert around.underlay == {EXTERNAL.address}
        assert around.links == (IPv4Network("172.17.8.0/24"),)
        assert set(around.connected) == {IPv4Network("10.0.0.0/24"), IPv4Network("172.17.8.0/24")}
        assert around.endpoints == set()
        del world.machine.there["eth1"]  # its address is another interface's now
        assert (await world.underlay.observe(world.machine)).links == ()

    play(scenario, "etcd")


def test_the_interface_that_has_the_public_ip_belongs_to_the_external_one() -> None:
    """Other hosts reach us by its network, so leases and Network must leave that alone."""

    async def scenario(world: World) -> None:
        external = EXTERNAL._replace(address=IPv4Address("10.0.0.1"), other_holder="eth2")
        world.underlay = Underlay(external, external.address, ())
        around = await world.underlay.observe(world.machine)
        assert around.underlay == {EXTERNAL.address, external.address}
        assert IPv4Network("10.0.0.0/24") in around.links
        assert "10.0.0.0/24" in await world.check("10.0.0.0/25")

    play(scenario)


def test_etcd_s_addresses_are_known_once_its_names_are(names: dict[str, frozenset[IPv4Address]]) -> None:
    async def scenario(world: World) -> None:
        names.clear()
        assert await world.check("11.0.0.0/16") == ""
        assert (await world.underlay.observe(world.machine)).endpoints == set()
        names["etcd"] = frozenset([ETCD])
        assert await world.check("11.0.0.0/16", Routed.NOTHING) == ""
        assert (await world.underlay.observe(world.machine)).endpoints == {ETCD}
        names.clear()  # a name that was known is not asked for again
        assert await world.check("11.0.0.0/16") == ""
        assert (await world.underlay.observe(world.machine)).endpoints == {ETCD}

    play(scenario, "etcd", "unknown")


# Which networks are refused


@pytest.mark.parametrize("network", ["172.17.8.0/24", "172.17.8.128/25"])
def test_a_network_inside_the_link_takes_the_way_to_its_hosts(network: str) -> None:
    async def scenario(world: World) -> None:
        message = (
            f"Network {network} would capture packets to hosts in 172.17.8.0/24, the network of eth1 (172.17.8.101): "
            "choose one that is no part of 172.17.8.0/24"
        )
        assert await world.check(network) == message
        assert await world.check(network, Routed.SUBNETS) == message
        assert await world.check(network, Routed.NOTHING) == ""

    play(scenario)


def test_a_network_that_the_kernel_reaches_by_the_link_counts_as_the_link() -> None:
    """As an address with a peer, or DHCP with a route, gives it one."""

    async def scenario(world: World) -> None:
        world.machine.direct += [direct(IPv4Network("172.30.0.0/16"), ETH1), direct(IPv4Network("0.0.0.0/0"), ETH1)]
        world.machine.direct += [direct(IPv4Network("172.31.0.1/32"), ETH1), direct(IPv4Network("172.29.0.0/16"), 3)]
        assert "hosts in 172.30.0.0/16, the network of eth1 (172.17.8.101)" in await world.check("172.30.5.0/24")
        for other in ("172.31.0.1/32", "172.29.5.0/24", "11.0.0.0/16"):
            assert await world.check(other) == ""

    play(scenario)


def test_a_network_around_the_link_leaves_it_its_own_routes() -> None:
    async def scenario(world: World) -> None:
        assert await world.check("172.16.0.0/12") == ""

    play(scenario)


def test_the_neighbours_of_an_address_without_a_network_need_a_route_of_their_own() -> None:
    async def scenario(world: World) -> None:
        world.machine.own_addresses[0] = Address(ETH1, EXTERNAL.address, 32)
        world.machine.direct[:] = [direct(IPv4Network("0.0.0.0/0"), ETH1)]
        message = (
            "Network 172.16.0.0/12 would capture packets to the neighbours of eth1 (172.17.8.101/32): choose one that "
            "does not contain 172.17.8.101"
        )
        assert await world.check(NETWORK) == message
        assert await world.check(NETWORK, Routed.SUBNETS) == ""
        assert await world.check("11.0.0.0/16") == ""
        # Neither the network's own route, nor one to the address itself, nor one by an overlay device.
        world.machine.have(TUN)
        for useless, link_index in (("172.16.0.0/12", ETH1), ("172.17.8.101/32", ETH1), ("172.17.0.0/16", TUN.index)):
            world.machine.direct.append(direct(IPv4Network(useless), link_index, 4))
            assert await world.check(NETWORK) == message
        world.machine.direct.append(direct(IPv4Network("172.17.8.0/22"), ETH1, 4))
        assert await world.check(NETWORK) == ""

    play(scenario)


@pytest.mark.parametrize(
    ("prefix", "link_index", "kind", "is_refused"),
    [
        ("0.0.0.0/0", 3, 1, True),
        ("172.16.0.0/12", 3, 1, True),
        ("172.20.0.0/16", 3, 1, False),
        ("172.20.0.0/16", TUN.index, 1, True),
        ("172.20.0.5/32", ETH1, LOCAL, False),
        ("172.16.0.0/12", 1, LOCAL, False),
    ],
)
def test_the_way_to_etcd_must_be_a_longer_one_and_none_of_an_overlay(
    prefix: str, link_index: int, kind: int, is_refused: bool
) -> None:
    async def scenario(world: World) -> None:
        assert await world.check("172.21.0.0/16") == ""
        if link_index == TUN.index:
            world.machine.have(TUN)  # after the links were listed
        world.lead("172.20.0.0/16", link_index, prefix, kind)
        refusal = await world.check(NETWORK)
        assert await world.check(NETWORK, Routed.SUBNETS) == ""
        assert refusal == (
            "Network 172.16.0.0/12 would capture packets to 172.20.0.5, an address of the etcd endpoint etcd: choose "
            "one that does not contain 172.20.0.5"
        ) * (is_refused)

    play(scenario, "etcd")


def test_an_etcd_without_a_route_is_rejected_inside_the_network() -> None:
    async def scenario(world: World) -> None:
        world.machine.diverted[IPv4Network("172.20.0.0/16"), False] = NO_ROUTE
        assert re.search("packets to 172.20.0.5", await world.check(NETWORK))

    play(scenario, "etcd")


# What is removed


def test_routes_of_our_own_device_to_etcd_are_removed() -> None:
    async def scenario(world: World) -> None:
        machine = world.machine
        machine.have(TUN)
        machine.have(Link(8, "flannel1", 1472, "tun", alias=FOREIGN_ALIAS))
        machine.direct += [direct(IPv4Network(one), TUN.index) for one in ("172.20.0.0/16", "172.21.0.0/16")]
        machine.hold(GatewayRoute(IPv4Network("172.20.0.0/16"), IPv4Address("10.0.0.9"), 3))
        assert await world.underlay.unblock(machine, ALIAS, ()) == []  # the kernel takes another way
        world.lead("172.20.0.0/16", 8)
        assert await world.underlay.unblock(machine, ALIAS, ()) == []  # that of another daemon
        world.lead("172.20.0.0/16", TUN.index)
        assert await world.underlay.unblock(machine, FOREIGN_ALIAS, ()) == []
        assert await world.underlay.unblock(machine, ALIAS, ()) == ["to 172.20.0.0/16 by flannel0"]
        assert direct(IPv4Network("172.21.0.0/16"), TUN.index) in machine.direct
        assert direct(IPv4Network("172.20.0.0/16"), TUN.index) not in machine.direct
        assert len(machine.gateways) == 1

    play(scenario, "etcd")


def test_a_device_of_an_earlier_version_is_ours_by_its_address() -> None:
    async def scenario(world: World) -> None:
        machine = world.machine
        machine.have(Link(8, "flannel0", 1472, "tun"), Address(8, IPv4Address("172.20.59.0"), 16))
        world.lead("172.20.0.0/16", 8)
        assert await world.underlay.unblock(machine, ALIAS, [IPv4Interface("172.20.60.0/16")]) == []
        assert await world.underlay.unblock(machine, ALIAS, [IPv4Interface("172.20.59.0/16")]) == [
            "to 172.20.0.0/16 by flannel0"
        ]

    play(scenario, "etcd")
