"""Asks the kernel whether packets to peers take flannelpy's routes, and names the route or rule that diverts them.

A list of the routes does not answer that: a policy rule, a more specific route or one of another metric may come
first.  So flannelpy asks the kernel which route it would use: for packets of the host itself, and for packets of
containers, once there is a bridge with an address of our subnet.
Counterpart: none; flanneld does not check.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from typing import NamedTuple

from flannelpy.backend.foreign_routes import find_leftovers, log_leftovers
from flannelpy.backend.route_cause import DivertingRoutes
from flannelpy.causes import grouped, listed
from flannelpy.chunks import in_chunks
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.logs import FailureLog
from flannelpy.rtnetlink.routes import RouteAnswer, RouteQuery

log = logging.getLogger(__name__)

# In one check, and how many of them are reserved for naming causes.
_QUERIES, _NAMING = 200, 20
_ADDRESSES_OF_A_SUBNET = 8
# The query proved nothing: rp_filter rejected its source, or the bridge has just been removed.  Since Linux 6.14 the
# answer for rp_filter is that of a blackhole, EINVAL.  Source: inet_rtm_getroute in net/ipv4/route.c of the kernel.
_PROVES_NOTHING = (errno.EXDEV, errno.ENODEV)


class Way(NamedTuple):
    """How a packet leaves by our route.  ``gateway`` is None if any gateway on our own device is right."""

    link_index: int
    gateway: IPv4Address | None = None

    def is_taken(self, query: RouteQuery, answer: RouteAnswer) -> bool:
        """Return whether the kernel's answer is this way, or proves nothing."""
        if answer.errno:
            return bool(query.input_index) and answer.errno in _PROVES_NOTHING
        return answer.link_index == self.link_index and self.gateway in (None, answer.gateway)


#: Returns the way that our routes specify for an address of a subnet.
WayTo = Callable[[IPv4Network, IPv4Address], Way]


class _Bridge(NamedTuple):
    """The interface by which containers' packets arrive, and addresses of our subnet that no interface has."""

    link_index: int
    sources: Sequence[IPv4Address]


class RouteCheck:
    """Checks the routes to peers in turn.  ``unreachable``: subnets of which every queried address is diverted."""

    def __init__(self, network: IPv4Network, own_subnet: IPv4Network) -> None:
        self._network = network
        self._own = own_subnet
        self._turn = 0
        self._causes: dict[IPv4Network, set[str]] = {}
        self._failures = FailureLog(log, "Packets do not take flannelpy's routes", burst=10)
        self._are_leftovers_logged = False
        self.unreachable: set[IPv4Network] = set()

    @property
    def causes(self) -> Mapping[IPv4Network, Collection[str]]:
        """The routes and rules that divert packets, in words, by the subnet of the peer."""
        return self._causes

    async def check(
        self,
        netlink: Netlink,
        subnets: Sequence[IPv4Network],
        way: WayTo,
        own_link: int = 0,
        blocked: Collection[IPv4Network] = (),
    ) -> None:
        """Ask about some of the peers' ``subnets``, in turn; without any, about the network by our own device.

        ``blocked`` subnets have no route of ours.  Raises HostError if no packet to any peer takes our routes.
        """
        if not (subnets or blocked):
            if own_link:
                await self.check_network(netlink, own_link)
            return
        await self._ask(netlink, subnets, way, own_link)
        if len(self.unreachable) == len(subnets):
            raise HostError(self._refusal("every peer"))
        self._report()

    def why_unreachable(self, subnet: IPv4Network) -> str:
        """Return why packets to a subnet do not take our route; empty if they do, as far as it is known."""
        if subnet not in self.unreachable:
            return ""
        causes = "; ".join(sorted(self._causes.get(subnet, ()))) or "a rule or route of another program comes first"
        return f"packets do not take flannelpy's route: {causes}"

    async def check_network(self, netlink: Netlink, own_link: int) -> None:
        """Ask about the network outside our own subnet.  Raises HostError if no packet takes our own device's route."""
        await self._ask(netlink, [self._network], lambda *_: Way(own_link), own_link)
        if self.unreachable:
            self.unreachable.clear()  # the network is not the subnet of a peer
            raise HostError(self._refusal(str(self._network)))
        self._report()

    def _refusal(self, destination: str) -> str:
        """Return a text with all causes, which are then not logged one by one."""
        causes = set[str]().union(*self._causes.values())
        for cause in causes:
            self._failures.note_logged(cause, subject=cause)
        what = "; ".join(sorted(causes)) or "routes of other programs are in the way"
        return f"Packets to {destination} do not take flannelpy's routes: {what}"

    async def report_leftovers(self, netlink: Netlink, link_index: int, wanted: Collection[IPv4Network]) -> None:
        """Log once which routes out of the external interface look like flanneld's.  Raises HostError."""
        if not self._are_leftovers_logged:
            self._are_leftovers_logged = True
            found = await find_leftovers(netlink, self._network, self._own, link_index, wanted)
            log_leftovers(found, netlink.name_of)

    async def _ask(self, netlink: Netlink, subnets: Sequence[IPv4Network], way: WayTo, own_link: int) -> None:
        bridge = await self._bridge(netlink, own_link)
        kinds = 2 if bridge else 1
        count = min(_ADDRESSES_OF_A_SUBNET, max(1, (_QUERIES - _NAMING) // (kinds * max(1, len(subnets)))))
        some = self._in_turn(subnets, (_QUERIES - _NAMING) // (kinds * count))
        asked = {subnet: list(self._queries(subnet, count, bridge)) for subnet in some}
        await asyncio.sleep(0)
        answers = await _answers(netlink, [query for queries in asked.values() for query in queries])
        wrong = {
            subnet: [query for query in queries if not way(subnet, query.destination).is_taken(query, answers[query])]
            for subnet, queries in asked.items()
        }
        await self._forget_all_but(subnets)
        for subnet, queries in wrong.items():
            is_whole = {query.destination for query in queries} == {query.destination for query in asked[subnet]}
            (self.unreachable.add if is_whole else self.unreachable.discard)(subnet)
            if not queries:
                self._causes.pop(subnet, None)
        await self._name_causes(netlink, wrong, way)

    async def _name_causes(
        self,
        netlink: Netlink,
        wrong: dict[IPv4Network, list[RouteQuery]],
        way: WayTo,
    ) -> None:
        """Name the causes of one query per subnet, then of a second one, until the reserved queries are used."""
        left = [(subnet, queries[number]) for number in range(max(map(len, wrong.values()), default=0))
                for subnet, queries in wrong.items() if number < len(queries)][:_NAMING]  # fmt: skip
        answers = await netlink.lookups([query for _, query in left], matched=True)
        causes, named = DivertingRoutes(netlink), dict[IPv4Network, set[str]]()
        for (subnet, query), answer in zip(left, answers, strict=True):
            if not way(subnet, query.destination).is_taken(query, answer):
                whose = "containers'" if query.input_index else "the host's"
                named.setdefault(subnet, set()).add(f"{await causes.name(query, answer)} takes {whose} packets")
        self._causes |= named

    def _report(self) -> None:
        """Log each cause once, with the subnets that it affects."""
        affected = grouped((subnet, cause) for subnet, causes in self._causes.items() for cause in causes)
        self._failures.note_all(
            {cause: cause for cause in affected},
            lambda _, cause: f"Packets to {listed(affected[cause])} do not take flannelpy's routes: {cause}",
        )

    async def _bridge(self, netlink: Netlink, own_link: int) -> _Bridge | None:
        """Return the containers' bridge; None without one, and while the host forwards none of its packets."""
        addresses = await netlink.addresses()
        held = {one.address for one in addresses}
        low, high = int(self._own.network_address), int(self._own.broadcast_address)
        sources = [IPv4Address(number) for number in (low + 2, (low + high) // 2, high - 1)]
        for one in addresses:
            if one.address in self._own and one.link_index != own_link and netlink.is_forwarding(one.link_index):
                free = [source for source in sources if source not in held]
                return _Bridge(one.link_index, free) if free else None
        return None

    def _in_turn(self, subnets: Sequence[IPv4Network], count: int) -> Sequence[IPv4Network]:
        """Return the next subnets after those of the last check."""
        start = self._turn if self._turn < len(subnets) else 0
        self._turn = start + count
        return subnets[start : start + count]

    def _queries(self, subnet: IPv4Network, count: int, bridge: _Bridge | None) -> Iterator[RouteQuery]:
        excluded = self._own if self._own.subnet_of(subnet) else None
        for number, address in enumerate(_spread(subnet, count, excluded)):
            yield RouteQuery(address)
            if bridge:
                yield RouteQuery(address, bridge.sources[number % len(bridge.sources)], bridge.link_index)

    async def _forget_all_but(self, subnets: Sequence[IPv4Network]) -> None:
        if self._causes or self.unreachable:
            kept = set[IPv4Network]()
            async for chunk in in_chunks(subnets):
                kept.update(chunk)
            self._causes = {subnet: causes for subnet, causes in self._causes.items() if subnet in kept}
            self.unreachable &= kept


async def _answers(netlink: Netlink, queries: Sequence[RouteQuery]) -> Mapping[RouteQuery, RouteAnswer]:
    """Return the answer to each query; a rejection by rp_filter is EXDEV on every kernel."""
    answers = dict(zip(queries, await netlink.lookups(queries), strict=True))
    causes = DivertingRoutes(netlink)
    for query, answer in answers.items():
        is_ambiguous = query.input_index and answer.errno == errno.EINVAL
        if is_ambiguous and not await causes.has_blackhole(query):
            answers[query] = RouteAnswer(errno=errno.EXDEV)
    return answers


def _spread(subnet: IPv4Network, count: int, excluded: IPv4Network | None) -> list[IPv4Address]:
    """Return ``count`` addresses of a subnet: the first one, then each as far as possible from those before."""
    first, size = int(subnet.network_address), subnet.num_addresses
    numbers = (max(min(max(1, int(size * _fraction(index))), size - 2), 0) for index in range(2 * count + 2))
    addresses = (IPv4Address(first + number) for number in dict.fromkeys(numbers))
    return list(islice((one for one in addresses if not excluded or one not in excluded), count))


def _fraction(index: int) -> float:
    """Return a member of van der Corput's sequence: 0, 1/2, 1/4, 3/4, 1/8, 5/8 and so on."""
    value, weight = 0.0, 0.5
    while index:
        value += weight * (index & 1)
        index, weight = index >> 1, weight / 2
    return value
