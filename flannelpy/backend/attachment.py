"""Where a program is attached: one filter at one hook of one interface.

Filters of other programs, and the queueing disciplines that other programs added, stay as they are.  A filter of ours
has the network's alias as its name.  Its handle says whether flannelpy added the queueing discipline, which then goes
with the last filter.
"""

from __future__ import annotations

from itertools import count

from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.netlink.filters import FILTER_PRIORITY
from flannelpy.marks import is_device_alias
from flannelpy.rtnetlink.filters import Filter, Hook
from flannelpy.rtnetlink.links import Link

_OWN_CLSACT = 1 << 16
_ETH_P_ALL, _ETH_P_IP = 0x0003, 0x0800


class Attachment:
    """The place of the filter with the name ``alias``."""

    def __init__(self, interface: str, hook: Hook, alias: str) -> None:
        self.interface = interface
        self.hook = hook
        self._alias = alias
        self._index = 0  # of the interface, which may get another name
        self._added_clsact_to = 0  # the index of an interface

    async def attach(self, netlink: Netlink, program: int) -> None:
        """Attach a program by its descriptor, in one step in place of an earlier one.  Raises HostError."""
        link = await netlink.link(self.interface)
        if link is None:
            return  # the repair loop attaches the program once there is a new one
        found = await netlink.filters(link.index, self.hook)
        own = [one for one in found if _is_ours(one, self._alias)]
        handle = own[0].handle if own else await self._free_handle(netlink, link)
        if handle & _OWN_CLSACT:
            self._added_clsact_to = link.index
        self._index = link.index
        await netlink.replace_filter(link, self.hook, handle, self._alias, program)

    async def attached_program(self, netlink: Netlink) -> int:
        """Return the id of the program that is attached, 0 without one.  Raises HostError."""
        link = await netlink.link(self.interface)
        found = await netlink.filters(link.index, self.hook) if link else []
        return next((one.program_id for one in found if _is_ours(one, self._alias)), 0)

    async def obstacle(self, netlink: Netlink) -> str:
        """Return a phrase for the log if a filter of another program gets IPv4 packets before ours, else nothing.

        It may accept a packet in such a way that ours does not see it.  Raises HostError.
        """
        link = await netlink.link(self.interface)
        found = await netlink.filters(link.index, self.hook) if link else []
        first = next((one for one in found if _is_foreign(one) and one.priority <= FILTER_PRIORITY), None)
        if first is None:
            return ""
        name = f"{first.kind} {first.name}".strip()
        return f"{self.interface} has a filter of another program at its {self.hook.name.lower()}: {name}" + (
            f", priority {first.priority}"
        )

    async def detach(self, netlink: Netlink) -> None:
        """Remove the filter, also from an interface that was renamed, if it is there.  Raises HostError."""
        for link in await netlink.links():
            if link.index == self._index or link.name == self.interface:
                await detach_from(netlink, link, self._alias, (self.hook,))

    async def _free_handle(self, netlink: Netlink, link: Link) -> int:
        # If another program removed our filter alone, clsact is still the one that this process added.
        is_own = await netlink.add_clsact(link) or self._added_clsact_to == link.index
        everywhere = [one for hook in Hook for one in await netlink.filters(link.index, hook)]
        # If another network's flannelpy added it, any of the two may have the last filter.
        is_own |= any(is_device_alias(one.name) and one.handle & _OWN_CLSACT for one in everywhere)
        taken = {one.handle & ~_OWN_CLSACT for one in everywhere if one.priority == FILTER_PRIORITY}
        free = next(number for number in count(1) if number not in taken)
        return free | _OWN_CLSACT if is_own else free


async def detach_from(netlink: Netlink, link: Link, alias: str, hooks: tuple[Hook, ...] = tuple(Hook)) -> bool:
    """Remove the filters of that name from an interface; return whether there was one.  Raises HostError."""
    own = [one for hook in hooks for one in await netlink.filters(link.index, hook) if _is_ours(one, alias)]
    for one in own:
        await netlink.remove_filter(link, one)
    if any(one.handle & _OWN_CLSACT for one in own):
        left = [one for hook in Hook for one in await netlink.filters(link.index, hook)]
        if not left:
            await netlink.remove_clsact(link)
    return bool(own)


def _is_foreign(one: Filter) -> bool:
    return one.protocol in (_ETH_P_ALL, _ETH_P_IP) and not (one.kind == "bpf" and is_device_alias(one.name))


def _is_ours(one: Filter, alias: str) -> bool:
    return one.kind == "bpf" and one.name == alias and one.priority == FILTER_PRIORITY
