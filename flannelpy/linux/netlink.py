"""Links, addresses and routes of this machine, through pyroute2.

pyroute2 takes a tenth of a second to import, so it is imported when the first socket is opened.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from socket import AF_INET
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from flannelpy.errors import HostError

if TYPE_CHECKING:
    from pyroute2 import AsyncIPRoute

_TABLE_MAIN = 254
_LISTINGS = 5
# Source: linux/if.h, rtnetlink(7).
_IFF_UP = 0x1
_RTPROT_KERNEL = 2
_RTPROT_BOOT = 3
_RT_SCOPE_LINK = 253


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface; ``kind`` is ``tun``, ``vxlan``, … or empty for hardware.

    ``in_use``: somebody is at its other end; of a TUN device, a process that has it open.
    """

    index: int
    name: str
    mtu: int
    kind: str = ""
    is_up: bool = True
    in_use: bool = True


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 address on the interface with that index."""

    link_index: int
    address: IPv4Address
    prefix_len: int = 32


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table out of the interface with that index; a lower metric wins."""

    destination: IPv4Network
    link_index: int
    metric: int


@dataclass(frozen=True, slots=True)
class Gateway:
    """A route of the main table by way of another machine, out of the interface with that index."""

    destination: IPv4Network
    gateway: IPv4Address
    link_index: int


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
        """All interfaces.  Raises HostError."""
        return [_link(m) for m in await _all(self._route.get_links)]

    async def link(self, name: str) -> Link | None:
        """The interface of that name, if there is one.  Raises HostError."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            links = [_link(m) async for m in await self._route.get_links(ifname=name)]
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise HostError(f"cannot look at {name}: {error}") from error
        return links[0] if links else None

    async def remove_link(self, link: Link) -> None:
        """Remove the interface, and its addresses and routes with it.  Raises HostError."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            await self._route.link("del", index=link.index)
        except NetlinkError as error:
            raise HostError(f"cannot remove {link.name}: {error}") from error

    async def addresses(self) -> list[Address]:
        """All IPv4 addresses, each interface's in the kernel's order.  Raises HostError."""
        messages = await _all(partial(self._route.get_addr, family=AF_INET))
        return [Address(m["index"], IPv4Address(m.get("local") or m.get("address")), m["prefixlen"]) for m in messages]

    async def routes(self) -> list[Route]:
        """The main table's routes, one for each way out of a multipath route.  Raises HostError."""
        messages = await _all(partial(self._route.get_routes, family=AF_INET, table=_TABLE_MAIN))
        return [
            Route(IPv4Network((m.get("dst") or 0, m["dst_len"])), index, m.get("priority") or 0)
            for m in messages
            for index in _ways_out(m)
        ]

    async def gateways(self) -> list[Gateway]:
        """The main table's routes by way of other machines that are like those of ``set_gateways``: no other programs'.

        Raises HostError.
        """
        messages = await _all(partial(self._route.get_routes, family=AF_INET, table=_TABLE_MAIN))
        return [
            Gateway(IPv4Network((m.get("dst") or 0, m["dst_len"])), IPv4Address(m.get("gateway")), m.get("oif"))
            for m in messages
            if m.get("gateway") and m.get("oif") and m["proto"] == _RTPROT_BOOT and not m.get("priority")
        ]

    async def set_gateways(self, gateways: Sequence[Gateway]) -> None:
        """Add these routes, or change where they lead.  Raises HostError."""
        await self._change_gateways("replace", gateways)

    async def remove_gateways(self, gateways: Sequence[Gateway]) -> None:
        """Remove these routes.  Raises HostError."""
        await self._change_gateways("del", gateways)

    async def _change_gateways(self, command: str, gateways: Sequence[Gateway]) -> None:
        from pyroute2.netlink.exceptions import NetlinkError

        for one in gateways:
            dst, gateway = str(one.destination), str(one.gateway)
            try:
                await self._route.route(command, dst=dst, gateway=gateway, oif=one.link_index, proto=_RTPROT_BOOT)
            except NetlinkError as error:
                raise HostError(f"cannot {command} the route to {dst} via {gateway}: {error}") from error

    async def transmit_drops(self, name: str) -> int:
        """Packets that the device's queue had no room for; 0 when there is no such device."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            messages = await self._route.get_links(ifname=name)
            return sum([int(m.get("stats64")["tx_dropped"]) async for m in messages])
        except NetlinkError:
            return 0

    async def changes(self) -> AsyncIterator[None]:
        """Something about links, addresses or routes is no longer as it was; nobody may ask for anything else here.

        Raises OSError when there was more than the kernel keeps for us.
        """
        from pyroute2.netlink import rtnl

        await self._route.bind(groups=rtnl.RTMGRP_LINK | rtnl.RTMGRP_IPV4_IFADDR | rtnl.RTMGRP_IPV4_ROUTE)
        while True:
            async for _ in self._route.get():
                yield

    async def bring_up(self, name: str, address: IPv4Address, network: IPv4Network, mtu: int, queue: int) -> None:
        """Give the device its MTU, queue length (packets) and address, set it up, and see that it has its route.

        What is right already stays as it is.  The address has the network's prefix length, so the kernel adds the route
        to the network, unless somebody has removed it.  Raises HostError.
        """
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            [index] = await self._route.link_lookup(ifname=name)
            await self._route.link("set", index=index, mtu=mtu, txqlen=queue)
            if Address(index, address, network.prefixlen) not in await self.addresses():
                await self._route.addr("add", index=index, address=str(address), prefixlen=network.prefixlen)
            await self._route.link("set", index=index, state="up")
            if not any(route.destination == network and route.link_index == index for route in await self.routes()):
                await self._route.route(
                    "add",
                    dst=str(network),
                    oif=index,
                    prefsrc=str(address),
                    proto=_RTPROT_KERNEL,
                    scope=_RT_SCOPE_LINK,
                )
        except (NetlinkError, ValueError) as error:
            raise HostError(
                f"cannot configure {name} with {address}/{network.prefixlen}, MTU {mtu}: {error}"
            ) from error


async def _all(listing: Callable[[], Awaitable[AsyncIterable[Any]]]) -> list[Any]:
    """All messages of an answer, asked for again when things changed under it.  Raises HostError."""
    from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

    for patience in reversed(range(_LISTINGS)):
        try:
            return [message async for message in await listing()]
        except NetlinkError as error:
            if not (patience and isinstance(error, NetlinkDumpInterrupted)):
                raise HostError(f"cannot list this machine's links, addresses or routes: {error}") from error
    raise AssertionError("the last try returns or raises")


def _link(message: Any) -> Link:
    flags = message["flags"]
    info = message.get("linkinfo")
    kind = info.get("kind") if info is not None else ""
    return Link(
        message["index"],
        message.get("ifname"),
        message.get("mtu"),
        kind or "",
        bool(flags & _IFF_UP),
        bool(message.get("carrier")),
    )


def _ways_out(message: Any) -> list[int]:
    """The interface indices that a route message leads to; none for an unreachable or blackhole route."""
    hops = message.get("multipath")
    if hops:
        return [hop["oif"] for hop in hops]
    index = message.get("oif")
    return [] if index is None else [index]
