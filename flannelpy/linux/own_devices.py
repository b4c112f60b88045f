"""Which network devices are flannelpy's own.

A device is ours if it is a TUN or VXLAN device whose alias names our subnet file: an operator may give any alias to an
interface of another kind.  A device without such a mark is ours only if an earlier version left it: name, kind and VNI
are those that flannelpy uses, and its only address is that of our lease.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Container
from ipaddress import IPv4Interface
from pathlib import Path

from flannelpy.linux.netlink.client import Netlink
from flannelpy.marks import device_alias, is_device_alias
from flannelpy.rtnetlink.links import Link

_VXLAN_NAME = re.compile(r"flannel\.(\d+)")
_TUN_NAME = re.compile(r"flannel\d+")


def own_alias(subnet_file: Path) -> str:
    """Return the alias of the devices of a subnet file, whichever way its path is spelled."""
    return device_alias(subnet_file.parent.resolve() / subnet_file.name)


async def own_devices(netlink: Netlink, alias: str, leased: Container[IPv4Interface]) -> list[Link]:
    """Return the devices with that alias, and those of earlier versions with a leased address.  Raises HostError."""
    held = await addresses_by_index(netlink)
    return [
        link
        for link in await netlink.links()
        if (link.alias == alias and is_marked(link)) or is_of_earlier_version(link, held.get(link.index, []), leased)
    ]


# Addresses between two turns of the event loop.
_AT_A_TIME = 300


def is_marked(link: Link) -> bool:
    """Return whether this is a device of any flannelpy, by its alias."""
    return is_device_alias(link.alias) and (link.kind == "vxlan" or _is_tun(link))


async def addresses_by_index(netlink: Netlink) -> dict[int, list[IPv4Interface]]:
    """Return the IPv4 addresses of each interface.  Raises HostError."""
    held: dict[int, list[IPv4Interface]] = {}
    for number, one in enumerate(await netlink.addresses()):
        if not number % _AT_A_TIME:
            await asyncio.sleep(0)
        held.setdefault(one.link_index, []).append(one.interface)
    return held


def is_of_earlier_version(link: Link, held: list[IPv4Interface], leased: Container[IPv4Interface]) -> bool:
    """Return whether an earlier version left this unmarked device; ``leased``: the tunnel addresses of our leases."""
    return (
        not is_device_alias(link.alias)
        and looks_like_ours(link)
        and bool(held)
        and all(address in leased for address in held)
    )


def looks_like_ours(link: Link) -> bool:
    """Return whether flannelpy could have made this device.  That alone proves nothing."""
    if link.vxlan:
        match = _VXLAN_NAME.fullmatch(link.name)
        return bool(match) and link.vxlan.vni == int(link.name.partition(".")[2])
    return _is_tun(link) and bool(_TUN_NAME.fullmatch(link.name))


def _is_tun(link: Link) -> bool:
    """Return whether a link is a TUN device: a TAP device is of the same kind, but has a MAC."""
    return link.kind == "tun" and not link.mac
