"""Finds out what keeps packets between containers of different hosts from being forwarded.

Counterpart: none; the original's containers get no answer, and no line names the cause.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, TypeVar

from flannelpy import logs
from flannelpy.chunks import in_chunks, in_turns
from flannelpy.errors import HostError
from flannelpy.host.consistent_listing import ConsistentListing
from flannelpy.linux import ip_forward, iptables, nftables
from flannelpy.netfilter import obstacles
from flannelpy.netfilter.iptables_listing import Tables
from flannelpy.netfilter.nft_listing import NftTable
from flannelpy.netfilter.obstacles import Obstacle, Traffic
from flannelpy.report import TrafficReport

log = logging.getLogger(__name__)

T = TypeVar("T")

# A look takes a twentieth of the time at most: iptables takes seconds to list 30,000 rules.
_PAUSE_FACTOR = 20
# A failure may last, and an operator may remove the rule meanwhile.
_OUTDATED_SECONDS = 300.0
# An operator who changes rules reads each line; rules that come and go for ever are limited after so many.
_MOST_LINES = 100


class SysctlCheck:
    """Checks the settings of the kernel that keep packets of containers from being forwarded."""

    def __init__(self) -> None:
        self._failures = logs.FailureLog(log, "The kernel does not forward packets of containers")
        self._obstacle = ""

    def report(self) -> TrafficReport:
        """Return the setting that stops packets of containers."""
        return TrafficReport(self._obstacle)

    async def check(self, devices: Iterable[str]) -> None:
        """Look again at the devices by which packets of containers come in, and log a change."""
        blocked: list[str] = []
        async for chunk in in_chunks(devices):
            blocked += [device for device in chunk if not ip_forward.is_enabled(device)]
        found = obstacles.of_sysctls(blocked, is_host_forwarding=ip_forward.is_enabled(ip_forward.HOST))
        if found:
            self._failures.failed(found, found)
        else:
            self._failures.recovered("The kernel forwards packets of containers again")
        self._obstacle = found


class _Source(NamedTuple):
    """Where rules come from: a kind for log lines, and the name of a command or table, empty for all of the kind."""

    kind: str
    name: str


class _Drop(NamedTuple):
    """An obstacle of one network, by its name: whether packets are certainly lost is worth a line of its own."""

    network: str
    obstacle: str
    is_certain: bool


_IPTABLES, _TABLE = "a rule listed by ", "the nftables table "
_NFTABLES = _Source("nftables", "")


class ForwardCheck:
    """The search for rules that drop packets of networks, which are known by their names.

    If a table cannot be listed, its last listing counts; what that shows is no longer certain after 5 minutes.
    """

    def __init__(self) -> None:
        self._found: dict[str, list[Obstacle]] = {}
        self._networks: dict[str, Traffic] = {}  # as of the last search, without peers
        self._consistency = ConsistentListing()
        self._iptables: dict[str, Tables] = {}
        self._nftables: dict[str, NftTable] = {}
        self._searched: object = None  # the tables and networks of the last search; None until one has ended
        self._next_at = 0.0
        self._drops = logs.FailureLog(log, "Rules that drop packets of containers", _MOST_LINES)
        self._failures = logs.FailureLog(log, "Failed to check whether rules drop packets of containers")
        self._failing_since: dict[_Source, float] = {}  # the first failure in a row, by the event loop's clock

    def certain(self, name: str) -> str:
        """Return what certainly stops the packets of a network; empty if nothing does."""
        return next((obstacle.text for obstacle in self._found.get(name, ()) if obstacle.is_certain), "")

    @property
    def is_blocked(self) -> bool:
        """Whether something certainly stops the packets of a network."""
        return any(map(self.certain, self._found))

    def forget(self, name: str) -> None:
        """Forget a network that has ended; one of that name may begin before the next check."""
        self._searched = None
        for obstacle in self._found.pop(name, ()):
            self._end(name, obstacle.name)

    async def check(self, networks: Mapping[str, Traffic]) -> None:
        """Search the tables again, unless the last search took long and was not long ago.

        ``networks``: those of the caller, who may remove some during the search.
        """
        for name in self._found.keys() - networks.keys():
            self.forget(name)
        self._drops.report()
        if not networks:
            return
        start = asyncio.get_running_loop().time()
        watched = {name: traffic.without_peers() for name, traffic in networks.items()}
        if start < self._next_at and watched == self._networks:
            return
        self._networks = watched
        try:
            await self._search_all(networks)
        finally:
            self._next_at = start + _PAUSE_FACTOR * (asyncio.get_running_loop().time() - start)

    async def _search_all(self, networks: Mapping[str, Traffic]) -> None:
        await self._consistency.update(self._list_all)
        if self._failing_since:
            self._consistency.expire()
        await asyncio.sleep(0)  # to compare long listings takes a while
        traffics = dict(networks)
        outdated = self._outdated()
        subject = self._iptables, self._nftables, traffics, outdated
        if subject == self._searched:
            return
        self._searched = None  # so that a search that fails is repeated
        for name, traffic in traffics.items():
            found = await self._search(traffic, outdated)
            if name in networks:  # unless it has ended meanwhile
                self._report(name, found)
        self._searched = subject

    def _outdated(self) -> set[_Source]:
        """Return the sources whose listings have failed for so long that the last one is not certain any more."""
        since = asyncio.get_running_loop().time() - _OUTDATED_SECONDS
        return {source for source, first in self._failing_since.items() if first <= since}

    async def _search(self, traffic: Traffic, outdated: set[_Source]) -> list[Obstacle]:
        found = await search(self._iptables.values(), self._nftables.values(), traffic)
        if not outdated:
            return found
        current = await search(
            [each for name, each in self._iptables.items() if _Source(_IPTABLES, name) not in outdated],
            [each for name, each in self._nftables.items() if not {_NFTABLES, _Source(_TABLE, name)} & outdated],
            traffic,
        )
        return [each if each in current else each._replace(is_certain=False) for each in found]

    async def _list_all(self) -> bool:
        """List all rules, and return whether they are the same: some are read from both listings together."""
        before = self._iptables, self._nftables
        self._iptables, self._nftables = await self._list_iptables(), await self._list_nftables()
        return (self._iptables, self._nftables) == before

    async def _list_iptables(self) -> dict[str, Tables]:
        return self._or_last_result(_IPTABLES, await iptables.tables(), self._iptables)

    async def _list_nftables(self) -> dict[str, NftTable]:
        try:
            found = await nftables.tables()
        except HostError as error:
            self._failed(_NFTABLES, error)
            return self._nftables
        self._recovered(_NFTABLES)
        return self._or_last_result(_TABLE, found, self._nftables)

    def _or_last_result(self, kind: str, found: Mapping[str, T | HostError], before: Mapping[str, T]) -> dict[str, T]:
        """Return what was found, or the last result where that failed; what has not changed is kept as read."""
        for source in [each for each in self._failing_since if each.kind == kind and each.name not in found]:
            self._recovered(source)
        seen: dict[str, T] = {}
        for name, each in found.items():
            if not isinstance(each, HostError):
                self._recovered(_Source(kind, name))
                seen[name] = before[name] if before.get(name) == each else each
                continue
            self._failed(_Source(kind, name), each)
            if name in before:
                seen[name] = before[name]
        return seen

    def _failed(self, source: _Source, error: HostError) -> None:
        line = f"Failed to check whether {source.kind}{source.name} drops packets of containers: {error}"
        self._failures.failed(error, line, logging.WARNING, subject=source)
        self._failing_since.setdefault(source, asyncio.get_running_loop().time())

    def _recovered(self, source: _Source) -> None:
        self._failures.recovered(subject=source)
        self._failing_since.pop(source, None)

    def _report(self, name: str, found: list[Obstacle]) -> None:
        """Log each obstacle once while it lasts, once more if it becomes certain, and its end."""
        before, self._found[name] = self._found.get(name, []), found
        token = logs.network.set(name)
        for obstacle in found:
            # The cause is not the text, which may name peers: they change.
            if obstacle.is_certain:
                self._drops.note_logged(obstacle.name, _Drop(name, obstacle.name, is_certain=False))
            subject = _Drop(name, obstacle.name, obstacle.is_certain)
            self._drops.failed(obstacle.name, obstacle.text, logging.WARNING, subject)
        left = {obstacle.name for obstacle in found}
        for gone in dict.fromkeys(obstacle.name for obstacle in before if obstacle.name not in left):
            line = f"Obstacle is gone: {gone} no longer stops packets between containers of different hosts"
            self._end(name, gone, line)
        logs.network.reset(token)

    def _end(self, network: str, obstacle: str, line: str = "") -> None:
        self._drops.recovered(subject=_Drop(network, obstacle, is_certain=True))
        self._drops.recovered(line, _Drop(network, obstacle, is_certain=False))


async def search(listings: Collection[Tables], nft_tables: Collection[NftTable], traffic: Traffic) -> list[Obstacle]:
    """Return what drops packets in these tables of iptables and nftables."""
    searches = obstacles.searches(listings, nft_tables, traffic)
    return [obstacle for search in searches for obstacle in await in_turns(search)]
