"""Names what has the VNI or the port that our VXLAN device is to have.

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
    """What is in the way of the device called ``ours``, and what to do about it, in words.  Raises HostError.

    EEXIST: the kernel allows one device for a VNI and a port, on whatever interface below.  EADDRINUSE: devices of one
    port share a socket, but only if their settings agree.
    """
    on_port = [
        link
        for link in await netlink.links()
        if link.vxlan is not None and link.vxlan.port == wanted.port and link.name != ours
    ]
    if refusal.errno == errno.EEXIST:
        same = [link for link in on_port if link.vxlan and link.vxlan.vni == wanted.vni]
        host_identity = _names(same) or "a VXLAN device that was moved into another network namespace"
        return f"{host_identity} has VNI {wanted.vni} and port {wanted.port} already; remove it, {_REMEDY}"
    up = [link for link in on_port if link.is_up]
    if up:
        have = "has" if len(up) == 1 else "have"
        return f"{_names(up)} {have} UDP port {wanted.port}, with settings that differ from ours; remove it, {_REMEDY}"
    owner = await asyncio.to_thread(port_owner.describe, wanted.port) or "something that is not listed"
    return f"UDP port {wanted.port} belongs to {owner}; stop it, {_REMEDY}"


def _names(links: list[Link]) -> str:
    """Of devices, with their aliases, which tell whose they are."""
    return " and ".join(f"{one.name} (alias: {shown(one.alias)})" if one.alias else one.name for one in links)
