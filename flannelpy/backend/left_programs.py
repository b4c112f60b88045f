"""Removes what a process that ended without cleaning up has left in the kernel to carry packets without it.

This module does not load programs, so that hosts with the loop import nothing of BPF.
"""

from __future__ import annotations

from collections.abc import Container

from flannelpy.backend.attachment import Attachment, detach_from
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.filters import Hook
from flannelpy.rtnetlink.links import Link


async def remove_left_programs(netlink: Netlink, alias: str, keep: Container[str] = ()) -> list[str]:
    """Remove the filters and the GRO pairs with this ``alias``; return what was removed, in words.

    Filters are removed also if TUN and pair are gone, and from interfaces that flannelpy no longer uses.  ``keep``:
    names of interfaces that stay as they are.  Raises HostError.
    """
    filtering = await netlink.filtering_links()
    links = [link for link in await netlink.links() if link.name not in keep]
    removed = [
        f"BPF program at {link.name}"
        for link in links
        if link.index in filtering and await detach_from(netlink, link, alias)
    ]
    pair = [link for link in links if link.kind == "veth" and link.alias == alias]
    for link in pair:
        await netlink.remove_link(link)
    return removed + [link.name for link in pair]


async def has_left_programs(netlink: Netlink, device: str, external: str, alias: str) -> bool:
    """Return whether the outgoing program is at ``device``, and the incoming one at ``external``.  Raises HostError."""
    places = Attachment(device, Hook.EGRESS, alias), Attachment(external, Hook.INGRESS, alias)
    return all([await place.attached_program(netlink) for place in places])


async def has_left_sender(netlink: Netlink, alias: str) -> bool:
    """Return whether a device with this ``alias`` has an outgoing program of that name.  Raises HostError."""
    for link in await _tuns(netlink, alias):
        if any(one.name == alias for one in await netlink.filters(link.index, Hook.EGRESS)):
            return True
    return False


async def left_program_ids(netlink: Netlink, alias: str) -> list[int]:
    """Return the numbers by which the kernel lists the programs of filters with this ``alias``.  Raises HostError."""
    return [
        one.program_id
        for index in sorted(await netlink.filtering_links())
        for hook in Hook
        for one in await netlink.filters(index, hook)
        if one.name == alias
    ]


async def remove_left_sender(netlink: Netlink, alias: str) -> list[str]:
    """Remove the outgoing program; peers may send what only the incoming one takes.  Return what was removed, in words.

    Raises HostError.
    """
    return [
        f"BPF program at {link.name}"
        for link in await _tuns(netlink, alias)
        if await detach_from(netlink, link, alias, (Hook.EGRESS,))
    ]


async def _tuns(netlink: Netlink, alias: str) -> list[Link]:
    return [link for link in await netlink.links() if link.kind == "tun" and link.alias == alias]
