"""Finds out what keeps packets between containers of different hosts from being forwarded.

Counterpart: none; the original's containers get no answer, and nothing tells why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar, cast

from flannelpy import logs
from flannelpy.chunks import in_chunks
from flannelpy.errors import HostError
from flannelpy.linux import ip_forward, iptables, nftables
from flannelpy.netfilter import obstacles
from flannelpy.netfilter.iptables_listing import Table
from flannelpy.netfilter.nft_listing import BaseChain
from flannelpy.netfilter.obstacles import Obstacle, Search, Traffic

log = logging.getLogger(__name__)

T = TypeVar("T")

# A look takes a twentieth of the time at most: iptables takes seconds to list 30,000 rules.
_PAUSE_FACTOR = 20
# To follow a rule takes 20 microseconds.
_RULES_PER_TURN = 50


class SysctlCheck:
    """``obstacle``: the setting of the kernel that keeps packets of containers from being forwarded, or empty."""

    def __init__(self) -> None:
        self.obstacle = ""

    async def check(self, devices: Iterable[str]) -> None:
        """Look again at the devices by which packets of containers come in, and log a change."""
        blocked: list[str] = []
        async for chunk in in_chunks(devices):
            blocked += [device for device in chunk if not ip_forward.is_enabled(device)]
        found = obstacles.of_sysctls(blocked, is_host_forwarding=ip_forward.is_enabled(ip_forward.HOST))
        if found and found != self.obstacle:
            log.error("%s", found)
        elif self.obstacle and not found:
            log.info("The kernel forwards packets of containers again")
        self.obstacle = found


class ForwardCheck:
    """Networks are known by their names."""

    def __init__(self) -> None:
        self._found: dict[str, list[Obstacle]] = {}
        self._networks: dict[str, Traffic] = {}
        self._tables: dict[str, list[Table]] = {}
        self._chains: list[BaseChain] = []
        self._next_at = 0.0
        self._problems: dict[str, str] = {}

    def certain(self, name: str) -> str:
        """What certainly stops the packets of a network; empty if nothing does."""
        return next((obstacle.text for obstacle in self._found.get(name, ()) if obstacle.is_certain), "")

    @property
    def is_blocked(self) -> bool:
        """Whether something certainly stops the packets of a network."""
        return any(map(self.certain, self._found))

    def forget(self, name: str) -> None:
        """A network has ended."""
        self._found.pop(name, None)
        self._networks.pop(name, None)

    async def check(self, networks: Mapping[str, Traffic]) -> None:
        """Look again, unless the last look took long and was not long ago."""
        if not networks:
            return
        start = asyncio.get_running_loop().time()
        if start < self._next_at and networks == self._networks:
            return
        tables = await self._listed("iptables", iptables.tables) or {}
        chains = await self._listed("nftables", nftables.base_chains) or []
        if (tables, chains, networks) != (self._tables, self._chains, self._networks):
            self._tables, self._chains, self._networks = tables, chains, dict(networks)
            for name, traffic in networks.items():
                found = await self._search(traffic)
                if name in self._networks:  # unless it has ended meanwhile
                    self._report(name, found)
        self._next_at = start + _PAUSE_FACTOR * (asyncio.get_running_loop().time() - start)

    async def _search(self, traffic: Traffic) -> list[Obstacle]:
        searches = [
            obstacles.of_table(table, word, traffic) for word, tables in self._tables.items() for table in tables
        ]
        searches += [obstacles.of_base_chain(chain, traffic) for chain in self._chains]
        return [obstacle for search in searches for obstacle in await _in_turns(search)]

    async def _listed(self, program: str, listing: Callable[[], Awaitable[T]]) -> T | None:
        """What is listed; None if that fails, which is logged once for each cause."""
        try:
            found = await listing()
            self._problems.pop(program, None)
        except HostError as error:
            # The guard of our rules logs what is wrong with iptables.
            if str(error) != self._problems.get(program):
                level = logging.DEBUG if program == "iptables" else logging.WARNING
                log.log(level, "Cannot look whether %s drops packets of containers: %s", program, error)
            self._problems[program] = str(error)
            return None
        return found

    def _report(self, name: str, found: list[Obstacle]) -> None:
        """Log what was not there at the last check."""
        before, self._found[name] = self._found.get(name, ()), found
        token = logs.network.set(name)
        for obstacle in found:
            if obstacle not in before:
                log.warning("%s", obstacle.text)
        logs.network.reset(token)


async def _in_turns(search: Search) -> list[Obstacle]:
    """The result of a search; in between the event loop runs."""
    try:
        while True:
            for _ in range(_RULES_PER_TURN):
                next(search)
            await asyncio.sleep(0)
    except StopIteration as end:
        return cast(list[Obstacle], end.value)
