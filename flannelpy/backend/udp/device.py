"""The TUN device with its address, MTU and route, put right again when somebody changes it.

Counterpart: the device half of backend/udp/udp.go, which never looks again.
"""

from __future__ import annotations

import logging
import re
from ipaddress import IPv4Address, IPv4Network

from flannelpy.errors import HostError
from flannelpy.linux.netlink import Address, Link, Netlink
from flannelpy.linux.tun import Tun

log = logging.getLogger(__name__)

_OURS = re.compile(r"flannel\d+")
# Packets that wait in the TUN: a burst of datagrams must fit, while what waits for long is better lost.
_QUEUE = 1000


class Device:
    """An open TUN device for ``network``, as it should be."""

    def __init__(self, network: IPv4Network, address: IPv4Address, mtu: int) -> None:
        """Raises HostError."""
        self._network = network
        self._address = address
        self._mtu = mtu
        self._offload = (False, False)
        self.tun = Tun()

    def offload(self, *, tso: bool, uso: bool) -> tuple[bool, bool]:
        """Ask for super-packets, also of a device that is made anew; which the kernel gives."""
        self._offload = self.tun.offload(tso=tso, uso=uso)
        return self._offload

    async def set_up(self, netlink: Netlink) -> None:
        """Give it all it should have.  Raises HostError."""
        await netlink.bring_up(self.tun.name, self._address, self._network, self._mtu, _QUEUE)
        await self._check_route(netlink)
        self.tun.accept_own_address()

    async def flaws(self, netlink: Netlink) -> tuple[Link | None, list[str]]:
        """The device as the kernel sees it, if it is there, and what is not as it should be."""
        link = await netlink.link(self.tun.name)
        if link is None:
            return None, ["was removed"]
        addresses, routes = await netlink.addresses(), await netlink.routes()
        flaws = []
        if not link.is_up:
            flaws.append("was set down")
        if link.mtu != self._mtu:
            flaws.append(f"got MTU {link.mtu} instead of {self._mtu}")
        if Address(link.index, self._address, self._network.prefixlen) not in addresses:
            flaws.append(f"lost its address {self._address}/{self._network.prefixlen}")
        if link.is_up and not any(
            route.destination == self._network and route.link_index == link.index for route in routes
        ):
            flaws.append(f"lost the route to {self._network}")
        return link, flaws

    async def make_anew(self, netlink: Netlink) -> None:
        """In place of one that was removed or can be read no longer.  Raises HostError."""
        self.tun.close()
        self.tun = Tun()
        self.tun.offload(tso=self._offload[0], uso=self._offload[1])
        await self.set_up(netlink)

    def close(self) -> None:
        """The device goes, and takes its address and route along."""
        self.tun.close()

    async def _check_route(self, netlink: Netlink) -> None:
        """A leftover device with our network would swallow the containers' packets."""
        names = {link.index: link.name for link in await netlink.links()}
        ways = [names.get(route.link_index) for route in await netlink.routes() if route.destination == self._network]
        if ways != [self.tun.name]:
            others = ", ".join(way or "an interface that just came" for way in ways if way != self.tun.name)
            way = f"leads to {others or 'nothing'} instead of {self.tun.name} alone"
            raise HostError(f"the route to {self._network} {way}; remove it")


async def leftovers(netlink: Netlink) -> list[Link]:
    """TUN devices named like ours; ``in_use`` where a process has them open."""
    return [link for link in await netlink.links() if link.kind == "tun" and _OURS.fullmatch(link.name)]


async def remove_leftovers(netlink: Netlink) -> None:
    """Persistent devices that nobody has open any more.  Raises HostError."""
    for link in await leftovers(netlink):
        if not link.in_use:
            await netlink.remove_link(link)
            log.warning("Removed leftover device %s", link.name)
