"""The interfaces of a machine, with their addresses and default routes, without a kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.entries import Route
from flannelpy.rtnetlink.links import Address, Link
from flannelpy.rtnetlink.routes import RouteAnswer, RouteQuery

LO = Link(1, "lo", 65536, is_loopback=True)
ETH0, ETH1, ETH2 = Link(2, "eth0", 1500), Link(3, "eth1", 9000), Link(7, "eth2", 1400)
LINKS = (LO, ETH0, ETH1, ETH2)
ADDRESSES = ((1, "127.0.0.1"), (2, "10.0.2.15"), (3, "172.17.8.101"), (3, "172.17.8.111"))


class FakeNetlink(Netlink):
    """A machine's interfaces without a kernel."""

    def __init__(
        self,
        links: tuple[Link, ...] = LINKS,
        addresses: Sequence[tuple[int, str] | Address] = ADDRESSES,
        defaults: tuple[tuple[int, int], ...] = (),
        ways: Mapping[str, RouteAnswer] | None = None,
    ) -> None:
        """``defaults``: pairs of index and metric.  ``ways``: the kernel's route to each address that has one."""
        self.listed = list(links)
        self.held = [one if isinstance(one, Address) else Address(one[0], IPv4Address(one[1]), 16) for one in addresses]
        self.defaults = defaults
        self.ways = dict(ways or {})

    async def links(self) -> list[Link]:
        return self.listed

    async def link(self, name: str) -> Link | None:
        """By an altname, too, as the kernel."""
        return next((link for link in self.listed if name in (link.name, *link.altnames)), None)

    def name_of(self, link_index: int) -> str:
        return next((link.name for link in self.listed if link.index == link_index), f"if{link_index}")

    async def addresses(self) -> list[Address]:
        return self.held

    async def default_routes(self) -> list[Route]:
        routes = [Route(IPv4Network("0.0.0.0/0"), index, metric) for index, metric in self.defaults]
        return sorted(routes, key=lambda route: route.metric)

    async def lookups(self, queries: Sequence[RouteQuery], *, matched: bool = False) -> list[RouteAnswer]:
        return [self.ways.get(str(query.destination), RouteAnswer(errno=101)) for query in queries]
