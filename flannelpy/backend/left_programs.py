"""Removes what a process that ended without cleaning up has left in the kernel to carry packets without it.

This module does not load programs, so that hosts with the loop import nothing of BPF.
"""

from __future__ import annotations

from collections.abc import Container

from flannelpy.backend.udp.attachment import detach_from
from flannelpy.linux.netlink.client import Netlink


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
