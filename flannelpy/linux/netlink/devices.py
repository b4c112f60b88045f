"""Changes to devices and their addresses, by pyroute2.

Source: rtnetlink(7), ip-link(8).
"""

from __future__ import annotations

import errno
from ipaddress import IPv4Address, IPv4Network

from flannelpy.errors import HostError
from flannelpy.linux.netlink.connection import GONE
from flannelpy.linux.netlink.listings import Listings
from flannelpy.marks import ROUTE_PROTOCOL
from flannelpy.rtnetlink.links import Address, Link, Vxlan

# Source: linux/rtnetlink.h.
_RT_SCOPE_LINK = 253


class Devices(Listings):
    """Adds, changes and removes devices."""

    async def add_vxlan(self, name: str, settings: Vxlan, mac: str, mtu: int) -> None:
        """Add a VXLAN device.  Raises HostError, Taken if another device has its VNI and port."""
        async with self._iproute(
            f"cannot make the VXLAN device {name} (VNI {settings.vni}, port {settings.port})",
            taken=(errno.EEXIST, errno.EADDRINUSE),
            hint="; it needs CAP_NET_ADMIN, and a kernel with vxlan",
        ) as route:
            await route.link(
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
        async with self._iproute(f"cannot remove {link.name}", harmless=GONE) as route:
            await route.link("del", index=link.index)

    async def set_mac(self, link: Link, mac: str) -> None:
        """Give the interface another MAC.  Raises HostError."""
        async with self._iproute(f"cannot give {link.name} the MAC {mac}") as route:
            await route.link("set", index=link.index, address=mac)

    async def set_alias(self, link: Link, alias: str) -> None:
        """Give the interface this alias.  Raises HostError."""
        async with self._iproute(f"cannot set the alias of {link.name}") as route:
            await route.link("set", index=link.index, ifalias=alias)

    async def remove_address(self, address: Address) -> None:
        """Remove an address from its interface, unless it has been removed already.  Raises HostError."""
        async with self._iproute(
            f"cannot remove the address {address.address}", harmless=(*GONE, errno.EADDRNOTAVAIL)
        ) as route:
            await route.addr(
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
        async with self._iproute(f"cannot configure {name} with {address}/{network.prefixlen}, MTU {mtu}") as route:
            link = await self.link(name)
            if link is None:
                raise HostError(f"{name} is gone")
            index = link.index
            await route.link("set", index=index, mtu=mtu, txqlen=queue)
            if Address(index, address, network.prefixlen) not in await self.addresses():
                await route.addr("add", index=index, address=str(address), prefixlen=network.prefixlen)
            async with self._iproute(f"cannot set {name} up", taken=(errno.EADDRINUSE,)):
                await route.link("set", index=index, state="up")
            if not await self.has_connected_route(network, index):
                # If another program has a route to the network, ours is appended to it, as the kernel's own would be.
                await route.route(
                    "append",
                    dst=str(network),
                    oif=index,
                    prefsrc=str(address),
                    proto=ROUTE_PROTOCOL,
                    scope=_RT_SCOPE_LINK,
                )
