"""Which peers the kernel reaches by the external interface without a router.

The prefix of an address does not decide that: a route may lead to peers of a host with a /32 or a point-to-point
address, and a more specific route or a policy rule may lead to a peer of the interface's own network by a router.  So
flannelpy asks the kernel which route it would use (RTM_GETROUTE).  A peer is on the link if the answer has no gateway
and names the external interface.

flannelpy's own routes never prove that a peer is on the link, if its public IP lies inside the overlay's network: they
have a gateway, or they lead out of an overlay device.
Counterpart: none; in the original, the kernel rejects a route to a gateway that it does not know.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from itertools import islice

from flannelpy.chunks import in_chunks
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.linux.netlink.monitor import ALL_ROUTES, check_whenever_changed
from flannelpy.rtnetlink.links import Link
from flannelpy.rtnetlink.routes import UNICAST, RouteAnswer, RouteQuery

# Peers that are asked about again in one check, since routes change.
_ASKED_AGAIN = 200


class OnLink:
    """The kernel's answers by public IP of the peer; ``version`` increases when an answer changes."""

    def __init__(self, name: str) -> None:
        """Know nothing yet; ``name`` is that of the external interface."""
        self.version = 0
        self._name = name
        self._ways: dict[IPv4Address, str] = {}  # how the kernel sends to a peer off the link, "" on it; oldest first
        self._unasked: dict[IPv4Address, None] = {}
        self._peers_version = 0
        self._link_index = 0
        self._busy = asyncio.Lock()

    def obstacle(self, peer: IPv4Address) -> str:
        """Return how the kernel sends to a peer that is off the link, in words; empty for a peer on it."""
        return self._ways[peer]

    async def watch(self, on_change: Callable[[], None]) -> None:
        """Ask again whenever links, addresses, routes or rules change; call ``on_change`` if an answer changes.

        Errors are not reported here, because the checks of the repair loop ask the same and report them.
        """

        async def ask_again() -> None:
            before = self.version
            with suppress(HostError):
                link = await netlink.link(self._name)
                if link:
                    await self.update(netlink, link)
            if self.version != before:
                on_change()

        async with Netlink() as netlink:
            await check_whenever_changed(ask_again, ALL_ROUTES)

    async def follow(self, peers: Iterable[IPv4Address], version: int) -> None:
        """Replace the set of peers; ``peers`` is read only if ``version`` differs from that of the last call."""
        async with self._busy:
            if version != self._peers_version:
                await self._follow(peers)
                self._peers_version = version

    async def update(self, netlink: Netlink, link: Link) -> None:
        """Ask about new peers, and again about those whose answers are oldest.  Raises HostError.

        As long as answers have changed, it asks again about more peers: an added or removed route usually concerns
        many of them.
        """
        if not link.is_up:
            raise HostError(f"{link.name} is down: no routes to other hosts")
        async with self._busy:
            if link.index != self._link_index:
                self._link_index = link.index
                self._unasked |= dict.fromkeys(self._ways)
            left = len(self._ways)
            while left > 0 and await self._ask(netlink, list(islice(self._ways, min(left, _ASKED_AGAIN)))):
                left -= _ASKED_AGAIN
            await self._ask(netlink, list(self._unasked))

    async def _follow(self, peers: Iterable[IPv4Address]) -> None:
        """Forget all other peers, and note the new ones as not asked about."""
        wanted = set[IPv4Address]()
        unasked: dict[IPv4Address, None] = {}
        async for chunk in in_chunks(peers):
            wanted.update(chunk)
            unasked |= {peer: None for peer in chunk if peer in self._unasked or peer not in self._ways}
        async for chunk in in_chunks(list(self._ways)):
            for gone in (peer for peer in chunk if peer not in wanted):
                del self._ways[gone]
        self._unasked = unasked

    async def _ask(self, netlink: Netlink, peers: Sequence[IPv4Address]) -> bool:
        """Ask the kernel about these peers; return whether an answer has changed."""
        before = self.version
        async for chunk in in_chunks(peers):
            answers = await netlink.lookups([RouteQuery(peer) for peer in chunk])
            for peer, answer in zip(chunk, answers, strict=True):
                way = self._way(peer, answer, netlink.name_of)
                self.version += way != self._ways.pop(peer, None)
                self._ways[peer] = way
                self._unasked.pop(peer, None)
        return self.version != before

    def _way(self, peer: IPv4Address, answer: RouteAnswer, name_of: Callable[[int], str]) -> str:
        if answer.is_on_link(self._link_index):
            return ""
        if answer.errno:
            return f"the kernel has no route to it: {os.strerror(answer.errno)}"
        if answer.kind != UNICAST:
            # It became an address of this host or a broadcast address.  LeaseFilter detects that as well
            # and withdraws the lease.
            return self._ways.get(peer, "")
        gateway = "a gateway with an IPv6 address" if answer.has_ipv6_gateway else answer.gateway
        return f"the kernel sends to it {f'via {gateway} ' if gateway else ''}by {name_of(answer.link_index)}"
