"""The VXLAN device as it should be: kept when we stop, adopted at the next start, put right when somebody changes it.

Counterpart: newVXLANDevice, ensureLink and Configure in backend/vxlan/device.go.
"""

from __future__ import annotations

import logging
import re
from ipaddress import IPv4Network

from flannelpy.backend.tunnel import Tunnel
from flannelpy.backend.vxlan.settings import Settings
from flannelpy.errors import HostError
from flannelpy.linux.interface import ExternalInterface
from flannelpy.linux.netlink import Link, Netlink, Vxlan

log = logging.getLogger(__name__)

_OURS = re.compile(r"flannel\.\d+")


class Device:
    """The device of ``settings`` on top of the external interface, with that MAC."""

    def __init__(self, settings: Settings, external: ExternalInterface, mac: str, tunnel: Tunnel) -> None:
        self.name = settings.device_name
        self._settings = settings
        self._external = external
        self._mac = mac
        self._tunnel = tunnel

    async def set_up(self, netlink: Netlink) -> None:
        """Make it, or give the one that is there what it lacks.  Raises HostError."""
        await self._remove_other_devices(netlink)
        link, wanted = await self._adopt(netlink), await self._wanted(netlink)
        if link is None:
            await netlink.add_vxlan(self.name, wanted, self._mac, self._tunnel.mtu)
        elif link.mac != self._mac:
            await netlink.set_mac(link, self._mac)
        await self._remove_other_addresses(netlink)
        await self._tunnel.set_up(netlink, self.name)

    async def link(self, netlink: Netlink) -> Link:
        """The device as the kernel sees it.  Raises HostError when it is not there."""
        link = await netlink.link(self.name)
        if link is None:
            raise HostError(f"{self.name} is gone")
        return link

    async def flaws(self, netlink: Netlink) -> list[str]:
        """What is not as it should be.  Raises HostError."""
        link = await netlink.link(self.name)
        if link is None:
            return ["was removed"]
        if link.vxlan != await self._wanted(netlink):
            return ["got other settings"]
        flaws = await self._tunnel.flaws(netlink, link)
        return [f"got MAC {link.mac} instead of {self._mac}", *flaws] if link.mac != self._mac else flaws

    async def _adopt(self, netlink: Netlink) -> Link | None:
        """What an earlier run has left, if it will do."""
        link = await netlink.link(self.name)
        if link is None:
            return None
        if link.kind != "vxlan":
            raise HostError(
                f"{self.name} is there already and no VXLAN device; remove it, or choose another Backend.VNI"
            )
        addresses = [one.address for one in await netlink.addresses() if one.link_index == link.index]
        if addresses and not any(address in self._tunnel.network for address in addresses):
            raise HostError(f"{self.name} has {addresses[0]}, of another overlay; choose another Backend.VNI")
        if link.vxlan == await self._wanted(netlink):
            return link
        await netlink.remove_link(link)
        log.warning("Device %s had other settings: made anew", self.name)
        return None

    async def _wanted(self, netlink: Netlink) -> Vxlan:
        lower = await netlink.link(self._external.name)
        if lower is None:
            raise HostError(f"{self._external.name} is gone: no {self.name} without it")
        settings = self._settings
        return Vxlan(settings.vni, settings.port, self._external.address, lower.index, settings.learning, settings.gbp)

    async def _remove_other_devices(self, netlink: Netlink) -> None:
        """One of another VNI, from before the config changed, would have our route."""
        for link in await leftovers(netlink, self._tunnel.network):
            if link.name != self.name:
                await netlink.remove_link(link)
                log.warning("Removed leftover device %s", link.name)

    async def _remove_other_addresses(self, netlink: Netlink) -> None:
        """Those of a subnet that we had once; their routes go along."""
        link = await self.link(netlink)
        for one in await netlink.addresses():
            ours = (self._tunnel.address, self._tunnel.network.prefixlen)
            if one.link_index == link.index and (one.address, one.prefix_len) != ours:
                await netlink.remove_address(one)


async def leftovers(netlink: Netlink, network: IPv4Network) -> list[Link]:
    """VXLAN devices named like ours that have an address of ``network``; those of other overlays are others'."""
    addresses = {one.link_index for one in await netlink.addresses() if one.address in network}
    links = await netlink.links()
    return [link for link in links if link.kind == "vxlan" and _OURS.fullmatch(link.name) and link.index in addresses]
