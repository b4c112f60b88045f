"""The GRO pair: two connected veths that merge TCP packets of peers into super-packets.

The incoming program sends single packets into ``<TUN>-gro``, and super-packets, which the kernel cuts there, into
``<TUN>-cut``.  At the other end the kernel merges the packets, as it does for those of a network card, and a program
hands what comes out to the TUN.  Without the pair, packets go to the TUN one by one, and TCP is slower by a third.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from flannelpy.datapath.fast_path.incoming import QUEUES
from flannelpy.errors import HostError
from flannelpy.linux.ethtool import Feature, has_feature, set_feature
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.links import Link

_MTU = 65535
# A veth merges only what comes from an end that cannot leave the cutting to hardware.
_FEATURES = [(Feature.TSO, False), (Feature.GRO, True)]


class GroPair:
    """The pair of one TUN; ``alias`` marks both ends as ours."""

    def __init__(self, tun: str, alias: str) -> None:
        self.ends = (f"{tun}-gro", f"{tun}-cut")
        self._alias = alias

    async def set_up(self, netlink: Netlink) -> list[Link]:
        """Make and configure the pair as far as it is not; return its ends.  Raises HostError."""
        if None in [await netlink.link(name) for name in self.ends]:
            await self._remove_ours(netlink)
            await self._add(netlink)
        return [await self._configure(netlink, name) for name in self.ends]

    async def _configure(self, netlink: Netlink, name: str) -> Link:
        link = await self._own(netlink, name)
        for feature, is_on in _FEATURES:
            set_feature(name, feature, is_on)
        _disable_ipv6(name)
        await netlink.set_up(link)
        return link

    async def _add(self, netlink: Netlink) -> None:
        await netlink.add_veth(*self.ends, _MTU, QUEUES)
        for name in self.ends:
            if link := await netlink.link(name):
                await netlink.set_alias(link, self._alias)

    async def flaws(self, netlink: Netlink) -> list[str]:
        """Return how the pair differs from what ``set_up`` made.  Raises HostError."""
        found = []
        for name in self.ends:
            link = await netlink.link(name)
            if link is None:
                found.append(f"{name} was removed")
            elif not link.is_up:
                found.append(f"{name} was set down")
            else:
                wrong = [one for one in _FEATURES if has_feature(name, one[0]) is not one[1]]
                found += [f"{name} got {feature.name} {'off' if is_on else 'on'}" for feature, is_on in wrong]
        return found

    async def remove(self, netlink: Netlink) -> None:
        """Remove the pair, if it is there.  Raises HostError."""
        await self._remove_ours(netlink)

    async def _own(self, netlink: Netlink, name: str) -> Link:
        """Return the link.  Raises HostError if it is gone, or belongs to another program."""
        link = await netlink.link(name)
        if link is None:
            raise HostError(f"{name} is gone")
        if link.kind != "veth" or link.alias != self._alias:
            raise HostError(f"{name} exists, and is not flannelpy's: rename or remove it")
        return link

    async def _remove_ours(self, netlink: Netlink) -> None:
        """Remove both ends; an end without its peer may be left if another program moved that one."""
        for name in self.ends:
            link = await netlink.link(name)
            if link and link.kind == "veth" and link.alias == self._alias:
                await netlink.remove_link(link)


def _disable_ipv6(name: str) -> None:
    """Have the kernel send no packets of its own; where there is no IPv6 it sends none anyway."""
    with suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
