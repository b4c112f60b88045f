"""Keeps the kernel's entries that lead to peers equal to what the leases ask for.

For backends whose packets the kernel routes.  The entries of one subnet are added as a whole or not at all.  They
stay when flannelpy stops, so a restart disturbs no traffic.  As soon as the leases are known, flannelpy removes what an
earlier run left and no lease asks for.

flannelpy owns the routes into the network with its mark, and all entries that lead into it by its own device.  It
never changes or removes anything else.  If another program's route is in the way of ours, that route stays.
Counterpart: the route lists of backend/hostgw/hostgw.go, the ARP and FDB calls of backend/vxlan/device.go.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Container, Mapping, Sequence
from ipaddress import IPv4Network
from typing import NamedTuple

from flannelpy.backend.carrier_history import CarrierHistory
from flannelpy.backend.foreign_routes import ForeignRoutes, subnets_are
from flannelpy.causes import MOST_NAMED, listed
from flannelpy.chunks import in_chunks, set_aside
from flannelpy.errors import HostError
from flannelpy.linux.netlink.client import Netlink
from flannelpy.logs import FailureLog
from flannelpy.rtnetlink import entries
from flannelpy.rtnetlink.entries import Entry, GatewayRoute, Identity, PeerEntries

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0

#: The entries to add, and the subnet that asks for each.
Missing = dict[Identity, tuple[Entry, IPv4Network]]

#: The subnets that ask for an entry.
Index = Mapping[Identity, Sequence[IPv4Network]]


class RejectedEntry(NamedTuple):
    """An entry that the kernel rejected, and the errno."""

    entry: Entry
    errno: int

    def __str__(self) -> str:
        return f"the kernel rejected the {self.entry}: {os.strerror(self.errno)}"


class EntryReconciler:
    """Compares wanted entries with those that the kernel has, and changes the difference."""

    def __init__(
        self,
        network: IPv4Network,
        wanted: Callable[[Netlink], Awaitable[Mapping[IPv4Network, PeerEntries]]],
        own_link: Callable[[Netlink], Awaitable[int]],
    ) -> None:
        """Reconcile entries into ``network``.

        ``wanted`` returns the entries of each subnet: the same unchanged object until they change.  ``own_link``
        returns the index of our own device, 0 without one.  Both raise HostError.
        """
        self._network = network
        self._wanted = wanted
        self._own_link = own_link
        self._peer_entries: Mapping[IPv4Network, PeerEntries] = {}
        self._index: Index = {}
        self._rejected: Mapping[IPv4Network, tuple[PeerEntries, RejectedEntry]] = {}
        self._link_indices: set[int] = set()  # of all entries wanted
        self._carriers = CarrierHistory()
        self._foreign = ForeignRoutes()
        self._failures = FailureLog(log, "Failed to update the routes to peers")
        self._rejections = FailureLog(log, "The kernel rejected entries of leases")
        self._present: Collection[Identity] | None = None  # None: unknown
        self._is_known = False  # whether ``changed`` was called, so the leases are known
        self._changed = asyncio.Event()
        self._has_tried = asyncio.Event()
        self.lock = asyncio.Lock()  # while a caller holds it, no entry is added or removed

    @property
    def unreachable(self) -> Collection[IPv4Network]:
        """Return the subnets without a route: a foreign route is in the way, or the kernel rejects ours."""
        return self._foreign.blocking.keys() | self._rejected.keys()

    @property
    def unreachable_count(self) -> int:
        """Return the number of unreachable subnets: no subnet is both blocked and rejected."""
        return len(self._foreign.blocking) + len(self._rejected)

    def why_unreachable(self, subnet: IPv4Network) -> str:
        """Return why a subnet has no route; empty if it has one."""
        if subnet in self._rejected:
            return str(self._rejected[subnet][1])
        return self._foreign.why_blocked(subnet)

    @property
    def blocked(self) -> Collection[IPv4Network]:
        """Return the unreachable subnets where another program's route is in the way."""
        return self._foreign.blocking.keys()

    @property
    def is_settled(self) -> bool:
        """Return whether the leases are known and their entries are in the kernel."""
        return self._is_known and not self._changed.is_set()

    @property
    def peer_entries(self) -> Mapping[IPv4Network, PeerEntries]:
        """Return the entries of each subnet that were wanted at the last comparison."""
        return self._peer_entries

    def changed(self) -> None:
        """Have ``run`` compare again, because the leases are known or may have changed."""
        self._is_known = True
        self._changed.set()

    async def settled(self) -> None:
        """Return once ``run`` has tried to add the entries of the first leases."""
        await self._has_tried.wait()

    async def run(self) -> None:
        """Add and remove entries as the leases change, until cancelled."""
        async with Netlink() as netlink:
            while True:
                await self._changed.wait()
                self._changed.clear()
                try:
                    for line in await self._reconcile(netlink, has_to_list=False):
                        log.info("%s", line)
                    self._failures.recovered()
                except HostError as error:
                    self._failures.failed(error)
                    self._has_tried.set()
                    await asyncio.sleep(_RETRY_SECONDS)
                    self._changed.set()
                self._has_tried.set()

    async def repair(self, netlink: Netlink) -> list[str]:
        """List the kernel's entries and compare; return a line for each one restored or removed.  Raises HostError."""
        self._failures.report()
        if not self.is_settled:
            return []
        return await self._reconcile(netlink, has_to_list=True)

    async def _reconcile(self, netlink: Netlink, *, has_to_list: bool) -> list[str]:
        """Make the kernel's entries equal to the wanted ones; return what other programs changed.  Raises HostError.

        ``has_to_list``: list the kernel's entries, instead of relying on what was added before.
        """
        async with self.lock:
            known, self._present = (None if has_to_list else self._present), None
            before, before_index, failed_before = self._peer_entries, self._index, set(self.unreachable)
            await self._follow(await self._wanted(netlink))
            present = await self._list_owned(netlink) if known is None else known
            await self._judge_again(netlink)
            missing = await self._find_missing(present, skip_rejected=has_to_list)
            stale = await self._find_stale(present)
            await self._add(netlink, missing, stale)
            unwanted = _not_replaced(stale, missing)
            await netlink.remove(sorted([*unwanted, *self._of_failed(present, missing)], key=_is_no_route))
            await self._foreign.report(netlink)
            if not self.unreachable and not self._foreign.equivalent:
                self._present = self._index.keys()
            if not before:  # the first entries, all at once
                set_aside(len(self._index))
            if known is not None:
                return []
            restored = await self._restored(missing, before, {*failed_before, *self.unreachable})
            foreign = [key for key in unwanted if key not in before_index]
            return [*await self._lines_about(netlink, restored), *_lines_about_removed(foreign, missing)]

    async def _lines_about(self, netlink: Netlink, restored: Sequence[Entry]) -> list[str]:
        """Return one line for each entry restored, which names what removed it.  Raises HostError."""
        flapped = await self._carriers.update(netlink, self._link_indices)
        by_kernel, by_others = list[Entry](), list[Entry]()
        for one in restored:
            went_with_link = isinstance(one, GatewayRoute) and one.link_index in flapped
            (by_kernel if went_with_link else by_others).append(one)
        return [
            *_summary(by_kernel, "was removed by the kernel, because its link was down; restored"),
            *_summary(by_others, "was removed by another program; restored"),
        ]

    async def _restored(
        self, missing: Missing, before: Mapping[IPv4Network, PeerEntries], failed: Collection[IPv4Network]
    ) -> list[Entry]:
        """Return those of the added entries that had been added before, so something else removed them."""
        return [
            entry
            async for added in in_chunks(missing.values())
            for entry, subnet in added
            if subnet not in failed and before.get(subnet) == self._peer_entries[subnet]
        ]

    async def _follow(self, peer_entries: Mapping[IPv4Network, PeerEntries]) -> None:
        """Take over a new set of wanted entries."""
        if peer_entries is self._peer_entries:
            return
        index: dict[Identity, list[IPv4Network]] = {}
        self._link_indices = set()
        async for pairs in in_chunks(peer_entries.items()):
            for subnet, wanted in pairs:
                for entry in wanted:
                    index.setdefault(entries.identity(entry), []).append(subnet)
                    self._link_indices.add(entry.link_index)
        self._peer_entries, self._index = peer_entries, index
        self._foreign.forget_all_but(peer_entries)
        self._rejected = {
            subnet: (wanted, why)
            for subnet, (wanted, why) in self._rejected.items()
            if peer_entries.get(subnet) == wanted
        }

    async def _list_owned(self, netlink: Netlink) -> Collection[Identity]:
        found: dict[Identity, None] = {}
        async for chunk in netlink.owned(self._network, await self._own_link(netlink)):
            found.update(dict.fromkeys(chunk))
        return found.keys()

    async def _judge_again(self, netlink: Netlink) -> None:
        """Check whether the routes in the way are still there, before entries of these subnets are added."""
        subnets = [*self._foreign.blocking, *self._foreign.equivalent]
        if subnets:
            await self._judge(netlink, [_route_of(self._peer_entries[subnet]) for subnet in subnets])

    async def _judge(self, netlink: Netlink, routes: Sequence[GatewayRoute]) -> None:
        """Examine the routes in the way of ours, and adopt those that an earlier version added."""
        adopted = await self._foreign.judge(netlink, routes)
        if adopted:
            errors = await netlink.append([route for route, _ in adopted])
            done = [old for (_, old), error in zip(adopted, errors, strict=True) if not error]
            await netlink.remove_routes(done)
            log.info("Adopted %d routes that flanneld or an earlier version of flannelpy added", len(done))

    async def _find_missing(self, present: Collection[Identity], *, skip_rejected: bool) -> Missing:
        """Return the entries to add: none for a subnet whose route is blocked.

        The kernel would reject again what it rejected as invalid, and each attempt would trigger the next check.
        """
        invalid = [subnet for subnet, (_, why) in self._rejected.items() if why.errno == errno.EINVAL]
        skipped = {*self._foreign.blocking, *(invalid if skip_rejected else ())}
        missing: Missing = {}
        async for chunk in in_chunks(self._index.items()):
            for subnet in {subnet for key, subnets in chunk if key not in present for subnet in subnets} - skipped:
                for entry in self._peer_entries[subnet]:
                    key = entries.identity(entry)
                    if key not in present and not self._is_equivalent(subnet, entry):
                        missing[key] = entry, subnet
        return missing

    def _is_equivalent(self, subnet: IPv4Network, entry: Entry) -> bool:
        """Return whether another program's route does what this one would do."""
        return isinstance(entry, GatewayRoute) and subnet in self._foreign.equivalent

    async def _find_stale(self, present: Collection[Identity]) -> list[Identity]:
        return [key async for keys in in_chunks(present) for key in keys if key not in self._index]

    async def _add(self, netlink: Netlink, missing: Missing, stale: Sequence[Identity]) -> None:
        """Add what is missing, and note which subnets failed.  Raises HostError for a cause that is not one lease."""
        # A new next hop is appended to the old one, which is removed afterwards, so that no packet is dropped.
        replaced = {entries.destination(key) for key in stale}
        failed: list[tuple[Entry, IPv4Network, int]] = []
        async for chunk in in_chunks(missing.values()):
            failed += await _add_beside(netlink, chunk, replaced)
        in_the_way = [entry for entry, _, error in failed if isinstance(entry, GatewayRoute) and error == errno.EEXIST]
        if in_the_way:
            await self._judge(netlink, in_the_way)
            for route in in_the_way:
                del missing[entries.identity(route)]
        await self._note_failures(netlink, missing, [one for one in failed if one[2] != errno.EEXIST])

    async def _note_failures(
        self, netlink: Netlink, missing: Missing, failed: Sequence[tuple[Entry, IPv4Network, int]]
    ) -> None:
        """Raise HostError for an errno that does not concern one lease, after removing what was added in part."""
        tried = {subnet for _, subnet in missing.values()} if self._rejected else ()
        before = self._rejected
        self._rejected = {subnet: one for subnet, one in before.items() if subnet not in tried}
        for entry, subnet, error in failed:
            self._rejected.setdefault(subnet, (self._peer_entries[subnet], RejectedEntry(entry, error)))
        for why in [why for _, why in self._rejected.values() if not self._concerns_one_lease(why)]:
            undone = self._of_failed(missing)
            self._rejected = {subnet: one for subnet, one in before.items() if self._concerns_one_lease(one[1])}
            await netlink.remove(undone)
            raise HostError(str(why))
        self._report_rejected()

    def _concerns_one_lease(self, why: RejectedEntry) -> bool:
        """Return whether a lease is the cause: it is invalid, or to its gateway alone no route has scope link."""
        return why.errno == errno.EINVAL or (
            why.errno == errno.ENETUNREACH and len(self._rejected) < len(self._peer_entries)
        )

    def _report_rejected(self) -> None:
        """Log each rejected subnet once while its entries stay the same, in one line for each errno."""
        self._rejections.note_all(
            {(subnet, wanted): why.errno for subnet, (wanted, why) in self._rejected.items()},
            lambda rejected, _: self._about_rejected(sorted(subnet for subnet, _ in rejected)),
        )

    def _about_rejected(self, subnets: Sequence[IPv4Network]) -> str:
        """Return the log line about subnets whose entries the kernel rejected with one errno."""
        why = self._rejected[subnets[0]][1]
        example = "" if len(subnets) == 1 else "for example, "
        if why.errno == errno.EINVAL:
            return f"Ignoring invalid lease {listed(subnets)}: {example}{why}"
        return f"{subnets_are(subnets)} unreachable: {example}{why}"

    def _of_failed(self, *holders: Container[Identity]) -> list[Identity]:
        """Return the entries of unreachable subnets that a holder has, except those that reachable subnets share."""
        failed = {*self.unreachable}
        found = dict.fromkeys(
            entries.identity(entry) for subnet in failed for entry in self._peer_entries.get(subnet, ())
        )
        return [
            key
            for key in found
            if any(key in holder for holder in holders) and all(subnet in failed for subnet in self._index[key])
        ]


async def _add_beside(
    netlink: Netlink, wanted: Sequence[tuple[Entry, IPv4Network]], replaced: Collection[IPv4Network | None]
) -> list[tuple[Entry, IPv4Network, int]]:
    """Add entries, and append routes to ``replaced`` destinations; return what failed, with the errno."""
    appended = [
        one for one in wanted if replaced and isinstance(one[0], GatewayRoute) and one[0].destination in replaced
    ]
    added = [one for one in wanted if one not in appended] if appended else wanted
    errors = [
        *await netlink.add([entry for entry, _ in added]),
        *await netlink.append([entry for entry, _ in appended if isinstance(entry, GatewayRoute)]),
    ]
    return [(*one, error) for one, error in zip([*added, *appended], errors, strict=True) if error]


def _route_of(peer_entries: PeerEntries) -> GatewayRoute:
    """Return the route, which is the last of a peer's entries."""
    route = peer_entries[-1]
    assert isinstance(route, GatewayRoute)
    return route


def _not_replaced(stale: Sequence[Identity], missing: Missing) -> list[Identity]:
    """Return the stale entries that adding ``missing`` did not replace, as it does for all but routes."""
    if not stale:
        return []
    keys = {entry.key for entry, _ in missing.values() if not isinstance(entry, GatewayRoute)}
    return [one for one in stale if not keys or entries.key(one) not in keys]


def _is_no_route(key: Identity) -> bool:
    return not entries.is_route(key)


def _lines_about_removed(foreign: Sequence[Identity], missing: Missing) -> list[str]:
    """Return one line for each removed entry that another program added and that no entry of ours replaced."""
    replaced = {entry.key for entry, _ in missing.values()} if foreign else ()
    removed = [entries.describe(key) for key in foreign if entries.key(key) not in replaced]
    return _summary(removed, "leads to no peer; removed")


def _summary(found: Sequence[object], what: str) -> list[str]:
    if len(found) > MOST_NAMED:
        return [f"{len(found)} entries, such as the {found[0]}: each {what}"]
    return [f"The {one} {what}" for one in found]
