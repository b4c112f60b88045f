"""What every tunnel device must have, TUN or VXLAN: an address, an MTU, and the route to the network.

Counterpart: configureIface in backend/udp/udp.go, Configure in backend/vxlan/device.go; neither checks them again.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.links import Address, Link


class DeviceConfig(NamedTuple):
    """The wanted state of a device.  ``queue``: its length in packets, 0 for a device without a queue."""

    network: IPv4Network
    address: IPv4Address
    mtu: int
    queue: int

    async def set_up(self, netlink: Netlink, link: Link) -> list[str]:
        """Configure the device and remove its other addresses in the network; return those as flaws.

        Raises HostError.
        """
        foreign = self._foreign(link, await netlink.addresses())
        for one in foreign:
            await netlink.remove_address(one)
        await netlink.bring_up(link.name, self.address, self.network, self.mtu, self.queue)
        return _flaws(foreign)

    async def flaws(self, netlink: Netlink, link: Link) -> list[str]:
        """Return how the device differs from this state, as ``was set down``.  Raises HostError."""
        addresses = await netlink.addresses()
        flaws = _flaws(self._foreign(link, addresses))
        if not link.is_up:
            flaws.append("was set down")
        if link.mtu != self.mtu:
            flaws.append(f"got MTU {link.mtu} instead of {self.mtu}")
        if self._own(link) not in addresses:
            flaws.append(f"lost its address {self.address}/{self.network.prefixlen}")
        if link.is_up and not await netlink.has_connected_route(self.network, link.index):
            flaws.append(f"lost the route to {self.network}")
        if link.is_up and not link.has_carrier and not flaws:
            raise HostError(
                f"{link.name} has no carrier, so it drops all packets: another program set its carrier off, or its "
                "protodown on"
            )
        return flaws

    def _own(self, link: Link) -> Address:
        return Address(link.index, self.address, self.network.prefixlen)

    def _foreign(self, link: Link, addresses: Iterable[Address]) -> list[Address]:
        """Return the device's other addresses whose routes would capture packets to peers: those into the network."""
        return [
            one
            for one in addresses
            if one.link_index == link.index
            and one != self._own(link)
            and (one.address in self.network or one.destination.subnet_of(self.network))
        ]


def _flaws(foreign: Iterable[Address]) -> list[str]:
    return [f"got the address {one.address}" for one in foreign]
