"""A machine whose devices, addresses, routes and rules can be changed, without a kernel."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from support.fakes_netlink import FakeNetlink

from flannelpy.linux.netlink.client import Netlink
from flannelpy.marks import ROUTE_PROTOCOL
from flannelpy.rtnetlink import entries, routes
from flannelpy.rtnetlink.entries import Identity, Route
from flannelpy.rtnetlink.links import Address, Link, Vxlan
from flannelpy.rtnetlink.messages import Message, attribute
from flannelpy.rtnetlink.routes import KernelRoute, RouteFilter
from flannelpy.rtnetlink.rules import ProhibitRule

_RTM_NEWROUTE = 24
_KERNEL, _UNICAST = 2, 1


def direct(destination: IPv4Network, link_index: int, protocol: int = _KERNEL, kind: int = _UNICAST) -> Message:
    """A route without a gateway, as the kernel lists it."""
    head = struct.pack("=BBBBBBBBI", 2, destination.prefixlen, 0, 0, 254, protocol, 253, kind, 0)
    address, index = destination.network_address.packed, struct.pack("=I", link_index)
    return Message(_RTM_NEWROUTE, head + attribute(1, address) + attribute(4, index))


class FakeMachine(FakeNetlink):
    """``direct``: its routes without gateways.  An address brings one along, and takes it away, as in the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.there = {"eth1": self.there["eth1"]}
        self.own_addresses = self.own_addresses[:1]
        self.direct = [direct(one.destination, one.link_index) for one in self.own_addresses]
        self.between: list[ProhibitRule] = []
        self.unmarked: list[ProhibitRule] = []

    def have(self, link: Link, *addresses: Address) -> None:
        """Have this device, with these addresses."""
        self.there[link.name] = link
        for one in addresses:
            self._add_address(one)

    def change(self, name: str, **values: object) -> None:
        """The device is now another one."""
        self.there[name] = replace(self.there[name], **values)  # type: ignore[arg-type]

    def addresses_of(self, name: str) -> list[str]:
        return [str(one.address) for one in self.own_addresses if one.link_index == self.there[name].index]

    @property
    def destinations(self) -> set[str]:
        """Those of all routes, but for that of the external interface."""
        without_gateway = {routes.parse(one).destination for one in self.direct[1:]}
        return set(map(str, without_gateway | {route.destination for route in self.gateways}))

    def _add_address(self, address: Address) -> None:
        self.own_addresses.append(address)
        if address.prefix_len < 32:
            self.direct.append(direct(address.destination, address.link_index))

    async def links(self) -> list[Link]:
        return list(self.there.values())

    async def routes(self) -> list[Route]:
        found = [*map(entries.add_request, self.gateways), *self.direct]
        return [Route(route.destination, route.link_index, route.metric) for route in map(routes.parse, found)]

    async def routes_of(self, wanted: RouteFilter) -> AsyncIterator[list[KernelRoute]]:
        yield wanted.select([*map(entries.add_request, self.gateways), *self.direct])

    async def routes_to(self, destinations: Container[IPv4Network]) -> dict[IPv4Network, list[KernelRoute]]:
        return await Netlink.routes_to(self, destinations)

    async def remove(self, unwanted: Sequence[Identity]) -> None:
        await super().remove(unwanted)
        self.direct = [one for one in self.direct if entries.identity_of(routes.parse(one)) not in unwanted]

    async def remove_link(self, link: Link) -> None:
        self.lose_link(link.name)

    def lose_link(self, name: str) -> None:
        """Have it no longer, and nothing that was on it."""
        link = self.there.pop(name)
        self.own_addresses = [one for one in self.own_addresses if one.link_index != link.index]
        self.gateways = [one for one in self.gateways if one.link_index != link.index]
        self.direct = [one for one in self.direct if routes.parse(one).link_index != link.index]

    async def remove_address(self, address: Address) -> None:
        self.own_addresses.remove(address)
        if address.prefix_len < 32:
            self.direct.remove(direct(address.destination, address.link_index))

    async def set_alias(self, link: Link, alias: str) -> None:
        self.change(link.name, alias=alias)

    async def set_mac(self, link: Link, mac: str) -> None:
        self.change(link.name, mac=mac)

    async def add_vxlan(self, name: str, settings: Vxlan, mac: str, mtu: int) -> None:
        self.have(Link(90 + len(self.there), name, mtu, "vxlan", is_up=False, mac=mac, vxlan=settings))

    async def bring_up(self, name: str, address: IPv4Address, network: IPv4Network, mtu: int, queue: int) -> None:
        self.change(name, mtu=mtu, is_up=True)
        index = self.there[name].index
        wanted = Address(index, address, network.prefixlen)
        if wanted not in self.own_addresses:
            self._add_address(wanted)
        if not await self.has_connected_route(network, index):
            self.direct.append(direct(network, index, ROUTE_PROTOCOL))

    async def prohibit_rules(self) -> list[ProhibitRule]:
        return list(self.between)

    async def unmarked_prohibit_rules(self) -> list[ProhibitRule]:
        return list(self.unmarked)

    async def remove_rules(self, rules: Sequence[ProhibitRule], protocol: int = ROUTE_PROTOCOL) -> None:
        for rule in rules:
            (self.between if protocol else self.unmarked).remove(rule)


def play(scenario: Callable[[FakeMachine], Awaitable[None]]) -> FakeMachine:
    """Run a scenario on a new machine, and return the machine."""
    machine = FakeMachine()

    async def whole() -> None:
        await scenario(machine)

    asyncio.run(whole())
    return machine
