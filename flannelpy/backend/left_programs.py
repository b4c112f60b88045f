"""Finds what a process that ended without cleaning up has left in the kernel to carry packets without it."""

from __future__ import annotations

from flannelpy.linux.netlink.client import Netlink


async def remove_left_programs(netlink: Netlink, alias: str) -> list[str]:
    """Remove the programs of a network whose devices have this ``alias``; return what was removed, in words.

    The code that knows the programs is imported only if there are such devices.  Raises HostError.
    """
    if not any(link.alias == alias and link.kind in ("tun", "veth") for link in await netlink.links()):
        return []
    from flannelpy.backend.udp.fast_path import remove_left

    return await remove_left(netlink, alias)
