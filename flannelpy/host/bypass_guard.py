"""Finds out whether the fast path would bypass an XFRM policy or a firewall rule that may match our datagrams.

The kernel reports each change of XFRM policies.  It reports no change of iptables-legacy, so all rules are listed every
resync period.  What cannot be found out forbids the fast path.
Counterpart: none; flanneld has no fast path.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from errno import EPROTONOSUPPORT
from typing import Never, TypeVar

from flannelpy.chunks import in_turns
from flannelpy.errors import HostError, one_line
from flannelpy.host.consistent_listing import ConsistentListing
from flannelpy.linux import iptables, nftables
from flannelpy.linux.netlink.xfrm import XfrmPolicies
from flannelpy.netfilter import bypassed
from flannelpy.netfilter.address_ranges import AddressRanges
from flannelpy.netfilter.bypassed import HOOKS, OuterDatagrams
from flannelpy.netfilter.iptables_listing import Tables
from flannelpy.netfilter.nft_listing import NftTable

log = logging.getLogger(__name__)

T = TypeVar("T")

# A listing takes a tenth of the time at most: iptables takes seconds to list 30,000 rules.
_PAUSE_FACTOR = 10
# The pause between two searches when peers change, and before a listing that failed is repeated.
_PAUSE_SECONDS = 1.0
_UNCHECKED = "the firewall rules have not been checked yet"

_Listings = tuple[list[Tables], list[NftTable]]


class BypassGuard:
    """The search for what the fast path would bypass; for one network."""

    def __init__(self, datagrams: OuterDatagrams, peers: Callable[[], AddressRanges | None], resync: float) -> None:
        """Take what decides.

        ``peers`` returns the public IPs of the peers, None while they are unknown; it is called at each search.
        ``resync``: seconds between two searches (-iptables-resync).
        """
        self._datagrams = datagrams
        self._peers = peers
        self._resync = resync
        self._xfrm: XfrmPolicies | None = None
        self._policies = ""
        self._rules = _UNCHECKED
        self._consistency = ConsistentListing()
        self._latest: _Listings | None = None
        self._listings: _Listings | None = None  # the latest that is consistent
        self._searched: tuple[_Listings, AddressRanges | None] | None = None
        self._has_failed = False  # the last listing
        self._searching = asyncio.Lock()  # so that the latest peers count
        self._peers_changed = asyncio.Event()
        self._changed = asyncio.Event()

    def reason(self) -> str | None:
        """Return what forbids the fast path, as the end of a log line; None while nothing does."""
        return self._policies or self._rules or None

    async def wait_change(self) -> None:
        """Wait until ``reason()`` differs from what it was at the call."""
        before = self.reason()
        while self.reason() == before:
            await self._changed.wait()

    def peers_changed(self) -> None:
        """Search again soon, without new listings, because ``peers`` returns others."""
        self._peers_changed.set()

    def close(self) -> None:
        """Close the netlink socket."""
        if self._xfrm:
            asyncio.get_running_loop().remove_reader(self._xfrm.fileno())
            self._xfrm.close()
            self._xfrm = None

    async def run(self) -> Never:
        """Search every resync period and when peers change, and follow the XFRM policies, until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            start = clock()
            await self.check()
            is_repeated = self._has_failed and not self._rules
            period = min(_PAUSE_SECONDS, self._resync) if is_repeated else self._resync
            end = start + max(period, _PAUSE_FACTOR * (clock() - start))
            with suppress(TimeoutError):
                async with asyncio.timeout_at(end):
                    await self._follow_peers()

    async def _follow_peers(self) -> Never:
        while True:
            await self._peers_changed.wait()
            await self._or_forbid(self._search)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def check(self) -> str | None:
        """Search now, and return ``reason()``."""
        self._check_policies()
        await self._or_forbid(self._list_and_search)
        return self.reason()

    async def _or_forbid(self, work: Callable[[], Awaitable[None]]) -> None:
        """Forbid the fast path if the work fails by an error of any type."""
        try:
            async with self._searching:
                await work()
        except Exception as error:
            log.debug("Traceback of the error:", exc_info=error)
            self._searched = None
            self._set(rules=f"the firewall rules cannot be checked: {one_line(error)}")

    async def _list_and_search(self) -> None:
        try:
            await self._consistency.update(self._list_all)
        except HostError:
            if self._has_failed:
                raise
            self._has_failed = True  # one failure may be that of a busy host: the next check comes soon
            if self._listings is None:
                await asyncio.sleep(min(_PAUSE_SECONDS, self._resync))
                await self._list_and_search()
                return
        else:
            self._has_failed = False
            self._listings = self._latest
        await self._search()

    async def _list_all(self) -> bool:
        """List all rules, and return whether they are the same; then those are kept that have been read."""
        listings = await _list()
        is_same = listings == self._latest
        if not is_same:
            self._latest = listings
        return is_same

    async def _search(self) -> None:
        self._peers_changed.clear()
        if self._listings is None or (subject := (self._listings, self._peers())) == self._searched:
            return
        self._searched = None  # so that a search that is cancelled is repeated
        found = await self._first(*subject)
        self._set(rules=f"{found} may match the datagrams between hosts" if found else "")
        self._searched = subject

    async def _first(self, listings: _Listings, peers: AddressRanges | None) -> str:
        """Return the first of what may match the datagrams; empty if nothing does."""
        for search in bypassed.searches(*listings, self._datagrams, peers):
            if found := await in_turns(search):
                return found
        return ""

    def _check_policies(self) -> None:
        """Look for XFRM policies; also called by the event loop at each change."""
        try:
            if self._xfrm is None:
                self._xfrm = XfrmPolicies()
                asyncio.get_running_loop().add_reader(self._xfrm.fileno(), self._check_policies)
            self._xfrm.discard_changes()
            self._set(policies=self._xfrm.found())
        except OSError as error:
            self.close()  # the next check opens it again
            is_without_xfrm = error.errno == EPROTONOSUPPORT
            self._set(policies="" if is_without_xfrm else f"XFRM policies cannot be read: {error.strerror}")

    def _set(self, *, policies: str | None = None, rules: str | None = None) -> None:
        before = self.reason()
        self._policies = self._policies if policies is None else policies
        self._rules = self._rules if rules is None else rules
        if self.reason() != before:
            self._changed.set()
            self._changed = asyncio.Event()


async def _list() -> _Listings:
    """Return all rules of this network namespace.  Raises HostError."""
    if unlisted := iptables.unlisted_tables():
        raise HostError(f"iptables-legacy-save is missing, and the kernel has its tables {', '.join(unlisted)}")
    found = await iptables.tables(may_load=False, with_nat=True)
    return _complete(found.values()), _complete((await nftables.tables(HOOKS, with_nat=True)).values())


def _complete(found: Iterable[T | HostError]) -> list[T]:
    listed: list[T] = []
    for each in found:
        if isinstance(each, HostError):
            raise each
        listed.append(each)
    return listed
