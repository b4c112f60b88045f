"""Links, addresses and routes of this machine, through pyroute2.

pyroute2 takes a tenth of a second to import, so it is imported when the first socket is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from socket import AF_INET
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from flannelpy.errors import HostError

if TYPE_CHECKING:
    from pyroute2 import AsyncIPRoute

_TABLE_MAIN = 254


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface."""

    index: int
    name: str
    mtu: int


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 address on the interface with that index."""

    link_index: int
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table out of the interface with that index; a lower metric wins."""

    destination: IPv4Network
    link_index: int
    metric: int


class Netlink:
    """One netlink socket, open inside ``async with``.  Source: rtnetlink(7)."""

    async def __aenter__(self) -> Self:
        from pyroute2 import AsyncIPRoute

        self._route: AsyncIPRoute = await AsyncIPRoute().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._route.__aexit__(kind, error, trace)

    async def links(self) -> list[Link]:
        """All interfaces."""
        messages = await self._route.get_links()
        return [Link(m["index"], m.get("ifname"), m.get("mtu")) async for m in messages]

    async def addresses(self) -> list[Address]:
        """All IPv4 addresses, each interface's in the kernel's order."""
        messages = await self._route.get_addr(family=AF_INET)
        return [Address(m["index"], IPv4Address(m.get("local") or m.get("address"))) async for m in messages]

    async def routes(self) -> list[Route]:
        """The main table's routes, one for each way out of a multipath route."""
        messages = await self._route.get_routes(family=AF_INET, table=_TABLE_MAIN)
        return [
            Route(IPv4Network((m.get("dst") or 0, m["dst_len"])), index, m.get("priority") or 0)
            async for m in messages
            for index in _ways_out(m)
        ]

    async def transmit_drops(self, name: str) -> int:
        """Packets that the device's queue had no room for; 0 when there is no such device."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            messages = await self._route.get_links(ifname=name)
            return sum([int(m.get("stats64")["tx_dropped"]) async for m in messages])
        except NetlinkError:
            return 0

    async def bring_up(self, name: str, address: IPv4Address, prefix_len: int, mtu: int, queue: int) -> None:
        """Give the device its MTU, queue length (packets) and address, and set it up.

        The kernel adds the route to the address's network.  Raises HostError.
        """
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            [index] = await self._route.link_lookup(ifname=name)
            await self._route.link("set", index=index, mtu=mtu, txqlen=queue)
            await self._route.addr("add", index=index, address=str(address), prefixlen=prefix_len)
            await self._route.link("set", index=index, state="up")
        except (NetlinkError, ValueError) as error:
            raise HostError(f"cannot configure {name} with {address}/{prefix_len}, MTU {mtu}: {error}") from error


def _ways_out(message: Any) -> list[int]:
    """The interface indices that a route message leads to; none for an unreachable or blackhole route."""
    hops = message.get("multipath")
    if hops:
        return [hop["oif"] for hop in hops]
    index = message.get("oif")
    return [] if index is None else [index]
