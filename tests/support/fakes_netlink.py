"""A fake of the kernel's entries that lead to peers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container, Hashable, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Self

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink import entries, routes
from flannelpy.rtnetlink.entries import Entry, FdbEntry, GatewayRoute, Identity, Neighbour
from flannelpy.rtnetlink.links import Address, Link
from flannelpy.rtnetlink.routes import KernelRoute, RouteAnswer, RouteFilter, RouteQuery
from flannelpy.rtnetlink.rules import PolicyRule

EXTERNAL = ExternalInterface("eth1", IPv4Address("172.17.8.101"), 1500)
ETH1, FLANNEL1 = 2, 7
NO_ROUTE = RouteAnswer(errno=101)


async def no_changes(_: IPv4Network) -> AsyncIterator[None]:
    """Replaces ``monitor.notifications``: the kernel reports no change."""
    await asyncio.Event().wait()
    yield


class FakeNetlink(Netlink):
    """``changes`` counts added and removed entries; adding an entry in ``rejected`` fails with that errno.

    ``diverted`` answers queries about packets to these networks instead of the routes: of the host, or of containers
    (True).
    """

    def __init__(self) -> None:
        self.gateways: list[GatewayRoute] = []
        self.on_device: dict[Hashable, Neighbour | FdbEntry] = {}
        self.changes = 0
        self.rejected: dict[Entry, int] = {}
        self.own_addresses = [Address(ETH1, EXTERNAL.address, 24), Address(3, IPv4Address("10.0.0.1"), 8)]
        self.there = {"eth1": Link(ETH1, "eth1", 1500), "flannel.1": Link(FLANNEL1, "flannel.1", 1450, "vxlan")}
        self.diverted: dict[tuple[IPv4Network, bool], RouteAnswer] = {}
        self.queries: list[RouteQuery] = []
        self.policy: list[PolicyRule] = []
        self.forwarding = {3}
        self.connected = FLANNEL1  # the interface with a route to everything else

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    @property
    def entries(self) -> list[Entry]:
        """Return all entries."""
        return [*self.gateways, *self.on_device.values()]

    def hold(self, *held: Entry) -> None:
        """Add entries without counting a change."""
        for entry in held:
            if isinstance(entry, GatewayRoute):
                self.gateways.append(entry)
            else:
                self.on_device[entry.key] = entry

    def lose(self, *lost: Entry) -> None:
        """Remove entries without counting a change."""
        for entry in lost:
            if isinstance(entry, GatewayRoute):
                self.gateways.remove(entry)
            else:
                del self.on_device[entry.key]

    async def settled(self, *wanted: Entry) -> None:
        """Wait until exactly these entries exist."""
        async with asyncio.timeout(5):
            while set(self.entries) != set(wanted):  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0)

    async def link(self, name: str) -> Link | None:
        return self.there.get(name)

    async def addresses(self) -> list[Address]:
        return self.own_addresses

    async def filtering_links(self) -> set[int]:
        return set()

    def name_of(self, link_index: int) -> str:
        return {link.index: link.name for link in self.there.values()}.get(link_index, f"if{link_index}")

    def is_forwarding(self, link_index: int) -> bool:
        return link_index in self.forwarding

    async def rules(self) -> list[PolicyRule]:
        return self.policy

    async def routes_of(self, wanted: RouteFilter) -> AsyncIterator[list[KernelRoute]]:
        yield wanted.select([entries.add_request(route) for route in self.gateways])

    async def routes_to(self, destinations: Container[IPv4Network]) -> dict[IPv4Network, list[KernelRoute]]:
        found: dict[IPv4Network, list[KernelRoute]] = {}
        for route in self.gateways:
            if route.destination in destinations:
                found.setdefault(route.destination, []).append(routes.parse(entries.add_request(route)))
        return found

    async def owned(self, network: IPv4Network, link_index: int) -> AsyncIterator[list[Identity]]:
        """Yield routes by mark and interface, and all other entries of our own interface."""
        kept = [routes.parse(entries.add_request(route)) for route in self.gateways]
        yield [entries.identity_of(route) for route in kept if entries.is_owned(route, network, link_index)]
        yield [entries.identity(entry) for entry in self.on_device.values() if entry.link_index == link_index]

    async def lookups(self, queries: Sequence[RouteQuery], *, matched: bool = False) -> list[RouteAnswer]:
        self.queries += queries
        return [self._answer(query) for query in queries]

    def _answer(self, query: RouteQuery) -> RouteAnswer:
        for (network, is_forwarded), answer in self.diverted.items():
            if query.destination in network and is_forwarded == bool(query.input_index):
                return answer
        around = [route for route in self.gateways if query.destination in route.destination]
        if not around:
            links = [one.link_index for one in self.own_addresses if query.destination in one.destination]
            link_index = links[0] if links else self.connected
            return RouteAnswer(0, link_index, None, 254, 1) if link_index else NO_ROUTE
        best = max(around, key=lambda route: route.destination.prefixlen)
        found = routes.parse(entries.add_request(best))
        return RouteAnswer(0, best.link_index, best.gateway, 254, 1, best.protocol, 0, best.destination, found)

    async def add(self, wanted: Sequence[Entry]) -> list[int]:
        """Add as the kernel does: reject a route if another one is there; other entries replace those of their key."""
        return [self._add(entry) for entry in wanted]

    async def append(self, wanted: Sequence[GatewayRoute]) -> list[int]:
        self.changes += len(wanted)
        self.gateways += wanted
        return [0] * len(wanted)

    def _add(self, entry: Entry) -> int:
        if entry in self.rejected:
            return self.rejected[entry]
        if isinstance(entry, GatewayRoute) and any(route.destination == entry.destination for route in self.gateways):
            return 17
        self.changes += 1
        self.hold(entry)
        return 0

    async def remove(self, unwanted: Sequence[Identity]) -> None:
        """Like the kernel, delete a route if all of it matches, a neighbour by its address."""
        for key in unwanted:
            for entry in self.entries:
                is_it = entries.identity(entry) == key
                if is_it or (isinstance(entry, Neighbour) and _is_neighbour_of(key, entry)):
                    self.lose(entry)
                    self.changes += 1


def _is_neighbour_of(unwanted: Identity, entry: Neighbour) -> bool:
    return not entries.is_route(unwanted) and entries.key(unwanted) == entry.key
