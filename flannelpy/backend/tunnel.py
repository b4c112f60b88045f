"""What a tunnel device has to have, whatever kind it is: an address, an MTU, and the route to the network.

Counterpart: configureIface in backend/udp/udp.go, Configure in backend/vxlan/device.go; neither looks again.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.linux.netlink import Address, Link, Netlink


class Tunnel(NamedTuple):
    """``queue``: packets that may wait in the device, 0 for a device without a queue."""

    network: IPv4Network
    address: IPv4Address
    mtu: int
    queue: int

    async def set_up(self, netlink: Netlink, name: str) -> None:
        """Give the device all of it.  Raises HostError."""
        await netlink.bring_up(name, self.address, self.network, self.mtu, self.queue)

    async def flaws(self, netlink: Netlink, link: Link) -> list[str]:
        """What is not as it should be.  Raises HostError."""
        flaws = []
        if not link.is_up:
            flaws.append("was set down")
        if link.mtu != self.mtu:
            flaws.append(f"got MTU {link.mtu} instead of {self.mtu}")
        if Address(link.index, self.address, self.network.prefixlen) not in await netlink.addresses():
            flaws.append(f"lost its address {self.address}/{self.network.prefixlen}")
        if link.is_up and not await netlink.has_connected_route(self.network, link.index):
            flaws.append(f"lost the route to {self.network}")
        return flaws
