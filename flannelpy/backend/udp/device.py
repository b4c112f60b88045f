"""The TUN device, restored when another program changes it.

Counterpart: the device half of backend/udp/udp.go, which never looks again.
"""

from __future__ import annotations

from flannelpy.backend.device_config import DeviceConfig
from flannelpy.backend.leftovers import log_lost_routes
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.tun import Tun
from flannelpy.rtnetlink.links import Link


class Device:
    """An open TUN device with the settings of ``device_config``; ``alias`` marks it as ours."""

    def __init__(self, device_config: DeviceConfig, alias: str) -> None:
        """Raises HostError."""
        self._alias = alias
        self._device_config = device_config
        self._offload = (False, False)
        self.tun = Tun()

    def offload(self, *, tso: bool, uso: bool) -> tuple[bool, bool]:
        """Ask for super-packets, also of a device that is made anew; which the kernel gives."""
        self._offload = self.tun.offload(tso=tso, uso=uso)
        return self._offload

    async def set_up(self, netlink: Netlink) -> list[str]:
        """Give it all it should have; which foreign addresses are removed.  Raises HostError."""
        link = await netlink.link(self.tun.name)
        if link is None:
            raise HostError(f"{self.tun.name} is gone")
        if link.alias != self._alias:
            await netlink.set_alias(link, self._alias)
        removed = await self._device_config.set_up(netlink, link)
        self.tun.accept_own_address()
        return removed

    async def flaws(self, netlink: Netlink) -> tuple[Link | None, list[str]]:
        """The device as the kernel sees it, if it is there, and what is not as it should be."""
        link = await netlink.link(self.tun.name)
        if link is None:
            return None, ["was removed"]
        flaws = await self._device_config.flaws(netlink, link)
        if link.alias != self._alias:
            flaws.append(f'got the alias "{link.alias}" instead of "{self._alias}"')
        return link, flaws

    async def make_anew(self, netlink: Netlink) -> None:
        """In place of one that was removed or can be read no longer.  Raises HostError."""
        if link := await netlink.link(self.tun.name):
            await log_lost_routes(netlink, link, [self._device_config.network])
        self.tun.close()
        self.tun = Tun()
        self.tun.offload(tso=self._offload[0], uso=self._offload[1])
        await self.set_up(netlink)

    def close(self) -> None:
        """The device goes, and takes its address and route along."""
        self.tun.close()
