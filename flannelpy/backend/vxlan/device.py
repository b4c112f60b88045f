"""The VXLAN device: kept when flannelpy stops, adopted at the next start, restored if another program changes it.

Counterpart: newVXLANDevice, ensureLink and Configure in backend/vxlan/device.go.
"""

from __future__ import annotations

import logging
from ipaddress import IPv4Interface

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.backend.device_config import DeviceConfig
from flannelpy.backend.leftovers import log_routes_removed_with
from flannelpy.backend.vxlan import conflict
from flannelpy.datapath.vxlan_settings import Settings
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.netlink.connection import Taken
from flannelpy.linux.own_devices import addresses_by_index, is_of_earlier_version
from flannelpy.marks import is_device_alias
from flannelpy.rtnetlink.links import Link, Vxlan

log = logging.getLogger(__name__)


class Device:
    """The device of ``settings`` on top of the external interface, with that MAC; ``alias`` marks it as ours."""

    def __init__(
        self, settings: Settings, external: ExternalInterface, mac: str, device_config: DeviceConfig, alias: str
    ) -> None:
        self.name = settings.device_name
        self._settings = settings
        self._external = external
        self._mac = mac
        self._device_config = device_config
        self._alias = alias
        self._index = 0  # of the device that we set up

    async def set_up(self, netlink: Netlink) -> list[str]:
        """Add the device, or configure the present one; return the removed foreign addresses as flaws.

        Raises HostError.
        """
        await self._remove_renamed(netlink)
        link, wanted = await self._adopt(netlink), await self._wanted(netlink)
        is_new = link is None
        try:
            return await self._configure(netlink, link or await self._add(netlink, wanted))
        except Taken as refusal:
            if is_new:
                await self._remove_new(netlink)
            raise HostError(f"{refusal}: {await conflict.name(netlink, self.name, wanted, refusal)}") from refusal

    async def _add(self, netlink: Netlink, wanted: Vxlan) -> Link:
        await netlink.add_vxlan(self.name, wanted, self._mac, self._device_config.mtu)
        return await self.link(netlink)

    async def _configure(self, netlink: Netlink, link: Link) -> list[str]:
        """Set alias, MAC, address and MTU; return the removed foreign addresses as flaws."""
        if link.alias != self._alias:
            await netlink.set_alias(link, self._alias)
        if link.mac != self._mac:
            await netlink.set_mac(link, self._mac)
        self._index = link.index
        return await self._device_config.set_up(netlink, link)

    async def _remove_new(self, netlink: Netlink) -> None:
        """Remove the device that was just added and cannot be used."""
        link = await netlink.link(self.name)
        if link and link.alias == self._alias:
            await netlink.remove_link(link)

    async def link(self, netlink: Netlink) -> Link:
        """Return the device as the kernel lists it.  Raises HostError if there is none."""
        link = await netlink.link(self.name)
        if link is None:
            raise HostError(f"{self.name} is gone")
        return link

    async def flaws(self, netlink: Netlink) -> list[str]:
        """Return how the device differs from what it should be, as ``was removed``.  Raises HostError."""
        link = await netlink.link(self.name)
        if link is None:
            return ["was removed"]
        if link.vxlan != await self._wanted(netlink):
            return ["got other settings"]
        flaws = []
        if link.mac != self._mac:
            flaws.append(f"got MAC {link.mac} instead of {self._mac}")
        if link.alias != self._alias:
            flaws.append(f'got the alias "{link.alias}" instead of "{self._alias}"')
        return [*flaws, *await self._device_config.flaws(netlink, link)]

    async def _adopt(self, netlink: Netlink) -> Link | None:
        """Return the device that an earlier run left; None without one, and after removing one with other settings.

        Raises HostError for a foreign device.
        """
        link = await netlink.link(self.name)
        if link is None:
            return None
        await self._check_ours(netlink, link)
        if link.vxlan == await self._wanted(netlink):
            return link
        await self._remove(netlink, link)
        log.warning("Removed device %s: it had other settings; adding it again", self.name)
        return None

    async def _check_ours(self, netlink: Netlink, link: Link) -> None:
        """Raise HostError for a device of another program, which stays."""
        if link.kind != "vxlan":
            raise HostError(f"{self.name} exists and is not a VXLAN device; remove it, or choose another Backend.VNI")
        if link.alias == self._alias or link.index == self._index:
            return
        if is_device_alias(link.alias):
            raise HostError(
                f"{self.name} belongs to another daemon (alias: {link.alias}); choose another Backend.VNI, or clean up "
                "with its -subnet-file"
            )
        held = (await addresses_by_index(netlink)).get(link.index, [])
        if is_of_earlier_version(link, held, {self._address}) or (link.mac == self._mac and not held):
            return
        if not held:
            raise HostError(
                f"{self.name} exists and is not ours: it has neither our alias nor our MAC {self._mac}; remove "
                "it, or choose another Backend.VNI"
            )
        if not any(address.ip in self._device_config.network for address in held):
            raise HostError(f"{self.name} has {held[0].ip}, of another overlay; choose another Backend.VNI")
        shown = ", ".join(map(str, held))
        raise HostError(
            f"{self.name} exists and is not ours: it has {shown} instead of {self._address}; remove it, or "
            "choose another Backend.VNI"
        )

    @property
    def _address(self) -> IPv4Interface:
        return IPv4Interface((self._device_config.address, self._device_config.network.prefixlen))

    async def _wanted(self, netlink: Netlink) -> Vxlan:
        lower = await netlink.link(self._external.name)
        if lower is None:
            raise HostError(f"{self._external.name} is gone: no {self.name} without it")
        settings = self._settings
        return Vxlan(settings.vni, settings.port, self._external.address, lower.index, settings.learning, settings.gbp)

    async def _remove_renamed(self, netlink: Netlink) -> None:
        """Remove our device if it has another name: it has the VNI, so the kernel would reject a new device."""
        for link in await netlink.links():
            if link.alias == self._alias and link.kind == "vxlan" and link.name != self.name:
                await self._remove(netlink, link)
                log.warning("Removed device %s: it is our %s under another name", link.name, self.name)

    async def _remove(self, netlink: Netlink, link: Link) -> None:
        await log_routes_removed_with(netlink, link, [self._device_config.network])
        await netlink.remove_link(link)
