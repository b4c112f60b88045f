"""Asks the kernel whether datagrams to the peers leave this host, for backends that send datagrams.

An address that stays on its interface does not decide that: the route to the peers' network goes with the prefix of an
address, with a link that was down, with a default route, or because of a policy rule.  The kernel is asked as the
backend sends: from the external address, by no interface in particular.  That holds for VXLAN, too: its forwarding
entries name no interface, so the routes decide; the lower device does not.
Counterpart: none; the original sends, and logs what the kernel refuses.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network

from flannelpy.addressing.interface_choice import ExternalInterface
from flannelpy.causes import sentence
from flannelpy.linux.netlink.client import Netlink
from flannelpy.logs import FailureLog
from flannelpy.report import PeerRoutesReport
from flannelpy.rtnetlink.routes import RouteAnswer, RouteQuery
from flannelpy.subnet.lease_table import LeaseAdded, LeaseEvent

log = logging.getLogger(__name__)

# Peers that one check asks about, and at most as many interfaces.
_AT_A_TIME = 100


class PeerRoutes:
    """Checks whether a datagram can leave for any peer."""

    def __init__(self, external: ExternalInterface) -> None:
        """Datagrams come from the address of ``external``."""
        self._external = external
        self._peers: dict[IPv4Network, IPv4Address] = {}
        self._turn = 0
        self._failures = FailureLog(log, "No peer is reachable")
        self._busy = asyncio.Lock()
        self._problem = ""

    def report(self) -> PeerRoutesReport:
        """Return why no datagram reaches a peer."""
        return PeerRoutesReport(self._problem)

    def follow(self, events: Iterable[LeaseEvent]) -> None:
        """Note which usable leases of peers were added, changed or removed."""
        for event in events:
            if isinstance(event, LeaseAdded):
                self._peers[event.lease.subnet] = event.lease.attrs.public_ip
            else:
                self._peers.pop(event.subnet, None)

    async def check(self, netlink: Netlink) -> None:
        """Ask about some of the peers, and log if the problem is another one than before.  Raises HostError."""
        async with self._busy:
            await self._ask(netlink, self._some())

    async def _ask(self, netlink: Netlink, peers: Sequence[IPv4Address]) -> None:
        causes = await faults(netlink, self._external.address, peers)
        is_cut_off = bool(causes) and all(causes) and not await self._is_in_vrf(netlink)
        self._note(causes[0] if is_cut_off else "", peers)

    async def _is_in_vrf(self, netlink: Netlink) -> bool:
        """Return whether the external interface belongs to a VRF: the answers are those of the main table."""
        links = {link.index: link for link in await netlink.links()}
        masters = {
            links[link.master].kind
            for link in links.values()
            if link.name == self._external.holder and link.master in links
        }
        return "vrf" in masters

    def _some(self) -> Sequence[IPv4Address]:
        """Return the peers of one check, spread over all of them; the next call returns others, in turn."""
        step = -(-len(self._peers) // _AT_A_TIME) or 1
        self._turn = (self._turn + 1) % step
        return list(self._peers.values())[self._turn :: step]

    def _note(self, cause: str, peers: Sequence[IPv4Address]) -> None:
        if not cause:
            self._problem = ""
            # Without peers, nothing is known of the routes.
            self._failures.recovered("The kernel sends to peers again" if peers else "")
            return
        problem = f"no peer is reachable, such as {peers[0]}: {cause}"
        if self._failures.failed(cause, sentence(problem)):
            self._problem = problem


async def faults(netlink: Netlink, source: IPv4Address, peers: Sequence[IPv4Address]) -> list[str]:
    """Return why no datagram from ``source`` leaves for each peer, empty where one does.  Raises HostError."""
    answers = await netlink.lookups([RouteQuery(peer, source) for peer in peers])
    of_links = await _faults_of_links(netlink, answers)
    return [_fault(answer, of_links) for answer in answers]


async def _faults_of_links(netlink: Netlink, answers: Iterable[RouteAnswer]) -> dict[int, str]:
    """Return what is wrong with each interface by which the kernel would send; empty if nothing is."""
    faults = {}
    for index in {answer.link_index for answer in answers if not answer.errno}:
        link = await netlink.link(netlink.name_of(index))
        faults[index] = "" if link is None or link.has_carrier else f"the way out is {link.name}, which has no carrier"
    return faults


def _fault(answer: RouteAnswer, of_links: dict[int, str]) -> str:
    if answer.errno:
        return f"the kernel has no route: {os.strerror(answer.errno)}"
    return of_links[answer.link_index]
