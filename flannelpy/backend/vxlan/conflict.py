"""Names the device or program that has the VNI or the port of our VXLAN device.

Source: vxlan_config_validate and __vxlan_sock_add in drivers/net/vxlan of the kernel.
"""

from __future__ import annotations

import asyncio
import errno

from flannelpy.foreign import shown
from flannelpy.linux import port_owner
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.netlink.connection import Taken
from flannelpy.rtnetlink.links import Link, Vxlan

_REMEDY = "or choose another Backend.VNI or Backend.Port for all hosts"


async def name(netlink: Netlink, ours: str, wanted: Vxlan, refusal: Taken) -> str:
    """Return what prevents the device called ``ours``, and the remedy, in words.  Raises HostError.

    EEXIST: the kernel allows one device for each VNI and port, whichever interface is below.  EADDRINUSE: devices with
    one port share a socket, but only if their settings agree.
    """
    on_port = [
        link
        for link in await netlink.links()
        if link.vxlan is not None and link.vxlan.port == wanted.port and link.name != ours
    ]
    if refusal.errno == errno.EEXIST:
        same = [link for link in on_port if link.vxlan and link.vxlan.vni == wanted.vni]
        holders = _names(same) or "a VXLAN device that was moved into another network namespace"
        return f"{holders} has VNI {wanted.vni} and port {wanted.port} already; remove it, {_REMEDY}"
    up = [link for link in on_port if link.is_up]
    if up:
        have = "has" if len(up) == 1 else "have"
        return f"{_names(up)} {have} UDP port {wanted.port}, with settings that differ from ours; remove it, {_REMEDY}"
    owner = await asyncio.to_thread(port_owner.describe, wanted.port) or "something that is not listed"
    return f"UDP port {wanted.port} belongs to {owner}; stop it, {_REMEDY}"


def _names(links: list[Link]) -> str:
    """Return the names of devices with their aliases, which identify the owners."""
    return " and ".join(f"{one.name} (alias: {shown(one.alias)})" if one.alias else one.name for one in links)
