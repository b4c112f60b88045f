"""The GRO pair: two connected veths that merge TCP packets of peers into super-packets.

The incoming program sends single packets into ``<TUN>-gro``; at ``<TUN>-rx`` the kernel merges them, as it does for
packets of a network card, and a program hands what comes out to the TUN.  Without the pair, packets go to the TUN one
by one, and TCP is slower by a third.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from flannelpy.errors import HostError
from flannelpy.linux.ethtool import Feature, has_feature, set_feature
from flannelpy.linux.netlink.client import Netlink
from flannelpy.rtnetlink.links import Link

_MTU = 65535


class GroPair:
    """The pair of one TUN; ``alias`` marks both ends as ours."""

    def __init__(self, tun: str, alias: str) -> None:
        self.sending, self.receiving = f"{tun}-gro", f"{tun}-rx"
        self._alias = alias

    async def set_up(self, netlink: Netlink) -> Link:
        """Make and configure the pair as far as it is not; return the sending end.  Raises HostError."""
        if await netlink.link(self.sending) is None or await netlink.link(self.receiving) is None:
            await self._remove_ours(netlink)
            await self._add(netlink)
        # The receiving end only merges what comes from an end that cannot cut super-packets itself.
        for name, feature, is_on in self._features():
            link = await self._own(netlink, name)
            set_feature(name, feature, is_on)
            _disable_ipv6(name)
            await netlink.set_up(link)
        return await self._own(netlink, self.sending)

    async def _add(self, netlink: Netlink) -> None:
        await netlink.add_veth(self.sending, self.receiving, _MTU)
        for name in (self.sending, self.receiving):
            if link := await netlink.link(name):
                await netlink.set_alias(link, self._alias)

    async def flaws(self, netlink: Netlink) -> list[str]:
        """Return how the pair differs from what ``set_up`` made.  Raises HostError."""
        found = []
        for name, feature, is_on in self._features():
            link = await netlink.link(name)
            if link is None:
                found.append(f"{name} was removed")
            elif not link.is_up:
                found.append(f"{name} was set down")
            elif has_feature(name, feature) is not is_on:
                found.append(f"{name} got {feature.name} {'off' if is_on else 'on'}")
        return found

    async def remove(self, netlink: Netlink) -> None:
        """Remove the pair, if it is there.  Raises HostError."""
        await self._remove_ours(netlink)

    def _features(self) -> list[tuple[str, Feature, bool]]:
        return [(self.sending, Feature.TSO, False), (self.receiving, Feature.GRO, True)]

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
        for name in (self.sending, self.receiving):
            link = await netlink.link(name)
            if link and link.kind == "veth" and link.alias == self._alias:
                await netlink.remove_link(link)


def _disable_ipv6(name: str) -> None:
    """Have the kernel send no packets of its own; where there is no IPv6 it sends none anyway."""
    with suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
