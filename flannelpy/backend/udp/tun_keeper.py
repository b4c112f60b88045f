"""Has the TUN device outlive this process, so that the kernel carries packets while flannelpy restarts.

With systemd's descriptor store, the device lasts until the service is stopped.  Without, it is persistent: it survives
a process that is killed, and a process that stops in order removes it.
Counterpart: none; the original's device ends with its process.
"""

from __future__ import annotations

import logging

from flannelpy.errors import HostError
from flannelpy.linux.descriptor_store import DescriptorStore
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.own_devices import is_marked
from flannelpy.linux.tun import Tun
from flannelpy.rtnetlink.links import Link

log = logging.getLogger(__name__)


class TunKeeper:
    """Keeps TUN devices, and finds the one that an earlier process has kept."""

    def __init__(self, store: DescriptorStore) -> None:
        self._store = store

    @property
    def survives_stop(self) -> bool:
        """Whether the device stays when this process stops in order, because systemd may only restart it."""
        return self._store.is_available

    async def adopt(self, netlink: Netlink, alias: str) -> Tun | None:
        """Return the kept device with this ``alias``, open; None without one.  Raises HostError.

        The caller holds the instance lock, so no other flannelpy uses the device.
        """
        for link in await netlink.links():
            if link.alias == alias and link.kind == "tun" and is_marked(link):
                try:
                    return self._open(link)
                except HostError as error:
                    log.warning("Removed leftover device %s: %s", link.name, error)
                    await netlink.remove_link(link)
        return None

    def keep(self, tun: Tun) -> None:
        """Have ``tun`` outlive this process.  Raises HostError."""
        tun.persist(on=not self._store.is_available)
        if self._store.is_available:
            self._store.keep(tun.name, tun.fd)

    def replace(self, former: Tun, tun: Tun) -> None:
        """Have ``tun`` outlive this process instead of ``former``, which is closed.  Raises HostError."""
        self._store.forget(former.name)
        self.keep(tun)

    def release(self, tun: Tun) -> None:
        """Have ``tun`` end when it is closed.  Raises HostError."""
        self._store.forget(tun.name)
        tun.persist(on=False)

    def _open(self, link: Link) -> Tun:
        """Open the device.  Raises HostError if another process has it open."""
        if link.name in self._store.names():
            try:
                return Tun.of_descriptor(self._store.open(link.name))
            except HostError:  # of a device of that name that is gone
                self._store.forget(link.name)
        return Tun(link.name)
