"""Filters with BPF programs, and the veth pairs that flannelpy uses with them.

Source: tc-bpf(8), rtnetlink(7).
"""

from __future__ import annotations

import errno

from flannelpy.linux.netlink.connection import GONE
from flannelpy.linux.netlink.devices import Devices
from flannelpy.rtnetlink import filters
from flannelpy.rtnetlink.filters import Filter, Hook
from flannelpy.rtnetlink.links import Link

_ETH_P_IP = 0x0800
#: Of our filters: behind those of other programs, which see our packets first and may stop them.
FILTER_PRIORITY = 0xFFF0


class Filters(Devices):
    """Lists, attaches and removes filters."""

    async def filters(self, link_index: int, hook: Hook) -> list[Filter]:
        """Return the filters at a hook, none if the interface is gone.  Raises HostError."""
        found = []
        async for chunk in self._listing(filters.filters_of(link_index, hook)):
            found += [one for message in chunk if (one := filters.filter_of(message, hook))]
        return found

    async def filtering_links(self) -> set[int]:
        """Return the indices of the interfaces that may have filters.  Raises HostError."""
        return set(await self._list(filters.ALL_QDISCS, filters.filtering_link)) - {0}

    async def add_clsact(self, link: Link) -> bool:
        """Add the queueing discipline that has the hooks; return False if there is one.  Raises HostError."""
        async with self._iproute(f"cannot add clsact to {link.name}", harmless=(errno.EEXIST,)) as route:
            await route.tc("add", "clsact", link.index)
            return True
        return False

    async def remove_clsact(self, link: Link) -> None:
        """Remove the queueing discipline with all filters, unless it has been removed already.  Raises HostError."""
        async with self._iproute(f"cannot remove clsact from {link.name}", harmless=(*GONE, errno.EINVAL)) as route:
            await route.tc("del", "clsact", link.index)

    async def replace_filter(self, link: Link, hook: Hook, handle: int, name: str, program: int) -> None:
        """Attach a program for IPv4 by its descriptor, in place of that of the same handle.  Raises HostError."""
        async with self._iproute(f"cannot attach a BPF program to {link.name}") as route:
            await route.tc(
                "replace-filter",
                "bpf",
                link.index,
                handle,
                parent=int(hook),
                prio=FILTER_PRIORITY,
                protocol=_ETH_P_IP,
                fd=program,
                name=name,
                direct_action=True,
            )

    async def remove_filter(self, link: Link, one: Filter) -> None:
        """Remove a filter of ours, unless it has been removed already.  Raises HostError."""
        async with self._iproute(
            f"cannot remove a BPF program from {link.name}", harmless=(*GONE, errno.EINVAL)
        ) as route:
            await route.tc(
                "del-filter",
                "bpf",
                link.index,
                one.handle,
                parent=int(one.hook),
                prio=one.priority,
                protocol=_ETH_P_IP,
            )

    async def add_veth(self, name: str, peer: str, mtu: int, queues: int) -> None:
        """Add two connected interfaces, with one queue to ``peer`` and ``queues`` from it.  Raises HostError."""
        end = {"ifname": name, "mtu": mtu, "num_tx_queues": 1, "num_rx_queues": queues}
        other = {"ifname": peer, "mtu": mtu, "num_tx_queues": queues, "num_rx_queues": 1}
        async with self._iproute(f"cannot make the veth pair {name} and {peer}") as route:
            await route.link("add", kind="veth", **end, peer=other)

    async def set_up(self, link: Link) -> None:
        """Set the interface up.  Raises HostError."""
        async with self._iproute(f"cannot set {link.name} up") as route:
            await route.link("set", index=link.index, state="up")
