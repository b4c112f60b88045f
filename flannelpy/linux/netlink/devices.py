"""Changes to devices and their addresses, by pyroute2.

Source: rtnetlink(7), ip-link(8).
"""

from __future__ import annotations

import errno
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network

from flannelpy.errors import HostError
from flannelpy.linux.netlink.connection import GONE, host_errors
from flannelpy.linux.netlink.listings import Listings
from flannelpy.marks import ROUTE_PROTOCOL
from flannelpy.rtnetlink.links import Address, Link, Vxlan

# Source: linux/rtnetlink.h.
_RT_SCOPE_LINK = 253


class Devices(Listings):
    """Adds, changes and removes devices."""

    async def add_vxlan(self, name: str, settings: Vxlan, mac: str, mtu: int) -> None:
        """Add a VXLAN device.  Raises HostError, Taken if another device has its VNI and port."""
        with host_errors(
            f"cannot make the VXLAN device {name} (VNI {settings.vni}, port {settings.port})",
            taken=(errno.EEXIST, errno.EADDRINUSE),
            hint="; it needs CAP_NET_ADMIN, and a kernel with vxlan",
        ):
            await self._route.link(
                "add",
                ifname=name,
                kind="vxlan",
                address=mac,
                mtu=mtu,
                vxlan_id=settings.vni,
                vxlan_port=settings.port,
                vxlan_local=str(settings.local),
                vxlan_link=settings.lower_index,
                vxlan_learning=int(settings.learning),
                **({"vxlan_gbp": True} if settings.gbp else {}),
            )

    async def remove_link(self, link: Link) -> None:
        """Remove the interface with its addresses and routes, unless it has been removed already.  Raises HostError."""
        with host_errors(f"cannot remove {link.name}", harmless=GONE):
            await self._route.link("del", index=link.index)

    async def set_mac(self, link: Link, mac: str) -> None:
        """Give the interface another MAC.  Raises HostError."""
        with host_errors(f"cannot give {link.name} the MAC {mac}"):
            await self._route.link("set", index=link.index, address=mac)

    async def set_alias(self, link: Link, alias: str) -> None:
        """Give the interface this alias.  Raises HostError."""
        with host_errors(f"cannot set the alias of {link.name}"):
            await self._route.link("set", index=link.index, ifalias=alias)

    async def remove_address(self, address: Address) -> None:
        """Remove an address from its interface, unless it has been removed already.  Raises HostError."""
        with host_errors(f"cannot remove the address {address.address}", harmless=(*GONE, errno.EADDRNOTAVAIL)):
            await self._route.addr(
                "del",
                index=address.link_index,
                local=str(address.address),
                address=str(address.peer or address.address),
                prefixlen=address.prefix_len,
            )

    async def bring_up(self, name: str, address: IPv4Address, network: IPv4Network, mtu: int, queue: int) -> None:
        """Give the device its MTU, queue length (packets), address and route, and set it up.

        What is right already is not changed.  The address has the network's prefix length, so the kernel adds the route
        to the network, unless another program has removed that route.  Raises HostError, Taken if a program has the
        port of a VXLAN device.
        """
        with host_errors(f"cannot configure {name} with {address}/{network.prefixlen}, MTU {mtu}"):
            link = await self.link(name)
            if link is None:
                raise HostError(f"{name} is gone")
            index = link.index
            await self._route.link("set", index=index, mtu=mtu, txqlen=queue)
            if Address(index, address, network.prefixlen) not in await self.addresses():
                await self._route.addr("add", index=index, address=str(address), prefixlen=network.prefixlen)
            with host_errors(f"cannot set {name} up", taken=(errno.EADDRINUSE,)):
                await self._route.link("set", index=index, state="up")
            if not await self.has_connected_route(network, index):
                # If another program has a route to the network, ours is appended to it, as the kernel's own would be.
                await self._route.route(
                    "append",
                    dst=str(network),
                    oif=index,
                    prefsrc=str(address),
                    proto=ROUTE_PROTOCOL,
                    scope=_RT_SCOPE_LINK,
                )

    async def transmit_drops(self, name: str) -> int:
        """Return how many packets the device dropped because its queue was full; 0 if there is no such device."""
        with suppress(HostError), host_errors(f"cannot read the counters of {name}"):
            return sum([int(m.get("stats64")["tx_dropped"]) async for m in await self._route.get_links(ifname=name)])
        return 0
