"""Finds out what keeps packets between containers of different hosts from being forwarded.

Counterpart: none; the original's containers get no answer, and no line names the cause.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

from flannelpy import logs
from flannelpy.chunks import in_chunks
from flannelpy.errors import HostError
from flannelpy.linux import ip_forward, iptables, nftables
from flannelpy.netfilter import obstacles
from flannelpy.netfilter.iptables_listing import Tables
from flannelpy.netfilter.nft_listing import Table
from flannelpy.netfilter.obstacles import Obstacle, Search, Traffic
from flannelpy.report import TrafficReport

log = logging.getLogger(__name__)

T = TypeVar("T")

# A look takes a twentieth of the time at most: iptables takes seconds to list 30,000 rules.
_PAUSE_FACTOR = 20
# To follow a rule takes 20 microseconds, and to read a long one a millisecond.
_TURN_SECONDS = 0.001


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


class ForwardCheck:
    """Networks are known by their names.

    Where flannelpy cannot look at a table, what it saw there before counts.
    """

    def __init__(self) -> None:
        self._found: dict[str, list[Obstacle]] = {}
        self._networks: dict[str, Traffic] = {}
        self._iptables: dict[str, Tables] = {}
        self._nftables: dict[str, Table] = {}
        self._next_at = 0.0
        self._failures = logs.FailureLog(log, "Failed to look for what drops packets of containers")

    def certain(self, name: str) -> str:
        """Return what certainly stops the packets of a network; empty if nothing does."""
        return next((obstacle.text for obstacle in self._found.get(name, ()) if obstacle.is_certain), "")

    @property
    def is_blocked(self) -> bool:
        """Whether something certainly stops the packets of a network."""
        return any(map(self.certain, self._found))

    def forget(self, name: str) -> None:
        """Forget a network that has ended."""
        self._found.pop(name, None)
        self._networks.pop(name, None)

    async def check(self, networks: Mapping[str, Traffic]) -> None:
        """Look again, unless the last look took long and was not long ago."""
        if not networks:
            return
        start = asyncio.get_running_loop().time()
        if start < self._next_at and networks == self._networks:
            return
        listings, tables = await self._list_iptables(), await self._list_nftables()
        if (listings, tables, networks) != (self._iptables, self._nftables, self._networks):
            self._iptables, self._nftables, self._networks = listings, tables, dict(networks)
            for name, traffic in networks.items():
                found = await self._search(traffic)
                if name in self._networks:  # unless it has ended meanwhile
                    self._report(name, found)
        self._next_at = start + _PAUSE_FACTOR * (asyncio.get_running_loop().time() - start)

    async def _search(self, traffic: Traffic) -> list[Obstacle]:
        searches = obstacles.searches(self._iptables.values(), self._nftables.values(), traffic)
        return [obstacle for search in searches for obstacle in await _in_turns(search)]

    async def _list_iptables(self) -> dict[str, Tables]:
        return self._seen("", await iptables.tables(), self._iptables)

    async def _list_nftables(self) -> dict[str, Table]:
        try:
            found = await nftables.tables()
        except HostError as error:
            self._failed("nftables", error)
            return self._nftables
        self._failures.recovered(subject="nftables")
        return self._seen("the nftables table ", found, self._nftables)

    def _seen(self, kind: str, found: Mapping[str, T | HostError], before: Mapping[str, T]) -> dict[str, T]:
        """Return what was found, or the last result where that failed; what has not changed is kept as read."""
        seen: dict[str, T] = {}
        for name, each in found.items():
            if not isinstance(each, HostError):
                self._failures.recovered(subject=kind + name)
                seen[name] = before[name] if before.get(name) == each else each
                continue
            self._failed(kind + name, each)
            if name in before:
                seen[name] = before[name]
        return seen

    def _failed(self, what: str, error: HostError) -> None:
        """Log a failure once for each cause."""
        line = f"Cannot look whether {what} drops packets of containers: {error}"
        self._failures.failed(error, line, logging.WARNING, subject=what)

    def _report(self, name: str, found: list[Obstacle]) -> None:
        """Log what was not there at the last check, and what is gone."""
        before, self._found[name] = self._found.get(name, []), found
        token = logs.network.set(name)
        for obstacle in found:
            if obstacle not in before:
                log.warning("%s", obstacle.text)
        left = {obstacle.name for obstacle in found}
        for gone in dict.fromkeys(obstacle.name for obstacle in before if obstacle.name not in left):
            log.info("Gone: %s stops no packets between containers of different hosts any more", gone)
        logs.network.reset(token)


async def _in_turns(search: Search) -> list[Obstacle]:
    """Return the result of a search; in between the event loop runs."""
    try:
        while True:
            end = time.perf_counter() + _TURN_SECONDS
            while time.perf_counter() < end:
                next(search)
            await asyncio.sleep(0)
    except StopIteration as stop:
        return cast(list[Obstacle], stop.value)
