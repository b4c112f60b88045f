"""The TUN device, restored if another program changes it.

Counterpart: the device half of backend/udp/udp.go, which never checks it again.
"""

from __future__ import annotations

from contextlib import suppress

from flannelpy.backend.device_config import DeviceConfig
from flannelpy.backend.leftovers import log_routes_removed_with
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.tun import Tun
from flannelpy.rtnetlink.links import Link


class Device:
    """An open TUN device with the settings of ``device_config``; ``alias`` marks it as ours."""

    def __init__(self, device_config: DeviceConfig, alias: str, adopted: Tun | None = None) -> None:
        """Use the ``adopted`` device of an earlier process, or create one.  Raises HostError."""
        self._alias = alias
        self._device_config = device_config
        self._offload = (False, False)
        self.tun = adopted or Tun()

    def offload(self, *, tso: bool, uso: bool) -> tuple[bool, bool]:
        """Ask the kernel for super-packets, now and after ``recreate``; return whether it gives (TCP, UDP)."""
        self._offload = self.tun.offload(tso=tso, uso=uso)
        return self._offload

    async def set_up(self, netlink: Netlink) -> list[str]:
        """Configure the device; return the removed foreign addresses as flaws.  Raises HostError."""
        link = await netlink.link(self.tun.name)
        if link is None:
            raise HostError(f"{self.tun.name} is gone")
        if link.alias != self._alias:
            await netlink.set_alias(link, self._alias)
        removed = await self._device_config.set_up(netlink, link)
        self.tun.accept_own_address()
        return removed

    async def flaws(self, netlink: Netlink) -> tuple[Link | None, list[str]]:
        """Return the device as the kernel lists it, or None, and how it differs from what it should be.

        Raises HostError.
        """
        link = await netlink.link(self.tun.name)
        if link is None:
            return None, ["was removed"]
        flaws = await self._device_config.flaws(netlink, link)
        if link.alias != self._alias:
            flaws.append(f'got the alias "{link.alias}" instead of "{self._alias}"')
        return link, flaws

    async def recreate(self, netlink: Netlink) -> None:
        """Open another device in place of one that was removed or can no longer be used.  Raises HostError."""
        if link := await netlink.link(self.tun.name):
            await log_routes_removed_with(netlink, link, [self._device_config.network])
            await netlink.remove_link(link)  # one that something keeps outlives the next lines
        with suppress(HostError):  # of a device that was removed
            self.tun.persist(on=False)  # one that was renamed, or moved to another namespace
        self.tun.close()
        self.tun = Tun()
        self.tun.offload(tso=self._offload[0], uso=self._offload[1])
        await self.set_up(netlink)

    def close(self) -> None:
        """Close the device; the kernel removes it with its address and route."""
        self.tun.close()


class QueueDrops:
    """Counts the packets that did not fit into the queue of the TUN device, also of devices that were recreated."""

    def __init__(self) -> None:
        self._former = 0  # of the devices before the present one
        self._present = 0

    @property
    def total(self) -> int:
        """Return the count as last read."""
        return self._former + self._present

    async def read(self, netlink: Netlink, name: str) -> None:
        """Read the kernel's counter of the present device; one that cannot be read keeps its value."""
        self._present = max(self._present, await netlink.transmit_drops(name))

    def recreate(self) -> None:
        """Expect the counter to begin with 0 again: another device takes the place of the present one."""
        self._former, self._present = self.total, 0
